//! What can go wrong at the source, and what is to be done about it.

use std::io;

use millrace_model::{Problem, Recovery};
use tokio_postgres::error::SqlState;

/// An `ErrorResponse` (manual: "Error and Notice Message Fields").
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {code})")]
pub struct ServerError {
    /// SQLSTATE.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// More about it; may be empty.
    pub detail: String,
    /// What PostgreSQL suggests; may be empty.
    pub hint: String,
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
    #[error("PostgreSQL refused {what}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The refusal.
        #[source]
        source: ServerError,
    },
    /// A statement on a session failed.
    #[error("PostgreSQL did not answer {what}")]
    Statement {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
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
    /// Somebody else reads the slot.
    #[error("replication slot {name} is being read by {holder}")]
    SlotBusy {
        /// The slot.
        name: String,
        /// Whose it is.
        holder: String,
    },
}

/// The refusal in an error, where it is one.
fn refusal(error: &Error) -> Option<(String, String, String)> {
    match error {
        Error::Refused { source, .. } => {
            Some((source.code.clone(), source.message.clone(), source.hint.clone()))
        }
        Error::Statement { source, .. } => source.as_db_error().map(|refusal| {
            let hint = refusal.hint().unwrap_or_default().to_owned();
            (refusal.code().code().to_owned(), refusal.message().to_owned(), hint)
        }),
        _ => None,
    }
}

/// What an error means for a pipe. The one place where that is decided; what is not known is the operator's.
pub fn classify(error: &Error) -> Problem {
    if let Some((code, message, hint)) = refusal(error) {
        return classify_refusal(error, &code, &message, &hint);
    }
    let message = chain(error);
    match error {
        Error::Connect { .. } => Problem::transient(
            "SOURCE_UNREACHABLE",
            message,
            "check host and port, that the server runs and listens there (listen_addresses), and that no firewall is between",
        ),
        Error::Tls { .. } => Problem::operator(
            "SOURCE_TLS_FAILED",
            message,
            "choose a tls.mode that the server offers, or give the authority that signed its certificate as tls.caFile",
        ),
        Error::Authentication(_) => Problem::operator(
            "SOURCE_AUTHENTICATION_FAILED",
            message,
            "check username and password, and the server's pg_hba.conf",
        ),
        Error::SlotMissing(name) => Problem::permanent(
            "SLOT_MISSING",
            message,
            format!(
                "somebody dropped {name}; delete the pipe and make it anew: what changed meanwhile is no longer in the log"
            ),
        ),
        Error::SlotLost { .. } => Problem::permanent(
            "SLOT_LOST",
            message,
            "delete the pipe and make it anew; raise max_slot_wal_keep_size so that it does not happen again",
        ),
        Error::SlotBusy { .. } => Problem::transient(
            "SLOT_BUSY",
            message,
            "end the other reader, or give the pipe a slot of its own",
        ),
        Error::Protocol(_) => Problem::operator(
            "SOURCE_PROTOCOL",
            message,
            "is there something other than PostgreSQL at this address?",
        ),
        // Broken, closed, and statements that failed without a refusal: the connection went away.
        Error::Broken(_) | Error::Closed | Error::Refused { .. } | Error::Statement { .. } => {
            Problem::transient("SOURCE_CONNECTION_LOST", message, "it is tried again by itself")
        }
    }
}

/// By SQLSTATE (manual: "PostgreSQL Error Codes"), first the particular ones, then their classes.
fn classify_refusal(error: &Error, code: &str, message: &str, hint: &str) -> Problem {
    let told = format!("{error}: {message}");
    let or_hint = |remedy: &str| {
        if hint.is_empty() { remedy.to_owned() } else { format!("{remedy} (PostgreSQL: {hint})") }
    };
    let is = |state: &SqlState| state.code() == code;
    if is(&SqlState::INVALID_PASSWORD) || is(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) {
        let remedy = or_hint("check username and password, and the server's pg_hba.conf");
        return Problem::operator("SOURCE_AUTHENTICATION_FAILED", told, remedy);
    }
    if is(&SqlState::INVALID_CATALOG_NAME) {
        return Problem::operator("SOURCE_DATABASE_MISSING", told, or_hint("check source.postgres.database"));
    }
    if message.contains("snapshot")
        && (is(&SqlState::INVALID_PARAMETER_VALUE) || is(&SqlState::UNDEFINED_OBJECT))
    {
        return Problem::transient("SNAPSHOT_LOST", told, "the copy goes on under a new snapshot by itself");
    }
    if is(&SqlState::OBJECT_IN_USE) {
        return Problem::transient("SLOT_BUSY", told, or_hint("end the other reader of the slot"));
    }
    if message.contains("can no longer") && message.contains("replication slot") {
        return Problem::permanent(
            "SLOT_LOST",
            told,
            "delete the pipe and make it anew; raise max_slot_wal_keep_size so that it does not happen again",
        );
    }
    if message.contains("publication") && is(&SqlState::UNDEFINED_OBJECT) {
        return Problem::permanent("PUBLICATION_MISSING", told, or_hint("delete the pipe and make it anew"));
    }
    if message.contains("replication slot") && is(&SqlState::UNDEFINED_OBJECT) {
        return Problem::permanent("SLOT_MISSING", told, or_hint("delete the pipe and make it anew"));
    }
    if message.contains("wal_level") {
        let remedy = "run ALTER SYSTEM SET wal_level = logical and restart PostgreSQL";
        return Problem::operator("SOURCE_WAL_LEVEL", told, remedy);
    }
    if is(&SqlState::UNDEFINED_TABLE) || is(&SqlState::UNDEFINED_COLUMN) {
        let remedy = or_hint("the table changed since the pipe was made; make the pipe anew");
        return Problem::operator("SOURCE_TABLE_MISSING", told, remedy);
    }
    let recovery = match code.get(..2).unwrap_or_default() {
        // Connection exceptions; resources (disk, memory, connections); operator intervention (shutdown, starting up);
        // system errors; deadlocks and serialisation.
        "08" | "53" | "57" | "58" | "40" => Recovery::Retry,
        _ if is(&SqlState::LOCK_NOT_AVAILABLE) => Recovery::Retry,
        _ => Recovery::Operator,
    };
    let code = match code.get(..2).unwrap_or_default() {
        "53" => "SOURCE_OUT_OF_RESOURCES",
        "57" | "08" => "SOURCE_CONNECTION_LOST",
        "42" if is(&SqlState::INSUFFICIENT_PRIVILEGE) => "SOURCE_PERMISSION_DENIED",
        _ => "SOURCE_REFUSED",
    };
    let remedy = match code {
        "SOURCE_PERMISSION_DENIED" => or_hint("grant the right that is missing"),
        "SOURCE_OUT_OF_RESOURCES" => {
            or_hint("free connections, slots, disk or memory at the source; it is tried again by itself")
        }
        "SOURCE_CONNECTION_LOST" => or_hint("it is tried again by itself"),
        _ => or_hint("see PostgreSQL's log"),
    };
    Problem { recovery, ..Problem::operator(code, told, remedy) }
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart_by_what_helps() {
        let cases = [
            (
                "28P01",
                "password authentication failed for user \"x\"",
                "SOURCE_AUTHENTICATION_FAILED",
                Recovery::Operator,
            ),
            ("28000", "no pg_hba.conf entry for host", "SOURCE_AUTHENTICATION_FAILED", Recovery::Operator),
            ("3D000", "database \"x\" does not exist", "SOURCE_DATABASE_MISSING", Recovery::Operator),
            (
                "57P01",
                "terminating connection due to administrator command",
                "SOURCE_CONNECTION_LOST",
                Recovery::Retry,
            ),
            ("57P03", "the database system is starting up", "SOURCE_CONNECTION_LOST", Recovery::Retry),
            ("53300", "sorry, too many clients already", "SOURCE_OUT_OF_RESOURCES", Recovery::Retry),
            ("53400", "all replication slots are in use", "SOURCE_OUT_OF_RESOURCES", Recovery::Retry),
            ("55006", "replication slot \"s\" is active for PID 7", "SLOT_BUSY", Recovery::Retry),
            ("42704", "replication slot \"s\" does not exist", "SLOT_MISSING", Recovery::Never),
            ("42704", "publication \"p\" does not exist", "PUBLICATION_MISSING", Recovery::Never),
            ("55000", "can no longer get changes from replication slot \"s\"", "SLOT_LOST", Recovery::Never),
            ("55000", "can no longer access replication slot \"s\"", "SLOT_LOST", Recovery::Never),
            ("22023", "invalid snapshot identifier: \"00000003-1\"", "SNAPSHOT_LOST", Recovery::Retry),
            ("42704", "snapshot \"00000003-00000002-1\" does not exist", "SNAPSHOT_LOST", Recovery::Retry),
            (
                "55000",
                "logical decoding requires wal_level >= logical",
                "SOURCE_WAL_LEVEL",
                Recovery::Operator,
            ),
            ("42501", "permission denied for table orders", "SOURCE_PERMISSION_DENIED", Recovery::Operator),
            ("42P01", "relation \"x\" does not exist", "SOURCE_TABLE_MISSING", Recovery::Operator),
            ("XX000", "something new", "SOURCE_REFUSED", Recovery::Operator),
        ];
        for (code, message, expected, recovery) in cases {
            let source = ServerError {
                code: code.to_owned(),
                message: message.to_owned(),
                detail: String::new(),
                hint: String::new(),
            };
            let problem = classify(&Error::Refused { what: "it", source });
            assert_eq!((problem.code.as_str(), problem.recovery), (expected, recovery), "{message}");
        }
    }

    #[test]
    fn a_lost_connection_passes_by_itself() {
        assert_eq!(classify(&Error::Closed).recovery, Recovery::Retry);
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let connect = Error::Connect { host: "h".into(), port: 1, source: refused };
        let problem = classify(&connect);
        assert_eq!((problem.code.as_str(), problem.recovery), ("SOURCE_UNREACHABLE", Recovery::Retry));
        assert!(problem.message.contains("refused"), "{}", problem.message);
    }
}
