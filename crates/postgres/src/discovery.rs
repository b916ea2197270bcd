//! What the source's tables look like, read from the system catalogs (manual: "System Catalogs").

use std::collections::{BTreeMap, BTreeSet};

use millrace_model::{PgType, ReplicaIdentity, SourceColumn, TableDefinition, TableName};

use crate::error::Error;
use crate::session::{Session, get};

/// What kind of relation a name stands for (`pg_class.relkind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An ordinary table.
    Table,
    /// A partitioned table: no storage of its own.
    Partitioned,
    /// Something else, by its name for people.
    Other(&'static str),
}

/// A relation as found, with what bears on copying it.
#[derive(Debug, Clone)]
pub struct Found {
    /// The table; columns that may not be read are among them.
    pub definition: TableDefinition,
    /// What it is.
    pub kind: Kind,
    /// Columns that this role may not select.
    pub unreadable: Vec<String>,
    /// Whether row-level security hides rows from this role.
    pub hides_rows: bool,
    /// Whether this role owns it, which adding it to a publication needs.
    pub owned: bool,
    /// Whether this role may use its schema.
    pub schema_usable: bool,
    /// `pg_class.relpersistence` is not permanent: no changes are logged.
    pub unlogged: bool,
    /// Partitions whose updates and deletes could not be published, quoted where SQL needs it.
    pub partitions_without_identity: Vec<String>,
    /// Partitions with other column numbers than the table, of a server before 15; quoted where SQL needs it.
    pub partitions_of_other_layout: Vec<String>,
}

/// Figures of a partitioned table are the sums of its partitions'. Partitions tell their own old rows, so each of them needs an identity.
const RELATIONS: &str = "\
    SELECT n.nspname, c.relname, c.oid, coalesce(pg_relation_filenode(c.oid), 0), c.relkind::text, c.relreplident::text, \
      CASE WHEN c.relkind IN ('r', 'm') THEN pg_relation_size(c.oid) / current_setting('block_size')::bigint ELSE 0 END, \
      coalesce(parts.rows, greatest(c.reltuples, 0)::bigint), \
      coalesce(parts.bytes, CASE WHEN c.relkind IN ('r', 'm') THEN pg_table_size(c.oid) ELSE 0 END), \
      row_security_active(c.oid), \
      pg_has_role(c.relowner, 'USAGE'), has_schema_privilege(n.oid, 'USAGE'), c.relpersistence <> 'p', \
      coalesce(parts.without_identity, '{}'::text[]), coalesce(parts.of_other_layout, '{}'::text[]) \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    LEFT JOIN LATERAL ( \
      SELECT sum(greatest(l.reltuples, 0))::bigint AS rows, sum(pg_table_size(l.oid))::bigint AS bytes, \
        array_agg(format('%I.%I', m.nspname, l.relname) ORDER BY m.nspname, l.relname) FILTER (WHERE l.relreplident = 'n' \
          OR l.relreplident = 'd' AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = l.oid AND i.indisprimary AND i.indimmediate) \
          OR l.relreplident = 'i' AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = l.oid AND i.indisreplident)) AS without_identity, \
        array_agg(format('%I.%I', m.nspname, l.relname) ORDER BY m.nspname, l.relname) FILTER (WHERE current_setting('server_version_num')::int < 150000 \
          AND EXISTS (SELECT FROM pg_attribute a JOIN pg_attribute b ON b.attrelid = l.oid AND b.attname = a.attname \
          WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attnum <> b.attnum)) AS of_other_layout \
      FROM pg_partition_tree(c.oid) AS tree JOIN pg_class l ON l.oid = tree.relid JOIN pg_namespace m ON m.oid = l.relnamespace \
      WHERE tree.isleaf AND l.relkind = 'r' \
    ) AS parts ON c.relkind = 'p' ";

/// A column that is NOT NULL by a constraint that was never validated (PostgreSQL 18) may hold NULL, and so may one whose domain is NOT NULL
/// (manual: "CREATE DOMAIN", notes): both count as nullable.
const COLUMNS: &str = "\
    SELECT a.attrelid, a.attname, a.attnum, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod), \
      a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conrelid = a.attrelid AND o.contype = 'n' \
        AND o.conkey = ARRAY[a.attnum] AND NOT o.convalidated), \
      a.attgenerated <> '', has_column_privilege(a.attrelid, a.attnum, 'SELECT') \
    FROM pg_attribute a WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum";

/// Of each table the replica identity index, else the primary key; its columns in order. A deferrable key tells no rows apart in the stream.
const KEYS: &str = "\
    SELECT i.indrelid, a.attname, i.indisreplident \
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position) \
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
    WHERE i.indrelid = ANY($1) AND i.indimmediate AND k.position <= i.indnkeyatts \
      AND (i.indisprimary AND c.relreplident <> 'i' OR i.indisreplident AND c.relreplident = 'i') \
    ORDER BY i.indrelid, k.position";

/// Types of an extension have no oid of their own; that they belong to it tells them from others of their name.
const TYPES: &str = "\
    SELECT t.oid, t.typname, t.typtype::text, t.typcategory::text, t.typlen, t.typelem, t.typbasetype, t.typtypmod, \
      format_type(t.oid, NULL), coalesce(( \
        SELECT e.extname FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid \
        WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' \
      ), '') \
    FROM pg_type t WHERE t.oid = ANY($1)";

/// Finds the named tables; those that are missing are absent from the answer.
///
/// # Errors
/// A statement fails.
pub async fn find(session: &Session, tables: &[TableName]) -> Result<Vec<Found>, Error> {
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let sql = format!(
        "{RELATIONS} JOIN unnest($1::text[], $2::text[]) AS wanted(schema, name) \
         ON wanted.schema = n.nspname AND wanted.name = c.relname WHERE c.relkind NOT IN ('i', 'I', 't', 'c')"
    );
    let rows = session.rows("to tell what the tables are", &sql, &[&schemas, &names]).await?;
    describe(session, &rows).await
}

/// One table by its oid, with all its columns; `None` where it is gone.
///
/// # Errors
/// A statement fails.
pub async fn find_by_oid(session: &Session, oid: u32) -> Result<Option<TableDefinition>, Error> {
    let sql = format!("{RELATIONS} WHERE c.oid = $1");
    let rows = session.rows("to tell what the table is", &sql, &[&oid]).await?;
    Ok(describe(session, &rows).await?.pop().map(|found| found.definition))
}

/// All tables outside the system's own schemas, partitions excepted: their partitioned table stands for them.
///
/// # Errors
/// A statement fails.
pub async fn list(session: &Session) -> Result<Vec<Found>, Error> {
    let sql = format!(
        "{RELATIONS} WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT LIKE 'pg\\_%' \
         AND n.nspname <> 'information_schema' ORDER BY n.nspname, c.relname"
    );
    let rows = session.rows("to tell which tables there are", &sql, &[]).await?;
    describe(session, &rows).await
}

async fn describe(session: &Session, relations: &[tokio_postgres::Row]) -> Result<Vec<Found>, Error> {
    let what = "to tell what the tables are";
    let mut found = Vec::new();
    for row in relations {
        let kind: String = get(row, 4, what)?;
        let identity: String = get(row, 5, what)?;
        let count = |index| get::<i64>(row, index, what).map(|count| u64::try_from(count).unwrap_or(0));
        found.push(Found {
            definition: TableDefinition {
                name: TableName::new(get::<String>(row, 0, what)?, get::<String>(row, 1, what)?),
                oid: get(row, 2, what)?,
                file_node: get(row, 3, what)?,
                columns: Vec::new(),
                key: Vec::new(),
                replica_identity: match identity.as_str() {
                    "f" => ReplicaIdentity::Full,
                    "i" => ReplicaIdentity::Index,
                    "n" => ReplicaIdentity::Nothing,
                    _ => ReplicaIdentity::Default,
                },
                pages: u32::try_from(count(6)?).unwrap_or(u32::MAX),
                estimated_rows: count(7)?,
                bytes: count(8)?,
                retired: Vec::new(),
                partitions: Vec::new(),
                distrusted_until: millrace_model::Lsn::ZERO,
                holds_from: millrace_model::Lsn::ZERO,
            },
            kind: match kind.as_str() {
                "r" => Kind::Table,
                "p" => Kind::Partitioned,
                "v" => Kind::Other("a view"),
                "m" => Kind::Other("a materialised view"),
                "f" => Kind::Other("a foreign table"),
                "S" => Kind::Other("a sequence"),
                _ => Kind::Other("not a table"),
            },
            unreadable: Vec::new(),
            hides_rows: get(row, 9, what)?,
            owned: get(row, 10, what)?,
            schema_usable: get(row, 11, what)?,
            unlogged: get(row, 12, what)?,
            partitions_without_identity: get(row, 13, what)?,
            partitions_of_other_layout: get(row, 14, what)?,
        });
    }
    for found in found.iter_mut().filter(|found| found.kind == Kind::Partitioned) {
        let leaves = session.leaves(found.definition.oid).await?;
        found.definition.partitions = leaves.into_values().map(|leaf| leaf.partition).collect();
    }
    let oids: Vec<u32> = found.iter().map(|found| found.definition.oid).collect();
    let columns = session.rows(what, COLUMNS, &[&oids]).await?;
    let mut wanted = BTreeSet::new();
    for row in &columns {
        wanted.insert(get::<u32>(row, 3, what)?);
    }
    let types = types(session, wanted).await?;
    let position: BTreeMap<u32, usize> = oids.iter().enumerate().map(|(index, oid)| (*oid, index)).collect();
    for row in &columns {
        let Some(found) = position.get(&get(row, 0, what)?).and_then(|index| found.get_mut(*index)) else {
            continue;
        };
        let name: String = get(row, 1, what)?;
        let (type_oid, type_modifier) = (get(row, 3, what)?, get(row, 4, what)?);
        let type_name: String = get(row, 5, what)?;
        let pg_type = types.resolve(type_oid, type_modifier, &type_name);
        if !get::<bool>(row, 8, what)? {
            found.unreadable.push(name.clone());
        }
        found.definition.columns.push(SourceColumn {
            name,
            attribute: get(row, 2, what)?,
            type_oid,
            type_modifier,
            type_name,
            nullable: !get::<bool>(row, 6, what)?,
            generated: get(row, 7, what)?,
            pg_type,
        });
    }
    for row in &session.rows(what, KEYS, &[&oids]).await? {
        if let Some(found) = position.get(&get(row, 0, what)?).and_then(|index| found.get_mut(*index)) {
            found.definition.key.push(get(row, 1, what)?);
        }
    }
    Ok(found)
}

/// A row of `pg_type`.
struct TypeRow {
    name: String,
    kind: String,
    category: String,
    length: i16,
    element: u32,
    base: u32,
    base_modifier: i32,
    shown: String,
    /// The extension that it belongs to, or nothing.
    extension: String,
}

struct Types(BTreeMap<u32, TypeRow>);

/// Reads types, then those that they are made of, until nothing new comes up.
async fn types(session: &Session, mut wanted: BTreeSet<u32>) -> Result<Types, Error> {
    let what = "to tell what the types are";
    let mut known = BTreeMap::new();
    while !wanted.is_empty() {
        let oids: Vec<u32> = std::mem::take(&mut wanted).into_iter().collect();
        for row in &session.rows(what, TYPES, &[&oids]).await? {
            let type_row = TypeRow {
                name: get(row, 1, what)?,
                kind: get(row, 2, what)?,
                category: get(row, 3, what)?,
                length: get(row, 4, what)?,
                element: get(row, 5, what)?,
                base: get(row, 6, what)?,
                base_modifier: get(row, 7, what)?,
                shown: get(row, 8, what)?,
                extension: get(row, 9, what)?,
            };
            wanted.extend([type_row.element, type_row.base].into_iter().filter(|oid| *oid != 0));
            known.insert(get::<u32>(row, 0, what)?, type_row);
        }
        wanted.retain(|oid| !known.contains_key(oid));
    }
    Ok(Types(known))
}

impl Types {
    /// `shown` is how people write the type, where it stays one without a decoder.
    fn resolve(&self, oid: u32, modifier: i32, shown: &str) -> PgType {
        let other = || PgType::Other(shown.to_owned());
        let Some(row) = self.0.get(&oid) else { return other() };
        if row.kind == "d" {
            let base_shown = self.0.get(&row.base).map_or(shown, |base| &base.shown);
            return self.resolve(row.base, row.base_modifier, base_shown);
        }
        // int2vector (22) and oidvector (30) call themselves arrays and are not written as such.
        let is_array = row.category == "A" && row.length == -1 && row.element != 0 && !matches!(oid, 22 | 30);
        if is_array {
            let element_shown = self.0.get(&row.element).map_or("", |element| &element.shown);
            match self.resolve(row.element, modifier, element_shown) {
                // Of a domain that is an array itself.
                PgType::Array(_) => other(),
                element => PgType::Array(Box::new(element)),
            }
        } else if row.kind == "e" {
            PgType::Enum
        } else {
            built_in(oid, modifier).or_else(|| of_extension(row)).unwrap_or_else(other)
        }
    }
}

/// Types by their fixed oids (`pg_type.dat`).
fn built_in(oid: u32, modifier: i32) -> Option<PgType> {
    Some(match oid {
        16 => PgType::Bool,
        17 => PgType::Bytea,
        // "char", name, text, xml, bpchar, varchar
        18 | 19 | 25 | 142 | 1042 | 1043 => PgType::Text,
        20 => PgType::Int8,
        21 => PgType::Int2,
        23 => PgType::Int4,
        26 => PgType::Oid,
        114 => PgType::Json,
        700 => PgType::Float4,
        701 => PgType::Float8,
        1082 => PgType::Date,
        1083 => PgType::Time,
        1114 => PgType::Timestamp,
        1184 => PgType::TimestampTz,
        1700 => PgType::Numeric(numeric(modifier)),
        2950 => PgType::Uuid,
        3802 => PgType::Jsonb,
        _ => return None,
    })
}

/// Types of extensions, whose binary forms are as fixed as those of built-in ones.
fn of_extension(row: &TypeRow) -> Option<PgType> {
    Some(match (row.extension.as_str(), row.name.as_str()) {
        ("citext", "citext") => PgType::Text,
        ("hstore", "hstore") => PgType::Hstore,
        ("vector", "vector") => PgType::Vector,
        ("vector", "halfvec") => PgType::HalfVec,
        _ => return None,
    })
}

/// Precision and scale out of a type modifier: `((precision << 16) | (scale & 0x7ff)) + 4`, the scale in 11 bits with sign.
fn numeric(modifier: i32) -> Option<(u16, i16)> {
    let packed = modifier.checked_sub(4).filter(|packed| *packed >= 0)?;
    let precision = u16::try_from(packed >> 16).ok()?;
    let scale = ((packed & 0x7ff) ^ 0x400) - 0x400;
    Some((precision, i16::try_from(scale).ok()?))
}

#[cfg(test)]
mod tests {
    use super::numeric;

    #[test]
    fn numerics_are_read_out_of_their_modifier() {
        assert_eq!(numeric(-1), None);
        assert_eq!(numeric(((12 << 16) | 2) + 4), Some((12, 2)));
        assert_eq!(numeric(((5 << 16) | (-3 & 0x7ff)) + 4), Some((5, -3)));
        assert_eq!(numeric(((1000 << 16) | 1000) + 4), Some((1000, 1000)));
    }
}
