//! What a source table looks like.

use serde::{Deserialize, Serialize};

use crate::{Lsn, TableName};

/// A PostgreSQL type, as far as Millrace tells types apart. Domains stand as their base type.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PgType {
    /// `boolean`
    Bool,
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `oid`
    Oid,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric`, with (precision 1..=1000, scale -1000..=1000) where they were declared.
    Numeric(Option<(u16, i16)>),
    /// `text`, `varchar`, `char(n)`, `name`, `"char"`, `citext`, `xml`: types whose binary form is their text in UTF-8.
    Text,
    /// `json`: binary form is the text.
    Json,
    /// `jsonb`: binary form is a version byte, then the text.
    Jsonb,
    /// `bytea`
    Bytea,
    /// `uuid`
    Uuid,
    /// `date`
    Date,
    /// `timestamp without time zone`
    Timestamp,
    /// `timestamp with time zone`
    TimestampTz,
    /// `time without time zone`
    Time,
    /// An enumeration: binary form is the label's text.
    Enum,
    /// `hstore` of the extension of that name.
    Hstore,
    /// `vector` of the extension of that name (pgvector).
    Vector,
    /// `halfvec` of the extension `vector`: its elements are of 16 bits.
    HalfVec,
    /// An array of a type that is not itself an array.
    Array(Box<PgType>),
    /// A type without a decoder here; it travels in PostgreSQL's text form. Holds its SQL name (`format_type`).
    Other(String),
}

/// `pg_class.relreplident` (manual: "ALTER TABLE ... REPLICA IDENTITY").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaIdentity {
    /// Primary key, where there is one.
    Default,
    /// A chosen unique index.
    Index,
    /// The whole old row.
    Full,
    /// Nothing: updates and deletes cannot be published.
    Nothing,
}

/// One column of a source table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceColumn {
    /// Its name as stored.
    pub name: String,
    /// `pg_attribute.attnum`, which outlives a rename.
    pub attribute: i16,
    /// `pg_type.oid` of the declared type (of the domain, not of its base).
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`, -1 where there is none.
    pub type_modifier: i32,
    /// `format_type(oid, modifier)`: the type as SQL writes it, for people.
    pub type_name: String,
    /// The type as Millrace treats it.
    pub pg_type: PgType,
    /// Whether NULL can occur: false only where the column, or its domain, is NOT NULL.
    pub nullable: bool,
    /// `GENERATED ALWAYS AS (...) STORED`; such a column is not in the change stream before version 18.
    pub generated: bool,
}

/// A partition that holds rows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Partition {
    /// `pg_class.oid`
    pub oid: u32,
    /// The transaction that made it part of the table: another one means that it was detached and attached again.
    pub linked_by: u32,
}

/// A source table as it was found at one moment, and what of it was recorded since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDefinition {
    /// Its name.
    pub name: TableName,
    /// `pg_class.oid`; another oid under the same name is another table.
    pub oid: u32,
    /// `pg_relation_filenode`; another one means that page ranges no longer hold.
    pub file_node: u32,
    /// Columns in their order, without dropped and excluded ones.
    pub columns: Vec<SourceColumn>,
    /// Columns by which rows are told apart, in index order: of the replica identity index, else of the primary key; empty where there is neither.
    pub key: Vec<String>,
    /// What old values the change stream carries.
    pub replica_identity: ReplicaIdentity,
    /// Size of the main fork in pages of 8 KiB.
    pub pages: u32,
    /// Rows as the planner believes; 0 where unknown.
    pub estimated_rows: u64,
    /// Size with TOAST and indexes left out of the latter, in bytes: `pg_table_size`.
    pub bytes: u64,
    /// Columns that were dropped at the source and stand in the destination still.
    #[serde(default)]
    pub retired: Vec<String>,
    /// A partitioned table's partitions that hold rows themselves, as far as they were looked at.
    #[serde(default)]
    pub partitions: Vec<Partition>,
    /// Rows of the destination may be younger than the change stream up to here: where the copy went on under a later snapshot, or values were
    /// taken from the source. Zero where they never are.
    #[serde(default)]
    pub distrusted_until: Lsn,
    /// The first change that had the table in this form; zero where it had no other since its copy. A stream that is read again sends earlier changes in the form before.
    #[serde(default)]
    pub holds_from: Lsn,
}

impl TableDefinition {
    /// Whether it is a partitioned table, which has no storage of its own.
    pub fn is_partitioned(&self) -> bool {
        self.file_node == 0
    }
}
