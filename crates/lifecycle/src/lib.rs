//! The life cycles, as pure functions.
//!
//! Owns: which states there are and what leads from one to the next ([`pipe`], [`table`]); which command is legal where ([`command`]) and what it
//! does ([`edit`], [`difference`]); what is stored about a pipe ([`record`]) and how reports and assignments change it ([`aggregate`], [`report`], [`round`]);
//! which work a state calls for ([`wanted`]) and what a worker must know to do it ([`work`]).
//!
//! Never contains: a clock (the time is an argument), randomness, I/O. Nothing here is async.
//!
//! Start reading at [`pipe`].

pub mod aggregate;
pub mod command;
pub mod difference;
pub mod edit;
pub mod pipe;
pub mod record;
pub mod report;
pub mod round;
pub mod table;
pub mod verification;
pub mod wanted;
pub mod work;

pub use aggregate::{PipeAggregate, PipeChanges, PipeTable};
pub use command::{Command, Refusal};
pub use difference::Difference;
pub use pipe::{PipeEvent, PipeState};
pub use record::{
    Actor, AssignmentRecord, EventKind, EventRecord, Health, PartitionRecord, PipeRecord, TableRecord, Task,
};
pub use report::StaleReport;
pub use table::{TableEvent, TableState};
