//! What an edit takes from its request, and what stays as it is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use millrace_api::edit::{merge, with_snapshot_settings};
use millrace_api::proto::pipe::v1 as wire;
use millrace_model::spec::{
    ClickHouseDestination, MetadataColumns, OutOfRange, PipeSettings, PostgresSource, ReplicationMode,
    SchemaChangePolicy, TableSpec, TlsMode, TruncatePolicy,
};
use millrace_model::{PipeSpec, Secret, TableName};

fn pipe() -> PipeSpec {
    PipeSpec {
        name: "shop".parse().unwrap(),
        mode: ReplicationMode::Cdc,
        source: PostgresSource {
            host: "old".to_owned(),
            port: 5432,
            database: "shop".to_owned(),
            username: "millrace".to_owned(),
            password: Secret::new("source secret"),
            tls_mode: TlsMode::Prefer,
            tls_ca: None,
        },
        destination: ClickHouseDestination {
            url: "http://old:8123".to_owned(),
            database: "shop".to_owned(),
            username: "default".to_owned(),
            password: Secret::new("destination secret"),
            cluster: None,
        },
        tables: vec![TableSpec::new(TableName::new("public", "orders"), "orders")],
        settings: PipeSettings::default(),
    }
}

/// A pipe that differs from [`pipe`] in everything that can be edited.
fn other() -> PipeSpec {
    let mut spec = pipe();
    spec.mode = ReplicationMode::CdcOnly;
    spec.source.host = "new".to_owned();
    spec.source.password = Secret::new("another source secret");
    spec.destination.url = "http://new:8123".to_owned();
    spec.destination.password = Secret::new("another destination secret");
    spec.tables.push(TableSpec::new(TableName::new("public", "lines"), "lines"));
    spec.settings = PipeSettings {
        sync_interval: Duration::from_millis(250),
        pull_batch_size: 7,
        initial_load_parallelism: 3,
        max_source_connections: 4,
        snapshot_rows_per_partition: 5000,
        snapshot_parallel_tables: 2,
        allow_nullable_columns: false,
        metadata_columns: MetadataColumns::peerdb(),
        delete_on_merge: !PipeSettings::default().delete_on_merge,
        schema_changes: SchemaChangePolicy::Stop,
        truncate: TruncatePolicy::Ignore,
        out_of_range: OutOfRange::Stop,
        max_held_wal: 5,
        verify_every: Some(Duration::from_secs(60)),
        verify_rows_per_second: 7,
        worker_selector: "zone=a".parse().unwrap(),
        ..PipeSettings::default()
    };
    spec
}

fn merged(mask: &[&str]) -> PipeSpec {
    let mask: Vec<String> = mask.iter().map(|path| (*path).to_owned()).collect();
    merge(&pipe(), &other(), &mask).unwrap()
}

#[test]
fn without_a_mask_everything_is_taken() {
    assert_eq!(merged(&[]), other());
}

#[test]
fn with_a_mask_only_what_it_names_is_taken() {
    let expected = PipeSpec { tables: other().tables, ..pipe() };
    assert_eq!(merged(&["tables"]), expected);
    let mut expected = pipe();
    expected.settings.sync_interval = other().settings.sync_interval;
    expected.settings.max_held_wal = other().settings.max_held_wal;
    assert_eq!(merged(&["settings.sync_interval", "settings.max_held_wal_bytes"]), expected);
}

#[test]
fn the_paths_together_reach_every_part() {
    let parts = merged(&["replication_mode", "source", "destination", "tables", "settings"]);
    assert_eq!(parts, other());
    let settings = [
        "settings.sync_interval",
        "settings.pull_batch_size",
        "settings.initial_load_parallelism",
        "settings.max_source_connections",
        "settings.snapshot_num_rows_per_partition",
        "settings.snapshot_number_of_parallel_tables",
        "settings.schema_changes",
        "settings.truncate",
        "settings.out_of_range",
        "settings.max_held_wal_bytes",
        "settings.verify_every",
        "settings.verify_rows_per_second",
        "settings.worker_selector",
        "settings.allow_nullable_columns",
        "settings.metadata_columns",
        "settings.delete_on_merge",
    ];
    assert_eq!(merged(&settings), PipeSpec { settings: other().settings, ..pipe() });
    for path in settings {
        assert_ne!(merged(&[path]), pipe(), "{path} takes nothing");
    }
}

#[test]
fn the_name_of_a_pipe_never_changes() {
    let asked = PipeSpec { name: "another".parse().unwrap(), ..other() };
    assert_eq!(merge(&pipe(), &asked, &[]).unwrap(), other());
}

#[test]
fn an_empty_password_stays_as_it_is() {
    let mut asked = other();
    asked.source.password = Secret::default();
    asked.destination.password = Secret::default();
    for mask in [Vec::new(), vec!["source".to_owned(), "destination".to_owned()]] {
        let merged = merge(&pipe(), &asked, &mask).unwrap();
        assert_eq!(merged.source.host, "new");
        assert_eq!(merged.source.password.expose(), "source secret");
        assert_eq!(merged.destination.password.expose(), "destination secret");
    }
}

#[test]
fn a_path_that_cannot_be_edited_alone_is_named() {
    let paths = ["name", "settings.syncInterval", "settings.publication_name", "tables.source", "", "colour"];
    let told = paths.map(|path| merge(&pipe(), &other(), &[path.to_owned()]).unwrap_err().to_string());
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn snapshot_settings_that_are_not_given_stay_as_they_are() {
    assert_eq!(with_snapshot_settings(&other(), &wire::SnapshotSettings::default()), Ok(other()));
    let asked = wire::SnapshotSettings {
        snapshot_num_rows_per_partition: Some(9000),
        initial_load_parallelism: Some(0),
        ..Default::default()
    };
    let mut expected = other();
    expected.settings.snapshot_rows_per_partition = 9000;
    expected.settings.initial_load_parallelism = 0;
    assert_eq!(with_snapshot_settings(&other(), &asked), Ok(expected));
    let asked = wire::SnapshotSettings {
        max_source_connections: Some(1),
        snapshot_number_of_parallel_tables: Some(1),
        ..Default::default()
    };
    let mut expected = other();
    expected.settings.max_source_connections = 1;
    expected.settings.snapshot_parallel_tables = 1;
    assert_eq!(with_snapshot_settings(&other(), &asked), Ok(expected));
}

#[test]
fn snapshot_settings_out_of_range_are_named() {
    let asked = [
        wire::SnapshotSettings { snapshot_num_rows_per_partition: Some(999), ..Default::default() },
        wire::SnapshotSettings { max_source_connections: Some(0), ..Default::default() },
        wire::SnapshotSettings { snapshot_number_of_parallel_tables: Some(0), ..Default::default() },
    ];
    let told = asked.map(|asked| with_snapshot_settings(&pipe(), &asked).unwrap_err().to_string());
    insta::assert_snapshot!(told.join("\n"));
}
