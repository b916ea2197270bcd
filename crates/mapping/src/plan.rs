//! Which ClickHouse type each source column gets, and in which form its values are asked for.
//!
//! The defaults lose nothing that ClickHouse can hold. `timestamp` is written as UTC like `timestamptz`: in a
//! `DateTime64(6)` without a zone the same value would read differently under another server's time zone.

use millrace_model::spec::MetadataColumns;
use millrace_model::{PgType, TableDefinition};

use crate::ChType;

/// Most digits of a ClickHouse `Decimal`.
const MAX_DECIMAL_DIGITS: u16 = 76;

/// One source column's journey.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ColumnPlan {
    /// Its name, the same on both sides.
    pub name: String,
    /// Type at the source.
    pub source: PgType,
    /// Whether the source column may hold NULL. A NULL out of a column that may not is an error, never a default.
    pub nullable: bool,
    /// Type in the destination.
    pub target: ChType,
}

/// What the choice of types depends on besides the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappingOptions {
    /// Whether nullable source columns become `Nullable`; otherwise NULL becomes the type's default, by the user's choice.
    pub allow_nullable_columns: bool,
    /// Whether the destination has `Time64`; otherwise `time` becomes String in PostgreSQL's text form.
    pub time64: bool,
}

/// Plans every column of a table, in the table's order. Key columns are never `Nullable`; generated columns are planned like others.
pub fn plan_columns(definition: &TableDefinition, options: &MappingOptions) -> Vec<ColumnPlan> {
    definition
        .columns
        .iter()
        .map(|column| {
            let nullable = column.nullable && !definition.key.contains(&column.name);
            ColumnPlan {
                name: column.name.clone(),
                source: column.pg_type.clone(),
                nullable,
                target: target(&column.pg_type, nullable && options.allow_nullable_columns, options),
            }
        })
        .collect()
}

/// The three columns that every destination table has besides the source's, with their types, in the order in which blocks hold them.
pub fn metadata_columns(names: &MetadataColumns) -> [(&str, ChType); 3] {
    [
        (&names.version, ChType::UInt64),
        (&names.is_deleted, ChType::UInt8),
        (&names.synced_at, ChType::DateTime64 { precision: 9, utc: false }),
    ]
}

/// Whether values of the type have no binary decoder here, so that COPY must cast the column to `text` and its field holds text.
pub fn copies_as_text(source: &PgType) -> bool {
    match source {
        PgType::Other(_) => true,
        PgType::Array(element) => copies_as_text(element),
        _ => false,
    }
}

/// Whether pgoutput may be asked for `binary`: it then sends every type so, hence only if each of them has a decoder.
pub fn streams_as_binary<'a>(columns: impl IntoIterator<Item = &'a ColumnPlan>) -> bool {
    columns.into_iter().all(|column| !copies_as_text(&column.source))
}

fn target(source: &PgType, nullable: bool, options: &MappingOptions) -> ChType {
    match source {
        // Nullable(Array) is illegal in ClickHouse; elements can always be NULL in PostgreSQL.
        PgType::Array(element) => ChType::array(target(element, true, options)),
        // Nullable(LowCardinality) is illegal, the other way round is not.
        PgType::Enum if nullable => ChType::low_cardinality(ChType::nullable(ChType::String)),
        PgType::Enum => ChType::low_cardinality(ChType::String),
        _ if nullable => ChType::nullable(plain_target(source, options)),
        _ => plain_target(source, options),
    }
}

fn plain_target(source: &PgType, options: &MappingOptions) -> ChType {
    match source {
        PgType::Bool => ChType::Bool,
        PgType::Int2 => ChType::Int16,
        PgType::Int4 => ChType::Int32,
        PgType::Int8 => ChType::Int64,
        PgType::Oid => ChType::UInt32,
        PgType::Float4 => ChType::Float32,
        PgType::Float8 => ChType::Float64,
        PgType::Numeric(declared) => declared.and_then(decimal).unwrap_or(ChType::String),
        PgType::Uuid => ChType::Uuid,
        PgType::Date => ChType::Date32,
        PgType::Timestamp | PgType::TimestampTz => ChType::DateTime64 { precision: 6, utc: true },
        PgType::Time if options.time64 => ChType::Time64(6),
        PgType::Time
        | PgType::Text
        | PgType::Json
        | PgType::Jsonb
        | PgType::Bytea
        | PgType::Enum
        | PgType::Array(_)
        | PgType::Other(_) => ChType::String,
    }
}

/// The Decimal of a declared numeric; `None` where ClickHouse has none (scale below zero or above the precision, more than 76 digits).
fn decimal((precision, scale): (u16, i16)) -> Option<ChType> {
    let scale = u16::try_from(scale).ok()?;
    if precision == 0 || precision > MAX_DECIMAL_DIGITS || scale > precision {
        return None;
    }
    Some(ChType::Decimal { precision: u8::try_from(precision).ok()?, scale: u8::try_from(scale).ok()? })
}
