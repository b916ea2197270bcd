//! The coordinator as fleet and pipes grow in number: the real one, with a real catalog, over real gRPC, and workers that say what workers say and do nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use millrace_api::proto::pipe::v1 as pb;
use millrace_api::proto::worker::v1 as wire;
use millrace_api::spec::with_secrets;
use millrace_api::worker::{CoordinatorMessage, WorkerMessage};
use millrace_api::yaml::parse_pipe_yaml;
use millrace_model::schema::{PgType, ReplicaIdentity, SourceColumn, TableDefinition};
use millrace_model::work::{
    Assignment, DestinationFacts, Hello, Outcome, Progress, Report as Said, StreamProgress, Work,
};
use millrace_model::{Epoch, Labels, Lsn, TableName};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::meter;
use super::report::{Column, Report, Table, mebibytes, number};
use super::testbed::Testbed;
use crate::binary::Process;

/// How often a stream says how far it is, as the real one does.
const REPORT: Duration = Duration::from_millis(500);
/// For so long the fleet is watched at its usual work.
const STEADY: Duration = Duration::from_secs(10);
/// Longest wait for everything to run.
const PATIENCE: Duration = Duration::from_secs(300);
/// Pipes that are made at a time.
const CALLERS: usize = 32;
/// The coordinator's lease of a worker.
const LEASE: Duration = Duration::from_secs(10);

const CREATED: Column = Column {
    key: "createsPerSecond",
    head: "creates/s",
    meaning: "pipes made a second, by 32 callers",
    decimals: 0,
};
const STARTED: Column = Column {
    key: "secondsToStream",
    head: "start s",
    meaning: "from the first worker's connection until every pipe streams, over three pieces of work each",
    decimals: 1,
};
const PLAN: Column = Column {
    key: "longestPlanMillis",
    head: "plan ms",
    meaning: "longest planning of one turn, with all pipes to be placed",
    decimals: 1,
};
const STORE: Column = Column {
    key: "longestStoreMillis",
    head: "store ms",
    meaning: "longest commit of one turn",
    decimals: 1,
};
const COMMITS: Column = Column {
    key: "pipesPerCommit",
    head: "pipes/commit",
    meaning: "decisions that one commit takes, while everything starts",
    decimals: 1,
};
const CPU: Column = Column {
    key: "steadyCpuPercent",
    head: "CPU %",
    meaning: "of one core, once everything streams; every stream says how far it is twice a second",
    decimals: 1,
};
const WRITES: Column = Column {
    key: "commitsPerSecond",
    head: "commits/s",
    meaning: "commits a second once everything streams",
    decimals: 1,
};
const MOVED: Column = Column {
    key: "secondsBeyondLease",
    head: "move s",
    meaning: "from the end of a dead worker's lease (10 s after its last sign of life) until its streams run elsewhere; below zero where it had been silent before",
    decimals: 2,
};
const PEAK: Column = Column {
    key: "peakMebibytes",
    head: "peak MiB",
    meaning: "most memory of the coordinator (VmHWM)",
    decimals: 0,
};
const COLUMNS: &[&Column] = &[&CREATED, &STARTED, &PLAN, &STORE, &COMMITS, &CPU, &WRITES, &MOVED, &PEAK];

/// How many of both.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    workers: u64,
    pipes: u64,
}

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (workers, pipes) = text.split_once('x').context("expected workers x pipes, such as 100x1000")?;
        let size = Self { workers: workers.parse()?, pipes: pipes.parse()? };
        if size.workers < 2 || size.pipes == 0 {
            bail!("at least 2 workers and 1 pipe");
        }
        Ok(size)
    }
}

/// Measures every size on both kinds of catalog.
pub(super) async fn run(testbed: &Testbed, sizes: &[Size], report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new("fleet", "fleet: workers x pipes".to_owned(), COLUMNS);
    for run in 0..report.runs {
        for size in sizes {
            for kind in ["SQLite", "PostgreSQL"] {
                let line = format!("{} x {}, {kind}", size.workers, size.pipes);
                println!("fleet: {line}, run {} of {}", run + 1, report.runs);
                let name = format!("fleet_{}_{}_{run}", size.workers, size.pipes);
                let folder = testbed.folder().join(format!("{name}_{kind}"));
                std::fs::create_dir_all(&folder)?;
                let catalog = match kind {
                    "SQLite" => folder.join("catalog.sqlite").display().to_string(),
                    _ => testbed.make_catalog(&name).await?,
                };
                let figures = one(testbed.millrace(), &folder, &catalog, *size).await?;
                table.record(&line, figures);
            }
        }
    }
    report.add(&table)
}

/// What the coordinator's log tells of its turns.
#[derive(Debug, Default, Clone, Copy)]
struct Turns {
    longest_plan: u64,
    longest_store: u64,
    commits: u64,
    stored: u64,
}

fn turns(log: &Path) -> anyhow::Result<Turns> {
    let mut turns = Turns::default();
    for line in std::fs::read_to_string(log)?.lines() {
        let number = |key: &str| {
            let rest = line.split_once(key)?.1;
            rest.split(|other: char| !other.is_ascii_digit()).next()?.parse::<u64>().ok()
        };
        let (Some(plan), Some(stored), Some(store)) =
            (number("plan_us="), number(" stored="), number("store_us="))
        else {
            continue;
        };
        turns.longest_plan = turns.longest_plan.max(plan);
        turns.longest_store = turns.longest_store.max(store);
        turns.commits += u64::from(stored > 0);
        turns.stored += stored;
    }
    Ok(turns)
}

async fn one(
    millrace: &Path,
    folder: &Path,
    catalog: &str,
    size: Size,
) -> anyhow::Result<Vec<(&'static Column, f64)>> {
    let log = folder.join("coordinator.log");
    let filter = "warn,millrace_coordinator::turn=debug";
    let arguments = ["coordinator", "--listen", "127.0.0.1:0", "--catalog", catalog, "--log-filter", filter];
    let mut coordinator = Process::start(millrace, &arguments, &log)?;
    let ready = coordinator.ready().await?;
    let address = ready.strip_prefix("address=").unwrap_or(&ready).to_owned();
    let id = coordinator.id().context("the coordinator is gone")?;

    let began = Instant::now();
    let clients = millrace_api::connect(&address).await?;
    let calls = futures::stream::iter(0..size.pipes).map(|number| {
        let mut pipes = clients.pipes.clone();
        async move {
            let request = pb::CreateRequest { spec: Some(spec(number)?), ..Default::default() };
            pipes.create(request).await.context("a pipe was not made")?;
            anyhow::Ok(())
        }
    });
    calls.buffer_unordered(CALLERS).try_collect::<Vec<()>>().await?;
    let creates = number(size.pipes) / began.elapsed().as_secs_f64();

    let before = turns(&log)?;
    let began = Instant::now();
    let streams = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    let mut ends = Vec::new();
    for number in 0..size.workers {
        let death = CancellationToken::new();
        let worker =
            Simulated { id: format!("worker-{number}"), address: address.clone(), streams: streams.clone() };
        workers.spawn(worker.run(death.clone()));
        ends.push(death);
    }
    let all = |what: &'static str| until(what, &streams, size.pipes);
    all("every pipe to stream").await?;
    let started = began.elapsed();
    let after = turns(&log)?;

    let (cpu, watched) = (meter::of_process(id), Instant::now());
    tokio::time::sleep(STEADY).await;
    let cpu = (meter::of_process(id) - cpu).total().as_secs_f64() / watched.elapsed().as_secs_f64();
    let steady = turns(&log)?;
    let writes = number(steady.commits - after.commits) / watched.elapsed().as_secs_f64();

    // Its streams are gone with it; others take them once its lease has ended.
    let died = Instant::now();
    if let Some(death) = ends.first() {
        death.cancel();
    }
    until_below(&streams, size.pipes).await?;
    all("the dead worker's streams to run elsewhere").await?;
    let moved = died.elapsed().as_secs_f64() - LEASE.as_secs_f64();
    let last = turns(&log)?;
    let peak = meter::peak(id)?;
    for death in ends {
        death.cancel();
    }
    while workers.join_next().await.is_some() {}
    coordinator.stop().await?;
    let commits = after.commits - before.commits;
    Ok(vec![
        (&CREATED, creates),
        (&STARTED, started.as_secs_f64()),
        (&PLAN, number(last.longest_plan) / 1e3),
        (&STORE, number(last.longest_store) / 1e3),
        (&COMMITS, number(after.stored - before.stored) / number(commits.max(1))),
        (&CPU, cpu * 100.0),
        (&WRITES, writes),
        (&MOVED, moved),
        (&PEAK, mebibytes(peak)),
    ])
}

async fn until(what: &str, streams: &AtomicU64, wanted: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    while streams.load(Ordering::Relaxed) != wanted {
        if began.elapsed() > PATIENCE {
            bail!("waited for {what}; {} of {wanted} do", streams.load(Ordering::Relaxed));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn until_below(streams: &AtomicU64, number: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    while streams.load(Ordering::Relaxed) >= number {
        if began.elapsed() > PATIENCE {
            bail!("the worker that was to die had no stream");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// A pipe that copies nothing, so that its stream is all that is asked for. Every one has a source of its own.
fn spec(number: u64) -> anyhow::Result<pb::PipeSpec> {
    let yaml = format!(
        "name: pipe-{number}\nreplicationMode: cdc_only\n\
         source: {{postgres: {{host: db-{number}.internal, database: shop, username: millrace}}}}\n\
         destination: {{clickhouse: {{url: \"http://127.0.0.1:8123\", database: shop}}}}\n\
         tables: [{{source: public.orders}}]\n"
    );
    let parsed = parse_pipe_yaml(&yaml, Path::new("."), &|_| None);
    let parsed = parsed.map_err(|errors| anyhow::anyhow!("the bench's own pipe: {errors:?}"))?;
    Ok(with_secrets(&parsed))
}

/// A worker that says what workers say, and does nothing.
struct Simulated {
    id: String,
    address: String,
    /// Streams in all workers' hands.
    streams: Arc<AtomicU64>,
}

impl Simulated {
    /// Works until it dies, of which it says nothing.
    async fn run(self, death: CancellationToken) -> anyhow::Result<()> {
        let mut held: BTreeMap<Epoch, u64> = BTreeMap::new();
        let worked = tokio::select! {
            () = death.cancelled() => Ok(()),
            worked = self.work(&mut held) => worked,
        };
        self.streams.fetch_sub(u64::try_from(held.len())?, Ordering::Relaxed);
        if let Err(error) = &worked {
            eprintln!("simulated {}: {error:#}", self.id);
        }
        worked
    }

    async fn work(&self, held: &mut BTreeMap<Epoch, u64>) -> anyhow::Result<()> {
        let mut client = millrace_api::client::connect_worker(&self.address, Ok).await?;
        let (say, said) = mpsc::channel(1024);
        let hello = WorkerMessage::Hello(Hello {
            drained: false,
            worker: self.id.parse()?,
            instance: self.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            max_tasks: 4,
            memory_budget: 256 << 20,
            held: Vec::new(),
            labels: Labels::default(),
        });
        say.send(wire::ConnectRequest::from(&hello)).await?;
        let mut told = client.connect(ReceiverStream::new(said)).await?.into_inner();
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        let mut report = tokio::time::interval(REPORT);
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    let heartbeat = WorkerMessage::Heartbeat { memory_used: 0, draining: false, number: 0 };
                    say.send((&heartbeat).into()).await?;
                }
                _ = report.tick() => {
                    for (epoch, revision) in &*held {
                        say.send((&streaming(*epoch, *revision)).into()).await?;
                    }
                }
                message = told.message() => {
                    let message = message?.context("the coordinator hung up")?;
                    match CoordinatorMessage::try_from(message)? {
                        CoordinatorMessage::Assign(assignment) => {
                            let epoch = assignment.epoch;
                            if let Work::Stream { revision, .. } = assignment.work {
                                held.insert(epoch, revision);
                                self.streams.fetch_add(1, Ordering::Relaxed);
                                say.send((&streaming(epoch, revision)).into()).await?;
                            } else if let Some(outcome) = outcome(&assignment)? {
                                let report = Said::Finished(outcome);
                                say.send((&WorkerMessage::Report { epoch, report }).into()).await?;
                            }
                        }
                        CoordinatorMessage::Revoke(epoch) if held.remove(&epoch).is_some() => {
                            self.streams.fetch_sub(1, Ordering::Relaxed);
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

fn streaming(epoch: Epoch, revision: u64) -> WorkerMessage {
    let progress = StreamProgress {
        durable: Lsn(200),
        source: Lsn(200),
        caught_up: true,
        revision,
        ..StreamProgress::default()
    };
    WorkerMessage::Report { epoch, report: Said::Progress(Progress::Stream(progress)) }
}

/// What becomes of work on the way to the stream.
fn outcome(assignment: &Assignment) -> anyhow::Result<Option<Outcome>> {
    Ok(match &assignment.work {
        Work::Provision { .. } => Some(Outcome::Provisioned {
            system_identifier: 1,
            server_version: 170_000,
            tables: vec![orders()?],
            warnings: Vec::new(),
            destination: DestinationFacts { time64: true },
        }),
        Work::SetUp { tables, .. } => Some(Outcome::SetUp {
            tables: tables
                .iter()
                .map(|table| (table.id, "00000000-0000-0000-0000-000000000001".to_owned()))
                .collect(),
            begins: Lsn(100),
        }),
        _ => None,
    })
}

fn orders() -> anyhow::Result<TableDefinition> {
    let column = |name: &str, attribute| SourceColumn {
        name: name.to_owned(),
        attribute,
        type_oid: 20,
        type_modifier: -1,
        type_name: "bigint".to_owned(),
        pg_type: PgType::Int8,
        nullable: false,
        generated: false,
    };
    Ok(TableDefinition {
        name: "public.orders".parse::<TableName>()?,
        oid: 16_384,
        file_node: 16_384,
        columns: vec![column("id", 1), column("amount", 2)],
        key: vec!["id".to_owned()],
        replica_identity: ReplicaIdentity::Default,
        pages: 100,
        estimated_rows: 10_000,
        bytes: 819_200,
        retired: Vec::new(),
        partitions: Vec::new(),
        distrusted_until: Lsn(0),
        holds_from: Lsn(0),
    })
}
