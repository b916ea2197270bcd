//! Whether two tables hold the same: every row and every value of the source, by key, nothing more and nothing less.
//!
//! Neither side's text form is trusted where they differ: each value is written in one neutral form by both engines, each row is hashed there, and the hashes are compared by key. So
//! what is compared is what each engine says that it holds, not what Millrace believes to have written.

use std::collections::BTreeMap;
use std::fmt;

use tokio_postgres::Client;

/// What stands for NULL in the neutral form; no value looks like it.
const NULL: &str = "\u{1}NULL\u{1}";

/// Differences between two tables, by key.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Rows of the source.
    pub source_rows: usize,
    /// Rows of the destination.
    pub destination_rows: usize,
    /// Keys that the destination lacks.
    pub missing: Vec<String>,
    /// Keys that the source lacks.
    pub extra: Vec<String>,
    /// Keys whose values differ.
    pub altered: Vec<String>,
}

impl Differences {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.altered.is_empty()
    }
}

/// Counts, and a few keys of each kind.
impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows at the source, {} in the destination", self.source_rows, self.destination_rows)?;
        for (what, keys) in [("missing", &self.missing), ("extra", &self.extra), ("altered", &self.altered)] {
            if !keys.is_empty() {
                let shown = keys.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
                write!(f, "; {} {what}: {shown}", keys.len())?;
            }
        }
        Ok(())
    }
}

/// Why two tables could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// PostgreSQL did not answer.
    #[error("cannot read the source table")]
    Source(#[from] tokio_postgres::Error),
    /// ClickHouse did not answer.
    #[error("cannot read the destination table")]
    Destination(#[from] clickhouse::error::Error),
    /// A row has no hash or key.
    #[error("a row of the comparison cannot be read")]
    Row,
}

/// The two tables to compare.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    /// Source schema.
    pub schema: &'a str,
    /// Source table.
    pub table: &'a str,
    /// Destination database.
    pub database: &'a str,
    /// Destination table.
    pub target: &'a str,
    /// Columns that tell rows apart.
    pub key: &'a [&'a str],
    /// Source columns that the destination lacks on purpose.
    pub excluded: &'a [&'a str],
    /// Prefix of the metadata columns, such as `_millrace`.
    pub metadata: &'a str,
}

/// Compares both tables as they are at this moment; call it once the pipe has caught up.
///
/// # Errors
/// One of the engines does not answer.
pub async fn compare(
    source: &Client,
    destination: &clickhouse::Client,
    tables: Tables<'_>,
) -> Result<Differences, CompareError> {
    let columns = columns(source, tables).await?;
    let postgres = |expression: &dyn Fn(&Column) -> String, names: &[&str]| {
        let parts = columns.iter().filter(|column| names.is_empty() || names.contains(&column.name.as_str()));
        parts.map(expression).collect::<Vec<_>>().join(" || '|' || ")
    };
    let in_postgres = |column: &Column| format!("coalesce({}, '{NULL}')", column.postgres());
    let in_clickhouse = |column: &Column| column.clickhouse();
    let sql = format!(
        "SELECT {}, md5({}) FROM {}.{}",
        postgres(&in_postgres, tables.key),
        postgres(&in_postgres, &[]),
        quote(tables.schema),
        quote(tables.table)
    );
    let mut rows = BTreeMap::new();
    for row in source.query(&sql, &[]).await? {
        let (key, hash): (String, String) =
            (row.try_get(0).map_err(|_| CompareError::Row)?, row.try_get(1).map_err(|_| CompareError::Row)?);
        rows.insert(key, hash);
    }
    let sql = format!(
        "SELECT {}, lower(hex(MD5({}))) FROM {}.{} FINAL WHERE {} = 0",
        postgres(&in_clickhouse, tables.key),
        postgres(&in_clickhouse, &[]),
        backtick(tables.database),
        backtick(tables.target),
        backtick(&format!("{}_is_deleted", tables.metadata)),
    )
    // The client takes a single question mark for a parameter.
    .replace('?', "??");
    let mut found = destination.query(&sql).fetch::<(String, String)>()?;
    let mut differences = Differences { source_rows: rows.len(), ..Differences::default() };
    while let Some((key, hash)) = found.next().await? {
        differences.destination_rows += 1;
        match rows.remove(&key) {
            None => differences.extra.push(key),
            Some(expected) if expected != hash => differences.altered.push(key),
            Some(_) => {}
        }
    }
    differences.missing = rows.into_keys().collect();
    Ok(differences)
}

/// A column and its type as `pg_type` names it; `element` for an array's.
struct Column {
    name: String,
    pg_type: String,
    element: Option<String>,
    /// Whether the elements are rows themselves.
    composites: bool,
    scale: Option<i32>,
}

async fn columns(source: &Client, tables: Tables<'_>) -> Result<Vec<Column>, CompareError> {
    let sql = "SELECT a.attname, coalesce(bt.typname, t.typname), coalesce(eb.typname, e.typname), \
                 CASE WHEN coalesce(eb.typname, e.typname, bt.typname, t.typname) = 'numeric' AND m.typmod > 4 AND m.scale <= m.precision AND m.precision <= 76 \
                      THEN m.scale END, t.typtype::text, e.typtype::text \
               FROM pg_attribute a \
               JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               JOIN pg_type t ON t.oid = a.atttypid \
               LEFT JOIN pg_type bt ON bt.oid = t.typbasetype AND t.typtype = 'd' \
               LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A' AND t.typname NOT IN ('int2vector', 'oidvector') \
               LEFT JOIN pg_type eb ON eb.oid = e.typbasetype AND e.typtype = 'd' \
               CROSS JOIN LATERAL (SELECT CASE WHEN t.typtype = 'd' THEN t.typtypmod WHEN e.typtype = 'd' THEN e.typtypmod ELSE a.atttypmod END) AS given (typmod) \
               CROSS JOIN LATERAL (SELECT given.typmod, (given.typmod - 4) & 2047, (given.typmod - 4) >> 16) AS m (typmod, scale, precision) \
               WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped \
               ORDER BY a.attnum";
    let mut columns = Vec::new();
    for row in source.query(sql, &[&tables.schema, &tables.table]).await? {
        let name: String = row.get(0);
        if tables.excluded.contains(&name.as_str()) {
            continue;
        }
        let labelled = |name: String, kind: Option<String>| {
            if kind.as_deref() == Some("e") { "text".to_owned() } else { name }
        };
        columns.push(Column {
            pg_type: labelled(row.get(1), row.get(4)),
            element: row.get::<_, Option<String>>(2).map(|element| labelled(element, row.get(5))),
            composites: row.get::<_, Option<String>>(5).as_deref() == Some("c"),
            scale: row.get(3),
            name,
        });
    }
    Ok(columns)
}

impl Column {
    /// The value in PostgreSQL, as text or NULL.
    fn postgres(&self) -> String {
        let name = quote(&self.name);
        match &self.element {
            // The destination has no NULL in place of an array or map.
            None if self.pg_type == "hstore" => format!("coalesce({}, '')", postgres_value("hstore", &name)),
            None => postgres_value(&self.pg_type, &name),
            // With the length before them, lest two elements look like one with a comma.
            Some(element) => format!(
                "(SELECT count(*) || ':' || coalesce(string_agg(coalesce({}, {}), ',' ORDER BY n), '') FROM {})",
                postgres_value(element, "x"),
                if element == "hstore" { "''".to_owned() } else { format!("'{NULL}'") },
                // Unnesting takes composites apart.
                if self.composites {
                    format!(
                        "(SELECT {name}[array_lower({name}, 1) + n - 1], n FROM generate_series(1, cardinality({name})) n) AS u(x, n)"
                    )
                } else {
                    format!("unnest({name}) WITH ORDINALITY AS u(x, n)")
                },
            ),
        }
    }

    /// The value in ClickHouse, as text that is never NULL.
    fn clickhouse(&self) -> String {
        let name = backtick(&self.name);
        match &self.element {
            None => format!("ifNull({}, '{NULL}')", clickhouse_value(&self.pg_type, self.scale, &name)),
            Some(element) => format!(
                "concat(toString(length({name})), ':', arrayStringConcat(arrayMap(x -> ifNull({}, '{NULL}'), {name}), ','))",
                clickhouse_value(element, self.scale, "x")
            ),
        }
    }
}

fn postgres_value(pg_type: &str, value: &str) -> String {
    match pg_type {
        "float4" => format!("encode(float4send({value}), 'hex')"),
        "float8" => format!("encode(float8send({value}), 'hex')"),
        "date" => format!("({value} - date '1970-01-01')::text"),
        "timestamp" | "timestamptz" => {
            format!("(extract(epoch from {value}) * 1000000)::numeric(30, 0)::text")
        }
        // A day has an end of its own, of which dates know nothing.
        "time" => format!(
            "CASE WHEN {value} = '24:00' THEN '24:00:00.000000' ELSE to_char(date '2000-01-01' + {value}, 'HH24:MI:SS.US') END"
        ),
        "bytea" => format!("encode({value}, 'hex')"),
        // A cast may write a value otherwise than its output function does, as that of inet.
        _ => format!("CASE WHEN num_nulls({value}) = 0 THEN format('%s', {value}) END"),
    }
}

fn clickhouse_value(pg_type: &str, scale: Option<i32>, value: &str) -> String {
    match pg_type {
        "float4" => format!("lower(leftPad(hex(reinterpretAsUInt32({value})), 8, '0'))"),
        "float8" => format!("lower(leftPad(hex(reinterpretAsUInt64({value})), 16, '0'))"),
        "date" => format!("toString(toInt32({value}))"),
        "timestamp" | "timestamptz" => format!("toString(toUnixTimestamp64Micro({value}))"),
        "bytea" => format!("lower(hex({value}))"),
        "hstore" => {
            let quoted = |text: &str| {
                format!(r#"concat('"', replaceAll(replaceAll({text}, '\\', '\\\\'), '"', '\\"'), '"')"#)
            };
            let pair = format!("concat({}, '=>', ifNull({}, 'NULL'))", quoted("k"), quoted("v"));
            format!(
                "arrayStringConcat(arrayMap((k, v) -> {pair}, mapKeys({value}), mapValues({value})), ', ')"
            )
        }
        // As PostgreSQL's output function writes it.
        "bool" => format!("substring(toString({value}), 1, 1)"),
        "numeric" => match scale {
            Some(scale) => format!("toDecimalString({value}, {scale})"),
            None => format!("toString({value})"),
        },
        _ => format!("toString({value})"),
    }
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn backtick(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}
