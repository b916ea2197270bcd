//! `cargo xtask bench`: Millrace, its alternatives and the bare servers side by side, in one run on one machine.
//!
//! Both sides of every ratio are taken in the same run, since a shared machine varies by a factor of two within hours. Everything is an optimised build; the bare
//! readers and writers are this program's own use of `millrace-postgres` and `millrace-clickhouse`. How long something takes decides neither a test nor the exit code; that
//! something does not arrive does.
//!
//! Start reading at [`testbed`] for what runs, at [`report`] for how figures are kept, then at a case: each module named after one makes its tables and says what a
//! figure means.

mod arrival;
mod bare;
mod delay;
mod fleet;
mod growth;
mod load;
mod meter;
mod report;
mod shape;
mod small;
mod stream;
mod testbed;
mod toast;
mod transaction;
mod workload;

use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use tokio::process::Command;

use crate::binary;
use report::Report;
use testbed::Testbed;

/// What to measure.
#[derive(Args, Debug, Clone)]
pub(crate) struct BenchArgs {
    /// These cases only; may be given several times.
    #[arg(long = "case", value_enum)]
    cases: Vec<Case>,
    /// Runs of each line, of which the median is told [default: 3; 1 for delay, transaction and fleet].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// load: rows of the typical table; the narrow one has twice as many, the wide one an eighth.
    #[arg(long, default_value_t = 2_000_000)]
    rows: u32,
    /// load: rows with huge values, 4.3 MB each on average.
    #[arg(long, default_value_t = 200)]
    huge_rows: u32,
    /// load: these shapes only; may be given several times.
    #[arg(long = "shape", value_enum)]
    shapes: Vec<shape::Shape>,
    /// stream: changes of each workload. Below about 200,000 there is less than 32 MiB of log, and Millrace does not catch up in bulk.
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// stream: only the workloads over so many tables; may be given several times.
    #[arg(long)]
    stream_tables: Vec<u32>,
    /// small: transactions.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    transactions: u32,
    /// small: scale, of 100,000 accounts each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    scale: u32,
    /// delay: seconds of each part; the long transaction lasts half as long again.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// growth: numbers of tables among which the first number of rows is divided.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100], value_parser = clap::value_parser!(u32).range(1..))]
    growth_tables: Vec<u32>,
    /// growth: numbers of rows of one table. The whole comparison is 1000000,10000000,50000000, which takes 25 GB of disk and an hour.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_000, 5_000_000], value_parser = clap::value_parser!(u32).range(1..))]
    growth_rows: Vec<u32>,
    /// transaction: rows of the one transaction.
    #[arg(long, default_value_t = 10_000_000)]
    transaction_rows: u32,
    /// toast: changes of each workload.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    toast_changes: u32,
    /// fleet: workers and pipes, such as 100x1000.
    #[arg(long, value_delimiter = ',', default_values = ["10x100", "100x1000", "1000x10000"])]
    fleet_sizes: Vec<fleet::Size>,
    /// Set by the bench itself: this is the optimised build of it.
    #[arg(long, hide = true)]
    optimised: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// The first copy of a table, in four shapes.
    Load,
    /// Bulk changes, live and as a backlog.
    Stream,
    /// pgbench's own workload of small transactions.
    Small,
    /// From commit to visible by key.
    Delay,
    /// The cost of a row as tables and rows grow in number.
    Growth,
    /// The memory that one very large transaction takes.
    Transaction,
    /// Updates that leave out long values they did not change, and updates that do not.
    Toast,
    /// The coordinator with simulated workers: planning, catalog, memory, a worker's death.
    Fleet,
}

impl Case {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Runs where nothing else is asked for. A delay is a distribution within one run already, and the memory of a large transaction does not vary.
    fn default_runs(self) -> u32 {
        match self {
            Case::Delay | Case::Transaction | Case::Fleet => 1,
            Case::Load | Case::Stream | Case::Small | Case::Growth | Case::Toast => 3,
        }
    }
}

pub(crate) async fn run(arguments: BenchArgs) -> anyhow::Result<()> {
    if !arguments.optimised {
        return again_optimised().await;
    }
    let testbed = Testbed::start(binary::target().join("release").join("millrace")).await?;
    let measured = tokio::select! {
        measured = measure(&testbed, &arguments) => measured,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Into::into).and_then(|()| bail!("interrupted")),
    };
    let stopped = testbed.stop().await;
    measured.and(stopped)
}

async fn measure(testbed: &Testbed, arguments: &BenchArgs) -> anyhow::Result<()> {
    for case in Case::value_variants() {
        if !arguments.cases.is_empty() && !arguments.cases.contains(case) {
            continue;
        }
        let runs = arguments.runs.unwrap_or_else(|| case.default_runs());
        println!("\n## {}", case.name());
        let report = &mut Report::new(case.name(), runs);
        match case {
            Case::Load => load::run(testbed, &load_sizes(arguments), report).await?,
            Case::Stream => stream::run(testbed, arguments.changes, &arguments.stream_tables, report).await?,
            Case::Small => small::run(testbed, arguments.scale, arguments.transactions, report).await?,
            Case::Delay => delay::run(testbed, Duration::from_secs(arguments.seconds.into()), report).await?,
            Case::Growth => {
                growth::run(testbed, &arguments.growth_tables, &arguments.growth_rows, report).await?;
            }
            Case::Transaction => transaction::run(testbed, arguments.transaction_rows, report).await?,
            Case::Toast => toast::run(testbed, arguments.toast_changes, report).await?,
            Case::Fleet => fleet::run(testbed, &arguments.fleet_sizes, report).await?,
        }
    }
    Ok(())
}

fn load_sizes(arguments: &BenchArgs) -> Vec<(shape::Shape, u32)> {
    let chosen = |shape: &&shape::Shape| arguments.shapes.is_empty() || arguments.shapes.contains(shape);
    let rows = |shape: &shape::Shape| match shape {
        shape::Shape::Narrow => arguments.rows.saturating_mul(2),
        shape::Shape::Typical => arguments.rows,
        shape::Shape::Wide => (arguments.rows / 8).max(1),
        shape::Shape::Huge => arguments.huge_rows,
    };
    shape::Shape::value_variants().iter().filter(chosen).map(|shape| (*shape, rows(shape))).collect()
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
