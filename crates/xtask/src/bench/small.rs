//! pgbench's own workload ("TPC-B-like"): four clients, small transactions, with and without a pipe.

use std::time::{Duration, Instant};

use anyhow::bail;
use rand::Rng as _;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::arrival;
use super::report::{Column, Report, Table, micros_each, number};
use super::testbed::Testbed;

/// The schema, the database and the pipe.
const PLACE: &str = "small";
const CLIENTS: u32 = 4;
/// Of each unit of scale.
const ACCOUNTS: u32 = 100_000;
const TELLERS: u32 = 10;

const RATE: Column = Column {
    key: "transactionsPerSecond",
    head: "transactions/s",
    meaning: "transactions a second of four clients with prepared statements",
    decimals: 0,
};
const TO_NONE: Column = Column {
    key: "toNoPipe",
    head: "to no pipe",
    meaning: "the rate against that without a pipe",
    decimals: 2,
};
const BEHIND: Column = Column {
    key: "behindMillis",
    head: "behind ms",
    meaning: "from the last commit until everything is visible in ClickHouse",
    decimals: 0,
};
const USER: Column = Column {
    key: "workerUserMicrosPerTransaction",
    head: "worker user us",
    meaning: "CPU a transaction of the workers in their own code",
    decimals: 1,
};
const SYSTEM: Column = Column {
    key: "workerSystemMicrosPerTransaction",
    head: "system us",
    meaning: "the same in the kernel",
    decimals: 1,
};
const POSTGRES: Column = Column {
    key: "postgresMicrosPerTransaction",
    head: "PostgreSQL us",
    meaning: "CPU a transaction of PostgreSQL",
    decimals: 1,
};
const CLICKHOUSE: Column = Column {
    key: "clickhouseMicrosPerTransaction",
    head: "ClickHouse us",
    meaning: "CPU a transaction of ClickHouse",
    decimals: 1,
};
const COLUMNS: &[&Column] = &[&RATE, &TO_NONE, &BEHIND, &USER, &SYSTEM, &POSTGRES, &CLICKHOUSE];

/// Measures so many transactions with and without a pipe.
pub(super) async fn run(
    testbed: &Testbed,
    scale: u32,
    transactions: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let each = transactions.div_ceil(CLIENTS);
    let transactions = u64::from(each * CLIENTS);
    let title =
        format!("small: {transactions} transactions of pgbench's workload, scale {scale}, {CLIENTS} clients");
    let mut table = Table::new("pgbench", title, COLUMNS);
    testbed.make_place(PLACE).await?;
    make_tables(testbed, scale).await?;
    for run in 0..report.runs {
        println!("small: run {} of {}", run + 1, report.runs);
        let with_first = run % 2 == 1;
        let (mut with, mut without) = (0.0, 0.0);
        for has_pipe in [with_first, !with_first] {
            for table in ["branches", "tellers"] {
                testbed.source.batch_execute(&format!("VACUUM {PLACE}.pgbench_{table}")).await?;
            }
            if has_pipe {
                testbed.apply(PLACE, PLACE, &mappings()).await?;
            }
            testbed.settle().await?;
            let before = testbed.usage();
            let took = work(testbed, scale, each).await?;
            let rate = number(transactions) / took.as_secs_f64();
            if !has_pipe {
                without = rate;
                let usage = testbed.usage() - before;
                table.record(
                    "no pipe",
                    [(&RATE, rate), (&POSTGRES, micros_each(usage.postgres.total(), transactions))],
                );
                continue;
            }
            with = rate;
            let behind = until_visible(testbed).await?;
            let usage = testbed.usage() - before;
            table.record(
                "with a pipe",
                [
                    (&RATE, rate),
                    (&BEHIND, behind.as_secs_f64() * 1e3),
                    (&USER, micros_each(usage.workers.user, transactions)),
                    (&SYSTEM, micros_each(usage.workers.system, transactions)),
                    (&POSTGRES, micros_each(usage.postgres.total(), transactions)),
                    (&CLICKHOUSE, micros_each(usage.clickhouse.total(), transactions)),
                ],
            );
            check(testbed).await?;
            testbed.delete(PLACE).await?;
            for name in ["accounts", "branches", "tellers", "history"] {
                testbed.execute(&format!("DROP TABLE {PLACE}.pgbench_{name} SYNC")).await?;
            }
        }
        table.record("with a pipe", [(&TO_NONE, with / without)]);
    }
    testbed.remove_place(PLACE).await?;
    report.add(&table)
}

/// The tables as `pgbench --initialize` makes them. Its history has no key; it is carried as a table that keeps every row.
async fn make_tables(testbed: &Testbed, scale: u32) -> anyhow::Result<()> {
    let (tellers, accounts) = (scale * TELLERS, scale * ACCOUNTS);
    let sql = format!(
        "SET search_path = {PLACE};
         CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88)) WITH (fillfactor = 100);
         CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84)) WITH (fillfactor = 100);
         CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84)) WITH (fillfactor = 100);
         CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
         ALTER TABLE pgbench_history REPLICA IDENTITY FULL;
         INSERT INTO pgbench_branches SELECT n, 0 FROM generate_series(1, {scale}) n;
         INSERT INTO pgbench_tellers SELECT n, (n - 1) / {TELLERS} + 1, 0 FROM generate_series(1, {tellers}) n;
         INSERT INTO pgbench_accounts SELECT n, (n - 1) / {ACCOUNTS} + 1, 0, '' FROM generate_series(1, {accounts}) n;
         RESET search_path"
    );
    testbed.source.batch_execute(&sql).await?;
    Ok(testbed.source.batch_execute("VACUUM ANALYZE").await?)
}

fn mappings() -> Vec<String> {
    let keyed = ["branches", "tellers", "accounts"]
        .map(|name| format!("{{source: {PLACE}.pgbench_{name}, target: pgbench_{name}}}"));
    let history =
        format!("{{source: {PLACE}.pgbench_history, target: pgbench_history, tableEngine: MergeTree}}");
    keyed.into_iter().chain([history]).collect()
}

/// Runs the transactions, `each` by every client, and says how long that took.
async fn work(testbed: &Testbed, scale: u32, each: u32) -> anyhow::Result<Duration> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let client = testbed.connect().await?;
        client.batch_execute(&format!("SET search_path = {PLACE}")).await?;
        clients.push(client);
    }
    let began = Instant::now();
    let mut working = JoinSet::new();
    for client in clients {
        working.spawn(async move { transact(&client, scale, each).await });
    }
    while let Some(worked) = working.join_next().await {
        worked??;
    }
    Ok(began.elapsed())
}

/// The script of `pgbench --builtin=tpcb-like --protocol=prepared`.
async fn transact(client: &Client, scale: u32, count: u32) -> anyhow::Result<()> {
    let begin = client.prepare("BEGIN").await?;
    let account =
        client.prepare("UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2").await?;
    let balance = client.prepare("SELECT abalance FROM pgbench_accounts WHERE aid = $1").await?;
    let teller = client.prepare("UPDATE pgbench_tellers SET tbalance = tbalance + $1 WHERE tid = $2").await?;
    let branch =
        client.prepare("UPDATE pgbench_branches SET bbalance = bbalance + $1 WHERE bid = $2").await?;
    let history = "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES ($1, $2, $3, $4, CURRENT_TIMESTAMP)";
    let history = client.prepare(history).await?;
    let end = client.prepare("END").await?;
    for _ in 0..count {
        let up_to = |most: u32| i32::try_from(rand::rng().random_range(1..=most));
        let (aid, bid, tid) = (up_to(scale * ACCOUNTS)?, up_to(scale)?, up_to(scale * TELLERS)?);
        let delta: i32 = rand::rng().random_range(-5_000..=5_000);
        client.execute(&begin, &[]).await?;
        client.execute(&account, &[&delta, &aid]).await?;
        client.query_one(&balance, &[&aid]).await?;
        client.execute(&teller, &[&delta, &tid]).await?;
        client.execute(&branch, &[&delta, &bid]).await?;
        client.execute(&history, &[&tid, &bid, &aid, &delta]).await?;
        client.execute(&end, &[]).await?;
    }
    Ok(())
}

/// Waits until history and the balances of branches and tellers have arrived, and says how long that took.
async fn until_visible(testbed: &Testbed) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let rows = expected(testbed, &format!("SELECT count(*) FROM {PLACE}.pgbench_history")).await?;
    arrival::until(testbed, &format!("SELECT count() FROM {PLACE}.pgbench_history"), u64::try_from(rows)?)
        .await?;
    for (table, column) in [("branches", "bbalance"), ("tellers", "tbalance")] {
        let sum = format!("sum({column})");
        let sum_there = expected(testbed, &format!("SELECT {sum} FROM {PLACE}.pgbench_{table}")).await?;
        let sql =
            format!("SELECT toUInt64(ifNull({sum}, 0) = {sum_there}) FROM {PLACE}.pgbench_{table} FINAL");
        arrival::until(testbed, &sql, 1).await?;
    }
    Ok(began.elapsed())
}

/// Every account has arrived too.
async fn check(testbed: &Testbed) -> anyhow::Result<()> {
    let there = expected(testbed, &format!("SELECT sum(abalance) FROM {PLACE}.pgbench_accounts")).await?;
    let sql = format!("SELECT ifNull(sum(abalance), 0) FROM {PLACE}.pgbench_accounts FINAL");
    let here = testbed.numbers(&sql).await?;
    if here != [there] {
        bail!("the accounts sum up to {here:?} in ClickHouse and to {there} in PostgreSQL");
    }
    Ok(())
}

async fn expected(testbed: &Testbed, sql: &str) -> anyhow::Result<i64> {
    Ok(testbed.source.query_one(sql, &[]).await?.get(0))
}
