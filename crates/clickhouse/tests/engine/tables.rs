//! Making, accepting, refusing and dropping tables.

use millrace_clickhouse::{Error, TableRef, TargetTable, classify};
use millrace_model::PgType;
use millrace_model::spec::MetadataColumns;

use crate::support::{Engine, block, column, notes, owner, stranger};

#[tokio::test]
async fn a_table_is_made_once_and_known_again() {
    let engine = Engine::start().await;
    let destination = engine.destination("made_once");
    let target = notes(destination.table("notes"));

    let made = destination.ensure_table(&target, &owner()).await.unwrap();
    assert!(made.created);
    let again = destination.ensure_table(&target, &owner()).await.unwrap();
    assert!(!again.created);
    assert_eq!(made.uuid, again.uuid);
    assert_eq!(destination.table_uuid(&target.table).await.unwrap(), Some(made.uuid));

    let shape = "SELECT name, type FROM system.columns WHERE database = 'made_once' AND table = 'notes'";
    insta::assert_snapshot!(engine.read(shape).await, @r"
    id	Int64
    note	Nullable(String)
    _millrace_version	UInt64
    _millrace_is_deleted	UInt8
    _millrace_synced_at	DateTime64(9)
    ");
    assert_eq!(engine.read("SELECT engine FROM system.databases WHERE name = 'made_once'").await, "Atomic");
}

#[tokio::test]
async fn rows_in_a_table_are_accepted_from_its_owner_only() {
    let engine = Engine::start().await;
    let destination = engine.destination("owned");
    let target = notes(destination.table("notes"));
    destination.ensure_table(&target, &owner()).await.unwrap();
    // An empty table is anybody's.
    assert!(!destination.ensure_table(&target, &stranger()).await.unwrap().created);

    destination.insert(&target.table, &block(&target, &[(&[Some("1"), None], 0, false)]), "t").await.unwrap();
    assert!(!destination.ensure_table(&target, &owner()).await.unwrap().created);
    let error = destination.ensure_table(&target, &stranger()).await.unwrap_err();
    assert!(matches!(error, Error::NotEmpty { rows: 1, .. }), "{error:?}");
    assert_eq!(classify(&error).code, "DESTINATION_TABLE_NOT_EMPTY");
}

#[tokio::test]
async fn another_table_under_the_name_is_refused_and_left_alone() {
    let engine = Engine::start().await;
    let destination = engine.destination("other");
    engine.run("CREATE DATABASE other").await;
    engine
        .run("CREATE TABLE other.notes (id Int32, `note` String) ENGINE = MergeTree ORDER BY (id, lower(note))")
        .await;
    let before = engine.read("SHOW CREATE TABLE other.notes").await;

    let error = destination.ensure_table(&notes(destination.table("notes")), &owner()).await.unwrap_err();
    insta::assert_snapshot!(classify(&error), @"table `other`.`notes` exists and differs: its engine is MergeTree, not ReplacingMergeTree; its sorting key is (id, lower(note)), not (`id`); its column `id` is Int32, not Int64; its column `note` is String, not Nullable(String); it has no column `_millrace_version` of type UInt64; it has no column `_millrace_is_deleted` of type UInt8; it has no column `_millrace_synced_at` of type DateTime64(9) [DESTINATION_TABLE_DIFFERS]; choose another target name, or drop or rename the table");
    assert_eq!(engine.read("SHOW CREATE TABLE other.notes").await, before);
}

#[tokio::test]
async fn a_table_made_by_hand_is_taken_if_it_fits() {
    let engine = Engine::start().await;
    let destination = engine.destination("by_hand");
    let mut target = notes(destination.table("notes"));
    target.columns.push(column("odd `n\\ame", PgType::Text, "LowCardinality(Nullable(String))"));
    target.sorting_key.push("odd `n\\ame".to_owned());
    engine.run("CREATE DATABASE by_hand").await;
    engine
        .run(
            "CREATE TABLE by_hand.notes (extra String DEFAULT 'x', `odd ``n\\\\ame` LowCardinality(Nullable(String)), \
             id Int64, note Nullable(String), _millrace_is_deleted UInt8, _millrace_version UInt64, \
             _millrace_synced_at DateTime64(9)) \
             ENGINE = ReplacingMergeTree(_millrace_version, _millrace_is_deleted) PARTITION BY id % 4 \
             ORDER BY (id, `odd ``n\\\\ame`) SETTINGS allow_nullable_key = 1",
        )
        .await;
    assert!(!destination.ensure_table(&target, &owner()).await.unwrap().created);

    let row = block(&target, &[(&[Some("1"), None, Some("y")], 0, false)]);
    destination.insert(&target.table, &row, "t").await.unwrap();
    assert_eq!(engine.read("SELECT extra, id, note FROM by_hand.notes").await, "x\t1\t\\N");
}

#[tokio::test]
async fn any_name_works_in_every_place() {
    let engine = Engine::start().await;
    let names = [
        "select",
        "Mixed Case",
        "qu'o\"te",
        "back`tick",
        "back\\slash",
        "a.b",
        "what??",
        "-- dash",
        "{p:Int8}",
        "ünï 🐘",
    ];
    for (number, name) in names.into_iter().enumerate() {
        let destination = engine.destination(&format!("{name} {number}"));
        let target = TargetTable {
            table: destination.table(name),
            columns: vec![
                column(name, PgType::Int8, "Int64"),
                column("plain", PgType::Text, "Nullable(String)"),
            ],
            metadata: MetadataColumns {
                version: format!("{name} v"),
                is_deleted: format!("{name} d"),
                synced_at: format!("{name} s"),
            },
            sorting_key: vec![name.to_owned(), "plain".to_owned()],
            ..notes(destination.table(name))
        };
        assert_eq!(destination.inspect(std::slice::from_ref(&target), Some(&owner())).await, [], "{name}");
        assert!(destination.ensure_table(&target, &owner()).await.unwrap().created, "{name}");
        let rows = block(&target, &[(&[Some("7"), Some(name)], 5, false), (&[Some("8"), None], 6, false)]);
        destination.insert(&target.table, &rows, name).await.unwrap();
        destination.wait_for_inserts(&target.table).await.unwrap();
        assert!(!destination.ensure_table(&target, &owner()).await.unwrap().created, "{name}");
        assert_eq!(destination.count(&target.table).await.unwrap(), 2, "{name}");
        destination
            .delete_older_versions(&target.table, &target.metadata.version, millrace_model::Lsn(6))
            .await
            .unwrap();
        assert_eq!(destination.count(&target.table).await.unwrap(), 1, "{name}");
        assert!(destination.drop_table(&target.table, &owner()).await.unwrap(), "{name}");
        assert!(destination.drop_database_if_empty(&owner()).await.unwrap(), "{name}");
    }
}

#[tokio::test]
async fn the_longest_name_is_where_it_is_said_to_be() {
    let engine = Engine::start().await;
    let destination = engine.destination("длинная");
    let room =
        engine.read("SELECT getMaxTableNameLengthForDatabase('длинная')").await.parse::<usize>().unwrap();

    let longest = notes(destination.table(&"t".repeat(room)));
    assert!(destination.ensure_table(&longest, &owner()).await.unwrap().created);
    assert!(destination.drop_table(&longest.table, &owner()).await.unwrap());

    let too_long = notes(destination.table(&"t".repeat(room + 1)));
    let error = destination.ensure_table(&too_long, &owner()).await.unwrap_err();
    assert_eq!(classify(&error).code, "DESTINATION_NAME_TOO_LONG");
}

#[tokio::test]
async fn a_table_of_1600_columns_is_made_and_filled() {
    let engine = Engine::start().await;
    let destination = engine.destination("wide");
    let mut target = notes(destination.table("notes"));
    let further =
        (2..1_600).map(|n| column(&format!("{n:0>63}"), PgType::Text, "LowCardinality(Nullable(String))"));
    target.columns.extend(further);
    destination.ensure_table(&target, &owner()).await.unwrap();

    let values = (0..1_600).map(|n| if n == 0 { Some("1") } else { None }).collect::<Vec<_>>();
    destination.insert(&target.table, &block(&target, &[(&values, 0, false)]), "t").await.unwrap();
    assert_eq!(destination.count(&target.table).await.unwrap(), 1);
    assert!(!destination.ensure_table(&target, &owner()).await.unwrap().created);
}

#[tokio::test]
async fn only_what_the_pipe_made_is_dropped() {
    let engine = Engine::start().await;
    let destination = engine.destination("dropping");
    let target = notes(destination.table("notes"));
    assert!(!destination.drop_table(&target.table, &owner()).await.unwrap());
    assert!(!destination.drop_database_if_empty(&owner()).await.unwrap());
    destination.ensure_table(&target, &owner()).await.unwrap();

    let error = destination.drop_table(&target.table, &stranger()).await.unwrap_err();
    assert_eq!(classify(&error).code, "DESTINATION_TABLE_NOT_OURS");
    assert!(!destination.drop_database_if_empty(&owner()).await.unwrap());

    assert!(destination.drop_table(&target.table, &owner()).await.unwrap());
    assert_eq!(destination.table_uuid(&target.table).await.unwrap(), None);
    assert!(!destination.drop_database_if_empty(&stranger()).await.unwrap());
    assert!(destination.drop_database_if_empty(&owner()).await.unwrap());
    assert_eq!(engine.read("SELECT count() FROM system.databases WHERE name = 'dropping'").await, "0");
}

#[tokio::test]
async fn a_table_that_cannot_be_is_not_begun() {
    let engine = Engine::start().await;
    let destination = engine.destination("impossible");
    let target = TargetTable { sorting_key: vec![], ..notes(TableRef::new("impossible", "notes")) };
    let error = destination.ensure_table(&target, &owner()).await.unwrap_err();
    assert_eq!(classify(&error).code, "DESTINATION_SORTING_KEY_INVALID");
    assert_eq!(engine.read("SELECT count() FROM system.databases WHERE name = 'impossible'").await, "0");
}
