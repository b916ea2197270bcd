//! States, times and sizes in the words of people.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use millrace_api::proto::pipe::v1 as wire;

/// `Running`.
pub(crate) fn state_word(state: wire::PipeState) -> String {
    capitalised(state.as_str_name(), "PIPE_STATE_")
}

/// `catching up`.
pub(crate) fn table_state_word(state: wire::TableState) -> &'static str {
    match state {
        wire::TableState::Unspecified => "-",
        wire::TableState::Waiting => "waiting",
        wire::TableState::Copying => "copying",
        wire::TableState::CatchingUp => "catching up",
        wire::TableState::Streaming => "streaming",
        wire::TableState::Completed => "completed",
        wire::TableState::Swapping => "swapping",
        wire::TableState::SetAside => "set aside",
        wire::TableState::Removed => "removed",
    }
}

/// `Connected`.
pub(crate) fn worker_state_word(state: wire::WorkerState) -> String {
    capitalised(state.as_str_name(), "WORKER_STATE_")
}

/// `ok`, `degraded`, `stalled`.
pub(crate) fn health_word(health: wire::Health) -> &'static str {
    match health {
        wire::Health::Unspecified => "-",
        wire::Health::Ok => "ok",
        wire::Health::Degraded => "degraded",
        wire::Health::Stalled => "stalled",
    }
}

/// `cdc`, `snapshot`, `cdc_only`.
pub(crate) fn mode_word(mode: wire::ReplicationMode) -> &'static str {
    match mode {
        wire::ReplicationMode::Unspecified => "-",
        wire::ReplicationMode::Cdc => "cdc",
        wire::ReplicationMode::Snapshot => "snapshot",
        wire::ReplicationMode::CdcOnly => "cdc_only",
    }
}

/// `error`, `warning`.
pub(crate) fn severity_word(severity: wire::Severity) -> &'static str {
    match severity {
        wire::Severity::Warning => "warning",
        wire::Severity::Error | wire::Severity::Unspecified => "error",
    }
}

/// `PIPE_STATE_RUNNING` with its prefix taken off, as `Running`.
fn capitalised(name: &str, prefix: &str) -> String {
    let words = name.strip_prefix(prefix).unwrap_or(name).split('_');
    words
        .map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            format!("{first}{}", rest.to_lowercase())
        })
        .collect()
}

/// RFC 3339 with seconds and the zone's offset; `-` where there is no time.
pub(crate) fn time(time: Option<&prost_types::Timestamp>, zone: &TimeZone) -> String {
    time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok()).map_or_else(
        || "-".to_owned(),
        |time| time.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
    )
}

/// `850 ms`, `12.3 s`, `4 min 5 s`, `3 h 12 min`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.as_millis() < 10 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// `1.21 GiB`.
pub(crate) fn bytes(number: u64) -> String {
    indicatif::BinaryBytes(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_read_as_words() {
        assert_eq!(state_word(wire::PipeState::Running), "Running");
        assert_eq!(table_state_word(wire::TableState::CatchingUp), "catching up");
        assert_eq!(worker_state_word(wire::WorkerState::Lost), "Lost");
    }

    #[test]
    fn durations_keep_two_units_at_most() {
        let told =
            [0, 9, 850, 12_340, 245_000, 11_520_000].map(|millis| duration(Duration::from_millis(millis)));
        assert_eq!(told, ["0.0 ms", "9.0 ms", "850 ms", "12.3 s", "4 min 5 s", "3 h 12 min"]);
    }

    #[test]
    fn times_carry_their_offset() {
        let at = prost_types::Timestamp { seconds: 1_750_000_000, nanos: 5 };
        assert_eq!(time(Some(&at), &TimeZone::UTC), "2025-06-15T15:06:40+00:00");
        assert_eq!(time(None, &TimeZone::UTC), "-");
        let beyond = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
        assert_eq!(time(Some(&beyond), &TimeZone::UTC), "-");
    }
}
