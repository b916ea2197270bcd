//! The table of types in `docs/types.md`, written from the plan itself.

use std::fmt::Write as _;

use millrace_model::PgType;
use millrace_model::spec::{PipeSettings, TableSpec};
use millrace_model::{ReplicaIdentity, SourceColumn, TableDefinition, TableName};

use crate::plan::{MappingOptions, copies_as_text, override_columns, plan_columns};

/// Types as people name them, and what of them the default type does not hold.
const TYPES: &[(&str, PgType, &str)] = &[
    ("`boolean`", PgType::Bool, ""),
    ("`smallint`", PgType::Int2, ""),
    ("`integer`", PgType::Int4, ""),
    ("`bigint`", PgType::Int8, ""),
    ("`oid`", PgType::Oid, ""),
    ("`real`", PgType::Float4, ""),
    ("`double precision`", PgType::Float8, ""),
    (
        "`numeric(12, 2)`; up to 76 digits, scale from 0 to the precision",
        PgType::Numeric(Some((12, 2))),
        "NaN: NULL or 0; infinity: the largest",
    ),
    ("`numeric`; other precisions and scales", PgType::Numeric(None), ""),
    ("`text`, `varchar`, `char(n)`, `name`, `\"char\"`, `citext`, `xml`", PgType::Text, ""),
    ("`json`", PgType::Json, ""),
    ("`jsonb`", PgType::Jsonb, ""),
    ("`bytea`", PgType::Bytea, ""),
    ("`uuid`", PgType::Uuid, ""),
    ("`date`", PgType::Date, "beyond the years 0000 to 9999, infinity: 1900-01-01 or 2299-12-31"),
    ("`timestamp`", PgType::Timestamp, "as `date`"),
    ("`timestamptz`", PgType::TimestampTz, "as `date`"),
    ("`time`", PgType::Time, ""),
    ("enumerations", PgType::Enum, ""),
    ("`hstore`", PgType::Hstore, "NULL becomes empty"),
    ("`vector`", PgType::Vector, "NULL becomes empty"),
    ("`halfvec`", PgType::HalfVec, "NULL becomes empty"),
    (
        "everything else: `interval`, `money`, `timetz`, `bit`, `inet`, `point`, ranges, composites, `tsvector`, `ltree`, `sparsevec` ...",
        PgType::Other(String::new()),
        "",
    ),
];

/// The table as Markdown.
pub fn types_table() -> String {
    let mut text = String::from(
        "| PostgreSQL | ClickHouse | values come as | other types by `columnTypes` | what `outOfRange` concerns (what `clamp` does) |\n|---|---|---|---|---|\n",
    );
    for (name, source, beyond) in TYPES {
        let form = if copies_as_text(source) { "text" } else { "binary" };
        let others: Vec<String> = OTHERS
            .iter()
            .filter(|other| possible(source, other) && default(source) != **other)
            .map(|other| format!("`{other}`"))
            .collect();
        // Writing into a String cannot fail.
        let _ =
            writeln!(text, "| {name} | `{}` | {form} | {} | {beyond} |", default(source), others.join(", "));
    }
    let array = PgType::Array(Box::new(PgType::Int4));
    let _ = writeln!(
        text,
        "| arrays of these, such as `integer[]` | `{}` | as their elements | `String` | as their elements; NULL in place of an array becomes empty |",
        default(&array)
    );
    text
}

const OTHERS: [&str; 6] =
    ["String", "LowCardinality(String)", "Int32", "Int64", "Float64", "Decimal(38, 10)"];

fn definition(source: &PgType) -> TableDefinition {
    let column = SourceColumn {
        name: "c".to_owned(),
        attribute: 1,
        type_oid: 0,
        type_modifier: -1,
        type_name: String::new(),
        pg_type: source.clone(),
        nullable: false,
        generated: false,
    };
    TableDefinition {
        name: TableName::new("public", "t"),
        oid: 1,
        file_node: 1,
        columns: vec![column],
        key: Vec::new(),
        replica_identity: ReplicaIdentity::Default,
        pages: 0,
        estimated_rows: 0,
        bytes: 0,
        retired: Vec::new(),
        partitions: Vec::new(),
        distrusted_until: millrace_model::Lsn::ZERO,
        holds_from: millrace_model::Lsn::ZERO,
    }
}

const OPTIONS: MappingOptions = MappingOptions { allow_nullable_columns: true, time64: true };

fn default(source: &PgType) -> String {
    plan_columns(&definition(source), &OPTIONS).iter().map(|column| column.target.to_string()).collect()
}

fn possible(source: &PgType, other: &str) -> bool {
    let mut table = TableSpec::new(TableName::new("public", "t"), "t");
    table.column_types.insert("c".to_owned(), other.to_owned());
    let mut columns = plan_columns(&definition(source), &OPTIONS);
    override_columns(&mut columns, &[], &table, &PipeSettings::default()).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_types_says_what_the_code_does() {
        let page = include_str!("../../../docs/types.md");
        assert!(page.contains(&types_table()), "put this into docs/types.md:\n{}", types_table());
    }
}
