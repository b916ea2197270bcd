//! The messages of PostgreSQL's logical decoding plugin `pgoutput`: bytes to borrowed values.
//!
//! Owns: the message formats of protocol 1 to 4 (manual: "Logical Replication Message Formats"), with text and binary
//! tuples, both ways: [`decode()`] for what a walsender sends, [`encode`] for tests and simulation.
//!
//! Never contains: sockets, the CopyData framing around a message (XLogData, keepalives), the meaning of values, or an
//! allocation per cell. No input makes it panic: every length is checked against the bytes that are there.
//!
//! Start reading at [`Body`] for what may arrive and at [`Tuple`] for how a row's cells are lent.

pub mod decode;
pub mod encode;
pub mod message;
pub mod tuple;

pub use decode::{Context, DecodeError, Expected, decode};
pub use message::{
    Begin, Body, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Prepared, Relation,
    RelationColumn, RollbackPrepared, StreamAbort, StreamCommit, Truncate, Update,
};
pub use tuple::{Cell, Cells, Tuple};
