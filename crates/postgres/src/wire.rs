//! The frontend/backend protocol, version 3 (manual: "Frontend/Backend Protocol"), as far as the data path needs it.
//!
//! One CopyData message is one row or one change, and there are millions of them. So the socket fills a large buffer, messages are found in it
//! in place, and their bodies are lent: nothing is copied or allocated per message (`docs/decisions/0001-own-postgres-wire.md`).

use bytes::BytesMut;
use millrace_model::spec::PostgresSource;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub use crate::buffer::Frame;
use crate::buffer::ReadBuffer;
use crate::dial::{Stream, dial, within_timeout};
use crate::error::{Error, ServerError, Step};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Statements and COPY.
    Session,
    /// Replication commands (manual: "Streaming Replication Protocol").
    Replication,
}

/// Settings that decide how values look, pinned on every connection that carries values; `mapping` relies on them.
pub const PINNED: [(&str, &str); 6] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
];

/// Limits that a role or database may have set and that a long copy, or a session that holds a snapshot, must not run into.
pub const UNLIMITED: [(&str, &str); 3] =
    [("statement_timeout", "0"), ("lock_timeout", "0"), ("idle_in_transaction_session_timeout", "0")];

/// The same for limits that not every version knows, hence not in the startup message; and rows that security policies hide become an error
/// in place of silence.
const LIFT_LIMITS: &str = "SELECT set_config(name, CASE name WHEN 'row_security' THEN 'off' ELSE '0' END, false) \
    FROM pg_catalog.pg_settings WHERE name IN ('idle_session_timeout', 'transaction_timeout', 'row_security')";

/// A connection that lends what it reads.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    buffer: ReadBuffer,
    outgoing: BytesMut,
}

/// A row of a simple query's answer, in text.
pub type TextRow = Vec<Option<String>>;

impl Wire {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// Nobody answers, TLS or authentication fails, or the server refuses the session.
    pub async fn connect(
        source: &PostgresSource,
        purpose: Purpose,
        application_name: &str,
    ) -> Result<Self, Error> {
        within_timeout(source, async {
            let mut wire = Self::authenticated(source, purpose, application_name).await?;
            wire.buffer.trust();
            wire.simple_query(Step::Session, LIFT_LIMITS).await?;
            Ok(wire)
        })
        .await
    }

    async fn authenticated(
        source: &PostgresSource,
        purpose: Purpose,
        application_name: &str,
    ) -> Result<Self, Error> {
        let mut wire = Self {
            stream: dial(source).await?,
            buffer: ReadBuffer::new(),
            outgoing: BytesMut::with_capacity(256),
        };
        let mut parameters = vec![
            ("user", source.username.as_str()),
            ("database", source.database.as_str()),
            ("application_name", application_name),
        ];
        parameters.extend(PINNED);
        parameters.extend(UNLIMITED);
        if purpose == Purpose::Replication {
            parameters.push(("replication", "database"));
        }
        frontend::startup_message(parameters, &mut wire.outgoing).map_err(unsendable)?;
        wire.flush().await?;
        wire.authenticate(source).await?;
        Ok(wire)
    }

    async fn authenticate(&mut self, source: &PostgresSource) -> Result<(), Error> {
        let password = source.password.expose();
        let mut scram: Option<ScramSha256> = None;
        loop {
            let frame = self.message().await?;
            match frame.tag {
                b'E' => return Err(refused(Step::Connect, self.body(frame))),
                b'Z' => return Ok(()),
                b'R' => {
                    let body = self.body(frame).to_vec();
                    let (kind, rest) = split_i32(&body)?;
                    if matches!(kind, 3 | 5 | 10) && password.is_empty() {
                        return Err(Error::Authentication(
                            "the server asks for a password and none is given".to_owned(),
                        ));
                    }
                    match kind {
                        0 => continue,
                        3 => frontend::password_message(password.as_bytes(), &mut self.outgoing)
                            .map_err(unsendable)?,
                        5 => {
                            let salt = <[u8; 4]>::try_from(rest).map_err(|_| odd("an MD5 salt"))?;
                            let hashed = md5_hash(source.username.as_bytes(), password.as_bytes(), salt);
                            frontend::password_message(hashed.as_bytes(), &mut self.outgoing)
                                .map_err(unsendable)?;
                        }
                        10 => {
                            if !rest.split(|byte| *byte == 0).any(|name| name == b"SCRAM-SHA-256") {
                                return Err(Error::Authentication(
                                    "the server offers no SCRAM-SHA-256".to_owned(),
                                ));
                            }
                            let exchange =
                                ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                            frontend::sasl_initial_response(
                                "SCRAM-SHA-256",
                                exchange.message(),
                                &mut self.outgoing,
                            )
                            .map_err(unsendable)?;
                            scram = Some(exchange);
                        }
                        11 => {
                            let exchange = scram.as_mut().ok_or_else(|| odd("a SASL message"))?;
                            exchange
                                .update(rest)
                                .map_err(|error| Error::Authentication(error.to_string()))?;
                            frontend::sasl_response(exchange.message(), &mut self.outgoing)
                                .map_err(unsendable)?;
                        }
                        12 => {
                            let exchange = scram.as_mut().ok_or_else(|| odd("a SASL message"))?;
                            exchange
                                .finish(rest)
                                .map_err(|error| Error::Authentication(error.to_string()))?;
                            continue;
                        }
                        other => {
                            return Err(Error::Authentication(format!(
                                "the server asks for method {other}; trust, password, md5 and scram-sha-256 are known"
                            )));
                        }
                    }
                    self.flush().await?;
                }
                // ParameterStatus, BackendKeyData, NegotiateProtocolVersion, notices.
                b'S' | b'K' | b'v' | b'N' => {}
                other => return Err(odd_tag(other, Step::Connect)),
            }
        }
    }

    /// The next message if it is read whole.
    ///
    /// # Errors
    /// [`Error::Protocol`] where the length cannot be one.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        self.buffer.next_frame()
    }

    /// What follows a message's length.
    #[inline]
    pub fn body(&self, frame: Frame) -> &[u8] {
        self.buffer.body(frame)
    }

    /// Reads once, as much as the socket has and the buffer takes. Nothing is lost when it is dropped before it ends.
    ///
    /// # Errors
    /// The connection broke or was closed.
    pub async fn fill(&mut self) -> Result<(), Error> {
        let read = self.stream.read(self.buffer.room()).await.map_err(Error::Broken)?;
        if read == 0 {
            return Err(Error::Closed);
        }
        self.buffer.filled(read);
        Ok(())
    }

    /// Bytes of memory that reading takes at present: what this connection holds of a memory budget. More than usual after a message that is larger than the
    /// buffer, until that is taken.
    pub fn held(&self) -> usize {
        self.buffer.capacity()
    }

    /// Waits for the next message.
    async fn message(&mut self) -> Result<Frame, Error> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        // Taken out first: dropped half-way, the rest is not sent twice; the connection is of no use then and is dropped too.
        let outgoing = self.outgoing.split();
        self.stream.write_all(&outgoing).await.map_err(Error::Broken)?;
        self.stream.flush().await.map_err(Error::Broken)
    }

    /// Sends bytes that are whole messages.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, messages: &[u8]) -> Result<(), Error> {
        self.outgoing.extend_from_slice(messages);
        self.flush().await
    }

    /// Runs statements by the simple protocol and gives the rows of the last one.
    ///
    /// # Errors
    /// The server refuses, or the connection breaks.
    pub async fn simple_query(&mut self, step: Step, sql: &str) -> Result<Vec<TextRow>, Error> {
        frontend::query(sql, &mut self.outgoing).map_err(unsendable)?;
        self.flush().await?;
        let (mut rows, mut failure) = (Vec::new(), None);
        loop {
            let frame = self.message().await?;
            match frame.tag {
                b'Z' => return failure.map_or(Ok(rows), Err),
                b'E' => failure = Some(refused(step, self.body(frame))),
                b'T' => rows.clear(),
                b'D' => rows.push(text_row(self.body(frame))?),
                b'C' | b'I' | b'N' | b'S' => {}
                other => return Err(odd_tag(other, step)),
            }
        }
    }

    /// Sends a statement that answers with a copy: `expected` is `H` (CopyOut) or `W` (CopyBoth).
    ///
    /// # Errors
    /// The server refuses, or the connection breaks.
    pub async fn begin_copy(&mut self, step: Step, sql: &str, expected: u8) -> Result<(), Error> {
        frontend::query(sql, &mut self.outgoing).map_err(unsendable)?;
        self.flush().await?;
        loop {
            let frame = self.message().await?;
            match frame.tag {
                tag if tag == expected => return Ok(()),
                b'E' => {
                    let error = refused(step, self.body(frame));
                    self.until_ready(step).await?;
                    return Err(error);
                }
                b'N' | b'S' => {}
                other => return Err(odd_tag(other, step)),
            }
        }
    }

    /// Takes in what is left until the server is ready for the next statement.
    ///
    /// # Errors
    /// The server reports an error on the way, or the connection breaks.
    pub async fn until_ready(&mut self, step: Step) -> Result<(), Error> {
        let mut failure = None;
        loop {
            let frame = self.message().await?;
            match frame.tag {
                b'Z' => return failure.map_or(Ok(()), Err),
                b'E' => failure = Some(refused(step, self.body(frame))),
                _ => {}
            }
        }
    }

    /// Waits until the connection ends, on a session that is otherwise idle; says why.
    pub async fn closed(&mut self) -> Error {
        loop {
            match self.message().await {
                Ok(frame) if frame.tag == b'E' => return refused(Step::Session, self.body(frame)),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }
}

/// An `ErrorResponse` as an error.
pub(crate) fn refused(step: Step, body: &[u8]) -> Error {
    let mut error = ServerError {
        code: String::new(),
        message: String::new(),
        detail: String::new(),
        hint: String::new(),
    };
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, text)) = field.split_first() else { continue };
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'C' => error.code = text,
            b'M' => error.message = text,
            b'D' => error.detail = text,
            b'H' => error.hint = text,
            _ => {}
        }
    }
    Error::Refused { step, source: error }
}

pub(crate) fn odd_tag(tag: u8, step: Step) -> Error {
    Error::Protocol(format!("message '{}' where none belongs: {step}", tag.escape_ascii()))
}

fn odd(what: &str) -> Error {
    Error::Protocol(format!("{what} where none belongs"))
}

#[allow(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn unsendable(error: std::io::Error) -> Error {
    Error::Protocol(format!("a statement cannot be sent: {error}"))
}

fn split_i32(bytes: &[u8]) -> Result<(i32, &[u8]), Error> {
    let (head, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| odd("a short message"))?;
    Ok((i32::from_be_bytes(*head), rest))
}

/// A DataRow.
fn text_row(body: &[u8]) -> Result<TextRow, Error> {
    let (count, mut rest) = body.split_first_chunk::<2>().ok_or_else(|| odd("a short row"))?;
    let count = u16::from_be_bytes(*count);
    let mut row = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let (length, after) = split_i32(rest)?;
        if length < 0 {
            row.push(None);
            rest = after;
            continue;
        }
        let (value, after) = usize::try_from(length)
            .ok()
            .and_then(|length| after.split_at_checked(length))
            .ok_or_else(|| odd("a short row"))?;
        row.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = after;
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_a_row_panic(bytes: Vec<u8>) {
            let _ = text_row(&bytes);
            let _ = refused(Step::Copy, &bytes);
        }
    }

    #[test]
    fn an_error_response_is_read_by_its_fields() {
        let Error::Refused { source, .. } = refused(Step::Copy, b"SERROR\0C42501\0Mno\0Dwhy\0Hdo\0\0") else {
            panic!()
        };
        assert_eq!((source.code.as_str(), source.message.as_str()), ("42501", "no"));
        assert_eq!((source.detail.as_str(), source.hint.as_str()), ("why", "do"));
    }
}
