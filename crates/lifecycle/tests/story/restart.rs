//! A coordinator that begins anew after every step goes on as if nothing had been.

use millrace_lifecycle::{PipeRecord, Task};
use millrace_model::spec::{ReplicationMode, TableEngine};
use millrace_model::{Lsn, Problem, Timestamp};

use crate::harness::{Story, name};

fn told(tale: fn(&mut Story), mode: ReplicationMode, restarts: bool) -> (Vec<String>, String, String) {
    let mut story = Story::new(mode, &["orders", "items"]);
    if restarts {
        story = story.restarting();
    }
    tale(&mut story);
    story.settle();
    // How often the stream said something in between is another matter.
    let pipe = PipeRecord { since: Timestamp(0), durable: Lsn::ZERO, ..story.pipe.pipe().clone() };
    (story.history.clone(), story.tables(), format!("{pipe:?}"))
}

fn same(mode: ReplicationMode, tale: fn(&mut Story)) {
    let (undisturbed, disturbed) = (told(tale, mode, false), told(tale, mode, true));
    assert_eq!(undisturbed.0.join("\n"), disturbed.0.join("\n"));
    assert_eq!((undisturbed.1, undisturbed.2), (disturbed.1, disturbed.2));
}

#[test]
fn a_first_load_goes_on() {
    for mode in [ReplicationMode::Cdc, ReplicationMode::Snapshot, ReplicationMode::CdcOnly] {
        same(mode, |_| {});
    }
}

#[test]
fn an_addition_goes_on() {
    same(ReplicationMode::Cdc, |story| {
        story.settle();
        story.add("stock");
        story.settle();
        story.add_with("log", TableEngine::MergeTree);
    });
}

#[test]
fn a_removal_goes_on() {
    same(ReplicationMode::Cdc, |story| {
        story.settle();
        story.take_out("orders");
    });
}

#[test]
fn a_resync_goes_on() {
    for mode in [ReplicationMode::Cdc, ReplicationMode::Snapshot] {
        same(mode, |story| {
            story.settle();
            story.command(|pipe, now| pipe.resync(&[], now));
        });
    }
    same(ReplicationMode::Cdc, |story| {
        story.settle();
        story.command(|pipe, now| pipe.resync(&[name("items")], now));
    });
}

#[test]
fn a_pause_in_the_middle_of_a_load_goes_on() {
    same(ReplicationMode::Cdc, |story| {
        story.until_held(|task| matches!(task, Task::Copy { .. }));
        story.perform(&story.copy_of("orders", 0));
        story.command(|pipe, now| pipe.pause(now));
        story.settle();
        story.command(|pipe, now| pipe.resync(&[], now));
        story.settle();
        story.command(|pipe, now| pipe.resume(now));
    });
}

#[test]
fn failures_and_their_repair_go_on() {
    same(ReplicationMode::Cdc, |story| {
        story.until_held(|task| matches!(task, Task::Copy { .. }));
        let refused = Problem::operator("VALUE_REFUSED", "a value", "exclude it").of_table(&name("orders"));
        story.fail(&story.copy_of("orders", 1), refused);
        story.settle();
        story.command(|pipe, now| pipe.retry(&name("orders"), now));
        story.settle();
        story.fail(&Task::Stream, Problem::permanent("SLOT_LOST", "the slot is lost", "resync"));
        story.command(|pipe, now| pipe.resync(&[], now));
    });
}

#[test]
fn a_deletion_goes_on() {
    let mut story = Story::settled(ReplicationMode::Cdc, &["orders"]).restarting();
    story.command(|pipe, now| pipe.delete(true, now));
    story.place();
    story.perform(&Task::Teardown);
    assert_eq!(story.history.last().unwrap(), "worker w1: deleted");
}
