//! Messages of every kind and with any content.

use millrace_model::{Lsn, ReplicaIdentity, Timestamp};
use millrace_pgoutput::encode::{RelationList, TupleBuffer, encode};
use millrace_pgoutput::{
    Begin, Body, Cell, Commit, Context, DecodeError, Delete, Expected, Insert, LogicalMessage, Message,
    OldTuple, Prepared, Relation, RelationColumn, RollbackPrepared, StreamAbort, StreamCommit, Update,
    decode,
};
use proptest::collection::vec;
use proptest::prelude::*;

const KINDS: usize = 19;

/// What messages are made of; each takes the parts it needs.
#[derive(Debug, Clone)]
struct Parts {
    xid: u32,
    other: u32,
    lsns: [u64; 2],
    times: [i64; 2],
    names: [String; 2],
    flags: [bool; 2],
    cells: [Vec<OwnedCell>; 2],
    oids: Vec<u32>,
    columns: Vec<RelationColumn>,
}

#[derive(Debug, Clone)]
enum OwnedCell {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

fn tuple(cells: &[OwnedCell]) -> TupleBuffer {
    let lend = |cell| match cell {
        &OwnedCell::Null => Cell::Null,
        &OwnedCell::Unchanged => Cell::Unchanged,
        OwnedCell::Text(value) => Cell::Text(value),
        OwnedCell::Binary(value) => Cell::Binary(value),
    };
    cells.iter().map(lend).collect()
}

impl Parts {
    /// Builds a message of one of the kinds and hands it over.
    fn message<T>(&self, kind: usize, streamed: bool, use_it: impl FnOnce(&Message<'_>) -> T) -> T {
        let [lsn, end_lsn] = self.lsns.map(Lsn);
        let [time, later] = self.times.map(Timestamp);
        let [name, gid] = [&self.names[0], &self.names[1]].map(String::as_str);
        let (xid, relation) = (self.xid, self.other);
        let rows = [tuple(&self.cells[0]), tuple(&self.cells[1])];
        let [first, second] = [rows[0].as_tuple(), rows[1].as_tuple()];
        let old = if self.flags[0] { OldTuple::Key(second) } else { OldTuple::Full(second) };
        let relations: RelationList = self.oids.iter().copied().collect();
        let prepared = Prepared { lsn, end_lsn, time, xid, gid };
        let commit = Commit { commit_lsn: lsn, end_lsn, commit_time: time };
        let body = match kind {
            0 => Body::Begin(Begin { final_lsn: lsn, commit_time: time, xid }),
            1 => Body::Commit(commit),
            2 => Body::Origin { commit_lsn: lsn, name },
            3 => Body::Relation(Relation {
                oid: relation,
                schema: self.names[1].clone() + "s",
                name: self.names[0].clone(),
                replica_identity: [
                    ReplicaIdentity::Default,
                    ReplicaIdentity::Index,
                    ReplicaIdentity::Full,
                    ReplicaIdentity::Nothing,
                ][usize::from(self.flags[0]) * 2 + usize::from(self.flags[1])],
                columns: self.columns.clone(),
            }),
            4 => Body::Type { oid: relation, schema: gid, name },
            5 => Body::Insert(Insert { relation, new: first }),
            6 => Body::Update(Update { relation, old: self.flags[1].then_some(old), new: first }),
            7 => Body::Delete(Delete { relation, old }),
            8 => Body::Truncate(relations.truncate(self.flags[0], self.flags[1])),
            9 => Body::LogicalMessage(LogicalMessage {
                transactional: self.flags[0],
                lsn,
                prefix: name,
                content: gid.as_bytes(),
            }),
            10 => Body::StreamStart { xid, first: self.flags[0] },
            11 => Body::StreamStop,
            12 => Body::StreamCommit(StreamCommit { xid, commit }),
            13 => Body::StreamAbort(StreamAbort {
                xid,
                subtransaction: relation,
                at: self.flags[0].then_some((lsn, time)),
            }),
            14 => Body::BeginPrepare(prepared),
            15 => Body::Prepare(prepared),
            16 => Body::CommitPrepared(prepared),
            17 => Body::RollbackPrepared(RollbackPrepared {
                prepare_end_lsn: lsn,
                end_lsn,
                prepare_time: time,
                rollback_time: later,
                xid,
                gid,
            }),
            _ => Body::StreamPrepare(prepared),
        };
        let stream_xid = (streamed && (3..=9).contains(&kind)).then_some(xid);
        use_it(&Message { stream_xid, body })
    }
}

fn cell() -> impl Strategy<Value = OwnedCell> {
    prop_oneof![
        Just(OwnedCell::Null),
        Just(OwnedCell::Unchanged),
        vec(any::<u8>(), 0..20).prop_map(OwnedCell::Text),
        vec(any::<u8>(), 0..20).prop_map(OwnedCell::Binary),
    ]
}

fn column() -> impl Strategy<Value = RelationColumn> {
    (any::<bool>(), "[^\\x00]{0,8}", any::<u32>(), any::<i32>()).prop_map(
        |(key, name, type_oid, type_modifier)| RelationColumn { key, name, type_oid, type_modifier },
    )
}

fn parts() -> impl Strategy<Value = Parts> {
    // Times within what both clocks can hold.
    let time = || i64::MIN + 946_684_800_000_000..=i64::MAX;
    let name = || "[^\\x00]{0,8}";
    (
        any::<(u32, u32, [u64; 2])>(),
        [time(), time()],
        [name(), name()],
        any::<[bool; 2]>(),
        [vec(cell(), 0..8), vec(cell(), 0..8)],
        vec(any::<u32>(), 0..4),
        vec(column(), 0..4),
    )
        .prop_map(|((xid, other, lsns), times, names, flags, cells, oids, columns)| Parts {
            xid,
            other,
            lsns,
            times,
            names,
            flags,
            cells,
            oids,
            columns,
        })
}

fn context(streamed: bool) -> Context {
    Context { protocol: 4, in_stream: streamed }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(parts in parts(), kind in 0..KINDS, streamed: bool) {
        parts.message(kind, streamed, |message| {
            let bytes = encode(message);
            prop_assert_eq!(decode(&bytes, &context(streamed)), Ok(message.clone()));
            Ok(())
        })?;
    }

    #[test]
    fn a_message_cut_anywhere_is_refused_within_its_bytes(parts in parts(), kind in 0..KINDS, streamed: bool) {
        let bytes = parts.message(kind, streamed, encode);
        for end in 0..bytes.len() {
            // An abort may leave out its last two fields.
            if bytes[0] == b'A' && end == 9 {
                continue;
            }
            let error = decode(&bytes[..end], &context(streamed)).expect_err("it is cut");
            prop_assert!(error.offset <= end && error.length == end, "{error:?} of {end}");
        }
    }

    #[test]
    fn a_byte_too_many_is_refused(parts in parts(), kind in 0..KINDS, streamed: bool, extra: u8) {
        let mut bytes = parts.message(kind, streamed, encode);
        bytes.push(extra);
        prop_assert!(decode(&bytes, &context(streamed)).is_err());
    }

    #[test]
    fn damaged_messages_never_panic_and_mean_the_same_when_written_again(
        parts in parts(),
        kind in 0..KINDS,
        streamed: bool,
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        protocol in 0..6u8,
    ) {
        let mut bytes = parts.message(kind, streamed, encode);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read_whatever_it_is(&bytes, Context { protocol, in_stream: streamed });
    }

    #[test]
    fn any_bytes_never_panic(
        kind in prop::sample::select(b"BCORYIUDTMSEcAbPKrp\0x".as_slice()),
        mut rest in vec(any::<u8>(), 0..64),
        protocol in 0..6u8,
        in_stream: bool,
    ) {
        rest.insert(0, kind);
        read_whatever_it_is(&rest, Context { protocol, in_stream });
    }
}

/// Reads bytes of unknown meaning, and where they have one, checks that it survives.
fn read_whatever_it_is(bytes: &[u8], context: Context) {
    match decode(bytes, &context) {
        Ok(message) => {
            let again = encode(&message);
            assert_eq!(decode(&again, &context).as_ref(), Ok(&message), "{bytes:?}");
            if let Body::Insert(insert) = &message.body {
                assert_eq!(insert.new.cells().count(), insert.new.len());
            }
        }
        Err(error) => assert!(error.offset <= bytes.len() && error.length == bytes.len(), "{error:?}"),
    }
}

#[test]
fn an_error_says_where_it_is_and_what_was_expected() {
    let insert = |tail: &[u8]| [b"I\0\0\0\x2aN", tail].concat();
    let cases: &[(&[u8], usize, &str)] = &[
        (b"", 0, "1 bytes of message kind"),
        (b"?", 0, "a message kind of protocol 1"),
        (b"S\0\0\0\x01\x01", 0, "a message kind of protocol 1"),
        (b"I\0\0", 1, "4 bytes of relation oid"),
        (b"I\0\0\0\x2aO", 5, "the new tuple, N"),
        (&insert(b"\xff\xff"), 6, "number of cells that is not negative"),
        (&insert(b"\0\x02n"), 9, "1 bytes of cell kind"),
        (&insert(b"\0\x01x"), 8, "a cell kind, n, u, t or b"),
        (&insert(b"\0\x01t\xff\xff\xff\xff"), 9, "cell length that is not negative"),
        (&insert(b"\0\x01t\0\0\0\x05four"), 13, "5 bytes of cell value"),
        (&insert(b"\0\x01nn"), 9, "the end of the message"),
        (b"U\0\0\0\x2aX", 5, "a tuple, N, K or O"),
        (b"D\0\0\0\x2aN", 5, "the old tuple, K or O"),
        (b"C\x01", 1, "flags of 0"),
        (b"O\0\0\0\0\0\0\0\0ab", 11, "a zero byte at the end of origin name"),
        (b"O\0\0\0\0\0\0\0\0a\xffb\0", 10, "origin name in UTF-8"),
        (b"T\0\0\0\x02\0\0\0\0\x01", 6, "8 bytes of relation oids"),
        (b"T\0\0\0\x02\x04", 5, "truncate options 0 to 3"),
        (b"R\0\0\0\x01\0t\0x", 8, "a replica identity, d, n, f or i"),
    ];
    for (bytes, offset, expected) in cases {
        let error = decode(bytes, &Context::COMMITTED).expect_err("each is wrong");
        assert_eq!((error.offset, error.expected.to_string().as_str()), (*offset, *expected), "{bytes:?}");
    }
    assert_eq!(
        decode(b"B\0", &Context::COMMITTED).expect_err("it is cut").to_string(),
        "byte 1 of a pgoutput message of 2 bytes: expected 8 bytes of final LSN"
    );
}

#[test]
fn a_kind_is_refused_below_the_protocol_that_brought_it() {
    for (kinds, since) in [(b"SEcA".as_slice(), 2), (b"bPKrp".as_slice(), 3)] {
        for kind in kinds {
            for protocol in 1..=4 {
                let context = Context { protocol, in_stream: false };
                let unknown = DecodeError { offset: 0, length: 1, expected: Expected::Kind { protocol } };
                assert_eq!(decode(&[*kind], &context) == Err(unknown), protocol < since, "{kind} {protocol}");
            }
        }
    }
}

#[test]
fn a_lying_number_of_columns_reserves_no_memory() {
    let bytes = b"R\0\0\0\x01\0t\0d\x7f\xff";
    let error = decode(bytes, &Context::COMMITTED).expect_err("there are no columns");
    assert_eq!(error.offset, bytes.len());
}

#[test]
fn an_empty_schema_on_the_wire_is_pg_catalog() {
    let Ok(Message { body: Body::Relation(relation), .. }) =
        decode(b"R\0\0\0\x01\0pg_am\0d\0\0", &Context::COMMITTED)
    else {
        panic!("a relation")
    };
    assert_eq!((relation.schema.as_str(), relation.name.as_str()), ("pg_catalog", "pg_am"));
}
