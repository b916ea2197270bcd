//! Carrying changes: pgoutput in, `Native` blocks out, and the durable position back to the slot.
//!
//! What was read waits in the applier. Whenever the destination is free and the last batch was sent long enough ago, everything that waits goes as one batch, at most one insert
//! a table. Several batches may be on their way; the position that the slot may forget is the end of the last transaction in the longest unbroken run of
//! arrived batches. Nothing else ever moves it.

mod amend;
mod batches;
mod bulk;
mod cadence;
mod claim;
mod hold;
mod schema;
mod values;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::OptionFuture;
use millrace_apply::problem::{source_schema_changed, truncate_shared};
use millrace_apply::{Applier, Step, StreamTable, TableIndex};
use millrace_clickhouse::{Destination, TableRef};
use millrace_mapping::{EncodedBlock, streams_as_binary};
use millrace_model::spec::{TableEngine, TruncatePolicy};
use millrace_model::work::{
    Assignment, DestinationFacts, Outcome, Progress, Report, StreamProgress, StreamedTable, Swap, Work,
};
use millrace_model::{Epoch, Lsn, PipeId, PipeSpec, Problem, TableId, TableName, Timestamp};
use millrace_pgoutput::{Commit, Relation};
use millrace_postgres::{ReplicationEvent, ReplicationStream, Session, StreamForm, classify, timelines};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::partitions::Partitions;
use super::source;
use super::swap::swap_in;
use super::tables::{self, PlannedTable};
use super::{Ending, Shared, Signals};
use crate::budget::Reservation;
use crate::delivery::Patience;
use crate::desk::Reporter;
use crate::fence::{self, Watch};
use crate::spool::Spool;
use amend::amendment;
use cadence::Cadence;
use claim::Claim;
use hold::{Refused, Struggle, Tried};

/// Batches that may be on their way at a time.
const BATCHES: usize = 2;
/// What waits is sent once it is so large, and nothing more is read until there is room for a batch.
const BATCH_BYTES: usize = 16 << 20;
/// And so much more for every table that it is spread over, up to twice as much.
const TABLE_BYTES: usize = 128 << 10;
/// The rows at which a batch closes are those of so many tables.
const BUSY_TABLES: usize = 8;
/// As many at first, while nobody knows how long the values are.
const FIRST_INCOMPLETE_ROWS: usize = 100;
/// How long an insert of a batch is tried before its table is held: the others of the batch wait for it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the slot hears of the durable position, at least; PostgreSQL's default `wal_sender_timeout` is a minute.
const STATUS: Duration = Duration::from_secs(5);
/// How often the coordinator hears how far the stream is.
const REPORT: Duration = Duration::from_millis(500);
/// Memory is taken from the budget in steps.
const STEP: u64 = 1 << 20;

/// Pipes of which this process has learned something.
#[derive(Debug, Clone, Default)]
pub(crate) struct PipeSet(Arc<Mutex<HashSet<PipeId>>>);

impl PipeSet {
    fn contains(&self, pipe: &PipeId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(pipe)
    }

    fn insert(&self, pipe: PipeId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pipe);
    }
}

/// A stream to carry.
pub(crate) struct Stream {
    epoch: Epoch,
    pipe: PipeId,
    spec: PipeSpec,
    slot_name: String,
    publication_name: String,
    system_identifier: u64,
    timeline: u32,
    durable: Lsn,
    revision: u64,
    tables: Vec<StreamedTable>,
    swaps: Vec<Swap>,
    destination: DestinationFacts,
}

impl Stream {
    /// A stream out of an assignment, which must be one of a stream.
    pub(crate) fn new(epoch: Epoch, pipe: PipeId, spec: PipeSpec, work: Work) -> Result<Self, Vec<Problem>> {
        match work {
            Work::Stream {
                slot_name,
                publication_name,
                system_identifier,
                timeline,
                consistent_point,
                durable,
                revision,
                tables,
                swaps,
                destination,
            } => Ok(Self {
                epoch,
                pipe,
                spec,
                slot_name,
                publication_name,
                system_identifier,
                timeline,
                durable: durable.max(consistent_point),
                revision,
                tables,
                swaps,
                destination,
            }),
            other => {
                let message = format!("{} is not a stream", other.kind());
                Err(vec![Problem::operator("PROTOCOL_FAULT", message, "report it with the worker's log")])
            }
        }
    }
}

/// Whether what is written twice is there twice.
fn keeps_every_row(planned: &PlannedTable) -> bool {
    planned.target.engine == TableEngine::MergeTree
}

/// As [`crate::delivery::deliver`], with the claim asked before each try, and whether the worker has run all the time.
async fn deliver_claimed(
    destination: &Destination,
    source: &TableName,
    table: &TableRef,
    block: &EncodedBlock,
    token: &str,
    claim: Option<&Claim>,
    watch: &Watch,
) -> Result<(), Problem> {
    let mut patience = Patience::of(source, PATIENCE);
    loop {
        if let Some(claim) = claim {
            claim.stands().await?;
        }
        // Rows from before a truncation that somebody else has carried since would be there for good.
        if !watch.awake() {
            return Err(fence::lost());
        }
        match destination.insert(table, block, token).await {
            Ok(()) => return Ok(()),
            Err(error) => patience.wait(&error).await?,
        }
    }
}

/// Carries changes until drained, cancelled, or stopped by a problem.
pub(crate) async fn run(
    mut stream: Stream,
    shared: &Shared,
    reporter: &Reporter,
    signals: Signals,
) -> Ending {
    let watch = shared.fence.watch();
    let destination = tables::destination(&stream.spec)?;
    let planned: Vec<PlannedTable> = stream
        .swapped_tables()
        .iter()
        .map(|streamed| tables::plan_streamed(&stream.spec, streamed, &destination, stream.destination))
        .collect::<Result<_, _>>()?;
    let binary = planned.iter().all(|table| streams_as_binary(&table.columns));
    let swaps = stream.swaps.clone();
    let restart = source::claim_slot(&stream.spec, &stream.slot_name, stream.system_identifier).await?;
    stream.timeline = follow_timeline(&stream, &planned, &destination).await?;
    let mut tables: Vec<StreamTable> = planned.iter().map(PlannedTable::stream_table).collect();
    let claim = if planned.iter().any(keeps_every_row) {
        Some(Arc::new(Claim::take(&stream.spec.source, &stream.pipe, stream.epoch).await?))
    } else {
        None
    };
    for (table, planned) in tables.iter_mut().zip(&planned) {
        if keeps_every_row(planned) {
            // No change that the slot still sends lies before its restart position.
            let target = &planned.target;
            // A dead predecessor's last one may still be at work, and shows its rows only at its end.
            let waited = destination.wait_for_inserts(&target.table).await;
            waited.map_err(|error| vec![millrace_clickhouse::classify(&error)])?;
            let held = destination.versions(&target.table, &target.metadata.version, restart).await;
            table.held = held.map_err(|error| vec![millrace_clickhouse::classify(&error)])?;
        }
    }
    let applier = Applier::new(tables, &stream.spec.settings.metadata_columns);
    tracing::info!(slot = %stream.slot_name, tables = planned.len(), binary, "streaming");
    // Before anything of ours is on its way to the tables that are replaced.
    for swap in &swaps {
        swap_in(&destination, &stream.pipe, swap).await.map_err(|problem| vec![problem])?;
        reporter.must_say(Report::TableSwapped(swap.id)).await;
    }
    let mut pump = Pump {
        claim,
        watch,
        cadence: Cadence::new(stream.spec.settings.sync_interval, Instant::now()),
        batch_rows: 1,
        goal: None,
        durable: stream.durable,
        source: Lsn::ZERO,
        reserved: shared.budget.empty(),
        batches: VecDeque::new(),
        arriving: JoinSet::new(),
        next_batch: 0,
        incomplete_rows: FIRST_INCOMPLETE_ROWS,
        largest: HashMap::new(),
        said_until: HashMap::new(),
        catalog: None,
        partitions: HashMap::new(),
        next_look: Instant::now(),
        unacknowledged: swaps.iter().map(|swap| (swap.id, 1)).collect(),
        swapped: swaps.iter().map(|swap| swap.id).collect(),
        struggling: BTreeMap::new(),
        trying: JoinSet::new(),
        held_at: stream.durable,
        changes: 0,
        table_changes: BTreeMap::new(),
        altered: BTreeMap::new(),
        delay: None,
        reader: None,
        log_end: Lsn::ZERO,
        binary,
        spool: Spool::new(shared.budget.clone(), std::env::temp_dir()),
        applier,
        planned,
        destination,
        stream,
        shared,
        reporter,
    };
    pump.take_settings();
    let mut signals = signals;
    pump.look_at_partitions().await?;
    match pump.catch_up(&mut signals).await? {
        Caught::Up => {
            pump.open().await?;
            Box::pin(pump.run(signals)).await
        }
        Caught::Drain => pump.drain(signals).await,
    }
}

/// The timeline of the source's log now. Where it is another than before, a standby was promoted: what the one before committed
/// after they parted never was, as far as the source knows, and must not be in the destination.
///
/// What it commits since may have the same positions. So this is asked before anything further is read.
async fn follow_timeline(
    stream: &Stream,
    planned: &[PlannedTable],
    destination: &Destination,
) -> Result<u32, Vec<Problem>> {
    let application = source::application_name(&stream.pipe, stream.epoch);
    let history =
        timelines(&stream.spec.source, &application).await.map_err(|error| vec![classify(&error)])?;
    if stream.timeline == 0 || history.current == stream.timeline {
        return Ok(history.current);
    }
    // A history without it parted before anything that can be known.
    let parted = history.left(stream.timeline).unwrap_or(Lsn::ZERO);
    let lost = |what: String| {
        let message = format!(
            "the source went over to timeline {} at {parted}, and {what}: the standby that was promoted did not have everything that the pipe had carried",
            history.current
        );
        let remedy = "run `millrace pipe resync`; before the next failover, name the standby's slot in synchronized_standby_slots, so that nothing is carried that it lacks";
        vec![Problem::permanent("SOURCE_LOST_CHANGES", message, remedy)]
    };
    if stream.durable > parted {
        return Err(lost(format!("the destination has its changes up to {}", stream.durable)));
    }
    for table in planned {
        let target = &table.target;
        if target.engine == TableEngine::Null {
            continue;
        }
        let newest = destination.newest_version(&target.table, &target.metadata.version).await;
        let newest = Lsn(newest.map_err(|error| vec![millrace_clickhouse::classify(&error)])?);
        if newest > parted {
            return Err(lost(format!("{} has a change from {newest}", target.source)));
        }
    }
    tracing::info!(
        timeline = history.current,
        %parted,
        "the source is another server of its cluster, and nothing is lost"
    );
    Ok(history.current)
}

/// How taking a backlog in bulk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caught {
    /// What is left is for the stream.
    Up,
    /// The stream is to be drained.
    Drain,
}

/// A batch that was sent.
struct Sent {
    number: u64,
    /// Once it and all before it have arrived, the slot may forget everything up to here.
    committed: Lsn,
    newest_commit: Option<Timestamp>,
    arrived: bool,
}

struct Arrived {
    number: u64,
    tables: u32,
    took: Duration,
    refused: Vec<Refused>,
}

struct Pump<'a> {
    stream: Stream,
    shared: &'a Shared,
    reporter: &'a Reporter,
    /// Absent while a backlog is taken in bulk.
    reader: Option<ReplicationStream>,
    /// The end of the source's log when it was last asked for, to be shown.
    log_end: Lsn,
    /// Whether values come in binary form.
    binary: bool,
    spool: Spool,
    applier: Applier,
    planned: Vec<PlannedTable>,
    destination: Destination,
    /// Asked before anything is written into tables that keep every row.
    claim: Option<Arc<Claim>>,
    /// Asked before anything is written.
    watch: Watch,
    cadence: Cadence,
    batch_rows: usize,
    /// The end of the source's log when the stream began: once that is durable the stream has caught up.
    goal: Option<Lsn>,
    durable: Lsn,
    source: Lsn,
    reserved: Reservation,
    batches: VecDeque<Sent>,
    arriving: JoinSet<Arrived>,
    next_batch: u64,
    /// Rows of a batch that may lack values: so many that what is found fits into a batch.
    incomplete_rows: usize,
    /// Bytes of the largest row of a table that was looked for last.
    largest: HashMap<TableIndex, u64>,
    /// Up to where tables were last said to be distrusted.
    said_until: HashMap<TableId, Lsn>,
    /// A session at the source for questions about its catalog, once there was one.
    catalog: Option<Session>,
    /// Of partitioned tables.
    partitions: HashMap<usize, Partitions>,
    next_look: Instant,
    /// Tables of which something was said that the coordinator has not said that it knows, and how often.
    unacknowledged: HashMap<TableId, usize>,
    /// Tables that this stream has swapped in.
    swapped: HashSet<TableId>,
    /// Tables that cannot be written for now.
    struggling: BTreeMap<usize, Struggle>,
    /// Inserts of those that are tried again.
    trying: JoinSet<Tried>,
    /// The slot does not pass this while there are such tables: were they forgotten, their changes must be read again.
    held_at: Lsn,
    changes: u64,
    table_changes: BTreeMap<usize, u64>,
    /// Values that were altered and of which the coordinator has not heard.
    altered: BTreeMap<usize, u64>,
    delay: Option<Duration>,
}

/// Why the loop woke up.
enum Wake {
    Drain,
    Arrived(Arrived),
    Acknowledged(BTreeMap<TableId, usize>),
    Amended(Arc<Assignment>),
    Tried(Tried),
    Read(Result<(), millrace_postgres::Error>),
    Flush,
    Status,
    Report,
}

impl Pump<'_> {
    /// Opens the stream where the slot stands.
    async fn open(&mut self) -> Result<(), Vec<Problem>> {
        let in_progress = !self.shared.whole.contains(&self.stream.pipe);
        let application = source::application_name(&self.stream.pipe, self.stream.epoch);
        let reader = ReplicationStream::start(
            &self.stream.spec.source,
            &application,
            &self.stream.slot_name,
            Lsn::ZERO,
            std::slice::from_ref(&self.stream.publication_name),
            StreamForm { binary: self.binary, in_progress },
        );
        self.reader = Some(reader.await.map_err(|error| vec![classify(&error)])?);
        Ok(())
    }

    async fn run(mut self, mut signals: Signals) -> Ending {
        let mut status = tokio::time::interval(STATUS);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report = tokio::time::interval(REPORT);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Asks for a keepalive, which says where the log ends: an idle source would leave us waiting for half a minute.
        self.acknowledge(true).await?;
        loop {
            let room = self.batches.len() < BATCHES;
            let waiting = self.applier.buffered_rows() > 0;
            let (due, full) = (self.due(), self.is_full());
            let wake = tokio::select! {
                biased;
                // 1. Stop reading as soon as that is asked for. (Cancellation drops this future as a whole.)
                () = signals.drain.cancelled() => Wake::Drain,
                // 2. What has arrived makes room, and moves the position.
                Some(arrived) = self.arriving.join_next() => {
                    Wake::Arrived(arrived.map_err(|_| vec![super::stopped()])?)
                }
                recorded = signals.recorded.next() => Wake::Acknowledged(recorded),
                amended = amendment(&mut signals.amendments) => Wake::Amended(amended),
                Some(tried) = self.trying.join_next() => Wake::Tried(tried.map_err(|_| vec![super::stopped()])?),
                // 3. PostgreSQL must hear of us, also when nothing can be read.
                _ = status.tick() => Wake::Status,
                _ = report.tick() => Wake::Report,
                // 4. A batch that is due, before more is read.
                () = tokio::time::sleep_until(due), if waiting && room => Wake::Flush,
                // 5. More changes, unless what waits is as large as a batch may be.
                Some(read) = OptionFuture::from(self.reader.as_mut().map(ReplicationStream::fill)), if !full => Wake::Read(read),
            };
            match wake {
                Wake::Drain => return self.drain(signals).await,
                Wake::Arrived(arrived) => self.arrived(arrived).await?,
                Wake::Acknowledged(recorded) => {
                    self.acknowledged(&recorded);
                    self.acknowledge(false).await?;
                }
                Wake::Amended(amended) => {
                    self.amend(&amended).await?;
                    self.report();
                }
                Wake::Tried(tried) => self.tried(tried).await?,
                Wake::Status => {
                    self.give_up_held().await;
                    self.acknowledge(false).await?;
                    self.look_at_partitions().await?;
                }
                Wake::Report => self.report(),
                Wake::Flush => self.flush().await?,
                Wake::Read(read) => {
                    read.map_err(|error| vec![self.source_failed(&error)])?;
                    self.take_in().await?;
                }
            }
        }
    }

    /// When what waits goes.
    fn due(&self) -> Instant {
        let now = Instant::now();
        if self.is_full() { now } else { self.cadence.due(now, self.waiting_tables(), self.is_behind()) }
    }

    /// Sends what is due.
    async fn flush(&mut self) -> Result<(), Vec<Problem>> {
        let now = Instant::now();
        if !self.is_full() && now < self.cadence.turn(now, self.waiting_tables(), self.is_behind()) {
            self.cadence.has_hastened(now);
        }
        self.send().await
    }

    fn waiting_tables(&self) -> u32 {
        u32::try_from(self.applier.waiting_tables()).unwrap_or(u32::MAX)
    }

    fn is_behind(&self) -> bool {
        self.delay.is_some_and(|delay| delay > self.stream.spec.settings.sync_interval / 2)
    }

    /// An insert costs ClickHouse the same whether it brings a hundred rows or ten thousand, so what is spread over many tables may wait for longer.
    fn is_full(&self) -> bool {
        let tables = self.applier.waiting_tables();
        let rows = self.batch_rows.saturating_mul((tables / BUSY_TABLES).max(1));
        let bytes = BATCH_BYTES + (tables * TABLE_BYTES).min(2 * BATCH_BYTES);
        self.applier.buffered_rows() >= rows || self.applier.buffered_bytes() >= bytes
    }

    /// Takes in everything that was read.
    async fn take_in(&mut self) -> Result<(), Vec<Problem>> {
        self.cadence.has_read(Instant::now());
        loop {
            let (whole, pipe) = (&self.shared.whole, &self.stream.pipe);
            let failed = |error| vec![stream_failed(&error, whole, pipe)];
            let Some(reader) = &mut self.reader else { break };
            let step = match reader.next_event().map_err(failed)? {
                None => break,
                Some(ReplicationEvent::Keepalive { end, reply_requested }) => {
                    self.keepalive(end);
                    if reply_requested {
                        self.acknowledge(false).await?;
                    }
                    continue;
                }
                Some(ReplicationEvent::XLogData { start, end, payload }) => {
                    self.source = self.source.max(end);
                    let step =
                        self.applier.apply(start, payload).map_err(|error| vec![broken_stream(&error)])?;
                    if let Step::SchemaChanged { .. } = step {
                        let message = payload.to_vec();
                        let (mut again, mut followed) = (step, None);
                        while let Step::SchemaChanged { table, relation } = again {
                            self.follow_once(table, &relation, start, &mut followed).await?;
                            again = self
                                .applier
                                .apply(start, &message)
                                .map_err(|error| vec![broken_stream(&error)])?;
                        }
                        again
                    } else if let Step::Spool { transaction, subtransaction } = step {
                        // Copied out of the reader's buffer, which the spool cannot hold on to.
                        let kept = self.spool.append(transaction, subtransaction, start, payload).await;
                        kept.map_err(|error| vec![spool_failed(&error)])?;
                        continue;
                    } else {
                        step
                    }
                }
            };
            self.step(step).await?;
        }
        self.reserve_waiting().await
    }

    /// Reads a transaction back that was in progress and has committed. Whenever a batch is full it is sent, as when reading from the source.
    async fn replay(&mut self, transaction: u32, commit: Commit) -> Result<(), Vec<Problem>> {
        if let Some(kept) = self.spool.take(transaction) {
            let mut messages = kept.read_back().await.map_err(|error| vec![spool_failed(&error)])?;
            let mut spoken = Instant::now();
            while let Some((lsn, message)) =
                messages.next().await.map_err(|error| vec![spool_failed(&error)])?
            {
                let mut step = self.replayed(lsn, message, &commit)?;
                let mut followed = None;
                while let Step::SchemaChanged { table, relation } = step {
                    self.follow_once(table, &relation, lsn, &mut followed).await?;
                    step = self.replayed(lsn, message, &commit)?;
                }
                Box::pin(self.step(step)).await?;
                if self.is_full() {
                    self.reserve_waiting().await?;
                    self.make_room().await?;
                }
                if spoken.elapsed() > STATUS {
                    spoken = Instant::now();
                    self.acknowledge(false).await?;
                }
            }
        }
        self.applier.end_replay(&commit);
        Ok(())
    }

    fn replayed(&mut self, lsn: Lsn, message: &[u8], commit: &Commit) -> Result<Step, Vec<Problem>> {
        self.applier.replay(lsn, message, commit).map_err(|error| vec![broken_stream(&error)])
    }

    fn source_failed(&self, error: &millrace_postgres::Error) -> Problem {
        stream_failed(error, &self.shared.whole, &self.stream.pipe)
    }

    /// Sends what waits, once there is room for another batch.
    async fn make_room(&mut self) -> Result<(), Vec<Problem>> {
        while self.batches.len() >= BATCHES {
            tokio::select! {
                Some(arrived) = self.arriving.join_next() => {
                    self.arrived(arrived.map_err(|_| vec![super::stopped()])?).await?;
                }
                () = tokio::time::sleep(STATUS) => self.acknowledge(false).await?,
            }
        }
        self.send().await
    }

    /// Lets a table follow its source; where its rows do not fit its new definition either, it is set aside.
    async fn follow_once(
        &mut self,
        table: TableIndex,
        relation: &Relation,
        lsn: Lsn,
        followed: &mut Option<TableIndex>,
    ) -> Result<(), Vec<Problem>> {
        if followed.replace(table) == Some(table) {
            return self.misfit(table).await;
        }
        self.follow(table, relation, lsn).await
    }

    /// The table's rows do not fit its new definition either.
    async fn misfit(&mut self, table: TableIndex) -> Result<(), Vec<Problem>> {
        let name = &self.planned[table.0].definition.name;
        let reason = "its rows do not fit what the source says of its columns".to_owned();
        let problem = source_schema_changed(name, &[reason]);
        self.give_up(table, problem).await
    }

    async fn reserve_waiting(&mut self) -> Result<(), Vec<Problem>> {
        // More memory for what waits; without it reading rests until some is free.
        let held = self.applier.buffered_bytes() as u64;
        if held > self.reserved.bytes() {
            match self.shared.budget.try_reserve((held - self.reserved.bytes()).max(STEP)) {
                Some(more) => self.reserved.merge(more),
                None => self.wait_for_memory().await?,
            }
        }
        Ok(())
    }

    /// Others have the memory. What is held goes out and is waited for first, so that no two tasks wait for each other; PostgreSQL hears of us meanwhile.
    async fn wait_for_memory(&mut self) -> Result<(), Vec<Problem>> {
        self.arrive_all().await?;
        let budget = self.shared.budget.clone();
        self.reserved = self.meanwhile(budget.reserve(STEP)).await?;
        Ok(())
    }

    async fn step(&mut self, step: Step) -> Result<(), Vec<Problem>> {
        let refused = self.applier.take_refused();
        self.set_aside(refused).await;
        match step {
            Step::Buffered => {
                self.changes += 1;
                // One read may bring many small updates of rows with large values.
                if self.applier.incomplete_rows() >= self.incomplete_rows {
                    self.make_room().await?;
                }
            }
            Step::Apart => {
                self.changes += 1;
                // Rows of other tables that lack values go with what waited: the slot must not pass them, and what they lack may be overwritten by it.
                self.make_room().await?;
            }
            Step::Described(TableIndex(index)) => {
                // Also the copy that is to take its place.
                let oid = self.planned[index].definition.oid;
                for index in 0..self.planned.len() {
                    if self.planned[index].definition.oid == oid && self.applier.is_active(TableIndex(index))
                    {
                        self.recognise(TableIndex(index)).await?;
                    }
                }
            }
            Step::Ignored | Step::Committed { .. } => {}
            Step::Forget { transaction, subtransaction } => self.spool.forget(transaction, subtransaction),
            Step::Replay { transaction, commit } => self.replay(transaction, commit).await?,
            // Both are seen to where their message is at hand.
            Step::SchemaChanged { .. } | Step::Spool { .. } => {}
            Step::Truncate { .. } if self.stream.spec.settings.truncate == TruncatePolicy::Ignore => {}
            Step::Truncate { tables, lsn } => {
                self.arrive_all().await?;
                let keeps = |table: &TableIndex| self.planned[table.0].target.engine != TableEngine::Null;
                let tables: Vec<TableIndex> = tables.into_iter().filter(keeps).collect();
                for TableIndex(index) in tables.iter().copied() {
                    if self.shares(index, &tables) {
                        let problem = truncate_shared(&self.planned[index].definition.name);
                        self.give_up(TableIndex(index), problem).await?;
                    } else if self.planned[index].copying {
                        self.void_copy(TableIndex(index)).await;
                    } else {
                        self.truncate(index, lsn).await?;
                    }
                    self.changes += 1;
                    if let Some(partitions) = self.partitions.get_mut(&index) {
                        partitions.emptied();
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether another source feeds the same destination table and was not truncated with this one.
    fn shares(&self, index: usize, truncated: &[TableIndex]) -> bool {
        let target = &self.planned[index].target.table;
        self.planned.iter().enumerate().any(|(other, planned)| {
            &planned.target.table == target
                && self.applier.is_active(TableIndex(other))
                && !truncated.contains(&TableIndex(other))
        })
    }

    /// Empties a table of what is older than its truncation. Large ones take a while, so PostgreSQL hears of us meanwhile.
    async fn truncate(&mut self, index: usize, truncation: Lsn) -> Result<(), Vec<Problem>> {
        let (destination, target) = (self.destination.clone(), self.planned[index].target.clone());
        let emptied = destination.delete_older_versions(&target.table, &target.metadata.version, truncation);
        let problem = |error| millrace_clickhouse::classify(&error).of_table(&target.source);
        self.meanwhile(emptied).await?.map_err(|error| vec![problem(error)])
    }

    async fn set_aside(&mut self, tables: Vec<(TableIndex, Problem)>) {
        for (index, problem) in tables {
            let PlannedTable { id, definition, .. } = &self.planned[index.0];
            let (id, name) = (*id, &definition.name);
            tracing::warn!(table.name = %name, %problem, "table is set aside");
            self.struggling.remove(&index.0);
            let problem = if problem.table.is_none() { problem.of_table(name) } else { problem };
            self.say(id, Report::TableSetAside(id, problem)).await;
        }
    }

    /// Says something that must be in the catalog before the slot passes what led to it.
    async fn say(&mut self, table: TableId, report: Report) {
        if self.unacknowledged.is_empty() {
            self.held_at = self.durable;
        }
        *self.unacknowledged.entry(table).or_default() += 1;
        self.reporter.must_say(report).await;
    }

    fn acknowledged(&mut self, recorded: &BTreeMap<TableId, usize>) {
        for (table, times) in recorded {
            if let Some(left) = self.unacknowledged.get_mut(table) {
                *left = left.saturating_sub(*times);
                if *left == 0 {
                    self.unacknowledged.remove(table);
                }
            }
        }
    }

    fn keepalive(&mut self, end: Lsn) {
        self.source = self.source.max(end);
        self.goal.get_or_insert(end);
        self.pass_quiet_log();
    }

    /// Log that holds nothing for us is passed too, or the slot of a quiet pipe would hold back that of a busy database for ever.
    fn pass_quiet_log(&mut self) {
        if self.batches.is_empty() && self.applier.buffered_rows() == 0 && !self.applier.in_transaction() {
            self.durable = self.durable.max(self.source);
        }
    }

    /// What may be forgotten: everything that is durable, but no change that set a table aside before that is recorded. Neither PostgreSQL nor the coordinator,
    /// from whose record a later stream begins, ever hears of another position.
    fn forgettable(&self) -> Lsn {
        let held = if self.unacknowledged.is_empty() { self.durable } else { self.held_at };
        self.struggling.values().map(|struggle| struggle.held_at).fold(held, Lsn::min)
    }

    /// Tells PostgreSQL what it may forget.
    async fn acknowledge(&mut self, reply_requested: bool) -> Result<(), Vec<Problem>> {
        let flushed = self.forgettable();
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let sent = reader.send_status(flushed, flushed, flushed, reply_requested).await;
        sent.map_err(|error| vec![classify(&error)])
    }

    fn report(&mut self) {
        let tables = self.table_changes.iter();
        let tables = tables.map(|(index, changes)| (self.planned[*index].id, *changes));
        let held = self.struggling.iter();
        let held = held.map(|(index, struggle)| (self.planned[*index].id, struggle.problem.clone()));
        self.reporter.progress(Progress::Stream(StreamProgress {
            durable: self.forgettable(),
            source: self.source.max(self.log_end),
            changes: self.changes,
            delay: self.delay,
            caught_up: self.goal.is_some_and(|goal| self.durable >= goal),
            tables: tables.collect(),
            revision: self.stream.revision,
            held: held.collect(),
            timeline: self.stream.timeline,
        }));
    }

    /// Everything that was read is made durable, then the slot is released.
    async fn drain(mut self, signals: Signals) -> Ending {
        tracing::info!("draining");
        self.arrive_all().await?;
        while !self.unacknowledged.is_empty() {
            let recorded = self.meanwhile(signals.recorded.next()).await?;
            self.acknowledged(&recorded);
        }
        self.acknowledge(false).await?;
        self.report();
        let durable = self.forgettable();
        match self.reader.take() {
            Some(reader) => reader.finish().await.map_err(|error| vec![classify(&error)])?,
            None => self.advance_slot().await?,
        }
        Ok(Outcome::Drained { durable })
    }
}

/// Nothing where somebody alters what was asked for: it is asked for again before long.
fn unless_locked<T>(asked: Result<T, millrace_postgres::Error>) -> Result<Option<T>, Vec<Problem>> {
    match asked {
        Ok(answer) => Ok(Some(answer)),
        Err(error) => match classify(&error) {
            problem if problem.code == "SOURCE_LOCKED" => Ok(None),
            problem => Err(vec![problem]),
        },
    }
}

/// An internal error of the decoder is tried again with whole transactions before anybody is troubled.
fn stream_failed(error: &millrace_postgres::Error, whole: &PipeSet, pipe: &PipeId) -> Problem {
    let internal =
        matches!(error, millrace_postgres::Error::Refused { source, .. } if source.code.starts_with("XX"));
    if !internal || whole.contains(pipe) {
        return classify(error);
    }
    whole.insert(pipe.clone());
    let message = format!("the source cannot send a transaction in progress: {}", classify(error).message);
    Problem::transient("STREAM_REOPENED", message, "it is opened again by itself, for whole transactions")
}

/// Transactions in progress have no place to wait.
fn spool_failed(error: &std::io::Error) -> Problem {
    Problem::transient(
        "SPOOL_FAILED",
        format!("transactions in progress cannot be kept in {}: {error}", std::env::temp_dir().display()),
        "give the worker's temporary folder (TMPDIR) room for the largest transactions that are in progress at a time",
    )
}

/// The stream itself cannot be understood: opening it again reads the same log anew.
fn broken_stream(error: &millrace_apply::ApplyError) -> Problem {
    Problem::operator(
        "STREAM_UNREADABLE",
        format!("the change stream cannot be read: {error}"),
        "report it with the worker's log",
    )
}

fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}
