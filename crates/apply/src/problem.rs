//! Why a table is set aside, in words for people. Each code has a paragraph in `docs/errors.md`.

use millrace_mapping::{Fault, RowError, ValueError};
use millrace_model::{Problem, TableName};
use millrace_pgoutput::Relation;

/// NULL came out of a column that was NOT NULL when it was last looked at.
pub(crate) const COLUMN_BECAME_NULLABLE: &str = "COLUMN_BECAME_NULLABLE";

/// An update left out a value that it did not change, and nothing here knows it: a wrong value is never written.
pub(crate) fn toast_value_missing(table: &TableName, column: &str, key: &str) -> Problem {
    Problem::operator(
        "TOAST_VALUE_MISSING",
        format!(
            "an update of the row with {key} does not carry column {column:?}, which it left unchanged and which is \
             stored out of line"
        ),
        format!("run ALTER TABLE {table} REPLICA IDENTITY FULL, then run `millrace pipe retry`"),
    )
    .of_table(table)
}

/// A row cannot be carried over.
pub(crate) fn row_not_carried(table: &TableName, key: &str, error: &RowError) -> Problem {
    let remedy = match error {
        RowError::Value(error) if !error.remedy().is_empty() => error.remedy(),
        _ => "name the column under excludedColumns or mend the row, then run `millrace pipe retry`",
    };
    let message = format!("the row with {key} cannot be carried over: {error}");
    let code = match error {
        RowError::Value(ValueError { fault: Fault::Null, .. }) => COLUMN_BECAME_NULLABLE,
        _ => "VALUE_NOT_CARRIED",
    };
    Problem::operator(code, message, remedy).of_table(table)
}

/// The table changed at the source in a way that its destination cannot follow; each reason is part of a sentence.
pub fn source_schema_changed(table: &TableName, changes: &[String]) -> Problem {
    Problem::operator(
        "SOURCE_SCHEMA_CHANGED",
        format!("the table changed at the source: {}", changes.join("; ")),
        "run `millrace pipe retry`, which copies the table anew with its present columns",
    )
    .of_table(table)
}

/// Partitions came, went or were emptied in a way that the stream does not tell; each change is a sentence's part.
pub fn partitions_changed(table: &TableName, changes: &[String]) -> Problem {
    Problem::operator(
        "PARTITIONS_CHANGED",
        changes.join("; "),
        "run `millrace pipe retry`, which copies the table anew; attach partitions while they are empty; where the destination is to keep the rows of partitions that go, set truncate: ignore",
    )
    .of_table(table)
}

/// Emptying its destination would empty another source's rows, too.
pub fn truncate_shared(table: &TableName) -> Problem {
    Problem::operator(
        "TRUNCATE_OF_SHARED_TARGET",
        "it was truncated, and another table feeds the same destination table, whose rows would go, too",
        "run `millrace pipe retry`, which copies all tables of that destination anew; or set truncate: ignore",
    )
    .of_table(table)
}

/// Destination columns that the stream never carries.
pub(crate) fn generated_columns_not_streamed(table: &TableName, columns: &[&str]) -> Problem {
    Problem::operator(
        "GENERATED_COLUMN_NOT_STREAMED",
        format!("the change stream does not carry the generated columns {}", quoted(columns)),
        "name them under excludedColumns, or publish them (PostgreSQL 18: publish_generated_columns = stored)",
    )
    .of_table(table)
}

/// Updates and deletes no longer say which row they mean.
pub(crate) fn replica_identity_changed(table: &TableName, lost: &[&str]) -> Problem {
    Problem::operator(
        "REPLICA_IDENTITY_CHANGED",
        format!(
            "updates and deletes do not carry the old value of {}, by which rows are told apart",
            quoted(lost)
        ),
        format!("run ALTER TABLE {table} REPLICA IDENTITY FULL or name the index over the key, then run `millrace pipe retry`"),
    )
    .of_table(table)
}

fn quoted(columns: &[&str]) -> String {
    let quoted: Vec<String> = columns.iter().map(|column| format!("{column:?}")).collect();
    quoted.join(", ")
}

/// A relation's name as SQL writes it.
pub(crate) fn name_of(relation: &Relation) -> TableName {
    TableName::new(relation.schema.as_str(), relation.name.as_str())
}
