//! What a stream of changes means for destination tables.
//!
//! Owns: transactions as far as acknowledgement needs them, the match between what the stream says of a table and what was
//! recorded when the pipe was set up, the rows that each change becomes (versions, tombstones, values kept from the old
//! row), and one [`millrace_mapping::BlockBuilder`] per table in which they wait.
//!
//! Never contains: sockets, clocks, DDL, decisions about when to send. A table that cannot go on is an effect
//! ([`Applier::take_refused`]), a truncate is one too ([`Step::Truncate`]); the caller carries them out.
//!
//! What becomes of a change, with `lsn` the start of the change's own WAL record and the version of every row it writes:
//!
//! | change | rows |
//! |---|---|
//! | insert | the row |
//! | update | the row; before it a tombstone at the old place where the change moved the row |
//! | delete | a tombstone |
//! | truncate | none; a barrier for the caller, who removes rows with a version below `lsn` |
//!
//! A row's *place* is its key, or the destination's sorting key where that is longer. A tombstone holds every value that
//! the old tuple carries and defaults elsewhere.
//!
//! Known limit: a key that PostgreSQL checks only at the end of a statement (`DEFERRABLE`, possible only under full identity)
//! lets two rows share a place for a moment, as when they swap keys in one `UPDATE`. The later row's tombstone then also
//! hides the row that has just arrived there. Whoever describes tables must refuse such a key.
//!
//! Start reading at [`Applier`].

pub mod applier;
pub mod history;
mod layout;
pub mod problem;
mod table;

pub use applier::{Applier, ApplyError, Batch, CommitTimes, Step, TableIndex};
pub use history::{Found, OwnedCell, SourceValues};
pub use table::{Sought, StreamTable};
