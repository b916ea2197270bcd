//! What workers say and is turned away: it changes nothing, and it is counted, so that a broken or hostile one shows.

use std::fmt;
use std::sync::LazyLock;

use millrace_api::status::{self, reason};
use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};
use tonic::{Code, Status};

/// Messages of workers that were refused, by `reason`.
static REFUSED: LazyLock<Counter<u64>> = LazyLock::new(|| {
    global::meter("millrace")
        .u64_counter("millrace.coordinator.refused_messages")
        .with_description("Messages of workers that were refused and changed nothing.")
        .build()
});

/// Why a message of a worker was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is no message of this protocol.
    Malformed,
    /// A worker introduces itself first, once, and soon.
    OutOfTurn,
    /// Its id is another worker's.
    IdTaken,
    /// Its release is too far from the coordinator's.
    Version,
    /// Nobody holds an assignment of that epoch. Happens in good order too, when an assignment was taken back a moment ago.
    Stale,
    /// The assignment is another worker's.
    NotItsOwn,
    /// The assignment is another kind of work than what was reported of it.
    Impossible,
    /// Nobody asked it.
    Unasked,
}

impl Refused {
    /// Counts it.
    pub(crate) fn count(self) {
        REFUSED.add(1, &[KeyValue::new("reason", self.to_string())]);
    }

    /// Counts it, and gives the status that ends the worker's stream.
    pub(crate) fn status(self, message: impl Into<String>) -> Status {
        self.count();
        let message = message.into();
        tracing::warn!(reason = %self, "refused a worker: {message}");
        match self {
            Self::IdTaken => status::status(
                Code::AlreadyExists,
                reason::WORKER_ID_TAKEN,
                message,
                "give every worker an id of its own (--id); after a crash wait until the lease of the one before has ended",
            ),
            Self::Version => status::status(
                Code::FailedPrecondition,
                reason::VERSION_MISMATCH,
                message,
                "run coordinators and workers of one release, or of neighbouring ones while you upgrade",
            ),
            _ => status::status(
                Code::InvalidArgument,
                reason::WORKER_PROTOCOL,
                message,
                "connect with `millrace worker`; only workers speak this protocol",
            ),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed",
            Self::OutOfTurn => "out_of_turn",
            Self::IdTaken => "id_taken",
            Self::Version => "version",
            Self::Stale => "stale",
            Self::NotItsOwn => "not_its_own",
            Self::Impossible => "impossible",
            Self::Unasked => "unasked",
        })
    }
}
