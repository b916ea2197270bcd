//! One run: schedule, faults, comparisons, verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use millrace_devstack::equality::{Tables, compare};
use millrace_devstack::proxy::Mode;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::fleet::{Fleet, PIPE, WORKER_IDS, connect};
use crate::memory;
use crate::schedule::{Entry, Fault, schedule};
use crate::watcher::{Seen, Watcher};
use crate::workload::{self, TABLES, Workload};

/// How long everything may take to settle once nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_secs(120);

/// No query has room; what is too small to be counted by itself is counted, too.
const OUT_OF_MEMORY: [(&str, &str); 2] = [("max_memory_usage", "1000"), ("max_untracked_memory", "1")];

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The product's binary, with devstack in it.
    pub program: PathBuf,
    /// Where data and logs are kept.
    pub folder: PathBuf,
    /// Decides the schedule and the workload.
    pub seed: u64,
    /// About how long faults come.
    pub length: Duration,
    /// Prints what happens as it happens.
    pub tells: bool,
    /// Plays each worker on a host of its own, with network namespaces: for root on Linux.
    pub hosts: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How often each kind of fault struck.
    pub faults: BTreeMap<&'static str, u32>,
    /// Transactions that the source committed.
    pub transactions: u64,
    /// Rows that were compared, over all comparisons.
    pub rows_compared: u64,
    /// Comparisons of a table.
    pub comparisons: u32,
    /// The longest time in which nothing new became visible at the destination, pauses by the user included.
    pub longest_stall: Duration,
    /// Looks at the destination for illegal steps.
    pub looks: u64,
    /// What was wrong; empty where nothing was.
    pub wrong: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: u32 = self.faults.values().sum();
        for (kind, times) in &self.faults {
            writeln!(f, "{kind:<24} {times:>6}")?;
        }
        writeln!(f, "{:<24} {faults:>6}", "faults")?;
        writeln!(f, "{:<24} {:>6}", "transactions", self.transactions)?;
        writeln!(f, "{:<24} {:>6}", "comparisons of a table", self.comparisons)?;
        writeln!(f, "{:<24} {:>6}", "rows compared", self.rows_compared)?;
        writeln!(f, "{:<24} {:>6}", "looks for illegal steps", self.looks)?;
        writeln!(f, "{:<24} {:>4.1} s", "longest stall", self.longest_stall.as_secs_f64())?;
        write!(f, "{:<24} {:>6}", "wrong", self.wrong.len())?;
        for wrong in &self.wrong {
            write!(f, "\n  {wrong}")?;
        }
        Ok(())
    }
}

/// Runs to the end, whatever is found.
///
/// # Errors
/// The run itself cannot go on: a server does not start, or nothing settles in time; the message says where.
pub async fn run(options: &Options) -> anyhow::Result<Outcome> {
    std::fs::create_dir_all(&options.folder)
        .with_context(|| format!("cannot make {}", options.folder.display()))?;
    let entries = schedule(options.seed, options.length);
    if options.tells {
        println!("schedule of seed {}:", options.seed);
        entries.iter().for_each(|entry| println!("  {entry}"));
    }
    let fleet = Fleet::start(&options.program, &options.folder, options.hosts).await?;
    let mut run = Run { options, fleet, outcome: Outcome::default(), round: 0, errands: JoinSet::new() };
    let ended = run.all(&entries).await;
    run.outcome.wrong.extend(run.fleet.panics()?);
    let Run { fleet, outcome, .. } = run;
    fleet.stop().await?;
    ended.with_context(|| format!("after:\n{outcome}"))?;
    Ok(outcome)
}

struct Run<'a> {
    options: &'a Options,
    fleet: Fleet,
    outcome: Outcome,
    round: u64,
    /// What users are about to have done.
    errands: JoinSet<()>,
}

impl Run<'_> {
    fn tell(&self, what: impl fmt::Display) {
        if self.options.tells {
            println!("{what}");
        }
    }

    async fn all(&mut self, entries: &[Entry]) -> anyhow::Result<()> {
        workload::prepare(&self.fleet.client("postgres").await?).await?;
        let file = self.fleet.write_pipe(TABLES)?;
        let file = file.display().to_string();
        self.fleet.command(&["pipe", "apply", "-f", &file], PATIENCE).await?;
        for part in entries.split_inclusive(|entry| *entry == Entry::Quiet) {
            let workload = Workload::start(&self.fleet.source(), self.options.seed, self.round);
            let watcher = Watcher::start(self.fleet.destination());
            self.round += 1;
            let struck = self.strike(part).await;
            let healed = self.heal().await;
            struck.and(healed)?;
            self.settle(workload, watcher).await?;
        }
        Ok(())
    }

    /// Lets the faults of one part happen; several may last at a time.
    async fn strike(&mut self, part: &[Entry]) -> anyhow::Result<()> {
        let mut lasting: Vec<(Instant, Fault)> = Vec::new();
        let mut next = Instant::now();
        for entry in part {
            let Entry::Fault { after, fault, lasts } = *entry else { continue };
            next += after;
            while let Some(at) = earliest(&lasting).filter(|(ends, _)| *ends <= next) {
                self.end_at(at, &mut lasting).await?;
            }
            tokio::time::sleep_until(next.into()).await;
            // What is struck already is not struck twice.
            if lasting.iter().any(|(_, other)| clashes(*other, fault)) {
                continue;
            }
            if !self.fleet.can(fault) {
                self.tell(format_args!("  {fault}: cannot be played here"));
                continue;
            }
            self.tell(format_args!("  {fault}"));
            *self.outcome.faults.entry(fault.kind()).or_default() += 1;
            self.begin(fault).await.with_context(|| format!("while {fault} began"))?;
            lasting.push((Instant::now() + lasts, fault));
        }
        while let Some(at) = earliest(&lasting) {
            self.end_at(at, &mut lasting).await?;
        }
        Ok(())
    }

    async fn end_at(
        &mut self,
        at: (Instant, Fault),
        lasting: &mut Vec<(Instant, Fault)>,
    ) -> anyhow::Result<()> {
        tokio::time::sleep_until(at.0.into()).await;
        lasting.retain(|other| *other != at);
        self.end(at.1).await.with_context(|| format!("while {} ended", at.1))
    }

    /// Has a user do something meanwhile, in vain where nobody answers: what ends faults must not wait for it.
    fn errand<const N: usize>(&mut self, arguments: [&'static str; N]) {
        let user = self.fleet.user();
        self.errands.spawn(async move {
            let _ = user.command(&arguments, Duration::ZERO).await;
        });
    }

    async fn begin(&mut self, fault: Fault) -> anyhow::Result<()> {
        let fleet = &mut self.fleet;
        match fault {
            Fault::WorkerKilled(which) => fleet.workers[which].kill().await,
            Fault::WorkerStopped(which) => fleet.workers[which].signal("-STOP").await,
            Fault::WorkerLeaves(which) => fleet.workers[which].leave().await,
            Fault::CoordinatorKilled(which) => fleet.coordinators[which].kill().await,
            Fault::CoordinatorStopped(which) => fleet.coordinators[which].signal("-STOP").await,
            Fault::CoordinatorLeaves(which) => fleet.coordinators[which].leave().await,
            Fault::PostgresRestarted => Ok(fleet.postgres.restart().await?),
            Fault::PostgresKilled => Ok(fleet.postgres.kill().await?),
            Fault::ClickHouseKilled => Ok(fleet.clickhouse.kill().await?),
            Fault::SessionsEnded => {
                let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'millrace%'";
                let ended = connect(&fleet.source()).await?.query(sql, &[]).await;
                Ok(ended.map(drop)?)
            }
            Fault::CoordinatorCut(which) => {
                fleet.coordinator_proxies[which].set(Mode::Cut);
                Ok(())
            }
            Fault::CoordinatorSilent(which) => {
                fleet.coordinator_proxies[which].set(Mode::Silent);
                Ok(())
            }
            Fault::CoordinatorMute(which) => {
                fleet.coordinator_proxies[which].set(Mode::NoAnswers);
                Ok(())
            }
            Fault::SourceCut => {
                fleet.source_proxy.set(Mode::Cut);
                Ok(())
            }
            Fault::SourceSilent => {
                fleet.source_proxy.set(Mode::Silent);
                Ok(())
            }
            Fault::DestinationCut => {
                fleet.destination_proxy.set(Mode::Cut);
                Ok(())
            }
            Fault::DestinationSilent => {
                fleet.destination_proxy.set(Mode::Silent);
                Ok(())
            }
            Fault::AnswersLost => {
                fleet.destination_proxy.set(Mode::NoAnswers);
                Ok(())
            }
            Fault::DestinationFull => {
                fleet.limit_tables("min_free_disk_bytes_to_perform_insert", "1000000000000000").await
            }
            Fault::TooManyParts => fleet.limit_tables("parts_to_throw_insert", "1").await,
            Fault::OutOfMemory => Ok(fleet.clickhouse.set_profile(&OUT_OF_MEMORY)?),
            Fault::SourceFull => fleet.disk()?.fill().await,
            Fault::SourceOutOfMemory => {
                let session = fleet.client("template1").await?;
                memory::exhaust(fleet.postgres.pid()).await?;
                // What has its memory goes on; those who come anew get none.
                for database in ["postgres", "catalog"] {
                    let _ = session.batch_execute(&ended(database)).await;
                }
                Ok(())
            }
            Fault::SourceClock(hours) => fleet.set_source_clock(hours),
            Fault::SourceRefuses => {
                fleet.at_catalog("ALTER DATABASE postgres ALLOW_CONNECTIONS false").await?;
                fleet.at_catalog(&ended("postgres")).await
            }
            Fault::CatalogReadOnly => {
                fleet.at_catalog("ALTER DATABASE catalog SET default_transaction_read_only = on").await?;
                fleet.at_catalog(&ended("catalog")).await
            }
            Fault::WorkerClock(which, hours) => fleet.workers[which].set_clock(hours),
            Fault::CoordinatorClock(which, hours) => fleet.coordinators[which].set_clock(hours),
            Fault::WorkerDrained(which) => {
                self.errand(["worker", "drain", WORKER_IDS[which]]);
                Ok(())
            }
            Fault::WorkerUnplugged(which) => fleet.hosts()?.unplug(which).await,
            Fault::WorkerMute(which) => fleet.hosts()?.mute(which).await,
            Fault::WorkerDeaf(which) => fleet.hosts()?.deafen(which).await,
            Fault::Paused => {
                // Refused in states in which there is nothing to pause.
                self.errand(["pipe", "pause", PIPE]);
                Ok(())
            }
            Fault::Resynced => {
                self.errand(["pipe", "resync", PIPE, "--table", "public.walk"]);
                Ok(())
            }
        }
    }

    async fn end(&mut self, fault: Fault) -> anyhow::Result<()> {
        let fleet = &mut self.fleet;
        match fault {
            Fault::WorkerKilled(which) | Fault::WorkerLeaves(which) => fleet.workers[which].start().await,
            Fault::WorkerStopped(which) => fleet.workers[which].signal("-CONT").await,
            Fault::CoordinatorKilled(which) | Fault::CoordinatorLeaves(which) => {
                fleet.coordinators[which].start().await
            }
            Fault::CoordinatorStopped(which) => fleet.coordinators[which].signal("-CONT").await,
            Fault::PostgresKilled => Ok(fleet.postgres.restart().await?),
            Fault::ClickHouseKilled => Ok(fleet.clickhouse.restart().await?),
            Fault::CoordinatorCut(which)
            | Fault::CoordinatorSilent(which)
            | Fault::CoordinatorMute(which) => {
                fleet.coordinator_proxies[which].set(Mode::Pass);
                Ok(())
            }
            Fault::SourceCut | Fault::SourceSilent => {
                fleet.source_proxy.set(Mode::Pass);
                Ok(())
            }
            Fault::DestinationCut | Fault::DestinationSilent => {
                fleet.destination_proxy.set(Mode::Pass);
                Ok(())
            }
            Fault::AnswersLost => {
                fleet.destination_proxy.set(Mode::Cut);
                tokio::time::sleep(Duration::from_millis(100)).await;
                fleet.destination_proxy.set(Mode::Pass);
                Ok(())
            }
            Fault::DestinationFull => fleet.reset_tables("min_free_disk_bytes_to_perform_insert").await,
            Fault::TooManyParts => fleet.reset_tables("parts_to_throw_insert").await,
            Fault::OutOfMemory => Ok(fleet.clickhouse.set_profile(&[])?),
            Fault::SourceFull => {
                fleet.disk()?.empty()?;
                // It may have given up, as it does where its log cannot be written.
                fleet.postgres.kill().await?;
                Ok(fleet.postgres.restart().await?)
            }
            Fault::SourceOutOfMemory => {
                // It may have given up.
                if memory::give_back(fleet.postgres.pid()).await.is_err()
                    || fleet.client("template1").await.is_err()
                {
                    fleet.postgres.kill().await?;
                    fleet.postgres.restart().await?;
                }
                Ok(())
            }
            Fault::SourceClock(_) => {
                fleet.set_source_clock(0)?;
                // PostgreSQL's own timers go by this clock, that of a deadlock for instance: who waits by the other one would wait for a day.
                fleet.until_source_clock_is_right().await?;
                let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres' AND pid <> pg_backend_pid()";
                fleet.at_catalog(others).await
            }
            Fault::SourceRefuses => fleet.at_catalog("ALTER DATABASE postgres ALLOW_CONNECTIONS true").await,
            Fault::CatalogReadOnly => {
                fleet.at_catalog("SET default_transaction_read_only = off; ALTER DATABASE catalog RESET default_transaction_read_only").await?;
                // Sessions keep what they began with.
                fleet.at_catalog(&ended("catalog")).await
            }
            Fault::WorkerClock(which, _) => fleet.workers[which].set_clock(0),
            Fault::CoordinatorClock(which, _) => fleet.coordinators[which].set_clock(0),
            Fault::WorkerDrained(which) => fleet.workers[which].start().await,
            Fault::WorkerUnplugged(which) => fleet.hosts()?.plug_in(which).await,
            Fault::WorkerMute(which) => fleet.hosts()?.unmute(which).await,
            Fault::WorkerDeaf(which) => fleet.hosts()?.undeafen(which).await,
            Fault::Paused => {
                self.errand(["pipe", "resume", PIPE]);
                Ok(())
            }
            Fault::PostgresRestarted | Fault::SessionsEnded | Fault::Resynced => Ok(()),
        }
    }

    /// Whatever was left of faults that could not be ended.
    async fn heal(&mut self) -> anyhow::Result<()> {
        self.fleet.source_proxy.set(Mode::Pass);
        self.fleet.destination_proxy.set(Mode::Pass);
        self.fleet.coordinator_proxies.iter().for_each(|proxy| proxy.set(Mode::Pass));
        while self.errands.join_next().await.is_some() {}
        Ok(())
    }

    /// Waits until the pipe runs and nothing is amiss, then compares while clients go on, and once more when they have stopped.
    async fn settle(&mut self, workload: Workload, watcher: Watcher) -> anyhow::Result<()> {
        self.tell("  quiet");
        let settled = self.until_running().await;
        let verified = match &settled {
            // A pipe that is busy, but well.
            Ok(()) => self
                .fleet
                .command(&["pipe", "verify", PIPE, "--table", "public.walk"], PATIENCE)
                .await
                .map(drop),
            Err(_) => Ok(()),
        };
        self.outcome.transactions += tokio::time::timeout(PATIENCE, workload.stop())
            .await
            .context("the clients of the source do not come to an end")?;
        let caught_up = match &settled {
            Ok(()) => self.until_caught_up().await,
            Err(_) => Ok(()),
        };
        let Seen { illegal, longest_stall, looks } = watcher.stop().await?;
        self.outcome.wrong.extend(illegal);
        self.outcome.looks += looks;
        self.outcome.longest_stall = self.outcome.longest_stall.max(longest_stall);
        settled?;
        if let Err(error) = verified {
            self.outcome.wrong.push(format!("verify: {error:#}"));
        }
        caught_up?;
        self.compare().await
    }

    async fn until_running(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut last;
        loop {
            last = self.fleet.pipe().await;
            let state = last["status"]["state"].as_str().unwrap_or_default();
            match state {
                "PIPE_STATE_RUNNING" if settled(&last) => return Ok(()),
                "PIPE_STATE_FAILED" => bail!("the pipe failed: {:#}", last["status"]),
                // A resumption may have been refused while the pipe was still on its way to rest.
                "PIPE_STATE_PAUSED" => {
                    let _ = self.fleet.command(&["pipe", "resume", PIPE], Duration::ZERO).await;
                }
                _ => {}
            }
            if began.elapsed() > PATIENCE {
                bail!("it did not settle within {} s: {last:#}", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Until the destination has the last beat.
    async fn until_caught_up(&self) -> anyhow::Result<()> {
        let source = self.fleet.client("postgres").await?;
        // After all else that was committed.
        let row = source.query_one("UPDATE pulse SET beat = beat + 1 RETURNING beat", &[]).await?;
        let goal: i64 = row.get(0);
        let began = Instant::now();
        loop {
            let sql = "SELECT max(beat) FROM mirror.pulse FINAL";
            let seen = self.fleet.destination().query(sql).fetch_one::<i64>().await.unwrap_or(-1);
            if seen >= goal {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                bail!(
                    "the stream did not catch up within {} s: {:#}",
                    PATIENCE.as_secs(),
                    self.fleet.pipe().await
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn compare(&mut self) -> anyhow::Result<()> {
        let source = self.fleet.client("postgres").await?;
        let destination = self.fleet.destination();
        for table in ["walk", "plain"] {
            let tables = Tables {
                schema: "public",
                table,
                database: "mirror",
                target: table,
                key: &["id"],
                excluded: &[],
                metadata: "_millrace",
            };
            let differences = compare(&source, &destination, tables).await?;
            self.outcome.comparisons += 1;
            self.outcome.rows_compared += differences.source_rows as u64;
            if !differences.is_empty() {
                self.outcome.wrong.push(format!("{table}: {differences}"));
            }
        }
        let row = source
            .query_one(
                "SELECT count(*), coalesce(sum(id), 0)::bigint, coalesce(sum(step), 0)::bigint FROM trail",
                &[],
            )
            .await?;
        let wanted: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let sql =
            "SELECT toInt64(count()), sum(id), sum(step), toInt64(uniqExact(id, step)) FROM mirror.trail";
        let found: (i64, i64, i64, i64) = destination.query(sql).fetch_one().await?;
        self.outcome.comparisons += 1;
        self.outcome.rows_compared += wanted.0.unsigned_abs();
        if (found.0, found.1, found.2) != wanted || found.3 != wanted.0 {
            self.outcome.wrong.push(format!(
                "trail: {wanted:?} at the source (rows, sum of ids, sum of steps), {found:?} in the destination (and different rows)"
            ));
        }
        Ok(())
    }
}

/// Ends the sessions of Millrace in a database.
fn ended(database: &str) -> String {
    format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' AND application_name LIKE 'millrace%'"
    )
}

fn earliest(lasting: &[(Instant, Fault)]) -> Option<(Instant, Fault)> {
    lasting.iter().copied().min_by_key(|(ends, _)| *ends)
}

/// Whether both strike the same thing.
fn clashes(one: Fault, other: Fault) -> bool {
    use Fault as F;
    let subject = |fault: Fault| match fault {
        F::WorkerKilled(which)
        | F::WorkerStopped(which)
        | F::WorkerLeaves(which)
        | F::WorkerDrained(which) => (0, which),
        F::CoordinatorKilled(which) | F::CoordinatorStopped(which) | F::CoordinatorLeaves(which) => {
            (1, which)
        }
        F::PostgresRestarted
        | F::PostgresKilled
        | F::SessionsEnded
        | F::SourceRefuses
        | F::SourceFull
        | F::SourceOutOfMemory
        | F::CatalogReadOnly => (2, 0),
        F::SourceClock(_) => (11, 0),
        F::ClickHouseKilled | F::DestinationFull | F::TooManyParts | F::OutOfMemory => (3, 0),
        F::WorkerClock(which, _) => (8, which),
        F::CoordinatorClock(which, _) => (9, which),
        F::WorkerUnplugged(which) | F::WorkerMute(which) | F::WorkerDeaf(which) => (10, which),
        F::SourceCut | F::SourceSilent => (4, 0),
        F::DestinationCut | F::DestinationSilent | F::AnswersLost => (5, 0),
        F::Paused | F::Resynced => (6, 0),
        F::CoordinatorCut(which) | F::CoordinatorSilent(which) | F::CoordinatorMute(which) => (7, which),
    };
    subject(one) == subject(other)
}

/// All tables stream, and none is being copied anew.
fn settled(pipe: &Value) -> bool {
    let tables = pipe["tables"].as_array().map(Vec::as_slice).unwrap_or_default();
    !tables.is_empty()
        && tables.iter().all(|table| {
            table["state"] == "TABLE_STATE_STREAMING"
                && table["successor"].is_null()
                && table["held"].is_null()
        })
}
