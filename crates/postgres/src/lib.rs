//! The source adapter: everything that Millrace says to PostgreSQL.
//!
//! Owns: opening connections with TLS ([`dial`]), the wire client of the data path ([`wire`], [`copy`], [`replication`]), statements
//! on an ordinary session ([`session`]), exported snapshots ([`snapshot`]), what tables look like ([`discovery`]), what stands in a pipe's way ([`mod@inspect`]),
//! and the one classifier of PostgreSQL's errors ([`classification`]).
//!
//! Never contains: ClickHouse, decisions about pipes.
//!
//! Start reading at [`wire`] for the data path and at [`mod@inspect`] for the rest.

pub mod backlog;
mod buffer;
pub mod classification;
pub mod copy;
pub mod dial;
pub mod discovery;
mod division;
pub mod error;
pub mod inspect;
pub mod lookup;
pub mod partitions;
mod publication;
pub mod quoting;
pub mod replication;
pub mod session;
pub mod shape;
pub mod snapshot;
pub mod wire;

pub use backlog::{BacklogEvent, BacklogReader};
pub use classification::{ERROR_CODES, classify};
pub use copy::{CopyEvent, CopyReader, Place, copy_query, copy_query_of_key_range, copy_query_of_keys};
pub use division::Spread;
pub use error::{Error, ServerError, Step};
pub use inspect::{Inspection, inspect, offered_tables};
pub use lookup::KeyValue;
pub use replication::{
    ReplicationEvent, ReplicationStream, StreamForm, SystemIdentity, Timelines, identify_system, timelines,
};
pub use session::{Session, SlotState};
pub use shape::Shape;
pub use snapshot::{SlotKind, SnapshotSession};
