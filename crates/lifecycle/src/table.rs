//! The life cycle of one table of a pipe.
//!
//! ```text
//!   Waiting ──▶ Copying ──▶ CatchingUp ──▶ Streaming
//!      ▲           │ └────▶ Completed (snapshot-only pipe)
//!      └───────────┘ the copy begins anew
//!   every state ──▶ SetAside
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
    /// Left out, with a reason, while the others go on.
    SetAside,
}

impl TableState {
    /// Every state.
    pub const ALL: [TableState; 6] =
        [Self::Waiting, Self::Copying, Self::CatchingUp, Self::Streaming, Self::Completed, Self::SetAside];
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
            Self::SetAside => "set aside",
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
    /// All changes that waited for the end of the copy are in the destination.
    CaughtUp,
    /// What was copied is void; it begins anew.
    CopyVoided,
    /// It cannot go on.
    Broke,
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
        (S::CatchingUp, E::CaughtUp) => Ok(S::Streaming),
        (S::Waiting | S::Copying | S::Completed, E::CopyVoided) => Ok(S::Waiting),
        (S::Waiting | S::Copying | S::CatchingUp | S::Streaming | S::Completed, E::Broke) => Ok(S::SetAside),
        (state, event) => Err(IllegalTableTransition { state, event }),
    }
}
