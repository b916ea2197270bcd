//! Pipe specifications on the wire.

use std::time::Duration;

use millrace_api::proto::pipe::v1 as wire;
use millrace_api::spec::{with_secrets, without_secrets};
use millrace_model::spec::{
    ClickHouseDestination, Cluster, MetadataColumns, OutOfRange, PipeSettings, PostgresSource,
    ReplicationMode, SchemaChangePolicy, TableEngine, TableSpec, TlsMode, TruncatePolicy,
};
use millrace_model::{Labels, PipeSpec, Secret, TableName};
use proptest::prelude::*;
use proptest::sample::select;

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z][ -~é]{0,10}[a-z]"
}

fn secret() -> impl Strategy<Value = Secret> {
    "[ -~]{0,12}".prop_map(Secret::new)
}

fn source() -> impl Strategy<Value = PostgresSource> {
    let modes = [TlsMode::Disable, TlsMode::Prefer, TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull];
    ("[a-z0-9.]{1,20}", 1..=u16::MAX, text(), text(), secret(), select(modes.to_vec()), any::<bool>())
        .prop_map(|(host, port, database, username, password, tls_mode, ca)| PostgresSource {
            host,
            port,
            database,
            username,
            password,
            tls_mode,
            tls_ca: (ca && matches!(tls_mode, TlsMode::VerifyCa | TlsMode::VerifyFull))
                .then(|| "-----BEGIN CERTIFICATE-----\n".to_owned()),
        })
}

fn destination() -> impl Strategy<Value = ClickHouseDestination> {
    let url = select(vec!["http://h:8123", "https://h.example/path"]);
    (url, text(), text(), secret(), proptest::option::of(cluster())).prop_map(
        |(url, database, username, password, cluster)| ClickHouseDestination {
            url: url.to_owned(),
            database,
            username,
            password,
            cluster,
        },
    )
}

fn cluster() -> impl Strategy<Value = Cluster> {
    (text(), any::<bool>(), any::<u32>()).prop_map(|(name, replicated, quorum)| Cluster {
        name,
        replicated,
        sharded: !replicated,
        insert_quorum: if replicated { quorum } else { 0 },
    })
}

/// Tables with distinct sources and targets, and columns that do not clash.
fn tables() -> impl Strategy<Value = Vec<TableSpec>> {
    proptest::collection::btree_map((text(), text()), any::<bool>(), 1..4).prop_map(|names| {
        let table = |(index, ((schema, name), sorted)): (usize, ((String, String), bool))| TableSpec {
            excluded_columns: vec!["left out".to_owned()],
            sorting_keys: if sorted { vec!["a".to_owned(), "b".to_owned()] } else { Vec::new() },
            engine: if sorted { TableEngine::MergeTree } else { TableEngine::Null },
            partition_by: sorted.then(|| "toYYYYMM(a)".to_owned()),
            column_types: sorted.then(|| ("a".to_owned(), "Decimal(18, 4)".to_owned())).into_iter().collect(),
            out_of_range: sorted.then(|| ("b".to_owned(), OutOfRange::Stop)).into_iter().collect(),
            ..TableSpec::new(TableName::new(schema, name), format!("target {index}"))
        };
        names.into_iter().enumerate().map(table).collect()
    })
}

fn settings() -> impl Strategy<Value = PipeSettings> {
    (
        (
            1..=3_600_000_u64,
            1..u32::MAX,
            any::<u32>(),
            1..u32::MAX,
            1000..u32::MAX,
            1..u32::MAX,
            any::<u64>(),
        ),
        (proptest::option::of(text()), proptest::option::of("[a-z_0-9]{1,63}")),
        (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
    )
        .prop_map(
            |(numbers, (publication_name, replication_slot_name), (nullable, peerdb, on_merge, failover))| {
                PipeSettings {
                    sync_interval: Duration::from_millis(numbers.0),
                    pull_batch_size: numbers.1,
                    initial_load_parallelism: numbers.2,
                    max_source_connections: numbers.3,
                    snapshot_rows_per_partition: numbers.4,
                    snapshot_parallel_tables: numbers.5,
                    publication_name,
                    replication_slot_name,
                    allow_nullable_columns: nullable,
                    metadata_columns: if peerdb {
                        MetadataColumns::peerdb()
                    } else {
                        MetadataColumns::millrace()
                    },
                    delete_on_merge: on_merge,
                    schema_changes: if peerdb {
                        SchemaChangePolicy::Stop
                    } else {
                        SchemaChangePolicy::PropagateAll
                    },
                    truncate: if peerdb { TruncatePolicy::Ignore } else { TruncatePolicy::Propagate },
                    out_of_range: if nullable { OutOfRange::Null } else { OutOfRange::Clamp },
                    enable_failover_slots: failover,
                    max_held_wal: numbers.6,
                    verify_rows_per_second: numbers.1,
                    verify_every: failover.then(|| Duration::from_secs(60)),
                    worker_selector: if failover {
                        "zone=a".parse().expect("a label")
                    } else {
                        Labels::default()
                    },
                }
            },
        )
}

fn spec() -> impl Strategy<Value = PipeSpec> {
    let mode = select(vec![ReplicationMode::Cdc, ReplicationMode::Snapshot, ReplicationMode::CdcOnly]);
    (text(), mode, source(), destination(), tables(), settings()).prop_map(
        |(name, mode, source, destination, tables, settings)| PipeSpec {
            name: name.parse().expect("a valid name"),
            mode,
            source,
            destination,
            tables,
            settings,
        },
    )
}

proptest! {
    #[test]
    fn a_specification_is_read_back_as_it_was_sent(spec in spec()) {
        prop_assert_eq!(PipeSpec::try_from(with_secrets(&spec)), Ok(spec));
    }

    #[test]
    fn the_visible_form_lacks_the_passwords_and_nothing_else(spec in spec()) {
        let mut expected = spec.clone();
        expected.source.password = Secret::default();
        expected.destination.password = Secret::default();
        prop_assert_eq!(PipeSpec::try_from(without_secrets(&spec)), Ok(expected));
    }
}

#[test]
fn every_violation_is_listed_with_its_field() {
    let column = |name: &str| name.to_owned();
    let spec = wire::PipeSpec {
        name: " shop".to_owned(),
        replication_mode: 9,
        source: Some(wire::PostgresSource {
            host: "a b".to_owned(),
            port: 65536,
            tls_mode: 17,
            tls_ca: "no certificate".to_owned(),
            password: "nul\0".to_owned(),
            ..Default::default()
        }),
        destination: Some(wire::ClickHouseDestination {
            url: "http://h:8123/?database=x".to_owned(),
            ..Default::default()
        }),
        tables: vec![
            wire::TableMapping {
                source: "public.a".to_owned(),
                target: "t".to_owned(),
                ..Default::default()
            },
            wire::TableMapping { source: "b".to_owned(), ..Default::default() },
            wire::TableMapping {
                source: "public.c".to_owned(),
                target: "t".to_owned(),
                excluded_columns: vec![column("x"), column(""), column("x")],
                sorting_keys: vec![column("id"), column("x")],
                table_engine: 99,
                column_types: [(column("x"), column("String")), (column("y"), column(""))].into(),
                out_of_range: [(column("y"), 17)].into(),
                ..Default::default()
            },
            wire::TableMapping { source: "PUBLIC.A".to_owned(), ..Default::default() },
            wire::TableMapping { source: "public.*".to_owned(), ..Default::default() },
        ],
        settings: Some(wire::PipeSettings {
            sync_interval: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
            pull_batch_size: Some(0),
            max_source_connections: Some(0),
            snapshot_num_rows_per_partition: Some(1),
            snapshot_number_of_parallel_tables: Some(0),
            publication_name: "p".repeat(64),
            replication_slot_name: "Slot".to_owned(),
            metadata_columns: Some(wire::MetadataColumns {
                version: "v".to_owned(),
                is_deleted: "v".to_owned(),
                synced_at: String::new(),
            }),
            ..Default::default()
        }),
    };
    let error = PipeSpec::try_from(spec).unwrap_err().within("spec");
    let lines: Vec<String> = error.violations().iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn an_empty_specification_names_what_is_missing() {
    let error = PipeSpec::try_from(wire::PipeSpec::default()).unwrap_err();
    let fields: Vec<&str> = error.violations().iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["name", "replicationMode", "source", "destination", "tables"]);
}

#[test]
fn the_generated_messages_show_no_password() {
    let spec = wire::PipeSpec {
        source: Some(wire::PostgresSource { password: "hunter2".to_owned(), ..Default::default() }),
        destination: Some(wire::ClickHouseDestination {
            password: "hunter2".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert!(
        !format!("{:?}", wire::CreateRequest { spec: Some(spec), validate_only: false }).contains("hunter2")
    );
}
