//! From nothing to Running or Completed, and what can come in between.

use millrace_lifecycle::aggregate::Order;
use millrace_lifecycle::report::Aftermath;
use millrace_lifecycle::{PipeState, TableState, Task};
use millrace_model::spec::ReplicationMode;
use millrace_model::work::{Outcome, Progress, Report, SlotRequest, TableSize, Work};
use millrace_model::{Lsn, Problem};

use crate::harness::{Story, name, spec};

fn copying(mode: ReplicationMode, tables: &[&str]) -> Story {
    let mut story = Story::new(mode, tables);
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    story
}

const SNAPSHOT: Task = Task::Snapshot { round: 0 };

#[test]
fn a_pipe_goes_from_nothing_to_running_pauses_and_resumes() {
    let mut story = Story::running(&["orders", "items"]);
    story.command(|pipe, now| pipe.pause(now));
    assert!(story.pipe.assignments().all(|held| held.task == Task::Stream && held.draining));
    story.settle();
    assert_eq!(story.pipe.wanted(), []);
    story.command(|pipe, now| pipe.resume(now));
    assert_eq!(story.pipe.wanted(), [Task::Stream]);
    insta::assert_snapshot!(story.history.join("\n"));
}

#[test]
fn a_snapshot_only_pipe_completes() {
    let story = Story::settled(ReplicationMode::Snapshot, &["orders"]);
    assert_eq!(story.state(), PipeState::Completed);
    assert_eq!(story.pipe.wanted(), []);
    assert_eq!(story.tables(), "orders completed");
}

#[test]
fn a_snapshot_only_pipe_has_neither_slot_nor_publication() {
    let mut story = Story::new(ReplicationMode::Snapshot, &["orders"]);
    story.until_held(|task| matches!(task, Task::SetUp { .. }));
    let works = |story: &Story| story.works.values().map(|held| held.work.clone()).collect::<Vec<_>>();
    assert!(matches!(&works(&story)[..], [Work::SetUp { publication: None, slot: None, .. }]));
    story.until_held(|task| matches!(task, Task::Snapshot { .. }));
    assert!(matches!(&works(&story)[..], [Work::Snapshot { slot: SlotRequest::None, .. }]));
    story.settle();
    assert_eq!(story.pipe.pipe().slot, None);
}

#[test]
fn a_pipe_that_copies_nothing_runs_as_soon_as_its_slot_stands() {
    let mut story = Story::new(ReplicationMode::CdcOnly, &["orders"]);
    story.until_held(|task| matches!(task, Task::SetUp { .. }));
    let work = &story.works.values().next().unwrap().work;
    assert!(matches!(work, Work::SetUp { slot: Some(SlotRequest::Create { .. }), .. }), "{work:?}");
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming");
    assert_eq!(story.carried(), "orders");
    insta::assert_snapshot!(story.history.join("\n"));
}

#[test]
fn a_slot_and_a_publication_that_the_user_gave_are_used_and_left_alone() {
    let mut spec = spec(ReplicationMode::CdcOnly, &["orders"]);
    spec.settings.replication_slot_name = Some("Odd slot".into());
    spec.settings.publication_name = Some("Odd publication".into());
    let mut story = Story::of(spec);
    story.until_held(|task| matches!(task, Task::SetUp { .. }));
    let work = &story.works.values().next().unwrap().work;
    let Work::SetUp { slot: Some(SlotRequest::Existing { name }), publication: None, .. } = work else {
        panic!("{work:?}")
    };
    assert_eq!(name, "Odd slot");
    story.settle();
    let work = &story.works.values().next().unwrap().work;
    let Work::Stream { slot_name, publication_name, .. } = work else { panic!("{work:?}") };
    assert_eq!((slot_name.as_str(), publication_name.as_str()), ("Odd slot", "Odd publication"));
    story.command(|pipe, now| pipe.delete(false, now));
    story.place();
    let work = &story.works.values().next().unwrap().work;
    assert!(matches!(work, Work::Teardown { slot_name: None, publication_name: None, .. }), "{work:?}");
}

#[test]
fn finished_partitions_are_not_copied_again_when_the_snapshot_is_lost() {
    let mut story = copying(ReplicationMode::Cdc, &["orders"]);
    story.place();
    assert_eq!(story.copies().len(), 3);
    story.perform(&story.copy_of("orders", 0));
    story.lose(&SNAPSHOT);
    let words = |numbers: &[u32]| {
        numbers.iter().map(|number| format!("copy of public.orders partition {number}")).collect::<Vec<_>>()
    };
    assert_eq!(story.copies(), words(&[1, 2]), "those in hand may finish");
    let lost = Problem::transient("SNAPSHOT_LOST", "the snapshot is gone", "");
    let aftermath = story.report(&story.copy_of("orders", 1), Report::Failed(vec![lost]));
    assert!(matches!(aftermath, Aftermath::TryAgain(Task::Copy { .. }, _)));
    assert_eq!(story.copies(), words(&[2]), "nothing new begins without a snapshot");
    story.perform(&SNAPSHOT);
    let mut copies = story.copies();
    copies.sort();
    assert_eq!(copies, words(&[1, 2]));
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
}

#[test]
fn a_snapshot_only_pipe_begins_its_copy_anew_when_the_snapshot_is_lost() {
    let mut story = copying(ReplicationMode::Snapshot, &["orders"]);
    story.place();
    story.perform(&story.copy_of("orders", 0));
    story.lose(&SNAPSHOT);
    assert_eq!(story.pipe.wanted(), [Task::SetUp { round: 0 }], "destination tables are emptied first");
    story.place();
    let work = &story.works.values().next().unwrap().work;
    assert!(matches!(work, Work::SetUp { clear: true, .. }), "{work:?}");
    story.perform(&Task::SetUp { round: 0 });
    story.perform(&SNAPSHOT);
    assert_eq!(story.copies().len(), 3);
    story.settle();
    assert_eq!(story.state(), PipeState::Completed);
}

#[test]
fn a_report_of_a_withdrawn_assignment_changes_nothing() {
    let mut story = copying(ReplicationMode::Cdc, &["orders"]);
    story.place();
    let copy = story.copy_of("orders", 0);
    let (old, now) = (story.epoch_of(&copy), story.now());
    story.lose(&copy);
    story.place();
    let worker = "w1".parse().unwrap();
    let late = Report::Finished(Outcome::Copied { rows: 1, bytes: 1 });
    assert!(story.pipe.report(&worker, old, late.clone(), now).is_err());
    let (current, stranger) = (story.epoch_of(&copy), "w2".parse().unwrap());
    assert!(story.pipe.report(&stranger, current, late, now).is_err(), "another worker's report");
    let foreign = [
        Report::Finished(Outcome::Cleaned { tables: Vec::new() }),
        Report::Progress(Progress::Stream(Default::default())),
        Report::TableSwapped(millrace_model::TableId(0)),
        Report::TableSetAside(millrace_model::TableId(0), Problem::operator("A", "a", "")),
    ];
    for report in foreign {
        assert!(story.pipe.report(&worker, current, report, now).is_err(), "a report of another kind");
    }
    assert_eq!(story.pipe.take_changes(), None);
    assert_eq!(story.pipe.take_orders(), []);
}

#[test]
fn settings_limit_copies_at_a_time() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders", "items"]);
    story.until_held(|task| matches!(task, Task::Snapshot { .. }));
    story.perform(&SNAPSHOT);
    assert_eq!(story.copies().len(), 3, "one table at a time, all of its partitions");
    story.place();
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
        let mut story = Story::of(spec);
        story.until_held(|task| matches!(task, Task::Snapshot { .. }));
        story.perform(&SNAPSHOT);
        story.copies().join(", ")
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
    let story = copying(ReplicationMode::Cdc, &["orders"]);
    let table = &story.newest("orders").record;
    assert_eq!(table.definition.as_ref().unwrap().file_node, 2, "not that of the checks before");
}

#[test]
fn a_table_that_went_away_before_it_was_measured_is_set_aside() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders", "items"]);
    let snapshot = story.until_held(|task| matches!(task, Task::Snapshot { .. }));
    let sizes = vec![TableSize { table: name("items"), pages: 384, estimated_rows: 3000, file_node: 2 }];
    let ready = Progress::SnapshotReady { snapshot_name: "s-1".into(), consistent_point: Lsn(200), sizes };
    story.report(&snapshot, Report::Progress(ready));
    assert_eq!(story.tables(), "orders set aside, items waiting");
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders set aside, items streaming");
}

#[test]
fn delete_wins_over_whatever_runs() {
    let mut story = copying(ReplicationMode::Cdc, &["orders"]);
    story.place();
    let now = story.now();
    story.pipe.delete(false, now).unwrap();
    assert_eq!(story.pipe.assignments().count(), 0);
    let orders = story.pipe.take_orders();
    let revoked = orders.iter().filter(|(_, order)| matches!(order, Order::Revoke(_))).count();
    assert_eq!(revoked, 4, "the snapshot and three copies");
    story.works.clear();
    story.step();
    assert_eq!(story.pipe.wanted(), [Task::Teardown]);
    story.pipe.note("before", millrace_lifecycle::Actor::Coordinator, now);
    story.perform(&Task::Teardown);
    assert_eq!(story.history.last().unwrap(), "worker w1: deleted");
}

#[test]
fn the_first_tables_are_never_carried_before_they_are_copied() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders"]);
    story.until(|story| {
        let held = story.held(|task| *task == Task::Stream).is_some();
        assert!(!held || story.newest("orders").record.state >= TableState::CatchingUp, "{}", story.tables());
        false
    });
}
