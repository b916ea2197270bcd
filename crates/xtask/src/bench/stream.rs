//! Bulk changes, live and as a backlog: bare receipt, Millrace, and MaterializedPostgreSQL for one of them.
//!
//! One run writes the workload twice. Once while the pipe is paused: a bare receiver on a slot of its own takes the changes as they are written (bare, live), then a second slot is read from
//! its beginning (bare, backlog) and the pipe resumed (Millrace, backlog), the two taking turns at being first, since the second reader of a log finds it warm. And once while the pipe
//! runs (Millrace, live). The halves take turns too.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::arrival;
use super::bare::Slot;
use super::meter::Usage;
use super::report::{Column, Report, Table, micros_each, number};
use super::shape::{Shape, typical_values};
use super::testbed::Testbed;
use super::workload::{self, Kind, Transactions, Workload};

/// The schema, the database and the pipe.
const PLACE: &str = "stream";

/// Not every combination: each size, each kind and each number of tables, and the two extremes of it.
const WORKLOADS: [(Transactions, Kind, u32); 7] = [
    (Transactions::Large, Kind::Inserts, 1),
    (Transactions::Large, Kind::Updates, 1),
    (Transactions::Large, Kind::Mixed, 10),
    (Transactions::Middle, Kind::Inserts, 1),
    (Transactions::Middle, Kind::Updates, 10),
    (Transactions::Middle, Kind::Mixed, 10),
    (Transactions::Middle, Kind::Mixed, 200),
];

const SECONDS: Column = Column {
    key: "seconds",
    head: "seconds",
    meaning: "live: from the first statement of the workload until all is received, or visible in ClickHouse; backlog: from attaching, or from pipe resume",
    decimals: 2,
};
const RATE: Column =
    Column { key: "changesPerSecond", head: "changes/s", meaning: "changes a second", decimals: 0 };
const TO_BARE: Column = Column {
    key: "toBare",
    head: "to bare",
    meaning: "how many times as fast as bare receipt, live or of the backlog",
    decimals: 2,
};
const USER: Column = Column {
    key: "clientUserMicrosPerChange",
    head: "client user us",
    meaning: "CPU a change of the workers, or of the bare receiver, in their own code; live, the bench's own includes the writing of the workload's statements",
    decimals: 2,
};
const SYSTEM: Column = Column {
    key: "clientSystemMicrosPerChange",
    head: "system us",
    meaning: "the same in the kernel",
    decimals: 2,
};
const POSTGRES: Column = Column {
    key: "postgresMicrosPerChange",
    head: "PostgreSQL us",
    meaning: "CPU a change of PostgreSQL; live, that of the workload itself is in it",
    decimals: 2,
};
const CLICKHOUSE: Column = Column {
    key: "clickhouseMicrosPerChange",
    head: "ClickHouse us",
    meaning: "CPU a change of ClickHouse, that of looking whether all is there included",
    decimals: 2,
};
const COLUMNS: &[&Column] = &[&SECONDS, &RATE, &TO_BARE, &USER, &SYSTEM, &POSTGRES, &CLICKHOUSE];

const BARE_LIVE: &str = "bare START_REPLICATION, live";
const BARE_BACKLOG: &str = "bare START_REPLICATION, backlog";
const LIVE: &str = "Millrace, live";
const BACKLOG: &str = "Millrace, backlog";

/// Measures the workloads, of so many changes each: those over these numbers of tables, or all where none is given.
pub(super) async fn run(
    testbed: &Testbed,
    changes: u32,
    tables: &[u32],
    report: &mut Report,
) -> anyhow::Result<()> {
    let unknown = tables.iter().find(|tables| WORKLOADS.iter().all(|(_, _, count)| count != *tables));
    if let Some(unknown) = unknown {
        bail!("no workload is over {unknown} tables; --stream-tables takes 1, 10 and 200");
    }
    for (transactions, kind, count) in WORKLOADS {
        if !tables.is_empty() && !tables.contains(&count) {
            continue;
        }
        testbed.make_place(PLACE).await?;
        let workload = Workload::new(PLACE, kind, transactions, count, changes);
        workload.make_tables(testbed).await?;
        testbed.apply(PLACE, PLACE, &workload.mappings()).await?;
        let size = match transactions {
            Transactions::Large => "one transaction",
            Transactions::Middle => "transactions of 1,000",
        };
        let what = format!("{kind:?}").to_lowercase();
        let key = format!("{transactions:?}-{what}-{count}").to_lowercase();
        let over = if count == 1 { "one table".to_owned() } else { format!("{count} tables") };
        let title = format!("stream: {} {what} in {size} over {over}", workload.changes());
        println!("{title}");
        let publication = testbed.publication(PLACE).await?;
        let mut cycle =
            Cycle { testbed, workload, publication, round: 0, table: Table::new(&key, title, COLUMNS) };
        for run in 0..report.runs {
            cycle.run(run % 2 == 1).await?;
        }
        let mut table = cycle.table;
        testbed.delete(PLACE).await?;
        if (transactions, kind, count) == WORKLOADS[0] {
            materialized(testbed, changes, report.runs, &mut table).await?;
        }
        testbed.remove_place(PLACE).await?;
        report.add(&table)?;
    }
    Ok(())
}

/// One workload, round after round.
struct Cycle<'a> {
    testbed: &'a Testbed,
    workload: Workload,
    publication: String,
    round: u32,
    table: Table,
}

/// What was measured of one line.
struct Taken {
    line: &'static str,
    took: Duration,
    usage: Usage,
}

impl Cycle<'_> {
    /// Both halves, the order of everything turned round if asked for.
    async fn run(&mut self, turned: bool) -> anyhow::Result<()> {
        let mut taken = Vec::new();
        if turned {
            taken.push(self.live().await?);
            self.paused(turned, &mut taken).await?;
        } else {
            self.paused(turned, &mut taken).await?;
            taken.push(self.live().await?);
        }
        let changes = self.workload.changes();
        let seconds = |line: &str| {
            taken.iter().find(|taken| taken.line == line).map_or(f64::NAN, |taken| taken.took.as_secs_f64())
        };
        for line in [BARE_LIVE, LIVE, BARE_BACKLOG, BACKLOG] {
            let Some(Taken { took, usage, .. }) = taken.iter().find(|taken| taken.line == line) else {
                continue;
            };
            let (client, bare) = match line {
                LIVE => (usage.workers, seconds(BARE_LIVE)),
                BACKLOG => (usage.workers, seconds(BARE_BACKLOG)),
                _ => (usage.bench, seconds(line)),
            };
            let took = took.as_secs_f64();
            self.table.record(
                line,
                [
                    (&SECONDS, took),
                    (&RATE, number(changes) / took),
                    (&TO_BARE, bare / took),
                    (&USER, micros_each(client.user, changes)),
                    (&SYSTEM, micros_each(client.system, changes)),
                    (&POSTGRES, micros_each(usage.postgres.total(), changes)),
                ],
            );
            let clickhouse = micros_each(usage.clickhouse.total(), changes);
            self.table.record(line, matches!(line, LIVE | BACKLOG).then_some((&CLICKHOUSE, clickhouse)));
        }
        Ok(())
    }

    /// Writes a round while the pipe runs.
    async fn live(&mut self) -> anyhow::Result<Taken> {
        self.round += 1;
        self.rest().await?;
        let script = self.workload.round(self.round);
        let (before, began) = (self.testbed.usage(), Instant::now());
        workload::write(self.testbed, &script).await?;
        let visible = self.workload.until_visible(self.testbed, PLACE, self.round).await?;
        Ok(Taken { line: LIVE, took: visible - began, usage: self.testbed.usage() - before })
    }

    /// Writes a round while the pipe is paused, and has the bare slots and the pipe take it.
    async fn paused(&mut self, turned: bool, taken: &mut Vec<Taken>) -> anyhow::Result<()> {
        self.round += 1;
        self.rest().await?;
        self.testbed.pause(PLACE).await?;
        let changes = self.workload.changes();
        let live = Slot::make(self.testbed, "bench_live", &self.publication).await?;
        let backlog = Slot::make(self.testbed, "bench_backlog", &self.publication).await?;

        let script = self.workload.round(self.round);
        let receiver = live.receive(changes).await?;
        let (before, began) = (self.testbed.usage(), Instant::now());
        workload::write(self.testbed, &script).await?;
        receiver.await??;
        taken.push(Taken { line: BARE_LIVE, took: began.elapsed(), usage: self.testbed.usage() - before });
        live.remove().await?;

        let order = if turned { [BACKLOG, BARE_BACKLOG] } else { [BARE_BACKLOG, BACKLOG] };
        for line in order {
            let (before, began) = (self.testbed.usage(), Instant::now());
            let ended = if line == BACKLOG {
                self.testbed.resume(PLACE).await?;
                self.workload.until_visible(self.testbed, PLACE, self.round).await?
            } else {
                backlog.receive(changes).await?.await??;
                Instant::now()
            };
            taken.push(Taken { line, took: ended - began, usage: self.testbed.usage() - before });
        }
        backlog.remove().await
    }

    /// Lets everybody come to rest, and lets slots begin where the log is now: a slot reads again from the last record of running transactions.
    async fn rest(&self) -> anyhow::Result<()> {
        self.testbed.settle().await?;
        self.testbed.source.batch_execute("SELECT pg_log_standby_snapshot()").await?;
        Ok(())
    }
}

/// ClickHouse's own engine on a table of its own: its slot would burden all others, so it is there only while it is measured.
async fn materialized(testbed: &Testbed, changes: u32, runs: u32, table: &mut Table) -> anyhow::Result<()> {
    let columns = Shape::Typical.columns();
    let count = "SELECT count() FROM materialized.materialized";
    for run in 1..=runs {
        println!("MaterializedPostgreSQL: run {run} of {runs}");
        testbed
            .source
            .batch_execute(&format!(
                "CREATE TABLE {PLACE}.materialized ({columns}); INSERT INTO {PLACE}.materialized {}",
                Shape::Typical.rows("-1", "-1")
            ))
            .await?;
        testbed
            .execute(&format!(
                "CREATE DATABASE materialized ENGINE = MaterializedPostgreSQL({}) \
                 SETTINGS materialized_postgresql_schema = '{PLACE}', materialized_postgresql_tables_list = 'materialized'",
                testbed.engine_arguments(None)
            ))
            .await?;
        // The row that was there, and one that came later, show that its own initial load is over.
        arrival::until(testbed, count, 1).await?;
        let insert = format!("INSERT INTO {PLACE}.materialized {}", Shape::Typical.rows("0", "0"));
        testbed.source.batch_execute(&insert).await?;
        arrival::until(testbed, count, 2).await?;
        testbed.settle().await?;

        let script = format!(
            "INSERT INTO {PLACE}.materialized SELECT {} FROM generate_series(1, {changes}::bigint) n",
            typical_values("1")
        );
        let began = Instant::now();
        let wrote = workload::write(testbed, &script).await?;
        let took = arrival::until(testbed, count, u64::from(changes) + 2).await? - began;
        for (line, took) in [
            ("MaterializedPostgreSQL, from the first statement", took),
            ("MaterializedPostgreSQL, from the commit", took.saturating_sub(wrote)),
        ] {
            let seconds = took.as_secs_f64();
            table.record(line, [(&SECONDS, seconds), (&RATE, f64::from(changes) / seconds)]);
        }
        testbed.execute("DROP DATABASE materialized SYNC").await?;
        testbed.source.batch_execute(&format!("DROP TABLE {PLACE}.materialized")).await?;
    }
    Ok(())
}
