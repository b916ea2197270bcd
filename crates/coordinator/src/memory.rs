//! What the coordinator remembers of a pipe and does not store: after a restart it is learned anew.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_lifecycle::Task;
use millrace_model::work::{Progress, SlotHealth, StreamProgress, TraceContext};
use millrace_model::{Epoch, Problem, Timestamp, WorkerId};
use tokio::time::Instant;

/// The first pause after a failure.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// The longest pause between tries.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// One pipe's memory.
#[derive(Default)]
pub(crate) struct Memory {
    /// Tasks that failed and will be tried again.
    pub(crate) trouble: BTreeMap<Task, Trouble>,
    /// Rows and bytes of copies, and rows of comparisons, under way.
    pub(crate) copies: BTreeMap<Epoch, (u64, u64)>,
    /// The stream's last report.
    pub(crate) stream: Option<(StreamProgress, Timestamp)>,
    /// How full the slot was when it was last looked at.
    pub(crate) slot: Option<(SlotHealth, Timestamp)>,
    /// Since when it is in danger.
    pub(crate) slot_in_danger: Option<Timestamp>,
    /// When somebody was asked to look last.
    pub(crate) slot_asked: Option<Instant>,
    /// How often the stream failed since it last got anything into the destination: one whose destination is away gets on until it
    /// has something to write, and would be opened again at once each time.
    pub(crate) reopened: u32,
    /// Since when it reports tables that cannot be written.
    pub(crate) held_since: Option<Timestamp>,
    /// Who had the stream last.
    pub(crate) last_streamer: Option<WorkerId>,
    /// Why something that is wanted is in nobody's hands.
    pub(crate) waiting: Option<(&'static str, Timestamp)>,
    /// What led to the present work.
    pub(crate) trace: TraceContext,
}

/// A task that fails for now.
pub(crate) struct Trouble {
    pub(crate) problem: Problem,
    pub(crate) since: Timestamp,
    pub(crate) attempts: u32,
    due: Instant,
}

impl Trouble {
    pub(crate) fn due(&self) -> bool {
        self.due <= Instant::now()
    }
}

impl Memory {
    /// Takes note of what an assignment's worker said of its progress, or that it said something else, after which its count ends. True where it is a number and no more:
    /// most such reports decide nothing.
    pub(crate) fn takes(
        &mut self,
        worker: &WorkerId,
        epoch: Epoch,
        progress: Option<Progress>,
        now: Timestamp,
    ) -> bool {
        match progress {
            Some(Progress::Copy { rows, bytes }) => {
                self.copies.insert(epoch, (rows, bytes));
                true
            }
            Some(Progress::Verify { rows }) => {
                self.copies.insert(epoch, (rows, 0));
                true
            }
            Some(Progress::Stream(stream)) => {
                self.held_since = (!stream.held.is_empty()).then(|| self.held_since.unwrap_or(now));
                let before = self.stream.as_ref().map_or(stream.durable, |(before, _)| before.durable);
                if stream.caught_up || stream.durable > before {
                    self.reopened = 0;
                }
                self.stream = Some((stream, now));
                self.last_streamer = Some(worker.clone());
                true
            }
            Some(Progress::SnapshotReady { .. }) | None => {
                self.copies.remove(&epoch);
                false
            }
        }
    }

    /// Takes note of a failure; true for the first in a row, which is worth telling.
    pub(crate) fn fails(&mut self, task: Task, problem: Problem, now: Timestamp) -> bool {
        let attempts = self.trouble.get(&task).map_or(0, |trouble| trouble.attempts) + 1;
        let since = self.trouble.get(&task).map_or(now, |trouble| trouble.since);
        let pauses = if task == Task::Stream {
            self.reopened = self.reopened.saturating_add(1);
            self.reopened.max(attempts)
        } else {
            attempts
        };
        let due = Instant::now() + scattered(backoff(pauses), rand::random_range(0.0..1.0));
        self.trouble.insert(task, Trouble { problem, since, attempts, due });
        attempts == 1
    }

    /// Takes note of how full the slot is; `None` where there is none any more.
    pub(crate) fn sees_slot(&mut self, slot: Option<SlotHealth>, now: Timestamp) {
        let in_danger = slot.as_ref().is_some_and(SlotHealth::in_danger);
        self.slot_in_danger = in_danger.then(|| self.slot_in_danger.unwrap_or(now));
        self.slot = slot.map(|slot| (slot, now));
    }

    /// Takes note that a task gets on; true where it had failed before.
    pub(crate) fn succeeds(&mut self, task: &Task) -> bool {
        self.trouble.remove(task).is_some()
    }

    /// A user wants something: what troubled the pipe is tried again at once.
    pub(crate) fn begin_anew(&mut self, trace: TraceContext) {
        self.trace = trace;
        self.trouble.clear();
        self.reopened = 0;
        self.slot_asked = None;
    }

    pub(crate) fn is_due(&self, task: &Task) -> bool {
        self.trouble.get(task).is_none_or(Trouble::due)
    }
}

/// Between half of a pause and the whole: what failed at the same moment, because a server went away, does not come back at the same moment.
fn scattered(pause: Duration, chance: f64) -> Duration {
    pause.mul_f64(0.5 + 0.5 * chance)
}

/// Doubles from a quarter of a second to ten seconds.
fn backoff(attempts: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(LONGEST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_model::Lsn;

    #[test]
    fn pauses_between_tries_double_up_to_ten_seconds() {
        let pauses: Vec<u128> = (1..=8).map(|attempt| backoff(attempt).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 10000, 10000]);
        assert_eq!(backoff(u32::MAX), LONGEST_BACKOFF);
    }

    #[test]
    fn a_slot_is_in_danger_since_it_was_first_seen_so_until_it_is_not() {
        let slot = |retained, headroom| {
            Some(SlotHealth { wal_status: "extended".to_owned(), retained, headroom: Some(headroom) })
        };
        let mut memory = Memory::default();
        for (at, seen, since) in [
            (1, slot(900, 100), None),
            (2, slot(901, 99), Some(2)),
            (3, slot(950, 50), Some(2)),
            (4, slot(1, 999), None),
            (5, slot(999, 1), Some(5)),
            (6, None, None),
        ] {
            memory.sees_slot(seen, Timestamp(at));
            assert_eq!(memory.slot_in_danger, since.map(Timestamp), "at {at}");
        }
    }

    #[test]
    fn what_failed_together_comes_back_one_after_another() {
        let pause = Duration::from_secs(10);
        let dues: Vec<Duration> = [0.0, 0.5, 1.0].map(|chance| scattered(pause, chance)).to_vec();
        assert_eq!(dues, [5_000, 7_500, 10_000].map(Duration::from_millis));
    }

    #[test]
    fn a_stream_that_reports_and_writes_nothing_is_opened_ever_more_seldom() {
        let (worker, epoch): (WorkerId, Epoch) = ("one".parse().unwrap(), Epoch(1));
        let problem = || Problem::transient("DESTINATION_UNREACHABLE", "away", "");
        let mut memory = Memory::default();
        let stream = |durable, caught_up| {
            let progress = StreamProgress { durable: Lsn(durable), caught_up, ..StreamProgress::default() };
            Some(Progress::Stream(progress))
        };
        let pause = |memory: &Memory| {
            let due = memory.trouble[&Task::Stream].due;
            due.saturating_duration_since(Instant::now())
        };
        for _ in 0..6 {
            memory.takes(&worker, epoch, stream(5, false), Timestamp(0));
            memory.succeeds(&Task::Stream);
            memory.fails(Task::Stream, problem(), Timestamp(0));
        }
        assert!(pause(&memory) > backoff(6) / 3, "{:?}", pause(&memory));
        for advanced in [stream(6, false), stream(6, true)] {
            memory.takes(&worker, epoch, advanced, Timestamp(0));
            memory.succeeds(&Task::Stream);
            memory.fails(Task::Stream, problem(), Timestamp(0));
            assert!(pause(&memory) <= FIRST_BACKOFF, "{:?}", pause(&memory));
        }
    }
}
