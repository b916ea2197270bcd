//! Pipe specifications on the wire: the rules that make one valid, and both directions.
//!
//! [`PipeSpec::try_from`] lists every violation. Outward there are two forms: [`with_secrets`] for the worker that needs them,
//! [`without_secrets`] for everybody else.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use millrace_model::spec::{
    ClickHouseDestination, Cluster, MetadataColumns, OutOfRange, PipeSettings, PostgresSource,
    ReplicationMode, SchemaChangePolicy, TableEngine, TableSpec, TlsMode, TruncatePolicy,
};
use millrace_model::{Labels, PipeName, PipeSpec, Secret, TableName};
use url::Url;

use crate::proto::pipe::v1 as wire;
use crate::time;
use crate::violation::{Checker, ProtocolError, joined};

/// The port of PostgreSQL where none is given.
pub const POSTGRES_PORT: u16 = 5432;
/// The user of ClickHouse where none is given.
pub const CLICKHOUSE_USER: &str = "default";
/// Shortest and longest sync interval.
pub const SYNC_INTERVAL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(3600));
/// Least time between two comparisons.
const VERIFY_EVERY: Duration = Duration::from_secs(60);
/// Fewest rows that a partition may be asked to hold.
pub const LEAST_ROWS_PER_PARTITION: u32 = 1000;
/// Bytes that PostgreSQL keeps of a name (manual: "Identifiers and Key Words").
const LONGEST_NAME: usize = 63;

/// The wire form with passwords: for an assignment, never for an answer to a user.
pub fn with_secrets(spec: &PipeSpec) -> wire::PipeSpec {
    wire::PipeSpec {
        name: spec.name.to_string(),
        replication_mode: wire::ReplicationMode::from(spec.mode).into(),
        source: Some(source_with_secrets(&spec.source)),
        destination: Some(wire::ClickHouseDestination {
            url: spec.destination.url.clone(),
            database: spec.destination.database.clone(),
            username: spec.destination.username.clone(),
            password: spec.destination.password.expose().to_owned(),
            cluster: spec.destination.cluster.as_ref().map(wire::ClickHouseCluster::from),
        }),
        tables: spec.tables.iter().map(wire::TableMapping::from).collect(),
        settings: Some(wire::PipeSettings::from(&spec.settings)),
    }
}

/// The wire form that users get back: passwords are empty.
pub fn without_secrets(spec: &PipeSpec) -> wire::PipeSpec {
    let mut visible = with_secrets(spec);
    if let Some(source) = &mut visible.source {
        source.password.clear();
    }
    if let Some(destination) = &mut visible.destination {
        destination.password.clear();
    }
    visible
}

/// The wire form of a source with its password.
pub fn source_with_secrets(source: &PostgresSource) -> wire::PostgresSource {
    wire::PostgresSource {
        host: source.host.clone(),
        port: source.port.into(),
        database: source.database.clone(),
        username: source.username.clone(),
        password: source.password.expose().to_owned(),
        tls_mode: wire::TlsMode::from(source.tls_mode).into(),
        tls_ca: source.tls_ca.clone().unwrap_or_default(),
    }
}

impl From<ReplicationMode> for wire::ReplicationMode {
    fn from(mode: ReplicationMode) -> Self {
        match mode {
            ReplicationMode::Cdc => Self::Cdc,
            ReplicationMode::Snapshot => Self::Snapshot,
            ReplicationMode::CdcOnly => Self::CdcOnly,
        }
    }
}

impl From<TlsMode> for wire::TlsMode {
    fn from(mode: TlsMode) -> Self {
        match mode {
            TlsMode::Disable => Self::Disable,
            TlsMode::Prefer => Self::Prefer,
            TlsMode::Require => Self::Require,
            TlsMode::VerifyCa => Self::VerifyCa,
            TlsMode::VerifyFull => Self::VerifyFull,
        }
    }
}

impl From<&Cluster> for wire::ClickHouseCluster {
    fn from(cluster: &Cluster) -> Self {
        Self {
            name: cluster.name.clone(),
            replicated: Some(cluster.replicated),
            sharded: Some(cluster.sharded),
            insert_quorum: cluster.insert_quorum,
        }
    }
}

impl From<&TableSpec> for wire::TableMapping {
    fn from(table: &TableSpec) -> Self {
        Self {
            source: table.source.to_string(),
            target: table.target.clone(),
            excluded_columns: table.excluded_columns.clone(),
            sorting_keys: table.sorting_keys.clone(),
            table_engine: match table.engine {
                TableEngine::ReplacingMergeTree => wire::TableEngine::ReplacingMergeTree,
                TableEngine::MergeTree => wire::TableEngine::MergeTree,
                TableEngine::Null => wire::TableEngine::Null,
            }
            .into(),
            partition_by_expr: table.partition_by.clone().unwrap_or_default(),
            column_types: table.column_types.clone().into_iter().collect(),
            out_of_range: table
                .out_of_range
                .iter()
                .map(|(column, policy)| (column.clone(), wire::OutOfRange::from(*policy).into()))
                .collect(),
            sharding_expr: table.sharding.clone().unwrap_or_default(),
        }
    }
}

impl From<OutOfRange> for wire::OutOfRange {
    fn from(policy: OutOfRange) -> Self {
        match policy {
            OutOfRange::Clamp => Self::Clamp,
            OutOfRange::Null => Self::Null,
            OutOfRange::Stop => Self::Stop,
        }
    }
}

/// `None` for a number that this release does not know.
fn read_out_of_range(policy: i32) -> Option<OutOfRange> {
    Some(match wire::OutOfRange::try_from(policy).ok()? {
        wire::OutOfRange::Unspecified | wire::OutOfRange::Clamp => OutOfRange::Clamp,
        wire::OutOfRange::Null => OutOfRange::Null,
        wire::OutOfRange::Stop => OutOfRange::Stop,
    })
}

impl From<SchemaChangePolicy> for wire::SchemaChangePolicy {
    fn from(policy: SchemaChangePolicy) -> Self {
        match policy {
            SchemaChangePolicy::Propagate => Self::Propagate,
            SchemaChangePolicy::PropagateAll => Self::PropagateAll,
            SchemaChangePolicy::Ignore => Self::Ignore,
            SchemaChangePolicy::Stop => Self::Stop,
        }
    }
}

fn read_schema_changes(policy: i32) -> Option<SchemaChangePolicy> {
    use wire::SchemaChangePolicy as P;
    Some(match P::try_from(policy).ok()? {
        P::Unspecified | P::Propagate => SchemaChangePolicy::Propagate,
        P::PropagateAll => SchemaChangePolicy::PropagateAll,
        P::Ignore => SchemaChangePolicy::Ignore,
        P::Stop => SchemaChangePolicy::Stop,
    })
}

impl From<TruncatePolicy> for wire::TruncatePolicy {
    fn from(policy: TruncatePolicy) -> Self {
        match policy {
            TruncatePolicy::Propagate => Self::Propagate,
            TruncatePolicy::Ignore => Self::Ignore,
        }
    }
}

fn read_truncate(policy: i32) -> Option<TruncatePolicy> {
    Some(match wire::TruncatePolicy::try_from(policy).ok()? {
        wire::TruncatePolicy::Unspecified | wire::TruncatePolicy::Propagate => TruncatePolicy::Propagate,
        wire::TruncatePolicy::Ignore => TruncatePolicy::Ignore,
    })
}

fn read_engine(engine: i32) -> Option<TableEngine> {
    Some(match wire::TableEngine::try_from(engine).ok()? {
        wire::TableEngine::Unspecified | wire::TableEngine::ReplacingMergeTree => {
            TableEngine::ReplacingMergeTree
        }
        wire::TableEngine::MergeTree => TableEngine::MergeTree,
        wire::TableEngine::Null => TableEngine::Null,
    })
}

impl From<&PipeSettings> for wire::PipeSettings {
    fn from(settings: &PipeSettings) -> Self {
        Self {
            sync_interval: Some(time::duration(settings.sync_interval)),
            pull_batch_size: Some(settings.pull_batch_size),
            initial_load_parallelism: Some(settings.initial_load_parallelism),
            max_source_connections: Some(settings.max_source_connections),
            snapshot_num_rows_per_partition: Some(settings.snapshot_rows_per_partition),
            snapshot_number_of_parallel_tables: Some(settings.snapshot_parallel_tables),
            publication_name: settings.publication_name.clone().unwrap_or_default(),
            replication_slot_name: settings.replication_slot_name.clone().unwrap_or_default(),
            allow_nullable_columns: Some(settings.allow_nullable_columns),
            metadata_columns: Some(wire::MetadataColumns {
                version: settings.metadata_columns.version.clone(),
                is_deleted: settings.metadata_columns.is_deleted.clone(),
                synced_at: settings.metadata_columns.synced_at.clone(),
            }),
            delete_on_merge: Some(settings.delete_on_merge),
            schema_changes: wire::SchemaChangePolicy::from(settings.schema_changes).into(),
            truncate: wire::TruncatePolicy::from(settings.truncate).into(),
            out_of_range: wire::OutOfRange::from(settings.out_of_range).into(),
            enable_failover_slots: Some(settings.enable_failover_slots),
            max_held_wal_bytes: Some(settings.max_held_wal),
            verify_every: settings.verify_every.map(time::duration),
            verify_rows_per_second: Some(settings.verify_rows_per_second),
            worker_selector: settings.worker_selector.as_map().clone(),
        }
    }
}

impl TryFrom<wire::PipeSpec> for PipeSpec {
    type Error = ProtocolError;

    fn try_from(spec: wire::PipeSpec) -> Result<Self, ProtocolError> {
        read(spec, true)
    }
}

/// One table of an assignment.
impl TryFrom<wire::TableMapping> for TableSpec {
    type Error = ProtocolError;

    fn try_from(mapping: wire::TableMapping) -> Result<Self, ProtocolError> {
        let mut checker = Checker::default();
        let table = read_tables(&mut checker, vec![mapping]).pop();
        checker.finish(table)
    }
}

impl TryFrom<wire::PostgresSource> for PostgresSource {
    type Error = ProtocolError;

    fn try_from(source: wire::PostgresSource) -> Result<Self, ProtocolError> {
        let mut checker = Checker::default();
        let source = read_source(&mut checker, "", source);
        checker.finish(source)
    }
}

/// A specification of which only some tables are named, perhaps none: as an assignment carries it.
pub(crate) fn read_partial(spec: wire::PipeSpec) -> Result<PipeSpec, ProtocolError> {
    read(spec, false)
}

fn read(spec: wire::PipeSpec, tables_required: bool) -> Result<PipeSpec, ProtocolError> {
    let mut checker = Checker::default();
    let name = if spec.name.is_empty() {
        checker.refuse("name", "missing");
        None
    } else {
        checker.accept("name", spec.name.parse::<PipeName>())
    };
    let mode = match spec.replication_mode() {
        wire::ReplicationMode::Cdc => Some(ReplicationMode::Cdc),
        wire::ReplicationMode::Snapshot => Some(ReplicationMode::Snapshot),
        wire::ReplicationMode::CdcOnly => Some(ReplicationMode::CdcOnly),
        wire::ReplicationMode::Unspecified => {
            checker.refuse("replicationMode", "missing or unknown; expected cdc, snapshot or cdc_only");
            None
        }
    };
    let source = match spec.source {
        Some(source) => read_source(&mut checker, "source", source),
        None => refused(&mut checker, "source", "missing"),
    };
    let destination = match spec.destination {
        Some(destination) => read_destination(&mut checker, "destination", destination),
        None => refused(&mut checker, "destination", "missing"),
    };
    if tables_required && spec.tables.is_empty() {
        checker.refuse("tables", "missing; name at least one table");
    }
    let tables = read_tables(&mut checker, spec.tables);
    let sharded = destination.as_ref().and_then(|one| one.cluster.as_ref()).is_some_and(|one| one.sharded);
    check_sharding(&mut checker, &tables, sharded);
    let settings = read_settings(&mut checker, spec.settings.unwrap_or_default());
    let read = || {
        Some(PipeSpec {
            name: name?,
            mode: mode?,
            source: source?,
            destination: destination?,
            tables,
            settings: settings?,
        })
    };
    checker.finish(read())
}

fn refused<T>(checker: &mut Checker, field: &str, message: &str) -> Option<T> {
    checker.refuse(field, message);
    None
}

/// Refuses an empty text, and a NUL byte, which neither database takes.
fn demand_text(checker: &mut Checker, field: &str, text: &str) {
    checker.demand(!text.is_empty(), field, || "missing".to_owned());
    demand_no_nul(checker, field, text);
}

fn demand_no_nul(checker: &mut Checker, field: &str, text: &str) {
    checker.demand(!text.contains('\0'), field, || "holds a NUL byte".to_owned());
}

fn read_source(checker: &mut Checker, outer: &str, source: wire::PostgresSource) -> Option<PostgresSource> {
    let at = |field: &str| joined(outer, field);
    demand_text(checker, &at("host"), &source.host);
    checker
        .demand(!source.host.contains(char::is_whitespace), &at("host"), || "holds white space".to_owned());
    demand_text(checker, &at("database"), &source.database);
    demand_text(checker, &at("username"), &source.username);
    demand_no_nul(checker, &at("password"), &source.password);
    let port = match u16::try_from(source.port) {
        Ok(0) => Some(POSTGRES_PORT),
        Ok(port) => Some(port),
        Err(_) => {
            refused(checker, &at("port"), &format!("{} is not a port; expected 1 to 65535", source.port))
        }
    };
    let tls_mode = match wire::TlsMode::try_from(source.tls_mode) {
        Ok(wire::TlsMode::Disable) => Some(TlsMode::Disable),
        Ok(wire::TlsMode::Prefer | wire::TlsMode::Unspecified) => Some(TlsMode::Prefer),
        Ok(wire::TlsMode::Require) => Some(TlsMode::Require),
        Ok(wire::TlsMode::VerifyCa) => Some(TlsMode::VerifyCa),
        Ok(wire::TlsMode::VerifyFull) => Some(TlsMode::VerifyFull),
        Err(_) => refused(checker, &at("tlsMode"), &format!("{} is not known", source.tls_mode)),
    };
    let tls_ca = (!source.tls_ca.is_empty()).then_some(source.tls_ca);
    if let Some(pem) = &tls_ca {
        checker.demand(pem.contains("-----BEGIN CERTIFICATE-----"), &at("tlsCa"), || {
            "holds no PEM certificate".to_owned()
        });
        let checks = matches!(tls_mode, Some(TlsMode::VerifyCa | TlsMode::VerifyFull) | None);
        checker.demand(checks, &at("tlsCa"), || {
            "has no use here: only the modes verify-ca and verify-full check certificates".to_owned()
        });
    }
    Some(PostgresSource {
        host: source.host,
        port: port?,
        database: source.database,
        username: source.username,
        password: Secret::new(source.password),
        tls_mode: tls_mode?,
        tls_ca,
    })
}

fn read_destination(
    checker: &mut Checker,
    outer: &str,
    destination: wire::ClickHouseDestination,
) -> Option<ClickHouseDestination> {
    let at = |field: &str| joined(outer, field);
    if destination.url.is_empty() {
        checker.refuse(at("url"), "missing");
    } else if let Err(message) = check_url(&destination.url) {
        checker.refuse(at("url"), message);
    }
    demand_text(checker, &at("database"), &destination.database);
    demand_no_nul(checker, &at("username"), &destination.username);
    demand_no_nul(checker, &at("password"), &destination.password);
    let cluster = destination.cluster.map(|cluster| read_cluster(checker, &at("cluster"), cluster));
    let username =
        if destination.username.is_empty() { CLICKHOUSE_USER.to_owned() } else { destination.username };
    Some(ClickHouseDestination {
        url: destination.url,
        database: destination.database,
        username,
        password: Secret::new(destination.password),
        cluster,
    })
}

fn read_cluster(checker: &mut Checker, outer: &str, cluster: wire::ClickHouseCluster) -> Cluster {
    demand_text(checker, &joined(outer, "name"), &cluster.name);
    let replicated = cluster.replicated.unwrap_or(true);
    let sharded = cluster.sharded.unwrap_or(false);
    checker.demand(replicated || sharded, outer, || {
        "is neither replicated nor sharded; leave it out for a single host".to_owned()
    });
    let quorum = cluster.insert_quorum;
    checker.demand(quorum == 0 || replicated, &joined(outer, "insertQuorum"), || {
        "has no use where nothing is replicated".to_owned()
    });
    Cluster { name: cluster.name, replicated, sharded, insert_quorum: quorum }
}

/// Whether the text is the address of a ClickHouse HTTP interface. The text itself is not repeated: it may hold a password.
fn check_url(text: &str) -> Result<(), String> {
    let url = Url::parse(text)
        .map_err(|error| format!("not a URL ({error}); expected http://host:8123 or https://host:8443"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("'{}' is not spoken; expected http:// or https://", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or password; give them as username and password".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("holds more than an address; leave out what follows '?' or '#'".to_owned());
    }
    Ok(())
}

fn read_tables(checker: &mut Checker, mappings: Vec<wire::TableMapping>) -> Vec<TableSpec> {
    let mut sources: HashMap<TableName, usize> = HashMap::new();
    let mut targets: HashMap<String, (usize, wire::TableMapping)> = HashMap::new();
    let mut tables = Vec::with_capacity(mappings.len());
    for (index, mapping) in mappings.into_iter().enumerate() {
        let at = |field: &str| format!("tables[{index}].{field}");
        let Some(source) = read_table_name(checker, &at("source"), &mapping.source) else { continue };
        if let Some(first) = sources.get(&source) {
            checker.refuse(at("source"), format!("{source} is listed already, as tables[{first}]"));
            continue;
        }
        sources.insert(source.clone(), index);
        let target = if mapping.target.is_empty() { source.default_target() } else { mapping.target.clone() };
        demand_no_nul(checker, &at("target"), &target);
        // Several sources may feed one destination, which is then made once.
        if let Some((first, like)) = targets.get(&target) {
            let alike = like.table_engine == mapping.table_engine
                && like.partition_by_expr == mapping.partition_by_expr
                && like.sharding_expr == mapping.sharding_expr
                && like.sorting_keys == mapping.sorting_keys;
            checker.demand(alike, &at("target"), || {
                format!(
                    "'{target}' is the destination of tables[{first}] too; tableEngine, sortingKeys, partitionByExpr and shardingExpr must be the same for both"
                )
            });
        }
        targets.entry(target.clone()).or_insert_with(|| (index, mapping.clone()));
        check_columns(checker, &at("excludedColumns"), &mapping.excluded_columns);
        check_columns(checker, &at("sortingKeys"), &mapping.sorting_keys);
        for (position, column) in mapping.sorting_keys.iter().enumerate() {
            let excluded = !column.is_empty() && mapping.excluded_columns.contains(column);
            checker.demand(!excluded, &format!("tables[{index}].sortingKeys[{position}]"), || {
                format!("'{column}' is an excluded column")
            });
        }
        let engine = known(checker, &at("tableEngine"), mapping.table_engine, read_engine);
        demand_no_nul(checker, &at("partitionByExpr"), &mapping.partition_by_expr);
        demand_no_nul(checker, &at("shardingExpr"), &mapping.sharding_expr);
        let column_types: BTreeMap<String, String> = mapping.column_types.into_iter().collect();
        for (column, column_type) in &column_types {
            let field = format!("tables[{index}].columnTypes.{column}");
            demand_text(checker, &field, column);
            demand_text(checker, &field, column_type);
            checker.demand(!mapping.excluded_columns.contains(column), &field, || {
                format!("'{column}' is an excluded column")
            });
        }
        let mut out_of_range = BTreeMap::new();
        for (column, policy) in mapping.out_of_range {
            let field = format!("tables[{index}].outOfRange.{column}");
            demand_text(checker, &field, &column);
            if let Some(policy) = known(checker, &field, policy, read_out_of_range) {
                out_of_range.insert(column, policy);
            }
        }
        tables.push(TableSpec {
            source,
            target,
            excluded_columns: mapping.excluded_columns,
            sorting_keys: mapping.sorting_keys,
            engine: engine.unwrap_or_default(),
            partition_by: Some(mapping.partition_by_expr).filter(|expression| !expression.is_empty()),
            sharding: Some(mapping.sharding_expr).filter(|expression| !expression.is_empty()),
            column_types,
            out_of_range,
        });
    }
    tables
}

/// A sharding expression needs shards; behind a sharded table stands another of its name with `_local`.
fn check_sharding(checker: &mut Checker, tables: &[TableSpec], sharded: bool) {
    for (index, table) in tables.iter().enumerate() {
        checker.demand(table.sharding.is_none() || sharded, &format!("tables[{index}].shardingExpr"), || {
            "has no use without destination.clickhouse.cluster.sharded".to_owned()
        });
        let local = tables.iter().position(|other| format!("{}_local", other.target) == table.target);
        checker.demand(local.is_none() || !sharded, &format!("tables[{index}].target"), || {
            let of = local.unwrap_or_default();
            format!("'{}' is the name of the local tables behind the target of tables[{of}]", table.target)
        });
    }
}

/// An enum's value; one that this release does not know is refused.
fn known<T>(
    checker: &mut Checker,
    field: &str,
    value: i32,
    read: impl FnOnce(i32) -> Option<T>,
) -> Option<T> {
    let read = read(value);
    checker.demand(read.is_some(), field, || format!("{value} is not known to this release"));
    read
}

fn read_table_name(checker: &mut Checker, field: &str, text: &str) -> Option<TableName> {
    if text.is_empty() {
        return refused(checker, field, "missing");
    }
    let name = checker.accept(field, text.parse::<TableName>())?;
    // Quoted, a table may well have that name.
    if name.name == "*" && !text.ends_with('"') {
        return refused(checker, field, "whole schemas are not supported by this release; name each table");
    }
    demand_no_nul(checker, field, text);
    Some(name)
}

/// Column names: not empty, each once.
fn check_columns(checker: &mut Checker, field: &str, columns: &[String]) {
    for (position, column) in columns.iter().enumerate() {
        let at = format!("{field}[{position}]");
        demand_text(checker, &at, column);
        checker.demand(!columns[..position].contains(column), &at, || format!("'{column}' is listed twice"));
    }
}

fn read_settings(checker: &mut Checker, settings: wire::PipeSettings) -> Option<PipeSettings> {
    let defaults = PipeSettings::default();
    let sync_interval = match &settings.sync_interval {
        None => Some(defaults.sync_interval),
        Some(interval) => {
            let interval = time::read_duration(interval)
                .filter(|interval| (SYNC_INTERVAL.0..=SYNC_INTERVAL.1).contains(interval));
            if interval.is_none() {
                checker.refuse("settings.syncInterval", "out of range; expected 1ms to 1h");
            }
            interval
        }
    };
    let verify_every =
        settings.verify_every.as_ref().and_then(time::read_duration).filter(|every| !every.is_zero());
    checker.demand(verify_every.is_none_or(|every| every >= VERIFY_EVERY), "settings.verifyEvery", || {
        "out of range; expected at least 1m, or nothing for never".to_owned()
    });
    let worker_selector = Labels::new(settings.worker_selector).unwrap_or_else(|error| {
        checker.refuse("settings.workerSelector", error.to_string());
        Labels::default()
    });
    let mut at_least = |field: &str, value: Option<u32>, default: u32, least: u32| {
        let value = value.unwrap_or(default);
        checker.demand(value >= least, &format!("settings.{field}"), || {
            format!("{value} is out of range; expected at least {least}")
        });
        value
    };
    let pull_batch_size = at_least("pullBatchSize", settings.pull_batch_size, defaults.pull_batch_size, 1);
    let max_source_connections =
        at_least("maxSourceConnections", settings.max_source_connections, defaults.max_source_connections, 1);
    let snapshot_rows_per_partition = at_least(
        "snapshotNumRowsPerPartition",
        settings.snapshot_num_rows_per_partition,
        defaults.snapshot_rows_per_partition,
        LEAST_ROWS_PER_PARTITION,
    );
    let snapshot_parallel_tables = at_least(
        "snapshotNumberOfParallelTables",
        settings.snapshot_number_of_parallel_tables,
        defaults.snapshot_parallel_tables,
        1,
    );
    let publication_name = Some(settings.publication_name).filter(|name| !name.is_empty());
    if let Some(name) = &publication_name {
        let valid = name.len() <= LONGEST_NAME && !name.contains('\0');
        checker.demand(valid, "settings.publicationName", || {
            "cannot be a publication's name; expected at most 63 bytes without NUL".to_owned()
        });
    }
    let replication_slot_name = Some(settings.replication_slot_name).filter(|name| !name.is_empty());
    if let Some(name) = &replication_slot_name {
        // PostgreSQL manual: "Querying and Manipulating Replication Slots".
        let valid = name.len() <= LONGEST_NAME
            && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        checker.demand(valid, "settings.replicationSlotName", || {
            format!("'{name}' cannot be a slot's name; expected at most 63 of a to z, 0 to 9 and _")
        });
    }
    let metadata_columns = settings.metadata_columns.map_or(defaults.metadata_columns, |columns| {
        let columns = MetadataColumns {
            version: columns.version,
            is_deleted: columns.is_deleted,
            synced_at: columns.synced_at,
        };
        let named = [
            ("version", &columns.version),
            ("isDeleted", &columns.is_deleted),
            ("syncedAt", &columns.synced_at),
        ];
        for (position, (field, name)) in named.iter().enumerate() {
            let at = format!("settings.metadataColumns.{field}");
            demand_text(checker, &at, name);
            let distinct = name.is_empty() || named[..position].iter().all(|(_, other)| other != name);
            checker.demand(distinct, &at, || format!("'{name}' names another metadata column"));
        }
        columns
    });
    let schema_changes =
        known(checker, "settings.schemaChanges", settings.schema_changes, read_schema_changes);
    let truncate = known(checker, "settings.truncate", settings.truncate, read_truncate);
    let out_of_range = known(checker, "settings.outOfRange", settings.out_of_range, read_out_of_range);
    Some(PipeSettings {
        sync_interval: sync_interval?,
        pull_batch_size,
        initial_load_parallelism: settings
            .initial_load_parallelism
            .unwrap_or(defaults.initial_load_parallelism),
        max_source_connections,
        snapshot_rows_per_partition,
        snapshot_parallel_tables,
        publication_name,
        replication_slot_name,
        allow_nullable_columns: settings.allow_nullable_columns.unwrap_or(defaults.allow_nullable_columns),
        metadata_columns,
        delete_on_merge: settings.delete_on_merge.unwrap_or(defaults.delete_on_merge),
        schema_changes: schema_changes?,
        truncate: truncate?,
        out_of_range: out_of_range?,
        enable_failover_slots: settings.enable_failover_slots.unwrap_or(defaults.enable_failover_slots),
        max_held_wal: settings.max_held_wal_bytes.unwrap_or(defaults.max_held_wal),
        verify_every,
        verify_rows_per_second: settings.verify_rows_per_second.unwrap_or(defaults.verify_rows_per_second),
        worker_selector,
    })
}

/// Shows whether there is a password, not which.
impl fmt::Debug for wire::PostgresSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSource")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("database", &self.database)
            .field("username", &self.username)
            .field("password", &Secret::new(self.password.as_str()))
            .field("tls_mode", &self.tls_mode())
            .field("tls_ca", &self.tls_ca)
            .finish()
    }
}

/// Shows whether there is a password, not which.
impl fmt::Debug for wire::ClickHouseDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClickHouseDestination")
            .field("url", &self.url)
            .field("database", &self.database)
            .field("username", &self.username)
            .field("password", &Secret::new(self.password.as_str()))
            .field("cluster", &self.cluster)
            .finish()
    }
}
