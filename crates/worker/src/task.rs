//! How each kind of work is done. One module a kind; each takes an assignment and ends with an outcome or with problems.

pub(crate) mod copy;
pub(crate) mod inspect;
mod partitions;
mod provision;
mod snapshot;
mod source;
pub(crate) mod stream;
mod swap;
mod tables;
mod verify;

use std::sync::Arc;

use millrace_model::Problem;
use millrace_model::work::{Assignment, Outcome, Work};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::budget::Budget;
use crate::desk::{Recorded, Reporter};
use crate::fence::Fence;

/// What all tasks of a worker share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) budget: Budget,
    pub(crate) fence: Fence,
    pub(crate) connections: copy::Connections,
    /// Their source cannot send transactions in progress: some of what a transaction may do (columns that change and are rolled back with a savepoint, then a rewrite
    /// of the table) makes PostgreSQL's decoder fail with an internal error, which does not happen when it sends whole transactions.
    pub(crate) whole: stream::PipeSet,
    /// Their source refuses to give a backlog in bulk.
    pub(crate) streamed_only: stream::PipeSet,
}

impl Shared {
    pub(crate) fn new(budget: Budget) -> Self {
        Self {
            budget,
            fence: Fence::default(),
            connections: copy::Connections::default(),
            whole: stream::PipeSet::default(),
            streamed_only: stream::PipeSet::default(),
        }
    }

    /// Closes what nobody has used for a while.
    pub(crate) fn close_idle(&self) {
        self.connections.close_idle();
    }
}

/// What may reach a task while it works.
pub(crate) struct Signals {
    /// Finish what was read, then end.
    pub(crate) drain: CancellationToken,
    /// The coordinator has stored what was said of tables.
    pub(crate) recorded: Recorded,
    /// What a stream is to do from now on; the newest replaces those before it.
    pub(crate) amendments: watch::Receiver<Option<Arc<Assignment>>>,
}

/// How a task ends.
pub(crate) type Ending = Result<Outcome, Vec<Problem>>;

/// Does an assignment's work. `None` where it was cancelled.
pub(crate) async fn run(
    assignment: Assignment,
    shared: Shared,
    reporter: Reporter,
    signals: Signals,
    cancel: CancellationToken,
) -> Result<Option<Outcome>, Vec<Problem>> {
    let span = tracing::info_span!(
        "work",
        otel.name = assignment.work.kind(),
        pipe.id = %assignment.pipe,
        assignment.epoch = assignment.epoch.0,
        table.name = tracing::field::Empty,
    );
    if let Work::Copy { table, .. } | Work::Verify { table, .. } = &assignment.work {
        span.record("table.name", tracing::field::display(&table.definition.name));
    }
    millrace_telemetry::set_parent(&span, &assignment.trace);
    let work = Box::pin(dispatch(assignment, shared, reporter, signals));
    async {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Ok(None),
            ending = work => {
                if let Err(problems) = &ending {
                    for problem in problems {
                        tracing::warn!(%problem, "work failed");
                    }
                }
                ending.map(Some)
            }
        }
    }
    .instrument(span)
    .await
}

async fn dispatch(assignment: Assignment, shared: Shared, reporter: Reporter, signals: Signals) -> Ending {
    let Assignment { epoch, pipe, spec, work, .. } = assignment;
    match work {
        Work::Provision { .. } => provision::run(&spec, &pipe).await,
        Work::SetUp { tables, destination, clear, publication, slot } => {
            let set_up = provision::SetUp { tables, destination, clear, publication, slot };
            provision::set_up(&spec, &pipe, epoch, set_up, &shared.fence).await
        }
        Work::Snapshot { slot, tables } => {
            snapshot::run(&spec, &pipe, epoch, slot, &tables, &reporter, &shared.fence).await
        }
        Work::Copy { table, snapshot_name, partition, range, destination } => {
            let (table_id, table_spec, table) = (table.id, table.spec, table.definition);
            let copy = copy::Copy {
                epoch,
                pipe,
                spec,
                table_id,
                table_spec,
                table,
                snapshot_name,
                partition,
                range,
                destination,
            };
            copy::run(copy, &shared, &reporter).await
        }
        Work::Verify { table, range, slot_name, shared_target, destination } => {
            let verify =
                verify::Verify { epoch, pipe, spec, table, range, slot_name, shared_target, destination };
            Box::pin(verify::run(verify, &shared, &reporter)).await
        }
        Work::Stream { .. } => {
            let stream = stream::Stream::new(epoch, pipe, spec, work)?;
            Box::pin(stream::run(stream, &shared, &reporter, signals)).await
        }
        Work::Swap { swaps } => swap::run(&spec, &pipe, &swaps, &shared.fence).await,
        Work::Clean { tables } => swap::clean(&spec, &pipe, &tables, &shared.fence).await,
        Work::Release { slot_name } => source::release(&spec, &slot_name).await,
        Work::Teardown { slot_name, publication_name, tables } => {
            shared.fence.require()?;
            let mut left_behind =
                source::tear_down(&spec, slot_name.as_deref(), publication_name.as_deref()).await;
            left_behind.extend(swap::tear_down(&spec, &pipe, &tables).await);
            Ok(Outcome::TornDown { left_behind })
        }
    }
}

/// An insert was cut short from within, which only happens while its task is being stopped or by a fault of ours.
pub(crate) fn stopped() -> Problem {
    Problem::transient(
        "WORKER_FAULT",
        "an insert was stopped from within the worker",
        "it is tried again by itself",
    )
}
