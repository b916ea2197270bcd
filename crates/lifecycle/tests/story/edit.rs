//! Edits of the specification.

use std::time::Duration;

use millrace_lifecycle::{Difference, PipeState};
use millrace_model::PipeSpec;
use millrace_model::spec::{MetadataColumns, OutOfRange, ReplicationMode, TableEngine, TableSpec};

use crate::harness::{Story, name, spec};

/// An edit, and what it is called here.
type Edit = (&'static str, fn(&mut PipeSpec));

#[test]
fn every_edit_is_told_in_words() {
    let edits: [Edit; 12] = [
        ("nothing", |_| {}),
        ("a table more", |spec| spec.tables.push(TableSpec::new(name("stock"), "stock"))),
        ("a table less", |spec| drop(spec.tables.remove(1))),
        ("one for another", |spec| spec.tables[1] = TableSpec::new(name("stock"), "stock")),
        ("another key and engine", |spec| {
            spec.tables[0].sorting_keys = vec!["id".into()];
            spec.tables[0].engine = TableEngine::MergeTree;
        }),
        ("another name", |spec| spec.tables[0].target = "sales".into()),
        ("values out of range", |spec| {
            spec.tables[0].out_of_range.insert("price".into(), OutOfRange::Stop);
        }),
        ("other metadata columns", |spec| spec.settings.metadata_columns = MetadataColumns::peerdb()),
        ("live settings", |spec| {
            spec.settings.sync_interval = Duration::from_secs(9);
            spec.settings.max_held_wal = 1;
        }),
        ("another password", |spec| spec.source.password = millrace_model::Secret::new("other")),
        ("another database", |spec| spec.source.database = "other".into()),
        ("another mode and slot", |spec| {
            spec.mode = ReplicationMode::Snapshot;
            spec.settings.replication_slot_name = Some("other".into());
        }),
    ];
    let before = spec(ReplicationMode::Cdc, &["orders", "items"]);
    let words = edits.map(|(what, edit)| {
        let mut after = before.clone();
        edit(&mut after);
        format!("{what}: {}", Difference::between(&before, &after))
    });
    insta::assert_snapshot!(words.join("\n"));
}

#[test]
fn what_cannot_be_edited_is_refused_and_nothing_changes() {
    let refused = |mut story: Story, edit: fn(&mut PipeSpec)| {
        let mut spec = story.pipe.pipe().spec.clone();
        edit(&mut spec);
        story.refused(|pipe, now| pipe.edit(spec, false, now))
    };
    let running = || Story::running(&["orders", "items"]);
    let provisioning = || Story::new(ReplicationMode::Cdc, &["orders", "items"]);
    let words = [
        refused(running(), |spec| spec.mode = ReplicationMode::Snapshot),
        refused(running(), |spec| spec.destination.database = "other".into()),
        refused(running(), |spec| spec.settings.publication_name = Some("theirs".into())),
        refused(running(), |spec| spec.tables[0].sorting_keys = vec!["id".into()]),
        refused(running(), |spec| spec.settings.delete_on_merge = false),
        refused(provisioning(), |spec| spec.tables.push(TableSpec::new(name("stock"), "stock"))),
        refused(provisioning(), |spec| drop(spec.tables.remove(0))),
    ];
    insta::assert_snapshot!(words.join("\n"));
}

#[test]
fn settings_take_effect_without_a_restart_of_the_stream() {
    let mut story = Story::running(&["orders"]);
    let (epoch, generation) =
        (story.epoch_of(&millrace_lifecycle::Task::Stream), story.pipe.pipe().generation);
    story.edit(|spec| spec.settings.sync_interval = Duration::from_secs(9));
    let assignment = &story.works[&epoch];
    assert_eq!(assignment.spec.settings.sync_interval, Duration::from_secs(9));
    assert_eq!(story.pipe.pipe().generation, generation + 1);
    assert_eq!(story.state(), PipeState::Running);
}

#[test]
fn an_edit_that_changes_nothing_is_none() {
    let mut story = Story::running(&["orders"]);
    let (mark, generation) = (story.mark(), story.pipe.pipe().generation);
    assert_eq!(story.edit(|_| {}), "nothing");
    assert_eq!(story.since(mark), "");
    assert_eq!(story.pipe.pipe().generation, generation);
}

#[test]
fn another_sorting_key_is_had_by_a_resync_of_the_table() {
    let mut story = Story::running(&["orders", "items"]);
    let mut spec = story.pipe.pipe().spec.clone();
    spec.tables[1].sorting_keys = vec!["id".into()];
    story.command(|pipe, now| pipe.edit(spec, true, now));
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.newest("items").record.spec.sorting_keys, ["id"]);
    assert_eq!(story.tables(), "orders streaming, items streaming");
}

#[test]
fn an_edit_whose_resync_cannot_work_changes_nothing() {
    let refused = |mut story: Story, edit: fn(&mut PipeSpec)| {
        let mut spec = story.pipe.pipe().spec.clone();
        edit(&mut spec);
        story.refused(|pipe, now| pipe.edit(spec, true, now))
    };
    let mut lost = Story::running(&["orders", "items"]);
    let slot_lost = millrace_model::Problem::permanent("SLOT_LOST", "the slot is lost", "resync");
    lost.fail(&millrace_lifecycle::Task::Stream, slot_lost);
    let mut paused = Story::running(&["orders", "items"]);
    paused.command(|pipe, now| pipe.pause(now));
    paused.settle();
    let words = [
        refused(lost, |spec| spec.tables[0].sorting_keys = vec!["id".into()]),
        refused(Story::settled(ReplicationMode::CdcOnly, &["orders"]), |spec| {
            spec.tables[0].sorting_keys = vec!["id".into()];
        }),
        refused(paused, |spec| {
            spec.tables[0].sorting_keys = vec!["id".into()];
            spec.tables.remove(1);
        }),
    ];
    insta::assert_snapshot!(words.join("\n"));
}

#[test]
fn tables_come_and_go_and_are_copied_anew_in_one_edit() {
    let mut story = Story::running(&["orders", "items"]);
    let mut spec = story.pipe.pipe().spec.clone();
    spec.tables[0].sorting_keys = vec!["id".into()];
    spec.tables[1] = TableSpec::new(name("stock"), "stock");
    story.command(|pipe, now| pipe.edit(spec, true, now));
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming, stock streaming");
    assert_eq!(story.newest("orders").record.spec.sorting_keys, ["id"]);
}

#[test]
fn tables_are_added_and_taken_out_in_one_edit() {
    let mut story = Story::running(&["orders", "items"]);
    let mark = story.mark();
    story.edit(|spec| spec.tables[1] = TableSpec::new(name("stock"), "stock"));
    story.settle();
    assert_eq!(story.state(), PipeState::Running);
    assert_eq!(story.tables(), "orders streaming, stock streaming");
    insta::assert_snapshot!(story.since(mark));
}
