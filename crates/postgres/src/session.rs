//! Statements on an ordinary session: slots, publications, sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millrace_model::spec::PostgresSource;
use millrace_model::work::{SlotHealth, TableSize};
use millrace_model::{Lsn, TableName};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::config::SslMode;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

use crate::dial::{dial, within_timeout};
use crate::error::{Error, Step};
use crate::quoting::{quote_identifier, quote_table};
use crate::wire::PINNED;

/// How long a reader of ours is given to let go of a slot.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);

/// Statements here are short. One that waits longer than this for a lock says so and is tried again, in place of hanging; no other limit that
/// the role may have applies.
const LIMITS: [(&str, &str); 3] =
    [("lock_timeout", "30s"), ("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0")];

/// A moment, as transactions count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Horizon(String);

/// What older rows show in a table's columns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backfills {
    /// `pg_attribute.attmissingval` in text form, by column number.
    pub kept: BTreeMap<i16, Option<String>>,
    /// Columns in which older rows of one partition show another value than those of another.
    pub differing: BTreeSet<i16>,
    /// Columns with a default of which nothing is kept: it was set later, or the table was rewritten with it.
    pub defaults: BTreeSet<i16>,
}

/// A session for statements. It ends with this value.
pub struct Session {
    pub(crate) client: Client,
    connection: JoinHandle<()>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    /// Connects. TLS is settled by our own dialling, so that it means the same everywhere.
    ///
    /// # Errors
    /// Nobody answers, TLS or authentication fails.
    pub async fn connect(source: &PostgresSource, application_name: &str) -> Result<Self, Error> {
        let settings = PINNED.iter().filter(|(name, _)| *name != "client_encoding").chain(&LIMITS);
        let options: Vec<String> = settings.map(|(name, value)| format!("-c {name}={value}")).collect();
        let mut config = tokio_postgres::Config::new();
        config
            .user(&source.username)
            .password(source.password.expose())
            .dbname(&source.database)
            .application_name(application_name)
            .options(options.join(" "))
            .ssl_mode(SslMode::Disable);
        let (client, connection) = within_timeout(source, async {
            let stream = dial(source).await?;
            config.connect_raw(stream, NoTls).await.map_err(|error| Error::of_session(Step::Connect, error))
        })
        .await?;
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a session at the source ended");
            }
        });
        Ok(Self { client, connection })
    }

    pub(crate) async fn rows(
        &self,
        what: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        self.client
            .query(sql, parameters)
            .await
            .map_err(|error| Error::of_session(Step::Statement(what), error))
    }

    pub(crate) async fn run(&self, what: &'static str, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await.map_err(|error| Error::of_session(Step::Statement(what), error))
    }

    /// Whether its connection is gone.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Whether it is a standby.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn is_in_recovery(&self) -> Result<bool, Error> {
        let what = "to tell whether it is a standby";
        column(&self.rows(what, "SELECT pg_is_in_recovery()", &[]).await?, what)
    }

    /// The cluster's own number, which no copy of it under the same address shares unless it is a standby (manual: "IDENTIFY_SYSTEM").
    ///
    /// # Errors
    /// The statement fails.
    pub async fn system_identifier(&self) -> Result<u64, Error> {
        let what = "to say which cluster it is";
        let rows = self.rows(what, "SELECT system_identifier::text FROM pg_control_system()", &[]).await?;
        let text: String = column(&rows, what)?;
        text.parse().map_err(|_| Error::Protocol(format!("system identifier '{text}'")))
    }

    /// What rows show in columns that were added after them: by column number, NULL as `None`, for columns of which PostgreSQL keeps such a
    /// value; and the columns that have a default otherwise.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn backfills(&self, oid: u32) -> Result<Backfills, Error> {
        let what = "to tell the columns' defaults";
        // A partitioned table has no rows and keeps no such values; its partitions have columns of the same names.
        let sql = "SELECT a.attnum, a.atthasmissing OR leaves.first IS NOT NULL, \
                     coalesce((a.attmissingval::text::text[])[1], leaves.first), leaves.first <> leaves.last, a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL \
                   FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
                   LEFT JOIN LATERAL ( \
                     SELECT min(value COLLATE \"C\") AS first, max(value COLLATE \"C\") AS last \
                     FROM pg_partition_tree(a.attrelid) AS tree \
                     JOIN pg_attribute leaf ON leaf.attrelid = tree.relid AND leaf.attname = a.attname AND leaf.atthasmissing, \
                     LATERAL (SELECT (leaf.attmissingval::text::text[])[1] AS value) AS kept \
                     WHERE tree.relid <> a.attrelid \
                   ) AS leaves ON true \
                   WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped";
        let mut backfills = Backfills::default();
        for row in &self.rows(what, sql, &[&oid]).await? {
            let attribute: i16 = get(row, 0, what)?;
            if get::<Option<bool>>(row, 3, what)?.unwrap_or(false) {
                backfills.differing.insert(attribute);
            } else if get(row, 1, what)? {
                backfills.kept.insert(attribute, get(row, 2, what)?);
            } else if get(row, 4, what)? {
                backfills.defaults.insert(attribute);
            }
        }
        Ok(backfills)
    }

    /// What a table and its columns are called now, the latter by their numbers; `None` where the table is gone.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn present_names(&self, oid: u32) -> Result<Option<(TableName, BTreeMap<i16, String>)>, Error> {
        let what = "to tell what the table is called";
        let sql = "SELECT n.nspname, c.relname, a.attnum, a.attname \
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid \
                   WHERE c.oid = $1 AND a.attnum > 0 AND NOT a.attisdropped";
        let mut names = None;
        for row in &self.rows(what, sql, &[&oid]).await? {
            let table = TableName::new(get::<String>(row, 0, what)?, get::<String>(row, 1, what)?);
            let (_, columns) = names.get_or_insert_with(|| (table, BTreeMap::new()));
            columns.insert(get(row, 2, what)?, get(row, 3, what)?);
        }
        Ok(names)
    }

    /// The first transaction id that is not given out yet, to be compared with by [`Session::catalog_changed_since`].
    ///
    /// # Errors
    /// The statement fails.
    pub async fn horizon(&self) -> Result<Horizon, Error> {
        let what = "to tell its transaction horizon";
        let sql = "SELECT (pg_snapshot_xmax(pg_current_snapshot())::text::bigint % 4294967296)::text";
        Ok(Horizon(column(&self.rows(what, sql, &[]).await?, what)?))
    }

    /// Whether a relation was made, altered, truncated or rewritten by a transaction from the horizon on.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn catalog_changed_since(&self, horizon: &Horizon) -> Result<bool, Error> {
        let what = "to tell whether its catalog changed";
        let sql = "SELECT EXISTS (SELECT FROM pg_class WHERE age(xmin) <= age($1::text::xid))";
        column(&self.rows(what, sql, &[&horizon.0]).await?, what)
    }

    /// Where the log ends.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn log_end(&self) -> Result<Lsn, Error> {
        let what = "to say where its log ends";
        let rows = self.rows(what, "SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
        position(&column::<String>(&rows, what)?)
    }

    /// Asks for nothing, to see whether the session stands.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<(), Error> {
        self.run("to answer", "").await
    }

    /// Ends all other sessions whose `application_name` begins so, and waits until they are gone.
    ///
    /// # Errors
    /// The role may not, or they do not go.
    pub async fn end_sessions_named(&self, prefix: &str) -> Result<(), Error> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE starts_with(application_name, $1) AND pid <> pg_backend_pid()";
        let began = Instant::now();
        loop {
            let ended = self.rows("to end sessions of ours", sql, &[&prefix]).await?;
            if ended.is_empty() {
                return Ok(());
            }
            if began.elapsed() > RELEASE_PATIENCE {
                return Err(Error::Protocol(format!("{} sessions of ours do not end", ended.len())));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Commits a transaction that changes nothing, so that the log, and with it a stream of an idle source, moves on.
    ///
    /// # Errors
    /// The role may not, or the server is a standby.
    pub async fn nudge(&self) -> Result<(), Error> {
        self.run("to move the log on", "SELECT pg_logical_emit_message(true, 'millrace', '')").await
    }

    /// What the server says of a slot; `None` where there is none of that name.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn slot_state(&self, slot_name: &str) -> Result<Option<SlotState>, Error> {
        let what = "to tell about the slot";
        let sql = "SELECT active, coalesce(wal_status, ''), coalesce(plugin, ''), coalesce(database = current_database(), false), \
                     coalesce(restart_lsn::text, '0/0'), coalesce(confirmed_flush_lsn::text, '0/0') \
                   FROM pg_replication_slots WHERE slot_name = $1";
        let rows = self.rows(what, sql, &[&slot_name]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(SlotState {
            active: get(row, 0, what)?,
            wal_status: get(row, 1, what)?,
            plugin: get(row, 2, what)?,
            of_this_database: get(row, 3, what)?,
            restart: position(&get::<String>(row, 4, what)?)?,
            confirmed_flush: position(&get::<String>(row, 5, what)?)?,
        }))
    }

    /// How much log the slot holds back; `None` where there is none of that name.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn slot_health(&self, slot_name: &str) -> Result<Option<SlotHealth>, Error> {
        let what = "to tell how full the slot is";
        let sql = "SELECT coalesce(wal_status, 'lost'), greatest(coalesce(pg_wal_lsn_diff(                      CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_insert_lsn() END,                      restart_lsn), 0), 0)::bigint, safe_wal_size \
                   FROM pg_replication_slots WHERE slot_name = $1";
        let rows = self.rows(what, sql, &[&slot_name]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Some(SlotHealth {
            wal_status: get(row, 0, what)?,
            retained: bytes(get(row, 1, what)?),
            headroom: get::<Option<i64>>(row, 2, what)?.map(bytes),
        }))
    }

    /// Checks that the slot is there, is a logical one of pgoutput in this database, and still has its place.
    ///
    /// # Errors
    /// [`Error::SlotMissing`], [`Error::SlotLost`], [`Error::SlotUnfit`], or the statement fails.
    pub async fn require_usable_slot(&self, slot_name: &str) -> Result<(), Error> {
        let name = slot_name.to_owned();
        match self.slot_state(slot_name).await? {
            None => Err(Error::SlotMissing(name)),
            Some(slot) if slot.plugin != "pgoutput" => Err(Error::SlotUnfit {
                name,
                reason: format!("decodes with '{}', not with pgoutput", slot.plugin),
            }),
            Some(slot) if !slot.of_this_database => {
                Err(Error::SlotUnfit { name, reason: "belongs to another database".to_owned() })
            }
            Some(slot) if slot.wal_status == "lost" => {
                Err(Error::SlotLost { name, reason: "wal_status is lost".to_owned() })
            }
            Some(_) => Ok(()),
        }
    }

    /// Sees to it that nobody reads the slot: a reader of ours is ended, whoever started it; anybody else's is not.
    ///
    /// # Errors
    /// [`Error::SlotBusy`] where somebody else reads it or ours does not let go; or a statement fails.
    pub async fn release_slot(&self, slot_name: &str) -> Result<(), Error> {
        let what = "to tell who reads the slot";
        let sql = "SELECT s.active_pid, coalesce(a.application_name, '') FROM pg_replication_slots s \
                   LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid \
                   WHERE s.slot_name = $1 AND s.active_pid IS NOT NULL";
        let began = Instant::now();
        loop {
            let rows = self.rows(what, sql, &[&slot_name]).await?;
            let Some(row) = rows.first() else { return Ok(()) };
            let (pid, holder) = (get::<i32>(row, 0, what)?, get::<String>(row, 1, what)?);
            let ours = holder.starts_with("millrace");
            if !ours || began.elapsed() > RELEASE_PATIENCE {
                let holder = format!("'{holder}' (process {pid})");
                return Err(Error::SlotBusy { name: slot_name.to_owned(), holder });
            }
            self.rows("to end a reader of ours", "SELECT pg_terminate_backend($1)", &[&pid]).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Drops the slot; one that is not there is fine.
    ///
    /// # Errors
    /// Somebody else reads it, or a statement fails.
    pub async fn drop_slot(&self, slot_name: &str) -> Result<(), Error> {
        self.release_slot(slot_name).await?;
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
        self.rows("to drop the slot", sql, &[&slot_name]).await.map(drop)
    }

    /// Sees to it that there is a publication of exactly these tables: one that stands is altered, which leaves those of its tables alone that stay.
    ///
    /// Changes of partitions are published under the name and with the columns of the partitioned table.
    ///
    /// # Errors
    /// A right is missing, a table is gone, or the connection fails.
    pub async fn publish(&self, name: &str, tables: &[TableName]) -> Result<(), Error> {
        let what = "to make the publication";
        let stands =
            !self.rows(what, "SELECT 1 FROM pg_publication WHERE pubname = $1", &[&name]).await?.is_empty();
        let (name, tables) = (quote_identifier(name), tables.iter().map(quote_table).collect::<Vec<_>>());
        let tables = tables.join(", ONLY ");
        let sql = if stands {
            format!("ALTER PUBLICATION {name} SET TABLE ONLY {tables}")
        } else {
            format!(
                "CREATE PUBLICATION {name} FOR TABLE ONLY {tables} WITH (publish_via_partition_root = true)"
            )
        };
        self.run(what, &sql).await
    }

    /// Drops a publication; one that is not there is fine.
    ///
    /// # Errors
    /// A right is missing, or the connection fails.
    pub async fn drop_publication(&self, name: &str) -> Result<(), Error> {
        self.run("to drop the publication", &format!("DROP PUBLICATION IF EXISTS {}", quote_identifier(name)))
            .await
    }

    /// How large tables are now. Rows are estimated from the planner's rows per page and the present number of pages; those of a partitioned table are the sum of its partitions'.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn table_sizes(&self, tables: &[TableName]) -> Result<Vec<TableSize>, Error> {
        let what = "to tell how large the tables are";
        let sql = "SELECT n.nspname, c.relname, \
                     CASE WHEN c.relkind = 'p' THEN 0 \
                          ELSE pg_relation_size(c.oid) / current_setting('block_size')::bigint END, \
                     coalesce((SELECT sum(CASE WHEN l.relpages > 0 AND l.reltuples > 0 \
                                 THEN l.reltuples / l.relpages * (pg_relation_size(l.oid) / current_setting('block_size')::bigint) \
                                 ELSE greatest(l.reltuples, 0) END)::bigint \
                               FROM pg_class l \
                               WHERE l.oid = c.oid AND c.relkind <> 'p' \
                                  OR c.relkind = 'p' AND l.oid IN (SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf)), 0), \
                     coalesce(pg_relation_filenode(c.oid), 0) \
                   FROM unnest($1::text[], $2::text[]) AS wanted(schema, name) \
                   JOIN pg_namespace n ON n.nspname = wanted.schema \
                   JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name";
        let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        let rows = self.rows(what, sql, &[&schemas, &names]).await?;
        rows.iter()
            .map(|row| {
                let table = TableName::new(get::<String>(row, 0, what)?, get::<String>(row, 1, what)?);
                let (pages, rows) = (get::<i64>(row, 2, what)?, get::<i64>(row, 3, what)?);
                Ok(TableSize {
                    table,
                    pages: u32::try_from(pages).unwrap_or(u32::MAX),
                    estimated_rows: u64::try_from(rows).unwrap_or(0),
                    file_node: get(row, 4, what)?,
                })
            })
            .collect()
    }

    /// The end of the log.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn current_lsn(&self) -> Result<Lsn, Error> {
        let what = "to tell where the log ends";
        let rows = self.rows(what, "SELECT pg_current_wal_lsn()::text", &[]).await?;
        let text: String = column(&rows, what)?;
        position(&text)
    }
}

/// What `pg_replication_slots` says of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// Somebody reads it.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// The output plugin; empty for a physical slot.
    pub plugin: String,
    /// Whether it belongs to the database of the session that asked.
    pub of_this_database: bool,
    /// From where the log is kept.
    pub restart: Lsn,
    /// Up to where changes were acknowledged.
    pub confirmed_flush: Lsn,
}

fn position(text: &str) -> Result<Lsn, Error> {
    text.parse().map_err(|error| Error::Protocol(format!("{error}")))
}

/// A value of a row of our own statements.
pub(crate) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    index: usize,
    what: &'static str,
) -> Result<T, Error> {
    row.try_get(index).map_err(|error| Error::of_session(Step::Statement(what), error))
}

/// The one value of the one row.
pub(crate) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    rows: &'a [Row],
    what: &'static str,
) -> Result<T, Error> {
    let row = rows.first().ok_or_else(|| Error::Protocol(format!("no row when asked {what}")))?;
    get(row, 0, what)
}
