//! What can go wrong at the source. What is to be done about it is decided in [`crate::classification`].

use std::fmt;
use std::io;

/// An `ErrorResponse` (manual: "Error and Notice Message Fields").
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {code})")]
pub struct ServerError {
    /// SQLSTATE.
    pub code: String,
    /// The primary message, in the server's language.
    pub message: String,
    /// More about it; may be empty.
    pub detail: String,
    /// What PostgreSQL suggests; may be empty.
    pub hint: String,
}

/// What was asked of the server. The same SQLSTATE means another thing at another step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Connecting and authenticating.
    Connect,
    /// Settings of a new session, and a session that only has to stay.
    Session,
    /// Opening a transaction.
    Begin,
    /// `SET TRANSACTION SNAPSHOT`
    ImportSnapshot,
    /// `pg_export_snapshot`
    ExportSnapshot,
    /// `CREATE_REPLICATION_SLOT`
    CreateSlot,
    /// `IDENTIFY_SYSTEM`
    IdentifySystem,
    /// Whether the table stands where it was measured.
    FindFile,
    /// `COPY`
    Copy,
    /// `START_REPLICATION`, until the stream is open.
    StartStream,
    /// The open stream.
    Stream,
    /// A statement on a [`crate::Session`], by what it asks.
    Statement(&'static str),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "to connect",
            Self::Session => "to keep the session",
            Self::Begin => "to open a transaction",
            Self::ImportSnapshot => "to read from the snapshot",
            Self::ExportSnapshot => "to export a snapshot",
            Self::CreateSlot => "to create the replication slot",
            Self::IdentifySystem => "to say which cluster it is",
            Self::FindFile => "to say where the table stands",
            Self::Copy => "to copy",
            Self::StartStream => "to start the change stream",
            Self::Stream => "to go on with the change stream",
            Self::Statement(what) => what,
        })
    }
}

/// A failed step at the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection could be made.
    #[error("cannot connect to PostgreSQL at {host}:{port}")]
    Connect {
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS could not be agreed on.
    #[error("cannot agree on TLS with PostgreSQL at {host}:{port}: {reason}")]
    Tls {
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// Why.
        reason: String,
    },
    /// The server wants a way to authenticate that is not known here, or the exchange went wrong.
    #[error("cannot authenticate: {0}")]
    Authentication(String),
    /// The connection broke.
    #[error("the connection to PostgreSQL broke")]
    Broken(#[source] io::Error),
    /// The server closed the connection.
    #[error("PostgreSQL closed the connection")]
    Closed,
    /// The server sent what does not belong there.
    #[error("PostgreSQL sent what is not understood: {0}")]
    Protocol(String),
    /// The server refused.
    #[error("PostgreSQL refused {step}")]
    Refused {
        /// What was asked for.
        step: Step,
        /// The refusal.
        #[source]
        source: ServerError,
    },
    /// The slot is not there.
    #[error("replication slot {0} does not exist")]
    SlotMissing(String),
    /// The slot can no longer deliver what comes after its position.
    #[error("replication slot {name} has lost its place ({reason})")]
    SlotLost {
        /// The slot.
        name: String,
        /// What PostgreSQL says of it.
        reason: String,
    },
    /// A slot of that name is there and cannot be used.
    #[error("replication slot {name} {reason}")]
    SlotUnfit {
        /// The slot.
        name: String,
        /// How it differs.
        reason: String,
    },
    /// The table's rows stand in another file than the one whose pages were divided: ranges of pages mean nothing any more.
    #[error("the table was rewritten or replaced while it was being copied")]
    Rewritten,
    /// Somebody else reads the slot.
    #[error("replication slot {name} is being read by {holder}")]
    SlotBusy {
        /// The slot.
        name: String,
        /// Whose it is.
        holder: String,
    },
}

impl Error {
    /// What the client for statements says, in the words of this crate.
    pub(crate) fn of_session(step: Step, error: tokio_postgres::Error) -> Self {
        if let Some(refusal) = error.as_db_error() {
            let source = ServerError {
                code: refusal.code().code().to_owned(),
                message: refusal.message().to_owned(),
                detail: refusal.detail().unwrap_or_default().to_owned(),
                hint: refusal.hint().unwrap_or_default().to_owned(),
            };
            return Self::Refused { step, source };
        }
        if error.is_closed() {
            return Self::Closed;
        }
        let told = error.to_string();
        match error.into_source().map(|source| source.downcast::<io::Error>()) {
            // A failed exchange of passwords is wrapped as input or output that went wrong.
            Some(Ok(inner))
                if step == Step::Connect
                    && matches!(inner.kind(), io::ErrorKind::Other | io::ErrorKind::InvalidInput) =>
            {
                Self::Authentication(inner.to_string())
            }
            Some(Ok(inner)) if inner.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            Some(Ok(inner)) => Self::Broken(*inner),
            Some(Err(inner)) if step == Step::Connect => Self::Authentication(inner.to_string()),
            Some(Err(inner)) => Self::Protocol(format!("{told}: {inner}")),
            None if step == Step::Connect => Self::Authentication(told),
            None => Self::Protocol(told),
        }
    }
}
