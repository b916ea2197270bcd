//! The handle on one destination: a user, a server and a database.

use std::time::{Duration, Instant};

use millrace_mapping::EncodedBlock;
use millrace_model::Lsn;
use millrace_model::spec::{ClickHouseDestination, Cluster};
use url::form_urlencoded;

use crate::cluster::{consistency, insert_settings};
use crate::connection::{Connection, ConnectionOptions};
use crate::inspection::ServerFacts;
use crate::quoting::{quote_identifier, quote_string};
use crate::structure::vanished;
use crate::{Error, Failure, TableRef};

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
    pub(crate) database: String,
    pub(crate) user: String,
    pub(crate) cluster: Option<Cluster>,
}

/// Identity of one table for as long as it exists: another table under the same name has another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableUuid(String);

impl TableUuid {
    pub(crate) fn new(uuid: String) -> Self {
        Self(uuid)
    }

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
            cluster: destination.cluster.clone(),
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

    /// Waits until the inserts that the server is working on for this table, whoever sent them, have ended: one whose
    /// sender is dead goes on, and shows its rows only at its end. What begins meanwhile is not waited for.
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

    pub(crate) async fn inserts_underway(&self, table: &TableRef) -> Result<Vec<String>, Failure> {
        let prefix = quote_string(&insert_id_prefix(table));
        // A part that is on its way to a shard has an id of its own.
        let sql = format!(
            "SELECT DISTINCT initial_query_id FROM {} WHERE startsWith(initial_query_id, {prefix})",
            self.on_all_hosts("system.processes")
        );
        self.connection.rows::<String>(&sql, self.connection.options.statement_timeout).await
    }

    /// Versions at or above `from` that the table holds, in order, each with the number of its rows.
    pub async fn versions(
        &self,
        table: &TableRef,
        version_column: &str,
        from: Lsn,
    ) -> Result<Vec<(u64, u64)>, Error> {
        self.synchronise(table).await?;
        let version = quote_identifier(version_column);
        let sql = format!(
            "SELECT {version} AS held, count() FROM {table} WHERE {version} >= {} GROUP BY held ORDER BY held{}",
            from.0,
            consistency(self.cluster.as_ref())
        );
        let held = self.connection.rows::<(u64, u64)>(&sql, self.connection.options.table_timeout).await;
        held.map_err(|source| Error::LookUp { table: table.clone(), source })
    }

    /// The greatest version that the table holds, of any row; 0 where it has only copied ones. Reads the whole column.
    pub async fn newest_version(&self, table: &TableRef, version_column: &str) -> Result<u64, Error> {
        self.synchronise(table).await?;
        let sql = format!(
            "SELECT max({}) FROM {table}{}",
            quote_identifier(version_column),
            consistency(self.cluster.as_ref())
        );
        let newest = self.connection.rows::<u64>(&sql, self.connection.options.table_timeout).await;
        let newest = newest.map_err(|source| Error::LookUp { table: table.clone(), source })?;
        Ok(newest.into_iter().max().unwrap_or_default())
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
        let layout = insert_settings(self.cluster.as_ref());
        let layout = layout.iter().map(|(name, value)| (*name, value.as_str()));
        let settings: Vec<_> = [("insert_deduplication_token", token), ("query_id", &query_id)]
            .into_iter()
            .chain(layout)
            .collect();
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
        let failed = |source| Error::DeleteOlder { table: table.clone(), source };
        let on_cluster = self.topology().await.map_err(failed)?.on_cluster();
        let local = self.local(table);
        let sql = format!("ALTER TABLE {local}{on_cluster} DELETE WHERE {version} < {}", truncation.0);
        let result = self.change(&sql, &[("mutations_sync", "2")], self.connection.options.table_timeout);
        result.await.map_err(failed)
    }

    /// Rows that a reader sees: the newest version of each, without deleted ones. Reads the whole key of the table.
    pub async fn count(&self, table: &TableRef) -> Result<u64, Error> {
        self.synchronise(table).await?;
        let sql = format!("SELECT count() FROM {table} FINAL");
        let counted = self.connection.rows::<u64>(&sql, self.connection.options.table_timeout).await;
        let counts = counted.map_err(|source| Error::Count { table: table.clone(), source })?;
        Ok(counts.into_iter().sum())
    }

    pub(crate) async fn facts<T>(&self, sql: &str) -> Result<Vec<T>, Error>
    where
        T: clickhouse::RowOwned + clickhouse::RowRead,
    {
        let rows = self.connection.rows::<T>(sql, self.connection.options.statement_timeout).await;
        rows.map_err(|source| self.no_facts(source))
    }

    pub(crate) fn no_facts(&self, source: Failure) -> Error {
        Error::Facts { url: self.connection.url.clone(), source }
    }
}
