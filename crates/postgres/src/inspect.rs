//! What stands in a pipe's way at its source: everything at once, each with the statement that mends it.

use std::collections::BTreeSet;

use millrace_model::spec::{PostgresSource, ReplicationMode, TableSpec};
use millrace_model::{PipeId, PipeSpec, Problem, ReplicaIdentity, TableDefinition, TableName};

use crate::discovery::{self, Found, Kind};
use crate::error::{Error, classify};
use crate::quoting::{quote_identifier, quote_literal, quote_table};
use crate::session::{Session, get};

/// Older servers lack ranges over ctid and the binary stream.
const OLDEST: i32 = 140_000;

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
    system_identifier: u64,
    version: i32,
    wal_level: String,
    in_recovery: bool,
    role: String,
    may_replicate: bool,
    free_slots: i64,
    free_senders: i64,
    may_create: bool,
    database: String,
}

/// Looks at the source as a pipe would use it. `pipe` is the pipe that exists already, whose own slot and publication are not in its way.
pub async fn inspect(spec: &PipeSpec, pipe: Option<&PipeId>) -> Inspection {
    match look(spec, pipe).await {
        Ok(inspection) => inspection,
        // Without a connection this is all that can be said.
        Err(error) => Inspection { problems: vec![classify(&error)], ..Inspection::default() },
    }
}

async fn look(spec: &PipeSpec, pipe: Option<&PipeId>) -> Result<Inspection, Error> {
    let session = Session::connect(&spec.source, "millrace").await?;
    let facts = facts(&session).await?;
    let mut problems = server_problems(spec, pipe, &facts);
    let names: Vec<TableName> = spec.tables.iter().map(|table| table.source.clone()).collect();
    let found = discovery::find(&session, &names).await?;
    let mut tables = Vec::new();
    for table in &spec.tables {
        match found.iter().find(|found| found.definition.name == table.source) {
            None => problems.push(missing(&table.source)),
            Some(found) => {
                let wrong = table_problems(spec, table, found, &facts.role);
                if wrong.is_empty() {
                    tables.push(without_excluded(&found.definition, table));
                }
                problems.extend(wrong);
            }
        }
    }
    if spec.mode == ReplicationMode::Cdc {
        match &spec.settings.publication_name {
            Some(name) => problems.extend(publication_problems(&session, name, &spec.tables).await?),
            None => problems.extend(creation_problems(spec, &facts, &found)),
        }
        if let Some(name) = &spec.settings.replication_slot_name
            && pipe.is_none()
        {
            problems.extend(slot_name_taken(&session, name).await?);
        }
    }
    Ok(Inspection {
        system_identifier: facts.system_identifier,
        server_version: u32::try_from(facts.version).unwrap_or(0),
        tables,
        problems,
    })
}

/// All tables of a source, each with what would stand in its way.
///
/// # Errors
/// The source cannot be reached, or refuses.
pub async fn offered_tables(source: &PostgresSource) -> Result<Vec<(TableDefinition, Vec<Problem>)>, Error> {
    let session = Session::connect(source, "millrace").await?;
    let found = discovery::list(&session).await?;
    Ok(found
        .into_iter()
        .map(|found| {
            let mut problems = readability(&found, &[], &source.username);
            problems.extend(identity_problem(&found));
            (found.definition, problems)
        })
        .collect())
}

async fn facts(session: &Session) -> Result<Facts, Error> {
    let what = "what it is";
    let sql = "SELECT current_setting('server_version_num')::int, current_setting('wal_level'), pg_is_in_recovery(), \
                 current_user::text, r.rolreplication OR r.rolsuper, \
                 current_setting('max_replication_slots')::bigint - (SELECT count(*) FROM pg_replication_slots), \
                 current_setting('max_wal_senders')::bigint - (SELECT count(*) FROM pg_stat_replication), \
                 has_database_privilege(current_database(), 'CREATE'), current_database()::text \
               FROM pg_roles r WHERE r.rolname = current_user";
    let rows = session.rows(what, sql, &[]).await?;
    let row = rows.first().ok_or_else(|| Error::Protocol("the role is not among pg_roles".to_owned()))?;
    Ok(Facts {
        system_identifier: session.system_identifier().await?,
        version: get(row, 0, what)?,
        wal_level: get(row, 1, what)?,
        in_recovery: get(row, 2, what)?,
        role: get(row, 3, what)?,
        may_replicate: get(row, 4, what)?,
        free_slots: get(row, 5, what)?,
        free_senders: get(row, 6, what)?,
        may_create: get(row, 7, what)?,
        database: get(row, 8, what)?,
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
    if !facts.may_replicate {
        problems.push(Problem::operator(
            "SOURCE_PERMISSION_DENIED",
            format!("role {} lacks REPLICATION, which reading changes needs", facts.role),
            format!("run ALTER ROLE {} REPLICATION", quote_identifier(&facts.role)),
        ));
    }
    if pipe.is_none() {
        for (free, what) in
            [(facts.free_slots, "max_replication_slots"), (facts.free_senders, "max_wal_senders")]
        {
            if free < 1 {
                problems.push(Problem::operator(
                    "SOURCE_OUT_OF_SLOTS",
                    format!("{what} is used up"),
                    format!("raise {what} and restart PostgreSQL, or drop slots that nobody reads"),
                ));
            }
        }
    }
    problems
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
        if further
            && spec.mode == ReplicationMode::Cdc
            && found.definition.replica_identity != ReplicaIdentity::Full
        {
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
    if key.is_empty() && table.sorting_keys.is_empty() {
        problems.push(keyless(name));
    } else if spec.mode == ReplicationMode::Cdc {
        problems.extend(identity_problem(found));
    }
    if spec.mode == ReplicationMode::Cdc && found.unlogged {
        let message = "it is unlogged or temporary, so its changes are not in the log";
        let remedy = format!("run ALTER TABLE {} SET LOGGED", quote_table(name));
        problems.push(Problem::operator("SOURCE_TABLE_UNLOGGED", message, remedy).of_table(name));
    }
    problems
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

fn keyless(name: &TableName) -> Problem {
    Problem::operator(
        "KEY_MISSING",
        "it has no primary key and no replica identity index, so rows cannot be told apart",
        format!(
            "add a primary key, or a unique index on NOT NULL columns and ALTER TABLE {} REPLICA IDENTITY USING INDEX",
            quote_table(name)
        ),
    )
    .of_table(name)
}

/// Updates and deletes that the source would refuse, or publish without saying which row they mean.
fn identity_problem(found: &Found) -> Option<Problem> {
    let name = &found.definition.name;
    match found.definition.replica_identity {
        ReplicaIdentity::Nothing => Some(
            Problem::operator(
                "SOURCE_REPLICA_IDENTITY_MISSING",
                "its replica identity is NOTHING, so updates and deletes cannot be published",
                format!("run ALTER TABLE {} REPLICA IDENTITY DEFAULT", quote_table(name)),
            )
            .of_table(name),
        ),
        _ if found.definition.key.is_empty() => Some(keyless(name)),
        _ => None,
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

/// Whether a publication that was made by somebody else fits.
async fn publication_problems(
    session: &Session,
    name: &str,
    tables: &[TableSpec],
) -> Result<Vec<Problem>, Error> {
    let what = "about the publication";
    let sql =
        "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication WHERE pubname = $1";
    let rows = session.rows(what, sql, &[&name]).await?;
    let quoted = quote_identifier(name);
    let Some(row) = rows.first() else {
        let list: Vec<String> = tables.iter().map(|table| quote_table(&table.source)).collect();
        let remedy = format!(
            "run CREATE PUBLICATION {quoted} FOR TABLE {}, or leave settings.publicationName out",
            list.join(", ")
        );
        let message = format!("publication {name} does not exist");
        return Ok(vec![Problem::operator("PUBLICATION_MISSING", message, remedy)]);
    };
    let mut problems = Vec::new();
    if !get::<bool>(row, 0, what)? {
        let message = format!("publication {name} does not publish every kind of change");
        let remedy =
            format!("run ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate')");
        problems.push(Problem::operator("PUBLICATION_INCOMPLETE", message, remedy));
    }
    let sql = "SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = $1";
    let mut published = BTreeSet::new();
    for row in session.rows(what, sql, &[&name]).await? {
        published.insert(TableName::new(get::<String>(&row, 0, what)?, get::<String>(&row, 1, what)?));
    }
    for table in tables.iter().filter(|table| !published.contains(&table.source)) {
        let remedy = format!("run ALTER PUBLICATION {quoted} ADD TABLE {}", quote_table(&table.source));
        let message = format!("publication {name} does not publish it");
        problems.push(Problem::operator("PUBLICATION_INCOMPLETE", message, remedy).of_table(&table.source));
    }
    Ok(problems)
}

async fn slot_name_taken(session: &Session, name: &str) -> Result<Option<Problem>, Error> {
    let sql = "SELECT 1 FROM pg_replication_slots WHERE slot_name = $1";
    let rows = session.rows("about the slot", sql, &[&name]).await?;
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
