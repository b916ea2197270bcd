//! One very large transaction: that it arrives, and the memory that a worker takes for it.

use std::time::Instant;

use super::arrival;
use super::report::{Column, Report, Table, mebibytes, micros_each, number};
use super::shape::Shape;
use super::testbed::Testbed;

/// The schema, the database and the pipe.
const PLACE: &str = "transaction";

const WRITING: Column = Column {
    key: "writingSeconds",
    head: "writing s",
    meaning: "from the statement's beginning to its commit",
    decimals: 1,
};
const AFTER: Column = Column {
    key: "afterCommitSeconds",
    head: "after s",
    meaning: "from the commit until every row is visible in ClickHouse",
    decimals: 1,
};
const RATE: Column = Column {
    key: "rowsPerSecond",
    head: "rows/s",
    meaning: "rows a second from the statement's beginning until the last is visible",
    decimals: 0,
};
const WORKER: Column =
    Column { key: "workerMicrosPerRow", head: "worker us", meaning: "CPU a row of the workers", decimals: 2 };
const POSTGRES: Column = Column {
    key: "postgresMicrosPerRow",
    head: "PostgreSQL us",
    meaning: "CPU a row of PostgreSQL, writing included",
    decimals: 2,
};
const CLICKHOUSE: Column = Column {
    key: "clickhouseMicrosPerRow",
    head: "ClickHouse us",
    meaning: "CPU a row of ClickHouse",
    decimals: 2,
};
const PEAK: Column = Column {
    key: "peakMebibytes",
    head: "peak MiB",
    meaning: "most memory of one worker (VmHWM) with the default --memory-budget",
    decimals: 0,
};
const COLUMNS: &[&Column] = &[&WRITING, &AFTER, &RATE, &WORKER, &POSTGRES, &CLICKHOUSE, &PEAK];

/// Measures a transaction of so many inserts.
pub(super) async fn run(testbed: &Testbed, rows: u32, report: &mut Report) -> anyhow::Result<()> {
    let title = format!("transaction: {rows} inserts of typical rows at once, into a running pipe");
    let mut table = Table::new("transaction", title, COLUMNS);
    for run in 0..report.runs {
        println!("transaction: run {} of {}", run + 1, report.runs);
        testbed.make_place(PLACE).await?;
        let sql = format!("CREATE TABLE {PLACE}.large ({})", Shape::Typical.columns());
        testbed.source.batch_execute(&sql).await?;
        testbed.apply(PLACE, PLACE, &[format!("{{source: {PLACE}.large, target: large}}")]).await?;
        testbed.settle().await?;
        testbed.reset_peaks()?;
        let (before, began) = (testbed.usage(), Instant::now());
        let insert = format!("INSERT INTO {PLACE}.large {}", Shape::Typical.rows("1", &rows.to_string()));
        testbed.source.batch_execute(&insert).await?;
        let wrote = began.elapsed();
        arrival::until(testbed, &format!("SELECT count() FROM {PLACE}.large"), rows.into()).await?;
        let took = began.elapsed();
        let usage = testbed.usage() - before;
        let count = u64::from(rows);
        table.record(
            "Millrace",
            [
                (&WRITING, wrote.as_secs_f64()),
                (&AFTER, took.saturating_sub(wrote).as_secs_f64()),
                (&RATE, number(count) / took.as_secs_f64()),
                (&WORKER, micros_each(usage.workers.total(), count)),
                (&POSTGRES, micros_each(usage.postgres.total(), count)),
                (&CLICKHOUSE, micros_each(usage.clickhouse.total(), count)),
                (&PEAK, mebibytes(testbed.peak()?)),
            ],
        );
        testbed.delete(PLACE).await?;
        testbed.remove_place(PLACE).await?;
    }
    report.add(&table)
}
