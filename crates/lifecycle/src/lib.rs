//! The life cycles, as pure functions.
//!
//! Owns: which states there are and what leads from one to the next ([`pipe`], [`table`]); which command is legal where ([`command`]); what is
//! stored about a pipe ([`record`]) and how commands, reports and assignments change it ([`aggregate`], [`report`]); and which work a state calls for
//! ([`wanted`]).
//!
//! Never contains: a clock (the time is an argument), randomness, I/O. Nothing here is async.
//!
//! Start reading at [`pipe`].

pub mod aggregate;
pub mod command;
pub mod pipe;
pub mod record;
pub mod report;
pub mod table;
pub mod wanted;

pub use aggregate::{PipeAggregate, PipeChanges};
pub use command::{Command, Refusal};
pub use pipe::{PipeEvent, PipeState};
pub use record::{
    Actor, AssignmentRecord, EventKind, EventRecord, Health, PartitionRecord, PipeRecord, TableRecord, Task,
};
pub use report::StaleReport;
pub use table::{TableEvent, TableState};
