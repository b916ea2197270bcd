//! The destination: ClickHouse over its HTTP interface.
//!
//! Owns: how a destination table is declared ([`TargetTable`]), what is checked before anything is made
//! ([`Destination::inspect`]), how tables are made, filled block by block and emptied ([`Destination`]), and what can be
//! done about a failure ([`classify`]).
//!
//! Does not own: which ClickHouse type a column gets and how values are encoded (`mapping`), when to insert what and
//! when to repeat it (`worker`), and anything of PostgreSQL.
//!
//! Start reading at [`Destination::insert`] for the way of a block, at [`TargetTable`] for the shape of a table.

mod alter;
mod classification;
mod cluster;
mod connection;
mod destination;
mod error;
mod inspection;
mod lookup;
mod quoting;
mod scan;
mod structure;
mod swap;
mod table;
mod validation;

pub use classification::{ERROR_CODES, classify};
pub use cluster::Topology;
pub use connection::{Compression, ConnectionOptions};
pub use destination::{Destination, EnsuredTable, TableUuid};
pub use error::{Error, Failure};
pub use inspection::ServerFacts;
pub use lookup::{CurrentRow, Keys};
pub use quoting::{quote_identifier, quote_string};
pub use scan::{Scan, ScannedRow};
pub use table::{
    TableRef, TargetTable, create_database_statement, create_distributed_statement, create_table_statement,
};
