//! From rows to pipes.

use std::collections::BTreeMap;

use millrace_lifecycle::record::Copied;
use millrace_lifecycle::{EventRecord, PartitionRecord, PipeAggregate};
use millrace_model::{Epoch, PageRange, PipeId, Term};
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use super::session::Session;
use super::write::signed;
use crate::stored::{PipeRows, decode};
use crate::{CatalogError, Stored};

/// All reads of a load see one state.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

pub(super) async fn everything(session: &mut Session) -> Result<Stored, CatalogError> {
    session.run("pipes", BEGIN).await?;
    let pipes = pipes(session, None).await?;
    let sql = "SELECT last_epoch, term FROM meta, leadership";
    let rows = session.rows("the last epoch", sql, &[]).await?;
    let row = rows.first().ok_or_else(|| absent("the last epoch"))?;
    let last_epoch = Epoch(unsigned(row, 0, "the last epoch")?);
    let last_term = Term(unsigned(row, 1, "the last term")?);
    session.run("pipes", "COMMIT").await?;
    Ok(Stored { pipes, last_epoch, last_term })
}

pub(super) async fn one_pipe(
    session: &mut Session,
    id: &PipeId,
) -> Result<Option<PipeAggregate>, CatalogError> {
    session.run("a pipe", BEGIN).await?;
    let mut found = pipes(session, Some(id.as_str())).await?;
    session.run("a pipe", "COMMIT").await?;
    Ok(found.pop())
}

pub(super) async fn events(
    session: &mut Session,
    pipe: &PipeId,
    after: u64,
    limit: usize,
) -> Result<Vec<EventRecord>, CatalogError> {
    let sql = "SELECT id, record FROM events WHERE pipe_id = $1 AND id > $2 ORDER BY id LIMIT $3";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = session.rows("events", sql, &[&pipe.as_str(), &signed(after), &limit]).await?;
    let event = |row: &Row| {
        let id: i64 = get(row, 0)?;
        decode(pipe.as_str(), || format!("event {id}"), &get::<String>(row, 1)?)
    };
    rows.iter().map(event).collect()
}

/// All pipes, or the one with the id, in four statements whatever their number.
async fn pipes(session: &mut Session, id: Option<&str>) -> Result<Vec<PipeAggregate>, CatalogError> {
    let given = [&id as &(dyn tokio_postgres::types::ToSql + Sync)];
    let sql = "SELECT id, version, record FROM pipes WHERE $1::text IS NULL OR id = $1 ORDER BY id";
    let mut pipes: BTreeMap<String, PipeRows> = BTreeMap::new();
    for row in session.rows("pipes", sql, &given).await? {
        let rows = PipeRows {
            id: get(&row, 0)?,
            version: unsigned(&row, 1, "pipes")?,
            record: get(&row, 2)?,
            ..PipeRows::default()
        };
        pipes.insert(rows.id.clone(), rows);
    }
    let sql = "SELECT pipe_id, position, record FROM tables WHERE $1::text IS NULL OR pipe_id = $1 ORDER BY pipe_id, position";
    for row in session.rows("tables", sql, &given).await? {
        if let Some(pipe) = pipes.get_mut(get::<&str>(&row, 0)?) {
            pipe.tables.push((narrow(&row, 1, "tables")?, get(&row, 2)?));
        }
    }
    let sql = "SELECT pipe_id, table_position, number, first_page, end_page, rows, bytes FROM partitions \
               WHERE $1::text IS NULL OR pipe_id = $1 ORDER BY pipe_id, table_position, number";
    for row in session.rows("partitions", sql, &given).await? {
        if let Some(pipe) = pipes.get_mut(get::<&str>(&row, 0)?) {
            let copied = maybe(&row, 5)?.zip(maybe(&row, 6)?);
            let partition = PartitionRecord {
                number: narrow(&row, 2, "partitions")?,
                range: PageRange {
                    first: narrow(&row, 3, "partitions")?,
                    end: maybe(&row, 4)?
                        .map(|end| u32::try_from(end).map_err(|_| odd("partitions")))
                        .transpose()?,
                },
                done: copied.map(|(rows, bytes)| Copied { rows, bytes }),
            };
            pipe.partitions.push((narrow(&row, 1, "partitions")?, partition));
        }
    }
    let sql = "SELECT pipe_id, epoch, record FROM assignments WHERE $1::text IS NULL OR pipe_id = $1 ORDER BY pipe_id, epoch";
    for row in session.rows("assignments", sql, &given).await? {
        if let Some(pipe) = pipes.get_mut(get::<&str>(&row, 0)?) {
            pipe.assignments.push((unsigned(&row, 1, "assignments")?, get(&row, 2)?));
        }
    }
    pipes.into_values().map(PipeRows::restore).collect()
}

pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, at: usize) -> Result<T, CatalogError> {
    row.try_get(at).map_err(|error| CatalogError::Read { what: "a row", source: error.into() })
}

/// A number that is never negative.
pub(super) fn unsigned(row: &Row, at: usize, what: &'static str) -> Result<u64, CatalogError> {
    u64::try_from(get::<i64>(row, at)?).map_err(|_| odd(what))
}

fn narrow(row: &Row, at: usize, what: &'static str) -> Result<u32, CatalogError> {
    u32::try_from(get::<i64>(row, at)?).map_err(|_| odd(what))
}

fn maybe(row: &Row, at: usize) -> Result<Option<u64>, CatalogError> {
    get::<Option<i64>>(row, at)?.map(|number| u64::try_from(number).map_err(|_| odd("a row"))).transpose()
}

fn odd(what: &'static str) -> CatalogError {
    CatalogError::Read { what, source: "a number is out of range".into() }
}

pub(super) fn absent(what: &'static str) -> CatalogError {
    CatalogError::Read { what, source: "the row that must be there is not".into() }
}
