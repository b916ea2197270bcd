//! The one place that says what can be done about a failure at the source.
//!
//! Decided by SQLSTATE (manual: "PostgreSQL Error Codes") and by the step that failed, not by messages, which servers write in their own language.
//! What passes by itself is tried again; everything that is not known to pass by itself waits for an operator.

use millrace_model::Problem;

use crate::error::{Error, ServerError, Step};

/// Every code that this crate gives to a problem, with what it means.
pub const ERROR_CODES: &[(&str, &str)] = &[
    ("COLUMN_MISSING", "excludedColumns or sortingKeys names a column that the table does not have."),
    ("KEY_EXCLUDED", "A column of the key is excluded."),
    (
        "KEY_MISSING",
        "A table has neither a primary key nor a replica identity index, so its rows cannot be told apart.",
    ),
    (
        "PARTITIONS_CHANGED",
        "Partitions with rows came, went or were emptied by themselves; as a warning, they may.",
    ),
    ("PUBLICATION_INCOMPLETE", "The named publication lacks a table, rows, columns or a kind of change."),
    ("PUBLICATION_MISSING", "The publication does not exist (any more)."),
    ("SLOT_BUSY", "Another process reads the replication slot; tried again."),
    ("SLOT_EXISTS", "A replication slot of the wanted name exists already."),
    ("SLOT_LOST", "The slot no longer has the log that it needs (wal_status lost, a segment removed)."),
    ("SLOT_MISSING", "The replication slot does not exist (any more)."),
    ("SLOT_UNFIT", "The replication slot belongs to another database or another output plugin."),
    (
        "SNAPSHOT_LOST",
        "The session that holds the copy's snapshot is gone; the copy goes on under a new one.",
    ),
    ("SORTING_KEY_LACKS_KEY", "sortingKeys does not contain the whole key."),
    (
        "SORTING_KEY_NOT_IN_IDENTITY",
        "sortingKeys has columns whose old values the change stream does not carry.",
    ),
    ("SOURCE_AUTHENTICATION_FAILED", "PostgreSQL does not accept the role, the password or the address."),
    ("SOURCE_CONFLICT", "A deadlock, or a standby's replay, ended a statement; tried again."),
    ("SOURCE_CONNECTION_LOST", "The connection broke, or the server shuts down or starts; tried again."),
    ("SOURCE_DATABASE_MISSING", "The database does not exist."),
    ("SOURCE_IS_STANDBY", "The source is a standby, where changes cannot be followed."),
    ("SOURCE_LOCKED", "Somebody holds a lock that a statement waited for too long; tried again."),
    ("SOURCE_NOT_A_TABLE", "A view, materialised view, foreign table or sequence cannot be copied."),
    ("SOURCE_NOT_OWNER", "The role does not own a table and so cannot add it to a publication."),
    ("SOURCE_NO_FAILOVER_SLOTS", "enableFailoverSlots needs PostgreSQL 17 or later."),
    (
        "SOURCE_OUTRUNS_STANDBYS",
        "Warning: enableFailoverSlots without synchronized_standby_slots; a promoted standby may lack what was carried.",
    ),
    ("SOURCE_OUT_OF_RESOURCES", "PostgreSQL lacks connections, senders, slots, memory or disk; tried again."),
    ("SOURCE_OUT_OF_SLOTS", "No replication slot or WAL sender is free."),
    (
        "SOURCE_PARTITION_LAYOUT",
        "On PostgreSQL 14 a partition has its columns in another order than its table.",
    ),
    ("SOURCE_PERMISSION_DENIED", "The role lacks a right."),
    ("SOURCE_PROTOCOL", "What answers does not speak PostgreSQL's protocol as expected."),
    ("SOURCE_REFUSED", "PostgreSQL refused for a reason that is not known to pass by itself."),
    ("SOURCE_REPLICA_IDENTITY_MISSING", "Updates and deletes of a table cannot be published."),
    ("SOURCE_ROWS_HIDDEN", "Row-level security would hide rows from the role."),
    ("SOURCE_TABLE_MISSING", "A table or column does not exist (any more)."),
    ("SOURCE_TABLE_REWRITTEN", "A table was rewritten or replaced in the middle of its copy."),
    ("SOURCE_TABLE_UNLOGGED", "The changes of an unlogged or temporary table are not in the log."),
    ("SOURCE_TLS_FAILED", "No encrypted connection as tls.mode wants it could be made."),
    ("SOURCE_UNREACHABLE", "No connection to PostgreSQL: name, port, firewall, time-out; tried again."),
    ("SOURCE_VERSION", "The source is older than PostgreSQL 14."),
    ("SOURCE_WAL_KEEP_SIZE", "Warning: max_slot_wal_keep_size may not last for the copy."),
    ("SOURCE_WAL_LEVEL", "wal_level is not logical."),
];

const RETRIED: &str = "it is tried again by itself";
const COPY_ANEW: &str =
    "run `millrace pipe resync`, which makes another: what changed meanwhile is no longer in the log";

/// What an error means for a pipe. What is not known is the operator's.
pub fn classify(error: &Error) -> Problem {
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
        Error::Refused { step, source } => refused(*step, source, message),
        Error::SlotMissing(_) => Problem::permanent("SLOT_MISSING", message, COPY_ANEW),
        Error::SlotLost { .. } => Problem::permanent("SLOT_LOST", message, slot_lost()),
        Error::SlotUnfit { .. } => Problem::operator(
            "SLOT_UNFIT",
            message,
            "give the pipe a slot of its own (settings.replicationSlotName)",
        ),
        Error::Rewritten => Problem::transient(
            "SOURCE_TABLE_REWRITTEN",
            message,
            "it is copied anew by itself, once; leave VACUUM FULL, CLUSTER and ALTER TABLE until the copy is done",
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
        Error::Broken(_) | Error::Closed => Problem::transient("SOURCE_CONNECTION_LOST", message, RETRIED),
    }
}

fn slot_lost() -> String {
    format!("{COPY_ANEW}; raise max_slot_wal_keep_size so that it does not happen again")
}

/// First what a SQLSTATE means at its step, then what it means anywhere, then its class.
fn refused(step: Step, refusal: &ServerError, message: String) -> Problem {
    let message = if refusal.detail.is_empty() { message } else { format!("{message}: {}", refusal.detail) };
    let hinted = |remedy: &str| match refusal.hint.as_str() {
        "" => remedy.to_owned(),
        hint => format!("{remedy} (PostgreSQL: {hint})"),
    };
    match (step, refusal.code.as_str()) {
        // An identifier that is none, a snapshot that nobody holds, a holder that is gone: all told at the import only.
        (Step::ImportSnapshot, "22023" | "42704" | "55000") => {
            Problem::transient("SNAPSHOT_LOST", message, "the copy goes on under a new snapshot by itself")
        }
        (Step::CreateSlot, "42710") => Problem::operator(
            "SLOT_EXISTS",
            message,
            hinted("drop it, or choose another replicationSlotName"),
        ),
        (Step::CreateSlot | Step::StartStream, "55000") if refusal.message.contains("wal_level") => {
            wal_level(message)
        }
        (Step::CreateSlot, "55000") => wal_level(message),
        (Step::StartStream, "42704") => Problem::permanent("SLOT_MISSING", message, COPY_ANEW),
        // "can no longer get changes from replication slot"; and a segment that is gone when it is read.
        (Step::StartStream, "55000") | (Step::StartStream | Step::Stream, "58P01") => {
            Problem::permanent("SLOT_LOST", message, slot_lost())
        }
        (Step::Stream, "42704") => Problem::permanent(
            "PUBLICATION_MISSING",
            message,
            hinted(
                "run `millrace pipe resync`, which makes it again: without the publication changes went by",
            ),
        ),
        (_, "28P01" | "28000") => Problem::operator(
            "SOURCE_AUTHENTICATION_FAILED",
            message,
            hinted("check username and password, and the server's pg_hba.conf"),
        ),
        // ALLOW_CONNECTIONS is false for now.
        (Step::Connect, "55000") => Problem::transient("SOURCE_CONNECTION_LOST", message, RETRIED),
        (_, "3D000") => {
            Problem::operator("SOURCE_DATABASE_MISSING", message, hinted("check source.postgres.database"))
        }
        (_, "42501") => {
            Problem::operator("SOURCE_PERMISSION_DENIED", message, hinted("grant the right that is missing"))
        }
        (_, "42P01" | "42703" | "3F000") => Problem::operator(
            "SOURCE_TABLE_MISSING",
            message,
            hinted(
                "the table changed since it was described; run `millrace pipe retry` once it is as it should be",
            ),
        ),
        (_, "55006") => Problem::transient("SLOT_BUSY", message, hinted("end the other reader of the slot")),
        (_, "55P03") => Problem::transient("SOURCE_LOCKED", message, hinted(RETRIED)),
        // Time-outs that end a session or transaction.
        (_, "25P03" | "25P04") => Problem::transient("SOURCE_CONNECTION_LOST", message, hinted(RETRIED)),
        (_, code) => match code.get(..2).unwrap_or_default() {
            // Connection exceptions; operator intervention: shutdown, starting up, cancelled.
            "08" | "57" => Problem::transient("SOURCE_CONNECTION_LOST", message, hinted(RETRIED)),
            "40" => Problem::transient("SOURCE_CONFLICT", message, hinted(RETRIED)),
            "53" => Problem::transient(
                "SOURCE_OUT_OF_RESOURCES",
                message,
                hinted("free connections, slots, disk or memory at the source; it is tried again by itself"),
            ),
            _ => Problem::operator("SOURCE_REFUSED", message, hinted("see PostgreSQL's log")),
        },
    }
}

fn wal_level(message: String) -> Problem {
    let remedy = "run ALTER SYSTEM SET wal_level = logical and restart PostgreSQL";
    Problem::operator("SOURCE_WAL_LEVEL", message, remedy)
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
    use std::io;

    use millrace_model::Recovery::{Never, Operator, Retry};

    use super::*;

    const ASK: Step = Step::Statement("something");

    #[test]
    fn refusals_are_told_apart_by_step_and_state() {
        let cases = [
            (Step::Connect, "28P01", "SOURCE_AUTHENTICATION_FAILED", Operator),
            (Step::Connect, "28000", "SOURCE_AUTHENTICATION_FAILED", Operator),
            (Step::Connect, "3D000", "SOURCE_DATABASE_MISSING", Operator),
            (Step::Connect, "53300", "SOURCE_OUT_OF_RESOURCES", Retry),
            (Step::Connect, "57P03", "SOURCE_CONNECTION_LOST", Retry),
            (Step::Connect, "55000", "SOURCE_CONNECTION_LOST", Retry),
            (Step::Copy, "57P01", "SOURCE_CONNECTION_LOST", Retry),
            (Step::Copy, "40001", "SOURCE_CONFLICT", Retry),
            (Step::Copy, "42501", "SOURCE_PERMISSION_DENIED", Operator),
            (Step::Copy, "42P01", "SOURCE_TABLE_MISSING", Operator),
            (Step::Copy, "42704", "SOURCE_REFUSED", Operator),
            (Step::ImportSnapshot, "22023", "SNAPSHOT_LOST", Retry),
            (Step::ImportSnapshot, "42704", "SNAPSHOT_LOST", Retry),
            (Step::ImportSnapshot, "55000", "SNAPSHOT_LOST", Retry),
            (Step::CreateSlot, "53400", "SOURCE_OUT_OF_RESOURCES", Retry),
            (Step::CreateSlot, "55000", "SOURCE_WAL_LEVEL", Operator),
            (Step::CreateSlot, "42710", "SLOT_EXISTS", Operator),
            (Step::StartStream, "42704", "SLOT_MISSING", Never),
            (Step::StartStream, "55000", "SLOT_LOST", Never),
            (Step::StartStream, "55006", "SLOT_BUSY", Retry),
            (Step::Stream, "42704", "PUBLICATION_MISSING", Never),
            (Step::Stream, "58P01", "SLOT_LOST", Never),
            (ASK, "55P03", "SOURCE_LOCKED", Retry),
            (ASK, "XX000", "SOURCE_REFUSED", Operator),
            (ASK, "", "SOURCE_REFUSED", Operator),
        ];
        for (step, code, expected, recovery) in cases {
            let source = ServerError {
                code: code.to_owned(),
                message: "in some language".to_owned(),
                detail: String::new(),
                hint: String::new(),
            };
            let problem = classify(&Error::Refused { step, source });
            assert_eq!((problem.code.as_str(), problem.recovery), (expected, recovery), "{step:?} {code}");
            assert!(problem.message.contains("in some language"), "{}", problem.message);
        }
    }

    #[test]
    fn a_lost_connection_passes_by_itself() {
        assert_eq!(classify(&Error::Closed).recovery, Retry);
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let connect = Error::Connect { host: "h".into(), port: 1, source: refused };
        let problem = classify(&connect);
        assert_eq!((problem.code.as_str(), problem.recovery), ("SOURCE_UNREACHABLE", Retry));
        assert!(problem.message.contains("refused"), "{}", problem.message);
    }

    #[test]
    fn every_code_is_listed_once_and_in_order() {
        assert!(ERROR_CODES.is_sorted_by(|one, next| one.0 < next.0));
        let sources = [include_str!("classification.rs"), include_str!("inspect.rs")];
        let given = sources.iter().flat_map(|text| text.split('"').skip(1).step_by(1)).filter(|word| {
            word.len() > 4
                && word.contains('_')
                && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        });
        for code in given {
            assert!(ERROR_CODES.iter().any(|(listed, _)| *listed == code), "{code} is not listed");
        }
    }
}
