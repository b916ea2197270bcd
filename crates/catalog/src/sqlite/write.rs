//! From changes to rows.

use millrace_lifecycle::{PipeChanges, PipeRecord};
use millrace_model::{Epoch, PipeId, Term};
use rusqlite::{Connection, OptionalExtension, Params, Transaction, TransactionBehavior};

use super::read;
use crate::CatalogError;
use crate::stored::encode;

pub(super) fn commit(
    connection: &mut Connection,
    term: Term,
    mut batch: Vec<(PipeId, PipeChanges)>,
    last_epoch: Epoch,
) -> Result<(), CatalogError> {
    // First those that go, so that their names are free.
    batch.sort_by_key(|(_, changes)| !changes.removed);
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(CatalogError::write("changes"))?;
    let present = read::last_term(&transaction)?;
    if term != present {
        return Err(CatalogError::Deposed { term, present });
    }
    for (id, changes) in &batch {
        store(&transaction, id, changes)?;
    }
    if last_epoch > read::last_epoch(&transaction)? {
        execute(&transaction, "the last epoch", "UPDATE meta SET last_epoch = ?1", [last_epoch.0])?;
    }
    transaction.commit().map_err(CatalogError::write("changes"))
}

/// Begins a term; all before it are over.
pub(super) fn next_term(connection: &Connection) -> Result<Term, CatalogError> {
    connection
        .prepare_cached("UPDATE meta SET last_term = last_term + 1 RETURNING last_term")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map(Term)
        .map_err(CatalogError::write("a term"))
}

/// No later term is as small as this one.
pub(super) fn outdo(connection: &Connection, term: Term) -> Result<(), CatalogError> {
    connection
        .prepare_cached("UPDATE meta SET last_term = max(last_term, ?1)")
        .and_then(|mut statement| statement.execute([term.0]))
        .map(drop)
        .map_err(CatalogError::write("a term"))
}

fn store(transaction: &Transaction<'_>, id: &PipeId, changes: &PipeChanges) -> Result<(), CatalogError> {
    check_version(transaction, id, changes.expected_version)?;
    if changes.removed {
        return execute(transaction, "a removal", "DELETE FROM pipes WHERE id = ?1", [id.as_str()]);
    }
    store_pipe(transaction, id, changes)?;
    let pipe = id.as_str();
    for id in &changes.removed_tables {
        let sql = "DELETE FROM tables WHERE pipe_id = ?1 AND position = ?2";
        execute(transaction, "a removed table", sql, (pipe, id.0))?;
    }
    for table in &changes.tables {
        let sql = "INSERT INTO tables (pipe_id, position, record) VALUES (?1, ?2, ?3) \
                   ON CONFLICT (pipe_id, position) DO UPDATE SET record = excluded.record";
        execute(transaction, "a table", sql, (id.as_str(), table.id.0, encode("a table", table)?))?;
    }
    for (table, partition) in &changes.partitions {
        let sql = "INSERT INTO partitions (pipe_id, table_position, number, first_page, end_page, rows, bytes) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
                   ON CONFLICT (pipe_id, table_position, number) DO UPDATE SET first_page = excluded.first_page, \
                   end_page = excluded.end_page, rows = excluded.rows, bytes = excluded.bytes";
        let (range, done) = (partition.range, partition.done);
        let (rows, bytes) = (done.map(|copied| copied.rows), done.map(|copied| copied.bytes));
        let row = (id.as_str(), table.0, partition.number, range.first, range.end, rows, bytes);
        execute(transaction, "a partition", sql, row)?;
    }
    for epoch in &changes.withdrawn {
        let sql = "DELETE FROM assignments WHERE pipe_id = ?1 AND epoch = ?2";
        execute(transaction, "an assignment", sql, (id.as_str(), epoch.0))?;
    }
    for assignment in &changes.assignments {
        let sql = "INSERT INTO assignments (pipe_id, epoch, record) VALUES (?1, ?2, ?3) \
                   ON CONFLICT (pipe_id, epoch) DO UPDATE SET record = excluded.record";
        let record = encode("an assignment", assignment)?;
        execute(transaction, "an assignment", sql, (id.as_str(), assignment.epoch.0, record))?;
    }
    for event in &changes.events {
        let sql = "INSERT INTO events (pipe_id, id, record) VALUES (?1, ?2, ?3)";
        execute(transaction, "an event", sql, (id.as_str(), event.id, encode("an event", event)?))?;
    }
    Ok(())
}

fn check_version(transaction: &Transaction<'_>, id: &PipeId, expected: u64) -> Result<(), CatalogError> {
    let found: Option<u64> = transaction
        .prepare_cached("SELECT version FROM pipes WHERE id = ?1")
        .and_then(|mut statement| statement.query_row([id.as_str()], |row| row.get(0)).optional())
        .map_err(CatalogError::read("a pipe's version"))?;
    let found = found.unwrap_or(0);
    if found == expected { Ok(()) } else { Err(CatalogError::Conflict { pipe: id.clone(), expected, found }) }
}

/// Stores the pipe's own row with its new version.
fn store_pipe(transaction: &Transaction<'_>, id: &PipeId, changes: &PipeChanges) -> Result<(), CatalogError> {
    let malformed = |reason| CatalogError::Malformed { pipe: id.clone(), reason };
    let version = changes.expected_version + 1;
    let Some(record) = &changes.pipe else {
        if changes.expected_version == 0 {
            return Err(malformed("the pipe is new and its record is missing"));
        }
        let sql = "UPDATE pipes SET version = ?2 WHERE id = ?1";
        return execute(transaction, "a pipe", sql, (id.as_str(), version));
    };
    if &record.id != id {
        return Err(malformed("the record is another pipe's"));
    }
    check_name(transaction, record)?;
    // Not INSERT OR REPLACE: that deletes the row first, and with it all that belongs to the pipe.
    let sql = "INSERT INTO pipes (id, name, version, record) VALUES (?1, ?2, ?3, ?4) \
               ON CONFLICT (id) DO UPDATE SET name = excluded.name, version = excluded.version, record = excluded.record";
    let row = (id.as_str(), record.spec.name.as_str(), version, encode("a pipe", record)?);
    execute(transaction, "a pipe", sql, row)
}

fn check_name(transaction: &Transaction<'_>, record: &PipeRecord) -> Result<(), CatalogError> {
    let name = record.spec.name.as_str();
    let holder: Option<String> = transaction
        .prepare_cached("SELECT id FROM pipes WHERE name = ?1 AND id <> ?2")
        .and_then(|mut statement| {
            statement.query_row([name, record.id.as_str()], |row| row.get(0)).optional()
        })
        .map_err(CatalogError::read("names"))?;
    holder.map_or(Ok(()), |holder| Err(CatalogError::NameTaken { name: name.to_owned(), holder }))
}

fn execute(
    transaction: &Transaction<'_>,
    what: &'static str,
    sql: &str,
    parameters: impl Params,
) -> Result<(), CatalogError> {
    transaction
        .prepare_cached(sql)
        .and_then(|mut statement| statement.execute(parameters))
        .map(drop)
        .map_err(CatalogError::write(what))
}
