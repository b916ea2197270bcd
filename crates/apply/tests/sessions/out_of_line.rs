//! Values that updates leave out are found again: in the batch, in the destination, at the source, and after a crash.

use std::collections::BTreeMap;

use millrace_apply::{Applier, Found, Step, StreamTable, TableIndex};
use millrace_model::spec::MetadataColumns;
use millrace_model::{Lsn, ReplicaIdentity, Timestamp};
use millrace_pgoutput::encode::encode;
use millrace_pgoutput::{Begin, Body, Cell, Commit, Delete, Insert, Message, OldTuple, Update};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::native;
use crate::scene::{Scene, relation_of, row, table};

const OID: u32 = 1;

/// Rows with odd keys are another table's, so that batches hold rows of two.
fn oid(id: u8) -> u32 {
    OID + u32::from(id % 2)
}

#[derive(Debug, Clone)]
enum Action {
    Put {
        id: u8,
        note: u8,
    },
    /// Changes the name; the note stays where it is.
    Rename {
        id: u8,
        name: u8,
    },
    /// Changes the note too.
    Rewrite {
        id: u8,
        name: u8,
        note: u8,
    },
    /// Gives the row another key; the note stays where it is.
    Move {
        id: u8,
        to: u8,
    },
    Delete {
        id: u8,
    },
    Commit,
}

fn action() -> impl Strategy<Value = Action> {
    let id = || 0..6u8;
    prop_oneof![
        3 => (id(), any::<u8>()).prop_map(|(id, note)| Action::Put { id, note }),
        5 => (id(), any::<u8>()).prop_map(|(id, name)| Action::Rename { id, name }),
        2 => (id(), any::<u8>(), any::<u8>()).prop_map(|(id, name, note)| Action::Rewrite { id, name, note }),
        3 => (id(), id()).prop_map(|(id, to)| Action::Move { id, to }),
        2 => id().prop_map(|id| Action::Delete { id }),
        3 => Just(Action::Commit),
    ]
}

/// A table at the source: id to name and note.
type Model = BTreeMap<u8, (String, String)>;

/// What the source logged, and its table after all of it.
struct Log {
    messages: Vec<(Lsn, Vec<u8>)>,
    /// The table as it was when the destination was copied, and the end of the log then.
    copied: Model,
    copied_at: Lsn,
    end: Model,
}

/// A commit that ends where its message stands.
fn commit(send: &mut impl FnMut(Body<'_>) -> Lsn) {
    let before = send(Body::Origin { commit_lsn: Lsn::ZERO, name: "" });
    let end_lsn = Lsn(before.0 + 16);
    send(Body::Commit(Commit { commit_lsn: end_lsn, end_lsn, commit_time: Timestamp(0) }));
}

fn log(actions: &[Action], copied_after: usize) -> Log {
    let mut messages = Vec::new();
    let mut send = |body: Body<'_>| {
        let lsn = Lsn(16 * (messages.len() as u64 + 1));
        messages.push((lsn, encode(&Message::from(body))));
        lsn
    };
    let begin = || Body::Begin(Begin { final_lsn: Lsn::ZERO, commit_time: Timestamp(0), xid: 7 });
    send(begin());
    let mut model = Model::new();
    let mut copied = (Model::new(), Lsn::ZERO);
    for (position, action) in actions.iter().enumerate() {
        let text = |id: u8, (name, note): &(String, String)| row(&format!("{id}, {name}, {note}"));
        match action {
            Action::Put { id, note } => {
                if model.contains_key(id) {
                    continue;
                }
                let new = (format!("n{position}"), format!("note {note}"));
                send(Body::Insert(Insert { relation: oid(*id), new: text(*id, &new).as_tuple() }));
                model.insert(*id, new);
            }
            Action::Rename { id, name } => {
                let Some(held) = model.get_mut(id) else { continue };
                held.0 = format!("n{position} {name}");
                let new = row(&format!("{id}, {}, ~", held.0));
                send(Body::Update(Update { relation: oid(*id), old: None, new: new.as_tuple() }));
            }
            Action::Rewrite { id, name, note } => {
                let Some(held) = model.get_mut(id) else { continue };
                *held = (format!("n{position} {name}"), format!("note {note}"));
                let new = text(*id, held);
                send(Body::Update(Update { relation: oid(*id), old: None, new: new.as_tuple() }));
            }
            Action::Move { id, to } => {
                if model.contains_key(to) || oid(*id) != oid(*to) {
                    continue;
                }
                let Some(held) = model.remove(id) else { continue };
                let old = row(&format!("{id}, NULL, NULL"));
                let new = row(&format!("{to}, {}, ~", held.0));
                let old = Some(OldTuple::Key(old.as_tuple()));
                send(Body::Update(Update { relation: oid(*id), old, new: new.as_tuple() }));
                model.insert(*to, held);
            }
            Action::Delete { id } => {
                if model.remove(id).is_none() {
                    continue;
                }
                let old = row(&format!("{id}, NULL, NULL"));
                send(Body::Delete(Delete { relation: oid(*id), old: OldTuple::Key(old.as_tuple()) }));
            }
            Action::Commit => {
                commit(&mut send);
                send(begin());
            }
        }
        if position + 1 == copied_after {
            // A position after everything that was logged so far.
            copied = (model.clone(), send(Body::Origin { commit_lsn: Lsn::ZERO, name: "" }));
        }
    }
    commit(&mut send);
    let (copied, copied_at) = copied;
    Log { messages, copied, copied_at, end: model }
}

/// The newest version of each row, tombstones too; older ones are merged away at once.
struct Destination {
    rows: BTreeMap<String, native::Row>,
    /// What is remembered of lookups at the source, and of a later snapshot.
    distrusted_until: Lsn,
    log_end: Lsn,
    /// What the source was told that it may forget.
    durable: Lsn,
}

impl Destination {
    fn insert(&mut self, row: native::Row) {
        let held = self.rows.get(&row.values[0]);
        if held.is_none_or(|held| row.version >= held.version) {
            self.rows.insert(row.values[0].clone(), row);
        }
    }

    fn write(&mut self, applier: &mut Applier) {
        let batch = applier.take(Timestamp(0));
        self.durable = self.durable.max(batch.committed);
        for (_, block) in batch.blocks {
            native::rows(&block).into_iter().for_each(|row| self.insert(row));
        }
    }

    /// What the worker does before it sends a batch. Rows are looked for in portions of `portion`, all but the last of which are sent before the others.
    fn send(&mut self, applier: &mut Applier, source: &Model, portion: usize) {
        for (table, mut waiting) in applier.incomplete_tables() {
            while waiting > portion {
                self.find(applier, table, portion, source);
                let block = applier.complete_first(table, portion, Timestamp(0)).expect("its rows fit");
                block.iter().flat_map(native::rows).for_each(|row| self.insert(row));
                waiting = applier.sought_rows(table);
            }
            self.find(applier, table, waiting, source);
        }
        assert_eq!(applier.complete(), []);
        self.write(applier);
    }

    fn find(&mut self, applier: &mut Applier, table: TableIndex, waiting: usize, source: &Model) {
        for sought in applier.sought_of(table, waiting) {
            for place in native::rows(&sought.places) {
                let Some(row) = self.rows.get(&place.values[0]).filter(|row| !row.is_deleted) else {
                    continue;
                };
                let columns = sought.columns.iter().map(|column| nullable_text(&row.values[*column]));
                let (version, is_deleted) = (row.version, row.is_deleted);
                applier.supply(
                    table,
                    place.version,
                    Found { version, is_deleted, values: columns.collect() },
                );
            }
        }
        for (position, place) in applier.still_sought_of(table, waiting) {
            let millrace_mapping::Cell::Text(id) = place[0].lend() else { panic!("text was sent") };
            let id: u8 = std::str::from_utf8(id).expect("text").parse().expect("a number");
            let values = source
                .get(&id)
                .map(|(name, note)| [name, note].map(|value| Some(value.clone().into_bytes())).to_vec());
            if let Some(values) = values {
                applier.supply_from_source(table, position, values);
            }
            applier.distrust_until(table, self.log_end);
            self.distrusted_until = self.log_end;
        }
    }

    fn current(&self) -> Model {
        let rows = self.rows.values().filter(|row| !row.is_deleted);
        rows.map(|row| {
            (row.values[0].parse().expect("a number"), (row.values[1].clone(), row.values[2].clone()))
        })
        .collect()
    }
}

/// `Nullable(String)` in `RowBinary`.
fn nullable_text(value: &str) -> Vec<u8> {
    let length = u8::try_from(value.len()).expect("short");
    [&[0, length], value.as_bytes()].concat()
}

fn items() -> StreamTable {
    table(OID, "items", &["id bigint!", "name text", "note text"], &["id"], ReplicaIdentity::Default)
}

fn others() -> StreamTable {
    table(OID + 1, "others", &["id bigint!", "name text", "note text"], &["id"], ReplicaIdentity::Default)
}

fn applier(distrusted_until: Lsn) -> Applier {
    let tables = [items(), others()].map(|table| StreamTable { distrusted_until, ..table });
    Applier::new(tables.to_vec(), &MetadataColumns::millrace())
}

/// Carries what the source has not forgotten; batches end where `takes` says, and after `crash` messages it begins anew.
fn carry(log: &Log, takes: &[bool], crash: Option<usize>, portion: usize, destination: &mut Destination) {
    let mut session = applier(destination.distrusted_until);
    for table in [items(), others()] {
        let described = encode(&Message::from(Body::Relation(relation_of(&table))));
        session.apply(Lsn::ZERO, &described).expect("the session goes on");
    }
    let from = destination.durable;
    for (number, (lsn, payload)) in log.messages.iter().enumerate().filter(|(_, (lsn, _))| *lsn > from) {
        if crash == Some(number) {
            return carry(log, takes, None, portion, destination);
        }
        if session.apply(*lsn, payload).expect("the session goes on") == Step::Apart {
            destination.send(&mut session, &log.end, portion);
        }
        assert_eq!(session.take_refused(), []);
        if takes.get(number % takes.len().max(1)).copied().unwrap_or(false) {
            destination.send(&mut session, &log.end, portion);
        }
    }
    destination.send(&mut session, &log.end, portion);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn unchanged_values_are_kept(
        actions in vec(action(), 0..50),
        takes in vec(prop::bool::weighted(0.15), 1..40),
        crash in prop::option::of(0..60usize),
        copied_after in 0..50usize,
        portion in 1..4usize,
    ) {
        let log = log(&actions, copied_after);
        let log_end = Lsn(16 * (log.messages.len() as u64 + 1));
        let mut destination = Destination { rows: BTreeMap::new(), distrusted_until: log.copied_at, log_end, durable: Lsn::ZERO };
        // A copy taken somewhere in the middle of what the stream will bring, as after a lost snapshot.
        for (id, (name, note)) in &log.copied {
            let values = vec![id.to_string(), name.clone(), note.clone()];
            destination.insert(native::Row { version: 0, is_deleted: false, values });
        }
        carry(&log, &takes, crash, portion, &mut destination);
        prop_assert_eq!(destination.current(), log.end);
    }
}

#[test]
fn what_waits_is_completed_before_the_first_row_of_another_table_that_lacks_values() {
    let mut scene = Scene::begun(vec![items(), others()]);
    scene.commit();
    scene.begin();
    scene.update(OID, "1, a, ~");
    scene.commit();
    scene.begin();
    scene.update(OID, "1, b, new");
    assert_eq!(scene.update(OID + 1, "2, c, ~"), Step::Apart);
    // The first table's row is looked for, the second's is not yet.
    let sought =
        |scene: &Scene| -> Vec<usize> { scene.applier.sought().iter().map(|(table, _)| table.0).collect() };
    assert_eq!(sought(&scene), [0]);
    scene.applier.supply(TableIndex(0), 0, found("old"));
    assert_eq!(scene.applier.complete(), []);
    scene.take();
    assert_eq!(sought(&scene), [1]);
    scene.applier.supply(TableIndex(1), 0, found("kept"));
    assert_eq!(scene.applier.complete(), []);
    scene.commit();
    insta::assert_snapshot!(scene.story(), @r"
    committed 0/48 at 1s
    apart
    committed 0/78 at 2s
    apart
    batch of 3 changes, committed 0/78, commits at 2s to 3s
      items
        0/90 + 1, b, new
        0/60 + 1, a, old
    committed 0/B8 at 3s
    batch of 0 changes, committed 0/B8
      others
        0/A0 + 2, c, kept
    ");
}

#[test]
fn rows_are_looked_for_in_portions_that_fit() {
    let columns = ["id text!", "name text", "note text"];
    let mut scene = Scene::begun(vec![table(OID, "items", &columns, &["id"], ReplicaIdentity::Default)]);
    let long = "k".repeat(600_000);
    for id in 0..9 {
        scene.update(OID, &format!("{id}{}, a, ~", if id > 4 { "" } else { &long }));
    }
    // The first of them does not stand apart any more.
    scene.take();
    let blocks = |scene: &Scene| -> Vec<usize> {
        scene.applier.sought().iter().map(|(_, sought)| sought.places.rows).collect()
    };
    assert_eq!(blocks(&scene), [4, 5]);
    let sizes: Vec<(u64, u64)> = (0..9).map(|number| (number, 10)).collect();
    let portion = |most| scene.applier.portion(TableIndex(0), &sizes, most);
    assert_eq!([portion(0), portion(25), portion(30), portion(1000)], [1, 2, 3, 9]);
}

#[test]
fn a_commit_counts_once_its_last_row_is_complete() {
    let mut scene = Scene::begun(vec![items(), others()]);
    scene.update(OID, "1, a, ~");
    scene.commit();
    scene.begin();
    scene.insert(OID + 1, "2, c, d");
    scene.commit();
    scene.take();
    scene.applier.supply(TableIndex(0), 0, found("old"));
    assert_eq!(scene.applier.complete(), []);
    insta::assert_snapshot!(scene.story(), @r"
    apart
    committed 0/58 at 1s
    committed 0/88 at 2s
    batch of 2 changes, committed 0/0, commits at 1s to 2s
      others
        0/70 + 2, c, d
    batch of 0 changes, committed 0/88
      items
        0/40 + 1, a, old
    ");
}

/// A row of the copy with this note.
fn found(note: &str) -> Found {
    Found { version: 0, is_deleted: false, values: vec![nullable_text("name"), nullable_text(note)] }
}

#[test]
fn a_value_is_found_in_the_batch_without_asking_anybody() {
    let mut session = applier(Lsn::ZERO);
    let items = items();
    let mut lsn = 0;
    let mut send = |session: &mut Applier, body: Body<'_>| {
        lsn += 16;
        session.apply(Lsn(lsn), &encode(&Message::from(body))).unwrap()
    };
    send(&mut session, Body::Begin(Begin { final_lsn: Lsn::ZERO, commit_time: Timestamp(0), xid: 7 }));
    send(&mut session, Body::Relation(relation_of(&items)));
    let update = |new: &str| row(new);
    let first = send(
        &mut session,
        Body::Update(Update { relation: OID, old: None, new: update("1, a, ~").as_tuple() }),
    );
    assert_eq!((first, session.incomplete_rows()), (Step::Apart, 1));
    send(&mut session, Body::Insert(Insert { relation: OID, new: row("2, b, long").as_tuple() }));
    let second = send(
        &mut session,
        Body::Update(Update { relation: OID, old: None, new: update("2, c, ~").as_tuple() }),
    );
    assert_eq!((second, session.incomplete_rows()), (Step::Buffered, 1));
    // The binary form is kept as it came.
    let binary = [Cell::Binary(&[0, 0, 0, 0, 0, 0, 0, 3]), Cell::Text(b"d"), Cell::Text(b"longer")];
    let binary: millrace_pgoutput::encode::TupleBuffer = binary.into_iter().collect();
    send(&mut session, Body::Insert(Insert { relation: OID, new: binary.as_tuple() }));
    assert_eq!(session.complete(), []);
    let batch = session.take(Timestamp(0));
    let rows: Vec<String> = native::rows(&batch.blocks[0].1).iter().map(|row| row.values.join(" ")).collect();
    assert_eq!(rows, ["2 b long", "2 c long", "3 d longer"]);
}
