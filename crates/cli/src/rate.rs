//! How fast a counter grows.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What is looked back at.
const WINDOW: Duration = Duration::from_secs(5);

/// A growing counter, seen now and then.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    seen: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// Records the counter. One that fell began anew.
    pub(crate) fn record(&mut self, now: Instant, value: u64) {
        if self.seen.back().is_some_and(|(_, last)| *last > value) {
            self.seen.clear();
        }
        self.seen.push_back((now, value));
        // One point at or beyond the window's far end stays, so that the whole window is covered.
        while self.seen.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.seen.pop_front();
        }
    }

    /// Growth per second over the window; `None` before two points stand apart.
    pub(crate) fn per_second(&self) -> Option<f64> {
        let ((first_at, first), (last_at, last)) = self.seen.front().zip(self.seen.back())?;
        let seconds = last_at.duration_since(*first_at).as_secs_f64();
        // Counts are far below 2^52, so a float holds them well enough for a rate.
        #[allow(clippy::cast_precision_loss)]
        (seconds > 0.0).then(|| (last - first) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let begin = Instant::now();
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), None);
        for second in 0..=20 {
            rate.record(begin + Duration::from_secs(second), if second < 10 { second } else { second * 100 });
        }
        assert_eq!(rate.per_second(), Some(100.0));
    }

    #[test]
    fn a_counter_that_begins_anew_has_no_rate_yet() {
        let begin = Instant::now();
        let mut rate = Rate::default();
        rate.record(begin, 100);
        rate.record(begin + Duration::from_secs(1), 3);
        assert_eq!(rate.per_second(), None);
    }
}
