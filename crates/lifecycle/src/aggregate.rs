//! One pipe with everything that is stored about it, and the changes that are still to be stored.
//!
//! Every change goes through a method here, which marks what it touched. The coordinator takes the marks as [`PipeChanges`], commits them, and only
//! then sends the [`Order`]s that go with them.

use std::collections::{BTreeMap, BTreeSet};

use millrace_model::spec::TableEngine;
use millrace_model::work::{Assignment, DestinationFacts, TraceContext};
use millrace_model::{Epoch, Lsn, PipeId, PipeSpec, Problem, TableId, TableName, Timestamp, WorkerId};

use crate::pipe::{self, PipeEffect, PipeEvent, PipeState};
use crate::record::{
    Actor, AssignmentRecord, Copied, EventKind, EventRecord, PartitionRecord, PipeRecord, Purpose,
    RoundRecord, TableRecord, Task,
};
use crate::table::{self, TableEvent, TableState};

/// What a worker must be told once the changes that led to it are stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Do this.
    Assign(Box<Assignment>),
    /// Go on with what you hold under this epoch in this way.
    Amend(Box<Assignment>),
    /// Stop at once.
    Revoke(Epoch),
    /// Finish what was read, then stop.
    Drain(Epoch),
    /// Your report is stored; the table is named where the report was about one.
    Recorded(Epoch, Option<TableId>),
}

/// Everything about one pipe that must be stored together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PipeChanges {
    /// The version that must be found in the catalog; 0 for a new pipe.
    pub expected_version: u64,
    /// The pipe, where it changed.
    pub pipe: Option<PipeRecord>,
    /// Tables that changed.
    pub tables: Vec<TableRecord>,
    /// Tables that are gone, with their partitions.
    pub removed_tables: Vec<TableId>,
    /// Partitions that changed, by their table.
    pub partitions: Vec<(TableId, PartitionRecord)>,
    /// Assignments that came or changed.
    pub assignments: Vec<AssignmentRecord>,
    /// Assignments that are gone.
    pub withdrawn: Vec<Epoch>,
    /// What to add to the history.
    pub events: Vec<EventRecord>,
    /// The pipe is gone, with all that belongs to it.
    pub removed: bool,
}

/// A pipe with its tables, partitions and assignments.
#[derive(Debug, Clone)]
pub struct PipeAggregate {
    pub(crate) pipe: PipeRecord,
    /// In the order of their ids.
    pub(crate) tables: Vec<PipeTable>,
    pub(crate) assignments: BTreeMap<Epoch, AssignmentRecord>,
    /// The revision that the stream with this epoch says it follows. Not stored: it says so again.
    pub(crate) followed: Option<(Epoch, u64)>,
    version: u64,
    touched: Touched,
    orders: Vec<(WorkerId, Order)>,
    /// The stream must hear of what it is to do.
    amendment_due: bool,
}

/// A table with its partitions.
#[derive(Debug, Clone)]
pub struct PipeTable {
    /// What is stored of it.
    pub record: TableRecord,
    /// What it was cut into.
    pub partitions: Vec<PartitionRecord>,
    /// What the finished ones held: derived, so that nobody sums a hundred thousand partitions for a progress bar.
    pub progress: TableProgress,
}

/// How far a table's copy is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableProgress {
    /// Finished partitions.
    pub done: u32,
    /// What they held.
    pub copied: Copied,
    /// No partition before it is open.
    pub(crate) first_open: usize,
}

#[derive(Debug, Clone, Default)]
struct Touched {
    pipe: bool,
    tables: BTreeSet<TableId>,
    removed_tables: Vec<TableId>,
    partitions: BTreeSet<(TableId, u32)>,
    assignments: BTreeSet<Epoch>,
    withdrawn: Vec<Epoch>,
    events: Vec<EventRecord>,
    removed: bool,
}

impl PipeAggregate {
    /// A new pipe, in Provisioning.
    pub fn create(id: PipeId, spec: PipeSpec, now: Timestamp) -> Self {
        let cause = "created";
        let tables = spec.tables.clone();
        let pipe = PipeRecord {
            id,
            spec,
            generation: 1,
            created: now,
            state: PipeState::Provisioning,
            since: now,
            cause: cause.to_owned(),
            failed_in: None,
            failure: None,
            back_to: None,
            after_resync: None,
            deleting: false,
            drop_tables: false,
            system_identifier: None,
            destination: DestinationFacts::default(),
            slot: None,
            streams: false,
            revision: 0,
            rounds: Vec::new(),
            next_round: 0,
            next_table: 0,
            publication_due: false,
            garbage: Vec::new(),
            durable: Lsn::ZERO,
            timeline: 0,
            last_event: 0,
        };
        let mut aggregate = Self::restore(pipe, Vec::new(), Vec::new(), 0);
        let state = EventKind::State { from: None, to: PipeState::Provisioning };
        aggregate.event(state, cause.to_owned(), Actor::User, now);
        let tables: Vec<TableId> =
            tables.into_iter().map(|table| aggregate.add_table(table, None, now)).collect();
        aggregate.begin_round(Purpose::Initial, &tables);
        aggregate
    }

    /// A pipe as it was stored.
    pub fn restore(
        pipe: PipeRecord,
        tables: Vec<(TableRecord, Vec<PartitionRecord>)>,
        assignments: Vec<AssignmentRecord>,
        version: u64,
    ) -> Self {
        let mut tables: Vec<PipeTable> = tables
            .into_iter()
            .map(|(record, partitions)| PipeTable {
                record,
                progress: TableProgress::of(&partitions),
                partitions,
            })
            .collect();
        tables.sort_by_key(|table| table.record.id);
        Self {
            pipe,
            tables,
            assignments: assignments.into_iter().map(|assignment| (assignment.epoch, assignment)).collect(),
            followed: None,
            version,
            touched: Touched::default(),
            orders: Vec::new(),
            // Whoever carries the stream may have missed what the last coordinator decided.
            amendment_due: true,
        }
    }

    /// The pipe's own record.
    pub fn pipe(&self) -> &PipeRecord {
        &self.pipe
    }

    /// Its tables, in the order in which they came to it; those that are to take the places of others among them.
    pub fn tables(&self) -> impl Iterator<Item = &PipeTable> {
        self.tables.iter()
    }

    /// Its standing assignments, oldest first.
    pub fn assignments(&self) -> impl Iterator<Item = &AssignmentRecord> {
        self.assignments.values()
    }

    /// The assignment with this epoch, while it stands.
    pub fn assignment(&self, epoch: Epoch) -> Option<&AssignmentRecord> {
        self.assignments.get(&epoch)
    }

    /// The version that the catalog holds.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether it is gone once its changes are stored.
    pub fn is_removed(&self) -> bool {
        self.touched.removed
    }

    /// Gives a task to a worker under a new epoch; the worker hears of it once this is stored.
    ///
    /// `None` where the task is not one that can be given now (its table is unknown, its snapshot is gone).
    pub fn assign(
        &mut self,
        epoch: Epoch,
        task: Task,
        worker: WorkerId,
        trace: TraceContext,
        now: Timestamp,
    ) -> Option<()> {
        let assignment = self.assignment_of(epoch, &task, trace)?;
        if let Task::Copy { table, .. } = &task
            && self.table(*table).is_some_and(|table| table.record.state == TableState::Waiting)
        {
            self.advance_table(*table, TableEvent::CopyStarted, Actor::Coordinator, now);
        }
        if task == Task::Stream {
            // It begins with everything that was decided by now.
            self.amendment_due = false;
        }
        let task_is_stream = task == Task::Stream;
        self.assignments
            .insert(epoch, AssignmentRecord { epoch, task, worker: worker.clone(), draining: false });
        self.touched.assignments.insert(epoch);
        let drains = task_is_stream && self.stream_drains();
        self.orders.push((worker, Order::Assign(Box::new(assignment))));
        if drains {
            // Its holder went away before it had drained; this one finishes that.
            self.drain(epoch);
        }
        Some(())
    }

    /// Asks whoever holds the assignment to drain.
    pub fn drain(&mut self, epoch: Epoch) {
        if let Some(assignment) = self.assignments.get_mut(&epoch)
            && !assignment.draining
        {
            assignment.draining = true;
            self.touched.assignments.insert(epoch);
            self.orders.push((assignment.worker.clone(), Order::Drain(epoch)));
        }
    }

    /// Takes an assignment back: what its worker still says about it changes nothing any more.
    pub fn withdraw(&mut self, epoch: Epoch, now: Timestamp) {
        let Some(task) = self.assignments.get(&epoch).map(|held| held.task.clone()) else { return };
        self.release(epoch);
        match task {
            Task::Snapshot { .. } => self.lose_snapshot(epoch, now),
            Task::Copy { table, .. } => self.interrupt_append_only(table, now),
            _ => {}
        }
        self.conclude(&Actor::Coordinator, now);
    }

    /// A worker that holds the stream came back: it may have missed what was decided meanwhile.
    pub fn repeat_amendment(&mut self) {
        self.amendment_due = true;
    }

    /// Adds something worth telling to the history.
    pub fn note(&mut self, message: impl Into<String>, actor: Actor, now: Timestamp) {
        self.event(EventKind::Note, message.into(), actor, now);
    }

    /// Adds a problem to the history.
    pub fn note_problem(&mut self, problem: Problem, actor: Actor, now: Timestamp) {
        let message = problem.to_string();
        self.event(EventKind::Problem(problem), message, actor, now);
    }

    /// What must be stored, where anything must. The version counts as stored from here on: a caller whose commit fails loads the pipe anew.
    pub fn take_changes(&mut self) -> Option<PipeChanges> {
        let touched = std::mem::take(&mut self.touched);
        let Touched { pipe, tables, removed_tables, partitions, assignments, withdrawn, events, removed } =
            touched;
        let nothing = !pipe
            && tables.is_empty()
            && removed_tables.is_empty()
            && partitions.is_empty()
            && assignments.is_empty()
            && withdrawn.is_empty()
            && events.is_empty()
            && !removed;
        if nothing {
            return None;
        }
        let expected_version = self.version;
        self.version += 1;
        let partition = |(table, number): &(TableId, u32)| {
            let found = self.table(*table)?.partitions.get(*number as usize)?;
            Some((*table, found.clone()))
        };
        Some(PipeChanges {
            expected_version,
            pipe: pipe.then(|| self.pipe.clone()),
            tables: tables.iter().filter_map(|id| Some(self.table(*id)?.record.clone())).collect(),
            removed_tables,
            partitions: partitions.iter().filter_map(partition).collect(),
            assignments: assignments
                .iter()
                .filter_map(|epoch| self.assignments.get(epoch).cloned())
                .collect(),
            withdrawn,
            events,
            removed,
        })
    }

    /// What workers must be told, now that the changes are stored.
    pub fn take_orders(&mut self) -> Vec<(WorkerId, Order)> {
        if std::mem::take(&mut self.amendment_due)
            && let Some(held) = self.assignments.values().find(|held| held.task == Task::Stream)
            && !held.draining
            && let Some(assignment) = self.assignment_of(held.epoch, &Task::Stream, TraceContext::new())
        {
            self.orders.push((held.worker.clone(), Order::Amend(Box::new(assignment))));
        }
        std::mem::take(&mut self.orders)
    }

    /// Marks the durable position for storing: it moves too often to be stored each time, and the slot itself holds the truth.
    pub fn store_position(&mut self) {
        self.touched.pipe = true;
    }

    pub(crate) fn order(&mut self, worker: WorkerId, order: Order) {
        self.orders.push((worker, order));
    }

    /// What the stream is to do has changed.
    pub(crate) fn revise(&mut self) {
        self.pipe.revision += 1;
        self.touched.pipe = true;
        self.amendment_due = true;
    }

    /// Forgets an assignment whose worker has ended it.
    pub(crate) fn end_assignment(&mut self, epoch: Epoch) {
        self.assignments.remove(&epoch);
        self.touched.assignments.remove(&epoch);
        self.touched.withdrawn.push(epoch);
    }

    pub(crate) fn table(&self, id: TableId) -> Option<&PipeTable> {
        self.tables.iter().find(|table| table.record.id == id)
    }

    /// A table's record, to be changed; it counts as changed.
    pub(crate) fn table_mut(&mut self, id: TableId) -> Option<&mut PipeTable> {
        self.touched.tables.insert(id);
        self.tables.iter_mut().find(|table| table.record.id == id)
    }

    /// The table of a source that readers have: not one that is to take its place.
    pub(crate) fn original(&self, source: &TableName) -> Option<&PipeTable> {
        let mut tables = self.tables.iter();
        tables.find(|table| {
            table.record.source() == source
                && table.record.replaces.is_none()
                && table.record.state != TableState::Removed
        })
    }

    /// The table that is to take another's place.
    pub(crate) fn successor(&self, of: TableId) -> Option<&PipeTable> {
        self.tables.iter().find(|table| table.record.replaces == Some(of))
    }

    /// Tables that take part in the pipe's work.
    pub(crate) fn active(&self) -> impl Iterator<Item = &TableRecord> {
        self.tables.iter().map(|table| &table.record).filter(|table| table.state.is_active())
    }

    /// The ids of tables that a predicate picks.
    pub(crate) fn ids(&self, picks: impl Fn(&TableRecord) -> bool) -> Vec<TableId> {
        self.tables.iter().filter(|table| picks(&table.record)).map(|table| table.record.id).collect()
    }

    pub(crate) fn round(&self, number: u32) -> Option<&RoundRecord> {
        self.pipe.rounds.iter().find(|round| round.number == number)
    }

    pub(crate) fn round_mut(&mut self, number: u32) -> Option<&mut RoundRecord> {
        self.touched.pipe = true;
        self.pipe.rounds.iter_mut().find(|round| round.number == number)
    }

    pub(crate) fn touch_pipe(&mut self) {
        self.touched.pipe = true;
    }

    /// A new table in Waiting; one that takes another's place is written under a name of its own.
    pub(crate) fn add_table(
        &mut self,
        spec: millrace_model::spec::TableSpec,
        replaces: Option<TableId>,
        now: Timestamp,
    ) -> TableId {
        let id = TableId(self.pipe.next_table);
        self.pipe.next_table += 1;
        let written = match replaces {
            // The id makes the name one that is never used again.
            Some(_) => format!("{}_resync_{}_{id}", spec.target, self.pipe.id),
            None => spec.target.clone(),
        };
        let record = TableRecord {
            id,
            spec,
            written,
            state: TableState::Waiting,
            since: now,
            problem: None,
            definition: None,
            uuid: None,
            round: None,
            replaces,
            begins: Lsn::ZERO,
            published: Lsn::ZERO,
            goal: Lsn::ZERO,
            altered: 0,
            failures: 0,
            cut: false,
            rows_estimated: 0,
            verification: None,
        };
        self.tables.push(PipeTable { record, partitions: Vec::new(), progress: TableProgress::default() });
        self.touched.tables.insert(id);
        self.touched.pipe = true;
        id
    }

    /// Forgets a table.
    pub(crate) fn forget_table(&mut self, id: TableId) {
        self.tables.retain(|table| table.record.id != id);
        self.touched.tables.remove(&id);
        self.touched.partitions.retain(|(table, _)| *table != id);
        self.touched.removed_tables.push(id);
        self.touched.pipe = true;
    }

    /// Replaces a table's partitions.
    pub(crate) fn set_partitions(&mut self, id: TableId, partitions: Vec<PartitionRecord>) {
        self.touched.partitions.extend(partitions.iter().map(|partition| (id, partition.number)));
        if let Some(table) = self.tables.iter_mut().find(|table| table.record.id == id) {
            table.progress = TableProgress::of(&partitions);
            table.partitions = partitions;
        }
    }

    /// Records that a partition is in the destination.
    pub(crate) fn finish_partition(&mut self, id: TableId, number: u32, copied: Copied) {
        let Some(table) = self.tables.iter_mut().find(|table| table.record.id == id) else { return };
        if let Some(partition) = table.partitions.get_mut(number as usize)
            && partition.done.is_none()
        {
            partition.done = Some(copied);
            self.touched.partitions.insert((id, number));
            let progress = &mut table.progress;
            progress.done += 1;
            progress.copied.rows += copied.rows;
            progress.copied.bytes += copied.bytes;
            while table.partitions.get(progress.first_open).is_some_and(|open| open.done.is_some()) {
                progress.first_open += 1;
            }
        }
    }

    /// Moves the pipe, records why, and does what the transition asks for.
    pub(crate) fn advance(
        &mut self,
        event: PipeEvent,
        cause: String,
        actor: Actor,
        now: Timestamp,
    ) -> Result<(), pipe::IllegalTransition> {
        let from = self.pipe.state;
        let step = pipe::transition(from, event)?;
        self.pipe.state = step.next;
        self.pipe.since = now;
        self.pipe.cause.clone_from(&cause);
        if step.next == PipeState::Failed {
            self.pipe.failed_in = Some(from);
        } else {
            self.pipe.failed_in = None;
            self.pipe.failure = None;
        }
        self.event(EventKind::State { from: Some(from), to: step.next }, cause, actor, now);
        for effect in step.effects {
            match effect {
                PipeEffect::WithdrawAll => self.withdraw_all(now),
                PipeEffect::WithdrawCopies => self.withdraw_copies(now),
                PipeEffect::DrainStream => self.drain_stream(),
            }
        }
        Ok(())
    }

    /// Moves a table; an event that is not legal in its state is one that came too late and changes nothing.
    pub(crate) fn advance_table(&mut self, id: TableId, event: TableEvent, actor: Actor, now: Timestamp) {
        let Some(table) = self.table_mut(id) else { return };
        let table = &mut table.record;
        let Ok(next) = table::transition(table.state, event) else { return };
        table.state = next;
        table.since = now;
        let name = table.source().clone();
        let anew = if table.replaces.is_some() { " (the copy that is to take its place)" } else { "" };
        let message = format!("{next}{anew}");
        self.event(EventKind::Table { table: name, to: next }, message, actor, now);
        self.abandon_verification(id, next, now);
    }

    /// The copy of a table that keeps every row was interrupted: whatever is read again would be there twice, and a later snapshot holds what the stream brings
    /// too. It begins anew in another table.
    pub(crate) fn interrupt_append_only(&mut self, id: TableId, now: Timestamp) {
        let Some(table) = self.table(id) else { return };
        let append_only = table.record.spec.engine != TableEngine::ReplacingMergeTree;
        // One whose changes are carried already holds some of what a later snapshot would bring.
        let begun = table.record.state == TableState::Copying
            || table.record.state == TableState::Waiting
                && table.record.begins != Lsn::ZERO
                && self.pipe.streams;
        if append_only && begun && !self.pipe.deleting {
            let problem = Problem::transient(
                "APPEND_ONLY_COPY_INTERRUPTED",
                "the copy was interrupted, and a table that keeps every row cannot be copied on without doubling some",
                "it is copied anew by itself; `millrace pipe retry` begins at once",
            );
            let problem = problem.of_table(table.record.source());
            self.begin_anew(id, problem, now);
        }
    }

    /// Marks the pipe as gone.
    pub(crate) fn remove(&mut self) {
        self.touched.removed = true;
    }

    pub(crate) fn event(&mut self, kind: EventKind, message: String, actor: Actor, time: Timestamp) {
        self.pipe.last_event += 1;
        self.touched.pipe = true;
        self.touched.events.push(EventRecord { id: self.pipe.last_event, time, kind, message, actor });
    }

    /// Whether somebody holds the stream.
    pub(crate) fn stream_stands(&self) -> bool {
        self.assignments.values().any(|held| held.task == Task::Stream)
    }

    pub(crate) fn drain_stream(&mut self) {
        self.epochs_of(|task| *task == Task::Stream).into_iter().for_each(|epoch| self.drain(epoch));
    }

    pub(crate) fn epochs_of(&self, matches: impl Fn(&Task) -> bool) -> Vec<Epoch> {
        self.assignments.values().filter(|held| matches(&held.task)).map(|held| held.epoch).collect()
    }

    /// Takes assignments back without drawing conclusions from it.
    pub(crate) fn release_all(&mut self, matches: impl Fn(&Task) -> bool) {
        self.epochs_of(matches).into_iter().for_each(|epoch| self.release(epoch));
    }

    /// Everything stops. What rests on snapshots is what it is when their sessions end.
    pub(crate) fn withdraw_all(&mut self, now: Timestamp) {
        self.release_all(|_| true);
        let snapshots = self.pipe.rounds.iter().filter_map(|round| round.snapshot.as_ref());
        let sessions: Vec<Epoch> = snapshots.map(|snapshot| snapshot.epoch).collect();
        sessions.into_iter().for_each(|epoch| self.lose_snapshot(epoch, now));
        self.touched.pipe = true;
    }

    /// Copies stop; what they have finished stays. A snapshot goes with its session.
    fn withdraw_copies(&mut self, now: Timestamp) {
        let round_task = |task: &Task| {
            matches!(task, Task::Copy { .. } | Task::Clean | Task::Publish)
                || task.round().is_some() && !matches!(task, Task::Snapshot { .. })
        };
        for epoch in self.epochs_of(round_task) {
            self.withdraw(epoch, now);
        }
        for epoch in self.epochs_of(|task| matches!(task, Task::Snapshot { .. })) {
            self.withdraw(epoch, now);
        }
    }

    fn release(&mut self, epoch: Epoch) {
        if let Some(assignment) = self.assignments.remove(&epoch) {
            self.touched.withdrawn.push(epoch);
            self.touched.assignments.remove(&epoch);
            self.orders.push((assignment.worker, Order::Revoke(epoch)));
        }
    }
}

impl TableProgress {
    fn of(partitions: &[PartitionRecord]) -> Self {
        let mut progress = Self::default();
        for copied in partitions.iter().filter_map(|partition| partition.done) {
            progress.done += 1;
            progress.copied.rows += copied.rows;
            progress.copied.bytes += copied.bytes;
        }
        progress.first_open = partitions.iter().take_while(|partition| partition.done.is_some()).count();
        progress
    }
}
