//! From commit to visible by key in ClickHouse: on an idle pipe, at a steady rate, among many connections, and beside a long transaction.
//!
//! Each row that is followed, a *probe*, is asked for by its key from its commit on until it is found; all probes that are under way are asked for in one query. What a query takes and the pause
//! between two, together about ten milliseconds, is part of every delay.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::future::try_join_all;
use rand::Rng as _;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_postgres::Client;

use super::meter::Usage;
use super::report::{Column, Report, Table, number, percentile};
use super::testbed::Testbed;

/// The schema, the database and the pipe.
const PLACE: &str = "delay";
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// Probes in a query, the oldest first.
const PROBES_IN_A_QUERY: usize = 500;
/// How long a probe may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The steady rate: so many rows in each transaction, so often.
const STEADY_ROWS: i64 = 50;
const STEADY_EVERY: Duration = Duration::from_millis(10);

/// The many connections, and what a transaction of each consists of.
const CONNECTIONS: u64 = 90;
const STATEMENTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// The pause of every tenth connection, whose transactions last five seconds.
const LONG_PAUSE: Duration = Duration::from_secs(1);

/// Beside the long transaction, and within it.
const BESIDE_EVERY: Duration = Duration::from_millis(100);
const LONG_ROWS: i64 = 100;

const PROBES: Column =
    Column { key: "probes", head: "probes", meaning: "commits that were followed", decimals: 0 };
const MEDIAN: Column = Column {
    key: "p50Millis",
    head: "p50 ms",
    meaning: "half of the probes were found within this time of their commit",
    decimals: 0,
};
const P99: Column = Column { key: "p99Millis", head: "p99 ms", meaning: "99 of 100 were", decimals: 0 };
const MOST: Column = Column { key: "maxMillis", head: "max ms", meaning: "all were", decimals: 0 };
const RATE: Column =
    Column { key: "rowsPerSecond", head: "rows/s", meaning: "rows written a second", decimals: 0 };
const PARTS: Column = Column {
    key: "partsPerMinute",
    head: "parts/min",
    meaning: "parts that inserts made in ClickHouse a minute",
    decimals: 0,
};
const WORKER: Column = Column {
    key: "workerCorePercent",
    head: "worker %",
    meaning: "CPU of the workers, in hundredths of a core",
    decimals: 1,
};
const CLICKHOUSE: Column = Column {
    key: "clickhouseCorePercent",
    head: "ClickHouse %",
    meaning: "CPU of ClickHouse likewise, that of looking for probes included",
    decimals: 1,
};
const COLUMNS: &[&Column] = &[&PROBES, &MEDIAN, &P99, &MOST, &RATE, &PARTS, &WORKER, &CLICKHOUSE];

/// Measures each situation for so long.
pub(super) async fn run(testbed: &Testbed, lasting: Duration, report: &mut Report) -> anyhow::Result<()> {
    let title = format!("delay: from commit to visible by key, {} s each", lasting.as_secs());
    let mut table = Table::new("delay", title, COLUMNS);
    testbed.make_place(PLACE).await?;
    let sql = format!("CREATE TABLE {PLACE}.delayed (id bigint PRIMARY KEY, body text NOT NULL)");
    testbed.source.batch_execute(&sql).await?;
    testbed.apply(PLACE, PLACE, &[format!("{{source: {PLACE}.delayed, target: delayed}}")]).await?;
    let mut delay = Delay { testbed, lasting, ids: AtomicI64::new(0), table: &mut table };
    for run in 0..report.runs {
        println!("delay: run {} of {}", run + 1, report.runs);
        delay.idle().await?;
        delay.steady().await?;
        delay.connections().await?;
        delay.beside_long().await?;
    }
    testbed.delete(PLACE).await?;
    testbed.remove_place(PLACE).await?;
    report.add(&table)
}

/// Rows that have committed and are looked for.
#[derive(Default)]
struct Probes {
    waiting: Mutex<BTreeMap<i64, Instant>>,
    millis: Mutex<Vec<f64>>,
    written: AtomicBool,
}

impl Probes {
    /// The transaction of this row has just committed.
    fn committed(&self, id: i64) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Instant::now());
    }

    fn is_waiting(&self) -> bool {
        !self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Looks for them until nothing more is written and all are found.
    async fn watch(&self, testbed: &Testbed) -> anyhow::Result<()> {
        loop {
            // In this order: what was written before the flag was set is waiting.
            let written = self.written.load(Ordering::Acquire);
            let oldest: Vec<(i64, Instant)> = {
                let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.iter().take(PROBES_IN_A_QUERY).map(|(id, since)| (*id, *since)).collect()
            };
            if let Some((id, _)) = oldest.iter().find(|(_, since)| since.elapsed() > PATIENCE) {
                bail!("row {id} is not visible {PATIENCE:?} after its commit");
            }
            if oldest.is_empty() {
                if written {
                    return Ok(());
                }
            } else {
                self.look(testbed, &oldest).await?;
            }
            sleep(LOOK).await;
        }
    }

    async fn look(&self, testbed: &Testbed, oldest: &[(i64, Instant)]) -> anyhow::Result<()> {
        let ids = oldest.iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>().join(", ");
        let found = testbed.numbers(&format!("SELECT id FROM {PLACE}.delayed WHERE id IN ({ids})")).await?;
        let now = Instant::now();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut millis = self.millis.lock().unwrap_or_else(PoisonError::into_inner);
        for since in found.iter().filter_map(|id| waiting.remove(id)) {
            millis.push(now.duration_since(since).as_secs_f64() * 1e3);
        }
        Ok(())
    }

    fn take(&self) -> Vec<f64> {
        std::mem::take(&mut self.millis.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Delay<'a> {
    testbed: &'a Testbed,
    lasting: Duration,
    /// The newest id.
    ids: AtomicI64,
    table: &'a mut Table,
}

impl Delay<'_> {
    /// So many new ids; gives the first.
    fn next_ids(&self, count: i64) -> i64 {
        self.ids.fetch_add(count, Ordering::Relaxed) + 1
    }

    /// A row at a time, each after the one before was found and a moment of rest.
    async fn idle(&mut self) -> anyhow::Result<()> {
        let probes = Probes::default();
        let meter = Meter::begin(self).await?;
        let write = async {
            let insert = Insert::prepare(self.testbed.connect().await?).await?;
            while meter.began.elapsed() < self.lasting {
                let id = self.next_ids(1);
                insert.rows(id, 1).await?;
                probes.committed(id);
                while probes.is_waiting() {
                    sleep(LOOK).await;
                }
                let rest = rand::rng().random_range(50..250);
                sleep(Duration::from_millis(rest)).await;
            }
            probes.written.store(true, Ordering::Release);
            anyhow::Ok(())
        };
        tokio::try_join!(write, probes.watch(self.testbed))?;
        meter.end(self, "single rows on an idle pipe", &probes.take()).await
    }

    /// Small transactions one after another on one connection, at a steady rate.
    async fn steady(&mut self) -> anyhow::Result<()> {
        let probes = Probes::default();
        let meter = Meter::begin(self).await?;
        let write = async {
            let insert = Insert::prepare(self.testbed.connect().await?).await?;
            let mut tick = interval(STEADY_EVERY);
            // What was missed is made up for, so that the rate is the one that was asked for.
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
            while meter.began.elapsed() < self.lasting {
                tick.tick().await;
                let first = self.next_ids(STEADY_ROWS);
                insert.rows(first, STEADY_ROWS).await?;
                probes.committed(first + STEADY_ROWS - 1);
            }
            probes.written.store(true, Ordering::Release);
            anyhow::Ok(())
        };
        tokio::try_join!(write, probes.watch(self.testbed))?;
        meter.end(self, "steady 5,000 rows/s, 100 transactions/s", &probes.take()).await
    }

    /// Transactions of a second on most connections and of five on every tenth, interleaved.
    async fn connections(&mut self) -> anyhow::Result<()> {
        let probes = Probes::default();
        let mut clients = Vec::new();
        for place in 0..CONNECTIONS {
            clients.push((place, Insert::prepare(self.testbed.connect().await?).await?));
        }
        let meter = Meter::begin(self).await?;
        let (this, probed) = (&*self, &probes);
        let began = meter.began;
        let writers = clients.into_iter().map(|(place, insert)| async move {
            let pause = if place % 10 == 0 { LONG_PAUSE } else { PAUSE };
            sleep(Duration::from_millis(place * 11)).await;
            while began.elapsed() < this.lasting {
                insert.client.batch_execute("BEGIN").await?;
                let mut last = 0;
                for _ in 0..STATEMENTS {
                    last = this.next_ids(1);
                    insert.rows(last, 1).await?;
                    sleep(pause).await;
                }
                insert.client.batch_execute("COMMIT").await?;
                probed.committed(last);
            }
            anyhow::Ok(())
        });
        let write = async {
            try_join_all(writers).await?;
            probes.written.store(true, Ordering::Release);
            anyhow::Ok(())
        };
        tokio::try_join!(write, probes.watch(self.testbed))?;
        meter.end(self, "90 connections, interleaved transactions", &probes.take()).await
    }

    /// A transaction that writes for half as long again, and single rows beside it.
    async fn beside_long(&mut self) -> anyhow::Result<()> {
        let (beside, long) = (Probes::default(), Probes::default());
        let meter = Meter::begin(self).await?;
        let lasting = self.lasting * 3 / 2;
        let write_long = async {
            let insert = Insert::prepare(self.testbed.connect().await?).await?;
            insert.client.batch_execute("BEGIN").await?;
            let mut last = 0;
            while meter.began.elapsed() < lasting {
                let first = self.next_ids(LONG_ROWS);
                insert.rows(first, LONG_ROWS).await?;
                last = first + LONG_ROWS - 1;
                sleep(BESIDE_EVERY).await;
            }
            insert.client.batch_execute("COMMIT").await?;
            long.committed(last);
            long.written.store(true, Ordering::Release);
            anyhow::Ok(())
        };
        let write_beside = async {
            let insert = Insert::prepare(self.testbed.connect().await?).await?;
            let mut tick = interval(BESIDE_EVERY);
            while meter.began.elapsed() < lasting {
                tick.tick().await;
                let id = self.next_ids(1);
                insert.rows(id, 1).await?;
                beside.committed(id);
            }
            beside.written.store(true, Ordering::Release);
            anyhow::Ok(())
        };
        tokio::try_join!(write_long, write_beside, beside.watch(self.testbed), async {
            // Nothing to look for before the commit.
            while !long.written.load(Ordering::Acquire) {
                sleep(LOOK).await;
            }
            long.watch(self.testbed).await
        })?;
        let line = format!("10 single rows/s beside a transaction of {} s", lasting.as_secs());
        meter.end(self, &line, &beside.take()).await?;
        record_delays(self.table, "that transaction itself", &long.take());
        Ok(())
    }
}

/// A connection with the statement that writes rows.
struct Insert {
    client: Client,
    statement: tokio_postgres::Statement,
}

impl Insert {
    async fn prepare(client: Client) -> anyhow::Result<Self> {
        let sql = format!(
            "INSERT INTO {PLACE}.delayed SELECT n, 'a text of a hundred characters or so, the same in every row but for its number at the end: ' || n \
             FROM generate_series($1::bigint, $2::bigint) n"
        );
        let statement = client.prepare(&sql).await?;
        Ok(Self { client, statement })
    }

    async fn rows(&self, first: i64, count: i64) -> anyhow::Result<()> {
        self.client.execute(&self.statement, &[&first, &(first + count - 1)]).await?;
        Ok(())
    }
}

/// What everybody had spent when a situation began.
struct Meter {
    began: Instant,
    usage: Usage,
    parts: u64,
    id: i64,
}

impl Meter {
    async fn begin(delay: &Delay<'_>) -> anyhow::Result<Self> {
        delay.testbed.settle().await?;
        let parts = parts_made(delay.testbed).await?;
        let id = delay.ids.load(Ordering::Relaxed);
        Ok(Self { began: Instant::now(), usage: delay.testbed.usage(), parts, id })
    }

    async fn end(self, delay: &mut Delay<'_>, line: &str, millis: &[f64]) -> anyhow::Result<()> {
        let seconds = self.began.elapsed().as_secs_f64();
        let usage = delay.testbed.usage() - self.usage;
        let parts = parts_made(delay.testbed).await?.saturating_sub(self.parts);
        let rows = u64::try_from(delay.ids.load(Ordering::Relaxed) - self.id)?;
        record_delays(delay.table, line, millis);
        delay.table.record(
            line,
            [
                (&RATE, number(rows) / seconds),
                (&PARTS, number(parts) * 60.0 / seconds),
                (&WORKER, usage.workers.total().as_secs_f64() * 100.0 / seconds),
                (&CLICKHOUSE, usage.clickhouse.total().as_secs_f64() * 100.0 / seconds),
            ],
        );
        Ok(())
    }
}

fn record_delays(table: &mut Table, line: &str, millis: &[f64]) {
    let at = |percent| percentile(millis, percent).unwrap_or(f64::NAN);
    let count = number(millis.len() as u64);
    table.record(line, [(&PROBES, count), (&MEDIAN, at(50)), (&P99, at(99)), (&MOST, at(100))]);
}

/// Blocks that inserts have written since ClickHouse started; each is a part of its own.
async fn parts_made(testbed: &Testbed) -> anyhow::Result<u64> {
    let sql = "SELECT toUInt64(sum(value)) FROM system.events WHERE event = 'MergeTreeDataWriterBlocks'";
    testbed.number(sql).await.context("ClickHouse does not count its parts")
}
