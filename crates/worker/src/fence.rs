//! Whether a worker may still act: it has a lease for as long as the coordinator hears of it.
//!
//! The lease lasts from the sending of the last heartbeat that a coordinator has answered: it heard of it later than that, so the lease
//! ends here first. A worker that was stopped, or cut off, for longer than its lease cannot know whether its work was given to others. What would
//! harm theirs (emptying a table, dropping a slot, rows of an older snapshot) asks first, and is left undone once the lease may have
//! ended. A coordinator's welcome says what still stands, and begins another lease.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millrace_model::Problem;
use tokio::time::Instant;

/// Heartbeats that may be on their way.
const UNANSWERED: usize = 256;

/// The code of a problem: the lease may have ended.
pub(crate) const LEASE_LOST: &str = "LEASE_LOST";

/// The lease of one worker. Clones are the same lease.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fence(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// How long a lease lasts, as a coordinator said last.
    lasts: Option<Duration>,
    /// When the newest sign of life was given that a coordinator has heard; `None` from the end of a lease to the next welcome.
    /// (`Instant` goes on while the process is stopped.)
    signed: Option<Instant>,
    /// Heartbeats that were sent and not answered, by their numbers.
    sent: VecDeque<(u64, Instant)>,
    last: u64,
    /// When the worker was seen to run, and how often it had not run for longer than its lease.
    ran: Option<Instant>,
    stalls: u64,
}

/// Whether the worker has run all the time since a task began. A stream goes on while no coordinator is there to hear of it, for as long
/// as its slot is its own; but what it had in hand when the process was stopped is another's by now.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    fence: Fence,
    stalls: u64,
}

impl Watch {
    /// Whether that is so.
    pub(crate) fn awake(&self) -> bool {
        let state = self.fence.state();
        state.stalls == self.stalls && !state.is_stalled()
    }
}

impl State {
    fn is_stalled(&self) -> bool {
        self.lasts.zip(self.ran).is_some_and(|(lasts, ran)| ran.elapsed() >= lasts)
    }

    fn stands(&self) -> bool {
        self.lasts.zip(self.signed).is_some_and(|(lasts, signed)| signed.elapsed() < lasts)
    }
}

impl Fence {
    /// A coordinator has welcomed the worker, which introduced itself then; what it does not keep has been stopped.
    pub(crate) fn begin(&self, lasts: Duration, introduced: Instant) {
        let mut state = self.state();
        (state.lasts, state.signed) = (Some(lasts), Some(introduced));
        state.sent.clear();
    }

    /// A sign of life is about to be given; its number. `None`, once, where the lease has ended before: then it must not be given on the
    /// old connection, where nobody would say what still stands.
    pub(crate) fn sign(&self) -> Option<u64> {
        let mut state = self.state();
        if state.signed.is_some() && !state.stands() {
            state.signed = None;
            return None;
        }
        state.last += 1;
        let number = state.last;
        state.sent.push_back((number, Instant::now()));
        // More are not on their way within a lease.
        if state.sent.len() > UNANSWERED {
            state.sent.pop_front();
        }
        Some(number)
    }

    /// A coordinator has heard the sign of life of this number.
    pub(crate) fn heard(&self, number: u64) {
        let mut state = self.state();
        while let Some((sent, at)) = state.sent.front().copied().filter(|(sent, _)| *sent <= number) {
            state.sent.pop_front();
            if sent == number && state.signed.is_some() {
                state.signed = Some(at);
            }
        }
    }

    /// Whether the worker may act.
    pub(crate) fn stands(&self) -> bool {
        self.state().stands()
    }

    /// As [`Fence::stands`], for a task that ends where it does not.
    pub(crate) fn require(&self) -> Result<(), Vec<Problem>> {
        if self.stands() { Ok(()) } else { Err(vec![lost()]) }
    }

    /// The worker runs: to be said about as often as it gives signs of life, whether or not anybody hears them.
    pub(crate) fn runs(&self) {
        let mut state = self.state();
        if state.is_stalled() {
            state.stalls += 1;
        }
        state.ran = Some(Instant::now());
    }

    /// For a task that begins.
    pub(crate) fn watch(&self) -> Watch {
        Watch { fence: self.clone(), stalls: self.state().stalls }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why something is left undone.
pub(crate) fn lost() -> Problem {
    Problem::transient(
        LEASE_LOST,
        "the worker was stopped or cut off for longer than its lease, so the work may be another's by now",
        "it is done by whoever has it; look at the worker's host and network if it comes often",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_on_from_what_was_heard() {
        let (fence, minute) = (Fence::default(), Duration::from_secs(60));
        assert!(!fence.stands(), "nobody has welcomed it");
        assert!(fence.sign().is_some());
        let long_ago = Instant::now().checked_sub(minute / 2).unwrap();
        fence.begin(minute, long_ago);
        assert!(fence.stands());
        let signed = |fence: &Fence| fence.state().signed.unwrap();
        let (first, second) = (fence.sign().unwrap(), fence.sign().unwrap());
        assert_eq!(signed(&fence), long_ago, "a sign that nobody heard is none");
        fence.heard(second);
        assert!(signed(&fence) > long_ago);
        let now = signed(&fence);
        fence.heard(first);
        fence.heard(4711);
        assert_eq!(signed(&fence), now);
    }

    #[test]
    fn a_lease_that_has_ended_is_not_renewed_by_a_sign_of_life() {
        let (fence, minute) = (Fence::default(), Duration::from_secs(60));
        fence.begin(minute, Instant::now());
        let number = fence.sign().unwrap();
        fence.begin(Duration::ZERO, Instant::now());
        assert!(!fence.stands());
        assert_eq!(fence.sign(), None, "the coordinator has to say what still stands");
        fence.heard(number);
        assert!(!fence.stands());
        assert!(fence.sign().is_some(), "on a connection that waits for its welcome");
        assert!(!fence.stands());
        fence.begin(minute, Instant::now());
        assert!(fence.stands());
    }

    #[test]
    fn a_task_of_before_a_stall_does_not_go_on_after_it() {
        let (fence, minute) = (Fence::default(), Duration::from_secs(60));
        fence.runs();
        let watch = fence.watch();
        assert!(watch.awake(), "how long a lease lasts is not known yet");
        fence.begin(minute, Instant::now());
        fence.runs();
        assert!(watch.awake());
        fence.begin(Duration::ZERO, Instant::now());
        assert!(!watch.awake(), "nobody has said that it runs again");
        fence.runs();
        fence.begin(minute, Instant::now());
        assert!(!watch.awake(), "it runs again, but not this task");
        assert!(fence.watch().awake());
    }
}
