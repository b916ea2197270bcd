//! What is stored about a pipe. What lives only in memory (progress, retries, sessions) belongs to the coordinator.

use std::fmt;

use millrace_model::work::DestinationFacts;
use millrace_model::{
    Epoch, Lsn, PageRange, PipeId, PipeSpec, Problem, TableDefinition, TableName, Timestamp, WorkerId,
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
    /// Whether a user gave it up; wins over everything.
    pub deleting: bool,
    /// The source cluster, once provisioned.
    pub system_identifier: Option<u64>,
    /// The destination, once provisioned.
    pub destination: DestinationFacts,
    /// The slot, once it is known to stand. Set by the report of the snapshot task that made it.
    pub slot: Option<SlotRecord>,
    /// The snapshot that copies read under; only good while the assignment with its epoch stands.
    pub snapshot: Option<SnapshotRecord>,
    /// The tables must be emptied before they are copied (again): set where a snapshot-only pipe lost its snapshot.
    pub clear_tables: bool,
    /// The last durable position that was reported.
    pub durable: Lsn,
    /// Id of the last event.
    pub last_event: u64,
}

/// A replication slot that the pipe made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// Its name.
    pub name: String,
    /// Changes after it are streamed, all before it are in the copy.
    pub consistent_point: Lsn,
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
    /// The source table.
    pub source: TableName,
    /// The destination table.
    pub target: String,
    /// Where it stands.
    pub state: TableState,
    /// Since when.
    pub since: Timestamp,
    /// Why it was set aside; set only while it is.
    pub problem: Option<Problem>,
    /// As provisioned.
    pub definition: Option<TableDefinition>,
    /// Whether it was cut into partitions.
    pub cut: bool,
    /// Rows as the planner believed when it was cut.
    pub rows_estimated: u64,
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
    /// Check both sides.
    Provision,
    /// Make (or empty) destination tables and publication.
    SetUp,
    /// Make the slot, hold the snapshot.
    Snapshot,
    /// Copy a partition.
    Copy {
        /// The table.
        table: TableName,
        /// The partition's number.
        partition: u32,
    },
    /// Carry changes.
    Stream,
    /// Release the slot.
    Release,
    /// Free what is held at the source.
    Teardown,
}

impl Task {
    /// One word for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Task::Provision => "provision",
            Task::SetUp => "setup",
            Task::Snapshot => "snapshot",
            Task::Copy { .. } => "copy",
            Task::Stream => "stream",
            Task::Release => "release",
            Task::Teardown => "teardown",
        }
    }

    /// Whether it takes one of a worker's `max_tasks`. The others are short or idle and may never be kept from running by copies and streams:
    /// copies wait for the task that holds their snapshot.
    pub fn takes_slot(&self) -> bool {
        matches!(self, Task::Copy { .. } | Task::Stream)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::Copy { table, partition } => write!(f, "copy of {table} partition {partition}"),
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
