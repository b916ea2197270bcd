//! The handle on one destination: a user, a server and a database.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use clickhouse::Row;
use millrace_mapping::EncodedBlock;
use millrace_model::spec::{ClickHouseDestination, TableEngine};
use millrace_model::{Lsn, PipeId, Problem};
use serde::Deserialize;
use url::form_urlencoded;

use crate::connection::{Connection, ConnectionOptions};
use crate::inspection::{
    ExistingColumn, ExistingTable, NEEDED_RIGHTS, ServerFacts, database_problem, differences, rights_problem,
};
use crate::quoting::{quote_identifier, quote_string};
use crate::table::{create_database_statement, create_table_statement, ownership_comment};
use crate::{Error, Failure, TableRef, TargetTable, classify};

/// ClickHouse's code for a statement that it cannot parse.
const SYNTAX_ERROR: u32 = 62;

/// How often it is asked whether inserts have ended.
const INSERT_POLL: Duration = Duration::from_millis(50);

/// What the query ids of our inserts into a table begin with. The server repeats the id in a header, so only harmless
/// characters are in it.
fn insert_id_prefix(table: &TableRef) -> String {
    let name = table.to_string();
    format!("millrace-insert-{}-", form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>())
}

/// A destination. Clones are cheap and share connections; each call is one or a few HTTP requests, bounded in time.
#[derive(Clone)]
pub struct Destination {
    pub(crate) connection: Connection,
    database: String,
    user: String,
}

/// Identity of one table for as long as it exists: another table under the same name has another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableUuid(String);

impl TableUuid {
    /// In the form `59c300a9-0300-4d98-8eba-f2e2e197541d`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A table that stands ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnsuredTable {
    /// Its identity.
    pub uuid: TableUuid,
    /// Whether it was made just now.
    pub created: bool,
}

impl Destination {
    /// A destination with default options; connects to nobody yet.
    ///
    /// # Errors
    /// [`Error::Address`] where the url is not an HTTP server's.
    pub fn new(destination: &ClickHouseDestination) -> Result<Self, Error> {
        Self::with_options(destination, ConnectionOptions::default())
    }

    /// A destination with options of one's own; connects to nobody yet.
    ///
    /// # Errors
    /// [`Error::Address`] where the url is not an HTTP server's.
    pub fn with_options(
        destination: &ClickHouseDestination,
        options: ConnectionOptions,
    ) -> Result<Self, Error> {
        Ok(Self {
            connection: Connection::new(destination, options)?,
            database: destination.database.clone(),
            user: destination.username.clone(),
        })
    }

    /// The table of that name in the destination's database.
    pub fn table(&self, name: &str) -> TableRef {
        TableRef::new(&self.database, name)
    }

    /// What the server is and allows.
    pub async fn server(&self) -> Result<ServerFacts, Error> {
        let identity = "SELECT version(), serverTimezone()";
        let settings = "SELECT name, value FROM system.settings WHERE name IN \
             ('readonly', 'enable_time_time64_type', 'allow_experimental_time_time64_type')";
        let types = "SELECT name FROM system.data_type_families WHERE name = 'Time64'";
        let Some((version, timezone)) = self.facts::<(String, String)>(identity).await?.pop() else {
            return Err(self.no_facts(vanished()));
        };
        let settings = self.facts::<(String, String)>(settings).await?;
        let (readonly, time64_settings): (Vec<_>, Vec<_>) =
            settings.into_iter().partition(|(name, _)| name == "readonly");
        let time64 = !self.facts::<String>(types).await?.is_empty();
        let allowed = time64_settings.iter().any(|(_, value)| value == "1");
        Ok(ServerFacts {
            version,
            timezone,
            time64,
            // The newer name of two, where there are both.
            time64_setting: time64_settings.into_iter().map(|(name, _)| name).max().filter(|_| !allowed),
            readonly: readonly.first().and_then(|(_, value)| value.parse().ok()).unwrap_or(0),
        })
    }

    /// Everything that stands in the way of making and filling the tables, found without changing anything. Tables that
    /// `owner` made in an earlier try are no hindrance.
    pub async fn inspect(&self, targets: &[TargetTable], owner: Option<&PipeId>) -> Vec<Problem> {
        let mut problems = targets.iter().flat_map(TargetTable::problems).collect::<Vec<_>>();
        match self.server().await {
            Ok(facts) => problems.extend(facts.problems()),
            // Nobody to ask, so nothing further to learn.
            Err(error) => {
                problems.insert(0, classify(&error));
                return problems;
            }
        }
        match self.database_engine().await {
            Ok(None) => match self.missing_rights(&["CREATE DATABASE"]).await {
                Ok(missing) => problems.extend(rights_problem(&self.user, &missing, &self.everything())),
                Err(error) => problems.push(classify(&error)),
            },
            Ok(Some(engine)) => problems.extend(database_problem(&self.database, &engine)),
            Err(error) => problems.push(classify(&error)),
        }
        match self.missing_rights(&NEEDED_RIGHTS).await {
            Ok(missing) => problems.extend(rights_problem(&self.user, &missing, &self.everything())),
            Err(error) => problems.push(classify(&error)),
        }
        // Asked for before a stream into such a table begins.
        if let Some(target) = targets.iter().find(|target| target.engine == TableEngine::MergeTree)
            && let Err(source) = self.inserts_underway(&target.table).await
        {
            problems.push(classify(&self.no_facts(source)));
        }
        match self.existing_tables(targets.iter().map(|target| &target.table)).await {
            Ok(existing) => {
                let standing =
                    targets.iter().filter_map(|target| Some((target, existing.get(&target.table)?)));
                let errors = standing.filter_map(|(target, existing)| {
                    let error = fits(target, existing, owner).err()?;
                    Some(classify(&error).of_table(&target.source))
                });
                problems.extend(errors);
            }
            Err(source) => problems.push(classify(&self.no_facts(source))),
        }
        for target in targets {
            problems.extend(self.partition_problem(target).await);
        }
        problems
    }

    /// Has the server read the partition expression, over columns of the sorting key alone where others would leave older versions of a row behind.
    async fn partition_problem(&self, target: &TargetTable) -> Option<Problem> {
        let expression = target.partition_by.as_ref()?;
        let usable = target.columns.iter().filter(|column| {
            target.engine != TableEngine::ReplacingMergeTree || target.sorting_key.contains(&column.name)
        });
        let columns: Vec<String> = usable
            .map(|column| {
                let column_type = quote_string(&column.target.to_string());
                format!("defaultValueOfTypeName({column_type}) AS {}", quote_identifier(&column.name))
            })
            .collect();
        let columns = if columns.is_empty() { "1".to_owned() } else { columns.join(", ") };
        let sql = format!("SELECT toTypeName(tuple({expression})) FROM (SELECT {columns})");
        let timeout = self.connection.options.statement_timeout;
        let source = self.connection.rows::<String>(&sql, timeout).await.err()?;
        if !matches!(source, Failure::Refused { .. }) {
            return Some(classify(&self.no_facts(source)));
        }
        let message = format!("partitionByExpr '{expression}' cannot be used: {source}");
        let remedy = match target.engine {
            TableEngine::ReplacingMergeTree => {
                "correct it; it may only use columns of the sorting key, for which sortingKeys can be extended"
            }
            TableEngine::MergeTree | TableEngine::Null => "correct it",
        };
        Some(Problem::operator("PARTITION_EXPRESSION_INVALID", message, remedy).of_table(&target.source))
    }

    /// Waits until the inserts that the server is working on for this table, whoever sent them, have ended: one whose
    /// sender is dead goes on, and shows its rows only at its end. What begins meanwhile is not waited for.
    ///
    /// Sees the inserts of the answering replica alone.
    ///
    /// # Errors
    /// [`Error::LookUp`], also where one outlasts the longest time of an insert.
    pub async fn wait_for_inserts(&self, table: &TableRef) -> Result<(), Error> {
        let failed = |source| Error::LookUp { table: table.clone(), source };
        let longest = self.connection.options.insert_timeout;
        let began = Instant::now();
        let mut underway = self.inserts_underway(table).await.map_err(failed)?;
        while !underway.is_empty() {
            if began.elapsed() > longest {
                return Err(failed(Failure::TimedOut { after: longest }));
            }
            tokio::time::sleep(INSERT_POLL).await;
            let now = self.inserts_underway(table).await.map_err(failed)?;
            underway.retain(|id| now.contains(id));
        }
        Ok(())
    }

    async fn inserts_underway(&self, table: &TableRef) -> Result<Vec<String>, Failure> {
        let prefix = quote_string(&insert_id_prefix(table));
        let sql = format!("SELECT query_id FROM system.processes WHERE startsWith(query_id, {prefix})");
        self.connection.rows::<String>(&sql, self.connection.options.statement_timeout).await
    }

    /// Versions at or above `from` that the table holds, in order, each with the number of its rows.
    pub async fn versions(
        &self,
        table: &TableRef,
        version_column: &str,
        from: Lsn,
    ) -> Result<Vec<(u64, u64)>, Error> {
        let version = quote_identifier(version_column);
        let sql = format!(
            "SELECT {version} AS held, count() FROM {table} WHERE {version} >= {} GROUP BY held ORDER BY held \
             SETTINGS select_sequential_consistency = 1",
            from.0
        );
        let held = self.connection.rows::<(u64, u64)>(&sql, self.connection.options.table_timeout).await;
        held.map_err(|source| Error::LookUp { table: table.clone(), source })
    }

    /// Sees to it that the table stands, and its database. An identical table is taken if it is empty, or if `owner` made
    /// it in an earlier try, whatever is in it. Repeating changes nothing.
    pub async fn ensure_table(&self, target: &TargetTable, owner: &PipeId) -> Result<EnsuredTable, Error> {
        if let Some(problem) = target.problems().into_iter().next() {
            return Err(Error::Undeclarable { table: target.table.clone(), problem: Box::new(problem) });
        }
        let standing = self.existing(&target.table).await?;
        let created = standing.is_none();
        let existing = match standing {
            Some(existing) => existing,
            None => {
                self.ensure_database(owner).await?;
                self.create(target, owner).await?;
                // Read back, because somebody else may have been first.
                let vanished = || Error::Create { table: target.table.clone(), source: vanished() };
                self.existing(&target.table).await?.ok_or_else(vanished)?
            }
        };
        fits(target, &existing, Some(owner))?;
        Ok(EnsuredTable { uuid: TableUuid(existing.uuid), created })
    }

    /// Inserts one block: all of it or nothing, and visible when this returns `Ok`.
    ///
    /// The whole block goes as one INSERT, so it becomes one part (per partition), and a repetition is the same insert.
    /// `token` makes a repetition harmless: the table remembers the newest thousand tokens and skips an insert whose token
    /// it knows. Give the same token to the same content only; another content under a known token is dropped, with
    /// success. A token is best made of the table's [`TableUuid`], the range of the source and a hash of the content.
    ///
    /// Columns are found by name. Values are never converted: a column of another type, an unknown column, and NULL for a
    /// column that cannot hold it are refused. A column that the block lacks gets its default.
    ///
    /// # Errors
    /// [`Error::Insert`]. After anything but [`Failure::Refused`] it is unknown whether the block was applied: insert it
    /// again under the same token. Likewise when this call is dropped: once everything is sent the server goes on.
    pub async fn insert(&self, table: &TableRef, block: &EncodedBlock, token: &str) -> Result<(), Error> {
        if block.rows == 0 {
            return Ok(());
        }
        // Names of columns stand in the block. Repeated here they would not fit into the url of a wide table.
        let sql = format!("INSERT INTO {table} FORMAT Native");
        // One of its own for each attempt: the server refuses an id that is still at work.
        let query_id = format!("{}{:032x}", insert_id_prefix(table), rand::random::<u128>());
        let settings = [("insert_deduplication_token", token), ("query_id", query_id.as_str())];
        let result = self.connection.insert(sql, &settings, &block.pieces).await;
        result.map_err(|source| Error::Insert { table: table.clone(), source })
    }

    /// Applies a TRUNCATE that the source logged at `truncation`: removes every row, tombstones included, whose version is
    /// below it, and waits until that is done on all replicas.
    ///
    /// Unlike `TRUNCATE TABLE` it does not touch what came after the truncation, so repeating it after a crash, or coming
    /// late, is harmless. Inserts of older rows must have been answered before; one that is still on its way lands untouched.
    /// Emptying a table of 5 million rows took 0.7 s, repeating it 10 ms.
    pub async fn delete_older_versions(
        &self,
        table: &TableRef,
        version_column: &str,
        truncation: Lsn,
    ) -> Result<(), Error> {
        let version = quote_identifier(version_column);
        let sql = format!("ALTER TABLE {table} DELETE WHERE {version} < {}", truncation.0);
        let result =
            self.connection.execute(&sql, &[("mutations_sync", "2")], self.connection.options.table_timeout);
        result.await.map_err(|source| Error::DeleteOlder { table: table.clone(), source })
    }

    /// Identity of the table that has the name now; `None` where there is none.
    pub async fn table_uuid(&self, table: &TableRef) -> Result<Option<TableUuid>, Error> {
        Ok(self.existing(table).await?.map(|existing| TableUuid(existing.uuid)))
    }

    /// Rows that a reader sees: the newest version of each, without deleted ones. Reads the whole key of the table.
    pub async fn count(&self, table: &TableRef) -> Result<u64, Error> {
        let sql = format!("SELECT count() FROM {table} FINAL");
        let counted = self.connection.rows::<u64>(&sql, self.connection.options.table_timeout).await;
        let counts = counted.map_err(|source| Error::Count { table: table.clone(), source })?;
        Ok(counts.into_iter().sum())
    }

    /// Drops a table that `owner` made, of any size; `false` where there is none.
    ///
    /// # Errors
    /// [`Error::NotOurs`] where the table was made by somebody else.
    pub async fn drop_table(&self, table: &TableRef, owner: &PipeId) -> Result<bool, Error> {
        let Some(existing) = self.existing(table).await? else { return Ok(false) };
        if existing.comment != ownership_comment(owner) {
            return Err(Error::NotOurs { table: table.clone() });
        }
        let sql = format!("DROP TABLE IF EXISTS {table} SYNC");
        let unlimited = [("max_table_size_to_drop", "0"), ("max_partition_size_to_drop", "0")];
        let result = self.connection.execute(&sql, &unlimited, self.connection.options.table_timeout);
        result.await.map_err(|source| Error::Drop { table: table.clone(), source })?;
        Ok(true)
    }

    /// Drops the destination's database where `owner` made it and nothing is in it any more; `false` where it stays.
    pub async fn drop_database_if_empty(&self, owner: &PipeId) -> Result<bool, Error> {
        let failed = |source| Error::DropDatabase { database: self.database.clone(), source };
        let timeout = self.connection.options.statement_timeout;
        let name = quote_string(&self.database);
        let sql = format!(
            "SELECT count() FROM system.databases WHERE name = {name} AND comment = {comment} \
             AND name NOT IN (SELECT database FROM system.tables WHERE database = {name})",
            comment = quote_string(&ownership_comment(owner))
        );
        let droppable = self.connection.rows::<u64>(&sql, timeout).await.map_err(failed)?;
        if droppable != [1] {
            return Ok(false);
        }
        let sql = format!("DROP DATABASE IF EXISTS {}", quote_identifier(&self.database));
        self.connection.execute(&sql, &[], timeout).await.map_err(failed)?;
        Ok(true)
    }

    async fn facts<T>(&self, sql: &str) -> Result<Vec<T>, Error>
    where
        T: clickhouse::RowOwned + clickhouse::RowRead,
    {
        let rows = self.connection.rows::<T>(sql, self.connection.options.statement_timeout).await;
        rows.map_err(|source| self.no_facts(source))
    }

    fn no_facts(&self, source: Failure) -> Error {
        Error::Facts { url: self.connection.url.clone(), source }
    }

    async fn database_engine(&self) -> Result<Option<String>, Error> {
        let name = quote_string(&self.database);
        let sql = format!("SELECT engine FROM system.databases WHERE name = {name}");
        Ok(self.facts::<String>(&sql).await?.pop())
    }

    fn everything(&self) -> String {
        format!("{}.*", quote_identifier(&self.database))
    }

    /// Which of the rights the user lacks on the database. Servers before `CHECK GRANT` are taken at their word when they
    /// refuse something.
    async fn missing_rights<'a>(&self, rights: &[&'a str]) -> Result<Vec<&'a str>, Error> {
        let mut missing = Vec::new();
        for right in rights {
            let sql = format!("CHECK GRANT {right} ON {}", self.everything());
            match self.facts::<u8>(&sql).await {
                Ok(granted) if granted.contains(&0) => missing.push(*right),
                Ok(_) => {}
                Err(Error::Facts { source, .. }) if source.code() == Some(SYNTAX_ERROR) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(missing)
    }

    async fn ensure_database(&self, owner: &PipeId) -> Result<(), Error> {
        // Asked first, because CREATE DATABASE IF NOT EXISTS needs the right also where it does nothing.
        if self.database_engine().await?.is_some() {
            return Ok(());
        }
        let sql = create_database_statement(&self.database, owner);
        let result = self.connection.execute(&sql, &[], self.connection.options.statement_timeout).await;
        result.map_err(|source| Error::CreateDatabase { database: self.database.clone(), source })
    }

    async fn create(&self, target: &TargetTable, owner: &PipeId) -> Result<(), Error> {
        let setting = if target.holds_time64() { self.server().await?.time64_setting } else { None };
        let settings = setting.iter().map(|name| (name.as_str(), "1")).collect::<Vec<_>>();
        let sql = create_table_statement(target, owner);
        let result =
            self.connection.execute(&sql, &settings, self.connection.options.statement_timeout).await;
        result.map_err(|source| Error::Create { table: target.table.clone(), source })
    }

    pub(crate) async fn existing(&self, table: &TableRef) -> Result<Option<ExistingTable>, Error> {
        let found = self.existing_tables([table]).await;
        let mut found = found.map_err(|source| Error::Describe { table: table.clone(), source })?;
        Ok(found.remove(table))
    }

    /// Those of the tables that exist, in two requests whatever their number.
    async fn existing_tables<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a TableRef>,
    ) -> Result<BTreeMap<TableRef, ExistingTable>, Failure> {
        #[derive(Row, Deserialize)]
        struct Table {
            database: String,
            name: String,
            uuid: String,
            engine: String,
            engine_full: String,
            sorting_key: String,
            comment: String,
            rows: u64,
        }
        #[derive(Row, Deserialize)]
        struct Column {
            database: String,
            table: String,
            name: String,
            column_type: String,
            default_kind: String,
            partitions: u8,
        }
        let (mut databases, mut names) = (BTreeSet::new(), BTreeSet::new());
        for table in tables {
            databases.insert(quote_string(&table.database));
            names.insert(format!("({}, {})", quote_string(&table.database), quote_string(&table.name)));
        }
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        // The first list spares the server from opening every database it has.
        let databases = databases.into_iter().collect::<Vec<_>>().join(", ");
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let timeout = self.connection.options.statement_timeout;
        let sql = format!(
            "SELECT database, name, toString(uuid) AS uuid, engine, engine_full, sorting_key, comment, \
             ifNull(total_rows, 0) AS rows FROM system.tables \
             WHERE database IN ({databases}) AND (database, name) IN ({names})"
        );
        let found = self.connection.rows::<Table>(&sql, timeout).await?;
        let mut existing = found
            .into_iter()
            .map(|table| {
                let described = ExistingTable {
                    uuid: table.uuid,
                    engine: table.engine,
                    engine_full: table.engine_full,
                    sorting_key: table.sorting_key,
                    comment: table.comment,
                    rows: table.rows,
                    columns: Vec::new(),
                };
                (TableRef::new(table.database, table.name), described)
            })
            .collect::<BTreeMap<_, _>>();
        let sql = format!(
            "SELECT database, table, name, type AS column_type, toString(default_kind) AS default_kind, \
             is_in_partition_key AS partitions FROM system.columns \
             WHERE database IN ({databases}) AND (database, table) IN ({names}) ORDER BY database, table, position"
        );
        for column in self.connection.rows::<Column>(&sql, timeout).await? {
            if let Some(table) = existing.get_mut(&TableRef::new(column.database, column.table)) {
                table.columns.push(ExistingColumn {
                    name: column.name,
                    column_type: column.column_type,
                    default_kind: column.default_kind,
                    partitions: column.partitions != 0,
                });
            }
        }
        Ok(existing)
    }
}

/// Whether an existing table can be taken.
fn fits(target: &TargetTable, existing: &ExistingTable, owner: Option<&PipeId>) -> Result<(), Error> {
    let differences = differences(target, existing);
    if !differences.is_empty() {
        return Err(Error::Differs { table: target.table.clone(), differences });
    }
    let ours = owner.is_some_and(|owner| existing.comment == ownership_comment(owner));
    if existing.rows > 0 && !ours {
        return Err(Error::NotEmpty { table: target.table.clone(), rows: existing.rows });
    }
    Ok(())
}

/// An answer without the row that must be in it.
fn vanished() -> Failure {
    Failure::Exchange("the answer holds no row".into())
}
