//! Checking both sides, and making what the pipe needs there.

use millrace_mapping::{ChType, ColumnPlan};
use millrace_model::work::{DestinationFacts, Outcome, SlotRequest, TableWork};
use millrace_model::{Epoch, Lsn, PipeId, PipeSpec, Problem, Recovery, Severity, TableDefinition, TableName};
use millrace_postgres::{Inspection, SlotKind, SnapshotSession, classify, inspect};

use super::{Ending, source, tables};
use crate::fence::Fence;

/// Everything that both sides say about a pipe.
pub(crate) struct Findings {
    pub(crate) source: Inspection,
    pub(crate) destination: DestinationFacts,
    pub(crate) problems: Vec<Problem>,
}

/// Looks at both sides at once and collects every problem.
pub(crate) async fn look(spec: &PipeSpec, pipe: Option<&PipeId>) -> Result<Findings, Vec<Problem>> {
    let destination = tables::destination(spec)?;
    let (mut found, server) = tokio::join!(inspect(spec, pipe), destination.server());
    let mut problems = std::mem::take(&mut found.problems);
    let facts = DestinationFacts { time64: server.as_ref().is_ok_and(|server| server.time64) };
    if spec.mode.follows() {
        found.tables.iter_mut().for_each(|table| problems.extend(leave_out_generated(table)));
    }
    let mut targets = Vec::new();
    for definition in &found.tables {
        // What was found was looked for by the specification's names.
        let Some(table) = spec.tables.iter().find(|table| table.source == definition.name) else { continue };
        match tables::plan(spec, table, definition, &destination, facts) {
            Ok(planned) => {
                problems.extend(null_becomes_empty(definition, &planned.columns));
                targets.push(planned.target);
            }
            Err(wrong) => problems.extend(wrong),
        }
    }
    problems.extend(destination.inspect(&targets, pipe).await);
    Ok(Findings { source: found, destination: facts, problems })
}

/// Generated columns are not in the change stream before PostgreSQL 18, so a pipe with a stream does without them.
fn leave_out_generated(table: &mut TableDefinition) -> Option<Problem> {
    let generated: Vec<String> =
        table.columns.iter().filter(|column| column.generated).map(|column| column.name.clone()).collect();
    if generated.is_empty() {
        return None;
    }
    table.columns.retain(|column| !column.generated);
    let message =
        format!("generated columns are not in the change stream and are left out: {}", generated.join(", "));
    let remedy = "compute them in ClickHouse, for instance with ALTER TABLE ... ADD COLUMN ... ALIAS";
    Some(Problem::warning("GENERATED_COLUMN_LEFT_OUT", message, remedy).of_table(&table.name))
}

/// ClickHouse has no nullable arrays and maps, so NULL in place of one cannot be told from an empty one afterwards.
fn null_becomes_empty(table: &TableDefinition, columns: &[ColumnPlan]) -> Option<Problem> {
    let altered =
        |column: &&ColumnPlan| column.nullable && matches!(column.target, ChType::Array(_) | ChType::Map(..));
    let names: Vec<&str> = columns.iter().filter(altered).map(|column| column.name.as_str()).collect();
    if names.is_empty() {
        return None;
    }
    let message = format!("NULL becomes an empty array or map in: {}", names.join(", "));
    let remedy = "name the columns under columnTypes with String where NULL must be told from empty, or SET NOT NULL at the source";
    Some(Problem::warning("NULL_BECOMES_EMPTY", message, remedy).of_table(&table.name))
}

/// Checks everything and describes the tables.
pub(crate) async fn run(spec: &PipeSpec, pipe: &PipeId) -> Ending {
    let findings = look(spec, Some(pipe)).await?;
    let (errors, warnings): (Vec<Problem>, Vec<Problem>) =
        findings.problems.into_iter().partition(|problem| problem.severity == Severity::Error);
    if !errors.is_empty() {
        return Err(most_lasting_first(errors));
    }
    Ok(Outcome::Provisioned {
        system_identifier: findings.source.system_identifier,
        server_version: findings.source.server_version,
        tables: findings.source.tables,
        warnings,
        destination: findings.destination,
    })
}

/// What passes by itself must not hide what does not.
fn most_lasting_first(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by_key(|problem| problem.recovery == Recovery::Retry);
    problems
}

/// What is to stand before copies and streams.
pub(crate) struct SetUp {
    pub(crate) tables: Vec<TableWork>,
    pub(crate) destination: DestinationFacts,
    pub(crate) clear: bool,
    pub(crate) publication: Option<(String, Vec<TableName>)>,
    pub(crate) slot: Option<SlotRequest>,
}

/// Makes the destination tables, the publication, and the slot of a pipe that copies nothing; all may stand already from a try before.
pub(crate) async fn set_up(
    spec: &PipeSpec,
    pipe: &PipeId,
    epoch: Epoch,
    set_up: SetUp,
    fence: &Fence,
) -> Ending {
    let destination = tables::destination(spec)?;
    let mut made = Vec::new();
    let mut problems = Vec::new();
    for work in &set_up.tables {
        let target =
            tables::plan(spec, &work.spec, &work.definition, &destination, set_up.destination)?.target;
        match destination.ensure_table(&target, pipe).await {
            Ok(ensured) => made.push((work.id, ensured.uuid.as_str().to_owned())),
            Err(error) => {
                problems.push(millrace_clickhouse::classify(&error).of_table(&work.definition.name));
                continue;
            }
        }
        if set_up.clear {
            // One of a dead worker may still be at work, and its rows would come after they were cleared.
            let waited = destination.wait_for_inserts(&target.table).await;
            waited.map_err(|error| vec![millrace_clickhouse::classify(&error)])?;
            // Another may have filled it since.
            fence.require()?;
            // Copied rows have version 0; a snapshot-only pipe has no others.
            let cleared = destination.delete_older_versions(&target.table, &target.metadata.version, Lsn(1));
            cleared.await.map_err(|error| vec![millrace_clickhouse::classify(&error)])?;
        }
    }
    if !problems.is_empty() {
        return Err(most_lasting_first(problems));
    }
    let failed = |error: millrace_postgres::Error| vec![classify(&error)];
    let mut begins = Lsn::ZERO;
    if let Some((name, tables)) = &set_up.publication {
        let session = source::connect(spec).await?;
        session.publish(name, tables).await.map_err(failed)?;
        // After that, so that everything behind it is published.
        begins = session.log_end().await.map_err(failed)?;
    }
    if let Some(request) = &set_up.slot {
        begins = stand_slot(spec, pipe, epoch, request, fence).await?;
    }
    Ok(Outcome::SetUp { tables: made, begins })
}

/// Sees to it that the slot of a pipe that copies nothing stands; says where.
async fn stand_slot(
    spec: &PipeSpec,
    pipe: &PipeId,
    epoch: Epoch,
    request: &SlotRequest,
    fence: &Fence,
) -> Result<Lsn, Vec<Problem>> {
    let failed = |error: millrace_postgres::Error| vec![classify(&error)];
    let session = source::connect(spec).await?;
    match request {
        SlotRequest::Create { name, failover } => {
            // One that is there is left from a try that nobody recorded: had it been, it would not be asked for again.
            fence.require()?;
            session.drop_slot(name).await.map_err(failed)?;
            let kind = if *failover { SlotKind::Synchronised } else { SlotKind::Lasting };
            let application = source::application_name(pipe, epoch);
            let made = SnapshotSession::with_slot(&spec.source, &application, name, kind).await;
            made.map(|(_, begins)| begins).map_err(failed)
        }
        SlotRequest::Existing { name } => {
            session.require_usable_slot(name).await.map_err(failed)?;
            let state = session.slot_state(name).await.map_err(failed)?;
            Ok(state.map_or(Lsn::ZERO, |state| state.confirmed_flush))
        }
        SlotRequest::Temporary | SlotRequest::None => Ok(Lsn::ZERO),
    }
}
