//! Which ClickHouse type each source column gets, and in which form its values are asked for.
//!
//! The defaults lose nothing that ClickHouse can hold. `timestamp` is written as UTC like `timestamptz`: in a
//! `DateTime64(6)` without a zone the same value would read differently under another server's time zone.

use millrace_model::spec::{MetadataColumns, OutOfRange, PipeSettings, TableSpec};
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
    /// Whether values are asked for in PostgreSQL's text form, because the type, or its way to another type than the default, has no binary decoder.
    pub as_text: bool,
    /// What becomes of values that the target cannot hold.
    pub out_of_range: OutOfRange,
}

impl ColumnPlan {
    /// A column whose values come in the form and follow the policy that are the default.
    pub fn new(name: impl Into<String>, source: PgType, nullable: bool, target: ChType) -> Self {
        let as_text = copies_as_text(&source);
        Self { name: name.into(), source, nullable, target, as_text, out_of_range: OutOfRange::default() }
    }
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
            let target = target(&column.pg_type, nullable && options.allow_nullable_columns, options);
            ColumnPlan::new(column.name.as_str(), column.pg_type.clone(), nullable, target)
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
    columns.into_iter().all(|column| !column.as_text)
}

/// Carries out what a user says of a table's columns: other types, and what becomes of values out of range. Gives what cannot be done, each with its column.
/// In columns of the key and of the sorting key no value is altered, whatever is said of the others.
pub fn override_columns(
    columns: &mut [ColumnPlan],
    key: &[String],
    table: &TableSpec,
    settings: &PipeSettings,
) -> Vec<(String, String)> {
    let mut refused = Vec::new();
    let places = |name: &String| key.contains(name) || table.sorting_keys.contains(name);
    for column in columns.iter_mut() {
        let chosen = table.out_of_range.get(&column.name);
        // Values that are altered may become equal, and rows with equal keys become one.
        if places(&column.name) {
            if chosen.is_some_and(|chosen| *chosen != OutOfRange::Stop) {
                let reason = "rows are told apart by it, so that its values are never altered; only outOfRange: stop is possible";
                refused.push((column.name.clone(), reason.to_owned()));
            }
            column.out_of_range = OutOfRange::Stop;
            continue;
        }
        column.out_of_range = chosen.copied().unwrap_or(settings.out_of_range);
    }
    for name in table.column_types.keys().chain(table.out_of_range.keys()) {
        if !columns.iter().any(|column| column.name == *name) {
            refused.push((name.clone(), "the table has no such column, or it is left out".to_owned()));
        }
    }
    for column in columns {
        let Some(text) = table.column_types.get(&column.name) else { continue };
        let nullable = settings.allow_nullable_columns && column.nullable && !key.contains(&column.name);
        match overridden(&column.source, text, nullable) {
            Ok((target, as_text)) => {
                column.target = target;
                column.as_text = as_text;
            }
            Err(reason) => refused.push((column.name.clone(), reason)),
        }
    }
    refused
}

/// Another type than the default, and whether its values are asked for as text.
fn overridden(source: &PgType, text: &str, nullable: bool) -> Result<(ChType, bool), String> {
    let given: ChType = text.parse().map_err(|error: crate::UnknownType| error.to_string())?;
    let (plain, wrapped) = match given {
        ChType::Nullable(inner) => (*inner, true),
        ChType::LowCardinality(inner) if matches!(*inner, ChType::Nullable(_)) => {
            (ChType::low_cardinality(ChType::String), true)
        }
        other => (other, nullable),
    };
    if wrapped && !nullable {
        return Err(format!("'{text}' may hold NULL, which the column or its place in the key does not"));
    }
    let as_text = way_to(source, &plain).ok_or_else(|| {
        let possible: Vec<String> = POSSIBLE
            .iter()
            .filter(|target| way_to(source, target).is_some())
            .map(ToString::to_string)
            .collect();
        format!("there is no way to '{text}'; possible: {}", possible.join(", "))
    })?;
    let target = match plain {
        ChType::LowCardinality(_) if wrapped => ChType::low_cardinality(ChType::nullable(ChType::String)),
        ChType::Array(_) | ChType::Map(..) | ChType::LowCardinality(_) => plain,
        plain if wrapped => ChType::nullable(plain),
        plain => plain,
    };
    Ok((target, as_text))
}

/// Types that are worth naming to somebody who asked for an impossible one.
const POSSIBLE: [ChType; 7] = [
    ChType::String,
    ChType::Int32,
    ChType::Int64,
    ChType::Float64,
    ChType::Decimal { precision: 38, scale: 10 },
    ChType::Date32,
    ChType::Uuid,
];

/// Whether a source type's values can be written into a plain target, and whether they are asked for as text.
fn way_to(source: &PgType, target: &ChType) -> Option<bool> {
    use PgType as P;
    match (source, target) {
        (P::Text | P::Json | P::Jsonb | P::Bytea | P::Enum | P::Numeric(_) | P::Time, ChType::String) => {
            Some(false)
        }
        // PostgreSQL's text form of anything.
        (_, ChType::String) => Some(true),
        (P::Text | P::Enum, ChType::LowCardinality(inner)) if **inner == ChType::String => Some(false),
        (P::Numeric(_), ChType::Decimal { .. }) => Some(false),
        (P::Numeric(_), ChType::Float64 | ChType::Int64)
        | (P::Int2, ChType::Int32 | ChType::Int64)
        | (P::Int4, ChType::Int64)
        | (P::Float4, ChType::Float64) => Some(true),
        (P::Time, ChType::Time64(6)) => Some(false),
        // The default.
        _ => {
            let options = MappingOptions { allow_nullable_columns: false, time64: true };
            (crate::plan::target(source, false, &options) == *target).then(|| copies_as_text(source))
        }
    }
}

fn target(source: &PgType, nullable: bool, options: &MappingOptions) -> ChType {
    match source {
        // Nullable(Array) and Nullable(Map) are illegal in ClickHouse; elements can always be NULL in PostgreSQL.
        PgType::Array(element) => ChType::array(target(element, true, options)),
        PgType::Hstore => ChType::map(ChType::String, ChType::nullable(ChType::String)),
        PgType::Vector | PgType::HalfVec => ChType::array(ChType::Float32),
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
        | PgType::Hstore
        | PgType::Vector
        | PgType::HalfVec
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
