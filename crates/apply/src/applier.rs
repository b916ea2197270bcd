//! The stream's messages, one after another.

use std::collections::HashMap;
use std::fmt;

use millrace_mapping::EncodedBlock;
use millrace_model::spec::MetadataColumns;
use millrace_model::{Lsn, Problem, TableName, Timestamp};
use millrace_pgoutput::{
    Body, Commit, Context, DecodeError, Delete, Insert, OldTuple, Relation, StreamAbort, StreamCommit,
    Truncate, Tuple, Update, decode,
};

use crate::history::{Found, OwnedCell, SourceValues};
use crate::layout::{Layout, Mismatch};
use crate::problem;
use crate::table::{Sought, StreamTable, Table, Written};

/// The highest protocol is named so that a message of it is recognised and refused by its name.
const CONTEXT: Context = Context { protocol: 4, in_stream: false };
/// Inside of a block of a transaction in progress, where changes carry the id of their (sub)transaction.
const IN_BLOCK: Context = Context { protocol: 4, in_stream: true };

/// A table by its place in the list that [`Applier::new`] was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableIndex(pub usize);

/// Turns one session's messages into rows.
///
/// One replication session, one applier: what it knows of relations and of the open transaction ends with the session.
pub struct Applier {
    tables: Vec<Table>,
    metadata: MetadataColumns,
    bindings: Bindings,
    /// The open transaction.
    open: Option<Open>,
    /// Of a change of several tables that must be given again: the first of them that has not taken it in.
    remaining: Option<usize>,
    /// Tables that cannot go on and of which the caller has not been told.
    refused: Vec<(TableIndex, Problem)>,
    /// The transaction in progress whose block is being received.
    block: Option<u32>,
    committed: Lsn,
    /// Tables with rows waiting, in the order of their first row.
    waiting: Vec<usize>,
    rows: usize,
    bytes: usize,
    /// Rows that lack values.
    incomplete: usize,
    /// Tables whose first row that lacks values came just now: that row does not go with what waited before it.
    apart: Vec<usize>,
    /// Where `committed` stood when the oldest row came that lacks values.
    complete_to: Lsn,
    changes: u64,
    commits: Option<CommitTimes>,
}

/// What the caller must know of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A change was turned into rows that wait for [`Applier::take`].
    Buffered,
    /// As `Buffered`, but what waited before must be completed, taken and sent as a batch of its own first: the change lacks a value, which
    /// may stand in there, and is kept apart until the next [`Applier::take`].
    Apart,
    /// A table was described, as it is known. That a column went and another came under its name in its stead the stream does not tell: the caller asks the source before
    /// it gives the next message.
    Described(TableIndex),
    /// Nothing to do: the message only informs, or concerns a table that is not carried.
    Ignored,
    /// A transaction ended. [`Applier::committed`] has moved to `end`.
    Committed {
        /// End of its commit record.
        end: Lsn,
        /// When it committed.
        commit_time: Timestamp,
    },
    /// The message is part of a transaction in progress. The caller keeps it, with its position, until that commits
    /// ([`Step::Replay`]) or is rolled back ([`Step::Forget`]).
    Spool {
        /// The transaction.
        transaction: u32,
        /// The subtransaction that the message belongs to, or the transaction itself.
        subtransaction: u32,
    },
    /// A transaction in progress, or one of its subtransactions, was rolled back: what was kept of it is void.
    Forget {
        /// The transaction.
        transaction: u32,
        /// What was rolled back; the same where it was the whole.
        subtransaction: u32,
    },
    /// A transaction in progress has committed. The caller gives every message it kept to [`Applier::replay`], in their order, then
    /// calls [`Applier::end_replay`], all before the next message.
    Replay {
        /// The transaction.
        transaction: u32,
        /// Its commit.
        commit: Commit,
    },
    /// The table's columns changed. The message was not taken in: the caller sees to it that everything before it is written, lets the destination
    /// follow, calls [`Applier::redefine`] (or [`Applier::set_aside`]), and gives the same message again.
    SchemaChanged {
        /// Which.
        table: TableIndex,
        /// What the stream says of it now.
        relation: Box<Relation>,
    },
    /// Tables were emptied. The caller takes and writes what waits, and only when that is durable removes these tables' rows
    /// whose version is below `lsn`; then it goes on with the next message.
    Truncate {
        /// Which.
        tables: Vec<TableIndex>,
        /// Start of the record.
        lsn: Lsn,
    },
}

/// A row to be looked for at the source: its number, and the values of its newest place.
pub type SoughtRow = (usize, Vec<OwnedCell>);

/// Rows that are ready to be written.
#[derive(Debug)]
pub struct Batch {
    /// At most one block a table, rows in the order of their changes.
    pub blocks: Vec<(TableIndex, EncodedBlock)>,
    /// Every change of a transaction whose commit ends at or before this is in this batch or an earlier one: no row that still waits for values is.
    pub committed: Lsn,
    /// When the transactions with changes in this batch committed; `None` where there are none.
    pub commits: Option<CommitTimes>,
    /// Inserts, updates and deletes in it. An update that moves a row is one change and two rows.
    pub changes: u64,
}

/// Commit times of the first and last of some transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitTimes {
    /// The earliest.
    pub oldest: Timestamp,
    /// The latest.
    pub newest: Timestamp,
}

/// The stream itself is broken or not of the kind that was asked for: it must be opened again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A message cannot be read.
    #[error("the message at {lsn} cannot be read")]
    Decode {
        /// Where.
        lsn: Lsn,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// Two-phase commit, which was not asked for, or a block of a transaction in progress where none can be.
    #[error("the message {kind} at {lsn} belongs to a mode of replication that was not asked for")]
    Unsupported {
        /// Where.
        lsn: Lsn,
        /// Its name in the manual.
        kind: &'static str,
    },
    /// A change or commit without a begin.
    #[error("the message {kind} at {lsn} stands outside of a transaction")]
    NoTransaction {
        /// Where.
        lsn: Lsn,
        /// Its name in the manual.
        kind: &'static str,
    },
    /// A begin before the commit of the transaction before.
    #[error("the transaction at {lsn} begins inside of another")]
    NestedTransaction {
        /// Where.
        lsn: Lsn,
    },
    /// A change of a relation that the session never described.
    #[error("the change at {lsn} is of relation {oid}, which was not described before")]
    UnknownRelation {
        /// Where.
        lsn: Lsn,
        /// `pg_class.oid`
        oid: u32,
    },
    /// A row whose cells do not fit its relation.
    #[error("the change of {table} at {lsn} has {found} cells where the relation has {expected} columns")]
    CellCount {
        /// Where.
        lsn: Lsn,
        /// The table.
        table: TableName,
        /// Columns that the relation has.
        expected: usize,
        /// Cells that the row has.
        found: usize,
    },
}

impl Applier {
    /// Begins a session. Duplicate definitions of one table must not occur.
    pub fn new(tables: Vec<StreamTable>, metadata: &MetadataColumns) -> Self {
        Self {
            tables: tables.into_iter().map(|table| Table::new(table, metadata)).collect(),
            metadata: metadata.clone(),
            bindings: Bindings::default(),
            open: None,
            remaining: None,
            refused: Vec::new(),
            block: None,
            committed: Lsn::ZERO,
            waiting: Vec::new(),
            rows: 0,
            bytes: 0,
            incomplete: 0,
            apart: Vec::new(),
            complete_to: Lsn::ZERO,
            changes: 0,
            commits: None,
        }
    }

    /// Takes in one message. `lsn` is the start that its XLogData names: for changes, the start of their own WAL record.
    ///
    /// # Errors
    /// The session cannot go on; rows that wait are valid, but no transaction may be taken as complete beyond
    /// [`Applier::committed`].
    #[inline]
    pub fn apply(&mut self, lsn: Lsn, payload: &[u8]) -> Result<Step, ApplyError> {
        if self.block.is_some() {
            return self.in_block(lsn, payload);
        }
        let message = decode(payload, &CONTEXT).map_err(|source| ApplyError::Decode { lsn, source })?;
        self.body(lsn, message.body)
    }

    /// Inside of a block everything but its end is kept for later.
    fn in_block(&mut self, lsn: Lsn, payload: &[u8]) -> Result<Step, ApplyError> {
        let message = decode(payload, &IN_BLOCK).map_err(|source| ApplyError::Decode { lsn, source })?;
        let kind = message.body.kind();
        match (message.body, message.stream_xid, self.block) {
            (Body::StreamStop, ..) => {
                self.block = None;
                Ok(Step::Ignored)
            }
            (Body::Origin { .. }, ..) => Ok(Step::Ignored),
            (_, Some(subtransaction), Some(transaction)) => Ok(Step::Spool { transaction, subtransaction }),
            _ => Err(ApplyError::Unsupported { lsn, kind }),
        }
    }

    /// Takes in one message of a transaction that was in progress and has committed.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub fn replay(&mut self, lsn: Lsn, payload: &[u8], commit: &Commit) -> Result<Step, ApplyError> {
        self.open = Some(Open { commit_time: commit.commit_time, commit_lsn: commit.commit_lsn });
        let message = decode(payload, &IN_BLOCK).map_err(|source| ApplyError::Decode { lsn, source })?;
        self.body(lsn, message.body)
    }

    /// The transaction that was replayed ends.
    pub fn end_replay(&mut self, commit: &Commit) {
        self.open = None;
        self.committed = self.committed.max(commit.end_lsn);
    }

    #[inline]
    fn body(&mut self, lsn: Lsn, body: Body<'_>) -> Result<Step, ApplyError> {
        let kind = body.kind();
        match body {
            Body::Insert(Insert { relation, new }) => self.change(lsn, kind, relation, Change::Insert(new)),
            Body::Update(Update { relation, old, new }) => {
                self.change(lsn, kind, relation, Change::Update(old, new))
            }
            Body::Delete(Delete { relation, old }) => self.change(lsn, kind, relation, Change::Delete(old)),
            Body::Begin(begin) => {
                let open = Open { commit_time: begin.commit_time, commit_lsn: begin.final_lsn };
                if self.open.replace(open).is_some() {
                    return Err(ApplyError::NestedTransaction { lsn });
                }
                Ok(Step::Ignored)
            }
            Body::Commit(commit) => {
                if self.open.take().is_none() {
                    return Err(ApplyError::NoTransaction { lsn, kind });
                }
                self.committed = self.committed.max(commit.end_lsn);
                Ok(Step::Committed { end: commit.end_lsn, commit_time: commit.commit_time })
            }
            Body::Relation(relation) => Ok(self.relation(&relation)),
            Body::Truncate(truncate) => self.truncate(lsn, kind, truncate),
            Body::Origin { .. } | Body::Type { .. } | Body::LogicalMessage(_) => Ok(Step::Ignored),
            Body::StreamStart { xid, .. } => {
                if self.open.is_some() {
                    return Err(ApplyError::NestedTransaction { lsn });
                }
                self.block = Some(xid);
                Ok(Step::Ignored)
            }
            Body::StreamCommit(StreamCommit { xid, commit }) => Ok(Step::Replay { transaction: xid, commit }),
            Body::StreamAbort(StreamAbort { xid, subtransaction, .. }) => {
                Ok(Step::Forget { transaction: xid, subtransaction })
            }
            Body::StreamStop
            | Body::BeginPrepare(_)
            | Body::Prepare(_)
            | Body::CommitPrepared(_)
            | Body::RollbackPrepared(_)
            | Body::StreamPrepare(_) => Err(ApplyError::Unsupported { lsn, kind }),
        }
    }

    /// Takes everything that waits. May be called in the middle of a transaction, which has committed at the source already;
    /// [`Batch::committed`] then stands before it.
    pub fn take(&mut self, synced_at: Timestamp) -> Batch {
        let mut blocks = Vec::with_capacity(self.waiting.len());
        let (mut rows, mut bytes) = (0, 0);
        let tables = &mut self.tables;
        self.waiting.retain(|index| {
            let table = &mut tables[*index];
            if table.has_block() {
                blocks.push((TableIndex(*index), table.finish(synced_at)));
            }
            // Rows that still lack values wait on.
            let waits = table.is_incomplete();
            if waits {
                rows += table.rows();
                bytes += table.growth();
            }
            waits
        });
        self.rows = rows;
        self.bytes = bytes;
        self.apart.clear();
        Batch {
            blocks,
            committed: if self.incomplete > 0 { self.complete_to } else { self.committed },
            commits: self.commits.take(),
            changes: std::mem::take(&mut self.changes),
        }
    }

    /// Rows that wait for values from outside of the batch.
    pub fn incomplete_rows(&self) -> usize {
        self.incomplete
    }

    /// Whether rows of the next batch wait for values from outside of it.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete > self.apart.len()
    }

    /// What must be found in the destination, as it is when everything that was taken before has arrived.
    pub fn sought(&self) -> Vec<(TableIndex, Sought)> {
        let tables = self.incomplete_tables().into_iter();
        tables
            .flat_map(|(table, chains)| {
                self.sought_of(table, chains).into_iter().map(move |sought| (table, sought))
            })
            .collect()
    }

    /// Tables of which the next batch's rows wait for values, each with how many. Several versions of one row count once.
    pub fn incomplete_tables(&self) -> Vec<(TableIndex, usize)> {
        let counted = self.completable().map(|index| (TableIndex(*index), self.tables[*index].chains()));
        counted.filter(|(_, chains)| *chains > 0).collect()
    }

    /// How many rows of one table wait for values, several versions of one row counted once.
    pub fn sought_rows(&self, table: TableIndex) -> usize {
        self.tables.get(table.0).map_or(0, Table::chains)
    }

    /// As [`Applier::sought`], of the first rows of one table.
    pub fn sought_of(&self, table: TableIndex, rows: usize) -> Vec<Sought> {
        self.tables.get(table.0).map_or_else(Vec::new, |table| table.sought(0..rows))
    }

    /// How many of a table's rows that wait, from the first, have no more than so many bytes together, told of places by their numbers; at least one.
    pub fn portion(&self, table: TableIndex, sizes: &[(u64, u64)], most: u64) -> usize {
        self.tables.get(table.0).map_or(0, |table| table.portion(sizes, most))
    }

    /// Completes the first rows of a table that wait, by themselves: what is left must not be sent before this block.
    ///
    /// # Errors
    /// A row cannot be written. The table goes no further.
    pub fn complete_first(
        &mut self,
        table: TableIndex,
        rows: usize,
        synced_at: Timestamp,
    ) -> Result<Option<EncodedBlock>, Box<Problem>> {
        let Some(held) = self.tables.get_mut(table.0) else { return Ok(None) };
        let (written, count) = held.complete_first(rows, synced_at);
        self.incomplete -= count;
        if written.is_err() {
            held.stream.active = false;
        }
        written.map(Some)
    }

    /// Tables whose rows go with the next batch.
    fn completable(&self) -> impl Iterator<Item = &usize> {
        self.waiting.iter().filter(|index| !self.apart.contains(index))
    }

    /// Takes in what the destination has at a place, by its number in [`Sought::places`].
    pub fn supply(&mut self, table: TableIndex, number: u64, found: Found) {
        if let Some(table) = self.tables.get_mut(table.0) {
            table.supply(number, found);
        }
    }

    /// Rows that the destination's answer does not complete, by number and newest place; to be looked for at the source.
    pub fn still_sought(&self) -> Vec<(TableIndex, Vec<SoughtRow>)> {
        let sought = |index: &usize| (TableIndex(*index), self.tables[*index].still_sought(usize::MAX));
        self.completable().map(sought).filter(|(_, rows)| !rows.is_empty()).collect()
    }

    /// As [`Applier::still_sought`], of the first rows of one table.
    pub fn still_sought_of(&self, table: TableIndex, rows: usize) -> Vec<SoughtRow> {
        self.tables.get(table.0).map_or_else(Vec::new, |table| table.still_sought(rows))
    }

    /// Takes in a row as the source has it. The caller must also tell [`Applier::distrust_until`].
    pub fn supply_from_source(&mut self, table: TableIndex, number: usize, values: SourceValues) {
        if let Some(table) = self.tables.get_mut(table.0) {
            table.supply_from_source(number, values);
        }
    }

    /// The source was asked for rows of the table while its log ended at `lsn`: until then the destination's rows may be younger than
    /// the stream. To be remembered beyond this session ([`StreamTable::distrusted_until`]) before the batch counts as written.
    pub fn distrust_until(&mut self, table: TableIndex, lsn: Lsn) {
        if let Some(table) = self.tables.get_mut(table.0) {
            table.distrust_until(lsn);
        }
    }

    /// Writes the rows that waited for values. Tables of which a row cannot be written go no further.
    pub fn complete(&mut self) -> Vec<(TableIndex, Problem)> {
        // What is left came a moment ago.
        self.incomplete = self.apart.len();
        self.complete_to = self.committed;
        let mut broken = Vec::new();
        for index in self.waiting.iter().filter(|index| !self.apart.contains(index)) {
            let table = &mut self.tables[*index];
            let was_used = table.is_incomplete();
            if let Err(problem) = table.complete() {
                table.stream.active = false;
                broken.push((TableIndex(*index), *problem));
            }
            table.end_batch(was_used);
        }
        broken
    }

    /// Rows that wait.
    pub fn buffered_rows(&self) -> usize {
        self.rows
    }

    /// Tables that they are of.
    pub fn waiting_tables(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of the blocks they will make; see [`millrace_mapping::BlockBuilder::bytes`] for how that relates to memory.
    pub fn buffered_bytes(&self) -> usize {
        self.bytes
    }

    /// End of the last commit that was taken in; zero before the first.
    pub fn committed(&self) -> Lsn {
        self.committed
    }

    /// Whether a transaction has begun and not ended. Only when not, and when nothing waits, does a keepalive's position say
    /// that everything before it is done.
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Ignores a table's changes from here on.
    pub fn set_aside(&mut self, table: TableIndex) {
        if let Some(table) = self.tables.get_mut(table.0) {
            table.stream.active = false;
        }
    }

    /// Gives a table another definition and other columns. None of its rows may wait. Columns that are `left_out` are so for as long as the stream describes the
    /// table as it does now; the next description is looked at anew.
    ///
    /// # Errors
    /// They do not fit what the stream says of the table; it is set aside.
    pub fn redefine(
        &mut self,
        table: TableIndex,
        stream: StreamTable,
        left_out: &[String],
    ) -> Result<(), Box<Problem>> {
        let Some(held) = self.tables.get_mut(table.0) else { return Ok(()) };
        let already = std::mem::take(&mut held.stream.held);
        *held = Table::new(StreamTable { held: already, ..stream }, &self.metadata);
        for binding in &mut self.bindings.list {
            let relation = &binding.relation;
            let Some(lane) = binding.lanes.iter_mut().find(|lane| lane.index == table.0) else { continue };
            let problem = match Layout::match_up(relation, &held.stream, left_out) {
                Ok(layout) => {
                    lane.layout = Some(layout);
                    continue;
                }
                Err(Mismatch::Columns(changes)) => {
                    Box::new(problem::source_schema_changed(&held.stream.definition.name, &changes))
                }
                Err(Mismatch::Final(problem)) => problem,
            };
            held.stream.active = false;
            return Err(problem);
        }
        Ok(())
    }

    /// Carries a further table from here on; several may have one source.
    ///
    /// # Errors
    /// It does not fit what the stream has said of its source; it is set aside.
    pub fn add(&mut self, stream: StreamTable) -> (TableIndex, Result<(), Box<Problem>>) {
        let index = self.tables.len();
        let mut table = Table::new(stream, &self.metadata);
        let mut result = Ok(());
        for binding in &mut self.bindings.list {
            match Lane::new(index, &binding.relation, &table.stream) {
                None => {}
                Some(Ok(lane)) => binding.lanes.push(lane),
                Some(Err(problem)) => {
                    table.stream.active = false;
                    result = Err(problem);
                }
            }
        }
        self.tables.push(table);
        (TableIndex(index), result)
    }

    /// The destination's rows of the table may be younger than the stream up to here, and no further.
    pub fn trust_from(&mut self, table: TableIndex, lsn: Lsn) {
        if let Some(table) = self.tables.get_mut(table.0) {
            table.stream.distrusted_until = lsn;
        }
    }

    /// Tables that cannot go on since this was asked last. Their changes are ignored from there on; rows of them that wait are valid. To be asked after every message, so that the
    /// source does not forget what they lack.
    #[inline]
    pub fn take_refused(&mut self) -> Vec<(TableIndex, Problem)> {
        std::mem::take(&mut self.refused)
    }

    /// Whether a table's changes are carried.
    pub fn is_active(&self, table: TableIndex) -> bool {
        self.tables.get(table.0).is_some_and(|table| table.stream.active)
    }

    #[inline]
    fn change(
        &mut self,
        lsn: Lsn,
        kind: &'static str,
        relation: u32,
        change: Change<'_>,
    ) -> Result<Step, ApplyError> {
        let Some(open) = self.open else { return Err(ApplyError::NoTransaction { lsn, kind }) };
        let Some(binding) = self.bindings.find(relation) else {
            return Err(ApplyError::UnknownRelation { lsn, oid: relation });
        };
        let mut step = Step::Ignored;
        let first = self.remaining.take().unwrap_or(0);
        for (number, lane) in binding.lanes.iter().enumerate().skip(first) {
            let (index, table) = (TableIndex(lane.index), &mut self.tables[lane.index]);
            if !table.stream.active || open.commit_lsn < table.stream.begins {
                continue;
            }
            let Some(layout) = &lane.layout else {
                self.remaining = Some(number);
                return Ok(Step::SchemaChanged { table: index, relation: binding.relation.clone() });
            };
            for tuple in change.tuples().into_iter().flatten() {
                if tuple.len() != layout.cells.len() {
                    return Err(ApplyError::CellCount {
                        lsn,
                        table: table.stream.definition.name.clone(),
                        expected: layout.cells.len(),
                        found: tuple.len(),
                    });
                }
            }
            if !table.stream.held.is_empty() {
                let rows = match change {
                    Change::Update(Some(old), new) if crate::table::moved(layout, old, new) => 2,
                    _ => 1,
                };
                // Rows of one record share their position, and the first of them were written first.
                if table.holds(lsn, rows) {
                    continue;
                }
            }
            let rows = table.rows();
            let written = match change {
                Change::Insert(new) => table.insert(layout, lsn, new),
                Change::Update(old, new) => table.update(layout, lsn, old, new),
                Change::Delete(old) => table.delete(layout, lsn, old),
            };
            if rows == 0 && table.rows() > 0 {
                self.waiting.push(lane.index);
            }
            self.rows += table.rows() - rows;
            self.bytes += table.growth();
            let written = match written {
                Ok(written) => written,
                // The description does not say whether a column is NOT NULL; only a row shows that it no longer is.
                Err(problem) if problem.code == problem::COLUMN_BECAME_NULLABLE => {
                    self.remaining = Some(number);
                    return Ok(Step::SchemaChanged { table: index, relation: binding.relation.clone() });
                }
                Err(problem) => {
                    table.stream.active = false;
                    self.refused.push((index, *problem));
                    continue;
                }
            };
            if written != Written::Whole {
                if self.incomplete == 0 {
                    self.complete_to = self.committed;
                }
                self.incomplete += 1;
            }
            self.changes += 1;
            let commits = self
                .commits
                .get_or_insert(CommitTimes { oldest: open.commit_time, newest: open.commit_time });
            commits.oldest = commits.oldest.min(open.commit_time);
            commits.newest = commits.newest.max(open.commit_time);
            if written == Written::FirstIncomplete {
                if step != Step::Apart {
                    self.apart.clear();
                }
                self.apart.push(lane.index);
                step = Step::Apart;
            } else if step == Step::Ignored {
                step = Step::Buffered;
            }
        }
        Ok(step)
    }

    /// Matches a relation with the tables by oid and by name: a table that was renamed, dropped and made again, or given the
    /// name of another shows in one of the two.
    fn relation(&mut self, relation: &Relation) -> Step {
        let mut lanes = Vec::new();
        let mut described = Step::Ignored;
        for (index, table) in self.tables.iter_mut().enumerate() {
            if !table.stream.active {
                continue;
            }
            match Lane::new(index, relation, &table.stream) {
                None => {}
                Some(Ok(lane)) => {
                    if lane.layout.is_some() {
                        described = Step::Described(TableIndex(index));
                    }
                    lanes.push(lane);
                }
                Some(Err(problem)) => {
                    table.stream.active = false;
                    self.refused.push((TableIndex(index), *problem));
                }
            }
        }
        self.bindings.insert(relation.oid, Binding { relation: Box::new(relation.clone()), lanes });
        described
    }

    fn truncate(&self, lsn: Lsn, kind: &'static str, truncate: Truncate<'_>) -> Result<Step, ApplyError> {
        if self.open.is_none() {
            return Err(ApplyError::NoTransaction { lsn, kind });
        }
        let mut tables = Vec::new();
        for oid in truncate.relations() {
            let Some(binding) = self.bindings.get(oid) else {
                return Err(ApplyError::UnknownRelation { lsn, oid });
            };
            let lanes = binding.lanes.iter().map(|lane| TableIndex(lane.index));
            tables.extend(lanes.filter(|table| self.is_active(*table)));
        }
        Ok(if tables.is_empty() { Step::Ignored } else { Step::Truncate { tables, lsn } })
    }
}

impl fmt::Debug for Applier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applier")
            .field("tables", &self.tables.len())
            .field("committed", &self.committed)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

/// A change of one row.
#[derive(Clone, Copy)]
enum Change<'a> {
    Insert(Tuple<'a>),
    Update(Option<OldTuple<'a>>, Tuple<'a>),
    Delete(OldTuple<'a>),
}

impl<'a> Change<'a> {
    fn tuples(&self) -> [Option<Tuple<'a>>; 2] {
        match self {
            Change::Insert(new) => [Some(*new), None],
            Change::Update(old, new) => [Some(*new), old.map(|old| old.tuple())],
            Change::Delete(old) => [Some(old.tuple()), None],
        }
    }
}

/// The open transaction.
#[derive(Clone, Copy)]
struct Open {
    commit_time: Timestamp,
    /// Where its commit record begins.
    commit_lsn: Lsn,
}

/// Where a relation's changes go: to no table, to one, or to one and the copy that is to take its place.
struct Binding {
    relation: Box<Relation>,
    lanes: Vec<Lane>,
}

/// One table's way from a relation's cells to its columns.
struct Lane {
    index: usize,
    /// Absent while the table does not fit what the stream says of it.
    layout: Option<Layout>,
}

impl Lane {
    /// `None` where the relation is another's; an error where the table cannot go on.
    fn new(index: usize, relation: &Relation, table: &StreamTable) -> Option<Result<Self, Box<Problem>>> {
        let definition = &table.definition;
        let ours = definition.oid == relation.oid
            || (definition.name.schema == relation.schema && definition.name.name == relation.name);
        ours.then(|| match Layout::match_up(relation, table, &[]) {
            Ok(layout) => Ok(Self { index, layout: Some(layout) }),
            // What was rolled back since is never used, so nothing is done about it before it is.
            Err(Mismatch::Columns(_)) => Ok(Self { index, layout: None }),
            Err(Mismatch::Final(problem)) => Err(problem),
        })
    }
}

/// Relations that the session has described. Changes come in runs of one relation, so the last one found is kept at hand.
#[derive(Default)]
struct Bindings {
    by_oid: HashMap<u32, usize>,
    list: Vec<Binding>,
    last: Option<(u32, usize)>,
}

impl Bindings {
    fn insert(&mut self, oid: u32, binding: Binding) {
        match self.by_oid.get(&oid) {
            Some(index) => self.list[*index] = binding,
            None => {
                self.by_oid.insert(oid, self.list.len());
                self.list.push(binding);
            }
        }
    }

    #[inline]
    fn find(&mut self, oid: u32) -> Option<&Binding> {
        let index = match self.last {
            Some((last, index)) if last == oid => index,
            _ => {
                let index = *self.by_oid.get(&oid)?;
                self.last = Some((oid, index));
                index
            }
        };
        self.list.get(index)
    }

    fn get(&self, oid: u32) -> Option<&Binding> {
        self.list.get(*self.by_oid.get(&oid)?)
    }
}
