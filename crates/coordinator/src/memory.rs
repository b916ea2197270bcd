//! What the coordinator remembers of a pipe and does not store: after a restart it is learned anew.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_lifecycle::Task;
use millrace_model::work::{Progress, StreamProgress, TraceContext};
use millrace_model::{Epoch, Problem, Timestamp, WorkerId};
use tokio::time::Instant;

/// The first pause after a failure.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// The longest pause between tries.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// One pipe's memory.
#[derive(Default)]
pub(crate) struct Memory {
    /// Tasks that failed and will be tried again.
    pub(crate) trouble: BTreeMap<Task, Trouble>,
    /// Rows and bytes of copies, and rows of comparisons, under way.
    pub(crate) copies: BTreeMap<Epoch, (u64, u64)>,
    /// The stream's last report.
    pub(crate) stream: Option<(StreamProgress, Timestamp)>,
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
        let due = Instant::now() + backoff(attempts);
        self.trouble.insert(task, Trouble { problem, since, attempts, due });
        attempts == 1
    }

    /// Takes note that a task gets on; true where it had failed before.
    pub(crate) fn succeeds(&mut self, task: &Task) -> bool {
        self.trouble.remove(task).is_some()
    }

    /// A user wants something: what troubled the pipe is tried again at once.
    pub(crate) fn begin_anew(&mut self, trace: TraceContext) {
        self.trace = trace;
        self.trouble.clear();
    }

    pub(crate) fn is_due(&self, task: &Task) -> bool {
        self.trouble.get(task).is_none_or(Trouble::due)
    }
}

/// Doubles from a quarter of a second to half a minute.
fn backoff(attempts: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(LONGEST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_between_tries_double_up_to_half_a_minute() {
        let pauses: Vec<u128> = (1..=9).map(|attempt| backoff(attempt).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(backoff(u32::MAX), LONGEST_BACKOFF);
    }
}
