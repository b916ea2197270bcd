//! What pgoutput says. Field order and meaning follow the manual, "Logical Replication Message Formats".

use millrace_model::{Lsn, ReplicaIdentity, Timestamp};

use crate::Tuple;

/// One message as it stood in one XLogData (or one row of `pg_logical_slot_peek_binary_changes`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// The (sub)transaction a change belongs to. Only inside a stream block, and only on relations, types, row changes,
    /// truncates and logical messages.
    pub stream_xid: Option<u32>,
    /// What it says.
    pub body: Body<'a>,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body<'a> {
    /// `B`: a transaction follows whole, because it has committed.
    Begin(Begin),
    /// `C`: the transaction that the last `Begin` opened ends.
    Commit(Commit),
    /// `O`: the transaction came to this server from another. The rest of it follows.
    Origin {
        /// Position of its commit on the server it came from.
        commit_lsn: Lsn,
        /// Name of the origin.
        name: &'a str,
    },
    /// `R`: describes a table; sent before its first change of a session and again after its definition changed.
    Relation(Relation),
    /// `Y`: describes a type that is not built in.
    Type {
        /// `pg_type.oid`
        oid: u32,
        /// Schema; empty for `pg_catalog`.
        schema: &'a str,
        /// Name.
        name: &'a str,
    },
    /// `I`
    Insert(Insert<'a>),
    /// `U`
    Update(Update<'a>),
    /// `D`
    Delete(Delete<'a>),
    /// `T`
    Truncate(Truncate<'a>),
    /// `M`: what somebody wrote with `pg_logical_emit_message`.
    LogicalMessage(LogicalMessage<'a>),
    /// `S`: a block of changes of a transaction that is still in progress follows (protocol 2).
    StreamStart {
        /// The top-level transaction.
        xid: u32,
        /// Whether it is the transaction's first block.
        first: bool,
    },
    /// `E`: the block ends.
    StreamStop,
    /// `c`: a transaction that was streamed has committed.
    StreamCommit(StreamCommit),
    /// `A`: a transaction that was streamed, or one of its subtransactions, was rolled back.
    StreamAbort(StreamAbort),
    /// `b`: a prepared transaction follows (protocol 3).
    BeginPrepare(Prepared<'a>),
    /// `P`: the prepared transaction that the last `BeginPrepare` opened ends.
    Prepare(Prepared<'a>),
    /// `K`: a prepared transaction has committed. `lsn` is that of the commit.
    CommitPrepared(Prepared<'a>),
    /// `r`: a prepared transaction was rolled back.
    RollbackPrepared(RollbackPrepared<'a>),
    /// `p`: a transaction that was streamed is prepared.
    StreamPrepare(Prepared<'a>),
}

impl Body<'_> {
    /// The message's name in the manual.
    pub fn kind(&self) -> &'static str {
        match self {
            Body::Begin(_) => "Begin",
            Body::Commit(_) => "Commit",
            Body::Origin { .. } => "Origin",
            Body::Relation(_) => "Relation",
            Body::Type { .. } => "Type",
            Body::Insert(_) => "Insert",
            Body::Update(_) => "Update",
            Body::Delete(_) => "Delete",
            Body::Truncate(_) => "Truncate",
            Body::LogicalMessage(_) => "Message",
            Body::StreamStart { .. } => "Stream Start",
            Body::StreamStop => "Stream Stop",
            Body::StreamCommit(_) => "Stream Commit",
            Body::StreamAbort(_) => "Stream Abort",
            Body::BeginPrepare(_) => "Begin Prepare",
            Body::Prepare(_) => "Prepare",
            Body::CommitPrepared(_) => "Commit Prepared",
            Body::RollbackPrepared(_) => "Rollback Prepared",
            Body::StreamPrepare(_) => "Stream Prepare",
        }
    }
}

/// `B`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Position of the transaction's commit record.
    pub final_lsn: Lsn,
    /// When it committed.
    pub commit_time: Timestamp,
    /// Its id.
    pub xid: u32,
}

/// `C`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Start of the commit record; equals [`Begin::final_lsn`].
    pub commit_lsn: Lsn,
    /// End of the commit record: what may be acknowledged once the transaction is durable.
    pub end_lsn: Lsn,
    /// When it committed.
    pub commit_time: Timestamp,
}

/// `R`, owned because it outlives its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid`; of the root where a partitioned table is published via its root.
    pub oid: u32,
    /// Schema; the wire's empty string stands as `pg_catalog`.
    pub schema: String,
    /// Name.
    pub name: String,
    /// What old values updates and deletes carry.
    pub replica_identity: ReplicaIdentity,
    /// Published columns in the order of every tuple's cells.
    pub columns: Vec<RelationColumn>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Part of the replica identity; under `FULL` every column is.
    pub key: bool,
    /// Name.
    pub name: String,
    /// `pg_attribute.atttypid`: a domain stands as itself.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`, -1 where there is none.
    pub type_modifier: i32,
}

/// `I`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insert<'a> {
    /// [`Relation::oid`]
    pub relation: u32,
    /// The row.
    pub new: Tuple<'a>,
}

/// `U`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update<'a> {
    /// [`Relation::oid`]
    pub relation: u32,
    /// What stood before: always under `FULL`, otherwise only where a column of the replica identity changed or is stored
    /// out of line.
    pub old: Option<OldTuple<'a>>,
    /// What stands now.
    pub new: Tuple<'a>,
}

/// `D`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delete<'a> {
    /// [`Relation::oid`]
    pub relation: u32,
    /// What stood before.
    pub old: OldTuple<'a>,
}

/// What stood before a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// `K`: only cells of replica identity columns count; the others are NULL whatever the row held.
    Key(Tuple<'a>),
    /// `O`: the whole row, under replica identity `FULL`.
    Full(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// The cells, one per column of the relation.
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => *tuple,
        }
    }
}

/// `T`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate<'a> {
    /// `CASCADE` was given.
    pub cascade: bool,
    /// `RESTART IDENTITY` was given.
    pub restart_identity: bool,
    /// Big-endian oids, four bytes each.
    pub(crate) relations: &'a [u8],
}

impl Truncate<'_> {
    /// The emptied relations, by [`Relation::oid`].
    pub fn relations(&self) -> impl ExactSizeIterator<Item = u32> {
        let (oids, _) = self.relations.as_chunks::<4>();
        oids.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

/// `M`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// Whether it belongs to the transaction around it; otherwise it may stand anywhere.
    pub transactional: bool,
    /// Where it was written.
    pub lsn: Lsn,
    /// Tells whose it is.
    pub prefix: &'a str,
    /// Any bytes.
    pub content: &'a [u8],
}

/// `c`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamCommit {
    /// The top-level transaction.
    pub xid: u32,
    /// As of an ordinary commit.
    pub commit: Commit,
}

/// `A`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamAbort {
    /// The top-level transaction.
    pub xid: u32,
    /// What was rolled back; the same as `xid` where it was the whole.
    pub subtransaction: u32,
    /// Position and time of the abort; only in protocol 4 and with `streaming 'parallel'`.
    pub at: Option<(Lsn, Timestamp)>,
}

/// `b`, `P`, `K`, `p`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared<'a> {
    /// Start of the record of the prepare, or of the commit.
    pub lsn: Lsn,
    /// Its end.
    pub end_lsn: Lsn,
    /// When it was written.
    pub time: Timestamp,
    /// The transaction.
    pub xid: u32,
    /// What the user called it in `PREPARE TRANSACTION`.
    pub gid: &'a str,
}

/// `r`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollbackPrepared<'a> {
    /// End of the record of the prepare.
    pub prepare_end_lsn: Lsn,
    /// End of the record of the rollback.
    pub end_lsn: Lsn,
    /// When it was prepared.
    pub prepare_time: Timestamp,
    /// When it was rolled back.
    pub rollback_time: Timestamp,
    /// The transaction.
    pub xid: u32,
    /// What the user called it in `PREPARE TRANSACTION`.
    pub gid: &'a str,
}
