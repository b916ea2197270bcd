//! When what waits goes to the destination.
//!
//! Every batch is at most one insert a table, and an insert costs ClickHouse milliseconds of CPU however few rows it brings, and a part that must be merged. So a stream over few
//! tables sends little and often, one over many tables sends rarely, and one that has come to rest sends what is left at once: nothing more is to be expected for company.

use std::time::Duration;

use tokio::time::Instant;

/// Time between two batches for each table that waits, up to the sync interval.
const PACE: Duration = Duration::from_millis(40);
/// Inserts of so many tables at a time cost little.
const FEW: u32 = 8;
/// More is not expected of inserts than is: one large block says little of many small ones, and a long sync interval is not to be exceeded on a guess.
const EXPECTED_AT_MOST: Duration = Duration::from_secs(1);
/// A stream that brought nothing for so long has come to rest.
const REST: Duration = Duration::from_millis(100);

/// The rhythm of a stream's batches.
#[derive(Debug)]
pub(super) struct Cadence {
    /// The sync interval: the longest that what waits is held back, unless inserts take longer.
    longest: Duration,
    /// When the last batch was sent.
    sent: Option<Instant>,
    /// When something was last read.
    read: Instant,
    /// When a batch last went because the stream had come to rest.
    early: Option<Instant>,
    /// What a batch took to arrive, a moving average.
    took: Duration,
    /// What an insert into one of its tables added to that, likewise.
    cost: Duration,
}

impl Cadence {
    /// Of a stream that begins now.
    pub(super) fn new(sync_interval: Duration, now: Instant) -> Self {
        Self {
            longest: sync_interval,
            sent: None,
            read: now,
            early: None,
            took: Duration::ZERO,
            cost: Duration::ZERO,
        }
    }

    /// The sync interval is another from now on.
    pub(super) fn set_sync_interval(&mut self, sync_interval: Duration) {
        self.longest = sync_interval;
    }

    /// Something was read.
    pub(super) fn has_read(&mut self, now: Instant) {
        self.read = now;
    }

    /// What waited was sent.
    pub(super) fn has_sent(&mut self, now: Instant) {
        self.sent = Some(now);
    }

    /// What waited is sent before its turn.
    pub(super) fn has_hastened(&mut self, now: Instant) {
        self.early = Some(now);
    }

    /// A batch of so many tables took so long to arrive.
    pub(super) fn has_arrived(&mut self, took: Duration, tables: u32) {
        self.took = (self.took + took) / 2;
        self.cost = (self.cost + took / tables.max(1)) / 2;
    }

    /// When what waits for so many tables has its turn: at once where nothing was sent yet; otherwise so much later than the batch before that a table gets few inserts where
    /// there are many, and that inserts take half of the time at most, or a third where they are many and small: their cost is ClickHouse's CPU, of which a stream needs some too.
    ///
    /// A stream that is `behind` does not get ahead by inserting little and often, so its batches wait for half the sync interval at least.
    pub(super) fn turn(&self, now: Instant, tables: u32, behind: bool) -> Instant {
        let Some(sent) = self.sent else { return now };
        let pause = PACE.saturating_mul(tables).clamp(self.shortest(behind), self.longest);
        let expected = self.cost.saturating_mul(tables).min(self.longest).min(EXPECTED_AT_MOST);
        sent + pause.max(self.took * 2).max(if tables > FEW { expected * 3 } else { Duration::ZERO })
    }

    /// When it goes if nothing more is read: at its turn, or as soon as the stream has come to rest. That is for the end of a burst; bursts that follow one another must
    /// not make a flood of parts, so it happens once in a sync interval and not soon after another batch.
    pub(super) fn due(&self, now: Instant, tables: u32, behind: bool) -> Instant {
        let turn = self.turn(now, tables, behind);
        let Some(sent) = self.sent else { return turn };
        let early = (self.read + REST).max(sent + self.longest / 4);
        if self.early.is_some_and(|last| early < last + self.longest) { turn } else { turn.min(early) }
    }

    /// The shortest time from one batch to the next.
    fn shortest(&self, behind: bool) -> Duration {
        self.longest / if behind { 2 } else { 10 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A stream that sent a batch at the time that is given with it, and has read something every moment since.
    fn busy() -> (Cadence, Instant) {
        let began = Instant::now();
        let mut cadence = Cadence::new(SECOND, began);
        cadence.has_sent(began);
        cadence.has_read(began + SECOND * 60);
        (cadence, began)
    }

    #[test]
    fn the_first_batch_goes_at_once() {
        let now = Instant::now();
        assert_eq!(Cadence::new(SECOND, now).due(now, 200, false), now);
    }

    #[test]
    fn many_tables_wait_longer_but_not_beyond_the_sync_interval() {
        let (cadence, began) = busy();
        let due = |tables, behind| cadence.due(began, tables, behind) - began;
        assert_eq!(due(1, false), millis(100));
        assert_eq!(due(10, false), millis(400));
        assert_eq!(due(10, true), millis(500));
        assert_eq!(due(200, false), SECOND);
    }

    #[test]
    fn inserts_leave_time_to_others() {
        let (mut cadence, began) = busy();
        // A moving average that has come to rest.
        (cadence.took, cadence.cost) = (millis(160), millis(8));
        cadence.has_arrived(millis(160), 20);
        let due = |tables| cadence.due(began, tables, false) - began;
        assert_eq!(due(1), millis(320));
        assert_eq!(due(100), millis(2_400));
        // What a large block took is not expected of each of a thousand small ones.
        assert_eq!(due(1_000), SECOND * 3);
        // Nor is a long interval exceeded for what is only expected.
        cadence.set_sync_interval(SECOND * 60);
        assert_eq!(cadence.due(began, 1_000, false) - began, SECOND * 40);
        cadence.set_sync_interval(SECOND * 10);
        assert_eq!(cadence.due(began, 1_000, false) - began, SECOND * 10);
    }

    #[test]
    fn what_a_burst_leaves_goes_once_it_is_over() {
        let (mut cadence, began) = busy();
        cadence.has_read(began + millis(300));
        let early = began + millis(300) + REST;
        assert_eq!(cadence.due(began, 200, false), early);

        // But not that of each of many bursts.
        cadence.has_hastened(early);
        cadence.has_sent(early);
        cadence.has_read(early + millis(300));
        assert_eq!(cadence.due(early, 200, false), early + SECOND);
        cadence.has_sent(early + SECOND);
        cadence.has_read(early + SECOND);
        assert_eq!(cadence.due(early, 200, false), early + SECOND + millis(250));
    }
}
