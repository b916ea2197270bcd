//! From rows to pipes.

use std::collections::BTreeMap;

use millrace_lifecycle::record::Copied;
use millrace_lifecycle::{
    AssignmentRecord, EventRecord, PartitionRecord, PipeAggregate, PipeRecord, TableRecord,
};
use millrace_model::{Epoch, PageRange, PipeId, TableId, Term};
use rusqlite::{Connection, OptionalExtension, Params, Row, Transaction};
use serde::de::DeserializeOwned;

use crate::{CatalogError, Stored};

pub(super) fn everything(connection: &mut Connection) -> Result<Stored, CatalogError> {
    let transaction = connection.transaction().map_err(CatalogError::read("pipes"))?;
    let ids: Vec<String> =
        rows(&transaction, "pipes", "SELECT id FROM pipes ORDER BY id", [], |row| row.get(0))?;
    let pipes = ids.iter().filter_map(|id| pipe(&transaction, id).transpose()).collect::<Result<_, _>>()?;
    Ok(Stored { pipes, last_epoch: last_epoch(&transaction)? })
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
    let Some((version, json)) = stored else { return Ok(None) };
    let record: PipeRecord = decode(id, || "record of the pipe".to_owned(), &json)?;
    let mut partitions = partitions(transaction, id)?;
    let tables = tables(transaction, id)?.into_iter().map(|table| {
        let of_table = partitions.remove(&table.id).unwrap_or_default();
        (table, of_table)
    });
    let tables: Vec<_> = tables.collect();
    let assignments = assignments(transaction, id)?;
    Ok(Some(PipeAggregate::restore(record, tables, assignments, version)))
}

fn tables(connection: &Connection, pipe: &str) -> Result<Vec<TableRecord>, CatalogError> {
    let sql = "SELECT position, record FROM tables WHERE pipe_id = ?1 ORDER BY position";
    let stored: Vec<(u32, String)> =
        rows(connection, "tables", sql, [pipe], |row| Ok((row.get(0)?, row.get(1)?)))?;
    stored.iter().map(|(id, json)| decode(pipe, || format!("table {id}"), json)).collect()
}

fn partitions(
    connection: &Connection,
    pipe: &str,
) -> Result<BTreeMap<TableId, Vec<PartitionRecord>>, CatalogError> {
    let sql = "SELECT table_position, number, first_page, end_page, rows, bytes FROM partitions \
               WHERE pipe_id = ?1 ORDER BY table_position, number";
    let stored: Vec<(u32, PartitionRecord)> = rows(connection, "partitions", sql, [pipe], |row| {
        let copied = row.get::<_, Option<u64>>(4)?.zip(row.get::<_, Option<u64>>(5)?);
        let partition = PartitionRecord {
            number: row.get(1)?,
            range: PageRange { first: row.get(2)?, end: row.get(3)? },
            done: copied.map(|(rows, bytes)| Copied { rows, bytes }),
        };
        Ok((row.get(0)?, partition))
    })?;
    let mut partitions: BTreeMap<TableId, Vec<PartitionRecord>> = BTreeMap::new();
    for (position, partition) in stored {
        let of_table = partitions.entry(TableId(position)).or_default();
        if of_table.len() != partition.number as usize {
            return Err(missing(pipe, format!("partition {} of table {position}", of_table.len())));
        }
        of_table.push(partition);
    }
    Ok(partitions)
}

fn assignments(connection: &Connection, pipe: &str) -> Result<Vec<AssignmentRecord>, CatalogError> {
    let sql = "SELECT epoch, record FROM assignments WHERE pipe_id = ?1 ORDER BY epoch";
    let stored: Vec<(u64, String)> =
        rows(connection, "assignments", sql, [pipe], |row| Ok((row.get(0)?, row.get(1)?)))?;
    stored.iter().map(|(epoch, json)| decode(pipe, || format!("assignment {epoch}"), json)).collect()
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

fn decode<T: DeserializeOwned>(
    pipe: &str,
    record: impl FnOnce() -> String,
    json: &str,
) -> Result<T, CatalogError> {
    serde_json::from_str(json).map_err(|source| CatalogError::Unreadable {
        pipe: pipe.to_owned(),
        record: record(),
        source: source.into(),
    })
}

fn missing(pipe: &str, record: String) -> CatalogError {
    CatalogError::Missing { pipe: pipe.to_owned(), record }
}
