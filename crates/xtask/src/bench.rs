//! `cargo xtask bench`: Millrace, its alternatives and the bare source side by side, in one run on one machine.
//!
//! Both sides of every ratio are taken in the same run, since a shared machine varies by a factor of two within hours. Everything is an optimised build; the bare
//! readers are this program's own use of `millrace-postgres`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use millrace_devstack::{ClickHouse, ClickHouseOptions, Postgres, PostgresOptions};
use millrace_model::spec::{PostgresSource, TlsMode};
use millrace_model::{Lsn, PageRange, Secret};
use millrace_postgres::{CopyEvent, CopyReader, ReplicationEvent, ReplicationStream};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};

use crate::binary::{self, Process, launcher};

/// What to measure.
#[derive(Args, Debug, Clone)]
pub(crate) struct BenchArgs {
    /// One case only.
    #[arg(long, value_enum)]
    case: Option<Case>,
    /// Rows of the load.
    #[arg(long, default_value_t = 2_000_000)]
    rows: u32,
    /// Changes of the stream.
    #[arg(long, default_value_t = 300_000)]
    changes: u32,
    /// Runs of each; the median is told.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Set by the bench itself: this is the optimised build of it.
    #[arg(long, hide = true)]
    optimised: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// The first copy of one table.
    Load,
    /// A backlog of one large transaction of inserts.
    Stream,
    /// A backlog of many small transactions of inserts and updates over ten tables.
    Backlog,
}

const COLUMNS: &str = "id bigint PRIMARY KEY, n int NOT NULL, at timestamptz NOT NULL, name text NOT NULL, \
                       amount numeric(12,2) NOT NULL, detail jsonb NOT NULL, flag bool NOT NULL";

fn rows_from(first: &str, last: &str) -> String {
    format!(
        "SELECT n, n % 1000, timestamptz '2024-01-01 00:00:00+00' + n * interval '1 second', 'name of the row ' || n, n % 99991 * 1.01, \
         jsonb_build_object('k', n, 'v', 'value'), n % 2 = 0 FROM generate_series({first}::bigint, {last}::bigint) n"
    )
}

pub(crate) async fn run(arguments: BenchArgs) -> anyhow::Result<()> {
    if !arguments.optimised {
        return again_optimised().await;
    }
    let millrace = binary::target().join("release").join("millrace");
    let bench = Bench::start(millrace).await?;
    let cases = [Case::Load, Case::Stream, Case::Backlog]
        .into_iter()
        .filter(|case| arguments.case.is_none_or(|only| only == *case));
    for case in cases {
        let lines = match case {
            Case::Load => bench.load(arguments.rows, arguments.runs).await?,
            Case::Stream => bench.stream(arguments.changes, arguments.runs).await?,
            Case::Backlog => bench.backlog(arguments.changes, arguments.runs).await?,
        };
        report(case, &arguments, &lines)?;
    }
    bench.stop().await
}

/// Builds this program and the product with optimisation, and goes on there.
async fn again_optimised() -> anyhow::Result<()> {
    tokio::task::spawn_blocking(|| binary::build_packages(&["millrace", "millrace-xtask"], true)).await??;
    let program = binary::target().join("release").join("millrace-xtask");
    let status = Command::new(program).args(std::env::args().skip(1)).arg("--optimised").status().await?;
    if !status.success() {
        bail!("the bench failed");
    }
    Ok(())
}

/// One way of doing the work and how long it took in each run.
struct Line {
    name: &'static str,
    items: u64,
    times: Vec<Duration>,
    /// CPU of Millrace's workers, where it is one of them.
    cpu: Vec<Duration>,
}

impl Line {
    fn new(name: &'static str, items: u64) -> Self {
        Self { name, items, times: Vec::new(), cpu: Vec::new() }
    }

    fn median(&self) -> Duration {
        median(&self.times)
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn report(case: Case, arguments: &BenchArgs, lines: &[Line]) -> anyhow::Result<()> {
    let limit = lines.first().map(Line::median).unwrap_or_default().as_secs_f64();
    println!("\n{case:?}: median of {} runs", arguments.runs);
    println!("{:<28} {:>9} {:>12} {:>16} {:>14}", "", "seconds", "items/s", "of the limit", "us CPU/item");
    let mut values: Vec<Value> = Vec::new();
    for line in lines {
        let seconds = line.median().as_secs_f64();
        let items = u32::try_from(line.items).map_or(f64::MAX, f64::from);
        let cpu = (!line.cpu.is_empty()).then(|| median(&line.cpu).as_secs_f64() * 1e6 / items);
        println!(
            "{:<28} {seconds:>9.2} {:>12.0} {:>16.2} {:>14}",
            line.name,
            items / seconds,
            limit / seconds,
            cpu.map_or(String::new(), |cpu| format!("{cpu:.2}"))
        );
        let runs: Vec<f64> = line.times.iter().map(Duration::as_secs_f64).collect();
        values.push(json!({"name": line.name, "items": line.items, "seconds": runs, "median": seconds, "cpuMicrosPerItem": cpu}));
    }
    let folder = binary::target().join("bench");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{case:?}.json").to_lowercase());
    std::fs::write(
        &file,
        serde_json::to_string_pretty(&json!({"case": format!("{case:?}"), "lines": values}))?,
    )?;
    println!("written to {}", file.display());
    Ok(())
}

struct Bench {
    millrace: PathBuf,
    postgres: Postgres,
    clickhouse: ClickHouse,
    destination: clickhouse::Client,
    source: Client,
    coordinator: Process,
    workers: Vec<Process>,
    address: String,
    folder: tempfile::TempDir,
}

impl Bench {
    async fn start(millrace: PathBuf) -> anyhow::Result<Self> {
        let folder = millrace_devstack::temporary_dir()?;
        let settings = [("shared_buffers", "1GB"), ("max_wal_size", "8GB"), ("checkpoint_timeout", "30min")];
        let options = PostgresOptions {
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            ..PostgresOptions::new(17, folder.path().join("postgres"))
        };
        let (postgres, clickhouse) = tokio::join!(
            Postgres::start(launcher(&millrace), options),
            ClickHouse::start(launcher(&millrace), ClickHouseOptions::new(folder.path().join("clickhouse"))),
        );
        let (postgres, clickhouse) = (postgres?, clickhouse?);
        let (source, connection) =
            tokio_postgres::connect(&postgres.connection_string("postgres"), NoTls).await?;
        // Ends with its client.
        tokio::spawn(connection);
        let data = folder.path().join("coordinator").display().to_string();
        let listen = ["coordinator", "--listen", "127.0.0.1:0", "--data-dir", data.as_str()];
        let mut coordinator = Process::start(&millrace, &listen, &folder.path().join("coordinator.log"))?;
        let ready = coordinator.ready().await?;
        let address = ready.strip_prefix("address=").unwrap_or(&ready).to_owned();
        let mut workers = Vec::new();
        for id in ["one", "two"] {
            let worker = ["worker", "--id", id, "--coordinator", &address];
            workers.push(Process::start(&millrace, &worker, &folder.path().join(format!("{id}.log")))?);
        }
        let destination = clickhouse::Client::default().with_url(clickhouse.url());
        Ok(Self {
            millrace,
            postgres,
            clickhouse,
            destination,
            source,
            coordinator,
            workers,
            address,
            folder,
        })
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        for worker in self.workers {
            worker.stop().await?;
        }
        self.coordinator.stop().await?;
        self.clickhouse.stop().await?;
        self.postgres.stop().await?;
        Ok(())
    }

    fn postgres_source(&self) -> PostgresSource {
        PostgresSource {
            host: self.postgres.host().to_owned(),
            port: self.postgres.port(),
            database: "postgres".to_owned(),
            username: self.postgres.user().to_owned(),
            password: Secret::new(self.postgres.password()),
            tls_mode: TlsMode::Disable,
            tls_ca: None,
        }
    }

    async fn command(&self, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let mut command = Command::new(&self.millrace);
        let output = command.args(arguments).env("MILLRACE_ADDRESS", &self.address).output().await?;
        if !output.status.success() {
            bail!("millrace {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(output.stdout)
    }

    async fn apply(&self, name: &str, table: &str) -> anyhow::Result<()> {
        self.apply_tables(name, &format!("  - {{source: public.{table}, target: {name}}}\n")).await
    }

    async fn apply_tables(&self, name: &str, tables: &str) -> anyhow::Result<()> {
        let text = format!(
            "name: {name}\nsource:\n  postgres: {{host: {}, port: {}, database: postgres, username: {}, password: {}}}\n\
             destination:\n  clickhouse: {{url: \"{}\", database: mirror}}\ntables:\n{tables}",
            self.postgres.host(),
            self.postgres.port(),
            self.postgres.user(),
            self.postgres.password(),
            self.clickhouse.url()
        );
        let file = self.folder.path().join(format!("{name}.yaml"));
        std::fs::write(&file, text)?;
        self.command(&["pipe", "apply", "-f", &file.display().to_string()]).await?;
        self.command(&["pipe", "wait", name, "--state", "Running", "--timeout", "600s"]).await.map(drop)
    }

    async fn sql(&self, sql: &str) -> anyhow::Result<()> {
        self.destination
            .query(sql)
            .with_setting("allow_experimental_database_materialized_postgresql", "1")
            .execute()
            .await
            .with_context(|| sql.to_owned())
    }

    fn worker_cpu(&self) -> Duration {
        self.workers.iter().filter_map(Process::id).map(cpu_of).sum()
    }

    async fn load(&self, rows: u32, runs: u32) -> anyhow::Result<Vec<Line>> {
        println!("load: filling {rows} rows");
        let fill = format!(
            "CREATE TABLE typical ({COLUMNS}); INSERT INTO typical {}; VACUUM ANALYZE typical;",
            rows_from("1", &rows.to_string())
        );
        for statement in fill.split_inclusive(';') {
            self.source.batch_execute(statement).await?;
        }
        let items = u64::from(rows);
        let mut bare = Line::new("bare COPY, 2 connections", items);
        let mut function = Line::new("postgresql()", items);
        let mut ours = Line::new("millrace, 2 workers", items);
        for run in 0..runs {
            bare.times.push(self.bare_copy().await?);

            self.sql("CREATE DATABASE IF NOT EXISTS other").await?;
            self.sql("CREATE TABLE other.typical (id Int64, n Int32, at DateTime64(6, 'UTC'), name String, amount Decimal(12, 2), detail String, flag Bool, \
                      v UInt64 DEFAULT 0, d UInt8 DEFAULT 0) ENGINE = ReplacingMergeTree(v, d) ORDER BY id").await?;
            let began = Instant::now();
            self.sql(&format!(
                "INSERT INTO other.typical (id, n, at, name, amount, detail, flag) SELECT * FROM postgresql('{}:{}', 'postgres', 'typical', '{}', '{}')",
                self.postgres.host(),
                self.postgres.port(),
                self.postgres.user(),
                self.postgres.password()
            ))
            .await?;
            function.times.push(began.elapsed());
            self.sql("DROP TABLE other.typical SYNC").await?;

            let name = format!("load_{run}");
            let before = self.worker_cpu();
            self.apply(&name, "typical").await?;
            ours.cpu.push(self.worker_cpu().saturating_sub(before));
            ours.times.push(self.snapshot_took(&name).await?);
            let count = format!("SELECT count() FROM mirror.`{name}` FINAL");
            let found: u64 = self.destination.query(&count).fetch_one().await?;
            if found != items {
                bail!("{found} of {items} rows arrived");
            }
            self.command(&["pipe", "delete", &name]).await?;
            self.sql(&format!("DROP TABLE mirror.`{name}` SYNC")).await?;
        }
        Ok(vec![bare, function, ours])
    }

    /// Reads the table over two connections and drops what comes.
    async fn bare_copy(&self) -> anyhow::Result<Duration> {
        let pages: i64 =
            self.source.query_one("SELECT pg_relation_size('typical') / 8192", &[]).await?.get(0);
        let middle = u32::try_from(pages / 2)?;
        let halves = [PageRange { first: 0, end: Some(middle) }, PageRange { first: middle, end: None }];
        let began = Instant::now();
        let mut readers = tokio::task::JoinSet::new();
        for range in halves {
            let source = self.postgres_source();
            readers.spawn(async move {
                let mut reader = CopyReader::connect(&source, "bench").await?;
                let end = range.end.map_or(String::new(), |end| format!("AND ctid < '({end},0)'::tid"));
                let sql = format!(
                    "COPY (SELECT * FROM ONLY typical WHERE ctid >= '({},0)'::tid {end}) TO STDOUT (FORMAT binary)",
                    range.first
                );
                reader.start(&sql).await?;
                loop {
                    match reader.next_row()? {
                        CopyEvent::Row(row) => drop(std::hint::black_box(row)),
                        CopyEvent::NeedMore => reader.fill().await?,
                        CopyEvent::End => return anyhow::Ok(()),
                    }
                }
            });
        }
        while let Some(read) = readers.join_next().await {
            read??;
        }
        Ok(began.elapsed())
    }

    /// From entering Snapshot to entering Running, as the pipe's own history tells it.
    async fn snapshot_took(&self, name: &str) -> anyhow::Result<Duration> {
        let events: Value =
            serde_json::from_slice(&self.command(&["pipe", "events", name, "-o", "json"]).await?)?;
        let entered = |state: &str| {
            let event = events["events"].as_array()?.iter().find(|event| event["toState"] == state)?;
            event["time"].as_str().map(str::to_owned)
        };
        let (from, to) = (
            entered("PIPE_STATE_SNAPSHOT").context("no Snapshot")?,
            entered("PIPE_STATE_RUNNING").context("no Running")?,
        );
        let sql =
            "SELECT (extract(epoch from $2::text::timestamptz - $1::text::timestamptz) * 1000000)::bigint";
        let micros: i64 = self.source.query_one(sql, &[&from, &to]).await?.get(0);
        Ok(Duration::from_micros(u64::try_from(micros)?))
    }

    async fn stream(&self, changes: u32, runs: u32) -> anyhow::Result<Vec<Line>> {
        println!("stream: {changes} inserts in one transaction");
        self.source
            .batch_execute(&format!(
                "CREATE TABLE changing ({COLUMNS}); CREATE TABLE materialized ({COLUMNS});"
            ))
            .await?;
        self.apply("stream", "changing").await?;
        let publication = self.publication("stream").await?;
        self.source
            .execute("SELECT pg_create_logical_replication_slot('bench_bare', 'pgoutput')", &[])
            .await?;
        self.sql(&format!(
            "CREATE DATABASE materialized ENGINE = MaterializedPostgreSQL('{}:{}', 'postgres', '{}', '{}') \
             SETTINGS materialized_postgresql_tables_list = 'materialized'",
            self.postgres.host(),
            self.postgres.port(),
            self.postgres.user(),
            self.postgres.password()
        ))
        .await?;
        // One row that arrives shows that its own initial load is over.
        self.source.batch_execute(&format!("INSERT INTO materialized {}", rows_from("-1", "-1"))).await?;
        self.until_count("SELECT count() FROM materialized.materialized", 1).await?;
        let items = u64::from(changes);
        let mut bare = Line::new("bare START_REPLICATION", items);
        let mut materialized = Line::new("MaterializedPostgreSQL", items);
        let mut ours = Line::new("millrace", items);
        for run in 0..runs {
            let (first, last) = (u64::from(run) * items + 1, u64::from(run + 1) * items);
            let rows = rows_from(&first.to_string(), &last.to_string());

            self.source.batch_execute(&format!("INSERT INTO materialized {rows}")).await?;
            let began = Instant::now();
            self.until_count("SELECT count() FROM materialized.materialized", last + 1).await?;
            materialized.times.push(began.elapsed());

            self.command(&["pipe", "pause", "stream"]).await?;
            self.command(&["pipe", "wait", "stream", "--state", "Paused"]).await?;
            self.source.batch_execute(&format!("INSERT INTO changing {rows}")).await?;
            // The second reader of a log finds it warm, so the two take turns at being first.
            if run % 2 == 0 {
                bare.times.push(self.bare_stream("bench_bare", &publication, items).await?);
                self.resume("stream", &mut ours, "SELECT count() FROM mirror.stream", last).await?;
            } else {
                self.resume("stream", &mut ours, "SELECT count() FROM mirror.stream", last).await?;
                bare.times.push(self.bare_stream("bench_bare", &publication, items).await?);
            }
        }
        self.sql("DROP DATABASE materialized SYNC").await?;
        self.command(&["pipe", "delete", "stream"]).await?;
        Ok(vec![bare, materialized, ours])
    }

    /// What a pipe that was paused has to catch up: transactions of 100 inserts and 100 updates, each in one of ten tables.
    async fn backlog(&self, changes: u32, runs: u32) -> anyhow::Result<Vec<Line>> {
        let rounds = changes / 200;
        let changes = u64::from(rounds) * 200;
        println!("backlog: {changes} changes in {rounds} transactions over 10 tables");
        let mut mappings = String::new();
        for table in 0..10 {
            self.source.batch_execute(&format!("CREATE TABLE small_{table} ({COLUMNS})")).await?;
            mappings.push_str(&format!("  - {{source: public.small_{table}, target: small_{table}}}\n"));
        }
        self.source.batch_execute("CREATE TABLE small_end (id bigint PRIMARY KEY)").await?;
        mappings.push_str("  - {source: public.small_end, target: small_end}\n");
        self.apply_tables("backlog", &mappings).await?;
        let publication = self.publication("backlog").await?;
        self.source
            .execute("SELECT pg_create_logical_replication_slot('bench_backlog', 'pgoutput')", &[])
            .await?;
        let mut bare = Line::new("bare START_REPLICATION", changes);
        let mut ours = Line::new("millrace", changes);
        for run in 0..u64::from(runs) {
            self.command(&["pipe", "pause", "backlog"]).await?;
            self.command(&["pipe", "wait", "backlog", "--state", "Paused"]).await?;
            let mut script = String::new();
            for round in 0..u64::from(rounds) {
                let first = (run * u64::from(rounds) + round) * 100 + 1;
                let rows = rows_from(&first.to_string(), &(first + 99).to_string());
                let table = round % 10;
                script.push_str(&format!(
                    "BEGIN; INSERT INTO small_{table} {rows}; UPDATE small_{table} SET n = n + 1 WHERE id >= {first} AND id < {first} + 100; COMMIT;"
                ));
            }
            script.push_str(&format!("INSERT INTO small_end VALUES ({run});"));
            self.source.batch_execute(&script).await?;
            let sides = if run % 2 == 0 { [true, false] } else { [false, true] };
            for is_bare in sides {
                if is_bare {
                    bare.times.push(self.bare_stream("bench_backlog", &publication, changes).await?);
                } else {
                    let goal = "SELECT count() FROM mirror.small_end";
                    self.resume("backlog", &mut ours, goal, run + 1).await?;
                }
            }
        }
        self.command(&["pipe", "delete", "backlog"]).await?;
        Ok(vec![bare, ours])
    }

    /// Lets the paused pipe go on, until everything has arrived.
    async fn resume(&self, name: &str, ours: &mut Line, count: &str, goal: u64) -> anyhow::Result<()> {
        let before = self.worker_cpu();
        let began = Instant::now();
        self.command(&["pipe", "resume", name]).await?;
        self.until_count(count, goal).await?;
        ours.times.push(began.elapsed());
        ours.cpu.push(self.worker_cpu().saturating_sub(before));
        Ok(())
    }

    async fn publication(&self, name: &str) -> anyhow::Result<String> {
        let shown: Value =
            serde_json::from_slice(&self.command(&["pipe", "get", name, "-o", "json"]).await?)?;
        let publication = shown["pipe"]["status"]["publicationName"].as_str();
        publication.map(str::to_owned).context("the pipe has no publication")
    }

    async fn until_count(&self, sql: &str, goal: u64) -> anyhow::Result<()> {
        let began = Instant::now();
        // A table that is being made counts as empty.
        while self.destination.query(sql).fetch_one::<u64>().await.unwrap_or(0) < goal {
            if began.elapsed() > Duration::from_secs(600) {
                bail!("waited ten minutes in vain for {goal} rows: {sql}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Receives the changes and drops them, then lets the slot pass them.
    async fn bare_stream(&self, slot: &str, publication: &str, changes: u64) -> anyhow::Result<Duration> {
        // On a worker thread of the runtime, as the product's tasks are: the main thread would be woken from another one for every read.
        let took =
            tokio::spawn(receive(self.postgres_source(), slot.to_owned(), publication.to_owned(), changes))
                .await??;
        self.source.execute("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", &[&slot]).await?;
        Ok(took)
    }
}

/// Receives so many inserts and updates from the slot and drops them; says how long that took.
async fn receive(
    source: PostgresSource,
    slot: String,
    publication: String,
    changes: u64,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut stream = ReplicationStream::start(
        &source,
        "bench",
        &slot,
        Lsn::ZERO,
        &[publication],
        millrace_postgres::StreamForm::whole(true),
    )
    .await?;
    let (mut seen, mut end_of_log) = (0, Lsn::ZERO);
    while seen < changes {
        stream.fill().await?;
        while let Some(event) = stream.next_event()? {
            match event {
                ReplicationEvent::XLogData { payload, end, .. } => {
                    seen += u64::from(matches!(payload.first(), Some(b'I' | b'U')));
                    end_of_log = end_of_log.max(end);
                }
                ReplicationEvent::Keepalive { end, .. } => end_of_log = end_of_log.max(end),
            }
        }
    }
    let took = began.elapsed();
    stream.send_status(end_of_log, end_of_log, end_of_log, false).await?;
    stream.finish().await?;
    Ok(took)
}

/// User and system time of a process, from `/proc/<id>/stat` (proc(5)), in steps of a hundredth of a second.
fn cpu_of(id: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
