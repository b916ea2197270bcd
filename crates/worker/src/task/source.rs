//! Small work at the source: slots and publications.

use std::time::Duration;

use millrace_apply::{OwnedCell, StreamTable};
use millrace_mapping::evolution::{Backfill, CurrentColumn};
use millrace_model::work::Outcome;
use millrace_model::{Epoch, Lsn, PipeId, PipeSpec, Problem, Recovery, TableDefinition, TableName};
use millrace_postgres::discovery::find_by_oid;
use millrace_postgres::quoting::{quote_identifier, quote_literal};
use millrace_postgres::{KeyValue, Session, classify};

use super::Ending;
use super::partitions::Partitions;

/// How connections of one assignment are named at the source (`pg_stat_activity.application_name`): a successor may end them, nobody else's.
pub(crate) fn application_name(pipe: &PipeId, epoch: Epoch) -> String {
    format!("millrace {pipe} {epoch}")
}

/// Opens a session for statements.
pub(crate) async fn connect(spec: &PipeSpec) -> Result<Session, Vec<Problem>> {
    Session::connect(&spec.source, "millrace").await.map_err(|error| vec![classify(&error)])
}

/// Sees to it that the slot can be read by us, and gives the position from which on the source keeps log for it: it exists in the cluster that it was made in, is not lost, and no earlier worker of ours holds it.
pub(crate) async fn claim_slot(
    spec: &PipeSpec,
    slot_name: &str,
    system_identifier: u64,
) -> Result<Lsn, Vec<Problem>> {
    let failed = |error: millrace_postgres::Error| vec![classify(&error)];
    let session = connect(spec).await?;
    let found = session.system_identifier().await.map_err(failed)?;
    if found != system_identifier {
        return Err(vec![Problem::permanent(
            "SOURCE_REPLACED",
            format!(
                "another PostgreSQL cluster answers at {}:{}: its system identifier is {found}, the pipe was made from {system_identifier}",
                spec.source.host, spec.source.port
            ),
            "point the pipe at the cluster it was made from, or run `millrace pipe resync` to copy from this one",
        )]);
    }
    if session.is_in_recovery().await.map_err(failed)? {
        return Err(vec![Problem::transient(
            "SOURCE_IS_STANDBY",
            format!(
                "a standby answers at {}:{}, whose slots cannot be read",
                spec.source.host, spec.source.port
            ),
            "promote it, or point the address at the primary; the stream goes on by itself",
        )]);
    }
    session.require_usable_slot(slot_name).await.map_err(failed)?;
    session.release_slot(slot_name).await.map_err(failed)?;
    let state = session.slot_state(slot_name).await.map_err(failed)?;
    Ok(state.map_or(Lsn::ZERO, |state| state.restart))
}

/// A table as the source has it now.
pub(crate) struct CurrentTable {
    pub(crate) columns: Vec<CurrentColumn>,
    pub(crate) file_node: u32,
}

/// A table as the source has it now; `None` where it is gone.
pub(crate) async fn current_table(
    session: &Session,
    recorded: &TableDefinition,
    partitions: Option<&Partitions>,
) -> Result<Option<CurrentTable>, Vec<Problem>> {
    let failed = |error: millrace_postgres::Error| vec![classify(&error)];
    let Some(now) = find_by_oid(session, recorded.oid).await.map_err(failed)? else { return Ok(None) };
    let mut backfills = session.backfills(recorded.oid).await.map_err(failed)?;
    let rewritten = match partitions {
        Some(partitions) => partitions.is_rewritten(session, recorded.oid).await.map_err(failed)?,
        None => now.file_node != recorded.file_node || now.file_node == 0,
    };
    let mut columns = Vec::new();
    for column in now.columns {
        let is_new = recorded.columns.iter().all(|known| known.attribute != column.attribute);
        let backfill = match backfills.kept.remove(&column.attribute) {
            Some(Some(value)) => Backfill::Value(value),
            Some(None) => Backfill::Null,
            None if backfills.differing.contains(&column.attribute) => Backfill::Unknown,
            None if rewritten && is_new => {
                // Values that were computed for each row have rewritten the table. Their default may be gone since; what is left then are the values.
                let computed = backfills.defaults.contains(&column.attribute)
                    || !column.nullable
                    || session.shows_values(&now.name, &column.name).await.map_err(failed)?;
                if computed { Backfill::Unknown } else { Backfill::Null }
            }
            // A default that was set after the column was added does not concern older rows.
            None => Backfill::Null,
        };
        columns.push(CurrentColumn { column, backfill });
    }
    Ok(Some(CurrentTable { columns, file_node: now.file_node }))
}

/// Looks for rows of one table as the source has them now.
pub(crate) struct RowFinder<'a> {
    session: &'a Session,
    table: TableName,
    /// Columns of the rows' place.
    place: Vec<String>,
    /// Columns whose values are looked for.
    long: Vec<String>,
}

impl<'a> RowFinder<'a> {
    /// The stream may be behind: the source's names are looked up by what outlives a rename. `None` where the table or one of the columns is gone.
    pub(crate) async fn of_table(
        session: &'a Session,
        table: &StreamTable,
    ) -> Result<Option<Self>, Vec<Problem>> {
        let definition = &table.definition;
        let names = session.present_names(definition.oid).await.map_err(|error| vec![classify(&error)])?;
        let Some((name, columns)) = names else { return Ok(None) };
        let present = |name: &str| {
            let recorded = definition.columns.iter().find(|column| column.name == name)?;
            columns.get(&recorded.attribute).cloned()
        };
        let place = table.place().into_iter().map(present).collect::<Option<_>>();
        let long = table.long_columns().map(|column| present(&column.name)).collect::<Option<_>>();
        Ok(place.zip(long).map(|(place, long)| Self { session, table: name, place, long }))
    }

    /// The long values of the row at a place; `None` where the source has no such row.
    pub(crate) async fn find(
        &self,
        place: &[OwnedCell],
    ) -> Result<Option<Vec<Option<Vec<u8>>>>, Vec<Problem>> {
        let mut key = Vec::new();
        for (name, cell) in self.place.iter().zip(place) {
            match cell {
                OwnedCell::Text(value) => key.push((name.as_str(), KeyValue::Text(value))),
                OwnedCell::Binary(value) => key.push((name.as_str(), KeyValue::Binary(value))),
                // Nothing is equal to NULL.
                OwnedCell::Null => return Ok(None),
            }
        }
        let columns: Vec<&str> = self.long.iter().map(String::as_str).collect();
        let found = self.session.row_by_key(&self.table, &columns, &key).await;
        found.map_err(|error| match classify(&error) {
            // Its names have changed since they were looked up.
            problem if problem.code == "SOURCE_TABLE_MISSING" => {
                vec![Problem::transient("SOURCE_CONFLICT", problem.message, "it is tried again by itself")]
            }
            problem => vec![problem],
        })
    }
}

/// Makes the slot inactive.
pub(crate) async fn release(spec: &PipeSpec, slot_name: &str) -> Ending {
    let session = connect(spec).await?;
    session.release_slot(slot_name).await.map_err(|error| vec![classify(&error)])?;
    Ok(Outcome::Released)
}

/// Frees what the pipe holds at the source. What cannot be freed is told, never a reason to fail: somebody wants to be rid of the pipe.
pub(crate) async fn tear_down(
    spec: &PipeSpec,
    slot_name: Option<&str>,
    publication_name: Option<&str>,
) -> Vec<Problem> {
    let mut left_behind = Vec::new();
    let leftover = |what: String, why: &Problem, statement: String| {
        let message = format!("{what} could not be dropped: {}", why.message);
        Problem::warning("LEFT_BEHIND", message, format!("run at the source: {statement}"))
    };
    if slot_name.is_none() && publication_name.is_none() {
        return left_behind;
    }
    let session = reach(spec).await;
    if let Some(name) = slot_name {
        let dropped = match &session {
            Ok(session) => session.drop_slot(name).await.map_err(|error| classify(&error)),
            Err(problem) => Err(problem.clone()),
        };
        if let Err(why) = dropped {
            let statement = format!("SELECT pg_drop_replication_slot({})", quote_literal(name));
            left_behind.push(leftover(format!("slot {name}"), &why, statement));
        }
    }
    if let Some(name) = publication_name {
        let dropped = match &session {
            Ok(session) => session.drop_publication(name).await.map_err(|error| classify(&error)),
            Err(problem) => Err(problem.clone()),
        };
        if let Err(why) = dropped {
            let statement = format!("DROP PUBLICATION {}", quote_identifier(name));
            left_behind.push(leftover(format!("publication {name}"), &why, statement));
        }
    }
    left_behind
}

/// A source that is away for a moment is worth a few tries; one that stays away must not keep the pipe from going.
async fn reach(spec: &PipeSpec) -> Result<Session, Problem> {
    let mut tries = 0;
    loop {
        match Session::connect(&spec.source, "millrace").await {
            Ok(session) => return Ok(session),
            Err(error) if tries < 3 && classify(&error).recovery == Recovery::Retry => {
                tries += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(classify(&error)),
        }
    }
}
