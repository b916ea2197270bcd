//! Messages to bytes, as a walsender would write them. For tests and simulation; nothing of the product sends pgoutput.

use millrace_model::{Lsn, ReplicaIdentity, Timestamp};

use crate::decode::POSTGRES_EPOCH;
use crate::message::{Body, Commit, Message, OldTuple, Prepared, Relation, Truncate};
use crate::tuple::{Cell, Tuple};

/// A row that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TupleBuffer {
    columns: u16,
    bytes: Vec<u8>,
}

impl TupleBuffer {
    /// Lends the row.
    pub fn as_tuple(&self) -> Tuple<'_> {
        Tuple { columns: self.columns, bytes: &self.bytes }
    }
}

/// # Panics
/// With more than 32,767 cells or a value of 2 GiB, which no server sends.
impl<'a> FromIterator<Cell<'a>> for TupleBuffer {
    fn from_iter<I: IntoIterator<Item = Cell<'a>>>(cells: I) -> Self {
        let mut tuple = TupleBuffer::default();
        for cell in cells {
            assert!(tuple.columns < i16::MAX as u16, "a row has at most 32,767 cells");
            tuple.columns += 1;
            let (kind, value) = match cell {
                Cell::Null => (b'n', None),
                Cell::Unchanged => (b'u', None),
                Cell::Text(value) => (b't', Some(value)),
                Cell::Binary(value) => (b'b', Some(value)),
            };
            tuple.bytes.push(kind);
            if let Some(value) = value {
                length(&mut tuple.bytes, value.len());
                tuple.bytes.extend_from_slice(value);
            }
        }
        tuple
    }
}

/// The oids of a [`Truncate`], owned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelationList(Vec<u8>);

impl RelationList {
    /// Lends them as a message.
    pub fn truncate(&self, cascade: bool, restart_identity: bool) -> Truncate<'_> {
        Truncate { cascade, restart_identity, relations: &self.0 }
    }
}

impl FromIterator<u32> for RelationList {
    fn from_iter<I: IntoIterator<Item = u32>>(oids: I) -> Self {
        Self(oids.into_iter().flat_map(u32::to_be_bytes).collect())
    }
}

/// Writes one message. Names must not contain a zero byte.
pub fn encode(message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let begin = |out: &mut Vec<u8>, kind: u8| {
        out.push(kind);
        if let Some(xid) = message.stream_xid {
            out.extend(xid.to_be_bytes());
        }
    };
    match &message.body {
        Body::Begin(body) => {
            out.push(b'B');
            lsn(&mut out, body.final_lsn);
            time(&mut out, body.commit_time);
            out.extend(body.xid.to_be_bytes());
        }
        Body::Commit(body) => {
            out.push(b'C');
            commit(&mut out, body);
        }
        Body::Origin { commit_lsn, name } => {
            out.push(b'O');
            lsn(&mut out, *commit_lsn);
            text(&mut out, name);
        }
        Body::Relation(body) => {
            begin(&mut out, b'R');
            relation(&mut out, body);
        }
        Body::Type { oid, schema, name } => {
            begin(&mut out, b'Y');
            out.extend(oid.to_be_bytes());
            text(&mut out, schema);
            text(&mut out, name);
        }
        Body::Insert(body) => {
            begin(&mut out, b'I');
            out.extend(body.relation.to_be_bytes());
            tuple(&mut out, b'N', body.new);
        }
        Body::Update(body) => {
            begin(&mut out, b'U');
            out.extend(body.relation.to_be_bytes());
            if let Some(old) = &body.old {
                old_tuple(&mut out, old);
            }
            tuple(&mut out, b'N', body.new);
        }
        Body::Delete(body) => {
            begin(&mut out, b'D');
            out.extend(body.relation.to_be_bytes());
            old_tuple(&mut out, &body.old);
        }
        Body::Truncate(body) => {
            begin(&mut out, b'T');
            length(&mut out, body.relations.len() / 4);
            out.push(u8::from(body.cascade) | u8::from(body.restart_identity) << 1);
            out.extend_from_slice(body.relations);
        }
        Body::LogicalMessage(body) => {
            begin(&mut out, b'M');
            out.push(u8::from(body.transactional));
            lsn(&mut out, body.lsn);
            text(&mut out, body.prefix);
            length(&mut out, body.content.len());
            out.extend_from_slice(body.content);
        }
        Body::StreamStart { xid, first } => {
            out.push(b'S');
            out.extend(xid.to_be_bytes());
            out.push(u8::from(*first));
        }
        Body::StreamStop => out.push(b'E'),
        Body::StreamCommit(body) => {
            out.push(b'c');
            out.extend(body.xid.to_be_bytes());
            commit(&mut out, &body.commit);
        }
        Body::StreamAbort(body) => {
            out.push(b'A');
            out.extend(body.xid.to_be_bytes());
            out.extend(body.subtransaction.to_be_bytes());
            if let Some((position, moment)) = body.at {
                lsn(&mut out, position);
                time(&mut out, moment);
            }
        }
        Body::BeginPrepare(body) => {
            out.push(b'b');
            prepared(&mut out, body);
        }
        Body::Prepare(body) => {
            out.extend([b'P', 0]);
            prepared(&mut out, body);
        }
        Body::CommitPrepared(body) => {
            out.extend([b'K', 0]);
            prepared(&mut out, body);
        }
        Body::RollbackPrepared(body) => {
            out.extend([b'r', 0]);
            lsn(&mut out, body.prepare_end_lsn);
            lsn(&mut out, body.end_lsn);
            time(&mut out, body.prepare_time);
            time(&mut out, body.rollback_time);
            out.extend(body.xid.to_be_bytes());
            text(&mut out, body.gid);
        }
        Body::StreamPrepare(body) => {
            out.extend([b'p', 0]);
            prepared(&mut out, body);
        }
    }
    out
}

impl<'a> From<Body<'a>> for Message<'a> {
    fn from(body: Body<'a>) -> Self {
        Message { stream_xid: None, body }
    }
}

fn relation(out: &mut Vec<u8>, relation: &Relation) {
    out.extend(relation.oid.to_be_bytes());
    text(out, if relation.schema == "pg_catalog" { "" } else { &relation.schema });
    text(out, &relation.name);
    out.push(match relation.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    let count = i16::try_from(relation.columns.len()).unwrap_or(i16::MAX);
    out.extend(count.to_be_bytes());
    for column in &relation.columns {
        out.push(u8::from(column.key));
        text(out, &column.name);
        out.extend(column.type_oid.to_be_bytes());
        out.extend(column.type_modifier.to_be_bytes());
    }
}

fn commit(out: &mut Vec<u8>, commit: &Commit) {
    out.push(0);
    lsn(out, commit.commit_lsn);
    lsn(out, commit.end_lsn);
    time(out, commit.commit_time);
}

fn prepared(out: &mut Vec<u8>, prepared: &Prepared<'_>) {
    lsn(out, prepared.lsn);
    lsn(out, prepared.end_lsn);
    time(out, prepared.time);
    out.extend(prepared.xid.to_be_bytes());
    text(out, prepared.gid);
}

fn old_tuple(out: &mut Vec<u8>, old: &OldTuple<'_>) {
    match old {
        OldTuple::Key(cells) => tuple(out, b'K', *cells),
        OldTuple::Full(cells) => tuple(out, b'O', *cells),
    }
}

fn tuple(out: &mut Vec<u8>, kind: u8, tuple: Tuple<'_>) {
    out.push(kind);
    out.extend(tuple.columns.to_be_bytes());
    out.extend_from_slice(tuple.bytes);
}

fn lsn(out: &mut Vec<u8>, lsn: Lsn) {
    out.extend(lsn.0.to_be_bytes());
}

fn time(out: &mut Vec<u8>, time: Timestamp) {
    out.extend(time.0.saturating_sub(POSTGRES_EPOCH).to_be_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn length(out: &mut Vec<u8>, length: usize) {
    assert!(i32::try_from(length).is_ok(), "a length fits 31 bits");
    out.extend((length as u32).to_be_bytes());
}
