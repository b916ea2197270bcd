//! The schema, as the steps that lead to it.

use super::session::Session;
use crate::CatalogError;

/// Forward only: the step at index `n` leads from schema version `n` to `n + 1`. A released step is never changed.
const MIGRATIONS: &[&str] = &[include_str!("../../migrations/postgres/0001_catalog.sql")];

/// `MLRC`; coordinators that start together migrate one after the other (manual: "Advisory Locks").
const LOCK: i64 = 0x4d4c_5243;

/// Takes the missing steps, all or none.
pub(super) async fn migrate(session: &mut Session, place: &str) -> Result<(), CatalogError> {
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let step = |to: i64| move |source: CatalogError| CatalogError::Migrate { to, source: source.into() };
    session.run("the schema", "BEGIN").await.map_err(step(known))?;
    session.rows("a lock", "SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(step(known))?;
    let sql = "SELECT count(*) FILTER (WHERE relname = 'schema_version'), count(*) FROM pg_class \
               WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'millrace') AND relkind = 'r'";
    let found = session.rows("the schema", sql, &[]).await?;
    let (ours, tables) = found.first().map_or((0, 0), |row| (row.get::<_, i64>(0), row.get::<_, i64>(1)));
    let at = match (ours, tables) {
        (0, 0) => {
            // Asked first, because it needs a right also where it does nothing.
            let sql = "SELECT 1 FROM pg_namespace WHERE nspname = 'millrace'";
            if session.rows("the schema", sql, &[]).await?.is_empty() {
                session.run("the schema", "CREATE SCHEMA millrace").await.map_err(step(1))?;
            }
            let table = "CREATE TABLE millrace.schema_version (version bigint NOT NULL)";
            session.run("the schema", table).await.map_err(step(1))?;
            session.run("the schema", "INSERT INTO schema_version VALUES (0)").await.map_err(step(1))?;
            0
        }
        (0, _) => return Err(CatalogError::Foreign { place: place.to_owned() }),
        _ => {
            let rows =
                session.rows("the schema's version", "SELECT version FROM schema_version", &[]).await?;
            rows.first().map_or(0, |row| row.get(0))
        }
    };
    if at > known {
        return Err(CatalogError::NewerSchema { place: place.to_owned(), found: at, known });
    }
    for (to, sql) in (1..).zip(MIGRATIONS).filter(|(to, _)| *to > at) {
        session.run("the schema", sql).await.map_err(step(to))?;
        let sql = "UPDATE schema_version SET version = $1";
        session.rows("the schema's version", sql, &[&to]).await.map_err(step(to))?;
    }
    session.run("the schema", "COMMIT").await.map_err(step(known))
}
