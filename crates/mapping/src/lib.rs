//! From PostgreSQL's types and values to ClickHouse's.
//!
//! Owns: which ClickHouse type a source column gets ([`plan_columns`]), which of PostgreSQL's two value forms is asked
//! for ([`copies_as_text`], [`streams_as_binary`]), and how value bytes become the columns of one block in ClickHouse's
//! `Native` format ([`BlockBuilder`]). What ClickHouse cannot hold is decided here, and counted.
//!
//! Never contains: I/O, async code, SQL beyond the names of ClickHouse types, row objects. A value goes from the bytes
//! that PostgreSQL sent straight into the bytes of its column.
//!
//! The connections that values come from must have set `DateStyle` ISO, `IntervalStyle` postgres, `TimeZone` UTC,
//! `extra_float_digits` 3, `bytea_output` hex and `client_encoding` UTF8; then both forms of a value give the same bytes.
//!
//! Start reading at [`plan`] for the types and at [`block`] for the values.

mod array;
pub mod block;
mod calendar;
pub mod ch_type;
mod column;
mod decoder;
mod dictionary;
pub mod documentation;
pub mod error;
pub mod evolution;
mod hstore;
mod native;
mod numeric;
pub mod plan;
pub mod row_binary;
mod vector;

pub use block::{BlockBuilder, Cell, EncodedBlock};
pub use ch_type::{ChType, UnknownType};
pub use error::{Fault, RowError, ValueError};
pub use plan::{
    ColumnPlan, MappingOptions, copies_as_text, metadata_columns, override_columns, plan_columns,
    streams_as_binary,
};
