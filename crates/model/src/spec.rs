//! What a user asked for: the content of `pipe.yaml` as checked values. The YAML and wire forms live in the `api` crate.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Labels, PipeName, Secret, TableName};

/// How a pipe treats the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicationMode {
    /// Copy, then changes for good.
    Cdc,
    /// Copy once.
    Snapshot,
    /// Changes only: rows from before the slot are absent.
    CdcOnly,
}

impl ReplicationMode {
    /// Whether changes are followed.
    pub fn follows(self) -> bool {
        match self {
            Self::Cdc | Self::CdcOnly => true,
            Self::Snapshot => false,
        }
    }

    /// Whether rows are copied first.
    pub fn copies(self) -> bool {
        match self {
            Self::Cdc | Self::Snapshot => true,
            Self::CdcOnly => false,
        }
    }
}

/// `sslmode` of libpq (manual: "SSL Support").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsMode {
    /// Never encrypt.
    Disable,
    /// Encrypt where the server offers it; certificates are not checked.
    Prefer,
    /// Encrypt or fail; certificates are not checked.
    Require,
    /// Encrypt and check that the certificate leads to a trusted authority.
    VerifyCa,
    /// As `VerifyCa`, and that it names the host.
    VerifyFull,
}

/// Where and how to reach the source database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresSource {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Database.
    pub database: String,
    /// Role.
    pub username: String,
    /// Its password; empty where none is needed.
    pub password: Secret,
    /// Encryption.
    pub tls_mode: TlsMode,
    /// PEM text of the authorities to trust, in place of the public ones.
    pub tls_ca: Option<String>,
}

/// Where and how to reach the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClickHouseDestination {
    /// `http://host:8123` or `https://host:8443`.
    pub url: String,
    /// Database; made where it does not exist.
    pub database: String,
    /// User.
    pub username: String,
    /// Password; may be empty.
    pub password: Secret,
    /// The hosts that share the tables, where it is more than the one that answers.
    #[serde(default)]
    pub cluster: Option<Cluster>,
}

/// Hosts that share a destination's tables, and how. Any of them may answer at the destination's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name in `system.clusters`.
    pub name: String,
    /// Whether the replicas of a shard keep each other's rows by Replicated engines; otherwise a shard is one host.
    pub replicated: bool,
    /// Whether each shard keeps a part of the rows, behind a Distributed table; otherwise there is one shard.
    pub sharded: bool,
    /// How many replicas must have an insert before it counts (`insert_quorum`); 0 leaves that to the server.
    pub insert_quorum: u32,
}

/// What keeps a destination table's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableEngine {
    /// `ReplacingMergeTree(version)` or `ReplacingMergeTree(version, is_deleted)`: the newest version of each row.
    #[default]
    ReplacingMergeTree,
    /// `MergeTree`: every copied row and every change, one row each.
    MergeTree,
    /// `Null`: nothing is kept; materialized views on the table see every row.
    Null,
}

/// What becomes of a schema change at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchemaChangePolicy {
    /// Added, renamed and widened columns follow; a dropped column stays and is filled with NULL or the default.
    #[default]
    Propagate,
    /// As `Propagate`, and dropped columns are dropped.
    PropagateAll,
    /// Added and dropped columns are ignored; what cannot be ignored sets the table aside.
    Ignore,
    /// Any change of the columns sets the table aside.
    Stop,
}

/// What becomes of a TRUNCATE at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TruncatePolicy {
    /// The destination is emptied too.
    #[default]
    Propagate,
    /// The destination keeps its rows.
    Ignore,
}

/// What becomes of a value that the destination's type cannot hold. Always counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutOfRange {
    /// The nearest value that the type holds; where there is none, as `Null`.
    #[default]
    Clamp,
    /// NULL, or the type's default where the column cannot hold NULL.
    Null,
    /// The table is set aside.
    Stop,
}

/// One table of a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSpec {
    /// The table to copy.
    pub source: TableName,
    /// The destination table's name, in the destination's database.
    pub target: String,
    /// Columns that are left out.
    pub excluded_columns: Vec<String>,
    /// The destination's ORDER BY; empty means the key. Contains the key.
    pub sorting_keys: Vec<String>,
    /// The destination table's engine.
    #[serde(default)]
    pub engine: TableEngine,
    /// The destination's PARTITION BY, an expression over columns of the sorting key; `None` is one partition.
    #[serde(default)]
    pub partition_by: Option<String>,
    /// Which shard of the destination's cluster keeps a row; `None` goes by the sorting key.
    #[serde(default)]
    pub sharding: Option<String>,
    /// ClickHouse types in place of the default ones, by column.
    #[serde(default)]
    pub column_types: BTreeMap<String, String>,
    /// What becomes of values that the type cannot hold, by column; others follow [`PipeSettings::out_of_range`].
    #[serde(default)]
    pub out_of_range: BTreeMap<String, OutOfRange>,
}

impl TableSpec {
    /// A table with nothing but defaults.
    pub fn new(source: TableName, target: impl Into<String>) -> Self {
        Self {
            source,
            target: target.into(),
            excluded_columns: Vec::new(),
            sorting_keys: Vec::new(),
            engine: TableEngine::default(),
            partition_by: None,
            sharding: None,
            column_types: BTreeMap::new(),
            out_of_range: BTreeMap::new(),
        }
    }
}

/// Names of the three columns that Millrace adds to every destination table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataColumns {
    /// `UInt64`: 0 for copied rows, the LSN of its own WAL record for a change.
    pub version: String,
    /// `UInt8`: 1 where the row is deleted.
    pub is_deleted: String,
    /// `DateTime64(9)`: when Millrace encoded the row.
    pub synced_at: String,
}

impl MetadataColumns {
    /// The default names.
    pub fn millrace() -> Self {
        Self::prefixed("_millrace")
    }

    /// The names that queries written for ClickPipes and PeerDB use.
    pub fn peerdb() -> Self {
        Self::prefixed("_peerdb")
    }

    fn prefixed(prefix: &str) -> Self {
        Self {
            version: format!("{prefix}_version"),
            is_deleted: format!("{prefix}_is_deleted"),
            synced_at: format!("{prefix}_synced_at"),
        }
    }
}

/// How a pipe goes about its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeSettings {
    /// Longest time a committed change waits before it is sent; batches close earlier when the destination is free.
    pub sync_interval: Duration,
    /// Rows at which a batch of the stream is closed, at least 1; it may be exceeded by what one read brought, and where a batch is spread over many tables.
    pub pull_batch_size: u32,
    /// Partitions of one table that are read at a time; 0 is as many as the fleet and `max_source_connections` allow.
    pub initial_load_parallelism: u32,
    /// Most connections to the source that the copy uses at a time, at least 1.
    pub max_source_connections: u32,
    /// Rows that a partition should hold, at least 1,000.
    pub snapshot_rows_per_partition: u32,
    /// Tables that are copied at a time, at least 1.
    pub snapshot_parallel_tables: u32,
    /// A publication that exists already; `None` makes one that the pipe owns.
    pub publication_name: Option<String>,
    /// A name for the slot; `None` takes [`crate::PipeId::slot_name`].
    pub replication_slot_name: Option<String>,
    /// Whether the slot that the pipe makes is synchronised to standbys (PostgreSQL 17 and later).
    #[serde(default)]
    pub enable_failover_slots: bool,
    /// How many bytes of the source's log a table that fails may hold back before it is set aside.
    #[serde(default = "gibibyte")]
    pub max_held_wal: u64,
    /// Whether nullable source columns become `Nullable`; otherwise NULL becomes the type's default.
    pub allow_nullable_columns: bool,
    /// Names of the metadata columns.
    pub metadata_columns: MetadataColumns,
    /// Whether the engine takes the deleted flag beside the version, so that `FINAL` hides deleted rows.
    #[serde(default = "yes")]
    pub delete_on_merge: bool,
    /// What becomes of schema changes.
    #[serde(default)]
    pub schema_changes: SchemaChangePolicy,
    /// What becomes of a TRUNCATE.
    #[serde(default)]
    pub truncate: TruncatePolicy,
    /// What becomes of values that the destination cannot hold.
    #[serde(default)]
    pub out_of_range: OutOfRange,
    /// Time between two comparisons of a table with its source; `None`: only when somebody asks.
    #[serde(default)]
    pub verify_every: Option<Duration>,
    /// Most rows a second that a comparison of one table reads from each side; 0 is without limit.
    #[serde(default)]
    pub verify_rows_per_second: u32,
    /// Labels of the workers that may do the pipe's work; all may where there is none.
    #[serde(default)]
    pub worker_selector: Labels,
}

fn gibibyte() -> u64 {
    1 << 30
}

fn yes() -> bool {
    true
}

impl Default for PipeSettings {
    fn default() -> Self {
        Self {
            sync_interval: Duration::from_secs(1),
            pull_batch_size: 100_000,
            initial_load_parallelism: 0,
            max_source_connections: 8,
            snapshot_rows_per_partition: 100_000,
            snapshot_parallel_tables: 1,
            publication_name: None,
            replication_slot_name: None,
            enable_failover_slots: false,
            max_held_wal: gibibyte(),
            allow_nullable_columns: true,
            metadata_columns: MetadataColumns::millrace(),
            delete_on_merge: true,
            schema_changes: SchemaChangePolicy::default(),
            truncate: TruncatePolicy::default(),
            out_of_range: OutOfRange::default(),
            verify_every: None,
            verify_rows_per_second: 0,
            worker_selector: Labels::default(),
        }
    }
}

/// Everything a user says about a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeSpec {
    /// Its name, unique in one Millrace.
    pub name: PipeName,
    /// What it does with the source.
    pub mode: ReplicationMode,
    /// The source.
    pub source: PostgresSource,
    /// The destination.
    pub destination: ClickHouseDestination,
    /// Tables, at least one; sources and targets are distinct.
    pub tables: Vec<TableSpec>,
    /// Settings.
    pub settings: PipeSettings,
}
