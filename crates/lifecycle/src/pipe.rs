//! The life cycle of a pipe.
//!
//! ```text
//!   Provisioning ──▶ Setup ──▶ Snapshot ──▶ Running ──▶ Pausing ──▶ Paused
//!                                  │           ▲                      │
//!                                  ▼           └──────────────────────┘
//!                              Completed
//!
//!   every state but Paused and Completed ──▶ Failed ──▶ back to where it failed (after repair)
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a pipe stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PipeState {
    /// Source and destination are checked by a worker, tables described.
    Provisioning,
    /// Destination tables and the publication are made.
    Setup,
    /// The slot is made, then tables are copied in parallel partitions.
    Snapshot,
    /// Changes stream.
    Running,
    /// The stream drains: everything read is made durable, then the slot is released.
    Pausing,
    /// Nothing is read; the slot keeps its place.
    Paused,
    /// A snapshot-only pipe is done.
    Completed,
    /// It cannot heal by itself.
    Failed,
}

impl PipeState {
    /// Every state, in the order in which they are usually seen.
    pub const ALL: [PipeState; 8] = [
        Self::Provisioning,
        Self::Setup,
        Self::Snapshot,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Completed,
        Self::Failed,
    ];
}

impl fmt::Display for PipeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What can happen to a pipe as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PipeEvent {
    /// A worker has checked both sides.
    Provisioned,
    /// Destination tables and publication stand.
    SetUp,
    /// Every table that is not set aside is copied, and changes are to follow.
    CopiedBeforeStream,
    /// Every table of a snapshot-only pipe is copied.
    CopiedForGood,
    /// A user wants it to pause.
    PauseRequested,
    /// The stream has drained and the slot is released.
    Drained,
    /// A user wants it to go on. Holds the state in which it failed, where it is Failed.
    ResumeRequested {
        /// The state before Failed.
        failed_in: Option<PipeState>,
    },
    /// Something happened that does not heal by itself.
    Broke,
}

/// What must be done to the pipe's work because of a transition. Everything else follows from the new state (see [`crate::wanted`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PipeEffect {
    /// Ask the stream to drain.
    DrainStream,
    /// Take all work back at once.
    WithdrawAll,
    /// Take back the session that holds the snapshot.
    WithdrawSnapshot,
}

/// Where a legal event leads and what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipeStep {
    /// The state from now on.
    pub next: PipeState,
    /// What to do about running work.
    pub effects: &'static [PipeEffect],
}

/// The event cannot happen in the state; nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} is not legal in state {state}")]
pub struct IllegalTransition {
    /// The state.
    pub state: PipeState,
    /// The event.
    pub event: PipeEvent,
}

/// The table of a pipe's life: what follows from an event in a state.
pub fn transition(state: PipeState, event: PipeEvent) -> Result<PipeStep, IllegalTransition> {
    use PipeEvent as E;
    use PipeState as S;
    let step = |next, effects| Ok(PipeStep { next, effects });
    match (state, event) {
        (S::Provisioning, E::Provisioned) => step(S::Setup, &[]),
        (S::Setup, E::SetUp) => step(S::Snapshot, &[]),
        (S::Snapshot, E::CopiedBeforeStream) => step(S::Running, &[PipeEffect::WithdrawSnapshot]),
        (S::Snapshot, E::CopiedForGood) => step(S::Completed, &[PipeEffect::WithdrawSnapshot]),
        (S::Running, E::PauseRequested) => step(S::Pausing, &[PipeEffect::DrainStream]),
        (S::Pausing, E::Drained) => step(S::Paused, &[]),
        (S::Paused, E::ResumeRequested { .. }) => step(S::Running, &[]),
        (S::Failed, E::ResumeRequested { failed_in: Some(failed_in) }) => {
            // A pause that failed half-way is over once somebody asks to go on.
            step(if failed_in == S::Pausing { S::Running } else { failed_in }, &[])
        }
        (S::Provisioning | S::Setup | S::Snapshot | S::Running | S::Pausing, E::Broke) => {
            step(S::Failed, &[PipeEffect::WithdrawAll])
        }
        (state, event) => Err(IllegalTransition { state, event }),
    }
}

/// What comes next by itself, for people.
pub fn next_in_words(state: PipeState) -> &'static str {
    match state {
        PipeState::Provisioning => "a worker checks source and destination, then Setup",
        PipeState::Setup => "destination tables and publication are made, then Snapshot",
        PipeState::Snapshot => "the tables are copied, then Running (or Completed for a snapshot-only pipe)",
        PipeState::Running => "changes are carried over until you pause or delete the pipe",
        PipeState::Pausing => "what was read is made durable, then Paused",
        PipeState::Paused => "nothing until you resume or delete the pipe; the slot holds back WAL meanwhile",
        PipeState::Completed => "nothing; the copy is complete",
        PipeState::Failed => "nothing until you mend the cause and resume, or delete the pipe",
    }
}
