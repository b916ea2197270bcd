//! A pipe, a coordinator that keeps what it stores, and a worker that does what it is asked.
//!
//! After every step the stored records are compared with those in memory: a change that was not marked for storing is found by whatever test makes it. With
//! `restarts` the coordinator is also begun anew from them after every step.

use std::collections::BTreeMap;

use millrace_lifecycle::aggregate::{Order, PipeTable};
use millrace_lifecycle::report::Aftermath;
use millrace_lifecycle::{EventKind, PipeAggregate, PipeRecord, PipeState, Refusal, TableState, Task};
use millrace_model::spec::{ReplicationMode, TableEngine, TableSpec};
use millrace_model::work::{
    Assignment, DestinationFacts, Outcome, Progress, Report, StreamProgress, TableSize, Verified, Work,
};
use millrace_model::{Epoch, Lsn, PipeId, PipeSpec, Problem, TableName, Timestamp, WorkerId};

use crate::fixtures::{Store, definition};

pub(crate) fn name(table: &str) -> TableName {
    TableName::new("public", table)
}

pub(crate) fn spec(mode: ReplicationMode, tables: &[&str]) -> PipeSpec {
    crate::fixtures::spec(mode, tables.iter().map(|table| TableSpec::new(name(table), *table)).collect())
}

/// A pipe with somebody who does whatever it calls for.
pub(crate) struct Story {
    pub(crate) pipe: PipeAggregate,
    /// Who brought what about.
    pub(crate) history: Vec<String>,
    /// What the worker holds.
    pub(crate) works: BTreeMap<Epoch, Assignment>,
    /// Begins the coordinator anew after every step.
    pub(crate) restarts: bool,
    store: Store,
    worker: WorkerId,
    epoch: Epoch,
    clock: Timestamp,
    /// The end of the source's log.
    lsn: Lsn,
    /// What the stream said last.
    said: Option<(Epoch, StreamProgress)>,
}

impl Story {
    pub(crate) fn new(mode: ReplicationMode, tables: &[&str]) -> Self {
        Self::of(spec(mode, tables))
    }

    pub(crate) fn of(spec: PipeSpec) -> Self {
        let mut story = Self {
            pipe: PipeAggregate::create(PipeId::from_random(7), spec, Timestamp(0)),
            history: Vec::new(),
            works: BTreeMap::new(),
            restarts: false,
            store: Store::default(),
            worker: "w1".parse().unwrap(),
            epoch: Epoch(0),
            clock: Timestamp(0),
            lsn: Lsn(100),
            said: None,
        };
        story.step();
        story
    }

    pub(crate) fn restarting(mut self) -> Self {
        self.restarts = true;
        self.step();
        self
    }

    /// A pipe that has come as far as it goes by itself.
    pub(crate) fn settled(mode: ReplicationMode, tables: &[&str]) -> Self {
        let mut story = Self::new(mode, tables);
        story.settle();
        story
    }

    pub(crate) fn running(tables: &[&str]) -> Self {
        let story = Self::settled(ReplicationMode::Cdc, tables);
        assert_eq!(story.state(), PipeState::Running);
        assert!(story.pipe.tables().all(|table| table.record.state == TableState::Streaming));
        story
    }

    pub(crate) fn state(&self) -> PipeState {
        self.pipe.pipe().state
    }

    pub(crate) fn now(&mut self) -> Timestamp {
        self.clock.0 += 1_000_000;
        self.clock
    }

    /// Stores what changed and delivers what must be told.
    pub(crate) fn step(&mut self) {
        if let Some(changes) = self.pipe.take_changes() {
            self.history.extend(changes.events.iter().map(|event| {
                let message = &event.message;
                match &event.kind {
                    EventKind::State { to, .. } => format!("{}: {message} -> {to}", event.actor),
                    EventKind::Table { table, .. } => format!("{}: {table} {message}", event.actor),
                    EventKind::Command | EventKind::Problem(_) | EventKind::Note => {
                        format!("{}: {message}", event.actor)
                    }
                }
            }));
            self.store.commit(changes, self.epoch);
        }
        for (worker, order) in self.pipe.take_orders() {
            assert_eq!(worker, self.worker);
            match order {
                Order::Assign(assignment) => {
                    assert!(self.works.insert(assignment.epoch, *assignment).is_none());
                }
                Order::Amend(assignment) => {
                    let before = self.works.insert(assignment.epoch, *assignment);
                    assert!(before.is_some(), "an amendment of what nobody holds");
                }
                Order::Revoke(epoch) => drop(self.works.remove(&epoch)),
                Order::Drain(_) | Order::Recorded(..) => {}
            }
        }
        if self.pipe.is_removed() {
            return;
        }
        self.compare();
        if self.restarts {
            self.pipe = self.store.restore();
            // The worker comes back and says what it said last.
            if let Some((epoch, said)) = self.said.clone()
                && self.pipe.assignment(epoch).is_some()
            {
                let now = self.clock;
                let again = Report::Progress(Progress::Stream(said));
                self.pipe.report(&self.worker.clone(), epoch, again, now).unwrap();
                self.restarts = false;
                self.step();
                self.restarts = true;
            }
        }
    }

    /// What is stored is what is in memory, save the durable position, which is stored now and then.
    fn compare(&self) {
        let stored = self.store.restore();
        let durable = self.pipe.pipe().durable;
        let pipe = PipeRecord { durable, ..stored.pipe().clone() };
        assert_eq!(&pipe, self.pipe.pipe(), "a change of the pipe was not stored");
        let parts = |pipe: &PipeAggregate| {
            let tables: Vec<_> =
                pipe.tables().map(|table| (table.record.clone(), table.partitions.clone())).collect();
            (tables, pipe.assignments().cloned().collect::<Vec<_>>())
        };
        assert_eq!(parts(&stored), parts(&self.pipe), "a change of a table or assignment was not stored");
        let held: Vec<Epoch> = self.works.keys().copied().collect();
        let standing: Vec<Epoch> = self.pipe.assignments().map(|held| held.epoch).collect();
        assert_eq!(held, standing, "what the worker holds is not what stands");
    }

    /// Gives out everything that is wanted and not in hand, and takes back what is no longer wanted.
    pub(crate) fn place(&mut self) {
        loop {
            let wanted = self.pipe.wanted();
            let held: Vec<(Epoch, Task)> =
                self.pipe.assignments().map(|held| (held.epoch, held.task.clone())).collect();
            if let Some((epoch, _)) = held.iter().find(|(_, task)| !wanted.contains(task)) {
                let now = self.now();
                self.pipe.withdraw(*epoch, now);
            } else if let Some(task) =
                wanted.into_iter().find(|task| held.iter().all(|(_, held)| held != task))
            {
                self.epoch = self.epoch.next();
                let now = self.now();
                let (worker, trace) = (self.worker.clone(), BTreeMap::new());
                self.pipe.assign(self.epoch, task.clone(), worker, trace, now).unwrap_or_else(|| {
                    panic!("{task} is wanted and cannot be given");
                });
            } else {
                return;
            }
            self.step();
        }
    }

    pub(crate) fn epoch_of(&self, wanted: &Task) -> Epoch {
        let found = self.pipe.assignments().find(|held| &held.task == wanted);
        found.unwrap_or_else(|| panic!("nobody holds {wanted:?}")).epoch
    }

    /// Takes an assignment back, as where its worker is gone.
    pub(crate) fn lose(&mut self, task: &Task) {
        let (epoch, now) = (self.epoch_of(task), self.now());
        self.pipe.withdraw(epoch, now);
        self.step();
    }

    pub(crate) fn report(&mut self, task: &Task, report: Report) -> Aftermath {
        let (epoch, now) = (self.epoch_of(task), self.now());
        if matches!(report, Report::Finished(_) | Report::Failed(_)) {
            self.works.remove(&epoch);
        }
        let aftermath = self.pipe.report(&self.worker.clone(), epoch, report, now).unwrap();
        self.step();
        aftermath
    }

    pub(crate) fn fail(&mut self, task: &Task, problem: Problem) -> Aftermath {
        self.place();
        self.report(task, Report::Failed(vec![problem]))
    }

    pub(crate) fn finish(&mut self, task: &Task, outcome: Outcome) {
        self.place();
        self.report(task, Report::Finished(outcome));
    }

    /// The source goes on.
    pub(crate) fn changes_come(&mut self) -> Lsn {
        self.lsn.0 += 100;
        self.lsn
    }

    /// Does a task as it should be done.
    pub(crate) fn perform(&mut self, task: &Task) {
        self.place();
        let assignment = self.works[&self.epoch_of(task)].clone();
        match assignment.work {
            Work::Provision { .. } => {
                let tables = assignment.spec.tables.iter().map(|table| definition(&table.source)).collect();
                let outcome = Outcome::Provisioned {
                    system_identifier: 42,
                    server_version: 170_010,
                    tables,
                    warnings: vec![],
                    destination: DestinationFacts { time64: true },
                };
                self.finish(task, outcome);
            }
            Work::SetUp { tables, slot, .. } => {
                let tables = tables.iter().map(|table| (table.id, format!("uuid-{}", table.id))).collect();
                let begins = if slot.is_some() { self.lsn } else { Lsn::ZERO };
                self.finish(task, Outcome::SetUp { tables, begins });
            }
            Work::Snapshot { tables, .. } => {
                let sizes = tables.iter().map(|table| TableSize {
                    table: table.name.clone(),
                    pages: 384,
                    estimated_rows: 3000,
                    file_node: 2,
                });
                let (sizes, consistent_point) = (sizes.collect(), self.changes_come());
                let snapshot_name = format!("s-{consistent_point}");
                let ready = Progress::SnapshotReady { snapshot_name, consistent_point, sizes };
                self.report(task, Report::Progress(ready));
            }
            Work::Copy { .. } => self.finish(task, Outcome::Copied { rows: 1000, bytes: 10 }),
            Work::Verify { .. } => {
                let found = Verified { source_rows: 3000, destination_rows: 3000, ..Verified::default() };
                self.finish(task, Outcome::Verified(found));
            }
            Work::Stream { .. } => {
                let draining = self.pipe.assignments().any(|held| &held.task == task && held.draining);
                if draining {
                    self.said = None;
                    let durable = self.changes_come();
                    self.finish(task, Outcome::Drained { durable });
                } else {
                    self.follow();
                }
            }
            Work::Swap { swaps } => {
                self.finish(task, Outcome::Swapped { tables: swaps.iter().map(|swap| swap.id).collect() });
            }
            Work::Clean { tables } => self.finish(task, Outcome::Cleaned { tables }),
            Work::Release { .. } => self.finish(task, Outcome::Released),
            Work::Teardown { .. } => self.finish(task, Outcome::TornDown { left_behind: vec![] }),
        }
    }

    /// The stream does what it was told last, and has carried everything.
    pub(crate) fn follow(&mut self) {
        let epoch = self.epoch_of(&Task::Stream);
        let Work::Stream { swaps, revision, .. } = self.works[&epoch].work.clone() else {
            panic!("the stream's work")
        };
        for swap in swaps {
            self.report(&Task::Stream, Report::TableSwapped(swap.id));
        }
        let durable = self.changes_come();
        self.stream_says(StreamProgress { durable, caught_up: true, revision, ..StreamProgress::default() });
    }

    pub(crate) fn stream_says(&mut self, progress: StreamProgress) {
        self.said = Some((self.epoch_of(&Task::Stream), progress.clone()));
        self.report(&Task::Stream, Report::Progress(Progress::Stream(progress)));
    }

    /// What a worker could get on with now: no snapshot that it holds, no stream that has nothing to hear.
    pub(crate) fn open(&self) -> Option<Task> {
        let tasks = self.pipe.assignments().filter(|held| match &held.task {
            Task::Snapshot { round } => {
                let rounds = &self.pipe.pipe().rounds;
                rounds.iter().any(|open| open.number == *round && open.snapshot.is_none())
            }
            Task::Stream => {
                let work = &self.works[&held.epoch].work;
                let Work::Stream { revision, swaps, .. } = work else { panic!("the stream's work") };
                let said = self.said.as_ref();
                let said = said.filter(|(epoch, _)| *epoch == held.epoch).map(|(_, said)| said);
                let behind = self.pipe.tables().any(|table| table.record.state == TableState::CatchingUp);
                held.draining
                    || behind
                    || !swaps.is_empty()
                    || said.is_none_or(|said| said.revision != *revision)
            }
            _ => true,
        });
        tasks.map(|held| held.task.clone()).next()
    }

    /// Does one task; false where there is none.
    pub(crate) fn get_on(&mut self) -> bool {
        self.place();
        let Some(task) = self.open() else { return false };
        self.perform(&task);
        true
    }

    /// Goes on for as long as there is something to do.
    pub(crate) fn settle(&mut self) {
        self.until(|_| false);
    }

    /// Goes on until something is so, or there is nothing more to do.
    pub(crate) fn until(&mut self, mut reached: impl FnMut(&Self) -> bool) {
        for _ in 0..1000 {
            self.place();
            if reached(self) {
                return;
            }
            if !self.get_on() {
                return;
            }
        }
        panic!(
            "it never comes to rest:\n{}",
            self.history[self.history.len().saturating_sub(40)..].join("\n")
        );
    }

    pub(crate) fn until_held(&mut self, picks: impl Fn(&Task) -> bool) -> Task {
        self.until(|story| story.held(&picks).is_some());
        self.held(&picks).unwrap_or_else(|| panic!("it never comes to that:\n{}", self.history.join("\n")))
    }

    pub(crate) fn held(&self, picks: impl Fn(&Task) -> bool) -> Option<Task> {
        self.pipe.assignments().map(|held| held.task.clone()).find(|task| picks(task))
    }

    /// Carries out a command.
    pub(crate) fn command<T>(
        &mut self,
        command: impl FnOnce(&mut PipeAggregate, Timestamp) -> Result<T, Refusal>,
    ) -> T {
        let now = self.now();
        let done = command(&mut self.pipe, now).unwrap();
        self.step();
        done
    }

    /// Is refused, and nothing changes.
    pub(crate) fn refused<T>(
        &mut self,
        command: impl FnOnce(&mut PipeAggregate, Timestamp) -> Result<T, Refusal>,
    ) -> String {
        let now = self.now();
        let Err(refusal) = command(&mut self.pipe, now) else { panic!("it was not refused") };
        assert_eq!(self.pipe.take_changes(), None, "a refused command changes nothing");
        format!("{refusal}; {}", refusal.remedy())
    }

    pub(crate) fn edit(&mut self, edit: impl FnOnce(&mut PipeSpec)) -> String {
        let mut spec = self.pipe.pipe().spec.clone();
        edit(&mut spec);
        self.command(|pipe, now| pipe.edit(spec, false, now)).to_string()
    }

    pub(crate) fn add(&mut self, table: &str) {
        self.add_with(table, TableEngine::ReplacingMergeTree);
    }

    pub(crate) fn add_with(&mut self, table: &str, engine: TableEngine) {
        self.edit(|spec| spec.tables.push(TableSpec { engine, ..TableSpec::new(name(table), table) }));
    }

    pub(crate) fn take_out(&mut self, table: &str) {
        self.edit(|spec| spec.tables.retain(|kept| kept.source.name != table));
    }

    /// The copies that are called for, in words.
    pub(crate) fn copies(&self) -> Vec<String> {
        let copies = self.pipe.wanted().into_iter().filter(|task| matches!(task, Task::Copy { .. }));
        copies.map(|task| task.to_string()).collect()
    }

    pub(crate) fn copy_of(&self, table: &str, partition: u32) -> Task {
        let table = self.newest(table);
        Task::Copy { table: table.record.id, source: table.record.source().clone(), partition }
    }

    /// The newest copy of a source table.
    pub(crate) fn newest(&self, table: &str) -> &PipeTable {
        self.pipe.tables().filter(|found| found.record.source().name == table).last().unwrap()
    }

    /// Tables in a few words: `orders streaming`, `orders copying as orders_resync_..`.
    pub(crate) fn tables(&self) -> String {
        let tables = self.pipe.tables().map(|table| {
            let record = &table.record;
            let anew = if record.replaces.is_some() { " anew" } else { "" };
            format!("{} {}{anew}", record.source().name, record.state)
        });
        tables.collect::<Vec<_>>().join(", ")
    }

    /// Tables that the stream was told to carry, as far as it knows.
    pub(crate) fn carried(&self) -> String {
        let Some(Work::Stream { tables, .. }) = self
            .held(|task| *task == Task::Stream)
            .map(|task| self.works[&self.epoch_of(&task)].work.clone())
        else {
            return "no stream".to_owned();
        };
        let tables = tables.iter().map(|streamed| {
            format!("{}{}", streamed.table.spec.target, if streamed.copying { " (copying)" } else { "" })
        });
        tables.collect::<Vec<_>>().join(", ")
    }

    /// The states that the pipe went through, for those who watch.
    pub(crate) fn since(&self, mark: usize) -> String {
        self.history[mark..].join("\n")
    }

    pub(crate) fn mark(&self) -> usize {
        self.history.len()
    }
}
