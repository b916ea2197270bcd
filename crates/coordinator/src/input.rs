//! Everything that can reach the reconciler: one closed list.

use std::sync::Arc;

use millrace_api::ProtocolError;
use millrace_api::offer::OfferedTable;
use millrace_api::proto::pipe::v1::{self as pb, SnapshotSettings};
use millrace_api::worker::{CoordinatorMessage, InspectionSubject, WorkerMessage};
use millrace_lifecycle::Refusal;
use millrace_model::work::{Hello, TraceContext};
use millrace_model::{PipeSpec, Problem, TableName, WorkerId};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::directory::PipeView;
use crate::session::SessionId;

/// One thing that happened outside.
pub(crate) enum Input {
    /// A user wants a pipe.
    Create { spec: Box<PipeSpec>, trace: TraceContext, reply: oneshot::Sender<Result<Created, Rejection>> },
    /// A user wants something of a pipe.
    Command {
        name: String,
        wish: Wish,
        trace: TraceContext,
        reply: oneshot::Sender<Result<Arc<PipeView>, Rejection>>,
    },
    /// A user edits a pipe.
    Edit { edit: Box<Edit>, trace: TraceContext, reply: oneshot::Sender<Result<Edited, Rejection>> },
    /// What would an edit lead to? Answered with that specification and the present one.
    Merge { edit: Box<Edit>, reply: oneshot::Sender<Result<(PipeSpec, PipeSpec), Rejection>> },
    /// A user lets a worker have no more work, or have it again. Answered with the worker; `None` where it is not known.
    DrainWorker { worker: WorkerId, undo: bool, reply: oneshot::Sender<Option<pb::Worker>> },
    /// A worker has introduced itself.
    Connected {
        hello: Hello,
        outbound: mpsc::Sender<CoordinatorMessage>,
        reply: oneshot::Sender<Result<SessionId, ConnectRefusal>>,
    },
    /// A worker says something.
    Message {
        session: SessionId,
        message: Box<WorkerMessage>,
        /// What it takes of its session's share of memory, until it has been taken.
        room: OwnedSemaphorePermit,
    },
    /// A worker's stream has ended.
    Disconnected { session: SessionId },
    /// Somebody wants a source and destination looked at.
    Inspect { request: Inspection, reply: oneshot::Sender<Result<Inspected, NoWorker>> },
}

/// What a user wants of a pipe.
pub(crate) enum Wish {
    Pause,
    Resume,
    /// Copies these tables anew, or all where none is named.
    Resync {
        tables: Vec<TableName>,
        settings: Option<SnapshotSettings>,
    },
    Retry(TableName),
    /// Compares these tables with their sources, or all where none is named.
    Verify(Vec<TableName>),
    Delete {
        drop_tables: bool,
    },
}

/// An edit of a pipe's specification.
#[derive(Clone)]
pub(crate) struct Edit {
    /// Names the pipe; an empty password stays as it is.
    pub(crate) spec: PipeSpec,
    /// The fields that are taken from it; all where none is named.
    pub(crate) mask: Vec<String>,
    /// The pipe must still have it, where it is not empty.
    pub(crate) etag: String,
    /// Whether tables may be copied anew.
    pub(crate) resync: bool,
    /// Says what would change and changes nothing.
    pub(crate) dry_run: bool,
}

/// What became of an edit.
pub(crate) struct Edited {
    pub(crate) pipe: Arc<PipeView>,
    /// What differs, in words.
    pub(crate) differences: Vec<String>,
}

/// A pipe that was asked for.
pub(crate) struct Created {
    pub(crate) pipe: Arc<PipeView>,
    /// False where it existed already.
    pub(crate) created: bool,
}

/// Why a user's wish was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("there is no pipe named '{0}'")]
    NotFound(String),
    #[error("a pipe named '{0}' exists with another specification")]
    Differs(String),
    #[error("pipe '{0}' was edited meanwhile")]
    EditedMeanwhile(String),
    #[error("{0}")]
    Invalid(ProtocolError),
    #[error("pipe '{name}': {refusal}")]
    Refused { name: String, refusal: Refusal },
    #[error("the decision could not be stored: {0}")]
    Storage(String),
    #[error("another coordinator leads since")]
    Deposed,
}

/// Why a worker was not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectRefusal {
    #[error("a worker with id '{0}' is connected already; give every worker an id of its own")]
    IdTaken(String),
}

/// What to look at.
pub(crate) struct Inspection {
    pub(crate) subject: InspectionSubject,
    pub(crate) trace: TraceContext,
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Inspected {
    pub(crate) problems: Vec<Problem>,
    pub(crate) tables: Vec<OfferedTable>,
}

/// Nobody can look: no worker is connected, or the one that was asked went away.
#[derive(Debug, thiserror::Error)]
#[error("no worker is connected that could look at source and destination")]
pub(crate) struct NoWorker;
