//! `cargo xtask demo`: everything from nothing, with the product's own commands.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use millrace_devstack::equality::{Tables, compare};
use millrace_devstack::{ClickHouse, ClickHouseOptions, Postgres, PostgresOptions};
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};

use crate::binary::{self, Process, launcher};

/// How to show it.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Stop after a few seconds of changes, check that both sides hold the same rows, and exit 0 only then.
    #[arg(long)]
    exit: bool,
    /// Rows of the largest table; the others have a quarter and a twentieth of it.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u32,
    /// Changed rows a second.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Use an optimised build; it takes minutes to make, and is what speed should be judged by.
    #[arg(long)]
    release: bool,
}

const TABLES: [(&str, &[&str]); 3] =
    [("orders", &["id"]), ("order_lines", &["order_id", "line"]), ("customers", &["id"])];

/// How long `--exit` changes rows.
const EXIT_AFTER: Duration = Duration::from_secs(10);

pub(crate) async fn run(arguments: DemoArgs) -> anyhow::Result<()> {
    say("building millrace");
    let millrace = tokio::task::spawn_blocking(move || binary::build(arguments.release)).await??;
    let folder = millrace_devstack::temporary_dir()?;

    say("starting PostgreSQL 17 and ClickHouse (fetched by npm the first time)");
    let (postgres, clickhouse) = tokio::join!(
        Postgres::start(launcher(&millrace), PostgresOptions::new(17, folder.path().join("postgres"))),
        ClickHouse::start(launcher(&millrace), ClickHouseOptions::new(folder.path().join("clickhouse"))),
    );
    let (mut postgres, mut clickhouse) = (postgres?, clickhouse?);
    let source = connect(&postgres).await?;
    say(&format!(
        "filling three tables with {} rows",
        arguments.rows + arguments.rows / 4 + arguments.rows / 20
    ));
    fill(&source, arguments.rows).await?;

    say("starting a coordinator and two workers");
    let log = |name: &str| folder.path().join(format!("{name}.log"));
    let data = folder.path().join("coordinator").display().to_string();
    let listen = ["coordinator", "--listen", "127.0.0.1:0", "--data-dir", data.as_str()];
    let mut coordinator = Process::start(&millrace, &listen, &log("coordinator"))?;
    let ready = coordinator.ready().await.context("the coordinator did not start")?;
    let address = ready.strip_prefix("address=").unwrap_or(&ready).to_owned();
    let mut workers = Vec::new();
    for id in ["worker-1", "worker-2"] {
        let worker = ["worker", "--id", id, "--coordinator", &address];
        workers.push(Process::start(&millrace, &worker, &log(id))?);
    }

    let file = folder.path().join("pipe.yaml");
    let text = pipe(&postgres, &clickhouse);
    std::fs::write(&file, &text)?;
    println!("\n{}\n{text}", file.display());
    let session = Session { millrace: &millrace, address: &address };
    session.until_workers(2).await?;
    session.show(&["pipe", "apply", "-f", &file.display().to_string()]).await?;
    session.show(&["pipe", "watch", "shop", "--until", "Running"]).await?;

    println!();
    say(&format!("changing {} rows a second; Ctrl-C ends the demo", arguments.rate));
    println!(
        "  coordinator {address}, ClickHouse {}, PostgreSQL {}",
        clickhouse.url(),
        postgres.connection_string("shop")
    );
    let destination = clickhouse::Client::default().with_url(clickhouse.url());
    let limit = arguments.exit.then_some(EXIT_AFTER);
    tokio::select! {
        changed = change(&source, &destination, arguments.rate, limit) => changed?,
        stopped = tokio::signal::ctrl_c() => stopped?,
    }
    let checked = if arguments.exit { check(&session, &source, &destination).await } else { Ok(()) };

    say("stopping");
    for worker in workers {
        worker.stop().await?;
    }
    coordinator.stop().await?;
    clickhouse.stop().await?;
    postgres.stop().await?;
    checked
}

fn say(what: &str) {
    println!("\u{25b8} {what}");
}

/// The product's commands against one coordinator.
struct Session<'a> {
    millrace: &'a Path,
    address: &'a str,
}

impl Session<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.millrace);
        command.args(arguments).env("MILLRACE_ADDRESS", self.address).kill_on_drop(true);
        command
    }

    /// Runs a command on this terminal.
    async fn show(&self, arguments: &[&str]) -> anyhow::Result<()> {
        println!("$ millrace {}", arguments.join(" "));
        if !self.command(arguments).status().await?.success() {
            bail!("millrace {} failed", arguments.join(" "));
        }
        Ok(())
    }

    async fn json(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = self.command(&[arguments, &["-o", "json"]].concat()).output().await?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    async fn until_workers(&self, count: usize) -> anyhow::Result<()> {
        until("the workers to connect", async || {
            let connected = self.json(&["worker", "list"]).await?;
            Ok(connected["workers"].as_array().is_some_and(|workers| workers.len() >= count))
        })
        .await
    }
}

/// Waits for something that must come within a minute.
async fn until(what: &str, is_so: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = Instant::now();
    while !is_so().await? {
        if began.elapsed() > Duration::from_secs(60) {
            bail!("waited a minute in vain for {what}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn connect(postgres: &Postgres) -> anyhow::Result<Client> {
    let open = async |database: &str| {
        let (client, connection) =
            tokio_postgres::connect(&postgres.connection_string(database), NoTls).await?;
        // Ends with its client.
        tokio::spawn(connection);
        anyhow::Ok(client)
    };
    open("postgres").await?.batch_execute("CREATE DATABASE shop").await?;
    open("shop").await
}

async fn fill(source: &Client, rows: u32) -> anyhow::Result<()> {
    let sql = format!(
        "CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, since date NOT NULL, tags text[]);
         INSERT INTO customers SELECT n, 'Customer ' || n, date '2015-01-01' + n % 3000, array['a', 'b'] FROM generate_series(1, {rows} / 20) n;
         CREATE TABLE orders (id bigint PRIMARY KEY, customer_id int NOT NULL, placed_at timestamptz NOT NULL, state text NOT NULL,
           total numeric(12,2) NOT NULL, detail jsonb, paid bool NOT NULL);
         INSERT INTO orders SELECT n, n % 1000 + 1, timestamptz '2024-01-01 00:00:00+00' + n * interval '7 seconds', 'shipped', n % 9973 * 1.01,
           jsonb_build_object('channel', 'web', 'n', n), n % 3 = 0 FROM generate_series(1, {rows}) n;
         CREATE TABLE order_lines (order_id bigint, line int, sku text NOT NULL, quantity int NOT NULL, PRIMARY KEY (order_id, line));
         INSERT INTO order_lines SELECT n, 1, 'SKU-' || n % 500, n % 7 + 1 FROM generate_series(1, {rows} / 4) n;
         CREATE TABLE heartbeat (id int PRIMARY KEY, beat bigint NOT NULL); INSERT INTO heartbeat VALUES (1, 0);
         ANALYZE;"
    );
    Ok(source.batch_execute(&sql).await?)
}

fn pipe(postgres: &Postgres, clickhouse: &ClickHouse) -> String {
    let tables: Vec<String> = TABLES
        .iter()
        .map(|(table, _)| *table)
        .chain(["heartbeat"])
        .map(|table| format!("  - {{source: public.{table}, target: {table}}}"))
        .collect();
    format!(
        "name: shop\nsource:\n  postgres: {{host: {}, port: {}, database: shop, username: {}, password: {}}}\n\
         destination:\n  clickhouse: {{url: \"{}\", database: shop}}\ntables:\n{}\nsettings: {{snapshotNumberOfParallelTables: 2}}\n",
        postgres.host(),
        postgres.port(),
        postgres.user(),
        postgres.password(),
        clickhouse.url(),
        tables.join("\n")
    )
}

/// Changes rows at a steady rate, and shows each second how long a commit took to be visible in ClickHouse.
async fn change(
    source: &Client,
    destination: &clickhouse::Client,
    rate: u32,
    limit: Option<Duration>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut delays: Vec<Duration> = Vec::new();
    let per_round = (rate / 10).max(1);
    let (mut beat, mut changed) = (0i64, 0u64);
    while limit.is_none_or(|limit| began.elapsed() < limit) {
        let second = Instant::now();
        for _ in 0..10 {
            beat += 1;
            let round = Instant::now();
            let at = beat * i64::from(per_round);
            let (first, count) = (10_000_000 + at, i64::from(per_round));
            let sql = format!(
                "BEGIN; INSERT INTO orders SELECT {first} + n, 1, now(), 'new', n, '{{}}', false FROM generate_series(1, {count} / 2) n; \
                 UPDATE orders SET state = 'changed', total = total + 1 WHERE id BETWEEN {at} % 900000 AND {at} % 900000 + {count} / 2; \
                 DELETE FROM order_lines WHERE order_id = {beat}; UPDATE heartbeat SET beat = {beat}; COMMIT"
            );
            source.batch_execute(&sql).await?;
            changed += u64::from(per_round);
            let committed = Instant::now();
            until("a change to become visible", async || {
                let seen = "SELECT beat FROM shop.heartbeat FINAL WHERE id = 1";
                Ok(destination.query(seen).fetch_one::<i64>().await? >= beat)
            })
            .await?;
            delays.push(committed.elapsed());
            let due = Duration::from_millis(100).saturating_sub(round.elapsed());
            tokio::time::sleep(due).await;
        }
        delays.sort();
        let at = |part: usize| delays[(delays.len() * part / 100).min(delays.len() - 1)].as_millis();
        println!(
            "  {changed} rows changed, {:.0}/s; from commit to visible: median {} ms, 99 % {} ms",
            f64::from(per_round) * 10.0 / second.elapsed().as_secs_f64(),
            at(50),
            at(99)
        );
    }
    Ok(())
}

/// Both sides hold the same rows, key by key and value by value.
async fn check(
    session: &Session<'_>,
    source: &Client,
    destination: &clickhouse::Client,
) -> anyhow::Result<()> {
    say("comparing both sides");
    let row = source.query_one("SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::text", &[]).await?;
    let goal: u64 = row.get::<_, String>(0).parse()?;
    source.execute("SELECT pg_logical_emit_message(true, 'demo', 'end')", &[]).await?;
    until("the stream to catch up", async || {
        let shown = session.json(&["pipe", "get", "shop"]).await?;
        let durable = shown["pipe"]["status"]["stream"]["durableLsn"].as_str().unwrap_or("0/0").to_owned();
        let (high, low) = durable.split_once('/').context("an LSN")?;
        Ok(u64::from_str_radix(high, 16)? << 32 | u64::from_str_radix(low, 16)? >= goal)
    })
    .await?;
    let mut differ = false;
    for (table, key) in TABLES {
        let tables = Tables {
            schema: "public",
            table,
            database: "shop",
            target: table,
            key,
            excluded: &[],
            metadata: "_millrace",
        };
        let differences = compare(source, destination, tables).await?;
        let verdict = if differences.is_empty() { "equal" } else { "DIFFERENT" };
        println!("  {table}: {verdict}: {differences}");
        differ |= !differences.is_empty();
    }
    if differ {
        bail!("the two sides differ");
    }
    Ok(())
}
