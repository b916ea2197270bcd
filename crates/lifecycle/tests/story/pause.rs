//! Pause and resume.

use millrace_lifecycle::{PipeState, Task};
use millrace_model::spec::{ReplicationMode, TableEngine};
use millrace_model::work::Work;
use millrace_model::{Lsn, Problem};

use crate::harness::{Story, spec};

#[test]
fn a_pause_whose_stream_is_gone_with_its_worker_still_sees_to_the_slot() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.pause(now));
    story.lose(&Task::Stream);
    assert_eq!(story.pipe.wanted(), [Task::Release]);
    story.perform(&Task::Release);
    assert_eq!(story.state(), PipeState::Paused);
}

#[test]
fn a_stream_that_is_given_out_while_the_pipe_pauses_drains_at_once() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.pause(now));
    story.lose(&Task::Stream);
    // A plan that was made while the first one stood.
    let now = story.now();
    let epoch = millrace_model::Epoch(1000);
    story.pipe.assign(epoch, Task::Stream, "w1".parse().unwrap(), Default::default(), now).unwrap();
    story.step();
    assert!(story.pipe.assignment(epoch).unwrap().draining);
    story.settle();
    assert_eq!(story.state(), PipeState::Paused);
}

#[test]
fn a_pause_during_the_load_keeps_what_is_copied() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders"]);
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    story.perform(&story.copy_of("orders", 1));
    story.command(|pipe, now| pipe.pause(now));
    story.settle();
    assert_eq!(story.state(), PipeState::Paused);
    assert_eq!(story.pipe.assignments().count(), 0);
    story.command(|pipe, now| pipe.resume(now));
    assert_eq!(story.state(), PipeState::Snapshot);
    let snapshot = story.until_held(|task| matches!(task, Task::Snapshot { .. }));
    story.perform(&snapshot);
    assert_eq!(
        story.copies(),
        ["copy of public.orders partition 0", "copy of public.orders partition 2"],
        "the finished one is not read again"
    );
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
}

#[test]
fn a_snapshot_only_pipe_pauses_as_soon_as_its_copies_stop() {
    let mut story = Story::new(ReplicationMode::Snapshot, &["orders"]);
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    story.command(|pipe, now| pipe.pause(now));
    assert_eq!(story.state(), PipeState::Paused);
    story.command(|pipe, now| pipe.resume(now));
    story.settle();
    assert_eq!(story.state(), PipeState::Completed);
}

#[test]
fn a_table_that_keeps_every_row_is_copied_anew_after_a_pause_however_often() {
    let mut spec = spec(ReplicationMode::Cdc, &["log", "orders"]);
    spec.tables[0].engine = TableEngine::MergeTree;
    let mut story = Story::of(spec);
    for _ in 0..4 {
        story.until_held(|task| matches!(task, Task::Copy { source, .. } if source.name == "log"));
        story.command(|pipe, now| pipe.pause(now));
        story.settle();
        assert_eq!(story.state(), PipeState::Paused);
        story.command(|pipe, now| pipe.resume(now));
    }
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming, log streaming");
}

#[test]
fn a_lost_snapshot_never_doubles_what_the_stream_carried_already() {
    let mut story = Story::running(&["orders"]);
    story.add_with("log", TableEngine::MergeTree);
    let snapshot = story.until_held(|task| matches!(task, Task::Snapshot { .. }));
    story.perform(&snapshot);
    let first = story.newest("log").record.clone();
    assert_ne!(first.begins, Lsn::ZERO);
    // No copy was given out yet, but its changes may be there.
    story.lose(&snapshot);
    assert_ne!(story.newest("log").record.written, first.written);
    story.settle();
    assert_eq!(story.tables(), "orders streaming, log streaming");
}

#[test]
fn a_pause_that_fails_half_way_is_over_when_the_pipe_goes_on() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.pause(now));
    story.fail(&Task::Stream, Problem::operator("DESTINATION_DENIED", "no right to write", "GRANT it"));
    assert_eq!(story.state(), PipeState::Failed);
    story.command(|pipe, now| pipe.resume(now));
    assert_eq!(story.state(), PipeState::Running);
}

#[test]
fn what_is_left_to_drop_is_dropped_while_the_pipe_rests() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.resync(&[crate::harness::name("orders")], now));
    story.until_held(|task| *task == Task::Clean);
    story.command(|pipe, now| pipe.pause(now));
    story.until(|story| story.state() == PipeState::Paused);
    assert_eq!(story.pipe.wanted(), [Task::Clean]);
    story.place();
    assert!(matches!(&story.works.values().next().unwrap().work, Work::Clean { .. }));
    story.settle();
    assert_eq!(story.pipe.wanted(), []);
}
