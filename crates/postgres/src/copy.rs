//! Reading rows by binary COPY, lent one by one (manual: "COPY", "Binary Format").

use millrace_model::spec::PostgresSource;
use millrace_model::work::KeyRange;
use millrace_model::{Lsn, PageRange, SourceColumn, TableDefinition};

use crate::error::{Error, Step};
use crate::quoting::{quote_identifier, quote_literal, quote_table};
use crate::wire::{Purpose, Wire, odd_tag, refused};

/// The header's fixed part: signature, flags, length of the extension.
const HEADER: usize = 19;
/// A field count of -1.
const TRAILER: [u8; 2] = [0xff, 0xff];
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// What the next look at the buffer gives.
#[derive(Debug)]
pub enum CopyEvent<'a> {
    /// A tuple: field count, then length and bytes of each field. Lent until the next call.
    Row(&'a [u8]),
    /// Nothing more is read; call [`CopyReader::fill`].
    NeedMore,
    /// The copy is complete, and the connection is ready for the next one.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Header,
    Rows,
    /// The trailer has come; what follows ends the statement.
    Ending,
}

/// Where a table's rows stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the file that was measured.
    Same,
    /// In another, of which the snapshot sees nothing: the table was truncated, or a statement has written all its rows anew, which hides them from older snapshots. See
    /// [`Session::was_truncated`](crate::Session::was_truncated).
    Hidden,
}

/// A session that copies one range after another.
#[derive(Debug)]
pub struct CopyReader {
    wire: Wire,
    phase: Phase,
}

/// Between two partitions a copy holds its table in place. One whose process hangs there would hold up every ALTER TABLE and TRUNCATE,
/// and everybody behind those, for as long as it hangs.
const LIMIT_IDLE: &str = "SET idle_in_transaction_session_timeout = '15s'";

impl CopyReader {
    /// Connects.
    ///
    /// # Errors
    /// As [`Wire::connect`].
    pub async fn connect(source: &PostgresSource, application_name: &str) -> Result<Self, Error> {
        let mut wire = Wire::connect(source, Purpose::Session, application_name).await?;
        wire.simple_query(Step::Session, LIMIT_IDLE).await?;
        Ok(Self { wire, phase: Phase::Idle })
    }

    /// Opens a transaction that sees what the exported snapshot sees (manual: "SET TRANSACTION").
    ///
    /// # Errors
    /// The snapshot is gone with its session, or the connection breaks.
    pub async fn begin_at_snapshot(&mut self, snapshot_name: &str) -> Result<(), Error> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        self.wire.simple_query(Step::Begin, begin).await?;
        let import = format!("SET TRANSACTION SNAPSHOT {}", quote_literal(snapshot_name));
        self.wire.simple_query(Step::ImportSnapshot, &import).await.map(drop)
    }

    /// Opens a transaction with a snapshot of its own. Gives a position of the log that no change which the snapshot sees was committed after.
    ///
    /// # Errors
    /// The connection breaks, or the server is a standby.
    pub async fn begin_now(&mut self) -> Result<Lsn, Error> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        self.wire.simple_query(Step::Begin, begin).await?;
        // The snapshot is taken before the statement asks for the position.
        let rows = self.wire.simple_query(Step::Begin, "SELECT pg_current_wal_insert_lsn()").await?;
        let position = rows.first().and_then(|row| row.first()).cloned().flatten();
        let position = position.and_then(|text| text.parse::<Lsn>().ok());
        position.ok_or_else(|| Error::Protocol("no position of the log".to_owned()))
    }

    /// Ends the transaction; the connection is ready for another one.
    ///
    /// # Errors
    /// The connection breaks.
    pub async fn end(&mut self) -> Result<(), Error> {
        self.wire.simple_query(Step::Begin, "COMMIT").await.map(drop)
    }

    /// Checks that ranges of the definition's pages still mean what they meant when the table was measured, and holds the table in place until the
    /// transaction ends: whatever rewrites it (VACUUM FULL, CLUSTER, most changes of a type) must wait for the lock that reading takes.
    ///
    /// # Errors
    /// [`Error::Rewritten`], or the statement fails.
    pub async fn hold_in_place(&mut self, definition: &TableDefinition) -> Result<Place, Error> {
        if definition.is_partitioned() {
            return Ok(Place::Same);
        }
        let table = quote_table(&definition.name);
        // LIMIT 0 reads nothing; naming the table takes the lock, before the function looks.
        let sql =
            format!("SELECT pg_relation_filenode({}), (SELECT 1 FROM ONLY {table} LIMIT 0)", definition.oid);
        let rows = self.wire.simple_query(Step::FindFile, &sql).await?;
        let found = rows.first().and_then(|row| row.first()).cloned().flatten();
        if found == Some(definition.file_node.to_string()) {
            return Ok(Place::Same);
        }
        let sql = format!("SELECT EXISTS (SELECT 1 FROM ONLY {table})");
        let rows = self.wire.simple_query(Step::FindFile, &sql).await?;
        match rows.first().and_then(|row| row.first()).cloned().flatten().as_deref() {
            Some("f") => Ok(Place::Hidden),
            _ => Err(Error::Rewritten),
        }
    }

    /// Begins a copy, `COPY ... TO STDOUT (FORMAT binary)`.
    ///
    /// # Errors
    /// The server refuses, or the connection breaks.
    pub async fn start(&mut self, sql: &str) -> Result<(), Error> {
        self.wire.begin_copy(Step::Copy, sql, b'H').await?;
        self.phase = Phase::Header;
        Ok(())
    }

    /// The next row if it is read already.
    ///
    /// # Errors
    /// The server reports an error in the middle, or sends what is no binary COPY.
    #[inline]
    pub fn next_row(&mut self) -> Result<CopyEvent<'_>, Error> {
        loop {
            let phase = self.phase;
            let Some(frame) = self.wire.next_frame()? else { return Ok(CopyEvent::NeedMore) };
            match (frame.tag, phase) {
                (b'd', Phase::Rows) if self.wire.body(frame) != TRAILER => {
                    return Ok(CopyEvent::Row(self.wire.body(frame)));
                }
                (b'd', Phase::Rows) => self.phase = Phase::Ending,
                (b'd', Phase::Header) => {
                    // The first row, or the trailer of an empty copy, may share the header's message.
                    let rest = after_header(self.wire.body(frame))?;
                    self.phase = if rest == TRAILER { Phase::Ending } else { Phase::Rows };
                    if self.phase == Phase::Rows && !rest.is_empty() {
                        return Ok(CopyEvent::Row(&self.wire.body(frame)[HEADER..]));
                    }
                }
                // CopyDone, CommandComplete, ReadyForQuery.
                (b'c' | b'C', _) | (b'N' | b'S', _) => {}
                (b'Z', Phase::Ending) => {
                    self.phase = Phase::Idle;
                    return Ok(CopyEvent::End);
                }
                (b'E', _) => return Err(refused(Step::Copy, self.wire.body(frame))),
                (tag, _) => return Err(odd_tag(tag, Step::Copy)),
            }
        }
    }

    /// Reads once. Nothing is lost when it is dropped before it ends.
    ///
    /// # Errors
    /// The connection broke or was closed.
    pub async fn fill(&mut self) -> Result<(), Error> {
        self.wire.fill().await
    }

    /// Bytes of memory that reading takes at present; see [`Wire::held`].
    pub fn held(&self) -> usize {
        self.wire.held()
    }
}

/// Checks the header and gives what follows it.
fn after_header(body: &[u8]) -> Result<&[u8], Error> {
    let flags_and_extension = body.get(SIGNATURE.len()..HEADER);
    let plain = flags_and_extension.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
    if !body.starts_with(SIGNATURE) || !plain {
        return Err(Error::Protocol(
            "a copy that does not begin with the header of the binary format".to_owned(),
        ));
    }
    Ok(&body[HEADER..])
}

/// The statement that copies a range of a table, with the columns of the definition in their order.
///
/// Columns whose type `as_text` names travel in the text form that their output function writes (a cast may write another, as that of `inet` does). A
/// table with storage of its own is read alone, without children that inherit from it, which are published under their own names; a partitioned one has none (its file node
/// is 0) and is read with all its partitions.
pub fn copy_query(
    definition: &TableDefinition,
    range: PageRange,
    as_text: &dyn Fn(&SourceColumn) -> bool,
) -> String {
    let mut bounds = Vec::new();
    if range.first > 0 {
        bounds.push(format!("ctid >= '({},0)'::tid", range.first));
    }
    bounds.extend(range.end.map(|end| format!("ctid < '({end},0)'::tid")));
    let condition =
        if bounds.is_empty() { String::new() } else { format!(" WHERE {}", bounds.join(" AND ")) };
    copy_statement(definition, &condition, as_text)
}

/// As [`copy_query`], of the rows in which an integer column has one of these values.
pub fn copy_query_of_keys(
    definition: &TableDefinition,
    column: &str,
    values: &[i64],
    as_text: &dyn Fn(&SourceColumn) -> bool,
) -> String {
    let values: Vec<String> = values.iter().map(i64::to_string).collect();
    let condition =
        format!(" WHERE {} = ANY('{{{}}}'::bigint[])", quote_identifier(column), values.join(","));
    copy_statement(definition, &condition, as_text)
}

/// As [`copy_query`], of the rows in which an integer column lies in a range.
pub fn copy_query_of_key_range(
    definition: &TableDefinition,
    column: &str,
    range: KeyRange,
    as_text: &dyn Fn(&SourceColumn) -> bool,
) -> String {
    let column = quote_identifier(column);
    let from = range.from.map(|from| format!("{column} >= {from}"));
    let until = range.until.map(|until| format!("{column} < {until}"));
    let bounds: Vec<String> = from.into_iter().chain(until).collect();
    let condition =
        if bounds.is_empty() { String::new() } else { format!(" WHERE {}", bounds.join(" AND ")) };
    copy_statement(definition, &condition, as_text)
}

fn copy_statement(
    definition: &TableDefinition,
    condition: &str,
    as_text: &dyn Fn(&SourceColumn) -> bool,
) -> String {
    let columns: Vec<String> = definition
        .columns
        .iter()
        .map(|column| {
            let name = quote_identifier(&column.name);
            if as_text(column) {
                format!("CASE WHEN num_nulls({name}) = 0 THEN format('%s', {name}) END")
            } else {
                name
            }
        })
        .collect();
    let only = if definition.is_partitioned() { "" } else { "ONLY " };
    format!(
        "COPY (SELECT {} FROM {only}{}{condition}) TO STDOUT (FORMAT binary)",
        columns.join(", "),
        quote_table(&definition.name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_checked_and_what_shares_its_message_is_kept() {
        let mut message = SIGNATURE.to_vec();
        message.extend([0; 8]);
        assert_eq!(after_header(&message).unwrap(), b"");
        message.extend(b"row");
        assert_eq!(after_header(&message).unwrap(), b"row");
        assert!(after_header(&message[..12]).is_err());
        message[12] = 1;
        assert!(after_header(&message).is_err(), "flags that are not known");
    }
}
