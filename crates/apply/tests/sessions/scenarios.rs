//! What becomes of each kind of change, told as sessions.

use insta::assert_snapshot;
use millrace_apply::{ApplyError, Step, StreamTable, TableIndex};
use millrace_model::{Lsn, ReplicaIdentity, Timestamp};
use millrace_pgoutput::encode::TupleBuffer;
use millrace_pgoutput::{Body, Cell, Insert, LogicalMessage, Relation, RelationColumn};

use crate::scene::{Scene, relation_of, row, table};

const ITEMS: u32 = 100;

fn items(identity: ReplicaIdentity) -> StreamTable {
    table(ITEMS, "items", &["id bigint!", "name text", "note text"], &["id"], identity)
}

fn begun(identity: ReplicaIdentity) -> Scene {
    Scene::begun(vec![items(identity)])
}

#[test]
fn inserts_updates_and_deletes_become_rows_with_the_position_of_their_change() {
    let mut scene = begun(ReplicaIdentity::Default);
    scene.insert(ITEMS, "1, first, NULL");
    scene.insert(ITEMS, "2, second, hello");
    scene.update(ITEMS, "1, FIRST, NULL");
    scene.delete_key(ITEMS, "2, NULL, NULL");
    scene.commit();
    assert_snapshot!(scene.story(), @r"
    committed 0/78 at 1s
    batch of 4 changes, committed 0/78, commits at 1s to 1s
      items
        0/30 + 1, first, NULL
        0/40 + 2, second, hello
        0/50 + 1, FIRST, NULL
        0/60 - 2, NULL, NULL
    ");
}

#[test]
fn a_change_of_the_key_leaves_a_tombstone_before_the_new_row() {
    let mut scene = begun(ReplicaIdentity::Default);
    scene.update_from_key(ITEMS, "1, NULL, NULL", "10, first, note");
    scene.commit();
    assert_snapshot!(scene.story(), @r"
    committed 0/48 at 1s
    batch of 1 changes, committed 0/48, commits at 1s to 1s
      items
        0/30 - 1, NULL, NULL
        0/30 + 10, first, note
    ");
}

#[test]
fn an_old_key_that_is_the_same_leaves_no_tombstone() {
    let mut scene = begun(ReplicaIdentity::Default);
    scene.update_from_key(ITEMS, "1, NULL, NULL", "1, first, note");
    assert_snapshot!(scene.story(), @r"
    batch of 1 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 + 1, first, note
    ");
}

#[test]
fn under_full_identity_only_the_key_decides_whether_a_row_moved() {
    let mut scene = begun(ReplicaIdentity::Full);
    scene.update_from_row(ITEMS, "1, first, note", "1, FIRST, note");
    scene.update_from_row(ITEMS, "1, FIRST, note", "10, FIRST, note");
    scene.delete_row(ITEMS, "10, FIRST, note");
    assert_snapshot!(scene.story(), @r"
    batch of 3 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 + 1, FIRST, note
        0/40 - 1, FIRST, note
        0/40 + 10, FIRST, note
        0/50 - 10, FIRST, note
    ");
}

#[test]
fn under_an_index_identity_its_columns_are_the_key() {
    let items = table(
        ITEMS,
        "items",
        &["id bigint!", "name text!", "note text"],
        &["name", "id"],
        ReplicaIdentity::Index,
    );
    let mut scene = Scene::begun(vec![items]);
    scene.update_from_key(ITEMS, "1, first, NULL", "1, FIRST, note");
    scene.delete_key(ITEMS, "1, FIRST, NULL");
    assert_snapshot!(scene.story(), @r"
    batch of 2 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 - 1, first, NULL
        0/30 + 1, FIRST, note
        0/40 - 1, FIRST, NULL
    ");
}

#[test]
fn a_longer_sorting_key_is_the_place_that_a_tombstone_takes() {
    let mut items = items(ReplicaIdentity::Full);
    items.sorting_key = vec!["name".to_owned(), "id".to_owned()];
    let mut scene = Scene::begun(vec![items]);
    scene.update_from_row(ITEMS, "1, first, note", "1, second, note");
    assert_snapshot!(scene.story(), @r"
    batch of 1 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 - 1, first, note
        0/30 + 1, second, note
    ");
}

#[test]
fn a_sorting_key_that_the_old_tuple_does_not_carry_sets_the_table_aside() {
    let mut items = items(ReplicaIdentity::Default);
    items.sorting_key = vec!["name".to_owned(), "id".to_owned()];
    let scene = Scene::begun(vec![items]);
    assert_snapshot!(scene.story(), @r#"
    set aside items: public.items: updates and deletes do not carry the old value of "name", by which rows are told apart [REPLICA_IDENTITY_CHANGED]; run ALTER TABLE public.items REPLICA IDENTITY FULL or name the index over the key, then run `millrace pipe retry`
    batch of 0 changes, committed 0/0
    "#);
}

#[test]
fn without_a_key_the_whole_row_is_the_place() {
    let log = table(ITEMS, "log", &["at bigint", "line text"], &[], ReplicaIdentity::Full);
    let mut scene = Scene::begun(vec![log]);
    scene.insert(ITEMS, "1, a");
    scene.update_from_row(ITEMS, "1, a", "1, b");
    scene.update_from_row(ITEMS, "1, b", "1, b");
    scene.delete_row(ITEMS, "1, b");
    assert_snapshot!(scene.story(), @r"
    batch of 4 changes, committed 0/0, commits at 1s to 1s
      log
        0/30 + 1, a
        0/40 - 1, a
        0/40 + 1, b
        0/50 + 1, b
        0/60 - 1, b
    ");
}

#[test]
fn a_table_without_identity_takes_inserts() {
    for identity in [ReplicaIdentity::Default, ReplicaIdentity::Nothing] {
        let log = table(ITEMS, "log", &["at bigint", "line text"], &[], identity);
        let mut scene = Scene::begun(vec![log]);
        assert_eq!(scene.insert(ITEMS, "1, a"), Step::Buffered);
    }
}

#[test]
fn an_unchanged_value_is_taken_from_the_whole_old_row() {
    let mut scene = begun(ReplicaIdentity::Full);
    scene.update_from_row(ITEMS, "1, first, a long note", "1, FIRST, ~");
    scene.update_from_row(ITEMS, "1, FIRST, a long note", "2, FIRST, ~");
    assert_snapshot!(scene.story(), @r"
    batch of 2 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 + 1, FIRST, a long note
        0/40 - 1, FIRST, a long note
        0/40 + 2, FIRST, a long note
    ");
}

#[test]
fn an_unchanged_key_is_taken_from_the_old_key() {
    let items = table(ITEMS, "items", &["id text!", "name text"], &["id"], ReplicaIdentity::Default);
    let mut scene = Scene::begun(vec![items]);
    scene.update_from_key(ITEMS, "a long key, NULL", "~, FIRST");
    assert_snapshot!(scene.story(), @r"
    batch of 1 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 + a long key, FIRST
    ");
}

#[test]
fn an_unchanged_value_that_nothing_carries_waits_apart() {
    let mut scene = begun(ReplicaIdentity::Default);
    scene.insert(ITEMS, "1, first, a long note");
    scene.update(ITEMS, "7, FIRST, ~");
    scene.take();
    scene.insert(ITEMS, "2, second, NULL");
    scene.commit();
    assert_eq!((scene.applier.incomplete_rows(), scene.applier.buffered_rows()), (1, 2));
    assert_snapshot!(scene.story(), @r"
    apart
    batch of 2 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 + 1, first, a long note
    committed 0/68 at 1s
    batch of 1 changes, committed 0/0, commits at 1s to 1s
      items
        0/50 + 2, second, NULL
    ");
}

#[test]
fn a_key_tuple_never_lends_its_nulls_as_values() {
    let mut scene = begun(ReplicaIdentity::Default);
    scene.update_from_key(ITEMS, "1, NULL, NULL", "2, FIRST, ~");
    assert_eq!(scene.applier.incomplete_rows(), 1);
}

#[test]
fn without_a_place_an_unchanged_value_that_nothing_carries_sets_the_table_aside() {
    let items = table(ITEMS, "items", &["id bigint!", "note text"], &[], ReplicaIdentity::Default);
    let mut scene = Scene::begun(vec![items]);
    scene.update(ITEMS, "7, ~");
    assert_snapshot!(scene.story(), @r#"
    set aside items: public.items: an update of the row with no key does not carry column "note", which it left unchanged and which is stored out of line [TOAST_VALUE_MISSING]; run ALTER TABLE public.items REPLICA IDENTITY FULL, then run `millrace pipe retry`
    batch of 0 changes, committed 0/0
    "#);
}

#[test]
fn a_value_that_cannot_be_carried_sets_the_table_aside_and_names_the_key() {
    let mut scene = begun(ReplicaIdentity::Default);
    scene.insert(ITEMS, "1, first, note");
    scene.insert(ITEMS, "one, second, note");
    scene.commit();
    assert_snapshot!(scene.story(), @r"
    set aside items: public.items: the row with id = one cannot be carried over: column 'id', on its way to Int64: the value's bytes are not of the form that its source type has [VALUE_NOT_CARRIED]; name the column under excludedColumns or mend the row, then run `millrace pipe retry`
    committed 0/58 at 1s
    batch of 1 changes, committed 0/58, commits at 1s to 1s
      items
        0/30 + 1, first, note
    ");
}

#[test]
fn a_null_where_none_can_be_asks_for_the_definition() {
    let events = table(ITEMS, "events", &["id bigint!", "size integer!"], &["id"], ReplicaIdentity::Default);
    let mut scene = Scene::begun(vec![events]);
    let cells = [Cell::Binary(&[0, 0, 0, 0, 0, 0, 0, 5]), Cell::Null];
    let row: TupleBuffer = cells.into_iter().collect();
    scene.send(Body::Insert(Insert { relation: ITEMS, new: row.as_tuple() }));
    assert_snapshot!(scene.story(), @r"
    events has the columns id, size now
    batch of 0 changes, committed 0/0
    ");
}

#[test]
fn tombstones_hold_defaults_where_null_cannot_be() {
    let events = table(ITEMS, "events", &["id bigint!", "size integer!"], &["id"], ReplicaIdentity::Default);
    let mut scene = Scene::begun(vec![events]);
    scene.delete_key(ITEMS, "5, NULL");
    assert_snapshot!(scene.story(), @r"
    batch of 1 changes, committed 0/0, commits at 1s to 1s
      events
        0/30 - 5, 0
    ");
}

#[test]
fn binary_values_are_carried_like_text() {
    let mut scene = begun(ReplicaIdentity::Default);
    let cells = [Cell::Binary(&[0, 0, 0, 0, 0, 0, 1, 0]), Cell::Binary(b"first"), Cell::Null];
    let row: TupleBuffer = cells.into_iter().collect();
    scene.send(Body::Insert(Insert { relation: ITEMS, new: row.as_tuple() }));
    assert_snapshot!(scene.story(), @r"
    batch of 1 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 + 256, first, NULL
    ");
}

#[test]
fn a_truncate_names_our_tables_and_its_position() {
    let orders = table(200, "orders", &["id bigint!"], &["id"], ReplicaIdentity::Default);
    let mut scene = Scene::begun(vec![items(ReplicaIdentity::Default), orders]);
    scene.relation(Relation {
        oid: 900,
        name: "foreign".to_owned(),
        ..relation_of(&items(ReplicaIdentity::Default))
    });
    scene.insert(ITEMS, "1, first, NULL");
    scene.truncate(&[200, 900, ITEMS]);
    assert_eq!(scene.truncate(&[900]), Step::Ignored);
    scene.applier.set_aside(TableIndex(1));
    scene.truncate(&[200, ITEMS]);
    scene.insert(ITEMS, "1, again, NULL");
    scene.commit();
    assert_snapshot!(scene.story(), @r"
    truncate orders, items below 0/60
    truncate items below 0/80
    committed 0/A8 at 1s
    batch of 2 changes, committed 0/A8, commits at 1s to 1s
      items
        0/50 + 1, first, NULL
        0/90 + 1, again, NULL
    ");
}

#[test]
fn changes_of_tables_that_are_not_carried_are_ignored_but_their_commits_count() {
    let mut resting = items(ReplicaIdentity::Default);
    resting.active = false;
    let mut scene = Scene::begun(vec![resting]);
    scene.relation(Relation {
        oid: 900,
        name: "foreign".to_owned(),
        ..relation_of(&items(ReplicaIdentity::Default))
    });
    assert_eq!(scene.insert(900, "1, first, NULL"), Step::Ignored);
    assert_eq!(scene.insert(ITEMS, "1, first, NULL"), Step::Ignored);
    scene.commit();
    assert_snapshot!(scene.story(), @r"
    committed 0/68 at 1s
    batch of 0 changes, committed 0/68
    ");
}

#[test]
fn messages_that_only_inform_are_ignored() {
    let mut scene = Scene::new(Vec::new());
    let beat = LogicalMessage { transactional: false, lsn: Lsn(1), prefix: "millrace", content: b"" };
    assert_eq!(scene.send(Body::LogicalMessage(beat)), Step::Ignored);
    scene.begin();
    assert_eq!(scene.send(Body::Origin { commit_lsn: Lsn(1), name: "elsewhere" }), Step::Ignored);
    assert_eq!(scene.send(Body::Type { oid: 9, schema: "public", name: "mood" }), Step::Ignored);
}

#[test]
fn a_transaction_may_be_cut_and_counts_as_committed_only_at_its_end() {
    let mut scene = begun(ReplicaIdentity::Default);
    scene.insert(ITEMS, "1, first, NULL");
    scene.commit();
    scene.begin();
    scene.insert(ITEMS, "2, second, NULL");
    assert!(scene.applier.in_transaction());
    scene.take();
    scene.insert(ITEMS, "3, third, NULL");
    scene.commit();
    assert!(!scene.applier.in_transaction());
    scene.take();
    assert_snapshot!(scene.story(), @r"
    committed 0/48 at 1s
    batch of 2 changes, committed 0/48, commits at 1s to 2s
      items
        0/30 + 1, first, NULL
        0/60 + 2, second, NULL
    committed 0/88 at 2s
    batch of 1 changes, committed 0/88, commits at 2s to 2s
      items
        0/70 + 3, third, NULL
    batch of 0 changes, committed 0/88
    ");
}

#[test]
fn changes_of_one_key_keep_their_order_and_tables_their_own_blocks() {
    let orders = table(200, "orders", &["id bigint!"], &["id"], ReplicaIdentity::Default);
    let mut scene = Scene::begun(vec![items(ReplicaIdentity::Default), orders]);
    scene.insert(200, "5");
    scene.insert(ITEMS, "1, a, NULL");
    scene.update(ITEMS, "1, b, NULL");
    scene.delete_key(ITEMS, "1, NULL, NULL");
    scene.delete_key(200, "5");
    scene.insert(ITEMS, "1, c, NULL");
    assert_snapshot!(scene.story(), @r"
    batch of 6 changes, committed 0/0, commits at 1s to 1s
      orders
        0/40 + 5
        0/80 - 5
      items
        0/50 + 1, a, NULL
        0/60 + 1, b, NULL
        0/70 - 1, NULL, NULL
        0/90 + 1, c, NULL
    ");
}

#[test]
fn what_waits_is_counted_until_it_is_taken() {
    let mut scene = begun(ReplicaIdentity::Default);
    assert_eq!((scene.applier.buffered_rows(), scene.applier.buffered_bytes()), (0, 0));
    for _ in 0..2 {
        scene.insert(ITEMS, "1, first, NULL");
        let one = scene.applier.buffered_bytes();
        scene.update_from_key(ITEMS, "1, NULL, NULL", "2, first, NULL");
        assert_eq!(scene.applier.buffered_rows(), 3);
        assert!(scene.applier.buffered_bytes() > one + 2 * (8 + 17));
        let promised = scene.applier.buffered_bytes();
        let batch = scene.applier.take(Timestamp(0));
        assert_eq!(batch.blocks.iter().map(|(_, block)| block.bytes()).sum::<usize>(), promised);
        assert_eq!((scene.applier.buffered_rows(), scene.applier.buffered_bytes()), (0, 0));
    }
}

#[test]
fn a_row_that_fails_half_way_leaves_nothing_behind() {
    let mut scene = begun(ReplicaIdentity::Default);
    scene.insert(ITEMS, "1, first, NULL");
    let before = scene.applier.buffered_bytes();
    scene.insert(ITEMS, "two, a name, NULL");
    assert_eq!((scene.applier.buffered_rows(), scene.applier.buffered_bytes()), (1, before));
}

/// Sends a changed description of `items`, then a change, and tells what came of it.
fn described(change: impl FnOnce(&mut Relation)) -> String {
    let table = items(ReplicaIdentity::Default);
    let mut relation = relation_of(&table);
    change(&mut relation);
    let oid = relation.oid;
    let mut scene = Scene::begun(vec![table]);
    scene.relation(relation);
    assert_eq!(scene.insert(oid, "1, first, NULL"), Step::Ignored);
    scene.story()
}

#[test]
fn a_table_whose_columns_changed_waits_for_its_new_definition() {
    let before = items(ReplicaIdentity::Default);
    let after = table(
        ITEMS,
        "items",
        &["id bigint!", "name text", "note text", "size integer"],
        &["id"],
        ReplicaIdentity::Default,
    );
    let mut scene = Scene::begun(vec![before]);
    scene.insert(ITEMS, "1, first, NULL");
    // The description alone asks for nothing: what led to it may have been rolled back.
    assert_eq!(scene.relation(relation_of(&after)), Step::Ignored);
    for _ in 0..2 {
        assert!(matches!(scene.insert(ITEMS, "2, second, NULL, 7"), Step::SchemaChanged { .. }));
    }
    scene.take();
    assert_eq!(scene.applier.redefine(TableIndex(0), after, &[]), Ok(()));
    scene.insert(ITEMS, "2, second, NULL, 7");
    assert_snapshot!(scene.story(), @r"
    items has the columns id, name, note, size now
    items has the columns id, name, note, size now
    batch of 1 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 + 1, first, NULL
    batch of 1 changes, committed 0/0, commits at 1s to 1s
      items
        0/70 + 2, second, NULL, 7
    ");
}

#[test]
fn a_definition_that_still_does_not_fit_sets_the_table_aside() {
    let mut changed = relation_of(&items(ReplicaIdentity::Default));
    changed.columns[1].type_oid = 1043;
    let mut scene = begun(ReplicaIdentity::Default);
    scene.relation(changed);
    let problem = scene.applier.redefine(TableIndex(0), items(ReplicaIdentity::Default), &[]).unwrap_err();
    assert_eq!(problem.code, "SOURCE_SCHEMA_CHANGED");
    assert_eq!(scene.insert(ITEMS, "1, first, NULL"), Step::Ignored);
}

#[test]
fn a_table_that_was_renamed_sets_itself_aside() {
    assert_snapshot!(described(|relation| relation.name = "items_old".to_owned()), @r"
    set aside items: public.items: the table changed at the source: it is called public.items_old now [SOURCE_SCHEMA_CHANGED]; run `millrace pipe retry`, which copies the table anew with its present columns
    batch of 0 changes, committed 0/0
    ");
    assert_snapshot!(described(|relation| relation.schema = "archive".to_owned()), @r"
    set aside items: public.items: the table changed at the source: it is called archive.items now [SOURCE_SCHEMA_CHANGED]; run `millrace pipe retry`, which copies the table anew with its present columns
    batch of 0 changes, committed 0/0
    ");
}

#[test]
fn another_table_under_the_same_name_sets_the_table_aside() {
    assert_snapshot!(described(|relation| relation.oid = 101), @r"
    set aside items: public.items: the table changed at the source: another table bears its name now (oid 101 in place of 100) [SOURCE_SCHEMA_CHANGED]; run `millrace pipe retry`, which copies the table anew with its present columns
    batch of 0 changes, committed 0/0
    ");
}

#[test]
fn a_table_that_takes_the_name_of_another_sets_both_aside() {
    let next = table(
        200,
        "items_next",
        &["id bigint!", "name text", "note text"],
        &["id"],
        ReplicaIdentity::Default,
    );
    let swapped = Relation { name: "items".to_owned(), ..relation_of(&next) };
    let mut scene = Scene::begun(vec![items(ReplicaIdentity::Default), next]);
    scene.relation(swapped);
    assert_snapshot!(scene.story(), @r"
    set aside items: public.items: the table changed at the source: another table bears its name now (oid 200 in place of 100) [SOURCE_SCHEMA_CHANGED]; run `millrace pipe retry`, which copies the table anew with its present columns
    set aside items_next: public.items_next: the table changed at the source: it is called public.items now [SOURCE_SCHEMA_CHANGED]; run `millrace pipe retry`, which copies the table anew with its present columns
    batch of 0 changes, committed 0/0
    ");
}

#[test]
fn a_replica_identity_that_no_longer_carries_the_key_sets_the_table_aside() {
    assert_snapshot!(described(|relation| relation.replica_identity = ReplicaIdentity::Nothing), @r#"
    set aside items: public.items: updates and deletes do not carry the old value of "id", by which rows are told apart [REPLICA_IDENTITY_CHANGED]; run ALTER TABLE public.items REPLICA IDENTITY FULL or name the index over the key, then run `millrace pipe retry`
    batch of 0 changes, committed 0/0
    "#);
    assert_snapshot!(described(|relation| {
        relation.replica_identity = ReplicaIdentity::Index;
        relation.columns[0].key = false;
        relation.columns[1].key = true;
    }), @r#"
    set aside items: public.items: updates and deletes do not carry the old value of "id", by which rows are told apart [REPLICA_IDENTITY_CHANGED]; run ALTER TABLE public.items REPLICA IDENTITY FULL or name the index over the key, then run `millrace pipe retry`
    batch of 0 changes, committed 0/0
    "#);
}

#[test]
fn a_replica_identity_that_still_carries_the_key_is_followed() {
    let table = items(ReplicaIdentity::Default);
    let full = relation_of(&items(ReplicaIdentity::Full));
    let mut index = relation_of(&table);
    index.replica_identity = ReplicaIdentity::Index;
    index.columns[1].key = true;
    let mut scene = Scene::begun(vec![table]);
    scene.relation(full);
    scene.update_from_row(ITEMS, "1, first, a long note", "2, first, ~");
    scene.relation(index);
    scene.update_from_key(ITEMS, "2, first, NULL", "2, FIRST, short");
    assert_snapshot!(scene.story(), @r"
    batch of 2 changes, committed 0/0, commits at 1s to 1s
      items
        0/40 - 1, first, a long note
        0/40 + 2, first, a long note
        0/60 + 2, FIRST, short
    ");
}

#[test]
fn the_order_of_columns_at_the_source_does_not_matter_and_excluded_ones_are_left_out() {
    let mut table = items(ReplicaIdentity::Default);
    // Recorded in another order than the columns' numbers.
    let mut relation = relation_of(&table);
    relation.columns.reverse();
    for (column, attribute) in table.definition.columns.iter_mut().rev().zip(1..) {
        column.attribute = attribute;
    }
    let secret = RelationColumn { key: false, name: "secret".to_owned(), type_oid: 25, type_modifier: -1 };
    relation.columns.insert(1, secret);
    table.excluded = vec!["secret".to_owned()];
    let mut scene = Scene::new(vec![table]);
    scene.begin();
    scene.relation(relation);
    scene.insert(ITEMS, "note, hidden, first, 1");
    scene.update(ITEMS, "note, ~, FIRST, 1");
    assert_snapshot!(scene.story(), @r"
    batch of 2 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 + 1, first, note
        0/40 + 1, FIRST, note
    ");
}

#[test]
fn a_column_that_stands_elsewhere_is_another_one() {
    let table = items(ReplicaIdentity::Default);
    let mut relation = relation_of(&table);
    relation.columns.swap(1, 2);
    let mut scene = Scene::begun(vec![table]);
    scene.relation(relation);
    assert!(matches!(scene.insert(ITEMS, "1, note, first"), Step::SchemaChanged { .. }));
}

#[test]
fn an_excluded_column_may_be_dropped() {
    let mut table = items(ReplicaIdentity::Default);
    table.excluded = vec!["secret".to_owned()];
    let without = relation_of(&table);
    let mut with = without.clone();
    let secret = RelationColumn { key: false, name: "secret".to_owned(), type_oid: 25, type_modifier: -1 };
    with.columns.insert(0, secret);
    let mut scene = Scene::new(vec![table]);
    scene.begin();
    scene.relation(with);
    scene.insert(ITEMS, "hidden, 1, first, note");
    scene.relation(without);
    scene.insert(ITEMS, "2, second, note");
    assert_snapshot!(scene.story(), @r"
    batch of 2 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 + 1, first, note
        0/50 + 2, second, note
    ");
}

#[test]
fn a_planned_column_that_is_generated_must_be_in_the_stream() {
    let mut table = items(ReplicaIdentity::Default);
    table.definition.columns[2].generated = true;
    let whole = relation_of(&table);
    let mut without = whole.clone();
    without.columns.pop();

    let mut planned = Scene::new(vec![table.clone()]);
    planned.begin();
    planned.relation(whole);
    planned.insert(ITEMS, "1, first, made");
    planned.relation(without.clone());
    assert_snapshot!(planned.story(), @r#"
    set aside items: public.items: the change stream does not carry the generated columns "note" [GENERATED_COLUMN_NOT_STREAMED]; name them under excludedColumns, or publish them (PostgreSQL 18: publish_generated_columns = stored)
    batch of 1 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 + 1, first, made
    "#);

    table.columns.pop();
    let mut left_out = Scene::new(vec![table]);
    left_out.begin();
    left_out.relation(without);
    left_out.insert(ITEMS, "1, first");
    assert_snapshot!(left_out.story(), @r"
    batch of 1 changes, committed 0/0, commits at 1s to 1s
      items
        0/30 + 1, first
    ");
}

#[test]
fn a_description_that_comes_again_changes_nothing() {
    let table = items(ReplicaIdentity::Default);
    let relation = relation_of(&table);
    let mut scene = Scene::begun(vec![table]);
    scene.insert(ITEMS, "1, first, NULL");
    // Whether it is still the same under the same description only the source can say.
    assert_eq!(scene.relation(relation), Step::Described(TableIndex(0)));
    assert_eq!(scene.insert(ITEMS, "2, second, NULL"), Step::Buffered);
    assert_eq!(scene.applier.buffered_rows(), 2);
}

#[test]
fn one_copy_of_a_table_that_refuses_a_row_is_told_of_though_another_has_to_follow_first() {
    // The table and the copy that is to take its place, of which only one knows the new column.
    let now = items(ReplicaIdentity::Default);
    let before = table(ITEMS, "items", &["id bigint!", "name text"], &["id"], ReplicaIdentity::Default);
    let mut scene = Scene::new(vec![now.clone(), before]);
    scene.begin();
    scene.relation(relation_of(&now));
    let step = scene.insert(ITEMS, "one, first, note");
    assert!(matches!(step, Step::SchemaChanged { table: TableIndex(1), .. }), "{step:?}");
    assert!(!scene.applier.is_active(TableIndex(0)));
    assert!(scene.story().starts_with("items has the columns id, name, note now\nset aside items: public.items: the row with id = one cannot"));
}

#[test]
fn a_copy_of_a_table_that_lacks_values_goes_apart_though_another_refuses_the_row() {
    let columns = ["id bigint!", "name text", "note text"];
    let refuses = table(ITEMS, "items", &columns, &[], ReplicaIdentity::Default);
    let mut scene = Scene::new(vec![items(ReplicaIdentity::Default), refuses]);
    scene.begin();
    scene.relation(relation_of(&items(ReplicaIdentity::Default)));
    scene.insert(ITEMS, "1, first, note");
    scene.take();
    let step = scene.update(ITEMS, "2, second, ~");
    assert_eq!(step, Step::Apart);
    assert!(!scene.applier.is_active(TableIndex(1)));
}

#[test]
fn a_session_that_breaks_the_protocol_is_refused() {
    let mut scene = Scene::new(vec![items(ReplicaIdentity::Default)]);
    let first = row("1, first, NULL");
    let insert = |relation| Body::Insert(Insert { relation, new: first.as_tuple() });
    let lsn = |at: u64| Lsn(at * 16);
    assert_eq!(scene.try_send(insert(ITEMS)), Err(ApplyError::NoTransaction { lsn: lsn(1), kind: "Insert" }));
    scene.begin();
    assert_eq!(scene.try_send(insert(ITEMS)), Err(ApplyError::UnknownRelation { lsn: lsn(3), oid: ITEMS }));
    assert_eq!(
        scene.try_send(Body::StreamStop),
        Err(ApplyError::Unsupported { lsn: lsn(4), kind: "Stream Stop" })
    );
    scene.relation(relation_of(&items(ReplicaIdentity::Default)));
    let short = row("1, first");
    let error = scene.try_send(Body::Insert(Insert { relation: ITEMS, new: short.as_tuple() }));
    assert_snapshot!(error.expect_err("a cell is missing"), @r"
    the change of public.items at 0/60 has 2 cells where the relation has 3 columns
    ");
    let error = scene.applier.apply(Lsn(0x7f), b"I\0");
    assert_snapshot!(error.expect_err("it is cut"), @r"
    the message at 0/7F cannot be read
    ");
    let begin = scene.applier.apply(Lsn(0x80), &[b"B".as_slice(), &[0; 20]].concat());
    assert_eq!(begin, Err(ApplyError::NestedTransaction { lsn: Lsn(0x80) }));
    assert_eq!(scene.applier.buffered_rows(), 0);
}
