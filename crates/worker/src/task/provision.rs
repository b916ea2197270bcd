//! Checking both sides, and making what the pipe needs there.

use millrace_mapping::{ChType, ColumnPlan};
use millrace_model::spec::ReplicationMode;
use millrace_model::work::{DestinationFacts, Outcome};
use millrace_model::{Lsn, PipeId, PipeSpec, Problem, Recovery, Severity, TableDefinition};
use millrace_postgres::{Inspection, classify, inspect};

use super::{Ending, source, tables};

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
    if spec.mode == ReplicationMode::Cdc {
        found.tables.iter_mut().for_each(|table| problems.extend(leave_out_generated(table)));
    }
    let mut targets = Vec::new();
    for definition in &found.tables {
        match tables::plan(spec, definition, &destination, facts) {
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

/// Makes the destination tables and the publication; both may stand already from a try before.
pub(crate) async fn set_up(
    spec: &PipeSpec,
    pipe: &PipeId,
    definitions: &[TableDefinition],
    facts: DestinationFacts,
    clear: bool,
) -> Ending {
    let destination = tables::destination(spec)?;
    let failed = |error: &millrace_clickhouse::Error| vec![millrace_clickhouse::classify(error)];
    for definition in definitions {
        let target = tables::plan(spec, definition, &destination, facts)?.target;
        destination.ensure_table(&target, pipe).await.map_err(|error| failed(&error))?;
        if clear {
            // Copied rows have version 0; a snapshot-only pipe has no others.
            let cleared = destination.delete_older_versions(&target.table, &target.metadata.version, Lsn(1));
            cleared.await.map_err(|error| failed(&error))?;
        }
    }
    if spec.mode == ReplicationMode::Cdc && spec.settings.publication_name.is_none() {
        let session = source::connect(spec).await?;
        let names: Vec<_> = definitions.iter().map(|definition| definition.name.clone()).collect();
        let made = session.create_publication(&pipe.publication_name(), &names).await;
        made.map_err(|error| vec![classify(&error)])?;
    }
    Ok(Outcome::SetUp)
}
