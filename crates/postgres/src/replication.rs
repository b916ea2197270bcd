//! Receiving changes: replication commands and the copy-both stream (manual: "Streaming Replication Protocol").

use std::time::{Duration, SystemTime};

use millrace_model::Lsn;
use millrace_model::spec::PostgresSource;

use crate::error::{Error, Step};
use crate::quoting::{quote_identifier, quote_replication_literal};
use crate::session::Session;
use crate::wire::{Purpose, Wire, odd_tag, refused};

/// Between PostgreSQL's epoch (2000-01-01) and the Unix epoch.
const EPOCH: Duration = Duration::from_secs(946_684_800);

/// How long the server is given to end a stream.
const FINISH_PATIENCE: Duration = Duration::from_secs(3);

/// What the walsender sends.
#[derive(Debug)]
pub enum ReplicationEvent<'a> {
    /// A message of the output plugin.
    XLogData {
        /// For a change, the start of its own WAL record.
        start: Lsn,
        /// End of the log at the server.
        end: Lsn,
        /// The message; lent until the next call.
        payload: &'a [u8],
    },
    /// A sign of life.
    Keepalive {
        /// How far the server has read its log for us.
        end: Lsn,
        /// The server wants to hear of us now.
        reply_requested: bool,
    },
}

/// What of pgoutput's forms is asked for (manual: "Logical Streaming Replication Parameters"; both need PostgreSQL 14).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamForm {
    /// The binary form of every value, which must be decodable for every column; else the text form.
    pub binary: bool,
    /// Large transactions come in blocks while they are still being written (protocol version 2); else whole and in the order of their commits
    /// (protocol version 1).
    pub in_progress: bool,
}

impl StreamForm {
    /// Whole transactions with binary values, or text ones.
    pub fn whole(binary: bool) -> Self {
        Self { binary, in_progress: false }
    }
}

/// An open stream of changes.
#[derive(Debug)]
pub struct ReplicationStream {
    wire: Wire,
    source: PostgresSource,
    slot_name: String,
}

impl ReplicationStream {
    /// Connects and starts streaming from where the slot stands, or from `start` where that is later.
    ///
    /// Prepared transactions come when they are committed.
    ///
    /// # Errors
    /// The slot is missing, lost or in use; the publication is missing (told with the first change); the connection fails.
    pub async fn start(
        source: &PostgresSource,
        application_name: &str,
        slot_name: &str,
        start: Lsn,
        publications: &[String],
        form: StreamForm,
    ) -> Result<Self, Error> {
        let mut wire = Wire::connect(source, Purpose::Replication, application_name).await?;
        let names: Vec<String> = publications.iter().map(|name| quote_identifier(name)).collect();
        let binary = if form.binary { ", binary 'true'" } else { "" };
        let protocol = if form.in_progress { "'2', streaming 'on'" } else { "'1'" };
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {start} (proto_version {protocol}, publication_names {}{binary})",
            quote_identifier(slot_name),
            quote_replication_literal(&names.join(",")),
        );
        wire.begin_copy(Step::StartStream, &sql, b'W').await?;
        Ok(Self { wire, source: source.clone(), slot_name: slot_name.to_owned() })
    }

    /// Reads once. Nothing is lost when it is dropped before it ends.
    ///
    /// # Errors
    /// The connection broke or was closed.
    pub async fn fill(&mut self) -> Result<(), Error> {
        self.wire.fill().await
    }

    /// The next message if it is read already; lent until the next call.
    ///
    /// # Errors
    /// The server ends the stream, reports an error, or sends what is not understood.
    #[inline]
    pub fn next_event(&mut self) -> Result<Option<ReplicationEvent<'_>>, Error> {
        loop {
            let Some(frame) = self.wire.next_frame()? else { return Ok(None) };
            match frame.tag {
                b'd' => return event(self.wire.body(frame)).map(Some),
                b'N' | b'S' => {}
                // CopyDone; and CommandComplete, with which a walsender takes its leave when the server shuts down.
                b'c' | b'C' => return Err(Error::Closed),
                b'E' => return Err(refused(Step::Stream, self.wire.body(frame))),
                other => return Err(odd_tag(other, Step::Stream)),
            }
        }
    }

    /// Says up to where changes were received, made durable and applied: a Standby status update. The slot forgets what is `flushed`.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send_status(
        &mut self,
        written: Lsn,
        flushed: Lsn,
        applied: Lsn,
        reply_requested: bool,
    ) -> Result<(), Error> {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + EPOCH).unwrap_or_default();
        let clock = i64::try_from(clock.as_micros()).unwrap_or(i64::MAX);
        let mut message = [0u8; 39];
        message[0] = b'd';
        message[1..5].copy_from_slice(&38u32.to_be_bytes());
        message[5] = b'r';
        message[6..14].copy_from_slice(&written.0.to_be_bytes());
        message[14..22].copy_from_slice(&flushed.0.to_be_bytes());
        message[22..30].copy_from_slice(&applied.0.to_be_bytes());
        message[30..38].copy_from_slice(&clock.to_be_bytes());
        message[38] = u8::from(reply_requested);
        self.wire.send(&message).await
    }

    /// Ends the stream and waits until the server has: the slot is inactive when this returns. What still comes is dropped.
    ///
    /// A walsender in the middle of a large transaction sends all of it before it looks for our word; where that takes too long it is ended from a session
    /// of its own.
    ///
    /// # Errors
    /// The slot could not be released, as far as we know.
    pub async fn finish(self) -> Result<(), Error> {
        self.finish_within(FINISH_PATIENCE).await
    }

    /// The same with another patience than the usual three seconds.
    ///
    /// # Errors
    /// As [`ReplicationStream::finish`].
    pub async fn finish_within(mut self, patience: Duration) -> Result<(), Error> {
        match tokio::time::timeout(patience, self.say_farewell()).await {
            Ok(ended) => ended,
            Err(_) => {
                let Self { wire, source, slot_name } = self;
                drop(wire);
                Session::connect(&source, "millrace").await?.release_slot(&slot_name).await
            }
        }
    }

    async fn say_farewell(&mut self) -> Result<(), Error> {
        // CopyDone
        self.wire.send(&[b'c', 0, 0, 0, 4]).await?;
        self.wire.until_ready(Step::Stream).await?;
        // Terminate; the session holds nothing more.
        self.wire.send(&[b'X', 0, 0, 0, 4]).await
    }
}

/// What a replication connection says about the server (manual: "IDENTIFY_SYSTEM").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's own number, which its standbys share and nobody else.
    pub system_identifier: u64,
    /// Counts promotions.
    pub timeline: u32,
    /// How far the log is flushed.
    pub position: Lsn,
}

/// Opens a replication connection for a moment and asks who answers: the only true test of whether this role may replicate, here and now.
///
/// # Errors
/// The role lacks the right, no sender is free, something is in between that does not know replication, or the connection fails.
pub async fn identify_system(
    source: &PostgresSource,
    application_name: &str,
) -> Result<SystemIdentity, Error> {
    let mut wire = Wire::connect(source, Purpose::Replication, application_name).await?;
    let rows = wire.simple_query(Step::IdentifySystem, "IDENTIFY_SYSTEM").await?;
    let field = |index: usize| rows.first().and_then(|row| row.get(index)).and_then(Option::as_deref);
    let read = || {
        Some(SystemIdentity {
            system_identifier: field(0)?.parse().ok()?,
            timeline: field(1)?.parse().ok()?,
            position: field(2)?.parse().ok()?,
        })
    };
    read().ok_or_else(|| Error::Protocol("an answer to IDENTIFY_SYSTEM that lacks something".to_owned()))
}

/// The timelines that a server's log has gone through (manual: "Timelines"). Each promotion begins another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timelines {
    /// The one of now.
    pub current: u32,
    /// Those before it, and where each was left.
    before: Vec<(u32, Lsn)>,
}

impl Timelines {
    /// Where the log left a timeline; `None` where it is not among those before the one of now.
    pub fn left(&self, timeline: u32) -> Option<Lsn> {
        self.before.iter().find(|(before, _)| *before == timeline).map(|(_, at)| *at)
    }
}

/// Opens a replication connection for a moment and asks for the history of its timeline.
///
/// # Errors
/// As [`identify_system`].
pub async fn timelines(source: &PostgresSource, application_name: &str) -> Result<Timelines, Error> {
    let unclear = || Error::Protocol("a timeline history that is not understood".to_owned());
    let mut wire = Wire::connect(source, Purpose::Replication, application_name).await?;
    let rows = wire.simple_query(Step::IdentifySystem, "IDENTIFY_SYSTEM").await?;
    let field = rows.first().and_then(|row| row.get(1)).and_then(Option::as_deref);
    let current = field.and_then(|field| field.parse().ok()).ok_or_else(unclear)?;
    // The first has none.
    if current == 1 {
        return Ok(Timelines { current, before: Vec::new() });
    }
    let rows = wire.simple_query(Step::IdentifySystem, &format!("TIMELINE_HISTORY {current}")).await?;
    let content = rows.first().and_then(|row| row.get(1)).and_then(Option::as_deref).ok_or_else(unclear)?;
    Ok(Timelines { current, before: read_history(content).ok_or_else(unclear)? })
}

/// Lines of `timeline`, `position`, `reason`, separated by tabs (`src/backend/access/transam/timeline.c`).
fn read_history(content: &str) -> Option<Vec<(u32, Lsn)>> {
    let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .collect()
}

fn event(body: &[u8]) -> Result<ReplicationEvent<'_>, Error> {
    let short = || Error::Protocol("a replication message that is cut short".to_owned());
    let position = |at: usize| {
        let bytes = body.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or_else(short)?;
        Ok(Lsn(u64::from_be_bytes(*bytes)))
    };
    match body.first() {
        Some(b'w') => {
            let payload = body.get(25..).ok_or_else(short)?;
            Ok(ReplicationEvent::XLogData { start: position(1)?, end: position(9)?, payload })
        }
        Some(b'k') => {
            let reply = body.get(17).ok_or_else(short)?;
            Ok(ReplicationEvent::Keepalive { end: position(1)?, reply_requested: *reply != 0 })
        }
        Some(other) => Err(odd_tag(*other, Step::Stream)),
        None => Err(short()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_an_event_panic(bytes: Vec<u8>) {
            let _ = event(&bytes);
        }
    }

    #[test]
    fn a_timeline_history_tells_where_each_was_left() {
        let history =
            "1\t0/3000158\tno recovery target specified\n\n2\tA/20\tbefore 2000-01-01 00:00:00+00\n";
        let timelines = Timelines { current: 3, before: read_history(history).unwrap() };
        assert_eq!(timelines.left(1), Some(Lsn(0x300_0158)));
        assert_eq!(timelines.left(2), Some(Lsn(0xA_0000_0020)));
        assert_eq!(timelines.left(3), None);
        assert_eq!(read_history("# a comment\n"), Some(Vec::new()));
        assert_eq!(read_history("1 nowhere x"), None);
    }

    #[test]
    fn a_keepalive_is_read() {
        let mut body = vec![b'k'];
        body.extend(7u64.to_be_bytes());
        body.extend(0u64.to_be_bytes());
        body.push(1);
        assert!(matches!(
            event(&body),
            Ok(ReplicationEvent::Keepalive { end: Lsn(7), reply_requested: true })
        ));
        assert!(event(&body[..17]).is_err());
    }
}
