//! Runs one request on a session of its own, on a thread that may block.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::compression::Decoder;
use super::engine::{CLUSTER, Engine, QUERY_ID};
use super::exception::Exception;
use super::reply::{Gone, Head, Reply};
use super::request::{Parameters, form_fields};
use super::statement::{
    InsertText, UnknownCluster, insert_with_data, is_empty, output_format, with_query_ids, without_cluster,
    writes_to_file,
};
use crate::foreign::{Connection, Counts, Output, Rows};

/// How much of a body is read to find out what it is, in bytes: a server's default for `max_query_size`.
const QUERY_SIZE: usize = 256 << 10;
/// ClickHouse's format where a query asks for none.
const DEFAULT_FORMAT: &str = "TabSeparated";

/// A piece of a request's body. A body that ends without [`BodyPiece::End`] was cut off.
pub(crate) enum BodyPiece {
    Data(Bytes),
    End,
}

/// A request's body, decoded.
pub(crate) struct RequestBody {
    pieces: mpsc::Receiver<BodyPiece>,
    decoder: Decoder,
    ended: bool,
}

impl RequestBody {
    pub(crate) fn new(pieces: mpsc::Receiver<BodyPiece>, compressed: bool) -> Self {
        Self { pieces, decoder: Decoder::new(compressed), ended: false }
    }

    /// The next bytes; `None` at the end.
    fn next(&mut self) -> Result<Option<Bytes>, Stop> {
        while !self.ended {
            match self.pieces.blocking_recv() {
                Some(BodyPiece::Data(piece)) => {
                    let decoded = self.decoder.decode(piece)?;
                    if !decoded.is_empty() {
                        return Ok(Some(decoded));
                    }
                }
                Some(BodyPiece::End) => {
                    self.ended = true;
                    self.decoder.finish()?;
                }
                None => return Err(Stop::Gone),
            }
        }
        Ok(None)
    }

    /// Adds bytes to `text` until it has `enough` or the body ends.
    fn read_into(&mut self, text: &mut Vec<u8>, enough: usize) -> Result<(), Stop> {
        while text.len() < enough
            && let Some(piece) = self.next()?
        {
            text.extend_from_slice(&piece);
        }
        Ok(())
    }
}

/// Why a request ends early.
pub(crate) enum Stop {
    /// The client is to be told.
    Failed(Exception),
    /// There is no client any more.
    Gone,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Failed(exception)
    }
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

fn failed(error: impl AsRef<str>) -> Stop {
    Stop::Failed(Exception::from_engine(error.as_ref()))
}

/// Runs the request and writes its answer. `reads_only` becomes true when the query may be ended at any time because
/// nothing outlives it.
pub(crate) fn execute(
    engine: &Engine,
    mut parameters: Parameters,
    mut body: RequestBody,
    mut reply: Reply,
    reads_only: &AtomicBool,
) {
    let query_id = parameters.query_id.clone();
    let result = run(engine, &mut parameters, &mut body, &mut reply, reads_only);
    let told = match result {
        Ok(()) => reply.end(),
        Err(Stop::Failed(exception)) => {
            tracing::info!(query_id, "{}", exception.line(&engine.version));
            reply.fail(exception)
        }
        Err(Stop::Gone) => Err(Gone),
    };
    if told.is_err() {
        tracing::info!(query_id, "its client went away");
    }
}

fn run(
    engine: &Engine,
    parameters: &mut Parameters,
    body: &mut RequestBody,
    reply: &mut Reply,
    reads_only: &AtomicBool,
) -> Result<(), Stop> {
    if let Some(boundary) = parameters.boundary.take() {
        let mut form = Vec::new();
        body.read_into(&mut form, usize::MAX)?;
        for (name, value) in form_fields(&form, &boundary)? {
            parameters.set(&name, value)?;
        }
    }
    let _running = engine.register(&parameters.query_id)?;
    let mut session = engine.session(parameters)?;

    let mut text = std::mem::take(&mut parameters.query).into_bytes();
    if text.is_empty() {
        body.read_into(&mut text, QUERY_SIZE)?;
    } else {
        // The body goes on with the text of the address, on a new line.
        text.push(b'\n');
    }
    match insert_with_data(&text) {
        Ok(Some(insert)) => run_insert(&mut session, parameters, &text, &insert, body, reply),
        Ok(None) => {
            body.read_into(&mut text, usize::MAX)?;
            run_query(&mut session, parameters, &text, reply, reads_only)
        }
        Err(_) => Err(Exception::not_implemented("FROM INFILE").into()),
    }
}

fn run_insert(
    session: &mut Connection,
    parameters: &Parameters,
    text: &[u8],
    insert: &InsertText,
    body: &mut RequestBody,
    reply: &mut Reply,
) -> Result<(), Stop> {
    if parameters.may_only_read {
        return Err(read_only().into());
    }
    if !matches!(parameters.setting("async_insert"), None | Some("0" | "false")) {
        return Err(Exception::not_implemented("async_insert=1").into());
    }
    let statement = text.get(insert.statement.clone()).unwrap_or_default();
    let mut running = session.insert(statement, &insert.format, &parameters.parameters).map_err(failed)?;
    let mut going = running.append(text.get(insert.data..).unwrap_or_default());
    // If the body is cut off, `running` is dropped here and thereby cancelled.
    while going && let Some(piece) = body.next()? {
        going = running.append(&piece);
    }
    let counts = running.finish().map_err(failed)?;
    if !going {
        // The engine stopped taking data but calls that a success: not for the client, whose data was not taken.
        return Err(Exception::new(49, "LOGICAL_ERROR", "the insert ended before its data").into());
    }
    reply.begin(Head { format: insert.format.clone(), counts })?;
    Ok(())
}

fn run_query(
    session: &mut Connection,
    parameters: &Parameters,
    text: &[u8],
    reply: &mut Reply,
    reads_only: &AtomicBool,
) -> Result<(), Stop> {
    if is_empty(text) {
        return Err(Exception::new(62, "SYNTAX_ERROR", "Syntax error: Empty query").into());
    }
    if writes_to_file(text) {
        return Err(Exception::not_implemented("INTO OUTFILE").into());
    }
    let analysis = session.classify(text);
    if analysis.statements > 1 {
        let message = "Syntax error (Multi-statements are not allowed)";
        return Err(Exception::new(62, "SYNTAX_ERROR", message).into());
    }
    if parameters.may_only_read && analysis.statements == 1 && !analysis.read_only {
        return Err(read_only().into());
    }
    reads_only.store(analysis.read_only, Ordering::Release);

    let text = without_cluster(text, CLUSTER).map_err(|UnknownCluster(name)| {
        Exception::new(170, "CLUSTER_DOESNT_EXIST", format!("Requested cluster '{name}' not found"))
    })?;
    let text = with_query_ids(&text, QUERY_ID);
    let format = output_format(&text).or_else(|| parameters.default_format.clone());
    let format = format.unwrap_or_else(|| DEFAULT_FORMAT.to_owned());
    if analysis.read_only
        && let Some(joint) = Joint::of(&format)
    {
        match session.stream(&text, &format, &parameters.parameters) {
            Ok(rows) => return send_rows(rows, format, joint, reply),
            // Other queries than SELECT, whose results are small.
            Err(error) if error.contains("Streaming query is not supported") => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let output = session.query(&text, &format, &parameters.parameters).map_err(failed)?;
    reply.begin(Head { format, counts: output.counts() })?;
    if !output.as_ref().is_empty() {
        reply.write(Bytes::from_owner(output))?;
    }
    Ok(())
}

fn send_rows(mut rows: Rows<'_>, format: String, joint: Joint, reply: &mut Reply) -> Result<(), Stop> {
    let first = rows.next().map_err(failed)?;
    let counts = first.as_ref().map_or_else(Counts::default, Output::counts);
    reply.begin(Head { format, counts })?;
    let mut first_piece = true;
    let mut next = first;
    while let Some(output) = next {
        let piece = Bytes::from_owner(output);
        let repeated = if first_piece { 0 } else { joint.repeated(&piece) };
        reply.write(piece.slice(repeated..))?;
        first_piece = false;
        next = rows.next().map_err(failed)?;
    }
    Ok(())
}

fn read_only() -> Exception {
    let message = "default: Cannot execute query in readonly mode. For queries over HTTP, method GET implies \
                   readonly. You should use method POST for modifying queries";
    Exception::new(164, "READONLY", message)
}

/// How pieces, each a document of its own, become one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joint {
    /// They follow one another.
    Plain,
    /// Each begins with names, and with types if so, which the document has only once.
    RowBinaryHeader { types: bool },
}

impl Joint {
    /// `None` for a format whose pieces cannot be joined.
    fn of(format: &str) -> Option<Self> {
        const PLAIN: [&str; 18] = [
            "rowbinary",
            "native",
            "tabseparated",
            "tsv",
            "tabseparatedraw",
            "tsvraw",
            "raw",
            "csv",
            "jsoneachrow",
            "jsonlines",
            "ndjson",
            "jsonstringseachrow",
            "jsoncompacteachrow",
            "jsoncompactstringseachrow",
            "lineasstring",
            "rawblob",
            "msgpack",
            "null",
        ];
        match format.to_ascii_lowercase().as_str() {
            "rowbinarywithnames" => Some(Self::RowBinaryHeader { types: false }),
            "rowbinarywithnamesandtypes" => Some(Self::RowBinaryHeader { types: true }),
            name => PLAIN.contains(&name).then_some(Self::Plain),
        }
    }

    /// How many bytes at the beginning of a later piece repeat the first.
    fn repeated(self, piece: &[u8]) -> usize {
        match self {
            Self::Plain => 0,
            Self::RowBinaryHeader { types } => row_binary_header(piece, types).unwrap_or(0),
        }
    }
}

/// The length of a RowBinary header: a count, then as many names, then as many types.
fn row_binary_header(piece: &[u8], types: bool) -> Option<usize> {
    let mut rest = piece;
    let columns = varint(&mut rest)?;
    for _ in 0..columns * if types { 2 } else { 1 } {
        let length = usize::try_from(varint(&mut rest)?).ok()?;
        rest = rest.get(length..)?;
    }
    Some(piece.len() - rest.len())
}

/// An unsigned LEB128 number.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_header_is_found_by_its_own_lengths() {
        let piece = b"\x02\x01a\x02bb\x05Int64\x06Stringrow";
        assert_eq!(row_binary_header(piece, true), Some(piece.len() - 3));
        assert_eq!(row_binary_header(b"\x01\x01arow", false), Some(3));
        assert_eq!(row_binary_header(b"\x02\x01a", true), None);
    }

    #[test]
    fn a_format_with_a_frame_around_it_is_not_joined() {
        assert_eq!(Joint::of("JSON"), None);
        assert_eq!(Joint::of("CSVWithNames"), None);
        assert_eq!(Joint::of("RowBinary"), Some(Joint::Plain));
    }
}
