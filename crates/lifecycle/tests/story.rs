//! Pipes living through whole stories: reports and commands go in, the history and the wanted work come out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;

use millrace_lifecycle::aggregate::Order;
use millrace_lifecycle::report::Aftermath;
use millrace_lifecycle::{Actor, Command, PipeAggregate, PipeState, Refusal, TableState, Task};
use millrace_model::spec::{
    ClickHouseDestination, PipeSettings, PostgresSource, ReplicationMode, TableSpec, TlsMode,
};
use millrace_model::work::{DestinationFacts, Outcome, Progress, Report, StreamProgress, TableSize};
use millrace_model::{
    Epoch, Lsn, PipeId, PipeSpec, Problem, ReplicaIdentity, Secret, TableDefinition, TableName, Timestamp,
    WorkerId,
};

fn spec(mode: ReplicationMode, tables: &[&str]) -> PipeSpec {
    PipeSpec {
        name: "shop".parse().unwrap(),
        mode,
        source: PostgresSource {
            host: "localhost".into(),
            port: 5432,
            database: "shop".into(),
            username: "millrace".into(),
            password: Secret::new("local"),
            tls_mode: TlsMode::Disable,
            tls_ca: None,
        },
        destination: ClickHouseDestination {
            url: "http://localhost:8123".into(),
            database: "shop".into(),
            username: "default".into(),
            password: Secret::default(),
        },
        tables: tables.iter().map(|name| TableSpec::new(TableName::new("public", *name), *name)).collect(),
        settings: PipeSettings { snapshot_rows_per_partition: 1000, ..PipeSettings::default() },
    }
}

fn definition(name: &TableName) -> TableDefinition {
    TableDefinition {
        name: name.clone(),
        oid: 1,
        file_node: 1,
        columns: vec![],
        key: vec!["id".into()],
        replica_identity: ReplicaIdentity::Default,
        pages: 384,
        estimated_rows: 3000,
        bytes: 0,
        retired: Vec::new(),
        distrusted_until: millrace_model::Lsn::ZERO,
        holds_from: millrace_model::Lsn::ZERO,
    }
}

/// A pipe with somebody who does whatever it calls for.
struct Story {
    pipe: PipeAggregate,
    epoch: Epoch,
    worker: WorkerId,
    clock: Timestamp,
    history: Vec<String>,
}

impl Story {
    fn new(mode: ReplicationMode, tables: &[&str]) -> Self {
        let pipe = PipeAggregate::create(PipeId::from_random(7), spec(mode, tables), Timestamp(0));
        let worker = "w1".parse().unwrap();
        Self { pipe, epoch: Epoch(0), worker, clock: Timestamp(0), history: vec![] }
    }

    fn tick(&mut self) -> Timestamp {
        self.clock.0 += 1_000_000;
        self.clock
    }

    /// Gives out everything that is wanted and not in hand.
    fn place(&mut self) {
        for task in self.pipe.wanted() {
            if !self.pipe.assignments().any(|held| held.task == task) {
                self.epoch = self.epoch.next();
                let now = self.tick();
                self.pipe.assign(self.epoch, task, self.worker.clone(), BTreeMap::new(), now).unwrap();
            }
        }
    }

    fn epoch_of(&self, wanted: &Task) -> Epoch {
        self.pipe.assignments().find(|held| &held.task == wanted).map(|held| held.epoch).unwrap()
    }

    fn report(&mut self, task: &Task, report: Report) -> Aftermath {
        let (epoch, now) = (self.epoch_of(task), self.tick());
        let aftermath = self.pipe.report(&self.worker.clone(), epoch, report, now).unwrap();
        self.collect();
        aftermath
    }

    fn finish(&mut self, task: &Task, outcome: Outcome) {
        self.place();
        self.report(task, Report::Finished(outcome));
    }

    fn collect(&mut self) {
        if let Some(changes) = self.pipe.take_changes() {
            self.history
                .extend(changes.events.iter().map(|event| format!("{}: {}", event.actor, event.message)));
        }
    }

    fn provision(&mut self) {
        let tables = self.pipe.tables().map(|(table, _, _)| definition(&table.source)).collect();
        self.finish(
            &Task::Provision,
            Outcome::Provisioned {
                system_identifier: 42,
                server_version: 170_010,
                tables,
                warnings: vec![],
                destination: DestinationFacts { time64: true },
            },
        );
        self.finish(&Task::SetUp, Outcome::SetUp);
    }

    fn open_snapshot(&mut self, name: &str) {
        self.place();
        let sizes = self.pipe.tables().map(|(table, _, _)| TableSize {
            table: table.source.clone(),
            pages: 384,
            estimated_rows: 3000,
            file_node: 2,
        });
        let sizes = sizes.collect();
        let ready = Progress::SnapshotReady { snapshot_name: name.into(), consistent_point: Lsn(100), sizes };
        self.report(&Task::Snapshot, Report::Progress(ready));
        self.place();
    }

    fn copies(&self) -> Vec<Task> {
        self.pipe.wanted().into_iter().filter(|task| matches!(task, Task::Copy { .. })).collect()
    }

    fn copy_everything(&mut self) {
        while let Some(task) = self.copies().into_iter().next() {
            self.finish(&task, Outcome::Copied { rows: 1000, bytes: 10 });
        }
    }

    fn running(mode: ReplicationMode, tables: &[&str]) -> Self {
        let mut story = Self::new(mode, tables);
        story.provision();
        story.open_snapshot("s-1");
        story.copy_everything();
        story.place();
        story
    }
}

fn copy_of(name: &str, partition: u32) -> Task {
    Task::Copy { table: TableName::new("public", name), partition }
}

#[test]
fn a_pipe_goes_from_nothing_to_running_pauses_and_resumes() {
    let mut story = Story::running(ReplicationMode::Cdc, &["orders", "items"]);
    let caught_up = StreamProgress { durable: Lsn(200), caught_up: true, ..StreamProgress::default() };
    story.report(&Task::Stream, Report::Progress(Progress::Stream(caught_up)));
    let now = story.tick();
    story.pipe.command(Command::Pause, now).unwrap();
    assert!(matches!(story.pipe.take_orders().last(), Some((_, Order::Drain(_)))));
    story.finish(&Task::Stream, Outcome::Drained { durable: Lsn(300) });
    assert_eq!(story.pipe.wanted(), []);
    let now = story.tick();
    story.pipe.command(Command::Resume, now).unwrap();
    story.collect();
    assert_eq!(story.pipe.wanted(), [Task::Stream]);
    insta::assert_snapshot!(story.history.join("\n"));
}

#[test]
fn a_snapshot_only_pipe_completes() {
    let story = Story::running(ReplicationMode::Snapshot, &["orders"]);
    assert_eq!(story.pipe.pipe().state, PipeState::Completed);
    assert_eq!(story.pipe.wanted(), []);
    assert!(story.pipe.tables().all(|(table, _, _)| table.state == TableState::Completed));
}

#[test]
fn finished_partitions_are_not_copied_again_when_the_snapshot_is_lost() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders"]);
    story.provision();
    story.open_snapshot("s-1");
    assert_eq!(story.copies().len(), 3);
    story.finish(&copy_of("orders", 0), Outcome::Copied { rows: 1000, bytes: 10 });
    let (epoch, now) = (story.epoch_of(&Task::Snapshot), story.tick());
    story.pipe.withdraw(epoch, now);
    assert_eq!(story.copies(), [copy_of("orders", 1), copy_of("orders", 2)], "those in hand may finish");
    let lost = Problem::transient("SNAPSHOT_LOST", "the snapshot is gone", "");
    assert!(matches!(
        story.report(&copy_of("orders", 1), Report::Failed(vec![lost])),
        Aftermath::TryAgain(Task::Copy { .. }, _)
    ));
    assert_eq!(story.copies(), [copy_of("orders", 2)], "nothing new begins without a snapshot");
    story.open_snapshot("s-2");
    assert_eq!(story.copies(), [copy_of("orders", 1), copy_of("orders", 2)]);
    story.copy_everything();
    assert_eq!(story.pipe.pipe().state, PipeState::Running);
}

#[test]
fn a_snapshot_only_pipe_begins_its_copy_anew_when_the_snapshot_is_lost() {
    let mut story = Story::new(ReplicationMode::Snapshot, &["orders"]);
    story.provision();
    story.open_snapshot("s-1");
    story.finish(&copy_of("orders", 0), Outcome::Copied { rows: 1000, bytes: 10 });
    let (epoch, now) = (story.epoch_of(&Task::Snapshot), story.tick());
    story.pipe.withdraw(epoch, now);
    assert_eq!(story.pipe.wanted(), [Task::SetUp], "destination tables are emptied first");
    story.finish(&Task::SetUp, Outcome::SetUp);
    story.open_snapshot("s-2");
    assert_eq!(story.copies().len(), 3);
}

#[test]
fn a_report_of_a_withdrawn_assignment_changes_nothing() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders"]);
    story.provision();
    story.open_snapshot("s-1");
    let (old, now) = (story.epoch_of(&copy_of("orders", 0)), story.tick());
    story.pipe.withdraw(old, now);
    story.place();
    let before = story.pipe.clone().take_changes();
    let late = Report::Finished(Outcome::Copied { rows: 1, bytes: 1 });
    assert!(story.pipe.report(&story.worker.clone(), old, late.clone(), now).is_err());
    let (current, stranger) = (story.epoch_of(&copy_of("orders", 0)), "w2".parse().unwrap());
    assert!(story.pipe.report(&stranger, current, late, now).is_err(), "another worker's report");
    let foreign = Report::Finished(Outcome::SetUp);
    assert!(
        story.pipe.report(&story.worker.clone(), current, foreign, now).is_err(),
        "a report of another kind"
    );
    assert_eq!(story.pipe.clone().take_changes(), before);
}

#[test]
fn a_table_that_breaks_is_set_aside_and_the_others_go_on() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders", "items"]);
    story.provision();
    story.open_snapshot("s-1");
    let orders = TableName::new("public", "orders");
    let broken = Problem::operator("VALUE_REFUSED", "a value", "exclude it").of_table(&orders);
    story.report(&copy_of("orders", 1), Report::Failed(vec![broken]));
    story.copy_everything();
    assert_eq!(story.pipe.pipe().state, PipeState::Running);
    let states: Vec<TableState> = story.pipe.tables().map(|(table, _, _)| table.state).collect();
    assert_eq!(states, [TableState::SetAside, TableState::CatchingUp]);
}

#[test]
fn what_cannot_heal_fails_the_pipe_and_resume_goes_back_to_where_it_was() {
    let mut story = Story::running(ReplicationMode::Cdc, &["orders"]);
    story.report(
        &Task::Stream,
        Report::Failed(vec![Problem::permanent("SLOT_LOST", "the slot is lost", "resync")]),
    );
    assert_eq!(story.pipe.pipe().state, PipeState::Failed);
    assert_eq!(story.pipe.pipe().failure.as_ref().unwrap().code, "SLOT_LOST");
    assert_eq!(story.pipe.wanted(), []);
    let now = story.tick();
    assert!(matches!(story.pipe.command(Command::Pause, now), Err(Refusal::State { .. })));
    story.pipe.command(Command::Resume, now).unwrap();
    assert_eq!(story.pipe.pipe().state, PipeState::Running);
    assert_eq!(story.pipe.pipe().failure, None);
}

#[test]
fn what_heals_by_itself_never_fails_the_pipe() {
    let mut story = Story::running(ReplicationMode::Cdc, &["orders"]);
    let refused = Problem::transient("SOURCE_UNREACHABLE", "connection refused", "");
    let aftermath = story.report(&Task::Stream, Report::Failed(vec![refused.clone()]));
    assert_eq!(aftermath, Aftermath::TryAgain(Task::Stream, refused));
    assert_eq!(story.pipe.pipe().state, PipeState::Running);
    assert_eq!(story.pipe.wanted(), [Task::Stream]);
}

#[test]
fn a_pause_whose_stream_is_gone_with_its_worker_still_sees_to_the_slot() {
    let mut story = Story::running(ReplicationMode::Cdc, &["orders"]);
    let now = story.tick();
    story.pipe.command(Command::Pause, now).unwrap();
    let epoch = story.epoch_of(&Task::Stream);
    story.pipe.withdraw(epoch, now);
    assert_eq!(story.pipe.wanted(), [Task::Release]);
    story.finish(&Task::Release, Outcome::Released);
    assert_eq!(story.pipe.pipe().state, PipeState::Paused);
}

#[test]
fn delete_wins_over_whatever_runs() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders"]);
    story.provision();
    story.open_snapshot("s-1");
    story.pipe.take_orders();
    let now = story.tick();
    story.pipe.command(Command::Delete, now).unwrap();
    assert_eq!(story.pipe.assignments().count(), 0);
    let revoked =
        story.pipe.take_orders().iter().filter(|(_, order)| matches!(order, Order::Revoke(_))).count();
    assert_eq!(revoked, 4, "the snapshot and three copies");
    assert_eq!(story.pipe.wanted(), [Task::Teardown]);
    story.pipe.note("before", Actor::Coordinator, now);
    story.finish(&Task::Teardown, Outcome::TornDown { left_behind: vec![] });
    assert_eq!(story.history.last().unwrap(), "worker w1: deleted");
}

#[test]
fn settings_limit_copies_at_a_time() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders", "items"]);
    story.provision();
    story.open_snapshot("s-1");
    let in_hand = story.pipe.assignments().filter(|held| matches!(held.task, Task::Copy { .. })).count();
    assert_eq!(in_hand, 3, "one table at a time, all of its partitions");
    assert_eq!(
        story.copies().len(),
        6,
        "the next table begins once the last partitions of the first are in hand"
    );
    let limited = |parallel_tables, per_table, connections| {
        let mut spec = spec(ReplicationMode::Cdc, &["orders", "items"]);
        spec.settings.snapshot_parallel_tables = parallel_tables;
        spec.settings.initial_load_parallelism = per_table;
        spec.settings.max_source_connections = connections;
        let pipe = PipeAggregate::create(PipeId::from_random(7), spec, Timestamp(0));
        let mut story = Story { pipe, ..Story::new(ReplicationMode::Cdc, &[]) };
        story.provision();
        story.open_snapshot("s-1");
        story.copies().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let copies = |table: &str, numbers: &[u32]| {
        numbers.iter().map(|number| format!("copy of public.{table} partition {number}")).collect::<Vec<_>>()
    };
    assert_eq!(limited(2, 2, 8), [copies("orders", &[0, 1]), copies("items", &[0, 1])].concat().join(", "));
    assert_eq!(limited(2, 0, 4), [copies("orders", &[0, 1, 2]), copies("items", &[0])].concat().join(", "));
    assert_eq!(limited(1, 1, 8), copies("orders", &[0]).join(", "));
}

#[test]
fn the_copy_is_bound_to_the_file_that_was_measured() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders"]);
    story.provision();
    story.open_snapshot("s-1");
    let (table, _, _) = story.pipe.tables().next().unwrap();
    assert_eq!(table.definition.as_ref().unwrap().file_node, 2, "not that of the checks before");
}

#[test]
fn a_table_that_went_away_before_it_was_measured_is_set_aside() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders", "items"]);
    story.provision();
    story.place();
    let items = TableName::new("public", "items");
    let sizes = vec![TableSize { table: items, pages: 384, estimated_rows: 3000, file_node: 2 }];
    let ready = Progress::SnapshotReady { snapshot_name: "s-1".into(), consistent_point: Lsn(100), sizes };
    story.report(&Task::Snapshot, Report::Progress(ready));
    let states: Vec<TableState> = story.pipe.tables().map(|(table, _, _)| table.state).collect();
    assert_eq!(states, [TableState::SetAside, TableState::Waiting]);
    story.copy_everything();
    assert_eq!(story.pipe.pipe().state, PipeState::Running);
}
