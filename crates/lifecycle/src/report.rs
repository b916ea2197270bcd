//! What a worker's report does to a pipe.

use millrace_model::work::{Outcome, Progress, Report, Verified};
use millrace_model::{Epoch, Lsn, Problem, Recovery, TableDefinition, TableId, Timestamp, WorkerId};

use crate::aggregate::{Order, PipeAggregate};
use crate::pipe::{PipeEvent, PipeState};
use crate::record::{Actor, Copied, Phase, Purpose, SlotRecord, SnapshotRecord, Task};
use crate::table::{TableEvent, TableState};

/// Problems of a copy after which what was copied of its table is of no use: to try the partition again would mend nothing.
const COPY_IS_VOID: [&str; 2] = ["APPEND_ONLY_COPY_INTERRUPTED", "SOURCE_TABLE_REWRITTEN"];

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
        let actor = Actor::Worker(worker.clone());
        match report {
            Report::Progress(progress) => {
                self.progressed(worker, epoch, &task, progress, now).ok_or(stale)?;
                Ok(Aftermath::Fine)
            }
            Report::Finished(outcome) => {
                self.check_outcome(&task, &outcome).ok_or(stale)?;
                self.end_assignment(epoch);
                self.order(worker.clone(), Order::Recorded(epoch, None));
                self.finished(&actor, &task, outcome, now);
                self.conclude(&actor, now);
                Ok(Aftermath::Fine)
            }
            Report::Failed(problems) => {
                self.end_assignment(epoch);
                self.order(worker.clone(), Order::Recorded(epoch, None));
                Ok(self.failed(&actor, epoch, task, &problems, now))
            }
            Report::TableChanged(id, definition) => {
                self.stream_knows(&task, id).ok_or(stale)?;
                self.redefine(id, &definition, &actor, now);
                self.order(worker.clone(), Order::Recorded(epoch, Some(id)));
                Ok(Aftermath::Fine)
            }
            Report::TableSetAside(id, problem) => {
                self.stream_knows(&task, id).ok_or(stale)?;
                self.set_aside(id, problem, actor, now);
                self.order(worker.clone(), Order::Recorded(epoch, Some(id)));
                Ok(Aftermath::Fine)
            }
            Report::ValuesAltered(id, values) => {
                if let Some(table) = self.table_mut(id) {
                    table.record.altered = table.record.altered.saturating_add(values);
                }
                self.order(worker.clone(), Order::Recorded(epoch, Some(id)));
                Ok(Aftermath::Fine)
            }
            Report::TableSwapped(id) => {
                self.stream_knows(&task, id).ok_or(stale)?;
                // One that is said again changes nothing.
                self.swapped(id, &actor, now);
                self.order(worker.clone(), Order::Recorded(epoch, Some(id)));
                self.conclude(&actor, now);
                Ok(Aftermath::Fine)
            }
        }
    }

    /// A stream may speak of tables that were taken out or replaced a moment ago; it hears that this is recorded.
    fn stream_knows(&self, task: &Task, id: TableId) -> Option<()> {
        (*task == Task::Stream && id.0 < self.pipe.next_table).then_some(())
    }

    fn progressed(
        &mut self,
        worker: &WorkerId,
        epoch: Epoch,
        task: &Task,
        progress: Progress,
        now: Timestamp,
    ) -> Option<()> {
        let actor = Actor::Worker(worker.clone());
        match (task, progress) {
            (
                Task::Snapshot { round: number },
                Progress::SnapshotReady { snapshot_name, consistent_point, sizes },
            ) => {
                let round = self.round(*number)?;
                if round.snapshot.as_ref().is_some_and(|known| known.epoch == epoch) {
                    return Some(());
                }
                if self.pipe.spec.mode.follows() && self.pipe.slot.is_none() {
                    self.slot_made(self.slot_name(), consistent_point, &actor, now);
                }
                let snapshot = SnapshotRecord { epoch, name: snapshot_name };
                self.round_mut(*number)?.snapshot = Some(snapshot);
                self.open_snapshot(*number, consistent_point, &sizes, worker, now);
                Some(())
            }
            (Task::Copy { .. }, Progress::Copy { .. }) | (Task::Verify { .. }, Progress::Verify { .. }) => {
                Some(())
            }
            (Task::Stream, Progress::Stream(stream)) => {
                if stream.durable > self.pipe.durable {
                    self.pipe.durable = stream.durable;
                }
                let promoted = stream.timeline != 0 && stream.timeline != self.pipe.timeline;
                if promoted {
                    self.pipe.timeline = stream.timeline;
                    self.touch_pipe();
                }
                let news = promoted || self.followed != Some((epoch, stream.revision));
                self.followed = Some((epoch, stream.revision));
                let durable = self.pipe.durable;
                let caught_up = self.ids(|table| {
                    table.state == TableState::CatchingUp
                        && stream.caught_up
                        && durable >= table.goal
                        && stream.held.iter().all(|(held, _)| *held != table.id)
                });
                for id in &caught_up {
                    self.advance_table(*id, TableEvent::CaughtUp, actor.clone(), now);
                }
                if news || !caught_up.is_empty() {
                    self.conclude(&actor, now);
                }
                Some(())
            }
            _ => None,
        }
    }

    fn slot_made(&mut self, name: String, begins: Lsn, actor: &Actor, now: Timestamp) {
        self.note(format!("slot {name} stands; changes after {begins} will be streamed"), actor.clone(), now);
        self.pipe.slot = Some(SlotRecord { name, consistent_point: begins });
        self.pipe.durable = begins;
        self.pipe.timeline = 0;
        self.touch_pipe();
    }

    /// Whether a task can end so.
    fn check_outcome(&self, task: &Task, outcome: &Outcome) -> Option<()> {
        let fits = matches!(
            (task, outcome),
            (Task::Provision { .. }, Outcome::Provisioned { .. })
                | (Task::SetUp { .. } | Task::Publish, Outcome::SetUp { .. })
                | (Task::Copy { .. }, Outcome::Copied { .. })
                | (Task::Stream, Outcome::Drained { .. })
                | (Task::Verify { .. }, Outcome::Verified(_))
                | (Task::Verify { part: None, .. }, Outcome::Divided { .. })
                | (Task::Swap { .. }, Outcome::Swapped { .. })
                | (Task::Clean, Outcome::Cleaned { .. })
                | (Task::Release, Outcome::Released)
                | (Task::Teardown, Outcome::TornDown { .. })
        );
        fits.then_some(())
    }

    fn finished(&mut self, actor: &Actor, task: &Task, outcome: Outcome, now: Timestamp) {
        match (task, outcome) {
            (
                Task::Provision { round },
                Outcome::Provisioned { system_identifier, server_version, tables, warnings, destination },
            ) => {
                for warning in warnings {
                    self.note_problem(warning, actor.clone(), now);
                }
                self.described(*round, system_identifier, server_version, tables, actor, now);
                // The stream and what was copied before go by what was found out first.
                if self.pipe.state == PipeState::Provisioning || !self.pipe.streams {
                    self.pipe.destination = destination;
                }
                if self.pipe.state == PipeState::Provisioning {
                    let version = server_version / 10_000;
                    let cause = format!("source (PostgreSQL {version}) and destination checked");
                    // It is legal in this state.
                    let _ = self.advance(PipeEvent::Provisioned, cause, actor.clone(), now);
                }
            }
            (Task::SetUp { round }, Outcome::SetUp { tables, begins }) => {
                for (id, uuid) in tables {
                    if let Some(table) = self.table_mut(id) {
                        table.record.uuid = Some(uuid);
                        table.record.published = table.record.published.max(begins);
                    }
                }
                self.touch_pipe();
                let Some(standing) = self.round_mut(*round) else { return };
                if standing.clear {
                    standing.clear = false;
                } else if self.pipe.spec.mode.copies() {
                    self.begin_copies(*round);
                } else {
                    self.follow_from(*round, begins, actor, now);
                }
            }
            (Task::Publish, Outcome::SetUp { .. }) => {
                self.pipe.publication_due = false;
                self.touch_pipe();
            }
            (Task::Verify { table, part, .. }, Outcome::Verified(found)) => {
                self.verified_part(*table, *part, found, actor.clone(), now);
            }
            (Task::Verify { table, .. }, Outcome::Divided { bounds }) => {
                self.divide_verification(*table, &bounds, actor.clone(), now);
            }
            (Task::Copy { table, partition, .. }, Outcome::Copied { rows, bytes }) => {
                self.finish_partition(*table, *partition, Copied { rows, bytes });
            }
            (Task::Stream, Outcome::Drained { durable }) => {
                self.pipe.durable = self.pipe.durable.max(durable);
                self.touch_pipe();
                if self.pipe.state == PipeState::Pausing {
                    let cause = format!("everything up to {durable} is in the destination");
                    let _ = self.advance(PipeEvent::Drained, cause, actor.clone(), now);
                }
            }
            (Task::Swap { .. }, Outcome::Swapped { tables }) => {
                for id in tables {
                    self.swapped(id, actor, now);
                }
            }
            (Task::Clean, Outcome::Cleaned { tables }) => {
                // What has come to it since waits for the next time.
                self.pipe.garbage.retain(|name| !tables.contains(name));
                self.touch_pipe();
            }
            (Task::Release, Outcome::Released) => {
                let cause = "the slot is released".to_owned();
                let _ = self.advance(PipeEvent::Drained, cause, actor.clone(), now);
            }
            (Task::Teardown, Outcome::TornDown { left_behind }) => {
                for problem in left_behind {
                    self.note_problem(problem, actor.clone(), now);
                }
                self.note("deleted", actor.clone(), now);
                self.remove();
            }
            // Nothing else passed the check.
            _ => {}
        }
    }

    /// A round's tables were checked and described.
    fn described(
        &mut self,
        number: u32,
        system_identifier: u64,
        server_version: u32,
        tables: Vec<TableDefinition>,
        actor: &Actor,
        now: Timestamp,
    ) {
        let known = self.pipe.system_identifier.filter(|_| self.pipe.slot.is_some());
        if let Some(known) = known.filter(|known| *known != system_identifier) {
            let problem = Problem::permanent(
                "SOURCE_REPLACED",
                format!(
                    "another PostgreSQL cluster (version {}) answers: its system identifier is {system_identifier}, the pipe was made from {known}",
                    server_version / 10_000
                ),
                "point the pipe at the cluster it was made from, or resync it",
            );
            return self.break_down(problem, actor.clone(), now);
        }
        self.pipe.system_identifier = Some(system_identifier);
        for definition in tables {
            for id in self.ids_in_round(number, &definition.name) {
                if let Some(table) = self.table_mut(id) {
                    table.record.definition = Some(definition.clone());
                }
            }
        }
        if let Some(round) = self.round_mut(number)
            && round.phase == Phase::Describe
        {
            round.phase = Phase::SetUp;
        }
    }

    /// The slot of a pipe that copies nothing stands: its tables are followed from there.
    fn follow_from(&mut self, round: u32, begins: Lsn, actor: &Actor, now: Timestamp) {
        if self.pipe.slot.is_none() {
            self.slot_made(self.slot_name(), begins, actor, now);
        }
        let tables: Vec<TableId> = self.round_tables(round).map(|table| table.id).collect();
        for id in tables {
            self.advance_table(id, TableEvent::NothingToCopy, actor.clone(), now);
        }
        if let Some(round) = self.round_mut(round) {
            round.phase = Phase::Copy;
        }
        self.revise();
    }

    fn failed(
        &mut self,
        actor: &Actor,
        epoch: Epoch,
        task: Task,
        problems: &[Problem],
        now: Timestamp,
    ) -> Aftermath {
        if matches!(task, Task::Snapshot { .. }) {
            self.lose_snapshot(epoch, now);
        }
        let unexplained = || {
            let message = format!("{actor} failed at {task} and did not say why");
            Problem::transient("WORKER_FAULT", message, "look at the worker's log")
        };
        let first = problems.first().cloned().unwrap_or_else(unexplained);
        // What nobody needs any more is no reason to stop anything.
        if self.pipe.deleting || task == Task::Clean {
            return Aftermath::TryAgain(task, first);
        }
        if let (Task::Verify { table, .. }, false) = (&task, first.recovery == Recovery::Retry) {
            // That a table cannot be compared says nothing against its stream.
            let found = Verified { problem: Some(first), ..Verified::default() };
            self.verified(*table, found, actor.clone(), now);
            return Aftermath::Fine;
        }
        let tables = self.failing_tables(&task, problems);
        if let Task::Copy { table, .. } = &task
            && COPY_IS_VOID.contains(&first.code.as_str())
        {
            self.set_aside(*table, first, actor.clone(), now);
            return Aftermath::Fine;
        }
        if first.recovery == Recovery::Retry {
            // The snapshot may have been the round's last.
            self.conclude(actor, now);
            return Aftermath::TryAgain(task, first);
        }
        if tables.is_empty() {
            for problem in problems.iter().skip(1) {
                self.note_problem(problem.clone(), actor.clone(), now);
            }
            self.break_down(first, actor.clone(), now);
        }
        for (id, problem) in tables {
            self.set_aside(id, problem, actor.clone(), now);
        }
        Aftermath::Fine
    }

    /// The tables that can be left out, so that the task may do without them; none where the whole pipe is concerned.
    fn failing_tables(&self, task: &Task, problems: &[Problem]) -> Vec<(TableId, Problem)> {
        let lasting = problems.iter().filter(|problem| problem.recovery != Recovery::Retry);
        let lasting: Vec<&Problem> = lasting.collect();
        if lasting.iter().any(|problem| problem.table.is_none()) {
            return Vec::new();
        }
        let of_source = |problem: &&&Problem, table: &crate::record::TableRecord| {
            problem.table.as_ref() == Some(table.source())
        };
        let concerned = |table: &&crate::record::TableRecord| match task {
            Task::Copy { table: copied, .. } => table.id == *copied,
            Task::Stream => table.round.is_none() || table.state.is_copied(),
            // The first round of a pipe is refused as a whole: nothing of it is of use yet.
            Task::Provision { round } | Task::SetUp { round } => {
                let first = self.round(*round).is_some_and(|round| round.purpose == Purpose::Initial);
                table.round == Some(*round) && !first
            }
            Task::Snapshot { round } | Task::Swap { round } => table.round == Some(*round),
            Task::Verify { .. } | Task::Publish | Task::Clean | Task::Release | Task::Teardown => false,
        };
        self.active()
            .filter(concerned)
            .filter_map(|table| {
                let problem = lasting.iter().find(|problem| of_source(problem, table))?;
                Some((table.id, (*problem).clone()))
            })
            .collect()
    }

    /// The stream knows the table by another definition.
    fn redefine(&mut self, id: TableId, definition: &TableDefinition, actor: &Actor, now: Timestamp) {
        let Some(table) = self.table_mut(id) else { return };
        let known = table.record.definition.replace(definition.clone());
        if known.is_none_or(|known| known.columns != definition.columns) {
            let columns: Vec<&str> = definition.columns.iter().map(|column| column.name.as_str()).collect();
            let message = format!("{} has the columns {} from now on", definition.name, columns.join(", "));
            self.note(message, actor.clone(), now);
        }
    }
}
