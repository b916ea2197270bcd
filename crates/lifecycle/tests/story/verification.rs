//! Comparing tables with their sources.

use millrace_lifecycle::{PipeState, Refusal, Task};
use millrace_model::Problem;
use millrace_model::spec::ReplicationMode;
use millrace_model::work::{Outcome, Report, Verified};

use crate::harness::{Story, name};

fn compared(story: &Story, at: usize) -> Option<Verified> {
    let tables: Vec<_> = story.pipe.tables().collect();
    let finished = tables[at].record.verification.as_ref()?.finished.clone();
    finished.map(|(_, found)| found)
}

#[test]
fn each_table_is_compared_once_and_the_result_is_kept() {
    let mut story = Story::running(&["orders", "items"]);
    story.command(|pipe, now| pipe.verify(&[], now));
    let tasks: Vec<String> = story.pipe.wanted().iter().map(ToString::to_string).collect();
    assert_eq!(tasks, ["stream", "comparison of public.orders", "comparison of public.items"]);
    // Asked for again while it is under way, it is the same one.
    story.command(|pipe, now| pipe.verify(&[name("orders")], now));
    assert_eq!(story.pipe.wanted().len(), 3);
    story.settle();
    assert_eq!(story.pipe.wanted(), [Task::Stream]);
    assert_eq!(compared(&story, 0).unwrap().source_rows, 3000);
    assert!(story.pipe.differing().is_none());
}

#[test]
fn differences_stay_known_until_the_table_is_compared_or_copied_anew() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.verify(&[], now));
    let task = story.until_held(|task| matches!(task, Task::Verify { .. }));
    story.finish(&task, Outcome::Verified(Verified { differences: 3, ..Verified::default() }));
    let (_, problem) = story.pipe.differing().unwrap();
    assert_eq!(problem.code, "ROWS_DIFFER");
    assert_eq!(story.state(), PipeState::Running, "the stream goes on");
    story.command(|pipe, now| pipe.verify(&[], now));
    story.settle();
    assert!(story.pipe.differing().is_none());
}

#[test]
fn a_comparison_that_fails_is_tried_again_or_given_up_and_never_stops_the_pipe() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.verify(&[], now));
    let task = story.until_held(|task| matches!(task, Task::Verify { .. }));
    story.report(&task, Report::Failed(vec![Problem::transient("SOURCE_CONNECTION_LOST", "gone", "wait")]));
    assert!(story.pipe.wanted().contains(&task));
    let task = story.until_held(|task| matches!(task, Task::Verify { .. }));
    story.report(
        &task,
        Report::Failed(vec![Problem::operator("COLUMN_MISSING", "no such column", "mend it")]),
    );
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(compared(&story, 0).unwrap().problem.unwrap().code, "COLUMN_MISSING");
    assert!(!story.pipe.wanted().contains(&task));
}

fn of_part(rows: u64, differences: u64) -> Outcome {
    Outcome::Verified(Verified {
        source_rows: rows,
        destination_rows: rows,
        differences,
        ..Verified::default()
    })
}

fn is_comparison(task: &Task) -> bool {
    matches!(task, Task::Verify { .. })
}

fn open_parts(story: &Story) -> Vec<Option<u32>> {
    let part = |task: &Task| match task {
        Task::Verify { part, .. } => Some(*part),
        _ => None,
    };
    story.pipe.wanted().iter().filter_map(part).collect()
}

#[test]
fn a_large_table_is_compared_part_by_part_and_each_part_once() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.verify(&[], now));
    let whole = story.until_held(is_comparison);
    story.finish(&whole, Outcome::Divided { bounds: vec![10, 20] });
    assert_eq!(open_parts(&story), [Some(0), Some(1), Some(2)]);
    let first = story.until_held(is_comparison);
    story.finish(&first, of_part(100, 2));
    assert_eq!(open_parts(&story), [Some(1), Some(2)], "what is done stays done");
    // A part whose worker has trouble is the only one that is made again.
    let second = story.until_held(is_comparison);
    story.report(&second, Report::Failed(vec![Problem::transient("SOURCE_CONNECTION_LOST", "gone", "wait")]));
    assert_eq!(open_parts(&story), [Some(1), Some(2)]);
    assert!(compared(&story, 0).is_none());
    for rows in [10, 1] {
        let next = story.until_held(is_comparison);
        story.finish(&next, of_part(rows, 1));
    }
    let found = compared(&story, 0).unwrap();
    assert_eq!((found.source_rows, found.destination_rows, found.differences), (111, 111, 4));
    assert_eq!(story.pipe.wanted(), [Task::Stream]);
}

#[test]
fn a_part_that_cannot_be_compared_ends_the_comparison() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.verify(&[], now));
    let whole = story.until_held(is_comparison);
    story.finish(&whole, Outcome::Divided { bounds: vec![10] });
    let part = story.until_held(is_comparison);
    story.report(
        &part,
        Report::Failed(vec![Problem::operator("COLUMN_MISSING", "no such column", "mend it")]),
    );
    assert_eq!(compared(&story, 0).unwrap().problem.unwrap().code, "COLUMN_MISSING");
    assert!(!story.pipe.assignments().any(|held| is_comparison(&held.task)), "others are taken back");
    // Asked for again, it begins with the table as it is then.
    story.command(|pipe, now| pipe.verify(&[], now));
    assert_eq!(open_parts(&story), [None]);
}

#[test]
fn a_throttled_table_is_compared_one_part_after_another() {
    let mut story = Story::running(&["orders"]);
    story.edit(|spec| spec.settings.verify_rows_per_second = 1_000);
    story.command(|pipe, now| pipe.verify(&[], now));
    let whole = story.until_held(is_comparison);
    story.finish(&whole, Outcome::Divided { bounds: vec![10, 20] });
    assert_eq!(open_parts(&story), [Some(0)]);
    let first = story.until_held(is_comparison);
    story.finish(&first, of_part(1, 0));
    assert_eq!(open_parts(&story), [Some(1)]);
}

#[test]
fn a_table_that_leaves_the_stream_is_not_waited_for() {
    let mut story = Story::running(&["orders", "items"]);
    story.command(|pipe, now| pipe.verify(&[name("orders")], now));
    let id = story.pipe.tables().next().unwrap().record.id;
    story.report(&Task::Stream, Report::TableSetAside(id, Problem::operator("X", "broken", "mend it")));
    assert_eq!(compared(&story, 0).unwrap().problem.unwrap().code, "VERIFY_ABANDONED");
}

#[test]
fn what_cannot_be_compared_is_refused_with_the_reason() {
    let mut story = Story::running(&["orders"]);
    let now = story.now();
    let refused = story.pipe.verify(&[name("nothing")], now).unwrap_err();
    assert!(refused.to_string().contains("not a table of the pipe"), "{refused}");
    story.command(|pipe, now| pipe.pause(now));
    let refused = story.pipe.verify(&[], now).unwrap_err();
    assert!(matches!(refused, Refusal::State { .. }), "{refused}");
    let mut story = Story::new(ReplicationMode::CdcOnly, &["orders"]);
    story.settle();
    let refused = story.pipe.verify(&[], now).unwrap_err();
    assert!(refused.to_string().contains("cdc_only"), "{refused}");
}

#[test]
fn a_pause_takes_the_comparison_back_and_resuming_begins_it_again() {
    let mut story = Story::running(&["orders"]);
    story.command(|pipe, now| pipe.verify(&[], now));
    let task = story.until_held(|task| matches!(task, Task::Verify { .. }));
    story.command(|pipe, now| pipe.pause(now));
    assert!(!story.pipe.wanted().contains(&task));
    story.settle();
    assert_eq!(story.state(), PipeState::Paused);
    story.command(|pipe, now| pipe.resume(now));
    assert!(story.pipe.wanted().contains(&task));
    story.settle();
    assert!(compared(&story, 0).is_some());
}

#[test]
fn tables_are_compared_by_schedule_where_that_is_set() {
    let mut story = Story::running(&["orders", "items"]);
    let now = story.now();
    story.pipe.verify_by_schedule(now);
    assert_eq!(story.pipe.wanted(), [Task::Stream], "nobody asked for it");
    let mut spec = story.pipe.pipe().spec.clone();
    spec.settings.verify_every = Some(std::time::Duration::from_secs(60));
    story.command(|pipe, now| pipe.edit(spec, false, now).map(drop));
    let now = story.now();
    let later = |seconds: i64| millrace_model::Timestamp(now.0 + seconds * 1_000_000);
    let (early, due) = (later(1), later(61));
    story.pipe.verify_by_schedule(early);
    assert_eq!(story.pipe.wanted(), [Task::Stream]);
    story.pipe.verify_by_schedule(due);
    assert_eq!(story.pipe.wanted().len(), 3);
}
