//! Tables that are copied anew while readers keep what they have.

use millrace_lifecycle::{PipeState, TableState, Task};
use millrace_model::spec::ReplicationMode;
use millrace_model::work::{Report, SlotRequest, Work};
use millrace_model::{Problem, Recovery};

use crate::harness::{Story, name};

fn slot_lost() -> Problem {
    Problem::permanent("SLOT_LOST", "the slot is lost", "resync the pipe")
}

#[test]
fn a_whole_running_pipe_is_copied_anew() {
    let mut story = Story::running(&["orders", "items"]);
    let mark = story.mark();
    story.command(|pipe, now| pipe.resync(&[], now));
    assert_eq!(story.state(), PipeState::Setup);
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming, items streaming");
    assert_eq!(story.carried(), "orders, items");
    assert_eq!(story.pipe.pipe().garbage, [""; 0]);
    insta::assert_snapshot!(story.since(mark));
}

#[test]
fn the_original_is_carried_until_its_successor_is_in_place() {
    let mut story = Story::running(&["orders"]);
    let original = story.newest("orders").record.id;
    story.command(|pipe, now| pipe.resync(&[], now));
    story.until(|story| {
        let swapped = story.pipe.tables().all(|table| table.record.id != original);
        let targets = story.carried();
        assert!(swapped || targets.starts_with("orders"), "{targets}");
        let dropped = story.works.values().any(|held| {
            let Work::Clean { tables } = &held.work else { return false };
            tables.iter().any(|table| table == "orders")
        });
        assert!(!dropped);
        false
    });
    assert_ne!(story.newest("orders").record.id, original);
}

#[test]
fn one_table_of_a_running_pipe_is_copied_anew_and_the_pipe_stays_running() {
    let mut story = Story::running(&["orders", "items"]);
    let mark = story.mark();
    story.command(|pipe, now| pipe.resync(&[name("items")], now));
    story.until(|story| {
        assert_eq!(story.state(), PipeState::Running);
        false
    });
    assert_eq!(story.tables(), "orders streaming, items streaming");
    insta::assert_snapshot!(story.since(mark));
}

#[test]
fn a_swap_names_both_tables_by_their_uuids() {
    let mut story = Story::running(&["orders"]);
    let before = story.newest("orders").record.uuid.clone();
    story.command(|pipe, now| pipe.resync(&[name("orders")], now));
    story.until(|story| story.newest("orders").record.state == TableState::Swapping);
    let new = story.newest("orders").record.clone();
    let Work::Stream { swaps, .. } = &story.works[&story.epoch_of(&Task::Stream)].work else {
        panic!("the stream's work")
    };
    let [swap] = &swaps[..] else { panic!("one swap") };
    assert_eq!((&swap.copied, &swap.target), (&new.written, &"orders".to_owned()));
    assert_eq!((Some(&swap.uuid), &swap.replaces), (new.uuid.as_ref(), &before));
    assert_ne!(Some(&swap.uuid), swap.replaces.as_ref());
}

#[test]
fn a_swap_that_is_reported_twice_changes_nothing_more() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.resync(&[name("orders")], now));
    story.until(|story| story.newest("orders").record.state == TableState::Swapping);
    let id = story.newest("orders").record.id;
    story.report(&Task::Stream, Report::TableSwapped(id));
    let (tables, garbage, mark) = (story.tables(), story.pipe.pipe().garbage.clone(), story.mark());
    story.report(&Task::Stream, Report::TableSwapped(id));
    assert_eq!((story.tables(), &story.pipe.pipe().garbage), (tables, &garbage));
    assert_eq!(story.since(mark), "");
}

#[test]
fn a_paused_pipe_is_copied_anew_and_is_paused_again() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.pause(now));
    story.settle();
    let mark = story.mark();
    story.command(|pipe, now| pipe.resync(&[], now));
    story.settle();
    assert_eq!(story.state(), PipeState::Paused);
    assert_eq!(story.pipe.assignments().count(), 0);
    insta::assert_snapshot!(story.since(mark));
}

#[test]
fn a_resync_of_a_paused_pipe_whose_table_is_taken_out_rests_again() {
    let mut story = Story::running(&["orders", "items"]);
    story.command(|pipe, now| pipe.pause(now));
    story.settle();
    story.command(|pipe, now| pipe.resync(&[name("items")], now));
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    story.take_out("items");
    story.settle();
    assert_eq!(story.state(), PipeState::Paused, "nobody asked for it to run");
}

#[test]
fn a_completed_pipe_is_copied_anew_and_completes_again() {
    let mut story = Story::settled(ReplicationMode::Snapshot, &["orders", "items"]);
    story.command(|pipe, now| pipe.resync(&[], now));
    let swap = story.until_held(|task| matches!(task, Task::Swap { .. }));
    assert_eq!(story.state(), PipeState::Resync);
    story.perform(&swap);
    story.settle();
    assert_eq!(story.state(), PipeState::Completed);
    assert_eq!(story.tables(), "orders completed, items completed");
    assert_eq!(story.pipe.pipe().garbage, [""; 0], "what was replaced is dropped also now");
}

#[test]
fn a_removal_in_the_middle_of_a_resync_does_not_change_where_it_leads() {
    let mut story = Story::settled(ReplicationMode::Snapshot, &["orders", "items"]);
    story.command(|pipe, now| pipe.resync(&[], now));
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    story.take_out("items");
    story.settle();
    assert_eq!(story.state(), PipeState::Completed);
}

#[test]
fn a_lost_slot_is_healed_by_a_resync_which_makes_another() {
    let mut story = Story::running(&["orders", "items"]);
    story.fail(&Task::Stream, slot_lost());
    assert_eq!(story.state(), PipeState::Failed);
    let refused = story.refused(|pipe, now| pipe.resync(&[name("orders")], now));
    assert_eq!(
        refused,
        "cannot resync: what all tables rest on is lost, so none of them can go on as it is; resync the whole pipe"
    );
    let mark = story.mark();
    story.command(|pipe, now| pipe.resync(&[], now));
    assert_eq!(story.pipe.pipe().slot, None);
    assert_eq!(story.carried(), "no stream");
    let snapshot = story.until_held(|task| matches!(task, Task::Snapshot { .. }));
    let work = &story.works[&story.epoch_of(&snapshot)].work;
    assert!(matches!(work, Work::Snapshot { slot: SlotRequest::Create { .. }, .. }), "{work:?}");
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming, items streaming");
    insta::assert_snapshot!(story.since(mark));
}

#[test]
fn a_pipe_that_failed_otherwise_is_copied_anew_with_the_slot_it_has() {
    let mut story = Story::running(&["orders"]);
    let slot = story.pipe.pipe().slot.clone();
    story.fail(&Task::Stream, Problem::operator("SOURCE_DENIED", "permission denied", "GRANT it"));
    story.command(|pipe, now| pipe.resync(&[], now));
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.pipe.pipe().slot, slot);
}

#[test]
fn a_resync_that_cannot_work_is_refused_before_anything_is_touched() {
    let mut story = Story::running(&["orders"]);
    assert_eq!(
        story.refused(|pipe, now| pipe.resync(&[name("absent")], now)),
        "cannot resync: public.absent is not a table of the pipe; `millrace pipe tables` lists them"
    );
    let mut changes_only = Story::settled(ReplicationMode::CdcOnly, &["orders"]);
    assert_eq!(
        changes_only.refused(|pipe, now| pipe.resync(&[], now)),
        "cannot resync: replicationMode cdc_only copies nothing; make a pipe with replicationMode: cdc"
    );
}

#[test]
fn a_table_that_is_missing_when_it_is_copied_anew_stays_as_it_was() {
    let mut story = Story::running(&["orders", "items"]);
    story.command(|pipe, now| pipe.resync(&[name("items")], now));
    let provision = story.until_held(|task| matches!(task, Task::Provision { .. }));
    let missing = Problem::operator("SOURCE_TABLE_MISSING", "there is no such table", "make it");
    story.fail(&provision, missing.of_table(&name("items")));
    story.settle();
    assert_eq!(story.tables(), "orders streaming, items streaming, items set aside anew");
    assert_eq!(story.carried(), "orders, items", "readers keep what they had, and it goes on");
    story.command(|pipe, now| pipe.retry(&name("items"), now));
    story.settle();
    assert_eq!(story.tables(), "orders streaming, items streaming");
}

#[test]
fn a_second_resync_gives_up_the_first() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.resync(&[name("orders")], now));
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    let first = story.newest("orders").record.written.clone();
    story.command(|pipe, now| pipe.resync(&[name("orders")], now));
    let second = story.newest("orders").record.written.clone();
    assert_ne!(first, second, "a name is never used again");
    story.settle();
    assert_eq!(story.tables(), "orders streaming");
    assert_eq!(story.state(), PipeState::Running);
}

#[test]
fn a_pause_in_the_middle_of_a_resync_is_carried_out_and_it_goes_on_from_there() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.resync(&[], now));
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    let copy = story.held(|task| matches!(task, Task::Copy { .. })).unwrap();
    story.perform(&copy);
    let written = story.newest("orders").record.written.clone();
    story.command(|pipe, now| pipe.pause(now));
    story.settle();
    assert_eq!(story.state(), PipeState::Paused);
    story.command(|pipe, now| pipe.resume(now));
    assert_eq!(story.state(), PipeState::Snapshot);
    assert_eq!(story.newest("orders").progress.done, 1, "what was copied stays");
    assert_eq!(story.newest("orders").record.written, written);
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
}

#[test]
fn a_table_that_keeps_every_row_is_copied_anew_also_while_others_are_swapped_in() {
    let mut spec = crate::harness::spec(ReplicationMode::Cdc, &["orders", "log"]);
    spec.tables[1].engine = millrace_model::spec::TableEngine::MergeTree;
    let mut story = Story::of(spec);
    story.settle();
    story.command(|pipe, now| pipe.resync(&[], now));
    story.until(|story| story.state() == PipeState::Resync);
    let id = story.newest("log").record.id;
    let void = Problem::transient("COPY_VOID", "its copy is void", "").of_table(&name("log"));
    story.report(&Task::Stream, Report::TableSetAside(id, void));
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming, log streaming");
}

#[test]
fn a_truncate_during_a_resync_makes_the_copy_void_and_it_begins_anew() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.resync(&[], now));
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    let first = story.newest("orders").record.clone();
    let truncated = Problem::transient("TRUNCATED", "it was truncated while it was copied", "");
    assert_eq!(truncated.recovery, Recovery::Retry);
    story.report(&Task::Stream, Report::TableSetAside(first.id, truncated.of_table(&name("orders"))));
    assert_ne!(story.newest("orders").record.written, first.written);
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming");
}
