//! Tables that leave a pipe.

use millrace_lifecycle::{PipeState, Task};
use millrace_model::Problem;
use millrace_model::spec::ReplicationMode;
use millrace_model::work::{Outcome, Work};

use crate::harness::{Story, name};

#[test]
fn a_table_is_taken_out_of_a_running_pipe() {
    let mut story = Story::running(&["orders", "items"]);
    let mark = story.mark();
    story.take_out("items");
    assert_eq!(story.state(), PipeState::Modifying);
    assert_eq!(story.carried(), "orders", "its changes are carried no more");
    assert!(!story.pipe.wanted().contains(&Task::Publish), "the stream may still read what is published");
    story.follow();
    assert!(story.pipe.wanted().contains(&Task::Publish));
    let publish = story.until_held(|task| *task == Task::Publish);
    let Work::SetUp { publication: Some((_, published)), tables, .. } =
        &story.works[&story.epoch_of(&publish)].work
    else {
        panic!("the publication is the pipe's own")
    };
    assert_eq!((&published[..], &tables[..]), (&[name("orders")][..], &[][..]));
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming");
    assert_eq!(story.pipe.pipe().garbage, [""; 0], "its destination table stays");
    insta::assert_snapshot!(story.since(mark));
}

#[test]
fn a_table_is_taken_out_of_a_paused_pipe_which_stays_paused() {
    let mut story = Story::running(&["orders", "items"]);
    story.command(|pipe, now| pipe.pause(now));
    story.settle();
    story.take_out("items");
    assert_eq!(story.pipe.wanted(), [Task::Publish]);
    story.settle();
    assert_eq!(story.state(), PipeState::Paused);
    assert_eq!(story.tables(), "orders streaming");
}

#[test]
fn a_table_is_taken_out_of_a_failed_pipe_which_then_goes_on() {
    let mut story = Story::running(&["orders", "items"]);
    story.fail(&Task::Stream, Problem::operator("SOURCE_DENIED", "permission denied", "GRANT it"));
    assert_eq!(story.state(), PipeState::Failed);
    story.take_out("items");
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming");
}

#[test]
fn further_tables_are_taken_out_of_a_pipe_that_failed_while_it_took_out_the_first() {
    let mut story = Story::running(&["orders", "items", "stock"]);
    story.take_out("items");
    story.fail(&Task::Stream, Problem::operator("SOURCE_DENIED", "permission denied", "GRANT it"));
    story.take_out("stock");
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming");
}

#[test]
fn a_resync_of_a_pipe_that_failed_while_it_took_a_table_out_forgets_that_table() {
    let mut story = Story::running(&["orders", "items"]);
    story.take_out("items");
    story.fail(&Task::Stream, Problem::permanent("SLOT_LOST", "the slot is lost", "resync"));
    story.command(|pipe, now| pipe.resync(&[], now));
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming");
}

#[test]
fn a_table_is_taken_out_of_a_pipe_that_has_completed() {
    let mut story = Story::settled(ReplicationMode::Snapshot, &["orders", "items"]);
    story.take_out("items");
    story.settle();
    assert_eq!(story.tables(), "orders completed");
    assert_eq!(story.state(), PipeState::Completed);
}

#[test]
fn a_publication_that_the_user_made_is_left_alone() {
    let mut spec = crate::harness::spec(ReplicationMode::Cdc, &["orders", "items"]);
    spec.settings.publication_name = Some("theirs".into());
    let mut story = Story::of(spec);
    story.settle();
    story.take_out("items");
    assert!(!story.pipe.wanted().contains(&Task::Publish));
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming");
}

#[test]
fn taking_a_table_out_in_the_middle_of_its_resync_drops_the_new_copy_alone() {
    let mut story = Story::running(&["orders", "items"]);
    story.command(|pipe, now| pipe.resync(&[name("items")], now));
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    let written = story.newest("items").record.written.clone();
    story.take_out("items");
    let clean = story.until_held(|task| *task == Task::Clean);
    let Work::Clean { tables } = &story.works[&story.epoch_of(&clean)].work else { panic!("to clean") };
    assert_eq!(tables, &[written.clone(), format!("{written}_old")]);
    story.settle();
    assert_eq!(story.tables(), "orders streaming");
}

#[test]
fn what_becomes_garbage_while_garbage_is_dropped_is_dropped_too() {
    let mut story = Story::running(&["orders", "items"]);
    for table in ["orders", "items"] {
        story.command(|pipe, now| pipe.resync(&[name(table)], now));
        story.until_held(|task| matches!(task, Task::Copy { .. }));
    }
    let written = |story: &Story, table: &str| story.newest(table).record.written.clone();
    let (first, second) = (written(&story, "orders"), written(&story, "items"));
    story.command(|pipe, now| pipe.resync(&[name("orders")], now));
    story.until_held(|task| *task == Task::Clean);
    let clean = story.held(|task| *task == Task::Clean).unwrap();
    let Work::Clean { tables } = story.works[&story.epoch_of(&clean)].work.clone() else {
        panic!("to clean")
    };
    story.command(|pipe, now| pipe.resync(&[name("items")], now));
    assert!(tables.contains(&first) && !tables.contains(&second));
    story.finish(&clean, Outcome::Cleaned { tables });
    assert_eq!(story.pipe.pipe().garbage, [second.clone(), format!("{second}_old")]);
    story.settle();
    assert_eq!(story.pipe.pipe().garbage, [""; 0]);
}

#[test]
fn garbage_that_cannot_be_dropped_never_fails_the_pipe() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.resync(&[name("orders")], now));
    let clean = story.until_held(|task| *task == Task::Clean);
    let aftermath = story.fail(&clean, Problem::operator("DESTINATION_DENIED", "no right to drop", ""));
    assert!(matches!(aftermath, millrace_lifecycle::report::Aftermath::TryAgain(Task::Clean, _)));
    assert_eq!(story.state(), PipeState::Running);
    assert_ne!(story.pipe.pipe().garbage, [""; 0]);
}

#[test]
fn delete_drops_what_was_made_on_the_way_and_the_tables_where_that_is_asked_for() {
    let dropped = |with_tables: bool| {
        let mut story = Story::running(&["orders"]);
        story.command(|pipe, now| pipe.resync(&[name("orders")], now));
        story.until_held(|task| matches!(task, Task::Copy { .. }));
        let written = story.newest("orders").record.written.clone();
        story.command(|pipe, now| pipe.delete(with_tables, now));
        story.place();
        let Work::Teardown { tables, slot_name, publication_name } =
            &story.works[&story.epoch_of(&Task::Teardown)].work
        else {
            panic!("to tear down")
        };
        assert!(slot_name.is_some() && publication_name.is_some());
        tables.iter().map(|table| table.replace(&written, "<new>")).collect::<Vec<_>>()
    };
    assert_eq!(dropped(false), ["<new>", "<new>_old"]);
    assert_eq!(dropped(true), ["orders", "<new>", "<new>_old"]);
}

#[test]
fn delete_can_be_asked_for_again_with_the_tables() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.delete(false, now));
    story.place();
    story.command(|pipe, now| pipe.delete(true, now));
    story.place();
    let Work::Teardown { tables, .. } = &story.works[&story.epoch_of(&Task::Teardown)].work else {
        panic!("to tear down")
    };
    assert_eq!(tables, &["orders"]);
    let mark = story.mark();
    story.command(|pipe, now| pipe.delete(false, now));
    assert_eq!(story.since(mark), "", "what was asked for already is no news");
}

/// A state, and how a pipe comes there.
type Way = (PipeState, fn(&mut Story));

#[test]
fn delete_is_carried_out_in_every_state() {
    let stories: [Way; 8] = [
        (PipeState::Provisioning, |_| {}),
        (PipeState::Setup, |story| drop(story.until_held(|task| matches!(task, Task::SetUp { .. })))),
        (PipeState::Snapshot, |story| drop(story.until_held(|task| matches!(task, Task::Copy { .. })))),
        (PipeState::Running, Story::settle),
        (PipeState::Pausing, |story| {
            story.settle();
            story.command(|pipe, now| pipe.pause(now));
        }),
        (PipeState::Paused, |story| {
            story.settle();
            story.command(|pipe, now| pipe.pause(now));
            story.settle();
        }),
        (PipeState::Modifying, |story| {
            story.settle();
            story.take_out("items");
        }),
        (PipeState::Failed, |story| {
            story.settle();
            story.fail(&Task::Stream, Problem::permanent("SLOT_LOST", "the slot is lost", "resync"));
        }),
    ];
    for (state, reach) in stories {
        let mut story = Story::new(ReplicationMode::Cdc, &["orders", "items"]);
        reach(&mut story);
        assert_eq!(story.state(), state);
        story.command(|pipe, now| pipe.delete(false, now));
        assert_eq!(story.pipe.wanted(), [Task::Teardown], "{state}");
        story.place();
        // Also where a side cannot be reached at first.
        story.fail(&Task::Teardown, Problem::operator("SOURCE_UNREACHABLE", "no route to host", ""));
        story.perform(&Task::Teardown);
        assert_eq!(story.history.last().unwrap(), "worker w1: deleted", "{state}");
    }
}
