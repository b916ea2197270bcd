//! What a `pipe.yaml` may say, and what is said back where it may not.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use millrace_api::yaml::{SpecErrors, parse_pipe_yaml, parse_source_yaml};
use millrace_model::spec::{
    Cluster, MetadataColumns, OutOfRange, PipeSettings, ReplicationMode, SchemaChangePolicy, TableEngine,
    TableSpec, TlsMode, TruncatePolicy,
};
use millrace_model::{PipeSpec, TableName};

fn environment(name: &str) -> Option<String> {
    match name {
        "SHOP_PASSWORD" => Some("s3cret".to_owned()),
        "PORT" => Some("6543".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<PipeSpec, SpecErrors> {
    parse_pipe_yaml(text, Path::new(env!("CARGO_MANIFEST_DIR")), &environment)
}

/// A valid file with `replacements` made in it.
fn edited(replacements: &[(&str, &str)]) -> String {
    let mut text = "\
name: shop
replicationMode: cdc
source:
  postgres:
    host: localhost
    port: 5432
    database: shop
    username: millrace
    password: secret
    tls: {mode: prefer}
destination:
  clickhouse: {url: 'http://127.0.0.1:8123', database: shop}
tables:
  - source: public.orders
  - source: public.lines
    target: lines
settings:
  syncInterval: 1s
"
    .to_owned();
    for (from, to) in replacements {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    text
}

#[test]
fn the_example_of_the_documentation_is_a_valid_pipe() {
    let spec = parse(include_str!("../../../docs/pipe.example.yaml")).unwrap();
    assert_eq!(spec.name.as_str(), "shop");
    assert_eq!(spec.source.password.expose(), "s3cret");
    assert_eq!(spec.settings, PipeSettings::default());
    assert_eq!(spec.tables[0].sorting_keys, ["customer_id", "id"]);
    assert_eq!(spec.tables[1].target, "public_customers");
}

#[test]
fn what_is_left_out_takes_its_default() {
    let spec = parse(&edited(&[
        ("replicationMode: cdc\n", ""),
        ("    port: 5432\n", ""),
        ("    tls: {mode: prefer}\n", ""),
        ("settings:\n  syncInterval: 1s\n", ""),
    ]))
    .unwrap();
    assert_eq!(spec.mode, ReplicationMode::Cdc);
    assert_eq!((spec.source.port, spec.source.tls_mode), (5432, TlsMode::Prefer));
    assert_eq!(spec.destination.username, "default");
    assert_eq!(spec.settings, PipeSettings::default());
}

#[test]
fn every_setting_arrives() {
    let spec = parse(&edited(&[
        ("replicationMode: cdc", "replicationMode: snapshot"),
        ("port: 5432", "port: ${env:PORT}"),
        (
            "  syncInterval: 1s\n",
            "  syncInterval: 250ms
  pullBatchSize: 7
  initialLoadParallelism: 3
  maxSourceConnections: 4
  snapshotNumRowsPerPartition: 5000
  snapshotNumberOfParallelTables: 2
  publicationName: My Publication
  replicationSlotName: my_slot
  allowNullableColumns: false
  deleteOnMerge: false
  schemaChanges: propagate_all
  truncate: ignore
  outOfRange: null
  enableFailoverSlots: true
  maxHeldWal: 20GiB
  verifyEvery: 24h
  verifyRowsPerSecond: 50000
  workerSelector: {zone: a, pool: large}
  metadataColumns: peerdb
",
        ),
        (
            "target: lines",
            "target: lines
    tableEngine: MergeTree
    partitionByExpr: toYYYYMM(at)
    columnTypes: {amount: 'Decimal(18, 4)'}
    outOfRange: {amount: stop, note: null}
    shardingExpr: intHash64(id)",
        ),
        (
            "url: 'http://127.0.0.1:8123'",
            "url: 'http://127.0.0.1:8123', cluster: {name: analytics, sharded: true, insertQuorum: 2}",
        ),
    ]))
    .unwrap();
    assert_eq!(spec.mode, ReplicationMode::Snapshot);
    assert_eq!(spec.source.port, 6543);
    let expected = PipeSettings {
        sync_interval: Duration::from_millis(250),
        pull_batch_size: 7,
        initial_load_parallelism: 3,
        max_source_connections: 4,
        snapshot_rows_per_partition: 5000,
        snapshot_parallel_tables: 2,
        publication_name: Some("My Publication".to_owned()),
        replication_slot_name: Some("my_slot".to_owned()),
        allow_nullable_columns: false,
        metadata_columns: MetadataColumns::peerdb(),
        delete_on_merge: false,
        schema_changes: SchemaChangePolicy::PropagateAll,
        truncate: TruncatePolicy::Ignore,
        out_of_range: OutOfRange::Null,
        enable_failover_slots: true,
        max_held_wal: 20 << 30,
        verify_every: Some(Duration::from_secs(86_400)),
        verify_rows_per_second: 50_000,
        worker_selector: "zone=a,pool=large".parse().unwrap(),
    };
    assert_eq!(spec.settings, expected);
    let lines = TableSpec {
        engine: TableEngine::MergeTree,
        partition_by: Some("toYYYYMM(at)".to_owned()),
        column_types: [("amount".to_owned(), "Decimal(18, 4)".to_owned())].into(),
        out_of_range: [("amount".to_owned(), OutOfRange::Stop), ("note".to_owned(), OutOfRange::Null)].into(),
        sharding: Some("intHash64(id)".to_owned()),
        ..TableSpec::new(TableName::new("public", "lines"), "lines")
    };
    assert_eq!(spec.tables[1], lines);
    let cluster = Cluster { name: "analytics".to_owned(), replicated: true, sharded: true, insert_quorum: 2 };
    assert_eq!(spec.destination.cluster, Some(cluster));
}

#[test]
fn names_need_no_care() {
    let spec = parse(&edited(&[
        ("name: shop", "name: 'Über: \"shop\" — 1'"),
        ("database: shop\n", "database: no\n"),
        ("public.orders", "'\"Odd.Schema\".\"*\"'"),
    ]))
    .unwrap();
    assert_eq!(spec.name.as_str(), "Über: \"shop\" — 1");
    assert_eq!(spec.source.database, "no");
    assert_eq!(spec.tables[0].source, TableName::new("Odd.Schema", "*"));
}

#[test]
fn keys_of_later_releases_are_accepted_at_their_default_only() {
    assert!(parse(&edited(&[("syncInterval: 1s", "newTables: ignore")])).is_ok());
}

#[test]
fn a_pipe_may_follow_changes_only_from_a_slot_and_publication_that_stand() {
    let names = "replicationSlotName: odd_slot_1\n  publicationName: 'Odd \"publication\"'";
    let spec =
        parse(&edited(&[("replicationMode: cdc", "replicationMode: cdc_only"), ("syncInterval: 1s", names)]))
            .unwrap();
    assert_eq!(spec.mode, ReplicationMode::CdcOnly);
    assert_eq!(spec.settings.replication_slot_name.as_deref(), Some("odd_slot_1"));
    assert_eq!(spec.settings.publication_name.as_deref(), Some("Odd \"publication\""));
}

#[test]
fn a_failing_table_may_hold_any_size_of_the_log() {
    let held = |size: &str| {
        let setting = format!("maxHeldWal: {size}");
        parse(&edited(&[("syncInterval: 1s", &setting)])).unwrap().settings.max_held_wal
    };
    assert_eq!(held("1GiB"), PipeSettings::default().max_held_wal, "the default, written out");
    let sizes = ["0B", "512kB", "1024MiB", "250GB", "16TiB"].map(held);
    assert_eq!(sizes, [0, 512_000, 1 << 30, 250_000_000_000, 16 << 40]);
}

#[test]
fn a_certificate_comes_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    std::fs::write(folder.path().join("ca.pem"), pem).unwrap();
    let text = edited(&[("{mode: prefer}", "{mode: verify-full, caFile: ca.pem}")]);
    let spec = parse_pipe_yaml(&text, folder.path(), &environment).unwrap();
    assert_eq!((spec.source.tls_mode, spec.source.tls_ca.as_deref()), (TlsMode::VerifyFull, Some(pem)));
}

#[test]
fn the_source_alone_can_be_read_from_an_unfinished_file() {
    let read = |text: &str| parse_source_yaml(text, Path::new("/"), &environment);
    let text = edited(&[("target: lines", "targt: lines"), ("name: shop", "name: ''")]);
    assert_eq!(read(&text).unwrap().host, "localhost");
    let errors = read(&edited(&[("host", "hst"), ("name: shop", "nme: shop")])).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "source.postgres.hst: unknown key, did you mean 'host'? (line 5, column 5)"
    );
    assert_eq!(read("name: x").unwrap_err().to_string(), "source.postgres: missing");
    assert!(read("surce: {}").is_err());
}

#[test]
fn every_error_names_its_path() {
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("mistyped key", &[("public.lines", "public.lines\n    sourc: x")]),
        ("mistyped key that is required", &[("- source: public.lines", "- sourc: public.lines")]),
        ("key in another case", &[("syncInterval", "sync_interval")]),
        ("key that is like none", &[("syncInterval: 1s", "colour: red")]),
        ("key at the wrong level", &[("  postgres:\n", "")]),
        ("another source", &[("postgres:", "mysql:")]),
        ("repeated key", &[("    port: 5432", "    port: 5432\n    port: 1")]),
        ("not YAML", &[("tables:", "tables: [")]),
        ("number for text", &[("password: secret", "password: 12345")]),
        ("text for number", &[("port: 5432", "port: postgres")]),
        ("float for number", &[("port: 5432", "port: 1.5")]),
        ("quoted number", &[("port: 5432", "port: '5432'")]),
        ("port out of range", &[("port: 5432", "port: 70000")]),
        ("port zero", &[("port: 5432", "port: 0")]),
        ("negative number", &[("syncInterval: 1s", "pullBatchSize: -1")]),
        ("text for list", &[("target: lines", "excludedColumns: note")]),
        ("list for text", &[("name: shop", "name: [shop]")]),
        ("mapping for list", &[("tables:\n  - source: public.orders\n  -", "tables:\n   ")]),
        ("text for mapping", &[("{mode: prefer}", "prefer")]),
        ("text in place of a table", &[("- source: public.orders", "- public.orders")]),
        ("text for true or false", &[("syncInterval: 1s", "allowNullableColumns: 'yes'")]),
        ("missing variable", &[("password: secret", "password: ${env:ABSENT}")]),
        ("variable that is not a number", &[("port: 5432", "port: ${env:SHOP_PASSWORD}")]),
        ("empty variable", &[("host: localhost", "host: ${env:EMPTY}")]),
        ("missing file", &[("password: secret", "password: ${file:absent.txt}")]),
        ("unknown reference", &[("password: secret", "password: ${SHOP_PASSWORD}")]),
        ("open reference", &[("password: secret", "password: '${env:SHOP_PASSWORD'")]),
        ("missing certificate", &[("{mode: prefer}", "{mode: verify-full, caFile: absent.pem}")]),
        ("file without certificate", &[("{mode: prefer}", "{mode: verify-ca, caFile: Cargo.toml}")]),
        ("unknown TLS mode", &[("{mode: prefer}", "{mode: on}")]),
        ("duration without unit", &[("syncInterval: 1s", "syncInterval: 1")]),
        ("duration with a strange unit", &[("syncInterval: 1s", "syncInterval: 1 day")]),
        ("duration out of range", &[("syncInterval: 1s", "syncInterval: 2h")]),
        ("too few rows", &[("syncInterval: 1s", "snapshotNumRowsPerPartition: 999")]),
        ("slot that cannot be", &[("syncInterval: 1s", "replicationSlotName: My-Slot")]),
        ("unknown preset", &[("syncInterval: 1s", "metadataColumns: airbyte")]),
        ("incomplete names", &[("syncInterval: 1s", "metadataColumns: {version: v, isDeleted: v}")]),
        (
            "name too long",
            &[("name: shop", "name: x123456789x123456789x123456789x123456789x123456789x123456789xxxx")],
        ),
        ("not a URL", &[("http://127.0.0.1:8123", "127.0.0.1:8123")]),
        ("another protocol", &[("http://127.0.0.1:8123", "tcp://127.0.0.1:9000")]),
        ("password in the URL", &[("http://127.0.0.1:8123", "http://u:hidden@h:8123")]),
        ("table without schema", &[("public.orders", "orders")]),
        ("open quote", &[("public.orders", "'public.\"orders'")]),
        ("table twice", &[("public.lines", "Public.Orders")]),
        (
            "target twice, not alike",
            &[("target: lines", "target: public_orders\n    tableEngine: MergeTree")],
        ),
        ("column twice", &[("target: lines", "sortingKeys: [id, id]")]),
        ("excluded sorting key", &[("target: lines", "sortingKeys: [id]\n    excludedColumns: [id]")]),
        (
            "no tables",
            &[(
                "tables:\n  - source: public.orders\n  - source: public.lines\n    target: lines\n",
                "tables: []\n",
            )],
        ),
        ("unknown mode", &[("replicationMode: cdc", "replicationMode: mirror")]),
        ("unknown engine", &[("target: lines", "tableEngine: Memory")]),
        ("type that is no text", &[("target: lines", "columnTypes: {amount: [String]}")]),
        ("types that are no mapping", &[("target: lines", "columnTypes: String")]),
        ("unknown policy of a column", &[("target: lines", "outOfRange: {amount: round}")]),
        ("later: whole schema", &[("public.orders", "public.*")]),
        ("failover slots that are neither", &[("syncInterval: 1s", "enableFailoverSlots: maybe")]),
        ("unknown schema policy", &[("syncInterval: 1s", "schemaChanges: guess")]),
        ("unknown truncate policy", &[("syncInterval: 1s", "truncate: maybe")]),
        ("unknown range policy", &[("syncInterval: 1s", "outOfRange: wrap")]),
        ("a selector that is none", &[("syncInterval: 1s", "workerSelector: {zone: \"a,b\"}")]),
        ("comparisons too often", &[("syncInterval: 1s", "verifyEvery: 1s")]),
        ("size that is none", &[("syncInterval: 1s", "maxHeldWal: much")]),
        ("size without quotes and unit", &[("syncInterval: 1s", "maxHeldWal: 1000000")]),
        ("size with a strange unit", &[("syncInterval: 1s", "maxHeldWal: 1gb")]),
        ("size beyond all numbers", &[("syncInterval: 1s", "maxHeldWal: 20000000TiB")]),
        ("later: new tables", &[("syncInterval: 1s", "newTables: include")]),
        (
            "several at once, in the order of the file",
            &[
                ("name: shop", "nmae: shop"),
                ("host: localhost", "host: ${env:ABSENT}"),
                ("port: 5432", "port: many"),
                ("    username: millrace\n", ""),
                ("public.orders", "orders"),
                ("syncInterval: 1s", "syncInterval: soon"),
            ],
        ),
    ];
    let mut told = String::new();
    for (case, replacements) in cases {
        let errors = match parse(&edited(replacements)) {
            Ok(_) => panic!("{case}: accepted"),
            Err(errors) => errors.to_string().replace(env!("CARGO_MANIFEST_DIR"), "<folder>"),
        };
        writeln!(told, "# {case}\n{errors}\n").unwrap();
    }
    for (case, text) in [
        ("empty file", ""),
        ("only a comment", "# later\n"),
        ("text", "shop"),
        ("two documents", "a: 1\n---\nb: 2\n"),
    ] {
        writeln!(told, "# {case}\n{}\n", parse(text).unwrap_err()).unwrap();
    }
    assert!(!told.contains("hidden"), "a password is shown");
    insta::assert_snapshot!(told);
}
