//! The life cycle of a pipe.
//!
//! ```text
//!   Provisioning ──▶ Setup ──▶ Snapshot ──▶ Running ──▶ Pausing ──▶ Paused
//!                     ▲ │        │ ▲  │       ▲ │  ▲                  │
//!                     │ │        │ └──┼───────┼─┘  └──── resume ──────┤
//!         resync ─────┘ │        ▼    └─▶ Resync                      │
//!   (Running, Paused,   │    Completed      (back to Running, Paused  │
//!  Completed, Failed)   ▼                    or Completed)            ▼
//!                    Running (no copy)               Modifying ◀── tables taken out
//!
//!   every state but Paused and Completed ──▶ Failed ──▶ back to where it failed (after repair), or resync
//! ```
//!
//! While a pipe is in Setup or Snapshot once more, its stream goes on.

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
    /// Tables are being taken out.
    Modifying,
    /// Tables that were copied anew take the places of those before.
    Resync,
    /// A snapshot-only pipe is done.
    Completed,
    /// It cannot heal by itself.
    Failed,
}

impl PipeState {
    /// Every state, in the order in which they are usually seen.
    pub const ALL: [PipeState; 10] = [
        Self::Provisioning,
        Self::Setup,
        Self::Snapshot,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Modifying,
        Self::Resync,
        Self::Completed,
        Self::Failed,
    ];
}

impl fmt::Display for PipeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What can happen to a pipe as a whole. Where the way back depends on what is stored, the event says where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PipeEvent {
    /// A worker has checked both sides.
    Provisioned,
    /// Destination tables and publication stand.
    SetUp,
    /// Destination tables, publication and slot of a pipe without a copy stand.
    SetUpForChanges,
    /// Every table that is not set aside is copied, and changes are to follow.
    CopiedBeforeStream,
    /// Every table of a snapshot-only pipe is copied.
    CopiedForGood,
    /// Tables that are to take the places of others are copied, and their changes are carried over up to the present.
    ReadyToSwap,
    /// All of them have done so. Leads back to where the resync began.
    Swapped {
        /// Running, Paused or Completed.
        back_to: PipeState,
    },
    /// A user wants it to pause.
    PauseRequested,
    /// The stream has drained and the slot is released.
    Drained,
    /// A user wants it to go on.
    ResumeRequested {
        /// Where it goes on: the state in which it failed, or Snapshot while there is something to copy, or Running.
        to: PipeState,
    },
    /// A user wants all of it copied anew.
    ResyncRequested,
    /// A user has added tables.
    TablesAdded,
    /// A user has taken tables out.
    TablesRemoved,
    /// They are gone.
    Modified {
        /// Where the pipe was before.
        back_to: PipeState,
    },
    /// Something happened that does not heal by itself.
    Broke,
}

/// What must be done to the pipe's work because of a transition. Everything else follows from the new state (see [`crate::wanted`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PipeEffect {
    /// Ask the stream to drain.
    DrainStream,
    /// Take copies and snapshots back; what is copied stays.
    WithdrawCopies,
    /// Take all work back at once.
    WithdrawAll,
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
    use PipeEffect as F;
    use PipeEvent as E;
    use PipeState as S;
    let step = |next, effects| Ok(PipeStep { next, effects });
    match (state, event) {
        (S::Provisioning, E::Provisioned) => step(S::Setup, &[]),
        (S::Setup, E::SetUp) => step(S::Snapshot, &[]),
        (S::Setup, E::SetUpForChanges) => step(S::Running, &[]),
        (S::Snapshot, E::CopiedBeforeStream) => step(S::Running, &[]),
        (S::Snapshot, E::CopiedForGood) => step(S::Completed, &[]),
        (S::Snapshot, E::ReadyToSwap) => step(S::Resync, &[]),
        (S::Resync, E::Swapped { back_to: back_to @ (S::Running | S::Paused | S::Completed) }) => {
            step(back_to, &[])
        }
        (S::Snapshot | S::Running, E::PauseRequested) => {
            step(S::Pausing, &[F::WithdrawCopies, F::DrainStream])
        }
        (S::Pausing, E::Drained) => step(S::Paused, &[]),
        (S::Paused, E::ResumeRequested { to: to @ (S::Snapshot | S::Running) }) => step(to, &[]),
        (
            S::Failed,
            E::ResumeRequested {
                to: to @ (S::Provisioning | S::Setup | S::Snapshot | S::Running | S::Modifying | S::Resync),
            },
        ) => step(to, &[]),
        (S::Running | S::Paused | S::Completed | S::Failed, E::ResyncRequested) => step(S::Setup, &[]),
        (S::Running | S::Completed, E::TablesAdded) => step(S::Snapshot, &[]),
        (S::Snapshot | S::Running | S::Paused | S::Completed | S::Failed, E::TablesRemoved) => {
            step(S::Modifying, &[])
        }
        (
            S::Modifying,
            E::Modified { back_to: back_to @ (S::Snapshot | S::Running | S::Paused | S::Completed) },
        ) => step(back_to, &[]),
        (
            S::Provisioning | S::Setup | S::Snapshot | S::Running | S::Pausing | S::Modifying | S::Resync,
            E::Broke,
        ) => step(S::Failed, &[F::WithdrawAll]),
        (state, event) => Err(IllegalTransition { state, event }),
    }
}

/// What comes next by itself, for people.
pub fn next_in_words(state: PipeState) -> &'static str {
    match state {
        PipeState::Provisioning => "a worker checks source and destination, then Setup",
        PipeState::Setup => "destination tables and publication are made, then Snapshot",
        PipeState::Snapshot => {
            "the tables are copied, then Running (Resync where they take the places of others, Completed for a snapshot-only pipe)"
        }
        PipeState::Running => "changes are carried over until you pause or delete the pipe",
        PipeState::Pausing => "what was read is made durable, then Paused",
        PipeState::Paused => "nothing until you resume or delete the pipe; the slot holds back WAL meanwhile",
        PipeState::Modifying => "tables are taken out, then it goes on as before",
        PipeState::Resync => "tables that were copied anew take their places, then it goes on as before",
        PipeState::Completed => "nothing; the copy is complete",
        PipeState::Failed => "nothing until you mend the cause and resume, resync, or delete the pipe",
    }
}
