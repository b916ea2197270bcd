//! What it costs that PostgreSQL leaves out long values which an update did not change, and that other tables do not pay for it.

use std::fmt::Write as _;
use std::time::Instant;

use super::arrival;
use super::report::{Column, Report, Table, mebibytes, micros_each, number};
use super::testbed::Testbed;

/// The schema, the database and the pipe.
const PLACE: &str = "toast";
/// Updates of a transaction.
const TRANSACTION: u32 = 1_000;

const SECONDS: Column = Column {
    key: "seconds",
    head: "seconds",
    meaning: "from the first statement until all is visible in ClickHouse",
    decimals: 2,
};
const RATE: Column =
    Column { key: "changesPerSecond", head: "changes/s", meaning: "changes a second", decimals: 0 };
const USER: Column = Column {
    key: "workerUserMicrosPerChange",
    head: "worker user us",
    meaning: "CPU a change of the workers in their own code",
    decimals: 2,
};
const SYSTEM: Column = Column {
    key: "workerSystemMicrosPerChange",
    head: "system us",
    meaning: "the same in the kernel",
    decimals: 2,
};
const POSTGRES: Column = Column {
    key: "postgresMicrosPerChange",
    head: "PostgreSQL us",
    meaning: "CPU a change of PostgreSQL, that of the updates themselves included",
    decimals: 2,
};
const CLICKHOUSE: Column = Column {
    key: "clickhouseMicrosPerChange",
    head: "ClickHouse us",
    meaning: "CPU a change of ClickHouse",
    decimals: 2,
};
const PEAK: Column = Column {
    key: "peakMebibytes",
    head: "peak MiB",
    meaning: "most memory of one worker (VmHWM)",
    decimals: 0,
};
const COLUMNS: &[&Column] = &[&SECONDS, &RATE, &USER, &SYSTEM, &POSTGRES, &CLICKHOUSE, &PEAK];

/// A table and what is done to its rows.
#[derive(Debug, Clone, Copy)]
struct Updates {
    line: &'static str,
    table: &'static str,
    /// What is set besides `n`.
    further: &'static str,
}

const UPDATES: [Updates; 3] = [
    Updates { line: "short values", table: "short", further: "" },
    Updates {
        line: "values of 4 kB, changed",
        table: "long",
        further: ", body = repeat(md5((id + n)::text), 128)",
    },
    Updates { line: "values of 4 kB, unchanged and so left out", table: "long", further: "" },
];

/// Measures so many updates of each sort.
pub(super) async fn run(testbed: &Testbed, changes: u32, report: &mut Report) -> anyhow::Result<()> {
    // Every row is updated once.
    let rows = changes.div_ceil(TRANSACTION) * TRANSACTION;
    let title = format!("toast: {rows} updates of one column, live, in transactions of {TRANSACTION}");
    let mut table = Table::new("toast", title, COLUMNS);
    testbed.make_place(PLACE).await?;
    for (name, length) in [("short", 1), ("long", 128)] {
        let sql = format!(
            "CREATE TABLE {PLACE}.{name} (id bigint PRIMARY KEY, n int NOT NULL, body text STORAGE EXTERNAL NOT NULL); \
             INSERT INTO {PLACE}.{name} SELECT n, 0, repeat(md5(n::text), {length}) FROM generate_series(1, {rows}::bigint) n"
        );
        testbed.source.batch_execute(&sql).await?;
    }
    testbed.source.batch_execute("VACUUM ANALYZE").await?;
    let mappings = ["short", "long"].map(|name| format!("{{source: {PLACE}.{name}, target: {name}}}"));
    testbed.apply(PLACE, PLACE, &mappings).await?;
    let mut round = 0;
    for run in 0..report.runs {
        println!("toast: run {} of {}", run + 1, report.runs);
        let mut order = UPDATES;
        if run % 2 == 1 {
            order.reverse();
        }
        for updates in order {
            round += 1;
            measure(testbed, updates, round, rows, &mut table).await?;
        }
    }
    testbed.delete(PLACE).await?;
    testbed.remove_place(PLACE).await?;
    report.add(&table)
}

async fn measure(
    testbed: &Testbed,
    updates: Updates,
    round: u32,
    rows: u32,
    table: &mut Table,
) -> anyhow::Result<()> {
    let Updates { line, table: name, further } = updates;
    let mut script = String::new();
    for first in (1..=rows).step_by(usize::try_from(TRANSACTION)?) {
        let last = first + TRANSACTION - 1;
        writeln!(
            script,
            "BEGIN; UPDATE {PLACE}.{name} SET n = {round}{further} WHERE id BETWEEN {first} AND {last}; COMMIT;"
        )?;
    }
    testbed.settle().await?;
    testbed.reset_peaks()?;
    let (before, began) = (testbed.usage(), Instant::now());
    testbed.source.batch_execute(&script).await?;
    let count = u64::from(rows);
    arrival::until(testbed, &format!("SELECT count() FROM {PLACE}.{name} WHERE n = {round}"), count).await?;
    let seconds = began.elapsed().as_secs_f64();
    let usage = testbed.usage() - before;
    table.record(
        line,
        [
            (&SECONDS, seconds),
            (&RATE, number(count) / seconds),
            (&USER, micros_each(usage.workers.user, count)),
            (&SYSTEM, micros_each(usage.workers.system, count)),
            (&POSTGRES, micros_each(usage.postgres.total(), count)),
            (&CLICKHOUSE, micros_each(usage.clickhouse.total(), count)),
            (&PEAK, mebibytes(testbed.peak()?)),
        ],
    );
    Ok(())
}
