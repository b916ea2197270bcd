//! From rows to pipes.

use millrace_lifecycle::record::Copied;
use millrace_lifecycle::{EventRecord, PartitionRecord, PipeAggregate};
use millrace_model::{Epoch, PageRange, PipeId, Term};
use rusqlite::{Connection, OptionalExtension, Params, Row, Transaction};

use crate::stored::{PipeRows, decode};
use crate::{CatalogError, Stored};

pub(super) fn everything(connection: &mut Connection) -> Result<Stored, CatalogError> {
    let transaction = connection.transaction().map_err(CatalogError::read("pipes"))?;
    let ids: Vec<String> =
        rows(&transaction, "pipes", "SELECT id FROM pipes ORDER BY id", [], |row| row.get(0))?;
    let pipes = ids.iter().filter_map(|id| pipe(&transaction, id).transpose()).collect::<Result<_, _>>()?;
    Ok(Stored { pipes, last_epoch: last_epoch(&transaction)?, last_term: last_term(&transaction)? })
}

pub(super) fn one_pipe(
    connection: &mut Connection,
    id: &PipeId,
) -> Result<Option<PipeAggregate>, CatalogError> {
    let transaction = connection.transaction().map_err(CatalogError::read("pipes"))?;
    pipe(&transaction, id.as_str())
}

pub(super) fn events(
    connection: &mut Connection,
    pipe: &PipeId,
    after: u64,
    limit: usize,
) -> Result<Vec<EventRecord>, CatalogError> {
    // No stored number is greater than SQLite's integers can be.
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = "SELECT id, record FROM events WHERE pipe_id = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
    let stored: Vec<(i64, String)> =
        rows(connection, "events", sql, (pipe.as_str(), after, limit), |row| Ok((row.get(0)?, row.get(1)?)))?;
    stored.iter().map(|(id, json)| decode(pipe.as_str(), || format!("event {id}"), json)).collect()
}

pub(super) fn last_epoch(connection: &Connection) -> Result<Epoch, CatalogError> {
    let epoch = connection
        .prepare_cached("SELECT last_epoch FROM meta")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)));
    epoch.map(Epoch).map_err(CatalogError::read("the last epoch"))
}

pub(super) fn last_term(connection: &Connection) -> Result<Term, CatalogError> {
    let term = connection
        .prepare_cached("SELECT last_term FROM meta")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)));
    term.map(Term).map_err(CatalogError::read("the last term"))
}

fn pipe(transaction: &Transaction<'_>, id: &str) -> Result<Option<PipeAggregate>, CatalogError> {
    let stored: Option<(u64, String)> = transaction
        .prepare_cached("SELECT version, record FROM pipes WHERE id = ?1")
        .and_then(|mut statement| statement.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .map_err(CatalogError::read("a pipe"))?;
    let Some((version, record)) = stored else { return Ok(None) };
    let tables = "SELECT position, record FROM tables WHERE pipe_id = ?1 ORDER BY position";
    let assignments = "SELECT epoch, record FROM assignments WHERE pipe_id = ?1 ORDER BY epoch";
    let pipe = PipeRows {
        id: id.to_owned(),
        version,
        record,
        tables: rows(transaction, "tables", tables, [id], |row| Ok((row.get(0)?, row.get(1)?)))?,
        partitions: partitions(transaction, id)?,
        assignments: rows(transaction, "assignments", assignments, [id], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?,
    };
    pipe.restore().map(Some)
}

fn partitions(connection: &Connection, pipe: &str) -> Result<Vec<(u32, PartitionRecord)>, CatalogError> {
    let sql = "SELECT table_position, number, first_page, end_page, rows, bytes FROM partitions \
               WHERE pipe_id = ?1 ORDER BY table_position, number";
    rows(connection, "partitions", sql, [pipe], |row| {
        let copied = row.get::<_, Option<u64>>(4)?.zip(row.get::<_, Option<u64>>(5)?);
        let partition = PartitionRecord {
            number: row.get(1)?,
            range: PageRange { first: row.get(2)?, end: row.get(3)? },
            done: copied.map(|(rows, bytes)| Copied { rows, bytes }),
        };
        Ok((row.get(0)?, partition))
    })
}

fn rows<T>(
    connection: &Connection,
    what: &'static str,
    sql: &str,
    parameters: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, CatalogError> {
    connection
        .prepare_cached(sql)
        .and_then(|mut statement| statement.query_map(parameters, read)?.collect())
        .map_err(CatalogError::read(what))
}
