//! Tables that come to a pipe that works already.

use millrace_lifecycle::{PipeState, TableState, Task};
use millrace_model::spec::{ReplicationMode, TableEngine};
use millrace_model::work::{Outcome, SlotRequest, StreamProgress, Work};
use millrace_model::{Lsn, Problem};

use crate::harness::{Story, name};

fn is_snapshot(task: &Task) -> bool {
    matches!(task, Task::Snapshot { .. })
}

#[test]
fn a_table_is_added_while_the_pipe_runs() {
    let mut story = Story::running(&["orders"]);
    let mark = story.mark();
    story.add("items");
    assert_eq!(story.state(), PipeState::Snapshot);
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming, items streaming");
    assert_eq!(story.carried(), "orders, items");
    insta::assert_snapshot!(story.since(mark));
}

#[test]
fn the_snapshot_of_an_added_table_waits_until_the_stream_carries_it() {
    let mut story = Story::running(&["orders"]);
    story.add("items");
    let set_up = story.until_held(|task| matches!(task, Task::SetUp { .. }));
    let Work::SetUp { publication: Some((_, published)), .. } = &story.works[&story.epoch_of(&set_up)].work
    else {
        panic!("the publication is the pipe's own")
    };
    assert_eq!(published, &[name("items"), name("orders")]);
    story.perform(&set_up);
    assert_eq!(story.carried(), "orders, items (copying)", "the stream hears of it at once");
    assert!(!story.pipe.wanted().iter().any(is_snapshot), "it does not say yet that it follows");
    let before = story.pipe.pipe().revision - 1;
    story.stream_says(StreamProgress { revision: before, caught_up: true, ..StreamProgress::default() });
    assert!(!story.pipe.wanted().iter().any(is_snapshot), "it follows what was before");
    story.follow();
    let snapshot = story.until_held(is_snapshot);
    let work = &story.works[&story.epoch_of(&snapshot)].work;
    assert!(matches!(work, Work::Snapshot { slot: SlotRequest::Temporary, .. }), "{work:?}");
}

#[test]
fn the_snapshot_waits_for_the_next_stream_where_the_one_that_followed_is_gone() {
    let mut story = Story::running(&["orders"]);
    story.add("items");
    let set_up = story.until_held(|task| matches!(task, Task::SetUp { .. }));
    story.perform(&set_up);
    story.follow();
    assert!(story.pipe.wanted().iter().any(is_snapshot));
    story.lose(&Task::Stream);
    assert!(!story.pipe.wanted().iter().any(is_snapshot), "the next one has not begun");
    story.place();
    assert!(!story.pipe.wanted().iter().any(is_snapshot), "nor said what it follows");
    story.follow();
    assert!(story.pipe.wanted().iter().any(is_snapshot));
}

#[test]
fn nothing_happens_to_the_tables_that_were_there_before() {
    let mut story = Story::running(&["orders"]);
    let (stream, before) = (story.epoch_of(&Task::Stream), story.newest("orders").record.clone());
    story.add("items");
    story.until(|story| {
        assert_eq!(story.epoch_of(&Task::Stream), stream, "the stream goes on");
        assert_eq!(story.newest("orders").record, before);
        false
    });
    assert_eq!(story.state(), PipeState::Running);
}

#[test]
fn an_added_table_is_told_from_which_position_on_its_changes_are_published() {
    let mut story = Story::running(&["orders"]);
    story.add("items");
    let set_up = story.until_held(|task| matches!(task, Task::SetUp { .. }));
    let id = story.newest("items").record.id;
    story.finish(&set_up, Outcome::SetUp { tables: vec![(id, "uuid".into())], begins: Lsn(777) });
    let work = &story.works[&story.epoch_of(&Task::Stream)].work;
    let Work::Stream { tables, .. } = work else { panic!("the stream's work") };
    let begins: Vec<_> =
        tables.iter().map(|table| (table.table.spec.target.as_str(), table.begins)).collect();
    assert_eq!(begins, [("orders", Lsn::ZERO), ("items", Lsn(777))]);
}

#[test]
fn a_stuck_addition_is_cancelled_by_taking_the_table_out_again() {
    for phase in ["provision", "setup", "snapshot", "copy"] {
        let mut story = Story::running(&["orders"]);
        story.add("items");
        story.until_held(|task| task.kind() == phase);
        story.take_out("items");
        assert_eq!(story.state(), PipeState::Modifying, "{phase}");
        story.settle();
        assert_eq!(story.state(), PipeState::Running, "{phase}");
        assert_eq!(story.tables(), "orders streaming", "{phase}");
        assert_eq!(story.carried(), "orders", "{phase}");
        assert_eq!(story.pipe.pipe().rounds, [], "{phase}");
    }
}

#[test]
fn an_addition_that_is_refused_is_set_aside_and_the_others_go_on() {
    let mut story = Story::running(&["orders"]);
    story.add("items");
    let provision = story.until_held(|task| matches!(task, Task::Provision { .. }));
    let missing = Problem::operator("SOURCE_TABLE_MISSING", "there is no such table", "make it");
    story.fail(&provision, missing.of_table(&name("items")));
    assert_eq!(story.tables(), "orders streaming, items set aside");
    assert_eq!(story.state(), PipeState::Running);
    story.command(|pipe, now| pipe.retry(&name("items"), now));
    story.settle();
    assert_eq!(story.tables(), "orders streaming, items streaming");
}

#[test]
fn two_additions_never_say_at_the_same_time_which_tables_the_publication_has() {
    let mut story = Story::running(&["orders"]);
    story.add("items");
    story.add("stock");
    story.until(|story| {
        let publishes = |held: &&millrace_lifecycle::AssignmentRecord| {
            matches!(held.task, Task::SetUp { .. } | Task::Publish)
        };
        assert!(story.pipe.assignments().filter(publishes).count() <= 1);
        false
    });
    assert_eq!(story.tables(), "orders streaming, items streaming, stock streaming");
}

#[test]
fn a_table_that_keeps_every_row_is_added_while_the_stream_stands_still() {
    let mut story = Story::running(&["orders"]);
    story.add_with("log", TableEngine::MergeTree);
    let set_up = story.until_held(|task| matches!(task, Task::SetUp { .. }));
    story.perform(&set_up);
    assert!(story.pipe.assignments().any(|held| held.task == Task::Stream && held.draining));
    assert!(!story.pipe.wanted().iter().any(is_snapshot), "the stream has not drained");
    story.perform(&Task::Stream);
    assert!(!story.pipe.wanted().contains(&Task::Stream), "it begins again once the snapshot is open");
    let snapshot = story.until_held(is_snapshot);
    story.perform(&snapshot);
    let point = story.newest("log").record.begins;
    assert_ne!(point, Lsn::ZERO);
    story.place();
    let work = &story.works[&story.epoch_of(&Task::Stream)].work;
    let Work::Stream { tables, .. } = work else { panic!("the stream's work") };
    assert_eq!(tables.last().unwrap().begins, point, "what the copy holds is not carried once more");
    story.settle();
    assert_eq!(story.tables(), "orders streaming, log streaming");
}

#[test]
fn a_drain_that_its_worker_did_not_finish_is_finished_by_the_next() {
    let mut story = Story::running(&["orders"]);
    story.add_with("log", TableEngine::MergeTree);
    let set_up = story.until_held(|task| matches!(task, Task::SetUp { .. }));
    // Given out by a plan that was made before its holder was found to be gone.
    let wanted = story.pipe.wanted();
    assert!(wanted.contains(&Task::Stream));
    story.perform(&set_up);
    story.lose(&Task::Stream);
    let now = story.now();
    let (epoch, worker) = (millrace_model::Epoch(1000), "w1".parse().unwrap());
    story.pipe.assign(epoch, Task::Stream, worker, Default::default(), now).unwrap();
    story.step();
    assert!(story.pipe.assignment(epoch).unwrap().draining);
}

#[test]
fn a_snapshot_only_pipe_takes_further_tables() {
    let mut story = Story::settled(ReplicationMode::Snapshot, &["orders"]);
    story.add("items");
    assert_eq!(story.state(), PipeState::Snapshot);
    story.settle();
    assert_eq!(story.state(), PipeState::Completed);
    assert_eq!(story.tables(), "orders completed, items completed");
}

#[test]
fn a_table_is_added_to_a_pipe_that_copies_nothing() {
    let mut story = Story::settled(ReplicationMode::CdcOnly, &["orders"]);
    story.add("items");
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming, items streaming");
}

#[test]
fn tables_added_to_a_paused_pipe_are_copied_when_it_goes_on() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.pause(now));
    story.settle();
    story.add("items");
    assert_eq!(story.state(), PipeState::Paused);
    assert_eq!(story.pipe.wanted(), []);
    story.command(|pipe, now| pipe.resume(now));
    assert_eq!(story.state(), PipeState::Snapshot);
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.newest("items").record.state, TableState::Streaming);
}

#[test]
fn an_addition_during_the_first_load_makes_no_second_slot() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders"]);
    let first = story.until_held(is_snapshot);
    story.add("items");
    // The addition comes as far while the slot is being made.
    for kind in ["provision", "setup"] {
        story.place();
        let task = story.held(|task| task.kind() == kind).unwrap();
        story.perform(&task);
    }
    story.place();
    let snapshots: Vec<Task> = story.pipe.wanted().into_iter().filter(is_snapshot).collect();
    assert_eq!(snapshots, [first], "a slot that is made twice loses what came in between");
    let mut made = std::collections::BTreeSet::new();
    story.until(|story| {
        for (epoch, held) in &story.works {
            if matches!(&held.work, Work::Snapshot { slot: SlotRequest::Create { .. }, .. }) {
                made.insert(*epoch);
            }
        }
        assert!(made.len() <= 1, "a slot is made in place of another");
        false
    });
    assert_eq!(story.tables(), "orders streaming, items streaming");
}
