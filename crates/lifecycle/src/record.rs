//! What is stored about a pipe. What lives only in memory (progress, retries, sessions) belongs to the coordinator.

use std::fmt;

use millrace_model::spec::TableSpec;
use millrace_model::work::{DestinationFacts, KeyRange, Verified};
use millrace_model::{
    Epoch, Lsn, PageRange, PipeId, PipeSpec, Problem, TableDefinition, TableId, TableName, Timestamp,
    WorkerId,
};
use serde::{Deserialize, Serialize};

use crate::pipe::PipeState;
use crate::table::TableState;

/// Whether a pipe gets on, beside its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It does.
    Ok,
    /// Something fails and is tried again, or a table is set aside.
    Degraded,
    /// Nothing gets on.
    Stalled,
}

/// A pipe, without its tables, partitions and assignments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeRecord {
    /// Its identity.
    pub id: PipeId,
    /// What the user asked for.
    pub spec: PipeSpec,
    /// Grows with every edit of the specification, from 1.
    pub generation: u64,
    /// When it was made.
    pub created: Timestamp,
    /// Where it stands.
    pub state: PipeState,
    /// Since when.
    pub since: Timestamp,
    /// Why, in words.
    pub cause: String,
    /// Where it stood before it failed; set only while it is Failed.
    pub failed_in: Option<PipeState>,
    /// Why it failed; set only while it is Failed.
    pub failure: Option<Problem>,
    /// Where it goes after Modifying.
    pub back_to: Option<PipeState>,
    /// Where it goes once tables that were copied anew are in place: a removal may come in between, and leads back to somewhere else. Set only while such a
    /// copy is under way.
    pub after_resync: Option<PipeState>,
    /// Whether a user gave it up; wins over everything.
    pub deleting: bool,
    /// Whether its destination tables go with it.
    pub drop_tables: bool,
    /// The source cluster, once provisioned.
    pub system_identifier: Option<u64>,
    /// The destination, once provisioned.
    pub destination: DestinationFacts,
    /// The slot, once it is known to stand. Set by the report of the snapshot task that made it.
    pub slot: Option<SlotRecord>,
    /// Whether the slot's changes are carried: not before the first copy is complete, nor without a slot.
    pub streams: bool,
    /// Grows with every change of what the stream is to do.
    pub revision: u64,
    /// Copies under way.
    pub rounds: Vec<RoundRecord>,
    /// The number of the next round.
    pub next_round: u32,
    /// The id of the next table.
    pub next_table: u32,
    /// Whether the pipe's own publication may have other tables than the pipe.
    pub publication_due: bool,
    /// Destination tables of ours that nobody needs any more.
    pub garbage: Vec<String>,
    /// The last durable position that was reported.
    pub durable: Lsn,
    /// The timeline of the source's log that it is of; 0 while nothing was streamed from the slot.
    #[serde(default)]
    pub timeline: u32,
    /// Id of the last event.
    pub last_event: u64,
}

/// A replication slot of the pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// Its name.
    pub name: String,
    /// Changes after it are streamed, all before it are in the copy.
    pub consistent_point: Lsn,
}

/// Tables that are described, set up and copied together, under one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// Names it within the pipe; never used again.
    pub number: u32,
    /// What it is for.
    pub purpose: Purpose,
    /// How far it is.
    pub phase: Phase,
    /// The revision from which on the stream carries its tables. No snapshot is taken before it does.
    pub revision: u64,
    /// The snapshot that copies read under; only good while the assignment with its epoch stands.
    pub snapshot: Option<SnapshotRecord>,
    /// The tables must be emptied before they are copied (again): set where a snapshot-only pipe lost its snapshot.
    pub clear: bool,
}

/// What a round of copies is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The pipe's first copy.
    Initial,
    /// Tables that a user added.
    Addition,
    /// The pipe shows Setup, Snapshot and Resync.
    Resync,
    /// It shows on the tables alone; the pipe stays as it is.
    Tables,
}

impl Purpose {
    /// Whether its tables take the places of others.
    pub fn replaces(self) -> bool {
        match self {
            Self::Resync | Self::Tables => true,
            Self::Initial | Self::Addition => false,
        }
    }
}

/// How far a round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its tables are checked and described.
    Describe,
    /// Destination tables are made, the publication is extended.
    SetUp,
    /// Its tables are copied.
    Copy,
    /// They take the places of others.
    Swap,
}

/// An exported snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// The assignment whose session holds it.
    pub epoch: Epoch,
    /// For `SET TRANSACTION SNAPSHOT`.
    pub name: String,
}

/// One table of a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRecord {
    /// Names it.
    pub id: TableId,
    /// What the user said of it.
    pub spec: TableSpec,
    /// The destination table that is written: the target, or one that will take its place.
    pub written: String,
    /// Where it stands.
    pub state: TableState,
    /// Since when.
    pub since: Timestamp,
    /// Why it was set aside; set only while it is.
    pub problem: Option<Problem>,
    /// As provisioned.
    pub definition: Option<TableDefinition>,
    /// The destination table's identity, once it is made.
    pub uuid: Option<String>,
    /// The round that copies it; none once that is over.
    pub round: Option<u32>,
    /// The table whose place it is to take.
    pub replaces: Option<TableId>,
    /// Changes of transactions that committed before this are in the copy. Only where every change is a row are they left out.
    pub begins: Lsn,
    /// Every change of it after this is in the stream. One that was published before stands alone: it may have been the pipe's once and taken out, and
    /// what came in between was not published.
    #[serde(default)]
    pub published: Lsn,
    /// Where the snapshot stood under which the last of it is copied: it is up to date once the stream has passed this.
    pub goal: Lsn,
    /// Values that were altered because the destination cannot hold them.
    #[serde(default)]
    pub altered: u64,
    /// Copies that failed in a row and were begun anew without anybody's doing.
    pub failures: u32,
    /// Whether it was cut into partitions.
    pub cut: bool,
    /// Rows as the planner believed when it was cut.
    pub rows_estimated: u64,
    /// The last time that it was compared with its source, or is to be.
    #[serde(default)]
    pub verification: Option<Verification>,
}

/// A comparison of a table with its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// When somebody asked for it.
    pub requested: Timestamp,
    /// When it ended, and what it found; none while it is to be made.
    pub finished: Option<(Timestamp, Verified)>,
    /// What its table was divided into; empty where it was not, or not yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<VerificationPart>,
    /// What was found in the parts that are done, until all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub so_far: Option<Verified>,
}

/// A range of keys that is compared by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerificationPart {
    /// Which rows.
    pub range: KeyRange,
    /// Whether it is done.
    pub done: bool,
}

impl Verification {
    /// One that is to be made.
    pub fn requested(at: Timestamp) -> Self {
        Self { requested: at, finished: None, parts: Vec::new(), so_far: None }
    }
}

impl TableRecord {
    /// The source table.
    pub fn source(&self) -> &TableName {
        &self.spec.source
    }
}

/// One partition of a table's copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// Position in the table, from 0.
    pub number: u32,
    /// Its pages.
    pub range: PageRange,
    /// Rows and bytes, once it is in the destination.
    pub done: Option<Copied>,
}

/// What a finished partition held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Copied {
    /// Rows.
    pub rows: u64,
    /// Bytes in binary COPY.
    pub bytes: u64,
}

/// What a piece of work is, whoever does it: at most one assignment stands for each task of a pipe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Check both sides for a round.
    Provision {
        /// The round.
        round: u32,
    },
    /// Make (or empty) destination tables and extend the publication for a round.
    SetUp {
        /// The round.
        round: u32,
    },
    /// Take tables out of the publication.
    Publish,
    /// Make the slot where that is needed, hold a round's snapshot.
    Snapshot {
        /// The round.
        round: u32,
    },
    /// Copy a partition.
    Copy {
        /// The table.
        table: TableId,
        /// Its source, for people.
        source: TableName,
        /// The partition's number.
        partition: u32,
    },
    /// Carry changes.
    Stream,
    /// Compare a table with its source.
    Verify {
        /// The table.
        table: TableId,
        /// Its source, for people.
        source: TableName,
        /// The part's place among [`Verification::parts`]; `None` where it was not divided.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<u32>,
    },
    /// Swap a round's tables in where no stream does it.
    Swap {
        /// The round.
        round: u32,
    },
    /// Drop destination tables that nobody needs any more.
    Clean,
    /// Release the slot.
    Release,
    /// Free what is held.
    Teardown,
}

impl Task {
    /// One word for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Task::Provision { .. } => "provision",
            Task::SetUp { .. } => "setup",
            Task::Publish => "publish",
            Task::Snapshot { .. } => "snapshot",
            Task::Copy { .. } => "copy",
            Task::Stream => "stream",
            Task::Verify { .. } => "verify",
            Task::Swap { .. } => "swap",
            Task::Clean => "clean",
            Task::Release => "release",
            Task::Teardown => "teardown",
        }
    }

    /// Whether it takes one of a worker's `max_tasks`. Short and idle tasks may never be kept from running by copies, which wait for the task that holds their
    /// snapshot; nor may a stream, whose tables they add to.
    pub fn takes_slot(&self) -> bool {
        matches!(self, Task::Copy { .. } | Task::Verify { .. })
    }

    /// Whether it opens connections that count against the source's limit.
    pub fn reads_tables(&self) -> bool {
        matches!(self, Task::Copy { .. } | Task::Verify { .. })
    }

    /// The round that it is for, where it is one's.
    pub fn round(&self) -> Option<u32> {
        match self {
            Task::Provision { round }
            | Task::SetUp { round }
            | Task::Snapshot { round }
            | Task::Swap { round } => Some(*round),
            _ => None,
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::Copy { source, partition, .. } => write!(f, "copy of {source} partition {partition}"),
            Task::Verify { source, part: None, .. } => write!(f, "comparison of {source}"),
            Task::Verify { source, part: Some(part), .. } => write!(f, "comparison of {source} part {part}"),
            other => f.write_str(other.kind()),
        }
    }
}

/// One task in one worker's hands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentRecord {
    /// Names the assignment.
    pub epoch: Epoch,
    /// The task.
    pub task: Task,
    /// Whose it is.
    pub worker: WorkerId,
    /// Whether it was asked to drain.
    pub draining: bool,
}

/// Who brought something about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// A call of the API.
    User,
    /// The coordinator, by itself.
    Coordinator,
    /// A worker's report.
    Worker(WorkerId),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::User => f.write_str("user"),
            Actor::Coordinator => f.write_str("coordinator"),
            Actor::Worker(id) => write!(f, "worker {id}"),
        }
    }
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The pipe went from one state to another; `from` is absent for the first.
    State {
        /// Before.
        from: Option<PipeState>,
        /// After.
        to: PipeState,
    },
    /// A table went from one state to another.
    Table {
        /// The table.
        table: TableName,
        /// After.
        to: TableState,
    },
    /// A user's command was accepted.
    Command,
    /// Something went wrong.
    Problem(Problem),
    /// Something worth telling, such as where the slot begins.
    Note,
}

/// One entry of a pipe's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Grows by one with each event of the pipe, from 1.
    pub id: u64,
    /// When.
    pub time: Timestamp,
    /// About what.
    pub kind: EventKind,
    /// In words.
    pub message: String,
    /// By whom.
    pub actor: Actor,
}
