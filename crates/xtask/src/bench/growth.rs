//! What a row costs as there are more tables, and more rows.

use anyhow::bail;

use super::report::{Column, Report, Table, mebibytes, micros_each, number};
use super::shape::Shape;
use super::testbed::Testbed;

/// The schema, the database and the pipe.
const PLACE: &str = "growth";

const SECONDS: Column = Column {
    key: "seconds",
    head: "seconds",
    meaning: "from entering Snapshot to entering Running",
    decimals: 2,
};
const RATE: Column = Column { key: "rowsPerSecond", head: "rows/s", meaning: "rows a second", decimals: 0 };
const WORKER: Column = Column {
    key: "workerMicrosPerRow",
    head: "worker us",
    meaning: "CPU a row of the workers together",
    decimals: 3,
};
const SYSTEM: Column = Column {
    key: "workerSystemMicrosPerRow",
    head: "in kernel us",
    meaning: "the part of it that the kernel spent",
    decimals: 3,
};
const TO_FIRST: Column = Column {
    key: "toFirst",
    head: "to first",
    meaning: "the workers' CPU a row against that of the first line",
    decimals: 2,
};
const POSTGRES: Column = Column {
    key: "postgresMicrosPerRow",
    head: "PostgreSQL us",
    meaning: "CPU a row of PostgreSQL",
    decimals: 2,
};
const CLICKHOUSE: Column = Column {
    key: "clickhouseMicrosPerRow",
    head: "ClickHouse us",
    meaning: "CPU a row of ClickHouse until the last row is in, merges that run meanwhile included",
    decimals: 2,
};
const PEAK: Column = Column {
    key: "peakMebibytes",
    head: "peak MiB",
    meaning: "most memory of one worker (VmHWM)",
    decimals: 0,
};
const COLUMNS: &[&Column] = &[&SECONDS, &RATE, &WORKER, &SYSTEM, &TO_FIRST, &POSTGRES, &CLICKHOUSE, &PEAK];

/// Measures the first number of rows divided among each number of tables, then the other numbers of rows in one table.
pub(super) async fn run(
    testbed: &Testbed,
    tables: &[u32],
    rows: &[u32],
    report: &mut Report,
) -> anyhow::Result<()> {
    let Some(first) = rows.first() else { return Ok(()) };
    let divided = tables.iter().map(|tables| (*tables, *first));
    let larger = rows.iter().map(|rows| (1, *rows)).filter(|size| size.1 != *first || !tables.contains(&1));
    let mut table = Table::new("growth", "growth: the first copy of typical rows".to_owned(), COLUMNS);
    // Each size is filled once and its runs follow one another; a run is compared with the first line's run of the same number.
    let mut firsts: Vec<f64> = Vec::new();
    for (place, (tables, rows)) in divided.chain(larger).enumerate() {
        println!("growth: {}", name(tables, rows));
        testbed.make_place(PLACE).await?;
        fill(testbed, tables, rows / tables).await?;
        for run in 0..report.runs {
            let worker = measure(testbed, tables, rows / tables, &mut table).await?;
            if place == 0 {
                firsts.push(worker);
            }
            let line = name(tables, rows / tables * tables);
            let first = firsts.get(usize::try_from(run)?).copied().unwrap_or(f64::NAN);
            table.record(&line, [(&TO_FIRST, worker / first)]);
        }
        testbed.remove_place(PLACE).await?;
    }
    report.add(&table)
}

fn name(tables: u32, rows: u32) -> String {
    let what = if tables == 1 { "table" } else { "tables" };
    format!("{rows} rows in {tables} {what}")
}

async fn fill(testbed: &Testbed, tables: u32, each: u32) -> anyhow::Result<()> {
    for table in 0..tables {
        let name = format!("{PLACE}.t{table}");
        for statement in [
            format!("CREATE TABLE {name} ({})", Shape::Typical.columns()),
            format!("INSERT INTO {name} {}", Shape::Typical.rows("1", &each.to_string())),
            format!("VACUUM ANALYZE {name}"),
        ] {
            testbed.source.batch_execute(&statement).await?;
        }
    }
    Ok(())
}

/// Copies everything once and gives the workers' CPU a row.
async fn measure(testbed: &Testbed, tables: u32, each: u32, table: &mut Table) -> anyhow::Result<f64> {
    let rows = u64::from(tables) * u64::from(each);
    let mappings: Vec<String> =
        (0..tables).map(|table| format!("{{source: {PLACE}.t{table}, target: t{table}}}")).collect();
    testbed.settle().await?;
    testbed.reset_peaks()?;
    let before = testbed.usage();
    testbed.apply(PLACE, PLACE, &mappings).await?;
    let (usage, peak) = (testbed.usage() - before, testbed.peak()?);
    let seconds = testbed.snapshot_took(PLACE).await?.as_secs_f64();
    let worker = micros_each(usage.workers.total(), rows);
    table.record(
        &name(tables, tables * each),
        [
            (&SECONDS, seconds),
            (&RATE, number(rows) / seconds),
            (&WORKER, worker),
            (&SYSTEM, micros_each(usage.workers.system, rows)),
            (&POSTGRES, micros_each(usage.postgres.total(), rows)),
            (&CLICKHOUSE, micros_each(usage.clickhouse.total(), rows)),
            (&PEAK, mebibytes(peak)),
        ],
    );
    let sql = format!("SELECT count() FROM merge('{PLACE}', '^t[0-9]+$')");
    let found = testbed.number(&sql).await?;
    if found < rows {
        bail!("{found} of {rows} rows arrived");
    }
    testbed.delete(PLACE).await?;
    for table in 0..tables {
        testbed.execute(&format!("DROP TABLE {PLACE}.t{table} SYNC")).await?;
    }
    Ok(worker)
}
