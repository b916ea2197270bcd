//! Copying one partition: binary COPY in, `Native` blocks out.
//!
//! While one block is on its way to the destination the next is being filled, so reading, decoding and writing overlap.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use millrace_clickhouse::Destination;
use millrace_mapping::BlockBuilder;
use millrace_model::spec::{TableEngine, TableSpec};
use millrace_model::work::{DestinationFacts, Outcome, Progress, Report};
use millrace_model::{
    Epoch, PageRange, PipeId, PipeSpec, Problem, SourceColumn, TableDefinition, TableId, Timestamp,
};
use millrace_postgres::{CopyEvent, CopyReader, Place, classify, copy_query};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use super::tables::{self, PlannedTable};
use super::{Ending, Shared};
use crate::budget::Reservation;
use crate::delivery::{PATIENCE, deliver};
use crate::desk::Reporter;

/// A block is sent once it is so large: large enough that ClickHouse's cost per insert vanishes, small enough that a few fit into any budget.
const BLOCK_BYTES: usize = 16 << 20;

/// Memory is taken from the budget in steps, so that the budget is not asked for every row.
const STEP: u64 = 1 << 20;

/// A connection that nobody took for so long is closed: its open snapshot keeps the source from cleaning up.
const IDLE: Duration = Duration::from_secs(3);

/// One partition to copy.
pub(crate) struct Copy {
    pub(crate) epoch: Epoch,
    pub(crate) pipe: PipeId,
    pub(crate) spec: PipeSpec,
    pub(crate) table_id: TableId,
    pub(crate) table_spec: TableSpec,
    pub(crate) table: TableDefinition,
    pub(crate) snapshot_name: String,
    pub(crate) partition: u32,
    pub(crate) range: PageRange,
    pub(crate) destination: DestinationFacts,
}

/// Connections that have a snapshot open, kept from one partition to the next.
#[derive(Clone, Default)]
pub(crate) struct Connections {
    idle: Arc<Mutex<HashMap<ConnectionKey, Vec<Idle>>>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ConnectionKey {
    pipe: PipeId,
    snapshot_name: String,
}

struct Idle {
    reader: CopyReader,
    destination: Destination,
    since: Instant,
}

impl Connections {
    fn take(&self, key: &ConnectionKey) -> Option<Idle> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.get_mut(key)?.pop()
    }

    fn put(&self, key: ConnectionKey, reader: CopyReader, destination: Destination) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.entry(key).or_default().push(Idle { reader, destination, since: Instant::now() });
    }

    /// Closes connections that nobody took for a while.
    pub(crate) fn close_idle(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.values_mut().for_each(|connections| connections.retain(|idle| idle.since.elapsed() < IDLE));
        idle.retain(|_, connections| !connections.is_empty());
    }
}

/// Copies the partition; its rows are in the destination when this ends well.
pub(crate) async fn run(copy: Copy, shared: &Shared, reporter: &Reporter) -> Ending {
    let key = ConnectionKey { pipe: copy.pipe.clone(), snapshot_name: copy.snapshot_name.clone() };
    let (mut reader, destination) = match shared.connections.take(&key) {
        Some(idle) => (idle.reader, idle.destination),
        None => {
            let application = super::source::application_name(&copy.pipe, copy.epoch);
            let mut reader = CopyReader::connect(&copy.spec.source, &application)
                .await
                .map_err(|error| of_source(&error))?;
            reader.begin_at_snapshot(&copy.snapshot_name).await.map_err(|error| of_source(&error))?;
            (reader, tables::destination(&copy.spec)?)
        }
    };
    let planned = tables::plan(&copy.spec, &copy.table_spec, &copy.table, &destination, copy.destination)?;
    let as_text = |column: &SourceColumn| {
        planned.columns.iter().any(|planned| planned.name == column.name && planned.as_text)
    };
    let sql = copy_query(&copy.table, copy.range, &as_text);
    let place = reader.hold_in_place(&copy.table).await.map_err(|error| of_table(&error, &copy.table))?;
    if place == Place::Hidden {
        require_truncated(&copy).await?;
    }
    reader.start(&sql).await.map_err(|error| of_table(&error, &copy.table))?;
    let transfer = Transfer::new(&copy, &planned, &destination, shared);
    let (rows, bytes) = transfer.run(&mut reader, reporter).await?;
    tracing::debug!(rows, bytes, "partition copied");
    shared.connections.put(key, reader, destination);
    Ok(Outcome::Copied { rows, bytes })
}

/// A truncation is fine where a stream follows: there is nothing to miss, and the stream brings it.
async fn require_truncated(copy: &Copy) -> Result<(), Vec<Problem>> {
    let failed = |error| of_table(&error, &copy.table);
    if !copy.spec.mode.follows() {
        return Err(failed(millrace_postgres::Error::Rewritten));
    }
    let session = super::source::connect(&copy.spec).await?;
    match session.was_truncated(copy.table.oid, &copy.table.name).await.map_err(failed)? {
        true => Ok(()),
        false => Err(failed(millrace_postgres::Error::Rewritten)),
    }
}

fn of_source(error: &millrace_postgres::Error) -> Vec<Problem> {
    vec![classify(error)]
}

/// A problem while reading one table is that table's, unless it passes by itself.
fn of_table(error: &millrace_postgres::Error, table: &TableDefinition) -> Vec<Problem> {
    vec![classify(error).of_table(&table.name)]
}

/// One partition on its way.
struct Transfer<'a> {
    copy: &'a Copy,
    planned: &'a PlannedTable,
    destination: &'a Destination,
    shared: &'a Shared,
    block: BlockBuilder,
    /// Memory of the block that is being filled.
    reserved: Reservation,
    /// The insert that is under way; at most one, so that a copy holds at most two blocks.
    insert: JoinSet<Result<(), Problem>>,
    blocks: u32,
    /// Values that were altered in them.
    altered: u64,
}

impl<'a> Transfer<'a> {
    fn new(
        copy: &'a Copy,
        planned: &'a PlannedTable,
        destination: &'a Destination,
        shared: &'a Shared,
    ) -> Self {
        Self {
            copy,
            planned,
            destination,
            shared,
            block: BlockBuilder::new(&planned.columns, &planned.target.metadata),
            reserved: shared.budget.empty(),
            insert: JoinSet::new(),
            blocks: 0,
            altered: 0,
        }
    }

    /// Reads to the end; gives rows and bytes.
    async fn run(mut self, reader: &mut CopyReader, reporter: &Reporter) -> Result<(u64, u64), Vec<Problem>> {
        let copied = self.transfer(reader, reporter).await;
        // Read again, its rows would be there twice.
        let doubled = self.blocks > 0 && self.planned.target.engine != TableEngine::ReplacingMergeTree;
        copied.map_err(|problems| match problems.first() {
            Some(first) if doubled => {
                let message = format!(
                    "the copy was interrupted, and a table that keeps every row cannot be copied on without doubling some: {}",
                    first.message
                );
                let remedy = "it is copied anew by itself; `millrace pipe retry` begins at once";
                let problem = Problem::transient("APPEND_ONLY_COPY_INTERRUPTED", message, remedy);
                vec![problem.of_table(&self.copy.table.name)]
            }
            _ => problems,
        })
    }

    async fn transfer(
        &mut self,
        reader: &mut CopyReader,
        reporter: &Reporter,
    ) -> Result<(u64, u64), Vec<Problem>> {
        let (mut rows, mut bytes) = (0, 0);
        let copy = self.copy;
        let failed = |error: &millrace_postgres::Error| of_table(error, &copy.table);
        loop {
            let ended = loop {
                match reader.next_row().map_err(|error| failed(&error))? {
                    CopyEvent::Row(tuple) => {
                        rows += 1;
                        bytes += tuple.len() as u64;
                        self.block
                            .append_copy_tuple(tuple)
                            .map_err(|error| self.not_carried(rows, &error))?;
                    }
                    CopyEvent::NeedMore => break false,
                    CopyEvent::End => break true,
                }
            };
            if ended {
                self.send().await?;
                self.finish_insert().await?;
                if self.altered > 0 {
                    reporter.must_say(Report::ValuesAltered(copy.table_id, self.altered)).await;
                }
                return Ok((rows, bytes));
            }
            self.make_room().await?;
            reporter.progress(Progress::Copy { rows, bytes });
            reader.fill().await.map_err(|error| of_table(&error, &self.copy.table))?;
        }
    }

    /// Sees to it that the next read fits: sends a block that is large enough, or one for which there is no memory.
    async fn make_room(&mut self) -> Result<(), Vec<Problem>> {
        let held = self.block.bytes();
        if held >= BLOCK_BYTES {
            return self.send().await;
        }
        let missing = (held as u64 + STEP / 2).saturating_sub(self.reserved.bytes());
        if missing == 0 {
            return Ok(());
        }
        match self.shared.budget.try_reserve(missing.max(STEP)) {
            Some(more) => self.reserved.merge(more),
            None => {
                // Others have it. Everything held is given away before waiting, so that no two tasks wait for each other.
                self.send().await?;
                self.finish_insert().await?;
                self.reserved = self.shared.budget.reserve(STEP).await;
            }
        }
        Ok(())
    }

    /// Hands the block over to be inserted, once the one before it has arrived.
    async fn send(&mut self) -> Result<(), Vec<Problem>> {
        if self.block.rows() == 0 {
            return Ok(());
        }
        self.finish_insert().await?;
        let block = self.block.finish(Timestamp::from_system(SystemTime::now()));
        let reserved = std::mem::replace(&mut self.reserved, self.shared.budget.empty());
        // The epoch is never used again, so no other content ever has this token.
        let token = format!("{}-{}-{}-{}", self.copy.pipe, self.copy.epoch, self.copy.partition, self.blocks);
        self.blocks += 1;
        self.altered += block.altered.iter().map(|(_, values)| values).sum::<u64>();
        let (destination, table) = (self.destination.clone(), self.planned.target.table.clone());
        let source = self.copy.table.name.clone();
        // Where a stream follows, it overwrites what comes late; where none does, rows of an older snapshot would take the place of newer ones.
        let fence = (!self.copy.spec.mode.follows()).then(|| self.shared.fence.clone());
        let span = tracing::info_span!("insert", table.name = %source, rows = block.rows);
        self.insert.spawn(
            async move {
                let result =
                    deliver(&destination, &source, &table, &block, &token, PATIENCE, fence.as_ref()).await;
                drop((block, reserved));
                result
            }
            .instrument(span),
        );
        Ok(())
    }

    async fn finish_insert(&mut self) -> Result<(), Vec<Problem>> {
        while let Some(inserted) = self.insert.join_next().await {
            inserted.map_err(|_| vec![crate::task::stopped()])?.map_err(|problem| vec![problem])?;
        }
        Ok(())
    }

    fn not_carried(&self, row: u64, error: &millrace_mapping::RowError) -> Vec<Problem> {
        let message = format!("row {row} of {} cannot be carried over: {error}", self.copy.range);
        let remedy = "name the column under excludedColumns or mend the row, then run `millrace pipe retry`";
        vec![Problem::operator("VALUE_NOT_CARRIED", message, remedy).of_table(&self.copy.table.name)]
    }
}
