//! Source tables as they were recorded at provisioning.

use millrace_model::{Lsn, Partition, PgType, ReplicaIdentity, SourceColumn, TableDefinition};

use crate::problem::table;
use crate::proto::worker::v1 as wire;
use crate::violation::ProtocolError;
use crate::worker::missing;

pub(super) fn write_all(tables: &[TableDefinition]) -> Vec<wire::TableDefinition> {
    tables.iter().map(write).collect()
}

pub(super) fn read_all(
    field: &str,
    tables: Vec<wire::TableDefinition>,
) -> Result<Vec<TableDefinition>, ProtocolError> {
    let table = |(index, table)| read(table).map_err(|error| error.within(&format!("{field}[{index}]")));
    tables.into_iter().enumerate().map(table).collect()
}

pub(super) fn write(table: &TableDefinition) -> wire::TableDefinition {
    let replica_identity = match table.replica_identity {
        ReplicaIdentity::Default => wire::ReplicaIdentity::Default,
        ReplicaIdentity::Index => wire::ReplicaIdentity::Index,
        ReplicaIdentity::Full => wire::ReplicaIdentity::Full,
        ReplicaIdentity::Nothing => wire::ReplicaIdentity::Nothing,
    };
    wire::TableDefinition {
        name: table.name.to_string(),
        oid: table.oid,
        file_node: table.file_node,
        columns: table.columns.iter().map(write_column).collect(),
        key: table.key.clone(),
        replica_identity: replica_identity.into(),
        pages: table.pages,
        estimated_rows: table.estimated_rows,
        bytes: table.bytes,
        retired_columns: table.retired.clone(),
        partitions: table.partitions.iter().map(write_partition).collect(),
        distrusted_until_lsn: table.distrusted_until.0,
        holds_from_lsn: table.holds_from.0,
    }
}

pub(super) fn read(definition: wire::TableDefinition) -> Result<TableDefinition, ProtocolError> {
    let replica_identity = match definition.replica_identity() {
        wire::ReplicaIdentity::Default => ReplicaIdentity::Default,
        wire::ReplicaIdentity::Index => ReplicaIdentity::Index,
        wire::ReplicaIdentity::Full => ReplicaIdentity::Full,
        wire::ReplicaIdentity::Nothing => ReplicaIdentity::Nothing,
        wire::ReplicaIdentity::Unspecified => return Err(missing("replicaIdentity")),
    };
    let column =
        |(index, column)| read_column(column).map_err(|error| error.within(&format!("columns[{index}]")));
    let columns = definition.columns.into_iter().enumerate().map(column).collect::<Result<Vec<_>, _>>()?;
    for (index, key) in definition.key.iter().enumerate() {
        if !columns.iter().any(|column| &column.name == key) {
            return Err(ProtocolError::at(format!("key[{index}]"), format!("'{key}' is not a column")));
        }
    }
    Ok(TableDefinition {
        name: table("name", &definition.name)?,
        oid: definition.oid,
        file_node: definition.file_node,
        columns,
        key: definition.key,
        replica_identity,
        pages: definition.pages,
        estimated_rows: definition.estimated_rows,
        bytes: definition.bytes,
        retired: definition.retired_columns,
        partitions: definition.partitions.iter().map(read_partition).collect(),
        distrusted_until: Lsn(definition.distrusted_until_lsn),
        holds_from: Lsn(definition.holds_from_lsn),
    })
}

fn write_partition(partition: &Partition) -> wire::Partition {
    wire::Partition { oid: partition.oid, linked_by: partition.linked_by }
}

fn read_partition(partition: &wire::Partition) -> Partition {
    Partition { oid: partition.oid, linked_by: partition.linked_by }
}

fn write_column(column: &SourceColumn) -> wire::ColumnDefinition {
    wire::ColumnDefinition {
        name: column.name.clone(),
        attribute: column.attribute.into(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        type_name: column.type_name.clone(),
        r#type: Some(write_type(&column.pg_type)),
        nullable: column.nullable,
        generated: column.generated,
    }
}

fn read_column(column: wire::ColumnDefinition) -> Result<SourceColumn, ProtocolError> {
    if column.name.is_empty() {
        return Err(missing("name"));
    }
    let attribute = i16::try_from(column.attribute)
        .map_err(|_| ProtocolError::at("attribute", format!("{} is out of range", column.attribute)))?;
    let pg_type = column.r#type.ok_or_else(|| missing("type"))?;
    Ok(SourceColumn {
        name: column.name,
        attribute,
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        type_name: column.type_name,
        pg_type: read_type(pg_type).map_err(|error| error.within("type"))?,
        nullable: column.nullable,
        generated: column.generated,
    })
}

fn write_type(pg_type: &PgType) -> wire::TypeDefinition {
    let mut definition = wire::TypeDefinition::default();
    let kind = match pg_type {
        PgType::Bool => wire::TypeKind::Bool,
        PgType::Int2 => wire::TypeKind::Int2,
        PgType::Int4 => wire::TypeKind::Int4,
        PgType::Int8 => wire::TypeKind::Int8,
        PgType::Oid => wire::TypeKind::Oid,
        PgType::Float4 => wire::TypeKind::Float4,
        PgType::Float8 => wire::TypeKind::Float8,
        PgType::Numeric(declared) => {
            definition.precision = declared.map(|(precision, _)| precision.into());
            definition.scale = declared.map(|(_, scale)| scale.into());
            wire::TypeKind::Numeric
        }
        PgType::Text => wire::TypeKind::Text,
        PgType::Json => wire::TypeKind::Json,
        PgType::Jsonb => wire::TypeKind::Jsonb,
        PgType::Bytea => wire::TypeKind::Bytea,
        PgType::Uuid => wire::TypeKind::Uuid,
        PgType::Date => wire::TypeKind::Date,
        PgType::Timestamp => wire::TypeKind::Timestamp,
        PgType::TimestampTz => wire::TypeKind::Timestamptz,
        PgType::Time => wire::TypeKind::Time,
        PgType::Enum => wire::TypeKind::Enum,
        PgType::Hstore => wire::TypeKind::Hstore,
        PgType::Vector => wire::TypeKind::Vector,
        PgType::HalfVec => wire::TypeKind::Halfvec,
        PgType::Array(element) => {
            definition.element = Some(Box::new(write_type(element)));
            wire::TypeKind::Array
        }
        PgType::Other(name) => {
            definition.name.clone_from(name);
            wire::TypeKind::Other
        }
    };
    definition.kind = kind.into();
    definition
}

fn read_type(definition: wire::TypeDefinition) -> Result<PgType, ProtocolError> {
    Ok(match definition.kind() {
        wire::TypeKind::Unspecified => return Err(ProtocolError::at("kind", "missing or unknown")),
        wire::TypeKind::Bool => PgType::Bool,
        wire::TypeKind::Int2 => PgType::Int2,
        wire::TypeKind::Int4 => PgType::Int4,
        wire::TypeKind::Int8 => PgType::Int8,
        wire::TypeKind::Oid => PgType::Oid,
        wire::TypeKind::Float4 => PgType::Float4,
        wire::TypeKind::Float8 => PgType::Float8,
        wire::TypeKind::Numeric => PgType::Numeric(read_numeric(definition.precision, definition.scale)?),
        wire::TypeKind::Text => PgType::Text,
        wire::TypeKind::Json => PgType::Json,
        wire::TypeKind::Jsonb => PgType::Jsonb,
        wire::TypeKind::Bytea => PgType::Bytea,
        wire::TypeKind::Uuid => PgType::Uuid,
        wire::TypeKind::Date => PgType::Date,
        wire::TypeKind::Timestamp => PgType::Timestamp,
        wire::TypeKind::Timestamptz => PgType::TimestampTz,
        wire::TypeKind::Time => PgType::Time,
        wire::TypeKind::Enum => PgType::Enum,
        wire::TypeKind::Hstore => PgType::Hstore,
        wire::TypeKind::Vector => PgType::Vector,
        wire::TypeKind::Halfvec => PgType::HalfVec,
        wire::TypeKind::Array => {
            let element = definition.element.ok_or_else(|| missing("element"))?;
            // One level only, so that what comes in cannot nest without end.
            if element.kind() == wire::TypeKind::Array {
                return Err(ProtocolError::at("element", "an array of arrays is not a type"));
            }
            PgType::Array(Box::new(read_type(*element).map_err(|error| error.within("element"))?))
        }
        wire::TypeKind::Other if definition.name.is_empty() => return Err(missing("name")),
        wire::TypeKind::Other => PgType::Other(definition.name),
    })
}

/// Bounds of the PostgreSQL manual, "Numeric Types".
fn read_numeric(precision: Option<u32>, scale: Option<i32>) -> Result<Option<(u16, i16)>, ProtocolError> {
    match (precision, scale) {
        (None, None) => Ok(None),
        (Some(precision @ 1..=1000), Some(scale @ -1000..=1000)) => {
            Ok(u16::try_from(precision).ok().zip(i16::try_from(scale).ok()))
        }
        _ => Err(ProtocolError::at("precision", "precision and scale are incomplete or out of range")),
    }
}
