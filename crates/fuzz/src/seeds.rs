//! The first inputs: what servers send, as far as it can be written here, and what they were recorded to have sent.

use std::collections::BTreeMap;

use millrace_model::{Lsn, ReplicaIdentity, TableDefinition, Timestamp};
use millrace_pgoutput::encode::{RelationList, TupleBuffer, encode};
use millrace_pgoutput::{
    Begin, Body, Cell, Commit, Delete, Insert, OldTuple, Relation, RelationColumn, Update,
};

use crate::frames::Frames;
use crate::targets::types::{self, Sample, samples};
use crate::targets::{forms, session};

/// Messages of a real server, in hexadecimal, one a line.
const RECORDED: &str = include_str!("../../pgoutput/tests/recorded/postgresql-17.txt");

/// One input to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The target's name.
    pub target: &'static str,
    /// The file's name.
    pub name: String,
    /// What is in it.
    pub input: Vec<u8>,
}

/// The inputs of every target, always the same.
pub fn all() -> Vec<Seed> {
    let targets = [
        ("pgoutput", messages()),
        ("copy", copies()),
        ("values", values()),
        ("text", texts()),
        ("session", sessions()),
    ];
    let seeds = targets.into_iter().flat_map(|(target, inputs)| {
        inputs.into_iter().map(move |(name, input)| Seed { target, name, input })
    });
    seeds.collect()
}

type Inputs = Vec<(String, Vec<u8>)>;

/// Of every kind of message the shortest and the longest that were recorded, in and out of a stream block.
fn messages() -> Inputs {
    let mut by_kind = BTreeMap::<(u8, bool), Vec<Vec<u8>>>::new();
    let mut in_stream = false;
    for line in RECORDED.lines() {
        let digits = line.as_bytes().as_chunks::<2>().0;
        let bytes: Option<Vec<u8>> =
            digits.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
        // Anything else is a title, at which a session ends.
        let Some((&kind, bytes)) = bytes.as_ref().and_then(|bytes| Some((bytes.first()?, bytes))) else {
            in_stream = false;
            continue;
        };
        by_kind.entry((kind, in_stream)).or_default().push(bytes.clone());
        in_stream = (in_stream || kind == b'S') && kind != b'E';
    }
    let mut inputs = Inputs::new();
    for ((kind, in_stream), mut messages) in by_kind {
        messages.sort_by_key(Vec::len);
        messages.dedup_by_key(|message| message.len());
        let place = if in_stream { "-streamed" } else { "" };
        let case = if kind.is_ascii_uppercase() { "upper" } else { "lower" };
        let name = |size: &str| format!("{}-{case}{place}-{size}", char::from(kind).to_ascii_lowercase());
        if messages.len() > 1 {
            inputs.extend(messages.pop().map(|message| (name("long"), message)));
        }
        inputs.extend(messages.into_iter().next().map(|message| (name("short"), message)));
    }
    inputs
}

/// Tuples of a table with every type: each sample in turn, every value NULL, and a bad tuple between good ones.
fn copies() -> Inputs {
    let columns: Vec<Vec<Sample>> = types::all().iter().map(samples).collect();
    let count = u16::try_from(columns.len()).unwrap_or(0);
    let tuple = |round: usize| {
        let mut tuple = count.to_be_bytes().to_vec();
        for samples in &columns {
            let sample = &samples[round % samples.len()];
            let value = sample.binary.as_ref().unwrap_or(&sample.text);
            tuple.extend(u32::try_from(value.len()).unwrap_or(0).to_be_bytes());
            tuple.extend_from_slice(value);
        }
        tuple
    };
    let nulls = [count.to_be_bytes().to_vec(), vec![0xff; 4 * columns.len()]].concat();
    let cut = tuple(0)[..40].to_vec();
    let write = |options: u8, frames: Vec<Vec<u8>>| Frames { options, frames }.write();
    let mut inputs: Inputs = (0..6)
        .map(|planning| (format!("planning-{planning}"), write(planning, vec![tuple(usize::from(planning))])))
        .collect();
    inputs.push(("nulls".into(), write(0, vec![nulls.clone(), tuple(1), nulls.clone()])));
    inputs.push(("nulls-refused".into(), write(2, vec![nulls, tuple(1)])));
    inputs.push(("cut".into(), write(0x80, vec![tuple(0), cut, tuple(2)])));
    inputs
}

/// Of every type its samples in both forms, NULL, an unchanged value and rows that are taken back.
fn values() -> Inputs {
    let written = types::all().into_iter().enumerate().map(|(at, pg_type)| {
        let mut frames = vec![vec![16], vec![17]];
        for Sample { text, binary } in samples(&pg_type) {
            frames.push([&[18], &text[..]].concat());
            frames.push([&[2], &text[..]].concat());
            if let Some(binary) = binary {
                frames.push([&[29], &binary[..]].concat());
                frames.push([&[13], &binary[..]].concat());
            }
        }
        let options = u8::try_from(at).unwrap_or(0);
        (format!("type-{at:02}"), Frames { options, frames }.write())
    });
    written.collect()
}

fn texts() -> Inputs {
    let texts = [
        "{}",
        "{1,NULL,-3}",
        "[0:1]={1,2}",
        "{{1,2},{3,4}}",
        r#"{"with \"quotes\"","back\\slash",null,""}"#,
        "{(1,1),(0,0);(2,2),(1,1)}",
        "-12345.6789",
        "0.00000000000000000000000000000000000001",
        "NaN",
        "-Infinity",
        "infinity",
        "2024-02-29",
        "0044-03-15 BC",
        "2024-02-29 23:59:59.999999",
        "294276-12-31 23:59:59.999999",
        "4713-01-01 00:00:00 BC",
        "2024-02-29 23:59:59.5+00",
        "2024-02-29 23:59:59-08:30",
        "24:00:00",
        "1 year 2 mons -3 days 04:05:06.789",
        "{\"1 day\",-00:00:01}",
        "01234567-89ab-cdef-0123-456789abcdef",
        "\\x00ff",
        "1e-300",
        "one\0two\0\u{1}\0NULL\0",
        r#""a"=>"1", "b c"=>NULL, "say \"hi\""=>"back\\slash""#,
        "[1.5,-2,3e-07]",
    ];
    let texts =
        texts.into_iter().enumerate().map(|(at, text)| (format!("text-{at:02}"), text.as_bytes().to_vec()));
    let numbers = [0, 1, -1, 86_400_000_000, -211_813_488_000_000_000, i64::MAX, i64::MIN];
    let numbers = numbers.into_iter().enumerate().map(|(at, number)| {
        (format!("number-{at}"), [number.to_be_bytes().to_vec(), forms::numeric_binary("1234.5678")].concat())
    });
    texts.chain(numbers).collect()
}

/// Sessions over the tables of [`session::definitions`].
fn sessions() -> Inputs {
    let tables = session::definitions();
    let [keyed, pairs, keyless, log] = &tables[..] else { return Inputs::new() };
    let text = |value: &'static str| Cell::Text(value.as_bytes());
    let row = |cells: &[Cell<'_>]| -> TupleBuffer { cells.iter().copied().collect() };
    let one = row(&[text("1"), text("one"), text("1.50"), text("2024-01-01 00:00:00+00"), text("{a,b}")]);
    let moved = row(&[text("2"), Cell::Unchanged, text("NaN"), Cell::Null, text("{}")]);
    let key = row(&[text("1"), Cell::Null, Cell::Null, Cell::Null, Cell::Null]);
    let binary =
        row(&[Cell::Binary(&[0, 0, 0, 0, 0, 0, 0, 7]), text("x"), Cell::Null, Cell::Null, Cell::Null]);
    let pair = row(&[text("1"), text("b"), text("happy")]);
    let other_pair = row(&[text("1"), text("c"), Cell::Null]);
    let free = row(&[text("5"), text("a large value"), text("01234567-89ab-cdef-0123-456789abcdef")]);
    let freed = row(&[text("6"), Cell::Unchanged, Cell::Null]);
    let line = row(&[text("{}")]);
    let malformed = row(&[text("x"), Cell::Null, Cell::Null, Cell::Null, Cell::Null]);

    let insert = |table: &TableDefinition, new: &TupleBuffer| {
        written(Body::Insert(Insert { relation: table.oid, new: new.as_tuple() }))
    };
    let update = |table: &TableDefinition, old: Option<OldTuple<'_>>, new: &TupleBuffer| {
        written(Body::Update(Update { relation: table.oid, old, new: new.as_tuple() }))
    };
    let delete = |table: &TableDefinition, old: OldTuple<'_>| {
        written(Body::Delete(Delete { relation: table.oid, old }))
    };
    let describe = |table| written(Body::Relation(relation(table)));
    let truncate = |oids: &[u32]| {
        let relations: RelationList = oids.iter().copied().collect();
        written(Body::Truncate(relations.truncate(false, true)))
    };
    let mut renamed = relation(keyed);
    renamed.name = "other".into();
    let mut wider = relation(keyed);
    wider.columns.push(RelationColumn { key: false, name: "fresh".into(), type_oid: 23, type_modifier: -1 });
    let mut identity = relation(pairs);
    identity.replica_identity = ReplicaIdentity::Nothing;

    let whole = |name: &str, mut messages: Vec<Vec<u8>>| {
        messages.insert(0, begin());
        messages.push(commit());
        (name.to_owned(), messages)
    };
    let sessions = vec![
        whole(
            "inserts",
            vec![describe(keyed), insert(keyed, &one), insert(keyed, &binary), insert(keyed, &one)],
        ),
        whole(
            "updates",
            vec![
                describe(keyed),
                insert(keyed, &one),
                update(keyed, None, &one),
                update(keyed, Some(OldTuple::Key(key.as_tuple())), &one),
            ],
        ),
        whole(
            "moved-unsent",
            vec![describe(keyed), update(keyed, Some(OldTuple::Key(key.as_tuple())), &moved)],
        ),
        whole(
            "deletes",
            vec![describe(keyed), insert(keyed, &one), delete(keyed, OldTuple::Key(key.as_tuple()))],
        ),
        whole(
            "pairs",
            vec![
                describe(pairs),
                insert(pairs, &pair),
                update(pairs, Some(OldTuple::Key(pair.as_tuple())), &other_pair),
                delete(pairs, OldTuple::Key(other_pair.as_tuple())),
            ],
        ),
        whole(
            "keyless",
            vec![
                describe(keyless),
                insert(keyless, &free),
                update(keyless, Some(OldTuple::Full(free.as_tuple())), &freed),
                delete(keyless, OldTuple::Full(free.as_tuple())),
            ],
        ),
        whole("log", vec![describe(log), insert(log, &line), insert(log, &line)]),
        whole(
            "truncate",
            vec![
                describe(keyed),
                describe(log),
                insert(keyed, &one),
                truncate(&[100, 103]),
                insert(log, &line),
            ],
        ),
        whole(
            "malformed",
            vec![describe(keyed), insert(keyed, &one), insert(keyed, &malformed), insert(keyed, &one)],
        ),
        whole("renamed", vec![describe(keyed), insert(keyed, &one), written(Body::Relation(renamed))]),
        whole("column-added", vec![describe(keyed), written(Body::Relation(wider)), insert(keyed, &one)]),
        whole(
            "identity-lost",
            vec![describe(pairs), written(Body::Relation(identity)), insert(pairs, &pair)],
        ),
        whole("unknown", vec![insert(keyed, &one), truncate(&[7])]),
        whole("nested", vec![begin(), describe(log), insert(log, &line), commit(), insert(log, &line)]),
        whole(
            "informative",
            vec![
                written(Body::Origin { commit_lsn: Lsn(1), name: "elsewhere" }),
                written(Body::Type { oid: 16_500, schema: "public", name: "mood" }),
                written(Body::StreamStop),
            ],
        ),
    ];
    let sessions = sessions.into_iter().enumerate().map(|(at, (name, frames))| {
        (name, Frames { options: u8::try_from(at).unwrap_or(0), frames }.write())
    });
    sessions.collect()
}

fn written(body: Body<'_>) -> Vec<u8> {
    encode(&body.into())
}

fn begin() -> Vec<u8> {
    written(Body::Begin(Begin { final_lsn: Lsn(1000), commit_time: Timestamp(0), xid: 7 }))
}

fn commit() -> Vec<u8> {
    written(Body::Commit(Commit { commit_lsn: Lsn(1000), end_lsn: Lsn(1010), commit_time: Timestamp(0) }))
}

fn relation(table: &TableDefinition) -> Relation {
    let columns = table.columns.iter().map(|column| RelationColumn {
        key: table.replica_identity == ReplicaIdentity::Full || table.key.contains(&column.name),
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
    });
    Relation {
        oid: table.oid,
        schema: table.name.schema.clone(),
        name: table.name.name.clone(),
        replica_identity: table.replica_identity,
        columns: columns.collect(),
    }
}
