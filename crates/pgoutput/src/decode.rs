//! Bytes to messages.

use std::fmt;

use millrace_model::{Lsn, ReplicaIdentity, Timestamp};

use crate::message::{
    Begin, Body, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Prepared, Relation,
    RelationColumn, RollbackPrepared, StreamAbort, StreamCommit, Truncate, Update,
};
use crate::tuple::Tuple;

/// Microseconds from 1970-01-01, where [`Timestamp`] begins, to 2000-01-01, where PostgreSQL's clock does.
pub(crate) const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// What a message's meaning depends on besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// `proto_version` as given to `START_REPLICATION`: 1 to 4.
    pub protocol: u8,
    /// Whether the message stands between Stream Start and Stream Stop; only there do changes carry their transaction.
    pub in_stream: bool,
}

impl Context {
    /// Protocol 1: whole, committed transactions only.
    pub const COMMITTED: Context = Context { protocol: 1, in_stream: false };
}

/// The bytes are not a message of pgoutput.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset} of a pgoutput message of {length} bytes: expected {expected}")]
pub struct DecodeError {
    /// Where, from the message's first byte.
    pub offset: usize,
    /// The message's whole length in bytes.
    pub length: usize,
    /// What should have stood there.
    pub expected: Expected,
}

/// What should have stood where a message went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// A message kind of the protocol in use.
    Kind {
        /// `proto_version`
        protocol: u8,
    },
    /// So many more bytes of a named field.
    Bytes {
        /// How many the field needs.
        count: usize,
        /// The field as the manual calls it.
        field: &'static str,
    },
    /// A byte 0 that ends a name.
    Terminator(&'static str),
    /// Text in UTF-8; the connection's `client_encoding` must be that.
    Utf8(&'static str),
    /// A count or length that is not negative.
    NotNegative(&'static str),
    /// One of some bytes.
    OneOf(&'static str),
    /// The end of the message.
    End,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Kind { protocol } => write!(f, "a message kind of protocol {protocol}"),
            Expected::Bytes { count, field } => write!(f, "{count} bytes of {field}"),
            Expected::Terminator(field) => write!(f, "a zero byte at the end of {field}"),
            Expected::Utf8(field) => write!(f, "{field} in UTF-8"),
            Expected::NotNegative(field) => write!(f, "{field} that is not negative"),
            Expected::OneOf(choices) => f.write_str(choices),
            Expected::End => f.write_str("the end of the message"),
        }
    }
}

/// Reads one message, which must fill `bytes` exactly.
///
/// Only [`Relation`] allocates. A kind that the protocol in use does not have is an error, as are bytes left over.
///
/// # Errors
/// Says at which offset what was expected.
#[inline]
pub fn decode<'a>(bytes: &'a [u8], context: &Context) -> Result<Message<'a>, DecodeError> {
    let mut reader = Reader { bytes, rest: bytes };
    let kind = reader.byte("message kind")?;
    let in_stream = context.in_stream && context.protocol >= 2;
    let stream_xid = match kind {
        b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' if in_stream => Some(reader.u32("transaction id")?),
        _ => None,
    };
    let body = match (kind, context.protocol) {
        (b'I', _) => Body::Insert(insert(&mut reader)?),
        (b'U', _) => Body::Update(update(&mut reader)?),
        (b'D', _) => Body::Delete(delete(&mut reader)?),
        (b'B', _) => Body::Begin(Begin {
            final_lsn: reader.lsn("final LSN")?,
            commit_time: reader.time("commit time")?,
            xid: reader.u32("transaction id")?,
        }),
        (b'C', _) => Body::Commit(commit(&mut reader)?),
        (b'R', _) => Body::Relation(relation(&mut reader)?),
        (b'Y', _) => Body::Type {
            oid: reader.u32("type oid")?,
            schema: reader.text("type schema")?,
            name: reader.text("type name")?,
        },
        (b'O', _) => {
            Body::Origin { commit_lsn: reader.lsn("origin commit LSN")?, name: reader.text("origin name")? }
        }
        (b'T', _) => Body::Truncate(truncate(&mut reader)?),
        (b'M', _) => Body::LogicalMessage(logical_message(&mut reader)?),
        (b'S', 2..) => Body::StreamStart {
            xid: reader.u32("transaction id")?,
            first: reader.one_of(&[(0, false), (1, true)], "first segment flag 0 or 1")?,
        },
        (b'E', 2..) => Body::StreamStop,
        (b'c', 2..) => Body::StreamCommit(StreamCommit {
            xid: reader.u32("transaction id")?,
            commit: commit(&mut reader)?,
        }),
        (b'A', 2..) => Body::StreamAbort(stream_abort(&mut reader, context.protocol)?),
        (b'b', 3..) => Body::BeginPrepare(prepared(&mut reader)?),
        (b'P', 3..) => Body::Prepare(flagged_prepared(&mut reader)?),
        (b'K', 3..) => Body::CommitPrepared(flagged_prepared(&mut reader)?),
        (b'r', 3..) => Body::RollbackPrepared(rollback_prepared(&mut reader)?),
        (b'p', 3..) => Body::StreamPrepare(flagged_prepared(&mut reader)?),
        (_, protocol) => return Err(reader.error_at(0, Expected::Kind { protocol })),
    };
    if reader.rest.is_empty() { Ok(Message { stream_xid, body }) } else { Err(reader.error(Expected::End)) }
}

fn insert<'a>(reader: &mut Reader<'a>) -> Result<Insert<'a>, DecodeError> {
    let relation = reader.u32("relation oid")?;
    reader.one_of(&[(b'N', ())], "the new tuple, N")?;
    Ok(Insert { relation, new: reader.tuple()? })
}

fn update<'a>(reader: &mut Reader<'a>) -> Result<Update<'a>, DecodeError> {
    let relation = reader.u32("relation oid")?;
    let choices =
        [(b'N', None), (b'K', Some(OldTuple::Key as fn(_) -> _)), (b'O', Some(OldTuple::Full as _))];
    let old = match reader.one_of(&choices, "a tuple, N, K or O")? {
        None => None,
        Some(kind) => {
            let old = kind(reader.tuple()?);
            reader.one_of(&[(b'N', ())], "the new tuple, N")?;
            Some(old)
        }
    };
    Ok(Update { relation, old, new: reader.tuple()? })
}

fn delete<'a>(reader: &mut Reader<'a>) -> Result<Delete<'a>, DecodeError> {
    let relation = reader.u32("relation oid")?;
    let choices = [(b'K', OldTuple::Key as fn(_) -> _), (b'O', OldTuple::Full as _)];
    let kind = reader.one_of(&choices, "the old tuple, K or O")?;
    Ok(Delete { relation, old: kind(reader.tuple()?) })
}

fn commit(reader: &mut Reader<'_>) -> Result<Commit, DecodeError> {
    reader.flags()?;
    Ok(Commit {
        commit_lsn: reader.lsn("commit LSN")?,
        end_lsn: reader.lsn("end LSN")?,
        commit_time: reader.time("commit time")?,
    })
}

fn relation(reader: &mut Reader<'_>) -> Result<Relation, DecodeError> {
    let oid = reader.u32("relation oid")?;
    let schema = match reader.text("relation schema")? {
        "" => "pg_catalog",
        named => named,
    };
    let name = reader.text("relation name")?.to_owned();
    let identities = [
        (b'd', ReplicaIdentity::Default),
        (b'n', ReplicaIdentity::Nothing),
        (b'f', ReplicaIdentity::Full),
        (b'i', ReplicaIdentity::Index),
    ];
    let replica_identity = reader.one_of(&identities, "a replica identity, d, n, f or i")?;
    let count = reader.count16("number of columns")?;
    // PostgreSQL has at most 1,600 columns; a lying count must not make us reserve memory.
    let mut columns = Vec::with_capacity(usize::from(count).min(1600));
    for _ in 0..count {
        columns.push(RelationColumn {
            key: reader.one_of(&[(0, false), (1, true)], "column flags 0 or 1")?,
            name: reader.text("column name")?.to_owned(),
            type_oid: reader.u32("column type oid")?,
            type_modifier: reader.u32("column type modifier")?.cast_signed(),
        });
    }
    Ok(Relation { oid, schema: schema.to_owned(), name, replica_identity, columns })
}

fn truncate<'a>(reader: &mut Reader<'a>) -> Result<Truncate<'a>, DecodeError> {
    let count = reader.count32("number of relations")?;
    let choices = [(0, (false, false)), (1, (true, false)), (2, (false, true)), (3, (true, true))];
    let (cascade, restart_identity) = reader.one_of(&choices, "truncate options 0 to 3")?;
    let relations = reader.take(count.saturating_mul(4), "relation oids")?;
    Ok(Truncate { cascade, restart_identity, relations })
}

fn logical_message<'a>(reader: &mut Reader<'a>) -> Result<LogicalMessage<'a>, DecodeError> {
    let transactional = reader.one_of(&[(0, false), (1, true)], "message flags 0 or 1")?;
    let lsn = reader.lsn("message LSN")?;
    let prefix = reader.text("message prefix")?;
    let length = reader.count32("message length")?;
    Ok(LogicalMessage { transactional, lsn, prefix, content: reader.take(length, "message content")? })
}

fn stream_abort(reader: &mut Reader<'_>, protocol: u8) -> Result<StreamAbort, DecodeError> {
    let xid = reader.u32("transaction id")?;
    let subtransaction = reader.u32("subtransaction id")?;
    // Protocol 4 adds these under `streaming 'parallel'` and leaves them out under `streaming 'on'`.
    let at = if protocol >= 4 && !reader.rest.is_empty() {
        Some((reader.lsn("abort LSN")?, reader.time("abort time")?))
    } else {
        None
    };
    Ok(StreamAbort { xid, subtransaction, at })
}

fn flagged_prepared<'a>(reader: &mut Reader<'a>) -> Result<Prepared<'a>, DecodeError> {
    reader.flags()?;
    prepared(reader)
}

fn prepared<'a>(reader: &mut Reader<'a>) -> Result<Prepared<'a>, DecodeError> {
    Ok(Prepared {
        lsn: reader.lsn("prepare LSN")?,
        end_lsn: reader.lsn("end LSN")?,
        time: reader.time("prepare time")?,
        xid: reader.u32("transaction id")?,
        gid: reader.text("gid")?,
    })
}

fn rollback_prepared<'a>(reader: &mut Reader<'a>) -> Result<RollbackPrepared<'a>, DecodeError> {
    reader.flags()?;
    Ok(RollbackPrepared {
        prepare_end_lsn: reader.lsn("end LSN of the prepare")?,
        end_lsn: reader.lsn("end LSN")?,
        prepare_time: reader.time("prepare time")?,
        rollback_time: reader.time("rollback time")?,
        xid: reader.u32("transaction id")?,
        gid: reader.text("gid")?,
    })
}

/// Takes fields off the front and remembers where it is.
struct Reader<'a> {
    bytes: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn offset(&self) -> usize {
        self.bytes.len() - self.rest.len()
    }

    #[cold]
    fn error(&self, expected: Expected) -> DecodeError {
        self.error_at(self.offset(), expected)
    }

    #[cold]
    fn error_at(&self, offset: usize, expected: Expected) -> DecodeError {
        DecodeError { offset, length: self.bytes.len(), expected }
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.error(Expected::Bytes { count: N, field }));
        };
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    fn take(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.error(Expected::Bytes { count, field }));
        };
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn byte(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    #[inline]
    fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    fn lsn(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        self.array(field).map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    /// PostgreSQL's clock cannot leave the range in which this does not saturate.
    fn time(&mut self, field: &'static str) -> Result<Timestamp, DecodeError> {
        self.array(field).map(|bytes| Timestamp(i64::from_be_bytes(bytes).saturating_add(POSTGRES_EPOCH)))
    }

    #[inline]
    fn count16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        let start = self.offset();
        let count = u16::from_be_bytes(self.array(field)?);
        if count > i16::MAX as u16 {
            return Err(self.error_at(start, Expected::NotNegative(field)));
        }
        Ok(count)
    }

    #[inline]
    fn count32(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let start = self.offset();
        let count = self.u32(field)?;
        if count > i32::MAX as u32 {
            return Err(self.error_at(start, Expected::NotNegative(field)));
        }
        Ok(count as usize)
    }

    /// The value that stands for the next byte.
    #[inline]
    fn one_of<T: Copy>(&mut self, choices: &[(u8, T)], expected: &'static str) -> Result<T, DecodeError> {
        let start = self.offset();
        let byte = self.byte(expected)?;
        match choices.iter().find(|(choice, _)| *choice == byte) {
            Some((_, value)) => Ok(*value),
            None => Err(self.error_at(start, Expected::OneOf(expected))),
        }
    }

    /// Flags that the protocol keeps for later: always 0.
    fn flags(&mut self) -> Result<(), DecodeError> {
        self.one_of(&[(0, ())], "flags of 0")
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let start = self.offset();
        let Some(end) = self.rest.iter().position(|byte| *byte == 0) else {
            return Err(self.error_at(self.bytes.len(), Expected::Terminator(field)));
        };
        let text = self.take(end, field)?;
        self.byte(field)?;
        str::from_utf8(text)
            .map_err(|error| self.error_at(start + error.valid_up_to(), Expected::Utf8(field)))
    }

    /// Walks over the cells once, so that whoever iterates over them later need not check again.
    #[inline]
    fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let columns = self.count16("number of cells")?;
        let start = self.rest;
        for _ in 0..columns {
            let at = self.offset();
            match self.byte("cell kind")? {
                b'n' | b'u' => {}
                b't' | b'b' => {
                    let length = self.count32("cell length")?;
                    self.take(length, "cell value")?;
                }
                _ => return Err(self.error_at(at, Expected::OneOf("a cell kind, n, u, t or b"))),
            }
        }
        Ok(Tuple { columns, bytes: &start[..start.len() - self.rest.len()] })
    }
}
