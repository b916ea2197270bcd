//! What a coordinator asks of a worker and what a worker answers, as checked values.
//! The wire form is `proto/millrace/worker/v1`; its file tells the protocol stage by stage.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::TableSpec;
use crate::{
    Epoch, Labels, Lsn, PageRange, PipeId, PipeSpec, Problem, TableDefinition, TableId, TableName, WorkerId,
};

/// W3C trace context headers (`traceparent`, `tracestate`) of whatever led to a piece of work.
pub type TraceContext = BTreeMap<String, String>;

/// What provisioning learned about the destination and every later step must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DestinationFacts {
    /// Whether tables may have `Time64` columns; decides how `time` is mapped.
    pub time64: bool,
}

/// One piece of work, given to one worker under one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Names this assignment; every report carries it.
    pub epoch: Epoch,
    /// The pipe it belongs to.
    pub pipe: PipeId,
    /// What led to it.
    pub trace: TraceContext,
    /// The pipe's specification. It lists the tables for [`Work::Provision`] alone; other work says itself which it concerns.
    pub spec: PipeSpec,
    /// What to do.
    pub work: Work,
}

/// A table that a piece of work concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableWork {
    /// Names it in reports.
    pub id: TableId,
    /// As the user specified it, save that `target` is the table that is written: one that is copied anew goes under another name at first.
    pub spec: TableSpec,
    /// As provisioned.
    pub definition: TableDefinition,
}

/// A table of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamedTable {
    /// Which.
    pub table: TableWork,
    /// Whether rows of it are being copied still: what the destination holds may be younger than the stream, or not there yet.
    pub copying: bool,
    /// Changes of transactions whose commit record begins before this are left out: what the copy holds already where every change is a row (MergeTree), and
    /// everywhere what was published before the table came to the pipe (again), for between then and now it was not.
    pub begins: Lsn,
}

/// A table that was copied anew and takes the place of the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// The new one.
    pub id: TableId,
    /// The source table, for people.
    pub source: TableName,
    /// The name that it gets.
    pub target: String,
    /// The name that it has.
    pub copied: String,
    /// The new table's UUID in the destination: a swap that was done shows by it.
    pub uuid: String,
    /// The replaced table's UUID, where it was ever made; another table in its place is not touched.
    pub replaces: Option<String>,
}

impl Swap {
    /// The name under which the replaced table waits to be dropped, once another that was `copied` under this name has its place. A
    /// swap that comes late finds nobody under the old name.
    pub fn retired_name(copied: &str) -> String {
        format!("{copied}_old")
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Check source and destination, describe the tables. Ends with [`Outcome::Provisioned`].
    Provision {
        /// The tables are copied anew, into tables of their own; what stands under their targets is not looked at.
        anew: bool,
    },
    /// Make destination tables, see to it that the pipe's own publication has exactly the tables named. Ends with [`Outcome::SetUp`].
    SetUp {
        /// The tables to make.
        tables: Vec<TableWork>,
        /// As provisioned.
        destination: DestinationFacts,
        /// Empty the destination tables of copied rows: the copy of a snapshot-only pipe begins anew.
        clear: bool,
        /// The publication and all its tables, where the pipe owns one.
        publication: Option<(String, Vec<TableName>)>,
        /// The slot of a pipe that copies nothing: see to it that it stands and say where.
        slot: Option<SlotRequest>,
    },
    /// Make the slot where asked, export a snapshot, report [`Progress::SnapshotReady`] and hold it until revoked.
    Snapshot {
        /// Which slot, and whether to make it.
        slot: SlotRequest,
        /// Tables to measure under the snapshot.
        tables: Vec<TableDefinition>,
    },
    /// Copy one partition. Ends with [`Outcome::Copied`].
    Copy {
        /// The table.
        table: TableWork,
        /// For `SET TRANSACTION SNAPSHOT`.
        snapshot_name: String,
        /// Number of the partition in its table, from 0.
        partition: u32,
        /// Its pages.
        range: PageRange,
        /// As provisioned.
        destination: DestinationFacts,
    },
    /// Carry changes from the slot to the destination until drained or revoked. Ends, when drained, with [`Outcome::Drained`]. While it goes on it may be
    /// amended: it is then said anew under the same epoch, with a greater revision.
    Stream {
        /// The slot.
        slot_name: String,
        /// The publication.
        publication_name: String,
        /// The cluster that the slot must be in.
        system_identifier: u64,
        /// The timeline of the log that was streamed last (PostgreSQL manual, "Timelines"); 0 where nothing was.
        timeline: u32,
        /// Where the slot began.
        consistent_point: Lsn,
        /// The last durable position that was recorded; zero where none was.
        durable: Lsn,
        /// Grows with every amendment; the stream says which one it follows.
        revision: u64,
        /// Tables to carry; those set aside are absent.
        tables: Vec<StreamedTable>,
        /// Tables to swap before anything further is written.
        swaps: Vec<Swap>,
        /// As provisioned.
        destination: DestinationFacts,
    },
    /// Compare a table that streams with its source. Ends with [`Outcome::Verified`], or [`Outcome::Divided`] where no range was asked for and the table is large.
    Verify {
        /// The table.
        table: TableWork,
        /// The rows to compare; `None` where the table was not divided (yet).
        range: Option<KeyRange>,
        /// The pipe's slot, which tells what is in the destination.
        slot_name: String,
        /// Whether other sources feed the same destination table.
        shared_target: bool,
        /// As provisioned.
        destination: DestinationFacts,
    },
    /// Let tables that were copied anew take the place of those before, where no stream does it. Ends with [`Outcome::Swapped`].
    Swap {
        /// Which.
        swaps: Vec<Swap>,
    },
    /// Drop destination tables that nobody needs any more. Ends with [`Outcome::Cleaned`].
    Clean {
        /// Their names; one that is gone already is fine.
        tables: Vec<String>,
    },
    /// See to it that nobody of ours reads the slot any more. Ends with [`Outcome::Released`].
    Release {
        /// The slot.
        slot_name: String,
    },
    /// Free what the pipe holds. Ends with [`Outcome::TornDown`].
    Teardown {
        /// The slot, where one may exist.
        slot_name: Option<String>,
        /// The publication, where the pipe owns one.
        publication_name: Option<String>,
        /// Destination tables to drop.
        tables: Vec<String>,
    },
}

/// Which slot a snapshot goes with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotRequest {
    /// Make it, and drop one of that name that is left from a try nobody recorded.
    Create {
        /// Its name.
        name: String,
        /// Whether it is synchronised to standbys.
        failover: bool,
    },
    /// One that ends with the snapshot: it waits for transactions that a plain snapshot would not see to their end.
    Temporary,
    /// None is needed: nothing follows the copy of a snapshot-only pipe (`docs/decisions/0002`).
    None,
    /// It stands already; only export a snapshot.
    Existing {
        /// Its name.
        name: String,
    },
}

impl Work {
    /// One word for logs, metrics and people.
    pub fn kind(&self) -> &'static str {
        match self {
            Work::Provision { .. } => "provision",
            Work::SetUp { .. } => "setup",
            Work::Snapshot { .. } => "snapshot",
            Work::Copy { .. } => "copy",
            Work::Stream { .. } => "stream",
            Work::Verify { .. } => "verify",
            Work::Swap { .. } => "swap",
            Work::Clean { .. } => "clean",
            Work::Release { .. } => "release",
            Work::Teardown { .. } => "teardown",
        }
    }
}

/// A table as large as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSize {
    /// The source table.
    pub table: TableName,
    /// Pages of its main fork; 0 for a partitioned table, which has none of its own.
    pub pages: u32,
    /// Rows as the planner believes; 0 where unknown.
    pub estimated_rows: u64,
    /// `pg_relation_filenode` of the file that was measured; 0 for a partitioned table. Page ranges hold for this file alone.
    pub file_node: u32,
}

/// How far a piece of work is. The newest replaces those before it; none has to arrive save `SnapshotReady`.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// The snapshot can be used while the assignment stands.
    SnapshotReady {
        /// For `SET TRANSACTION SNAPSHOT`.
        snapshot_name: String,
        /// Where the slot begins that was made; for one that stood already, the end of the log after the snapshot was taken. Zero without a slot.
        consistent_point: Lsn,
        /// The tables under the snapshot.
        sizes: Vec<TableSize>,
    },
    /// A partition, in part.
    Copy {
        /// Rows read so far.
        rows: u64,
        /// Bytes read so far.
        bytes: u64,
    },
    /// The stream.
    Stream(StreamProgress),
    /// A comparison.
    Verify {
        /// Rows read so far, of both sides together.
        rows: u64,
    },
}

/// How far a stream is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamProgress {
    /// Everything at or below it is in the destination.
    pub durable: Lsn,
    /// The source's log as last heard.
    pub source: Lsn,
    /// Changes applied since the assignment began.
    pub changes: u64,
    /// From commit to visible, of the newest batch.
    pub delay: Option<Duration>,
    /// Whether everything that was in the log when the assignment began is durable.
    pub caught_up: bool,
    /// Changes by table since the assignment began.
    pub tables: Vec<(TableId, u64)>,
    /// The amendment that it follows.
    pub revision: u64,
    /// Tables that cannot be written for now and hold the slot back, each with its trouble.
    pub held: Vec<(TableId, Problem)>,
    /// The timeline of the log that is read; another one than before once nothing of that before is known to be lost.
    pub timeline: u32,
}

/// How a piece of work ended well.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// [`Work::Provision`]
    Provisioned {
        /// `IDENTIFY_SYSTEM`'s systemid.
        system_identifier: u64,
        /// `server_version_num`, such as 170010.
        server_version: u32,
        /// The tables in the order of the specification.
        tables: Vec<TableDefinition>,
        /// What was found and does not stand in the way.
        warnings: Vec<Problem>,
        /// Facts for later steps.
        destination: DestinationFacts,
    },
    /// [`Work::SetUp`]
    SetUp {
        /// The UUIDs of the tables in the destination.
        tables: Vec<(TableId, String)>,
        /// Where the slot that was asked for stands; without one the end of the log once the publication has the tables, zero where that is not the pipe's own.
        begins: Lsn,
    },
    /// [`Work::Swap`]
    Swapped {
        /// Which.
        tables: Vec<TableId>,
    },
    /// [`Work::Clean`]
    Cleaned {
        /// The tables that are gone.
        tables: Vec<String>,
    },
    /// [`Work::Copy`]
    Copied {
        /// Rows of the partition.
        rows: u64,
        /// Their bytes in binary COPY.
        bytes: u64,
    },
    /// [`Work::Stream`]: everything that was read is in the destination and the slot is released.
    Drained {
        /// Up to here.
        durable: Lsn,
    },
    /// [`Work::Verify`]
    Verified(Verified),
    /// [`Work::Verify`] of a large table: nothing was compared yet, it is to be done range by range.
    Divided {
        /// The first values of the sorting key's first column in each range but the first; ascending, none twice, at least one and at most [`KeyRange::MOST_BOUNDS`].
        bounds: Vec<i64>,
    },
    /// [`Work::Release`]
    Released,
    /// [`Work::Teardown`]
    TornDown {
        /// What could not be freed, and why.
        left_behind: Vec<Problem>,
    },
}

/// How much log a replication slot holds back, as PostgreSQL counts it (`pg_replication_slots`, PostgreSQL manual, 52.20).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotHealth {
    /// `reserved`, `extended`, `unreserved` (its log may go at the next checkpoint) or `lost`.
    pub wal_status: String,
    /// Bytes of log that are kept for it.
    pub retained: u64,
    /// Bytes that may be written before it is in danger of being lost; `None` where `max_slot_wal_keep_size` sets no limit.
    pub headroom: Option<u64>,
}

impl SlotHealth {
    /// The words of `wal_status`.
    pub const STATES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

    /// Whether the source will soon give up what the slot needs, or has: less than a tenth of what it may hold is left.
    pub fn in_danger(&self) -> bool {
        let short = |headroom: u64| headroom < (self.retained.saturating_add(headroom)) / 10;
        matches!(self.wal_status.as_str(), "unreserved" | "lost") || self.headroom.is_some_and(short)
    }
}

/// Rows of which the first column of the sorting key, an integer, lies in `from..until`; a bound that is absent leaves that side open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KeyRange {
    /// The least value.
    pub from: Option<i64>,
    /// The first value that is none of them any more.
    pub until: Option<i64>,
}

impl KeyRange {
    /// A table is never divided at more values than this.
    pub const MOST_BOUNDS: usize = 1_000;

    /// Every row.
    pub const ALL: Self = Self { from: None, until: None };

    /// The ranges between ascending bounds, one more than there are bounds; together they are [`KeyRange::ALL`].
    pub fn between(bounds: &[i64]) -> impl Iterator<Item = Self> {
        let from = std::iter::once(None).chain(bounds.iter().copied().map(Some));
        let until = bounds.iter().copied().map(Some).chain([None]);
        from.zip(until).map(|(from, until)| Self { from, until })
    }
}

/// What the comparison of a table with its source found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verified {
    /// Rows that were read at the source.
    pub source_rows: u64,
    /// Rows that were read at the destination, deleted ones not among them. It may be another number, as rows change meanwhile.
    pub destination_rows: u64,
    /// Rows that differ.
    pub differences: u64,
    /// Whether there may be more: what was found was enough.
    pub more: bool,
    /// Rows that changed each time they were looked at, so that nothing can be said of them.
    pub unsettled: u64,
    /// Some of the rows that differ, at most [`Verified::SAMPLES`].
    pub samples: Vec<RowDifference>,
    /// Why the table could not be compared.
    pub problem: Option<Problem>,
}

impl Verified {
    /// How many of the rows that differ are kept with what was found.
    pub const SAMPLES: usize = 1_000;

    /// Adds what was found of other rows of the same table.
    pub fn merge(&mut self, other: Self) {
        self.source_rows += other.source_rows;
        self.destination_rows += other.destination_rows;
        self.differences += other.differences;
        self.more |= other.more;
        self.unsettled += other.unsettled;
        self.samples.extend(other.samples);
        self.samples.truncate(Self::SAMPLES);
        self.problem = self.problem.take().or(other.problem);
    }
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowDifference {
    /// How.
    pub kind: DifferenceKind,
    /// The values of its sorting key, for people.
    pub key: String,
    /// The columns that differ, where it is altered.
    pub columns: Vec<String>,
}

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// Both sides have it, with other values.
    Altered,
    /// The destination lacks it.
    Missing,
    /// The source does not have it, or not any more.
    Extra,
}

/// What a worker says about one of its assignments.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// It gets on.
    Progress(Progress),
    /// It is done.
    Finished(Outcome),
    /// It cannot be done now; at least one problem, the first decides what follows.
    Failed(Vec<Problem>),
    /// The stream knows the table by this definition from now on: its columns changed, or rows of it were taken from the source.
    TableChanged(TableId, Box<TableDefinition>),
    /// The stream leaves the table out from now on. What passes by itself (the copy that was under way is void) is copied anew without anybody's doing.
    TableSetAside(TableId, Problem),
    /// The table took the place of the one before.
    TableSwapped(TableId),
    /// So many further values of the table were altered because the destination cannot hold them (`outOfRange`).
    ValuesAltered(TableId, u64),
}

/// A worker introduces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Unique in the fleet, stable over reconnects.
    pub worker: WorkerId,
    /// Made anew at every start of the process.
    pub instance: String,
    /// Its release.
    pub version: String,
    /// Most assignments at a time, at least 1.
    pub max_tasks: u32,
    /// Ceiling of memory that grows with data, in bytes.
    pub memory_budget: u64,
    /// Epochs of what it holds, finished work included that was not yet recorded.
    pub held: Vec<Epoch>,
    /// Where it is and whom it serves.
    pub labels: Labels,
    /// Whether a user drained it: said again, because only it outlives every coordinator.
    pub drained: bool,
}
