//! The schema, as the steps that lead to it.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::opening;
use crate::CatalogError;

/// Forward only: the step at index `n` leads from schema version `n` to `n + 1` (`PRAGMA user_version`). A released step is never changed.
const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/sqlite/0001_pipes.sql"),
    include_str!("../../migrations/sqlite/0002_term.sql"),
];

/// `MLRC`, by which a catalog is told from other SQLite databases (`PRAGMA application_id`).
const APPLICATION_ID: i32 = 0x4d4c_5243;

fn newest() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Refuses a database that is not for this release, before anything is written to it.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), CatalogError> {
    let facts = || {
        let empty = "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)";
        let empty: bool = connection.query_row(empty, [], |row| row.get(0))?;
        let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        Ok((empty, application, version(connection)?))
    };
    let (empty, application, found) = facts().map_err(opening(path))?;
    if !empty && application != APPLICATION_ID {
        return Err(CatalogError::Foreign { place: path.display().to_string() });
    }
    if found > newest() {
        return Err(CatalogError::NewerSchema { place: path.display().to_string(), found, known: newest() });
    }
    Ok(())
}

/// Takes the missing steps, each in a transaction of its own. Takes the file's lock in any case.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), CatalogError> {
    let lock = connection.transaction_with_behavior(TransactionBehavior::Exclusive).map_err(opening(path))?;
    let at = version(&lock).map_err(opening(path))?;
    lock.commit().map_err(opening(path))?;
    for (to, step) in (1..).zip(MIGRATIONS).filter(|(to, _)| *to > at) {
        let mut take = || {
            let transaction = connection.transaction()?;
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", to)?;
            transaction.commit()
        };
        take().map_err(|source| CatalogError::Migrate { to, source: source.into() })?;
    }
    Ok(())
}
