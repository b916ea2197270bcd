//! What stands in a pipe's way at its source: everything at once, each with the statement that mends it.

use std::collections::BTreeSet;

use millrace_model::spec::{PostgresSource, ReplicationMode, TableEngine, TableSpec};
use millrace_model::{PipeId, PipeSpec, Problem, ReplicaIdentity, Severity, TableDefinition, TableName};

use crate::classification::classify;
use crate::discovery::{self, Found, Kind};
use crate::error::Error;
use crate::publication;
use crate::quoting::{quote_identifier, quote_literal, quote_table};
use crate::replication::identify_system;
use crate::session::{Session, get};

/// Older servers lack ranges over ctid and the binary stream.
const OLDEST: i32 = 140_000;

/// From here on slots can be synchronised to standbys.
const FAILOVER_SLOTS: i32 = 170_000;

/// How looks are named at the source.
const APPLICATION: &str = "millrace";

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// `IDENTIFY_SYSTEM`'s systemid; 0 where the source could not be reached.
    pub system_identifier: u64,
    /// `server_version_num`; 0 where the source could not be reached.
    pub server_version: u32,
    /// Tables of the specification that can be copied, without their excluded columns, in the order of the specification.
    pub tables: Vec<TableDefinition>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

/// Server, role and limits.
struct Facts {
    version: i32,
    wal_level: String,
    in_recovery: bool,
    role: String,
    free_slots: i64,
    may_create: bool,
    database: String,
    /// `max_slot_wal_keep_size` in MiB; -1 is without limit.
    wal_keep: i64,
    /// Whether the stream waits for standbys (`synchronized_standby_slots`, PostgreSQL 17 and later).
    waits_for_standbys: bool,
}

/// Looks at the source as a pipe would use it. `pipe` is the pipe that exists already, whose own slot and publication are not in its way.
pub async fn inspect(spec: &PipeSpec, pipe: Option<&PipeId>) -> Inspection {
    let mut inspection = Inspection::default();
    // What stopped the look is one problem more; those that were found before stay.
    if let Err(error) = look(spec, pipe, &mut inspection).await {
        inspection.problems.push(classify(&error));
    }
    inspection
}

async fn look(spec: &PipeSpec, pipe: Option<&PipeId>, inspection: &mut Inspection) -> Result<(), Error> {
    let session = Session::connect(&spec.source, APPLICATION).await?;
    let facts = facts(&session).await?;
    inspection.server_version = u32::try_from(facts.version).unwrap_or(0);
    inspection.problems = server_problems(spec, pipe, &facts);
    if facts.version < OLDEST {
        // Its catalogs look different.
        return Ok(());
    }
    match spec.mode {
        ReplicationMode::Snapshot => inspection.system_identifier = session.system_identifier().await?,
        ReplicationMode::Cdc | ReplicationMode::CdcOnly => {
            match identify_system(&spec.source, APPLICATION).await {
                Ok(identity) => inspection.system_identifier = identity.system_identifier,
                Err(error) => inspection.problems.push(replication_problem(&error, &facts.role)),
            }
        }
    }
    let names: Vec<TableName> = spec.tables.iter().map(|table| table.source.clone()).collect();
    let found = discovery::find(&session, &names).await?;
    for table in &spec.tables {
        match found.iter().find(|found| found.definition.name == table.source) {
            None => inspection.problems.push(missing(&table.source)),
            Some(found) => {
                let wrong = table_problems(spec, table, found, &facts.role);
                if wrong.iter().all(|problem| problem.severity == Severity::Warning) {
                    inspection.tables.push(without_excluded(&found.definition, table));
                }
                inspection.problems.extend(wrong);
            }
        }
    }
    if spec.mode.follows() {
        if spec.mode.copies() {
            inspection.problems.extend(wal_keep_warning(&facts, &inspection.tables));
        }
        match &spec.settings.publication_name {
            Some(name) => {
                let wrong =
                    publication::problems(&session, name, spec, &found, inspection.server_version).await?;
                inspection.problems.extend(wrong);
            }
            None => inspection.problems.extend(creation_problems(spec, &facts, &found)),
        }
        if let Some(name) = &spec.settings.replication_slot_name
            && pipe.is_none()
        {
            if spec.mode.copies() {
                inspection.problems.extend(slot_name_taken(&session, name).await?);
            } else if let Err(error) = session.require_usable_slot(name).await {
                inspection.problems.push(classify(&error));
            }
        }
    }
    Ok(())
}

/// All tables of a source, each with what would stand in its way.
///
/// # Errors
/// The source cannot be reached, or refuses.
pub async fn offered_tables(source: &PostgresSource) -> Result<Vec<(TableDefinition, Vec<Problem>)>, Error> {
    let session = Session::connect(source, APPLICATION).await?;
    let found = discovery::list(&session).await?;
    let offered = |found: Found| {
        let mut problems = readability(&found, &[], &source.username);
        problems.extend(keyless(&found).or_else(|| identity_problem(&found)));
        problems.extend(unlogged(&found));
        (found.definition, problems)
    };
    Ok(found.into_iter().map(offered).collect())
}

async fn facts(session: &Session) -> Result<Facts, Error> {
    let what = "to tell what it is";
    let sql = "SELECT current_setting('server_version_num')::int, current_setting('wal_level'), pg_is_in_recovery(), \
                 current_user::text, \
                 current_setting('max_replication_slots')::bigint - (SELECT count(*) FROM pg_replication_slots), \
                 has_database_privilege(current_database(), 'CREATE'), current_database()::text, \
                 coalesce((SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), -1), \
                 coalesce(current_setting('synchronized_standby_slots', true), '') <> ''";
    let rows = session.rows(what, sql, &[]).await?;
    let row = rows.first().ok_or_else(|| Error::Protocol("no facts about the server".to_owned()))?;
    Ok(Facts {
        version: get(row, 0, what)?,
        wal_level: get(row, 1, what)?,
        in_recovery: get(row, 2, what)?,
        role: get(row, 3, what)?,
        free_slots: get(row, 4, what)?,
        may_create: get(row, 5, what)?,
        database: get(row, 6, what)?,
        wal_keep: get(row, 7, what)?,
        waits_for_standbys: get(row, 8, what)?,
    })
}

fn server_problems(spec: &PipeSpec, pipe: Option<&PipeId>, facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    if facts.version < OLDEST {
        let message = format!(
            "the source is PostgreSQL {}; 14 is the oldest that is supported",
            facts.version / 10_000
        );
        problems.push(Problem::operator("SOURCE_VERSION", message, "upgrade the source"));
    }
    if spec.mode == ReplicationMode::Snapshot {
        return problems;
    }
    if facts.wal_level != "logical" {
        problems.push(Problem::operator(
            "SOURCE_WAL_LEVEL",
            format!("wal_level is '{}'; changes can only be followed with 'logical'", facts.wal_level),
            "run ALTER SYSTEM SET wal_level = logical and restart PostgreSQL",
        ));
    }
    if facts.in_recovery {
        problems.push(Problem::operator(
            "SOURCE_IS_STANDBY",
            "the source is a standby, where no publication can be made",
            "point the pipe at the primary, or use replicationMode: snapshot",
        ));
    }
    if spec.settings.enable_failover_slots && facts.version < FAILOVER_SLOTS {
        problems.push(Problem::operator(
            "SOURCE_NO_FAILOVER_SLOTS",
            format!(
                "the source is PostgreSQL {}, which cannot synchronise slots to standbys",
                facts.version / 10_000
            ),
            "upgrade the source to 17 or later, or leave enableFailoverSlots out",
        ));
    }
    if spec.settings.enable_failover_slots && facts.version >= FAILOVER_SLOTS && !facts.waits_for_standbys {
        problems.push(Problem::warning(
            "SOURCE_OUTRUNS_STANDBYS",
            "synchronized_standby_slots is empty, so changes are carried that a standby may lack when it is promoted; \
             the pipe would have to be copied anew then",
            "set synchronized_standby_slots to the names of the standbys' physical slots and reload",
        ));
    }
    let gives_slot = !spec.mode.copies() && spec.settings.replication_slot_name.is_some();
    if pipe.is_none() && !gives_slot && facts.free_slots < 1 {
        problems.push(Problem::operator(
            "SOURCE_OUT_OF_SLOTS",
            "max_replication_slots is used up",
            "raise max_replication_slots and restart PostgreSQL, or drop slots that nobody reads",
        ));
    }
    problems
}

/// Why a replication connection could not be had, though a session could.
fn replication_problem(error: &Error, role: &str) -> Problem {
    let problem = classify(error);
    match problem.code.as_str() {
        "SOURCE_PERMISSION_DENIED" => Problem::operator(
            "SOURCE_PERMISSION_DENIED",
            format!("role {role} lacks REPLICATION, which reading changes needs"),
            format!("run ALTER ROLE {} REPLICATION", quote_identifier(role)),
        ),
        "SOURCE_OUT_OF_RESOURCES" => Problem::operator(
            "SOURCE_OUT_OF_SLOTS",
            format!("no replication connection is free: {}", problem.message),
            "raise max_wal_senders and restart PostgreSQL, or end replication connections that nobody needs",
        ),
        _ => Problem {
            message: format!("a replication connection cannot be opened: {}", problem.message),
            ..problem
        },
    }
}

/// The slot keeps the log while tables are copied; how much that will be depends on others, so this is a guess: as much as the tables are.
fn wal_keep_warning(facts: &Facts, tables: &[TableDefinition]) -> Option<Problem> {
    let keep = u64::try_from(facts.wal_keep).ok()? << 20;
    let bytes: u64 = tables.iter().map(|table| table.bytes).sum();
    (bytes > keep).then(|| {
        let mib = bytes >> 20;
        Problem::warning(
            "SOURCE_WAL_KEEP_SIZE",
            format!(
                "max_slot_wal_keep_size is {} MB and the tables take {mib} MB: if the source writes more than the former while they are copied, the slot is lost",
                facts.wal_keep
            ),
            "run ALTER SYSTEM SET max_slot_wal_keep_size = -1 and SELECT pg_reload_conf(), at least until the copy is done",
        )
    })
}

fn missing(table: &TableName) -> Problem {
    let remedy = "check schema and name; names with capitals or dots are quoted as in SQL";
    Problem::operator("SOURCE_TABLE_MISSING", "there is no such table at the source", remedy).of_table(table)
}

fn table_problems(spec: &PipeSpec, table: &TableSpec, found: &Found, role: &str) -> Vec<Problem> {
    let name = &table.source;
    if let Kind::Other(kind) = found.kind {
        let message = format!("it is {kind}, which cannot be copied");
        let remedy = "name the tables it draws from instead";
        return vec![Problem::operator("SOURCE_NOT_A_TABLE", message, remedy).of_table(name)];
    }
    let mut problems = readability(found, &table.excluded_columns, role);
    let columns: BTreeSet<&str> =
        found.definition.columns.iter().map(|column| column.name.as_str()).collect();
    for (names, what) in [(&table.excluded_columns, "excludedColumns"), (&table.sorting_keys, "sortingKeys")]
    {
        for column in names.iter().filter(|column| !columns.contains(column.as_str())) {
            let message = format!("{what} names column {column:?}, which the table does not have");
            problems.push(
                Problem::operator("COLUMN_MISSING", message, "correct the name or leave it out")
                    .of_table(name),
            );
        }
    }
    let key = &found.definition.key;
    for column in key.iter().filter(|column| table.excluded_columns.contains(column)) {
        let message = format!(
            "column {column:?} is part of the key, by which rows are told apart, and cannot be excluded"
        );
        problems.push(
            Problem::operator("KEY_EXCLUDED", message, "leave it out of excludedColumns").of_table(name),
        );
    }
    if !table.sorting_keys.is_empty() {
        for column in key.iter().filter(|column| !table.sorting_keys.contains(column)) {
            let message = format!(
                "sortingKeys lacks {column:?}, which is part of the key: rows would vanish in merges"
            );
            problems.push(
                Problem::operator("SORTING_KEY_LACKS_KEY", message, "add it to sortingKeys").of_table(name),
            );
        }
        let further = table.sorting_keys.iter().any(|column| !key.contains(column));
        if further && spec.mode.follows() && found.definition.replica_identity != ReplicaIdentity::Full {
            problems.push(
                Problem::operator(
                    "SORTING_KEY_NOT_IN_IDENTITY",
                    "sortingKeys has columns beyond the key, whose old values the change stream does not carry",
                    format!("run ALTER TABLE {} REPLICA IDENTITY FULL", quote_table(name)),
                )
                .of_table(name),
            );
        }
    }
    // Only a ReplacingMergeTree must tell rows apart.
    let tells_apart = table.engine == TableEngine::ReplacingMergeTree;
    let keyless = keyless(found).filter(|_| table.sorting_keys.is_empty() && tells_apart);
    if spec.mode.follows() {
        // A key would mend both.
        problems.extend(keyless.or_else(|| identity_problem(found)));
        problems.extend(unlogged(found));
        problems.extend(partitioned(found));
        problems.extend(other_layout(found));
    } else {
        problems.extend(keyless);
    }
    problems
}

/// What happens to partitions as such is not in the log.
fn partitioned(found: &Found) -> Option<Problem> {
    (found.kind == Kind::Partitioned).then(|| {
        let message = "changes of its rows are streamed, but not that a partition which holds rows is attached, detached, dropped or truncated by itself: the table is set aside then";
        let remedy = "attach partitions while they are empty, and delete rows before a partition is detached or dropped";
        Problem::warning("PARTITIONS_CHANGED", message, remedy).of_table(&found.definition.name)
    })
}

/// pgoutput before 15 frees the map from a partition's columns to the table's whenever the partition's definition is invalidated, also between
/// making and using it, and then sends the partition's values under the table's columns (`rel_sync_cache_relation_cb` of its source).
fn other_layout(found: &Found) -> Option<Problem> {
    let partitions = &found.partitions_of_other_layout;
    (!partitions.is_empty()).then(|| {
        let message = format!(
            "PostgreSQL before 15 may send values under the wrong columns for partitions whose columns stand in another order than the table's: {}",
            partitions.join(", ")
        );
        let remedy = "make these partitions anew with CREATE TABLE ... PARTITION OF, or name the partitions as tables, or upgrade the source";
        Problem::operator("SOURCE_PARTITION_LAYOUT", message, remedy).of_table(&found.definition.name)
    })
}

fn unlogged(found: &Found) -> Option<Problem> {
    let name = &found.definition.name;
    found.unlogged.then(|| {
        let message = "it is unlogged or temporary, so its changes are not in the log";
        let remedy = format!("run ALTER TABLE {} SET LOGGED", quote_table(name));
        Problem::operator("SOURCE_TABLE_UNLOGGED", message, remedy).of_table(name)
    })
}

/// Rows, columns and schemas that the role cannot see.
fn readability(found: &Found, excluded: &[String], role: &str) -> Vec<Problem> {
    let name = &found.definition.name;
    let mut problems = Vec::new();
    let role = quote_identifier(role);
    if !found.schema_usable {
        let message = format!("schema {} may not be used", quote_identifier(&name.schema));
        let remedy = format!("run GRANT USAGE ON SCHEMA {} TO {role}", quote_identifier(&name.schema));
        problems.push(Problem::operator("SOURCE_PERMISSION_DENIED", message, remedy).of_table(name));
    }
    let unreadable: Vec<&String> =
        found.unreadable.iter().filter(|column| !excluded.contains(column)).collect();
    if !unreadable.is_empty() {
        let all = found.unreadable.len() == found.definition.columns.len();
        let message = if all {
            "it may not be read".to_owned()
        } else {
            let columns: Vec<String> = unreadable.iter().map(|column| format!("{column:?}")).collect();
            format!("columns {} may not be read", columns.join(", "))
        };
        let remedy = format!(
            "run GRANT SELECT ON {} TO {role}, or name the columns under excludedColumns",
            quote_table(name)
        );
        problems.push(Problem::operator("SOURCE_PERMISSION_DENIED", message, remedy).of_table(name));
    }
    if found.hides_rows {
        let message = "row-level security would hide rows without a word";
        let remedy = format!("run ALTER ROLE {role} BYPASSRLS");
        problems.push(Problem::operator("SOURCE_ROWS_HIDDEN", message, remedy).of_table(name));
    }
    problems
}

/// Nothing tells its rows apart, and equal rows would become one.
fn keyless(found: &Found) -> Option<Problem> {
    let name = &found.definition.name;
    found.definition.key.is_empty().then(|| {
        Problem::operator(
            "KEY_MISSING",
            "it has no primary key and no replica identity index, so rows cannot be told apart",
            format!(
                "add a primary key, or a unique index on NOT NULL columns and ALTER TABLE {} REPLICA IDENTITY USING INDEX",
                quote_table(name)
            ),
        )
        .of_table(name)
    })
}

/// Updates and deletes that the source would refuse once the table is published.
fn identity_problem(found: &Found) -> Option<Problem> {
    let name = &found.definition.name;
    let quoted = quote_table(name);
    let problem = |message: String, remedy: String| {
        Some(Problem::operator("SOURCE_REPLICA_IDENTITY_MISSING", message, remedy).of_table(name))
    };
    if !found.partitions_without_identity.is_empty() {
        let partitions = &found.partitions_without_identity;
        let message = format!(
            "partitions without a replica identity, whose updates and deletes cannot be published: {}",
            partitions.join(", ")
        );
        let statements: Vec<String> = partitions
            .iter()
            .map(|partition| format!("ALTER TABLE {partition} REPLICA IDENTITY FULL"))
            .collect();
        return problem(message, format!("run {}", statements.join("; ")));
    }
    match found.definition.replica_identity {
        // A partitioned table has no rows; what counts are its partitions.
        _ if found.kind == Kind::Partitioned => None,
        ReplicaIdentity::Full => None,
        ReplicaIdentity::Nothing => problem(
            "its replica identity is NOTHING, so updates and deletes cannot be published".to_owned(),
            format!("run ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT"),
        ),
        ReplicaIdentity::Default | ReplicaIdentity::Index if found.definition.key.is_empty() => problem(
            "it has no replica identity, so updates and deletes cannot be published".to_owned(),
            format!("run ALTER TABLE {quoted} REPLICA IDENTITY FULL, or add a primary key"),
        ),
        ReplicaIdentity::Default | ReplicaIdentity::Index => None,
    }
}

/// Whether a publication of our own could be made.
fn creation_problems(spec: &PipeSpec, facts: &Facts, found: &[Found]) -> Vec<Problem> {
    let role = quote_identifier(&facts.role);
    let tables: Vec<String> = spec.tables.iter().map(|table| quote_table(&table.source)).collect();
    let instead = format!(
        "let an owner run CREATE PUBLICATION millrace FOR TABLE {} WITH (publish_via_partition_root = true), and name it as settings.publicationName",
        tables.join(", ")
    );
    let mut problems = Vec::new();
    if !facts.may_create {
        let message =
            format!("role {} may not create a publication in database {}", facts.role, facts.database);
        let remedy = format!(
            "run GRANT CREATE ON DATABASE {} TO {role}; or {instead}",
            quote_identifier(&facts.database)
        );
        problems.push(Problem::operator("SOURCE_PERMISSION_DENIED", message, remedy));
    }
    for found in found.iter().filter(|found| !found.owned && !matches!(found.kind, Kind::Other(_))) {
        let name = &found.definition.name;
        let message = format!("role {} does not own it and so cannot add it to a publication", facts.role);
        problems.push(Problem::operator("SOURCE_NOT_OWNER", message, instead.clone()).of_table(name));
    }
    problems
}

async fn slot_name_taken(session: &Session, name: &str) -> Result<Option<Problem>, Error> {
    let sql = "SELECT 1 FROM pg_replication_slots WHERE slot_name = $1";
    let rows = session.rows("to tell about the slot", sql, &[&name]).await?;
    Ok(rows.first().map(|_| {
        let message = format!("replication slot {name} exists already");
        let drop = format!("run SELECT pg_drop_replication_slot({}) if nobody needs it", quote_literal(name));
        Problem::operator("SLOT_EXISTS", message, format!("choose another replicationSlotName, or {drop}"))
    }))
}

fn without_excluded(definition: &TableDefinition, table: &TableSpec) -> TableDefinition {
    let mut definition = definition.clone();
    definition.columns.retain(|column| !table.excluded_columns.contains(&column.name));
    definition
}
