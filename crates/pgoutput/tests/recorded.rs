//! What a real server sent. `recorded/workload.sql` is what it was asked to do, `recorded/postgresql-17.txt` what
//! `pg_logical_slot_peek_binary_changes` then gave under several options (with `debug_logical_replication_streaming =
//! immediate`, so that small transactions are streamed too), one message a line.

use std::fmt::Write as _;

use millrace_pgoutput::{Body, Cell, Context, Message, OldTuple, Tuple, decode, encode::encode};

const RECORDED: &str = include_str!("recorded/postgresql-17.txt");

struct Recording {
    title: &'static str,
    messages: Vec<(Context, Vec<u8>)>,
}

fn recordings() -> Vec<Recording> {
    let mut recordings: Vec<Recording> = Vec::new();
    let mut context = Context::COMMITTED;
    for line in RECORDED.lines() {
        if let Some(title) = line.strip_prefix("# ") {
            let protocol =
                title.strip_prefix("protocol ").and_then(|rest| rest.split(',').next()?.parse().ok());
            context = Context { protocol: protocol.expect("a title names the protocol"), in_stream: false };
            recordings.push(Recording { title, messages: Vec::new() });
            continue;
        }
        let bytes: Vec<u8> = (0..line.len() / 2)
            .map(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16).expect("hexadecimal"))
            .collect();
        let kind = bytes[0];
        recordings.last_mut().expect("a title comes first").messages.push((context, bytes));
        context.in_stream = (context.in_stream || kind == b'S') && kind != b'E';
    }
    recordings
}

fn recording(title: &str) -> Recording {
    recordings().into_iter().find(|recording| recording.title == title).expect("a recording of that title")
}

#[test]
fn every_recorded_message_is_read_and_written_again_byte_by_byte() {
    let mut kinds = std::collections::BTreeSet::new();
    for recording in recordings() {
        for (context, bytes) in &recording.messages {
            let message =
                decode(bytes, context).unwrap_or_else(|error| panic!("{}: {error}", recording.title));
            assert_eq!(encode(&message), *bytes, "{}: {message:?}", recording.title);
            kinds.insert(message.body.kind());
        }
    }
    assert_eq!(kinds.len(), 19, "a kind of message is not in the recording: {kinds:?}");
}

#[test]
fn every_recorded_message_cut_short_is_refused() {
    for recording in recordings() {
        for (context, bytes) in &recording.messages {
            for end in 0..bytes.len() {
                // An abort may leave out its last two fields.
                let whole = bytes[0] == b'A' && end == 9;
                assert_eq!(decode(&bytes[..end], context).is_ok(), whole, "{end} of {bytes:?}");
            }
        }
    }
}

#[test]
fn text_values_are_lent_as_they_were_written() {
    insta::assert_snapshot!("text", transcript(&recording("protocol 1, text")));
}

#[test]
fn binary_values_are_lent_as_they_were_written() {
    insta::assert_snapshot!("binary", transcript(&recording("protocol 1, binary")));
}

#[test]
fn streamed_and_prepared_transactions_are_told_apart() {
    insta::assert_snapshot!("streamed", transcript(&recording("protocol 4, streaming parallel, two phase")));
}

/// One line a message. Positions, times and transaction ids are left out where they say nothing.
fn transcript(recording: &Recording) -> String {
    let mut out = String::new();
    for (context, bytes) in &recording.messages {
        let message = decode(bytes, context).expect("tested above");
        let _ = writeln!(out, "{}", line(&message));
    }
    out
}

fn line(message: &Message<'_>) -> String {
    let kind = message.body.kind();
    let streamed = if message.stream_xid.is_some() { "  " } else { "" };
    let detail = match &message.body {
        Body::Relation(relation) => {
            let columns: Vec<String> = relation
                .columns
                .iter()
                .map(|column| {
                    let key = if column.key { "*" } else { "" };
                    format!("{key}{} {}({})", column.name, column.type_oid, column.type_modifier)
                })
                .collect();
            let identity = relation.replica_identity;
            format!("{}.{} {identity:?} {}", relation.schema, relation.name, columns.join(", "))
        }
        Body::Type { schema, name, .. } => format!("{schema}.{name}"),
        Body::Insert(insert) => row(insert.new),
        Body::Update(update) => {
            let old = update.old.as_ref().map_or(String::new(), |tuple| old(tuple) + " -> ");
            old + &row(update.new)
        }
        Body::Delete(delete) => old(&delete.old),
        Body::Truncate(truncate) => format!(
            "{} tables, cascade {}, restart identity {}",
            truncate.relations().len(),
            truncate.cascade,
            truncate.restart_identity
        ),
        Body::LogicalMessage(message) => {
            let content = String::from_utf8_lossy(message.content);
            format!("{} {content:?} transactional {}", message.prefix, message.transactional)
        }
        Body::Origin { commit_lsn, name } => format!("{name} {commit_lsn}"),
        Body::BeginPrepare(prepared)
        | Body::Prepare(prepared)
        | Body::CommitPrepared(prepared)
        | Body::StreamPrepare(prepared) => prepared.gid.to_owned(),
        Body::RollbackPrepared(prepared) => prepared.gid.to_owned(),
        Body::StreamStart { first, .. } => format!("first {first}"),
        Body::StreamAbort(abort) => {
            format!("of the whole {}, position {}", abort.xid == abort.subtransaction, abort.at.is_some())
        }
        Body::Begin(_) | Body::Commit(_) | Body::StreamStop | Body::StreamCommit(_) => String::new(),
    };
    format!("{streamed}{kind} {detail}").trim_end().to_owned()
}

fn old(tuple: &OldTuple<'_>) -> String {
    match tuple {
        OldTuple::Key(tuple) => format!("key {}", row(*tuple)),
        OldTuple::Full(tuple) => format!("old {}", row(*tuple)),
    }
}

fn row(tuple: Tuple<'_>) -> String {
    let cells = tuple.cells().map(|cell| match cell {
        Cell::Null => "NULL".to_owned(),
        Cell::Unchanged => "unchanged".to_owned(),
        Cell::Text(value) if value.len() > 40 => format!("{} bytes", value.len()),
        Cell::Text(value) => format!("{:?}", String::from_utf8_lossy(value)),
        Cell::Binary(value) if value.len() > 40 => format!("{} bytes", value.len()),
        Cell::Binary(value) => {
            format!("x{}", value.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
    });
    format!("({})", cells.collect::<Vec<_>>().join(", "))
}
