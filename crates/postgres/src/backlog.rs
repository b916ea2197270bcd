//! Taking a slot's backlog in bulk.
//!
//! A walsender sends every change as a packet of its own, which costs both sides more than the change itself. The same changes come through
//! `pg_logical_slot_peek_binary_changes` (manual: "Replication Management Functions") as rows of an ordinary COPY, many to a packet.
//!
//! What the caller must know: peeking does not move the slot; [`Session::advance_slot`] does, to be called only with what the destination has answered for. The slot
//! must be inactive, and is active while a reader reads. The server decodes a whole call's changes into a temporary file before it sends the first
//! one, and a call ends at a commit only. Whatever a call does not bring, the next one or a stream from the same slot does.

use millrace_model::Lsn;
use millrace_model::spec::PostgresSource;

use crate::copy::{CopyEvent, CopyReader};
use crate::error::Error;
use crate::quoting::{quote_identifier, quote_literal};
use crate::session::Session;

/// What the next look at the buffer gives.
#[derive(Debug)]
pub enum BacklogEvent<'a> {
    /// A message of the output plugin, in the form of protocol version 1; lent until the next call.
    Message {
        /// For a change, the start of its own WAL record.
        lsn: Lsn,
        /// The message.
        payload: &'a [u8],
    },
    /// Nothing more is read; call [`BacklogReader::fill`].
    NeedMore,
    /// The call is complete.
    End,
}

/// One call's changes.
#[derive(Debug)]
pub struct BacklogReader {
    reader: CopyReader,
}

impl BacklogReader {
    /// Connects and asks for the slot's changes: those of the transactions up to the first that ends after `most` messages.
    ///
    /// # Errors
    /// The slot is missing, lost or in use; the publication is missing; the connection fails.
    pub async fn start(
        source: &PostgresSource,
        application_name: &str,
        slot_name: &str,
        publications: &[String],
        binary: bool,
        most: u32,
    ) -> Result<Self, Error> {
        let mut reader = CopyReader::connect(source, application_name).await?;
        let names: Vec<String> = publications.iter().map(|name| quote_identifier(name)).collect();
        let binary = if binary { ", 'binary', 'true'" } else { "" };
        let sql = format!(
            "COPY (SELECT lsn, data FROM pg_logical_slot_peek_binary_changes({}, NULL, {most}, 'proto_version', '1', 'publication_names', {}{binary})) \
             TO STDOUT (FORMAT binary)",
            quote_literal(slot_name),
            quote_literal(&names.join(",")),
        );
        reader.start(&sql).await?;
        Ok(Self { reader })
    }

    /// The next message if it is read already.
    ///
    /// # Errors
    /// The server reports an error, or sends what is no such row.
    #[inline]
    pub fn next_message(&mut self) -> Result<BacklogEvent<'_>, Error> {
        match self.reader.next_row()? {
            CopyEvent::Row(row) => message(row),
            CopyEvent::NeedMore => Ok(BacklogEvent::NeedMore),
            CopyEvent::End => Ok(BacklogEvent::End),
        }
    }

    /// Reads once. Nothing is lost when it is dropped before it ends.
    ///
    /// # Errors
    /// The connection broke or was closed.
    pub async fn fill(&mut self) -> Result<(), Error> {
        self.reader.fill().await
    }
}

/// Two fields: the position in 8 bytes, the message.
#[inline]
fn message(row: &[u8]) -> Result<BacklogEvent<'_>, Error> {
    let read = || {
        let rest = row.strip_prefix(&[0, 2, 0, 0, 0, 8])?;
        let (lsn, rest) = rest.split_first_chunk::<8>()?;
        let (length, payload) = rest.split_first_chunk::<4>()?;
        let whole = usize::try_from(i32::from_be_bytes(*length)) == Ok(payload.len());
        whole.then_some(BacklogEvent::Message { lsn: Lsn(u64::from_be_bytes(*lsn)), payload })
    };
    read().ok_or_else(|| Error::Protocol("a row that is no position and message".to_owned()))
}

impl Session {
    /// Lets the slot forget what lies before a position. The slot must be inactive.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn advance_slot(&self, slot_name: &str, position: Lsn) -> Result<(), Error> {
        let what = "to advance the slot";
        let sql = "SELECT 1 FROM pg_replication_slots s, pg_replication_slot_advance(s.slot_name, $2::text::pg_lsn) \
                   WHERE s.slot_name = $1 AND s.confirmed_flush_lsn < $2::text::pg_lsn";
        self.rows(what, sql, &[&slot_name, &position.to_string()]).await.map(drop)
    }
}
