//! A sharded destination: the engine's own cluster has one host, so what is shown here is that every statement is understood
//! and does what it should on each; several hosts, and Replicated engines, are checked on the statements alone.

use millrace_clickhouse::{Destination, Keys, TargetTable, classify};
use millrace_mapping::ChType;
use millrace_mapping::evolution::Alteration;
use millrace_model::Lsn;
use millrace_model::PgType;
use millrace_model::spec::{ClickHouseDestination, Cluster, MetadataColumns, TableEngine};
use millrace_model::work::{KeyRange, Swap};
use millrace_model::{TableId, TableName};

use super::support::{Engine, block, column, notes, owner, stranger};

fn codes(problems: &[millrace_model::Problem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.code.as_str()).collect()
}

#[tokio::test]
async fn a_sharded_table_takes_each_row_once_and_reads_as_one() {
    let engine = Engine::start().await;
    let destination = engine.sharded("shop");
    let target = notes(destination.table("notes"));
    assert_eq!(destination.inspect(std::slice::from_ref(&target), None).await, []);
    let made = destination.ensure_table(&target, &owner()).await.unwrap();
    let again = destination.ensure_table(&target, &owner()).await.unwrap();
    assert_eq!((made.created, again.created, &again.uuid), (true, false, &made.uuid));
    assert_eq!(
        engine.read("SELECT name, engine FROM system.tables WHERE database = 'shop' ORDER BY name").await,
        "notes\tDistributed\nnotes_local\tReplacingMergeTree"
    );
    assert_eq!(
        engine.read("SELECT uuid FROM system.tables WHERE name = 'notes_local'").await,
        destination.table_uuid(&target.table).await.unwrap().unwrap().as_str()
    );
    assert_eq!(destination.inspect(std::slice::from_ref(&target), Some(&owner())).await, []);

    let rows = block(&target, &[(&[Some("1"), None], 0, false), (&[Some("2"), Some("x")], 0, false)]);
    destination.insert(&target.table, &rows, "token").await.unwrap();
    destination.insert(&target.table, &rows, "token").await.unwrap();
    // The token tells a repetition, on the shard as elsewhere, and not the content.
    let other = block(&target, &[(&[Some("3"), None], 0, false)]);
    destination.insert(&target.table, &other, "token").await.unwrap();
    assert_eq!(engine.read("SELECT count() FROM shop.notes_local").await, "2");
    let change = block(&target, &[(&[Some("2"), Some("y")], 7, false), (&[Some("1"), None], 9, true)]);
    destination.insert(&target.table, &change, "change").await.unwrap();
    destination.wait_for_inserts(&target.table).await.unwrap();
    assert_eq!(destination.count(&target.table).await.unwrap(), 1);
    assert_eq!(
        destination.versions(&target.table, "_millrace_version", Lsn(1)).await.unwrap(),
        [(7, 1), (9, 1)]
    );

    let keys = block(&target, &[(&[Some("2"), None], 5, false)]);
    let key = ["id".to_owned()];
    let sought = Keys { block: &keys, columns: &key };
    let columns = [("note", &"Nullable(String)".parse::<ChType>().unwrap())];
    let metadata = MetadataColumns::millrace();
    let found = destination.current_rows(&target, sought, &columns, 1 << 20).await.unwrap().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].ordinal, found[0].version, found[0].values[0].as_slice()),
        (5, 7, b"\0\x01y".as_slice())
    );
    let sizes = destination.current_sizes(&target, sought, &["note"]).await.unwrap();
    assert_eq!(sizes.len(), 1);
    let mut scan = destination.scan(&target.table, &metadata, &columns, None).await.unwrap();
    assert_eq!(scan.next().await.unwrap().unwrap().values, b"\0\x01y");
    assert!(scan.next().await.unwrap().is_none());
    for (range, holds) in [((None, Some(i64::MAX)), true), ((Some(i64::MAX), None), false)] {
        let range = KeyRange { from: range.0, until: range.1 };
        let mut scan =
            destination.scan(&target.table, &metadata, &columns, Some(("id", range))).await.unwrap();
        assert_eq!(scan.next().await.unwrap().is_some(), holds);
    }

    destination.delete_older_versions(&target.table, "_millrace_version", Lsn(8)).await.unwrap();
    assert_eq!(engine.read("SELECT groupArray(id) FROM shop.notes_local").await, "[1]");
    let error = destination.drop_table(&target.table, &stranger()).await.unwrap_err();
    assert_eq!(classify(&error).code, "DESTINATION_TABLE_NOT_OURS");
    assert!(destination.drop_table(&target.table, &owner()).await.unwrap());
    assert!(!destination.drop_table(&target.table, &owner()).await.unwrap());
    assert!(destination.drop_database_if_empty(&owner()).await.unwrap());
    assert_eq!(engine.read("SELECT count() FROM system.databases WHERE name = 'shop'").await, "0");
}

#[tokio::test]
async fn columns_of_a_sharded_table_follow_and_a_copy_takes_its_place() {
    let engine = Engine::start().await;
    let destination = engine.sharded("shop");
    let mut target = notes(destination.table("notes"));
    target.sharding = Some("intDiv(id, 10)".to_owned());
    let before = destination.ensure_table(&target, &owner()).await.unwrap();
    let row = block(&target, &[(&[Some("1"), Some("x")], 0, false)]);
    destination.insert(&target.table, &row, "t").await.unwrap();

    target.columns.push(column("size", PgType::Int4, "Int32"));
    let added = [Alteration::Add { name: "size".to_owned(), backfill: Some("5".to_owned()) }];
    for _ in 0..2 {
        destination.alter_columns(&target, &added, &owner()).await.unwrap();
    }
    assert_eq!(engine.read("SELECT id, note, size FROM shop.notes").await, "1\tx\t5");
    let gone = [
        Alteration::Drop { name: "note".to_owned() },
        Alteration::Rename { from: "size".to_owned(), to: "weight".to_owned() },
    ];
    target.columns = vec![column("id", PgType::Int8, "Int64"), column("weight", PgType::Int4, "Int32")];
    for _ in 0..2 {
        destination.alter_columns(&target, &gone, &owner()).await.unwrap();
    }
    assert_eq!(engine.read("SELECT id, weight FROM shop.notes").await, "1\t5");

    let copy = TargetTable { table: destination.table("notes_copy"), ..target.clone() };
    let made = destination.ensure_table(&copy, &owner()).await.unwrap();
    let row = block(&copy, &[(&[Some("11"), Some("6")], 0, false)]);
    destination.insert(&copy.table, &row, "t").await.unwrap();
    let swap = Swap {
        id: TableId::default(),
        source: TableName::new("public", "notes"),
        target: "notes".to_owned(),
        copied: "notes_copy".to_owned(),
        uuid: made.uuid.as_str().to_owned(),
        replaces: Some(before.uuid.as_str().to_owned()),
    };
    for _ in 0..2 {
        destination.swap(&swap, &owner()).await.unwrap();
        assert_eq!(engine.read("SELECT id, weight FROM shop.notes").await, "11\t6");
        assert_eq!(
            engine.read("SELECT name FROM system.tables WHERE database = 'shop' ORDER BY name").await,
            "notes\nnotes_copy_old_local\nnotes_local"
        );
    }
    let engine_of = "SELECT engine_full FROM system.tables WHERE name = 'notes'";
    assert_eq!(
        engine.read(engine_of).await,
        "Distributed(\\'default\\', \\'shop\\', \\'notes_local\\', intDiv(id, 10))"
    );
    assert_eq!(destination.table_uuid(&target.table).await.unwrap(), Some(made.uuid));
    let retired = destination.table(&Swap::retired_name("notes_copy"));
    assert!(destination.drop_table(&retired, &owner()).await.unwrap());
    assert!(!destination.drop_table(&copy.table, &owner()).await.unwrap());
}

#[tokio::test]
async fn keys_of_every_kind_are_spread() {
    let engine = Engine::start().await;
    let destination = engine.sharded("shop");
    let kinds = [
        "Int16",
        "UInt64",
        "Decimal(38, 4)",
        "String",
        "UUID",
        "Bool",
        "Date32",
        "DateTime64(6)",
        "Float64",
        "Nullable(Int32)",
        "LowCardinality(String)",
        "LowCardinality(Nullable(String))",
        "Array(Nullable(Int32))",
    ];
    for (number, kind) in kinds.iter().enumerate() {
        let target = TargetTable {
            columns: vec![column("k", PgType::Text, kind), column("id", PgType::Int8, "Int64")],
            sorting_key: vec!["k".to_owned(), "id".to_owned()],
            ..notes(destination.table(&format!("t{number}")))
        };
        assert_eq!(destination.inspect(std::slice::from_ref(&target), None).await, [], "{kind}");
        let single = TargetTable { sorting_key: vec!["k".to_owned()], ..target };
        assert_eq!(destination.inspect(std::slice::from_ref(&single), None).await, [], "{kind} alone");
        destination.ensure_table(&single, &owner()).await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_spread_is_refused_before_anything_is_made() {
    let engine = Engine::start().await;
    let destination = engine.sharded("shop");
    let with = |expression: &str| TargetTable {
        sharding: Some(expression.to_owned()),
        ..notes(destination.table("notes"))
    };
    let keyless = TargetTable {
        engine: TableEngine::MergeTree,
        sorting_key: Vec::new(),
        ..notes(destination.table("notes"))
    };
    for (target, said) in [
        (with("rand()"), "gives equal rows different shards"),
        (with("cityHash64(note)"), "cannot be used"),
        (with("toString(id)"), "gives String, and not an integer"),
        (with("nonsense("), "cannot be used"),
        (keyless.clone(), "no sorting key"),
    ] {
        let problems = destination.inspect(&[target], None).await;
        assert_eq!(codes(&problems), ["SHARDING_EXPRESSION_INVALID"]);
        assert!(problems[0].message.contains(said), "{}", problems[0]);
    }
    // Every change is a row of its own there, so any column may say where it goes.
    let spread = TargetTable { sharding: Some("cityHash64(tuple(note))".to_owned()), ..keyless };
    assert_eq!(destination.inspect(&[spread], None).await, []);

    engine.run("CREATE DATABASE shop").await;
    engine.run("CREATE TABLE shop.notes (id Int64) ENGINE = MergeTree ORDER BY id").await;
    let problems = destination.inspect(&[notes(destination.table("notes"))], None).await;
    assert_eq!(codes(&problems), ["DESTINATION_TABLE_DIFFERS"]);
    assert!(problems[0].message.contains("its engine is MergeTree"), "{}", problems[0]);

    let cluster =
        Cluster { name: "elsewhere".to_owned(), replicated: true, sharded: false, insert_quorum: 0 };
    let elsewhere =
        Destination::new(&ClickHouseDestination { cluster: Some(cluster), ..engine.settings("shop") })
            .unwrap();
    let problems = elsewhere.inspect(&[notes(elsewhere.table("notes"))], None).await;
    assert_eq!(codes(&problems), ["DESTINATION_CLUSTER_UNKNOWN"]);
    assert!(problems[0].message.contains("it knows default"), "{}", problems[0]);
}
