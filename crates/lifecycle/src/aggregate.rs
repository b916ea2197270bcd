//! One pipe with everything that is stored about it, and the changes that are still to be stored.
//!
//! Every change goes through a method here, which marks what it touched. The coordinator takes the marks as [`PipeChanges`], commits them, and only
//! then sends the [`Order`]s that go with them.

use std::collections::{BTreeMap, BTreeSet};

use millrace_model::spec::TableEngine;
use millrace_model::work::{Assignment, SlotRequest, TraceContext, Work};
use millrace_model::{Epoch, Lsn, PipeId, PipeSpec, Problem, TableName, Timestamp, WorkerId};

use crate::command::{Command, Refusal, check};
use crate::pipe::{self, PipeEffect, PipeEvent, PipeState};
use crate::record::{
    Actor, AssignmentRecord, Copied, EventKind, EventRecord, PartitionRecord, PipeRecord, TableRecord, Task,
};
use crate::table::{self, TableEvent, TableState};

/// What a worker must be told once the changes that led to it are stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Do this.
    Assign(Box<Assignment>),
    /// Stop at once.
    Revoke(Epoch),
    /// Finish what was read, then stop.
    Drain(Epoch),
    /// Your report is stored; the table is named where the report was about one.
    Recorded(Epoch, Option<TableName>),
}

/// Everything about one pipe that must be stored together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PipeChanges {
    /// The version that must be found in the catalog; 0 for a new pipe.
    pub expected_version: u64,
    /// The pipe, where it changed.
    pub pipe: Option<PipeRecord>,
    /// Tables that changed, by position.
    pub tables: Vec<(u32, TableRecord)>,
    /// Partitions that changed, by their table's position.
    pub partitions: Vec<(u32, PartitionRecord)>,
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
    pub(crate) tables: Vec<TableRecord>,
    pub(crate) partitions: Vec<Vec<PartitionRecord>>,
    pub(crate) assignments: BTreeMap<Epoch, AssignmentRecord>,
    /// Per table, what its finished partitions held: derived, so that nobody sums a hundred thousand partitions for a progress bar.
    progress: Vec<TableProgress>,
    version: u64,
    touched: Touched,
    orders: Vec<(WorkerId, Order)>,
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
    tables: BTreeSet<usize>,
    partitions: BTreeSet<(usize, usize)>,
    assignments: BTreeSet<Epoch>,
    withdrawn: Vec<Epoch>,
    events: Vec<EventRecord>,
    removed: bool,
}

impl PipeAggregate {
    /// A new pipe, in Provisioning.
    pub fn create(id: PipeId, spec: PipeSpec, now: Timestamp) -> Self {
        let tables = spec
            .tables
            .iter()
            .map(|table| TableRecord {
                source: table.source.clone(),
                target: table.target.clone(),
                state: TableState::Waiting,
                since: now,
                problem: None,
                definition: None,
                cut: false,
                rows_estimated: 0,
            })
            .collect::<Vec<_>>();
        let cause = "created";
        let pipe = PipeRecord {
            id,
            spec,
            created: now,
            state: PipeState::Provisioning,
            since: now,
            cause: cause.to_owned(),
            failed_in: None,
            failure: None,
            deleting: false,
            system_identifier: None,
            destination: millrace_model::work::DestinationFacts::default(),
            slot: None,
            snapshot: None,
            clear_tables: false,
            durable: Lsn::ZERO,
            last_event: 0,
        };
        let partitions = vec![Vec::new(); tables.len()];
        let mut aggregate = Self::restore(pipe, tables, partitions, Vec::new(), 0);
        aggregate.touched.tables = (0..aggregate.tables.len()).collect();
        aggregate.event(
            EventKind::State { from: None, to: PipeState::Provisioning },
            cause.to_owned(),
            Actor::User,
            now,
        );
        aggregate
    }

    /// A pipe as it was stored.
    pub fn restore(
        pipe: PipeRecord,
        tables: Vec<TableRecord>,
        partitions: Vec<Vec<PartitionRecord>>,
        assignments: Vec<AssignmentRecord>,
        version: u64,
    ) -> Self {
        let mut aggregate = Self {
            progress: vec![TableProgress::default(); tables.len()],
            pipe,
            tables,
            partitions,
            assignments: assignments.into_iter().map(|assignment| (assignment.epoch, assignment)).collect(),
            version,
            touched: Touched::default(),
            orders: Vec::new(),
        };
        (0..aggregate.tables.len()).for_each(|index| aggregate.count_progress(index));
        aggregate
    }

    /// The pipe's own record.
    pub fn pipe(&self) -> &PipeRecord {
        &self.pipe
    }

    /// Its tables with their progress, in the order of the specification.
    pub fn tables(&self) -> impl Iterator<Item = (&TableRecord, TableProgress, u32)> {
        self.tables.iter().zip(&self.progress).zip(&self.partitions).map(|((table, progress), partitions)| {
            (table, *progress, u32::try_from(partitions.len()).unwrap_or(u32::MAX))
        })
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

    /// Carries out a user's command or refuses it.
    pub fn command(&mut self, command: Command, now: Timestamp) -> Result<(), Refusal> {
        check(command, self.pipe.state, self.pipe.deleting)?;
        if command == Command::Delete && self.pipe.deleting {
            return Ok(());
        }
        let event = match command {
            Command::Pause => PipeEvent::PauseRequested,
            Command::Resume => PipeEvent::ResumeRequested { failed_in: self.pipe.failed_in },
            Command::Delete => {
                self.event(EventKind::Command, format!("{command} requested"), Actor::User, now);
                self.pipe.deleting = true;
                self.withdraw_all();
                return Ok(());
            }
        };
        let state = self.pipe.state;
        self.advance(event, format!("{command} requested"), Actor::User, now)
            .map_err(|_| Refusal::State { command, state })
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
        let (work, tables) = self.work(&task)?;
        let spec = PipeSpec {
            tables: self
                .pipe
                .spec
                .tables
                .iter()
                .filter(|table| tables.contains(&table.source))
                .cloned()
                .collect(),
            ..self.pipe.spec.clone()
        };
        if let Task::Copy { table, .. } = &task
            && let Some(index) = self.table_index(table)
            && self.tables[index].state == TableState::Waiting
        {
            self.advance_table(index, TableEvent::CopyStarted, Actor::Coordinator, now);
        }
        self.assignments
            .insert(epoch, AssignmentRecord { epoch, task, worker: worker.clone(), draining: false });
        self.touched.assignments.insert(epoch);
        let assignment = Assignment { epoch, pipe: self.pipe.id.clone(), trace, spec, work };
        self.orders.push((worker, Order::Assign(Box::new(assignment))));
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
        if let Some(assignment) = self.assignments.remove(&epoch) {
            self.touched.withdrawn.push(epoch);
            self.touched.assignments.remove(&epoch);
            self.orders.push((assignment.worker, Order::Revoke(epoch)));
            if assignment.task == Task::Snapshot {
                self.lose_snapshot(epoch, now);
            }
            if let Task::Copy { table, .. } = &assignment.task
                && let Some(index) = self.table_index(table)
            {
                self.interrupt_append_only(index, now);
            }
        }
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
        let Touched { pipe, tables, partitions, assignments, withdrawn, events, removed } = touched;
        let nothing = !pipe
            && tables.is_empty()
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
        let position = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        Some(PipeChanges {
            expected_version,
            pipe: pipe.then(|| self.pipe.clone()),
            tables: tables.into_iter().map(|index| (position(index), self.tables[index].clone())).collect(),
            partitions: partitions
                .into_iter()
                .map(|(table, index)| (position(table), self.partitions[table][index].clone()))
                .collect(),
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
        std::mem::take(&mut self.orders)
    }

    /// Marks the durable position for storing: it moves too often to be stored each time, and the slot itself holds the truth.
    pub fn store_position(&mut self) {
        self.touched.pipe = true;
    }

    pub(crate) fn order(&mut self, worker: WorkerId, order: Order) {
        self.orders.push((worker, order));
    }

    /// Forgets an assignment whose worker has ended it.
    pub(crate) fn conclude(&mut self, epoch: Epoch) {
        self.assignments.remove(&epoch);
        self.touched.assignments.remove(&epoch);
        self.touched.withdrawn.push(epoch);
    }

    pub(crate) fn table_index(&self, name: &TableName) -> Option<usize> {
        self.tables.iter().position(|table| &table.source == name)
    }

    /// Tables that are not set aside.
    pub(crate) fn active(&self) -> impl Iterator<Item = &TableRecord> {
        self.tables.iter().filter(|table| table.state != TableState::SetAside)
    }

    pub(crate) fn progress_of(&self, index: usize) -> TableProgress {
        self.progress[index]
    }

    pub(crate) fn touch_pipe(&mut self) {
        self.touched.pipe = true;
    }

    pub(crate) fn touch_table(&mut self, index: usize) {
        self.touched.tables.insert(index);
    }

    /// Replaces a table's partitions.
    pub(crate) fn set_partitions(&mut self, index: usize, partitions: Vec<PartitionRecord>) {
        self.touched.partitions.extend((0..partitions.len()).map(|number| (index, number)));
        self.partitions[index] = partitions;
        self.count_progress(index);
    }

    /// Records that a partition is in the destination.
    pub(crate) fn finish_partition(&mut self, index: usize, number: u32, copied: Copied) {
        let at = number as usize;
        if let Some(partition) = self.partitions[index].get_mut(at)
            && partition.done.is_none()
        {
            partition.done = Some(copied);
            self.touched.partitions.insert((index, at));
            let progress = &mut self.progress[index];
            progress.done += 1;
            progress.copied.rows += copied.rows;
            progress.copied.bytes += copied.bytes;
            while self.partitions[index].get(progress.first_open).is_some_and(|open| open.done.is_some()) {
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
                PipeEffect::WithdrawAll => self.withdraw_all(),
                PipeEffect::WithdrawSnapshot => {
                    self.epochs_of(|task| *task == Task::Snapshot)
                        .into_iter()
                        .for_each(|epoch| self.release(epoch));
                    self.pipe.snapshot = None;
                }
                PipeEffect::DrainStream => {
                    self.epochs_of(|task| *task == Task::Stream)
                        .into_iter()
                        .for_each(|epoch| self.drain(epoch));
                }
            }
        }
        Ok(())
    }

    /// Moves a table; an event that is not legal in its state is one that came too late and changes nothing.
    pub(crate) fn advance_table(&mut self, index: usize, event: TableEvent, actor: Actor, now: Timestamp) {
        let table = &mut self.tables[index];
        let Ok(next) = table::transition(table.state, event) else { return };
        table.state = next;
        table.since = now;
        let name = table.source.clone();
        let message = next.to_string();
        self.touched.tables.insert(index);
        self.event(EventKind::Table { table: name, to: next }, message, actor, now);
    }

    /// The snapshot is gone with its session. A pipe with a stream goes on under a later one, since the stream brings what changed in between
    /// (design, "A copy that survives"); one without must begin its copy anew, or rows that moved between partitions would be lost.
    pub(crate) fn lose_snapshot(&mut self, epoch: Epoch, now: Timestamp) {
        if self.pipe.snapshot.as_ref().is_none_or(|snapshot| snapshot.epoch != epoch) {
            return;
        }
        self.pipe.snapshot = None;
        self.touched.pipe = true;
        if self.pipe.spec.mode == millrace_model::spec::ReplicationMode::Cdc
            || self.pipe.state != PipeState::Snapshot
        {
            for index in 0..self.tables.len() {
                if matches!(self.tables[index].state, TableState::Waiting | TableState::Copying) {
                    self.interrupt_append_only(index, now);
                }
            }
            return;
        }
        self.note(
            "the session that held the snapshot ended; without a stream of changes the copy begins anew",
            Actor::Coordinator,
            now,
        );
        self.pipe.clear_tables = true;
        self.epochs_of(|task| matches!(task, Task::Copy { .. }))
            .into_iter()
            .for_each(|epoch| self.release(epoch));
        for index in 0..self.tables.len() {
            self.advance_table(index, TableEvent::CopyVoided, Actor::Coordinator, now);
            let voided = self.partitions[index]
                .iter()
                .map(|partition| PartitionRecord { done: None, ..partition.clone() });
            self.set_partitions(index, voided.collect());
        }
    }

    /// The copy of a table that keeps every row was interrupted: whatever is read again would be there twice, and a later snapshot holds what the stream brings
    /// too. Better set aside than doubled.
    fn interrupt_append_only(&mut self, index: usize, now: Timestamp) {
        let source = &self.tables[index].source;
        let mut tables = self.pipe.spec.tables.iter();
        let append_only =
            tables.any(|table| &table.source == source && table.engine != TableEngine::ReplacingMergeTree);
        if append_only && self.pipe.state == PipeState::Snapshot && !self.pipe.deleting {
            let problem = Problem::operator(
                "APPEND_ONLY_COPY_INTERRUPTED",
                "the copy was interrupted, and a table that keeps every row cannot be copied on without doubling some",
                "make the pipe anew with an empty destination table",
            );
            self.set_aside(index, problem.of_table(source), Actor::Coordinator, now);
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

    fn epochs_of(&self, matches: impl Fn(&Task) -> bool) -> Vec<Epoch> {
        self.assignments.values().filter(|held| matches(&held.task)).map(|held| held.epoch).collect()
    }

    fn withdraw_all(&mut self) {
        self.epochs_of(|_| true).into_iter().for_each(|epoch| self.release(epoch));
        self.pipe.snapshot = None;
        self.touched.pipe = true;
    }

    /// Takes an assignment back without drawing conclusions from it.
    fn release(&mut self, epoch: Epoch) {
        if let Some(assignment) = self.assignments.remove(&epoch) {
            self.touched.withdrawn.push(epoch);
            self.touched.assignments.remove(&epoch);
            self.orders.push((assignment.worker, Order::Revoke(epoch)));
        }
    }

    fn count_progress(&mut self, index: usize) {
        let mut progress = TableProgress::default();
        for partition in &self.partitions[index] {
            if let Some(copied) = partition.done {
                progress.done += 1;
                progress.copied.rows += copied.rows;
                progress.copied.bytes += copied.bytes;
            }
        }
        progress.first_open =
            self.partitions[index].iter().take_while(|partition| partition.done.is_some()).count();
        self.progress[index] = progress;
    }

    /// What a worker must know to do the task, and which tables it concerns.
    fn work(&self, task: &Task) -> Option<(Work, Vec<TableName>)> {
        let slot_name = || {
            let named = self.pipe.spec.settings.replication_slot_name.clone();
            named.unwrap_or_else(|| self.pipe.id.slot_name())
        };
        let publication = || {
            let named = self.pipe.spec.settings.publication_name.clone();
            named.unwrap_or_else(|| self.pipe.id.publication_name())
        };
        let definitions = || self.active().filter_map(|table| table.definition.clone()).collect::<Vec<_>>();
        let active = || self.active().map(|table| table.source.clone()).collect::<Vec<_>>();
        let destination = self.pipe.destination;
        Some(match task {
            Task::Provision => (Work::Provision, active()),
            Task::SetUp => {
                (Work::SetUp { tables: definitions(), destination, clear: self.pipe.clear_tables }, active())
            }
            Task::Snapshot => {
                let name = slot_name();
                let slot = match (self.pipe.spec.mode, &self.pipe.slot) {
                    (millrace_model::spec::ReplicationMode::Snapshot, _) => SlotRequest::None,
                    (millrace_model::spec::ReplicationMode::Cdc, None) => SlotRequest::Create { name },
                    (millrace_model::spec::ReplicationMode::Cdc, Some(slot)) => {
                        SlotRequest::Existing { name: slot.name.clone() }
                    }
                };
                (Work::Snapshot { slot, tables: definitions() }, active())
            }
            Task::Copy { table, partition } => {
                let index = self.table_index(table)?;
                let work = Work::Copy {
                    table: self.tables[index].definition.clone()?,
                    snapshot_name: self.pipe.snapshot.as_ref()?.name.clone(),
                    partition: *partition,
                    range: self.partitions[index].get(*partition as usize)?.range,
                    destination,
                };
                (work, vec![table.clone()])
            }
            Task::Stream => {
                let slot = self.pipe.slot.as_ref()?;
                let work = Work::Stream {
                    slot_name: slot.name.clone(),
                    publication_name: publication(),
                    system_identifier: self.pipe.system_identifier?,
                    consistent_point: slot.consistent_point,
                    durable: self.pipe.durable,
                    tables: definitions(),
                    destination,
                };
                (work, active())
            }
            Task::Release => (Work::Release { slot_name: slot_name() }, Vec::new()),
            Task::Teardown => {
                let cdc = self.pipe.spec.mode == millrace_model::spec::ReplicationMode::Cdc;
                let owns_publication = cdc && self.pipe.spec.settings.publication_name.is_none();
                let work = Work::Teardown {
                    slot_name: cdc.then(slot_name),
                    publication_name: owns_publication.then(publication),
                };
                (work, Vec::new())
            }
        })
    }
}
