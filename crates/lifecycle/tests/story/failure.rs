//! Tables that break, pipes that break, and what heals them.

use millrace_lifecycle::report::Aftermath;
use millrace_lifecycle::{PipeState, Task};
use millrace_model::Problem;
use millrace_model::spec::ReplicationMode;
use millrace_model::work::Report;

use crate::harness::{Story, name};

fn refused() -> Problem {
    Problem::operator("VALUE_REFUSED", "the row with id 7 holds a value that cannot be written", "exclude it")
        .of_table(&name("orders"))
}

fn copying(mode: ReplicationMode, tables: &[&str]) -> Story {
    let mut story = Story::new(mode, tables);
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    story
}

#[test]
fn a_table_that_breaks_is_set_aside_and_the_others_go_on() {
    let mut story = copying(ReplicationMode::Cdc, &["orders", "items"]);
    story.fail(&story.copy_of("orders", 1), refused());
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders set aside, items streaming");
    assert_eq!(story.carried(), "items");
}

#[test]
fn a_table_that_was_set_aside_is_mended_alone() {
    let mut story = copying(ReplicationMode::Cdc, &["orders", "items"]);
    story.fail(&story.copy_of("orders", 1), refused());
    story.settle();
    assert_eq!(
        story.refused(|pipe, now| pipe.retry(&name("items"), now)),
        "cannot retry: public.items is streaming; only a table that is set aside can be retried; resync copies any table anew"
    );
    let mark = story.mark();
    story.command(|pipe, now| pipe.retry(&name("orders"), now));
    assert_eq!(
        story.refused(|pipe, now| pipe.retry(&name("orders"), now)),
        "cannot retry: public.orders is waiting; only a table that is set aside can be retried; resync copies any table anew"
    );
    story.until(|story| {
        assert_eq!(story.state(), PipeState::Running, "it shows on the table alone");
        false
    });
    assert_eq!(story.tables(), "items streaming, orders streaming");
    insta::assert_snapshot!(story.since(mark));
}

#[test]
fn a_pipe_streams_while_a_table_of_its_first_load_is_copied_anew() {
    let mut story = copying(ReplicationMode::Cdc, &["orders", "items"]);
    let void = Problem::transient("COPY_VOID", "what was copied is void", "").of_table(&name("orders"));
    let interrupted = Problem { code: "APPEND_ONLY_COPY_INTERRUPTED".into(), ..void };
    story.fail(&story.copy_of("orders", 0), interrupted);
    assert_eq!(story.tables(), "orders set aside, items copying, orders waiting anew");
    story.until(|story| story.state() == PipeState::Running);
    assert!(story.pipe.pipe().streams, "the others do not wait for it");
    story.settle();
    assert_eq!(story.tables(), "items streaming, orders streaming");
}

#[test]
fn a_row_that_always_fails_sets_its_table_aside_for_good_the_second_time() {
    let mut story = Story::running(&["orders", "items"]);
    let void = Problem::transient("ROW_REFUSED", "the row with id 7 cannot be written", "mend it");
    let fail = |story: &mut Story| {
        let id = story.newest("orders").record.id;
        story.report(&Task::Stream, Report::TableSetAside(id, void.clone().of_table(&name("orders"))));
    };
    fail(&mut story);
    assert_eq!(story.tables(), "orders set aside, items streaming, orders waiting anew");
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    fail(&mut story);
    story.settle();
    assert_eq!(story.tables(), "orders set aside, items streaming, orders set aside anew");
    let problem = story.newest("orders").record.problem.clone().unwrap();
    assert!(problem.message.contains("id 7"), "it names the row");
    story.command(|pipe, now| pipe.retry(&name("orders"), now));
    story.settle();
    assert_eq!(story.tables(), "items streaming, orders streaming");
}

#[test]
fn a_truncate_while_a_table_is_copied_beside_the_stream_makes_its_copy_void() {
    let mut story = Story::running(&["orders"]);
    story.add("items");
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    let id = story.newest("items").record.id;
    let truncated = Problem::transient("TRUNCATED", "it was truncated while it was copied", "");
    story.report(&Task::Stream, Report::TableSetAside(id, truncated.of_table(&name("items"))));
    assert!(story.copies().is_empty(), "what was under way is taken back");
    story.settle();
    assert_eq!(story.tables(), "orders streaming, items streaming");
    assert_eq!(story.newest("items").record.spec.target, story.newest("items").record.written);
}

#[test]
fn a_snapshot_only_pipe_with_a_table_set_aside_is_not_complete() {
    let mut story = copying(ReplicationMode::Snapshot, &["orders", "items"]);
    story.fail(&story.copy_of("orders", 1), refused());
    story.settle();
    assert_eq!(story.state(), PipeState::Snapshot);
    assert_eq!(story.tables(), "orders set aside, items completed");
    story.command(|pipe, now| pipe.retry(&name("orders"), now));
    story.settle();
    assert_eq!(story.state(), PipeState::Completed);
    assert_eq!(story.tables(), "items completed, orders completed");
}

#[test]
fn a_snapshot_only_pipe_completes_when_the_table_that_was_set_aside_is_taken_out() {
    let mut story = copying(ReplicationMode::Snapshot, &["orders", "items"]);
    story.fail(&story.copy_of("orders", 1), refused());
    story.settle();
    story.take_out("orders");
    story.settle();
    assert_eq!(story.state(), PipeState::Completed);
}

#[test]
fn a_table_whose_new_copy_broke_is_retried_also_in_a_pipe_that_has_completed() {
    let mut story = Story::settled(ReplicationMode::Snapshot, &["orders", "items"]);
    story.command(|pipe, now| pipe.resync(&[name("orders")], now));
    story.until_held(|task| matches!(task, Task::Copy { .. }));
    story.fail(&story.copy_of("orders", 0), refused());
    story.settle();
    assert_eq!(story.state(), PipeState::Completed, "readers have what they had");
    assert_eq!(story.tables(), "orders completed, items completed, orders set aside anew");
    story.command(|pipe, now| pipe.retry(&name("orders"), now));
    story.settle();
    assert_eq!(story.state(), PipeState::Completed);
    assert_eq!(story.tables(), "items completed, orders completed");
}

#[test]
fn what_cannot_heal_fails_the_pipe_and_resume_goes_back_to_where_it_was() {
    let mut story = Story::running(&["orders"]);
    story.fail(&Task::Stream, Problem::permanent("SLOT_LOST", "the slot is lost", "resync"));
    assert_eq!(story.state(), PipeState::Failed);
    assert_eq!(story.pipe.pipe().failure.as_ref().unwrap().code, "SLOT_LOST");
    assert_eq!(story.pipe.wanted(), []);
    assert_eq!(
        story.refused(|pipe, now| pipe.pause(now)),
        "a pipe in state Failed cannot pause; legal now: resume, resync, retry, remove tables, change settings, delete"
    );
    story.command(|pipe, now| pipe.resume(now));
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.pipe.pipe().failure, None);
}

#[test]
fn what_heals_by_itself_never_fails_the_pipe() {
    let mut story = Story::running(&["orders"]);
    let refused = Problem::transient("SOURCE_UNREACHABLE", "connection refused", "");
    let aftermath = story.fail(&Task::Stream, refused.clone());
    assert_eq!(aftermath, Aftermath::TryAgain(Task::Stream, refused));
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.pipe.wanted(), [Task::Stream]);
}

#[test]
fn the_first_round_is_refused_as_a_whole() {
    let mut story = Story::new(ReplicationMode::Cdc, &["orders", "items"]);
    story.fail(&Task::Provision { round: 0 }, refused());
    assert_eq!(story.state(), PipeState::Failed);
    story.command(|pipe, now| pipe.resume(now));
    assert_eq!(story.state(), PipeState::Provisioning);
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
}

#[test]
fn a_pipe_whose_last_table_was_set_aside_copies_it_anew_when_it_is_resumed() {
    for mode in [ReplicationMode::Cdc, ReplicationMode::Snapshot] {
        let mut story = copying(mode, &["orders"]);
        story.fail(&story.copy_of("orders", 1), refused());
        assert_eq!(story.state(), PipeState::Failed);
        story.command(|pipe, now| pipe.resume(now));
        assert_eq!(story.state(), PipeState::Snapshot, "there is nothing yet that could run");
        story.settle();
        let expected = if mode.follows() { PipeState::Running } else { PipeState::Completed };
        assert_eq!(story.state(), expected);
        assert!(story.newest("orders").record.state.is_copied());
    }
}

#[test]
fn the_retry_of_its_last_table_revives_a_pipe() {
    let mut story = copying(ReplicationMode::Cdc, &["orders"]);
    story.fail(&story.copy_of("orders", 1), refused());
    story.command(|pipe, now| pipe.retry(&name("orders"), now));
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming");
    assert_eq!(story.carried(), "orders");
}

#[test]
fn after_a_failure_a_snapshot_only_pipe_does_not_mix_two_moments() {
    let mut story = copying(ReplicationMode::Snapshot, &["orders"]);
    story.perform(&story.copy_of("orders", 0));
    story.fail(
        &story.copy_of("orders", 1),
        Problem::operator("SOURCE_DENIED", "permission denied", "GRANT it"),
    );
    assert_eq!(story.state(), PipeState::Failed);
    story.command(|pipe, now| pipe.resume(now));
    assert_eq!(story.newest("orders").progress.done, 0, "its snapshot went with its session");
    assert_eq!(story.pipe.wanted(), [Task::SetUp { round: 0 }], "and what was copied is emptied");
    story.settle();
    assert_eq!(story.state(), PipeState::Completed);
}

#[test]
fn another_cluster_behind_the_address_is_noticed() {
    let mut story = Story::running(&["orders"]);
    story.add("items");
    let provision = story.until_held(|task| matches!(task, Task::Provision { .. }));
    story.finish(
        &provision,
        millrace_model::work::Outcome::Provisioned {
            system_identifier: 43,
            server_version: 170_010,
            tables: vec![],
            warnings: vec![],
            destination: Default::default(),
        },
    );
    assert_eq!(story.state(), PipeState::Failed);
    assert_eq!(story.pipe.pipe().failure.as_ref().unwrap().code, "SOURCE_REPLACED");
}

#[test]
fn no_setting_takes_from_a_worker_what_is_half_copied() {
    let mut story = copying(ReplicationMode::Cdc, &["orders", "items"]);
    let before = story.copies().len();
    assert!(before > 1);
    story.edit(|spec| {
        spec.settings.initial_load_parallelism = 1;
        spec.settings.max_source_connections = 1;
    });
    assert_eq!(story.copies().len(), before);
}
