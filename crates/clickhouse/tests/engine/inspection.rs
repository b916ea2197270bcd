//! What `inspect` finds, all of it at once, without changing anything.

use millrace_clickhouse::{TargetTable, classify};
use millrace_model::{PgType, TableName};

use crate::support::{Engine, block, column, notes, owner, stranger};

#[tokio::test]
async fn a_server_says_what_it_is() {
    let engine = Engine::start().await;
    let facts = engine.destination("facts").server().await.unwrap();
    assert_eq!(facts.version, engine.read("SELECT version()").await);
    assert_eq!(facts.timezone, engine.read("SELECT serverTimezone()").await);
    assert!(facts.time64);
}

#[tokio::test]
async fn nothing_stands_in_the_way_of_a_new_database_and_nothing_is_made() {
    let engine = Engine::start().await;
    let destination = engine.destination("untouched");
    let target = notes(destination.table("notes"));
    assert_eq!(destination.inspect(&[target], None).await, []);
    assert_eq!(engine.read("SELECT count() FROM system.databases WHERE name = 'untouched'").await, "0");
}

#[tokio::test]
async fn all_problems_are_found_at_once() {
    let engine = Engine::start().await;
    let destination = engine.destination("troubled");
    let target =
        |name: &str| TargetTable { source: TableName::new("public", name), ..notes(destination.table(name)) };
    let filled = target("filled");
    destination.ensure_table(&filled, &owner()).await.unwrap();
    let row = block(&filled, &[(&[Some("1"), None], 0, false)]);
    destination.insert(&filled.table, &row, "t").await.unwrap();
    engine.run("CREATE TABLE troubled.different (id Int64) ENGINE = Log").await;
    engine.run("CREATE VIEW troubled.view AS SELECT 1 AS id").await;
    let mut clashing = target("clashing");
    clashing.columns.push(column("_millrace_version", PgType::Int8, "Int64"));

    let targets = [target("fine"), filled, target("different"), target("view"), clashing];
    let problems = destination.inspect(&targets, Some(&stranger())).await;
    let lines = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!(lines, @r"
    public.clashing: source column '_millrace_version' has the name of one of Millrace's own columns [DESTINATION_COLUMN_CLASH]; name the column under excludedColumns, or choose other metadataColumns
    public.filled: table `troubled`.`filled` exists and is not empty: it holds 1 rows [DESTINATION_TABLE_NOT_EMPTY]; choose another target name, or empty, drop or rename the table
    public.different: table `troubled`.`different` exists and differs: its engine is Log, not ReplacingMergeTree; its sorting key is (), not (`id`); it has no column `note` of type Nullable(String); it has no column `_millrace_version` of type UInt64; it has no column `_millrace_is_deleted` of type UInt8; it has no column `_millrace_synced_at` of type DateTime64(9) [DESTINATION_TABLE_DIFFERS]; choose another target name, or drop or rename the table
    public.view: table `troubled`.`view` exists and differs: its engine is View, not ReplacingMergeTree; its sorting key is (), not (`id`); its column `id` is UInt8, not Int64; it has no column `note` of type Nullable(String); it has no column `_millrace_version` of type UInt64; it has no column `_millrace_is_deleted` of type UInt8; it has no column `_millrace_synced_at` of type DateTime64(9) [DESTINATION_TABLE_DIFFERS]; choose another target name, or drop or rename the table
    ");

    // The same pipe may go on where it stopped.
    let filled = &targets[1..2];
    assert_eq!(destination.inspect(filled, Some(&owner())).await, []);
}

#[tokio::test]
async fn a_database_that_cannot_exchange_tables_is_refused() {
    let engine = Engine::start().await;
    engine.run("CREATE DATABASE in_memory ENGINE = Memory").await;
    let problems = engine.destination("in_memory").inspect(&[], None).await;
    let codes = problems.iter().map(|problem| problem.code.as_str()).collect::<Vec<_>>();
    assert_eq!(codes, ["DESTINATION_DATABASE_ENGINE"]);
}

#[tokio::test]
async fn a_time64_column_can_be_made_where_the_server_says_so() {
    let engine = Engine::start().await;
    let destination = engine.destination("time64");
    let mut target = notes(destination.table("notes"));
    target.columns.push(column("at", PgType::Time, "Nullable(Time64(6))"));
    destination.ensure_table(&target, &owner()).await.map_err(|error| classify(&error)).unwrap();
    let row = block(&target, &[(&[Some("1"), None, Some("24:00:00")], 0, false)]);
    destination.insert(&target.table, &row, "t").await.unwrap();
    assert_eq!(engine.read("SELECT at FROM time64.notes").await, "24:00:00.000000");
}
