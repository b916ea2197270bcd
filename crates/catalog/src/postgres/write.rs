//! From changes to rows: a batch of any size is a handful of statements.

use std::collections::{BTreeMap, BTreeSet};

use millrace_lifecycle::PipeChanges;
use millrace_model::{Epoch, PipeId, Term};

use super::read::{absent, get, unsigned};
use super::session::{Session, writing};
use crate::CatalogError;
use crate::stored::encode;

/// What PostgreSQL has no unsigned type for. Positions, epochs and terms never get there.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) async fn commit(
    session: &mut Session,
    term: Term,
    batch: &[(PipeId, PipeChanges)],
    last_epoch: Epoch,
) -> Result<(), CatalogError> {
    let what = "changes";
    session.run(what, "BEGIN").await?;
    // Held until the end: whoever takes over waits for it, and finds all of this.
    let sql = "SELECT term FROM leadership FOR SHARE";
    let rows = session.rows("the last term", sql, &[]).await?;
    let present = Term(unsigned(rows.first().ok_or_else(|| absent("the last term"))?, 0, "the last term")?);
    if term != present {
        return Err(CatalogError::Deposed { term, present });
    }
    check_versions(session, batch).await?;
    remove(session, batch).await?;
    let kept: Vec<(&str, &PipeChanges)> = batch
        .iter()
        .filter(|(_, changes)| !changes.removed)
        .map(|(id, changes)| (id.as_str(), changes))
        .collect();
    store_pipes(session, batch).await?;
    store_tables(session, &kept).await?;
    store_partitions(session, &kept).await?;
    store_assignments(session, &kept).await?;
    store_events(session, &kept).await?;
    let sql = "UPDATE meta SET last_epoch = $1 WHERE last_epoch < $1";
    session.rows("the last epoch", sql, &[&signed(last_epoch.0)]).await.map_err(writing)?;
    session.run(what, "COMMIT").await
}

async fn check_versions(session: &mut Session, batch: &[(PipeId, PipeChanges)]) -> Result<(), CatalogError> {
    let ids: Vec<&str> = batch.iter().map(|(id, _)| id.as_str()).collect();
    let sql = "SELECT id, version FROM pipes WHERE id = ANY($1) FOR UPDATE";
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for row in session.rows("versions", sql, &[&ids]).await? {
        found.insert(get(&row, 0)?, unsigned(&row, 1, "versions")?);
    }
    for (id, changes) in batch {
        let found = found.get(id.as_str()).copied().unwrap_or(0);
        if found != changes.expected_version {
            let expected = changes.expected_version;
            return Err(CatalogError::Conflict { pipe: id.clone(), expected, found });
        }
    }
    Ok(())
}

/// First those that go, so that their names are free.
async fn remove(session: &mut Session, batch: &[(PipeId, PipeChanges)]) -> Result<(), CatalogError> {
    let removed: Vec<&str> =
        batch.iter().filter(|(_, changes)| changes.removed).map(|(id, _)| id.as_str()).collect();
    if removed.is_empty() {
        return Ok(());
    }
    let sql = "DELETE FROM pipes WHERE id = ANY($1)";
    session.rows("removals", sql, &[&removed]).await.map_err(writing).map(drop)
}

async fn store_pipes(session: &mut Session, batch: &[(PipeId, PipeChanges)]) -> Result<(), CatalogError> {
    let (mut ids, mut names, mut versions, mut records) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut raised, mut raised_to) = (Vec::new(), Vec::new());
    for (id, changes) in batch.iter().filter(|(_, changes)| !changes.removed) {
        let malformed = |reason| CatalogError::Malformed { pipe: id.clone(), reason };
        let version = signed(changes.expected_version + 1);
        match &changes.pipe {
            None if changes.expected_version == 0 => {
                return Err(malformed("the pipe is new and its record is missing"));
            }
            None => {
                raised.push(id.as_str());
                raised_to.push(version);
            }
            Some(record) if &record.id != id => return Err(malformed("the record is another pipe's")),
            Some(record) => {
                ids.push(id.as_str());
                names.push(record.spec.name.as_str());
                versions.push(version);
                records.push(encode("a pipe", record)?);
            }
        }
    }
    if !raised.is_empty() {
        let sql = "UPDATE pipes SET version = given.version FROM unnest($1::text[], $2::bigint[]) AS given (id, version) \
                   WHERE pipes.id = given.id";
        session.rows("pipes", sql, &[&raised, &raised_to]).await.map_err(writing)?;
    }
    if ids.is_empty() {
        return Ok(());
    }
    // Within the batch, and among those that are not in it.
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for (id, name) in ids.iter().zip(&names) {
        if let Some(holder) = seen.insert(name, id) {
            return Err(CatalogError::NameTaken { name: (*name).to_owned(), holder: holder.to_owned() });
        }
    }
    let sql = "SELECT pipes.name, pipes.id FROM pipes JOIN unnest($1::text[], $2::text[]) AS given (id, name) \
               ON pipes.name = given.name AND pipes.id <> given.id LIMIT 1";
    if let Some(row) = session.rows("names", sql, &[&ids, &names]).await?.first() {
        return Err(CatalogError::NameTaken { name: get(row, 0)?, holder: get(row, 1)? });
    }
    let sql = "INSERT INTO pipes (id, name, version, record) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) \
               ON CONFLICT (id) DO UPDATE SET name = excluded.name, version = excluded.version, record = excluded.record";
    session.rows("pipes", sql, &[&ids, &names, &versions, &records]).await.map_err(writing).map(drop)
}

async fn store_tables(session: &mut Session, batch: &[(&str, &PipeChanges)]) -> Result<(), CatalogError> {
    let (mut pipes, mut gone) = (Vec::new(), Vec::new());
    for (pipe, changes) in batch {
        for table in &changes.removed_tables {
            pipes.push(*pipe);
            gone.push(i64::from(table.0));
        }
    }
    if !pipes.is_empty() {
        let sql = "DELETE FROM tables USING unnest($1::text[], $2::bigint[]) AS given (pipe_id, position) \
                   WHERE tables.pipe_id = given.pipe_id AND tables.position = given.position";
        session.rows("removed tables", sql, &[&pipes, &gone]).await.map_err(writing)?;
    }
    let mut rows: BTreeMap<(&str, i64), String> = BTreeMap::new();
    for (pipe, changes) in batch {
        for table in &changes.tables {
            rows.insert((pipe, i64::from(table.id.0)), encode("a table", table)?);
        }
    }
    let sql = "INSERT INTO tables (pipe_id, position, record) SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[]) \
               ON CONFLICT (pipe_id, position) DO UPDATE SET record = excluded.record";
    store_records(session, "tables", sql, rows).await
}

async fn store_assignments(
    session: &mut Session,
    batch: &[(&str, &PipeChanges)],
) -> Result<(), CatalogError> {
    let (mut pipes, mut gone) = (Vec::new(), Vec::new());
    let mut rows: BTreeMap<(&str, i64), String> = BTreeMap::new();
    for (pipe, changes) in batch {
        for epoch in &changes.withdrawn {
            pipes.push(*pipe);
            gone.push(signed(epoch.0));
        }
        for assignment in &changes.assignments {
            rows.insert((pipe, signed(assignment.epoch.0)), encode("an assignment", assignment)?);
        }
    }
    if !pipes.is_empty() {
        let sql = "DELETE FROM assignments USING unnest($1::text[], $2::bigint[]) AS given (pipe_id, epoch) \
                   WHERE assignments.pipe_id = given.pipe_id AND assignments.epoch = given.epoch";
        session.rows("assignments", sql, &[&pipes, &gone]).await.map_err(writing)?;
    }
    let sql = "INSERT INTO assignments (pipe_id, epoch, record) SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[]) \
               ON CONFLICT (pipe_id, epoch) DO UPDATE SET record = excluded.record";
    store_records(session, "assignments", sql, rows).await
}

async fn store_events(session: &mut Session, batch: &[(&str, &PipeChanges)]) -> Result<(), CatalogError> {
    let mut rows: BTreeMap<(&str, i64), String> = BTreeMap::new();
    for (pipe, changes) in batch {
        for event in &changes.events {
            rows.insert((pipe, signed(event.id)), encode("an event", event)?);
        }
    }
    let sql =
        "INSERT INTO events (pipe_id, id, record) SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])";
    store_records(session, "events", sql, rows).await
}

async fn store_records(
    session: &mut Session,
    what: &'static str,
    sql: &str,
    rows: BTreeMap<(&str, i64), String>,
) -> Result<(), CatalogError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, records): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (pipes, numbers): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
    session.rows(what, sql, &[&pipes, &numbers, &records]).await.map_err(writing).map(drop)
}

async fn store_partitions(session: &mut Session, batch: &[(&str, &PipeChanges)]) -> Result<(), CatalogError> {
    let (mut pipes, mut tables, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    let (mut firsts, mut ends, mut rows, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (pipe, changes) in batch {
        // Of what is named twice the last counts.
        let mut seen = BTreeSet::new();
        for (table, partition) in changes.partitions.iter().rev() {
            if !seen.insert((table, partition.number)) {
                continue;
            }
            pipes.push(*pipe);
            tables.push(i64::from(table.0));
            numbers.push(i64::from(partition.number));
            firsts.push(i64::from(partition.range.first));
            ends.push(partition.range.end.map(i64::from));
            rows.push(partition.done.map(|copied| signed(copied.rows)));
            bytes.push(partition.done.map(|copied| signed(copied.bytes)));
        }
    }
    if pipes.is_empty() {
        return Ok(());
    }
    let sql = "INSERT INTO partitions (pipe_id, table_position, number, first_page, end_page, rows, bytes) \
               SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[]) \
               ON CONFLICT (pipe_id, table_position, number) DO UPDATE SET first_page = excluded.first_page, \
               end_page = excluded.end_page, rows = excluded.rows, bytes = excluded.bytes";
    let given: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
        [&pipes, &tables, &numbers, &firsts, &ends, &rows, &bytes];
    session.rows("partitions", sql, &given).await.map_err(writing).map(drop)
}
