//! What runs while measuring: PostgreSQL, ClickHouse, a coordinator and two workers with default settings, and how they are told what to do.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use millrace_clickhouse::{Destination, quote_string};
use millrace_devstack::{ClickHouse, ClickHouseOptions, Postgres, PostgresOptions};
use millrace_model::Secret;
use millrace_model::spec::{ClickHouseDestination, PostgresSource, TlsMode};
use serde_json::Value;
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};

use super::meter::{self, Usage};
use crate::binary::{Process, launcher};

/// A database that is written to by default is neither this small in memory nor this eager to checkpoint.
const POSTGRES_SETTINGS: [(&str, &str); 3] =
    [("shared_buffers", "1GB"), ("max_wal_size", "8GB"), ("checkpoint_timeout", "30min")];

/// The one database of the source.
const SOURCE_DATABASE: &str = "postgres";

/// How long merges of earlier work are waited for.
const SETTLED_AFTER: Duration = Duration::from_secs(120);

/// Everything that runs.
pub(super) struct Testbed {
    /// A session with PostgreSQL.
    pub(super) source: Client,
    destination: clickhouse::Client,
    postgres: Postgres,
    clickhouse: ClickHouse,
    millrace: PathBuf,
    coordinator: Process,
    workers: Vec<Process>,
    address: String,
    folder: tempfile::TempDir,
}

impl Testbed {
    /// Starts everything anew in an empty folder, with this build of the product.
    pub(super) async fn start(millrace: PathBuf) -> anyhow::Result<Self> {
        let folder = millrace_devstack::temporary_dir()?;
        let options = PostgresOptions {
            settings: POSTGRES_SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            ..PostgresOptions::new(17, folder.path().join("postgres"))
        };
        let (postgres, clickhouse) = tokio::join!(
            Postgres::start(launcher(&millrace), options),
            ClickHouse::start(launcher(&millrace), ClickHouseOptions::new(folder.path().join("clickhouse"))),
        );
        let (postgres, clickhouse) = (postgres?, clickhouse?);
        let source = session(&postgres).await?;
        let data = folder.path().join("coordinator").display().to_string();
        let listen = ["coordinator", "--listen", "127.0.0.1:0", "--data-dir", data.as_str()];
        let mut coordinator = Process::start(&millrace, &listen, &folder.path().join("coordinator.log"))?;
        let ready = coordinator.ready().await?;
        let address = ready.strip_prefix("address=").unwrap_or(&ready).to_owned();
        let workers = ["one", "two"]
            .map(|id| {
                let worker = ["worker", "--id", id, "--coordinator", &address];
                Process::start(&millrace, &worker, &folder.path().join(format!("{id}.log")))
            })
            .into_iter()
            .collect::<anyhow::Result<Vec<_>>>()?;
        // Some of what is measured answers with large blocks, which need no compression on one machine.
        let destination = clickhouse::Client::default()
            .with_url(clickhouse.url())
            .with_compression(clickhouse::Compression::None);
        let this = Self {
            source,
            destination,
            postgres,
            clickhouse,
            millrace,
            coordinator,
            workers,
            address,
            folder,
        };
        this.until_workers().await?;
        Ok(this)
    }

    /// Stops everything.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for worker in self.workers {
            worker.stop().await?;
        }
        self.coordinator.stop().await?;
        self.clickhouse.stop().await?;
        self.postgres.stop().await?;
        Ok(())
    }

    async fn until_workers(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let listed = self.json(&["worker", "list"]).await?;
            if listed["workers"].as_array().is_some_and(|workers| workers.len() >= self.workers.len()) {
                return Ok(());
            }
            if began.elapsed() > Duration::from_secs(60) {
                bail!("the workers did not connect");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Another session with PostgreSQL.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        session(&self.postgres).await
    }

    /// The build that is measured.
    pub(super) fn millrace(&self) -> &Path {
        &self.millrace
    }

    /// Where files may go.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A new database of the source's server as a coordinator's catalog.
    pub(super) async fn make_catalog(&self, name: &str) -> anyhow::Result<String> {
        self.source.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        let source = self.postgres_source();
        Ok(format!(
            "postgresql://{}:{}@{}:{}/{name}",
            source.username,
            source.password.expose(),
            source.host,
            source.port
        ))
    }

    /// The source as a pipe has it.
    pub(super) fn postgres_source(&self) -> PostgresSource {
        PostgresSource {
            host: self.postgres.host().to_owned(),
            port: self.postgres.port(),
            database: SOURCE_DATABASE.to_owned(),
            username: self.postgres.user().to_owned(),
            password: Secret::new(self.postgres.password()),
            tls_mode: TlsMode::Disable,
            tls_ca: None,
        }
    }

    /// The destination as a pipe has it, for one of its databases.
    pub(super) fn clickhouse_destination(&self, database: &str) -> anyhow::Result<Destination> {
        Ok(Destination::new(&ClickHouseDestination {
            url: self.clickhouse.url(),
            database: database.to_owned(),
            username: "default".to_owned(),
            password: Secret::new(""),
            cluster: None,
        })?)
    }

    /// Arguments by which ClickHouse's own `postgresql` function and `MaterializedPostgreSQL` engine find the source, with `table` after the database where there is one.
    pub(super) fn engine_arguments(&self, table: Option<&str>) -> String {
        let address = format!("{}:{}", self.postgres.host(), self.postgres.port());
        let texts = [
            Some(address.as_str()),
            Some(SOURCE_DATABASE),
            table,
            Some(self.postgres.user()),
            Some(self.postgres.password()),
        ];
        texts.into_iter().flatten().map(quote_string).collect::<Vec<_>>().join(", ")
    }

    /// Makes a schema at the source and a database at the destination for a case, both empty.
    pub(super) async fn make_place(&self, name: &str) -> anyhow::Result<()> {
        self.source.batch_execute(&format!("CREATE SCHEMA {name}")).await?;
        self.execute(&format!("CREATE DATABASE {name}")).await
    }

    /// Removes what [`Testbed::make_place`] made, with everything in it.
    pub(super) async fn remove_place(&self, name: &str) -> anyhow::Result<()> {
        // In pieces: one statement would need a lock, and room in the lock table, for each of hundreds of tables.
        let tables = self
            .source
            .query(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = $1",
                &[&name],
            )
            .await?;
        for table in tables {
            self.source.batch_execute(&format!("DROP TABLE {}", table.get::<_, String>(0))).await?;
        }
        self.source.batch_execute(&format!("DROP SCHEMA {name} CASCADE")).await?;
        self.execute(&format!("DROP DATABASE {name} SYNC")).await
    }

    /// Waits until ClickHouse has merged what earlier work left, and has PostgreSQL write what it left, so that neither is paid for by what comes next.
    pub(super) async fn settle(&self) -> anyhow::Result<()> {
        self.source.batch_execute("CHECKPOINT").await?;
        let began = Instant::now();
        let mut quiet = 0;
        while quiet < 3 && began.elapsed() < SETTLED_AFTER {
            let merges = self.number("SELECT count() FROM system.merges").await?;
            quiet = if merges == 0 { quiet + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Runs one of the product's commands and gives what it prints.
    pub(super) async fn command(&self, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let mut command = Command::new(&self.millrace);
        command.args(arguments).env("MILLRACE_ADDRESS", &self.address).kill_on_drop(true);
        let output = command.output().await?;
        if !output.status.success() {
            let logs = ["one", "two"].map(|id| end_of(&self.folder.path().join(format!("{id}.log"))));
            bail!(
                "millrace {}: {}\n{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr),
                logs.join("\n")
            );
        }
        Ok(output.stdout)
    }

    /// The same as JSON.
    pub(super) async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.command(&[arguments, &["-o", "json"]].concat()).await?)?)
    }

    /// Makes a pipe into a database of ClickHouse and waits until it is running. `tables` are entries of its file, in braces.
    pub(super) async fn apply(&self, name: &str, database: &str, tables: &[String]) -> anyhow::Result<()> {
        let tables: String = tables.iter().map(|table| format!("  - {table}\n")).collect();
        let text = format!(
            "name: {name}\nsource:\n  postgres: {{host: {}, port: {}, database: {SOURCE_DATABASE}, username: {}, password: {}}}\n\
             destination:\n  clickhouse: {{url: \"{}\", database: {database}}}\ntables:\n{tables}",
            self.postgres.host(),
            self.postgres.port(),
            self.postgres.user(),
            self.postgres.password(),
            self.clickhouse.url()
        );
        let file = self.folder.path().join(format!("{name}.yaml"));
        std::fs::write(&file, text)?;
        self.command(&["pipe", "apply", "-f", &file.display().to_string()]).await?;
        self.command(&["pipe", "wait", name, "--state", "Running", "--timeout", "2h"]).await.map(drop)
    }

    /// Pauses a pipe and waits until it is paused.
    pub(super) async fn pause(&self, name: &str) -> anyhow::Result<()> {
        self.command(&["pipe", "pause", name]).await?;
        self.command(&["pipe", "wait", name, "--state", "Paused", "--timeout", "10m"]).await.map(drop)
    }

    /// Lets a paused pipe go on; does not wait.
    pub(super) async fn resume(&self, name: &str) -> anyhow::Result<()> {
        self.command(&["pipe", "resume", name]).await.map(drop)
    }

    /// Deletes a pipe; its destination tables stay.
    pub(super) async fn delete(&self, name: &str) -> anyhow::Result<()> {
        self.command(&["pipe", "delete", name, "--timeout", "10m"]).await.map(drop)
    }

    /// The publication that a pipe made.
    pub(super) async fn publication(&self, name: &str) -> anyhow::Result<String> {
        let shown = self.json(&["pipe", "get", name]).await?;
        let publication = shown["pipe"]["status"]["publicationName"].as_str();
        publication.map(str::to_owned).context("the pipe has no publication")
    }

    /// From entering Snapshot to entering Running, as the pipe's own history tells it: slot, snapshot, planning and the last insert are in it.
    pub(super) async fn snapshot_took(&self, name: &str) -> anyhow::Result<Duration> {
        let events = self.json(&["pipe", "events", name]).await?;
        let entered = |state: &str| {
            let event = events["events"].as_array()?.iter().find(|event| event["toState"] == state)?;
            event["time"].as_str().map(str::to_owned)
        };
        let from = entered("PIPE_STATE_SNAPSHOT").context("the pipe never entered Snapshot")?;
        let to = entered("PIPE_STATE_RUNNING").context("the pipe never entered Running")?;
        // PostgreSQL reads the times, since nothing here does.
        let sql =
            "SELECT (extract(epoch from $2::text::timestamptz - $1::text::timestamptz) * 1000000)::bigint";
        let micros: i64 = self.source.query_one(sql, &[&from, &to]).await?.get(0);
        Ok(Duration::from_micros(u64::try_from(micros)?))
    }

    /// Runs a statement in ClickHouse.
    pub(super) async fn execute(&self, sql: &str) -> anyhow::Result<()> {
        let query = self.destination.query_raw(sql);
        let query = query.with_setting("allow_experimental_database_materialized_postgresql", "1");
        query.execute().await.with_context(|| sql.to_owned())
    }

    /// The one number that a query of ClickHouse answers.
    pub(super) async fn number(&self, sql: &str) -> anyhow::Result<u64> {
        self.destination.query_raw(sql).fetch_one::<u64>().await.with_context(|| sql.to_owned())
    }

    /// All numbers that a query of ClickHouse answers.
    pub(super) async fn numbers(&self, sql: &str) -> anyhow::Result<Vec<i64>> {
        self.destination.query_raw(sql).fetch_all::<i64>().await.with_context(|| sql.to_owned())
    }

    /// All texts that a query of ClickHouse answers.
    pub(super) async fn texts(&self, sql: &str) -> anyhow::Result<Vec<String>> {
        self.destination.query_raw(sql).fetch_all::<String>().await.with_context(|| sql.to_owned())
    }

    /// A query's answer in the Native format.
    pub(super) async fn native(&self, sql: &str) -> anyhow::Result<bytes::Bytes> {
        let mut answer = self.destination.query_raw(sql).fetch_bytes("Native")?;
        answer.collect().await.with_context(|| sql.to_owned())
    }

    /// CPU time of everybody so far.
    pub(super) fn usage(&self) -> Usage {
        let id = |pid: i32| u32::try_from(pid).unwrap_or_default();
        Usage {
            workers: self.workers.iter().filter_map(Process::id).map(meter::of_process).sum(),
            postgres: meter::of_family(id(self.postgres.pid())),
            clickhouse: meter::of_process(id(self.clickhouse.pid())),
            bench: meter::of_process(std::process::id()),
        }
    }

    /// Begins the workers' memory peaks anew.
    pub(super) fn reset_peaks(&self) -> anyhow::Result<()> {
        self.workers.iter().filter_map(Process::id).try_for_each(meter::reset_peak)
    }

    /// The most memory that any one worker held at a time, in bytes.
    pub(super) fn peak(&self) -> anyhow::Result<u64> {
        let peaks = self.workers.iter().filter_map(Process::id).map(meter::peak);
        peaks.collect::<anyhow::Result<Vec<_>>>()?.into_iter().max().context("there is no worker")
    }
}

async fn session(postgres: &Postgres) -> anyhow::Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(&postgres.connection_string(SOURCE_DATABASE), NoTls).await?;
    // Ends with its client.
    tokio::spawn(connection);
    Ok(client)
}

/// The last lines of a log, for whoever reads why something failed.
fn end_of(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
