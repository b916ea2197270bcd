//! The words that several crates share.
//!
//! Owns: identifiers ([`PipeId`], [`WorkerId`], [`Epoch`]), positions ([`Lsn`]), names ([`TableName`]),
//! what a source table looks like ([`TableDefinition`], [`PgType`]), page ranges ([`PageRange`]), what a user asked
//! for ([`PipeSpec`]) and how trouble is described ([`Problem`]).
//!
//! Never contains: I/O, async code, wire types. Everything here is plain data with the rules that make it valid.
//!
//! Start reading at [`spec`] for what a user writes and at [`schema`] for what a source offers.

pub mod id;
pub mod labels;
pub mod lsn;
pub mod name;
pub mod problem;
pub mod range;
pub mod schema;
pub mod secret;
pub mod spec;
pub mod time;
pub mod work;

pub use id::{Epoch, PipeId, PipeName, TableId, Term, WorkerId};
pub use labels::Labels;
pub use lsn::Lsn;
pub use name::TableName;
pub use problem::{Problem, Recovery, Severity};
pub use range::PageRange;
pub use schema::{Partition, PgType, ReplicaIdentity, SourceColumn, TableDefinition};
pub use secret::Secret;
pub use spec::PipeSpec;
pub use time::Timestamp;
