//! Whatever happens to a table, the rows with the highest versions that are not deleted are the table.

use std::collections::BTreeMap;

use millrace_model::{Lsn, ReplicaIdentity, Timestamp};
use millrace_pgoutput::{Body, Insert};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::native;
use crate::scene::{Scene, row, table};

const OID: u32 = 1;

#[derive(Debug, Clone)]
enum Action {
    Put { id: u8, region: u8, value: u8 },
    Change { id: u8, region: u8, value: u8, unchanged: bool },
    Move { id: u8, to: u8 },
    Delete { id: u8 },
    MultiInsert { ids: Vec<u8>, value: u8 },
    Truncate,
    Commit,
    Take,
}

fn action() -> impl Strategy<Value = Action> {
    let id = || 0..6u8;
    prop_oneof![
        4 => (id(), 0..3u8, any::<u8>()).prop_map(|(id, region, value)| Action::Put { id, region, value }),
        4 => (id(), 0..3u8, any::<u8>(), any::<bool>())
            .prop_map(|(id, region, value, unchanged)| Action::Change { id, region, value, unchanged }),
        3 => (id(), id()).prop_map(|(id, to)| Action::Move { id, to }),
        3 => id().prop_map(|id| Action::Delete { id }),
        1 => (vec(id(), 1..4), any::<u8>()).prop_map(|(ids, value)| Action::MultiInsert { ids, value }),
        1 => Just(Action::Truncate),
        3 => Just(Action::Commit),
        2 => Just(Action::Take),
    ]
}

/// A table at the source: id to region and value.
type Model = BTreeMap<u8, (u8, u8)>;

fn text(id: u8, (region, value): (u8, u8)) -> String {
    format!("{id}, r{region}, v{value}")
}

fn key(id: u8) -> String {
    format!("{id}, NULL, NULL")
}

/// The destination: rows in the order in which they were inserted.
#[derive(Default)]
struct Destination {
    rows: Vec<native::Row>,
}

impl Destination {
    fn take_from(&mut self, scene: &mut Scene) {
        let batch = scene.applier.take(Timestamp(0));
        for (_, block) in &batch.blocks {
            self.rows.extend(native::rows(block));
        }
    }

    /// What `FINAL` shows: of rows at one place the one with the highest version, of equal versions the last, without
    /// deleted ones. `place` says how many leading columns of (id, region, value) make the sorting key.
    fn current(&self, place: usize) -> Vec<String> {
        let mut last: BTreeMap<&[String], &native::Row> = BTreeMap::new();
        for row in &self.rows {
            let held = last.entry(&row.values[..place]).or_insert(row);
            if row.version >= held.version {
                *held = row;
            }
        }
        last.values().filter(|row| !row.is_deleted).map(|row| row.values.join(", ")).collect()
    }
}

fn run(actions: &[Action], identity: ReplicaIdentity, sorted_by_region: bool) -> (Vec<String>, Vec<String>) {
    let full = identity == ReplicaIdentity::Full;
    let mut items = table(OID, "items", &["id bigint!", "region text!", "value text"], &["id"], identity);
    if sorted_by_region {
        items.sorting_key = vec!["id".to_owned(), "region".to_owned()];
    }
    let mut scene = Scene::begun(vec![items]);
    let mut model = Model::new();
    let mut destination = Destination::default();
    for action in actions {
        match action {
            Action::Put { id, region, value } => {
                if !model.contains_key(id) {
                    model.insert(*id, (*region, *value));
                    scene.insert(OID, &text(*id, (*region, *value)));
                }
            }
            Action::Change { id, region, value, unchanged } => {
                let Some(row) = model.get_mut(id) else { continue };
                let old = *row;
                // Only the whole old row carries a value that an update leaves out.
                let unchanged = *unchanged && full;
                *row = (*region, if unchanged { old.1 } else { *value });
                if unchanged {
                    scene.update_from_row(OID, &text(*id, old), &format!("{id}, r{region}, ~"));
                } else if full {
                    scene.update_from_row(OID, &text(*id, old), &text(*id, *row));
                } else {
                    scene.update(OID, &text(*id, *row));
                }
            }
            Action::Move { id, to } => {
                if model.contains_key(to) {
                    continue;
                }
                let Some(row) = model.remove(id) else { continue };
                model.insert(*to, row);
                if full {
                    scene.update_from_row(OID, &text(*id, row), &text(*to, row));
                } else {
                    scene.update_from_key(OID, &key(*id), &text(*to, row));
                }
            }
            Action::Delete { id } => {
                let Some(row) = model.remove(id) else { continue };
                if full {
                    scene.delete_row(OID, &text(*id, row));
                } else {
                    scene.delete_key(OID, &key(*id));
                }
            }
            Action::MultiInsert { ids, value } => {
                // All rows of one WAL record share its position.
                let position = scene.lsn;
                for id in ids {
                    if model.contains_key(id) {
                        continue;
                    }
                    model.insert(*id, (0, *value));
                    scene.lsn = position;
                    let new = row(&text(*id, (0, *value)));
                    scene.send(Body::Insert(Insert { relation: OID, new: new.as_tuple() }));
                }
            }
            Action::Truncate => {
                model.clear();
                scene.truncate(&[OID]);
                let Lsn(position) = scene.lsn;
                destination.take_from(&mut scene);
                destination.rows.retain(|row| row.version >= position);
            }
            Action::Commit => {
                scene.commit();
                scene.begin();
            }
            Action::Take => destination.take_from(&mut scene),
        }
    }
    destination.take_from(&mut scene);
    let expected = model.into_iter().map(|(id, row)| text(id, row)).collect();
    (destination.current(if sorted_by_region { 2 } else { 1 }), expected)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_table_with_default_identity_converges(actions in vec(action(), 0..60)) {
        let (current, expected) = run(&actions, ReplicaIdentity::Default, false);
        prop_assert_eq!(current, expected);
    }

    #[test]
    fn a_table_with_full_identity_converges(actions in vec(action(), 0..60)) {
        let (current, expected) = run(&actions, ReplicaIdentity::Full, false);
        prop_assert_eq!(current, expected);
    }

    #[test]
    fn a_table_sorted_by_more_than_its_key_converges(actions in vec(action(), 0..60)) {
        let (current, expected) = run(&actions, ReplicaIdentity::Full, true);
        prop_assert_eq!(current, expected);
    }

    #[test]
    fn any_bytes_never_panic(messages in vec((prop::sample::select(b"BCORYIUDTMSE".as_slice()), vec(any::<u8>(), 0..40)), 0..20)) {
        let mut scene = Scene::begun(vec![table(OID, "items", &["id bigint!"], &["id"], ReplicaIdentity::Default)]);
        for (kind, rest) in messages {
            let _ = scene.applier.apply(Lsn(1), &[&[kind], rest.as_slice()].concat());
        }
        scene.applier.take(Timestamp(0));
    }
}
