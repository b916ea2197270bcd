//! The first copy of one table: bare binary COPY, bare insert, the limit that follows from their CPU, ClickHouse's own `postgresql()`, and Millrace.

use std::time::Instant;

use anyhow::bail;
use millrace_clickhouse::TableRef;
use millrace_mapping::EncodedBlock;

use super::bare;
use super::meter::Usage;
use super::report::{Column, Report, Table, mebibytes, micros_each, number};
use super::shape::Shape;
use super::testbed::Testbed;

/// The schema, and the database.
const PLACE: &str = "load";

const SECONDS: Column = Column {
    key: "seconds",
    head: "seconds",
    meaning: "until everything was read, inserted, or both; Millrace: from entering Snapshot to entering Running",
    decimals: 2,
};
const RATE: Column = Column { key: "rowsPerSecond", head: "rows/s", meaning: "rows a second", decimals: 0 };
const OF_LIMIT: Column = Column {
    key: "ofLimit",
    head: "of limit",
    meaning: "computed limit / seconds, where the limit is the CPU of bare COPY and of bare insert, clients included, divided by the cores",
    decimals: 2,
};
const TO_FUNCTION: Column = Column {
    key: "toPostgresqlFunction",
    head: "to pg()",
    meaning: "how many times as fast as INSERT SELECT FROM postgresql()",
    decimals: 2,
};
const CLIENT: Column = Column {
    key: "clientMicrosPerRow",
    head: "client us",
    meaning: "CPU a row of the workers together, or of the bare client",
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
const COLUMNS: &[&Column] =
    &[&SECONDS, &RATE, &OF_LIMIT, &TO_FUNCTION, &CLIENT, &POSTGRES, &CLICKHOUSE, &PEAK];

/// The ways of doing it, in the order of even runs; odd ones go the other way round.
const WAYS: [Way; 4] = [Way::BareCopy, Way::BareInsert, Way::Function, Way::Millrace];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    BareCopy,
    BareInsert,
    Function,
    Millrace,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::BareCopy => "bare binary COPY, 2 connections, dropped",
            Way::BareInsert => "bare insert of the same blocks, 2 connections",
            Way::Function => "INSERT SELECT FROM postgresql()",
            Way::Millrace => "Millrace, 2 workers",
        }
    }
}

/// What one way took in one run.
#[derive(Debug, Clone, Copy)]
struct Taken {
    way: Way,
    seconds: f64,
    usage: Usage,
}

/// Measures the shapes, each with so many rows.
pub(super) async fn run(
    testbed: &Testbed,
    sizes: &[(Shape, u32)],
    report: &mut Report,
) -> anyhow::Result<()> {
    for (shape, rows) in sizes {
        println!("{}: filling {rows} rows", shape.name());
        testbed.make_place(PLACE).await?;
        let table = Load::prepare(testbed, *shape, *rows).await?.run(report.runs).await?;
        report.add(&table)?;
        testbed.remove_place(PLACE).await?;
    }
    Ok(())
}

/// One table that is loaded again and again.
struct Load<'a> {
    testbed: &'a Testbed,
    shape: Shape,
    rows: u32,
    /// With its schema.
    source: String,
    /// The table that Millrace loaded in preparation: the model for all others.
    model: TableRef,
    /// The model's rows.
    blocks: Vec<EncodedBlock>,
    /// The model's columns without those that Millrace adds.
    columns: String,
}

impl<'a> Load<'a> {
    /// Fills the source, and has Millrace load it once: that warms everything and gives the blocks for the bare insert.
    async fn prepare(testbed: &'a Testbed, shape: Shape, rows: u32) -> anyhow::Result<Self> {
        let source = format!("{PLACE}.{}", shape.name());
        for statement in [
            format!("CREATE TABLE {source} ({})", shape.columns()),
            format!("INSERT INTO {source} {}", shape.rows("1", &rows.to_string())),
            format!("VACUUM ANALYZE {source}"),
        ] {
            testbed.source.batch_execute(&statement).await?;
        }
        let model = TableRef::new(PLACE, "model");
        testbed.apply("load_model", PLACE, &[format!("{{source: {source}, target: model}}")]).await?;
        testbed.delete("load_model").await?;
        let blocks = bare::blocks(testbed, &model, rows).await?;
        let columns = testbed
            .texts(&format!(
                "SELECT name FROM system.columns WHERE database = '{PLACE}' AND table = 'model' AND NOT startsWith(name, '_millrace_') ORDER BY position"
            ))
            .await?
            .join(", ");
        Ok(Self { testbed, shape, rows, source, model, blocks, columns })
    }

    async fn run(self, runs: u32) -> anyhow::Result<Table> {
        let bytes: usize = self.blocks.iter().map(EncodedBlock::bytes).sum();
        let title = format!(
            "load, {} table: {} rows, {:.0} MiB in {} Native blocks",
            self.shape.name(),
            self.rows,
            mebibytes(bytes as u64),
            self.blocks.len()
        );
        let mut table = Table::new(self.shape.name(), title, COLUMNS);
        for run in 0..runs {
            println!("{}: run {} of {runs}", self.shape.name(), run + 1);
            let mut ways = WAYS;
            if run % 2 == 1 {
                ways.reverse();
            }
            let (mut taken, mut peak) = (Vec::new(), 0);
            for way in ways {
                self.testbed.settle().await?;
                taken.push(match way {
                    Way::BareCopy => self.bare_copy().await?,
                    Way::BareInsert => self.bare_insert().await?,
                    Way::Function => self.function().await?,
                    Way::Millrace => {
                        self.testbed.reset_peaks()?;
                        let taken = self.millrace(run).await?;
                        peak = self.testbed.peak()?;
                        taken
                    }
                });
            }
            self.record(&mut table, &taken, peak);
        }
        Ok(table)
    }

    fn record(&self, table: &mut Table, taken: &[Taken], peak: u64) {
        let rows = u64::from(self.rows);
        let of = |way: Way| taken.iter().find(|taken| taken.way == way);
        let (Some(copy), Some(insert), Some(function)) =
            (of(Way::BareCopy), of(Way::BareInsert), of(Way::Function))
        else {
            return;
        };
        let limit = bare::computed_limit(
            (copy.usage.postgres + copy.usage.bench).total(),
            (insert.usage.clickhouse + insert.usage.bench).total(),
        );
        let speed = |seconds: f64| {
            [
                (&SECONDS, seconds),
                (&RATE, number(rows) / seconds),
                (&OF_LIMIT, limit / seconds),
                (&TO_FUNCTION, function.seconds / seconds),
            ]
        };
        for way in WAYS {
            let Some(taken) = of(way) else { continue };
            let usage = taken.usage;
            let client = if way == Way::Millrace { usage.workers } else { usage.bench };
            let has_client = way != Way::Function;
            table.record(way.name(), speed(taken.seconds));
            table.record(way.name(), has_client.then(|| (&CLIENT, micros_each(client.total(), rows))));
            table.record(
                way.name(),
                (way != Way::BareInsert).then(|| (&POSTGRES, micros_each(usage.postgres.total(), rows))),
            );
            table.record(
                way.name(),
                (way != Way::BareCopy).then(|| (&CLICKHOUSE, micros_each(usage.clickhouse.total(), rows))),
            );
            table.record(way.name(), (way == Way::Millrace).then(|| (&PEAK, mebibytes(peak))));
            if way == Way::BareInsert {
                table.record("computed limit", speed(limit));
            }
        }
    }

    async fn bare_copy(&self) -> anyhow::Result<Taken> {
        let before = self.testbed.usage();
        let took = bare::copy(self.testbed, &self.source).await?;
        let usage = self.testbed.usage() - before;
        Ok(Taken { way: Way::BareCopy, seconds: took.as_secs_f64(), usage })
    }

    async fn bare_insert(&self) -> anyhow::Result<Taken> {
        let fresh = self.fresh().await?;
        let destination = self.testbed.clickhouse_destination(PLACE)?;
        let before = self.testbed.usage();
        let took = bare::insert(&destination, &fresh, &self.blocks).await?;
        let usage = self.testbed.usage() - before;
        self.check_and_drop(&fresh).await?;
        Ok(Taken { way: Way::BareInsert, seconds: took.as_secs_f64(), usage })
    }

    async fn function(&self) -> anyhow::Result<Taken> {
        let fresh = self.fresh().await?;
        let columns = &self.columns;
        // The function takes the schema last.
        let arguments = self.testbed.engine_arguments(Some(self.shape.name()));
        let sql = format!(
            "INSERT INTO {fresh} ({columns}) SELECT {columns} FROM postgresql({arguments}, '{PLACE}')"
        );
        let before = self.testbed.usage();
        let began = Instant::now();
        self.testbed.execute(&sql).await?;
        let seconds = began.elapsed().as_secs_f64();
        let usage = self.testbed.usage() - before;
        self.check_and_drop(&fresh).await?;
        Ok(Taken { way: Way::Function, seconds, usage })
    }

    async fn millrace(&self, run: u32) -> anyhow::Result<Taken> {
        let name = format!("load_{run}");
        let table = TableRef::new(PLACE, &name);
        let before = self.testbed.usage();
        self.testbed.apply(&name, PLACE, &[format!("{{source: {}, target: {name}}}", self.source)]).await?;
        let usage = self.testbed.usage() - before;
        let seconds = self.testbed.snapshot_took(&name).await?.as_secs_f64();
        self.testbed.delete(&name).await?;
        self.check_and_drop(&table).await?;
        Ok(Taken { way: Way::Millrace, seconds, usage })
    }

    /// An empty table like the one that Millrace makes.
    async fn fresh(&self) -> anyhow::Result<TableRef> {
        let fresh = TableRef::new(PLACE, "fresh");
        self.testbed.execute(&format!("CREATE TABLE {fresh} AS {}", self.model)).await?;
        Ok(fresh)
    }

    async fn check_and_drop(&self, table: &TableRef) -> anyhow::Result<()> {
        let found = self.testbed.number(&format!("SELECT count() FROM {table} FINAL")).await?;
        if found != u64::from(self.rows) {
            bail!("{found} of {} rows arrived in {table}", self.rows);
        }
        self.testbed.execute(&format!("DROP TABLE {table} SYNC")).await
    }
}
