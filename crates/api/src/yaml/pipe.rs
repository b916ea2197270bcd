//! The keys of a `pipe.yaml`.

use millrace_model::spec::MetadataColumns;

use crate::proto::pipe::v1 as wire;
use crate::time;
use crate::yaml::node::{Node, Value};
use crate::yaml::scalar;
use crate::yaml::section::{Given, Reader, Section};

/// Reads the file into the wire form. What is refused stays at its default there, and is recorded in the reader.
pub(super) fn read(reader: &mut Reader<'_>, root: Node) -> wire::PipeSpec {
    let root = Given { path: String::new(), node: root };
    if matches!(root.node.value, Value::Null) {
        reader.refuse(&root, "the file is empty");
        return wire::PipeSpec::default();
    }
    let known = ["name", "replicationMode", "source", "destination", "tables", "settings"];
    let Some(mut root) = reader.section(root, &known) else { return wire::PipeSpec::default() };
    let modes = [
        ("cdc", wire::ReplicationMode::Cdc),
        ("snapshot", wire::ReplicationMode::Snapshot),
        ("cdc_only", wire::ReplicationMode::CdcOnly),
    ];
    let mode = reader.choice(&mut root, "replicationMode", &modes, &[]);
    wire::PipeSpec {
        name: reader.text(&mut root, "name"),
        replication_mode: mode.unwrap_or(wire::ReplicationMode::Cdc).into(),
        source: nested(reader, &mut root, "source", "postgres").and_then(|given| source(reader, given)),
        destination: nested(reader, &mut root, "destination", "clickhouse")
            .and_then(|given| destination(reader, given)),
        tables: reader.list(&mut root, "tables").into_iter().map(|given| table(reader, given)).collect(),
        settings: root.take("settings").and_then(|given| settings(reader, given)),
    }
}

/// The section `inner`, the only one that `outer` may hold.
fn nested(reader: &mut Reader<'_>, root: &mut Section, outer: &str, inner: &str) -> Option<Given> {
    let given = root.take(outer)?;
    reader.section(given, &[inner])?.take(inner)
}

fn source(reader: &mut Reader<'_>, given: Given) -> Option<wire::PostgresSource> {
    let mut section = reader.section(given, &["host", "port", "database", "username", "password", "tls"])?;
    let tls = section.take("tls").and_then(|given| reader.section(given, &["mode", "caFile"]));
    let mut tls = tls.unwrap_or_else(Section::empty);
    let modes = [
        ("disable", wire::TlsMode::Disable),
        ("prefer", wire::TlsMode::Prefer),
        ("require", wire::TlsMode::Require),
        ("verify-ca", wire::TlsMode::VerifyCa),
        ("verify-full", wire::TlsMode::VerifyFull),
    ];
    Some(wire::PostgresSource {
        host: reader.text(&mut section, "host"),
        port: port(reader, &mut section),
        database: reader.text(&mut section, "database"),
        username: reader.text(&mut section, "username"),
        password: reader.text(&mut section, "password"),
        tls_mode: reader.choice(&mut tls, "mode", &modes, &[]).unwrap_or(wire::TlsMode::Unspecified).into(),
        tls_ca: reader.file(&mut tls, "caFile").unwrap_or_default(),
    })
}

/// The wire form reads 0 as "not given"; in a file it is a wrong number.
fn port(reader: &mut Reader<'_>, section: &mut Section) -> u32 {
    let Some(given) = section.take("port") else { return 0 };
    let port = reader.given_number(&given).unwrap_or_default();
    if matches!(given.node.value, Value::Integer(0)) {
        reader.refuse(&given, "0 is not a port; expected 1 to 65535");
    }
    port
}

fn destination(reader: &mut Reader<'_>, given: Given) -> Option<wire::ClickHouseDestination> {
    let mut section = reader.section(given, &["url", "database", "username", "password", "cluster"])?;
    let cluster = section.take("cluster").and_then(|given| cluster(reader, given));
    Some(wire::ClickHouseDestination {
        url: reader.text(&mut section, "url"),
        database: reader.text(&mut section, "database"),
        username: reader.text(&mut section, "username"),
        password: reader.text(&mut section, "password"),
        cluster,
    })
}

fn cluster(reader: &mut Reader<'_>, given: Given) -> Option<wire::ClickHouseCluster> {
    let mut section = reader.section(given, &["name", "replicated", "sharded", "insertQuorum"])?;
    Some(wire::ClickHouseCluster {
        name: reader.text(&mut section, "name"),
        replicated: reader.boolean(&mut section, "replicated"),
        sharded: reader.boolean(&mut section, "sharded"),
        insert_quorum: reader.number(&mut section, "insertQuorum").unwrap_or_default(),
    })
}

/// A table; one that is refused stays as an empty one, so that the others keep their index.
fn table(reader: &mut Reader<'_>, given: Given) -> wire::TableMapping {
    let known = [
        "source",
        "target",
        "excludedColumns",
        "sortingKeys",
        "tableEngine",
        "partitionByExpr",
        "columnTypes",
        "outOfRange",
        "shardingExpr",
    ];
    let Some(mut section) = reader.section(given, &known) else { return wire::TableMapping::default() };
    let engine = reader.choice(&mut section, "tableEngine", &ENGINES, &[]).unwrap_or_default();
    let types = reader.map(&mut section, "columnTypes");
    let column_types = types
        .into_iter()
        .map(|(column, given)| (column, reader.given_text(&given).unwrap_or_default()))
        .collect();
    let policies = reader.map(&mut section, "outOfRange");
    let out_of_range = policies
        .into_iter()
        .filter_map(|(column, given)| Some((column, reader.given_choice(&given, &OUT_OF_RANGE, &[])?.into())))
        .collect();
    wire::TableMapping {
        source: reader.text(&mut section, "source"),
        target: reader.text(&mut section, "target"),
        excluded_columns: reader.texts(&mut section, "excludedColumns"),
        sorting_keys: reader.texts(&mut section, "sortingKeys"),
        table_engine: engine.into(),
        partition_by_expr: reader.text(&mut section, "partitionByExpr"),
        column_types,
        out_of_range,
        sharding_expr: reader.text(&mut section, "shardingExpr"),
    }
}

const ENGINES: [(&str, wire::TableEngine); 3] = [
    ("ReplacingMergeTree", wire::TableEngine::ReplacingMergeTree),
    ("MergeTree", wire::TableEngine::MergeTree),
    ("Null", wire::TableEngine::Null),
];

const OUT_OF_RANGE: [(&str, wire::OutOfRange); 3] =
    [("clamp", wire::OutOfRange::Clamp), ("null", wire::OutOfRange::Null), ("stop", wire::OutOfRange::Stop)];

const SCHEMA_CHANGES: [(&str, wire::SchemaChangePolicy); 4] = [
    ("propagate", wire::SchemaChangePolicy::Propagate),
    ("propagate_all", wire::SchemaChangePolicy::PropagateAll),
    ("ignore", wire::SchemaChangePolicy::Ignore),
    ("stop", wire::SchemaChangePolicy::Stop),
];

const TRUNCATE: [(&str, wire::TruncatePolicy); 2] =
    [("propagate", wire::TruncatePolicy::Propagate), ("ignore", wire::TruncatePolicy::Ignore)];

fn settings(reader: &mut Reader<'_>, given: Given) -> Option<wire::PipeSettings> {
    let known = [
        "syncInterval",
        "pullBatchSize",
        "initialLoadParallelism",
        "maxSourceConnections",
        "snapshotNumRowsPerPartition",
        "snapshotNumberOfParallelTables",
        "publicationName",
        "replicationSlotName",
        "enableFailoverSlots",
        "allowNullableColumns",
        "deleteOnMerge",
        "schemaChanges",
        "truncate",
        "outOfRange",
        "maxHeldWal",
        "verifyEvery",
        "verifyRowsPerSecond",
        "workerSelector",
        "newTables",
        "metadataColumns",
    ];
    let mut section = reader.section(given, &known)?;
    reader.default_only(&mut section, "newTables", "ignore", &["include"]);
    let out_of_range = section.take_any("outOfRange");
    let max_held_wal_bytes = max_held_wal(reader, &mut section);
    let selector = reader.map(&mut section, "workerSelector");
    let worker_selector =
        selector.into_iter().filter_map(|(name, given)| Some((name, reader.given_text(&given)?))).collect();
    Some(wire::PipeSettings {
        sync_interval: reader.duration(&mut section, "syncInterval").map(time::duration),
        pull_batch_size: reader.number(&mut section, "pullBatchSize"),
        initial_load_parallelism: reader.number(&mut section, "initialLoadParallelism"),
        max_source_connections: reader.number(&mut section, "maxSourceConnections"),
        snapshot_num_rows_per_partition: reader.number(&mut section, "snapshotNumRowsPerPartition"),
        snapshot_number_of_parallel_tables: reader.number(&mut section, "snapshotNumberOfParallelTables"),
        publication_name: reader.text(&mut section, "publicationName"),
        replication_slot_name: reader.text(&mut section, "replicationSlotName"),
        allow_nullable_columns: reader.boolean(&mut section, "allowNullableColumns"),
        metadata_columns: section.take("metadataColumns").and_then(|given| metadata_columns(reader, given)),
        delete_on_merge: reader.boolean(&mut section, "deleteOnMerge"),
        schema_changes: reader
            .choice(&mut section, "schemaChanges", &SCHEMA_CHANGES, &[])
            .unwrap_or_default()
            .into(),
        truncate: reader.choice(&mut section, "truncate", &TRUNCATE, &[]).unwrap_or_default().into(),
        out_of_range: out_of_range
            .and_then(|given| reader.given_choice(&given, &OUT_OF_RANGE, &[]))
            .unwrap_or_default()
            .into(),
        enable_failover_slots: reader.boolean(&mut section, "enableFailoverSlots"),
        max_held_wal_bytes,
        verify_every: reader.duration(&mut section, "verifyEvery").map(time::duration),
        verify_rows_per_second: reader.number(&mut section, "verifyRowsPerSecond"),
        worker_selector,
    })
}

fn max_held_wal(reader: &mut Reader<'_>, section: &mut Section) -> Option<u64> {
    let given = section.take("maxHeldWal")?;
    let text = reader.given_text(&given)?;
    let bytes = scalar::bytes(&text);
    if bytes.is_none() {
        reader.refuse(&given, format!("'{text}' is not a size with its unit, such as 1GiB"));
    }
    bytes
}

/// A preset by its name, or three names.
fn metadata_columns(reader: &mut Reader<'_>, given: Given) -> Option<wire::MetadataColumns> {
    if matches!(given.node.value, Value::Map(_)) {
        let mut section = reader.section(given, &["version", "isDeleted", "syncedAt"])?;
        return Some(wire::MetadataColumns {
            version: reader.text(&mut section, "version"),
            is_deleted: reader.text(&mut section, "isDeleted"),
            synced_at: reader.text(&mut section, "syncedAt"),
        });
    }
    let preset = match reader.given_text(&given)?.as_str() {
        "millrace" => MetadataColumns::millrace(),
        "peerdb" => MetadataColumns::peerdb(),
        other => {
            let message = format!(
                "'{other}' is not known; expected millrace, peerdb, or version, isDeleted and syncedAt"
            );
            reader.refuse(&given, message);
            return None;
        }
    };
    Some(wire::MetadataColumns {
        version: preset.version,
        is_deleted: preset.is_deleted,
        synced_at: preset.synced_at,
    })
}
