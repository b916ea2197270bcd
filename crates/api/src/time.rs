//! Times and durations on the wire.

use std::time::Duration;

use millrace_model::Timestamp;

/// The wire form of a time.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.0.div_euclid(1_000_000),
        nanos: i32::try_from(time.0.rem_euclid(1_000_000) * 1000).unwrap_or(0),
    }
}

/// A time from the wire, cut to microseconds and to the range that fits.
pub fn read_timestamp(time: &prost_types::Timestamp) -> Timestamp {
    let micros = i128::from(time.seconds) * 1_000_000 + i128::from(time.nanos) / 1000;
    Timestamp(i64::try_from(micros).unwrap_or(if micros < 0 { i64::MIN } else { i64::MAX }))
}

/// The wire form of a duration.
pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// A duration from the wire; `None` where it is negative.
pub fn read_duration(duration: &prost_types::Duration) -> Option<Duration> {
    let nanos = u32::try_from(duration.nanos).ok()?;
    Duration::from_secs(u64::try_from(duration.seconds).ok()?)
        .checked_add(Duration::from_nanos(u64::from(nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_are_read_back(micros: i64) {
            prop_assert_eq!(read_timestamp(&timestamp(Timestamp(micros))), Timestamp(micros));
        }

        #[test]
        fn durations_are_read_back(seconds in 0..=i64::MAX as u64, nanos in 0..1_000_000_000_u32) {
            let time = Duration::new(seconds, nanos);
            prop_assert_eq!(read_duration(&duration(time)), Some(time));
        }
    }

    #[test]
    fn negative_durations_are_refused() {
        assert_eq!(read_duration(&prost_types::Duration { seconds: -1, nanos: 0 }), None);
        assert_eq!(read_duration(&prost_types::Duration { seconds: 0, nanos: -1 }), None);
    }
}
