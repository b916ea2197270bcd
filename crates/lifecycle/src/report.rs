//! What a worker's report does to a pipe.

use millrace_model::spec::ReplicationMode;
use millrace_model::work::{Outcome, Progress, Report, TableSize};
use millrace_model::{Epoch, Lsn, Problem, Recovery, TableDefinition, Timestamp, WorkerId};

use crate::aggregate::{Order, PipeAggregate};
use crate::pipe::{PipeEvent, PipeState};
use crate::record::{Actor, Copied, PartitionRecord, SlotRecord, SnapshotRecord, TableRecord, Task};
use crate::table::{TableEvent, TableState};

/// The report names an assignment that does not stand, or stands with another worker, or is of another kind. It changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("assignment {0} does not stand with this worker")]
pub struct StaleReport(pub Epoch);

/// What the coordinator keeps in mind after a report; nothing of it is stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Aftermath {
    /// The task gets on or is done: whatever troubled it is over.
    Fine,
    /// The task failed and is to be tried again after a while.
    TryAgain(Task, Problem),
}

impl PipeAggregate {
    /// Takes in a report of `worker` about its assignment `epoch`.
    pub fn report(
        &mut self,
        worker: &WorkerId,
        epoch: Epoch,
        report: Report,
        now: Timestamp,
    ) -> Result<Aftermath, StaleReport> {
        let stale = StaleReport(epoch);
        let held = self.assignment(epoch).filter(|held| &held.worker == worker).ok_or(stale)?;
        let task = held.task.clone();
        match report {
            Report::Progress(progress) => {
                self.progressed(worker, epoch, &task, progress, now).ok_or(stale)?;
                Ok(Aftermath::Fine)
            }
            Report::Finished(outcome) => {
                self.finished(worker, &task, outcome, now).ok_or(stale)?;
                self.conclude(epoch);
                self.order(worker.clone(), Order::Recorded(epoch, None));
                Ok(Aftermath::Fine)
            }
            Report::Failed(problems) => {
                self.conclude(epoch);
                self.order(worker.clone(), Order::Recorded(epoch, None));
                Ok(self.failed(worker, epoch, task, &problems, now))
            }
            Report::TableChanged(definition) => {
                let index = self.table_index(&definition.name).ok_or(stale)?;
                let table = definition.name.clone();
                self.redefine(index, &definition, worker, now);
                self.order(worker.clone(), Order::Recorded(epoch, Some(table)));
                Ok(Aftermath::Fine)
            }
            Report::TableSetAside(problem) => {
                let table = problem.table.clone();
                let index = table.as_ref().and_then(|table| self.table_index(table)).ok_or(stale)?;
                self.set_aside(index, problem, Actor::Worker(worker.clone()), now);
                self.order(worker.clone(), Order::Recorded(epoch, table));
                Ok(Aftermath::Fine)
            }
        }
    }

    fn progressed(
        &mut self,
        worker: &WorkerId,
        epoch: Epoch,
        task: &Task,
        progress: Progress,
        now: Timestamp,
    ) -> Option<()> {
        match (task, progress) {
            (Task::Snapshot, Progress::SnapshotReady { snapshot_name, consistent_point, sizes }) => {
                if self.pipe.snapshot.as_ref().is_some_and(|known| known.epoch == epoch) {
                    return Some(());
                }
                if self.pipe.spec.mode == ReplicationMode::Cdc && self.pipe.slot.is_none() {
                    let named = self.pipe.spec.settings.replication_slot_name.clone();
                    let name = named.unwrap_or_else(|| self.pipe.id.slot_name());
                    self.note(
                        format!("slot {name} made; changes after {consistent_point} will be streamed"),
                        Actor::Worker(worker.clone()),
                        now,
                    );
                    self.pipe.slot = Some(SlotRecord { name, consistent_point });
                    self.pipe.durable = consistent_point;
                }
                let resumed = self.pipe.slot.as_ref().filter(|slot| slot.consistent_point < consistent_point);
                if resumed.is_some() {
                    self.distrust_unfinished(consistent_point);
                }
                self.pipe.snapshot = Some(SnapshotRecord { epoch, name: snapshot_name });
                self.touch_pipe();
                self.cut_tables(&sizes, worker, now);
                Some(())
            }
            (Task::Copy { .. }, Progress::Copy { .. }) => Some(()),
            (Task::Stream, Progress::Stream(stream)) => {
                if stream.durable > self.pipe.durable {
                    self.pipe.durable = stream.durable;
                }
                if stream.caught_up {
                    for index in 0..self.tables.len() {
                        if self.tables[index].state == TableState::CatchingUp {
                            self.advance_table(
                                index,
                                TableEvent::CaughtUp,
                                Actor::Worker(worker.clone()),
                                now,
                            );
                        }
                    }
                }
                Some(())
            }
            _ => None,
        }
    }

    fn finished(&mut self, worker: &WorkerId, task: &Task, outcome: Outcome, now: Timestamp) -> Option<()> {
        let actor = Actor::Worker(worker.clone());
        match (task, outcome) {
            (
                Task::Provision,
                Outcome::Provisioned { system_identifier, server_version, tables, warnings, destination },
            ) => {
                self.pipe.system_identifier = Some(system_identifier);
                self.pipe.destination = destination;
                for definition in tables {
                    if let Some(index) = self.table_index(&definition.name) {
                        self.tables[index].definition = Some(definition);
                        self.touch_table(index);
                    }
                }
                for warning in warnings {
                    self.note_problem(warning, actor.clone(), now);
                }
                let cause =
                    format!("source (PostgreSQL {}) and destination checked", server_version / 10_000);
                self.advance(PipeEvent::Provisioned, cause, actor, now).ok()
            }
            (Task::SetUp, Outcome::SetUp) => {
                if self.pipe.clear_tables {
                    self.pipe.clear_tables = false;
                    self.touch_pipe();
                    Some(())
                } else {
                    self.advance(PipeEvent::SetUp, "destination tables made".to_owned(), actor, now).ok()
                }
            }
            (Task::Copy { table, partition }, Outcome::Copied { rows, bytes }) => {
                let index = self.table_index(table)?;
                self.finish_partition(index, *partition, Copied { rows, bytes });
                self.conclude_copies(&actor, now);
                Some(())
            }
            (Task::Stream, Outcome::Drained { durable }) => {
                self.pipe.durable = self.pipe.durable.max(durable);
                self.touch_pipe();
                if self.pipe.state == PipeState::Pausing {
                    let cause = format!("everything up to {durable} is in the destination");
                    self.advance(PipeEvent::Drained, cause, actor, now).ok()?;
                }
                Some(())
            }
            (Task::Release, Outcome::Released) => {
                self.advance(PipeEvent::Drained, "the slot is released".to_owned(), actor, now).ok()
            }
            (Task::Teardown, Outcome::TornDown { left_behind }) => {
                for problem in left_behind {
                    self.note_problem(problem, actor.clone(), now);
                }
                self.note("deleted", actor, now);
                self.remove();
                Some(())
            }
            _ => None,
        }
    }

    fn failed(
        &mut self,
        worker: &WorkerId,
        epoch: Epoch,
        task: Task,
        problems: &[Problem],
        now: Timestamp,
    ) -> Aftermath {
        let actor = Actor::Worker(worker.clone());
        if task == Task::Snapshot {
            self.lose_snapshot(epoch, now);
        }
        let unexplained = || {
            let message = format!("worker {worker} failed at {task} and did not say why");
            Problem::transient("WORKER_FAULT", message, "look at the worker's log")
        };
        let first = problems.first().cloned().unwrap_or_else(unexplained);
        if first.recovery == Recovery::Retry || self.pipe.deleting {
            return Aftermath::TryAgain(task, first);
        }
        for problem in problems.iter().skip(1) {
            self.note_problem(problem.clone(), actor.clone(), now);
        }
        let table = first.table.as_ref().and_then(|table| self.table_index(table));
        match (task, table) {
            (Task::Copy { .. } | Task::Stream, Some(index)) => self.set_aside(index, first, actor, now),
            _ => self.break_down(first, actor, now),
        }
        Aftermath::Fine
    }

    /// What is copied from now on is younger than the beginning of the stream.
    fn distrust_unfinished(&mut self, position: Lsn) {
        for index in 0..self.tables.len() {
            let unfinished = matches!(self.tables[index].state, TableState::Waiting | TableState::Copying);
            if let Some(definition) = self.tables[index].definition.as_mut().filter(|_| unfinished) {
                definition.distrusted_until = definition.distrusted_until.max(position);
                self.touch_table(index);
            }
        }
    }

    /// The stream knows the table by another definition.
    fn redefine(&mut self, index: usize, definition: &TableDefinition, worker: &WorkerId, now: Timestamp) {
        let known = self.tables[index].definition.replace(definition.clone());
        self.touch_table(index);
        if known.is_none_or(|known| known.columns != definition.columns) {
            let columns: Vec<&str> = definition.columns.iter().map(|column| column.name.as_str()).collect();
            let message = format!("{} has the columns {} from now on", definition.name, columns.join(", "));
            self.note(message, Actor::Worker(worker.clone()), now);
        }
    }

    pub(crate) fn set_aside(&mut self, index: usize, problem: Problem, actor: Actor, now: Timestamp) {
        if self.tables[index].state == TableState::SetAside {
            return;
        }
        self.tables[index].problem = Some(problem.clone());
        self.advance_table(index, TableEvent::Broke, actor.clone(), now);
        self.note_problem(problem.clone(), actor.clone(), now);
        if self.active().next().is_none() {
            self.break_down(problem, actor, now);
        } else {
            self.conclude_copies(&actor, now);
        }
    }

    fn break_down(&mut self, problem: Problem, actor: Actor, now: Timestamp) {
        self.note_problem(problem.clone(), actor.clone(), now);
        if self.advance(PipeEvent::Broke, problem.message.clone(), actor, now).is_ok() {
            self.pipe.failure = Some(problem);
        }
    }

    /// Cuts every table that was not cut yet; one that could not be measured is set aside.
    fn cut_tables(&mut self, sizes: &[TableSize], worker: &WorkerId, now: Timestamp) {
        let rows_per_partition = self.pipe.spec.settings.snapshot_rows_per_partition;
        for size in sizes {
            let Some(index) = self.table_index(&size.table) else { continue };
            if self.tables[index].cut {
                continue;
            }
            let ranges =
                millrace_scheduler::partition::cut(size.pages, size.estimated_rows, rows_per_partition);
            let partitions =
                (0..).zip(ranges).map(|(number, range)| PartitionRecord { number, range, done: None });
            self.set_partitions(index, partitions.collect());
            self.tables[index].cut = true;
            self.tables[index].rows_estimated = size.estimated_rows;
            if let Some(definition) = &mut self.tables[index].definition {
                definition.file_node = size.file_node;
            }
            self.touch_table(index);
        }
        // Without partitions it would wait for ever, and the pipe with it.
        let unmeasured = |table: &TableRecord| !table.cut && table.state != TableState::SetAside;
        let gone: Vec<usize> =
            (0..self.tables.len()).filter(|index| unmeasured(&self.tables[*index])).collect();
        for index in gone {
            let problem = Problem::operator(
                "SOURCE_TABLE_MISSING",
                "the table went away between the checks and the copy",
                "bring it back under its name, or leave it out, and make the pipe anew",
            );
            let problem = problem.of_table(&self.tables[index].source);
            self.set_aside(index, problem, Actor::Worker(worker.clone()), now);
        }
    }

    /// Draws the conclusions from finished partitions: for each table, then for the pipe.
    fn conclude_copies(&mut self, actor: &Actor, now: Timestamp) {
        let for_good = self.pipe.spec.mode == ReplicationMode::Snapshot;
        for index in 0..self.tables.len() {
            let complete = self.progress_of(index).done as usize == self.partitions[index].len();
            if self.tables[index].cut && complete && self.tables[index].state == TableState::Copying {
                let event = if for_good { TableEvent::CopiedForGood } else { TableEvent::CopiedBeforeStream };
                self.advance_table(index, event, actor.clone(), now);
            }
        }
        if self.pipe.state != PipeState::Snapshot {
            return;
        }
        let copied = |table: &TableRecord| {
            matches!(table.state, TableState::CatchingUp | TableState::Streaming | TableState::Completed)
        };
        // A snapshot-only pipe with a table set aside is not complete (rulings 11).
        let complete = if for_good { self.tables.iter().all(copied) } else { self.active().all(copied) };
        if complete {
            let event = if for_good { PipeEvent::CopiedForGood } else { PipeEvent::CopiedBeforeStream };
            let cause = match self.active().count() {
                1 => "the table is copied".to_owned(),
                tables => format!("{tables} tables copied"),
            };
            // Snapshot allows both events, so this cannot be refused.
            let _ = self.advance(event, cause, actor.clone(), now);
        }
    }
}
