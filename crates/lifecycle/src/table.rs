//! The life cycle of one table of a pipe. A table that is copied anew is another table, which takes the place of the first in the end.
//!
//! ```text
//!   Waiting ──▶ Copying ──▶ CatchingUp ──▶ Streaming
//!      ▲  │        │ │            │            │
//!      │  │        │ └▶ Completed (snapshot-only pipe)
//!      └──┼────────┘ the copy begins anew      │
//!         └▶ CatchingUp (nothing is copied)    ▼
//!                               copied anew: Swapping ──▶ Streaming or Completed
//!   every state ──▶ SetAside (a reason)    every state ──▶ Removed (a user's wish, or replaced)
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a table stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableState {
    /// Nothing of it was copied yet.
    Waiting,
    /// Partitions of it are being copied.
    Copying,
    /// Copied; changes that came meanwhile are being carried over.
    CatchingUp,
    /// Its changes are carried over as they come.
    Streaming,
    /// Copied for good.
    Completed,
    /// Copied anew and up to date; it takes the place of the table before.
    Swapping,
    /// Left out, with a reason, while the others go on.
    SetAside,
    /// It is being taken out.
    Removed,
}

impl TableState {
    /// Every state.
    pub const ALL: [TableState; 8] = [
        Self::Waiting,
        Self::Copying,
        Self::CatchingUp,
        Self::Streaming,
        Self::Completed,
        Self::Swapping,
        Self::SetAside,
        Self::Removed,
    ];

    /// Whether it takes part in the pipe's work.
    pub fn is_active(self) -> bool {
        !matches!(self, Self::SetAside | Self::Removed)
    }

    /// Whether all of its rows were copied.
    pub fn is_copied(self) -> bool {
        matches!(self, Self::CatchingUp | Self::Streaming | Self::Completed | Self::Swapping)
    }
}

/// As people write it.
impl fmt::Display for TableState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Copying => "copying",
            Self::CatchingUp => "catching up",
            Self::Streaming => "streaming",
            Self::Completed => "completed",
            Self::Swapping => "swapping",
            Self::SetAside => "set aside",
            Self::Removed => "removed",
        })
    }
}

/// What can happen to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableEvent {
    /// Its first partition was given out.
    CopyStarted,
    /// Its last partition is in the destination, and changes are to follow.
    CopiedBeforeStream,
    /// Its last partition is in the destination, for good.
    CopiedForGood,
    /// Nothing of it is copied; its changes are to follow.
    NothingToCopy,
    /// All changes that waited for the end of the copy are in the destination.
    CaughtUp,
    /// It is to take the place of the table before.
    SwapBegun,
    /// It has, and its changes follow.
    SwappedBeforeStream,
    /// It has, for good.
    SwappedForGood,
    /// What was copied is void; it begins anew.
    CopyVoided,
    /// It cannot go on.
    Broke,
    /// A user took it out, or another takes its place.
    Removed,
}

/// The event cannot happen in the state; nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} is not legal for a table that is {state}")]
pub struct IllegalTableTransition {
    /// The state.
    pub state: TableState,
    /// The event.
    pub event: TableEvent,
}

/// The table of a table's life.
pub fn transition(state: TableState, event: TableEvent) -> Result<TableState, IllegalTableTransition> {
    use TableEvent as E;
    use TableState as S;
    match (state, event) {
        (S::Waiting, E::CopyStarted) => Ok(S::Copying),
        (S::Copying, E::CopiedBeforeStream) => Ok(S::CatchingUp),
        (S::Copying, E::CopiedForGood) => Ok(S::Completed),
        (S::Waiting, E::NothingToCopy) => Ok(S::CatchingUp),
        (S::CatchingUp, E::CaughtUp) => Ok(S::Streaming),
        (S::Streaming | S::Completed, E::SwapBegun) => Ok(S::Swapping),
        (S::Swapping, E::SwappedBeforeStream) => Ok(S::Streaming),
        (S::Swapping, E::SwappedForGood) => Ok(S::Completed),
        (S::Waiting | S::Copying | S::Completed, E::CopyVoided) => Ok(S::Waiting),
        (S::Waiting | S::Copying | S::CatchingUp | S::Streaming | S::Completed | S::Swapping, E::Broke) => {
            Ok(S::SetAside)
        }
        (
            S::Waiting | S::Copying | S::CatchingUp | S::Streaming | S::Completed | S::Swapping | S::SetAside,
            E::Removed,
        ) => Ok(S::Removed),
        (state, event) => Err(IllegalTableTransition { state, event }),
    }
}
