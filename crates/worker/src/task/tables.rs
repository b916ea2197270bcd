//! What a table becomes in the destination: drawn the same way by every task from what was recorded.

use millrace_apply::StreamTable;
use millrace_clickhouse::{Destination, TargetTable};
use millrace_mapping::{ColumnPlan, MappingOptions, override_columns, plan_columns};
use millrace_model::spec::TableSpec;
use millrace_model::work::DestinationFacts;
use millrace_model::{PipeSpec, Problem, TableDefinition};

/// A table's way from source to destination.
pub(crate) struct PlannedTable {
    pub(crate) definition: TableDefinition,
    pub(crate) columns: Vec<ColumnPlan>,
    pub(crate) target: TargetTable,
    pub(crate) spec: TableSpec,
    /// Columns that appeared while the pipe ran and that its policy leaves out.
    pub(crate) ignored: Vec<String>,
    /// The recorded form, while the stream is read again and sends changes from before it.
    pub(crate) ahead: Option<Box<TableDefinition>>,
}

/// Plans one table; fails only where the specification does not name it, which the coordinator never sends.
pub(crate) fn plan(
    spec: &PipeSpec,
    definition: &TableDefinition,
    destination: &Destination,
    facts: DestinationFacts,
) -> Result<PlannedTable, Vec<Problem>> {
    let Some(table) = spec.tables.iter().find(|table| table.source == definition.name) else {
        let message = format!("the assignment describes {} without specifying it", definition.name);
        return Err(vec![Problem::operator("PROTOCOL_FAULT", message, "report it with the worker's log")]);
    };
    let options =
        MappingOptions { allow_nullable_columns: spec.settings.allow_nullable_columns, time64: facts.time64 };
    let mut columns = plan_columns(definition, &options);
    let refused = override_columns(&mut columns, &definition.key, table, &spec.settings);
    if !refused.is_empty() {
        let problem = |(column, reason): (String, String)| {
            let message = format!("column {column:?}: {reason}");
            let remedy = "correct columnTypes or outOfRange; docs/types.md lists every type";
            Problem::operator("COLUMN_TYPE_INVALID", message, remedy).of_table(&definition.name)
        };
        return Err(refused.into_iter().map(problem).collect());
    }
    let target = TargetTable {
        source: definition.name.clone(),
        table: destination.table(&table.target),
        columns: columns.clone(),
        metadata: spec.settings.metadata_columns.clone(),
        sorting_key: if table.sorting_keys.is_empty() {
            definition.key.clone()
        } else {
            table.sorting_keys.clone()
        },
        engine: table.engine,
        partition_by: table.partition_by.clone(),
        delete_on_merge: spec.settings.delete_on_merge,
    };
    Ok(PlannedTable {
        definition: definition.clone(),
        columns,
        target,
        spec: table.clone(),
        ignored: Vec::new(),
        ahead: None,
    })
}

impl PlannedTable {
    /// The table as the stream needs it.
    pub(crate) fn stream_table(&self) -> StreamTable {
        StreamTable {
            definition: self.definition.clone(),
            columns: self.columns.clone(),
            excluded: [self.spec.excluded_columns.as_slice(), &self.ignored].concat(),
            sorting_key: self.spec.sorting_keys.clone(),
            distrusted_until: self.definition.distrusted_until,
            held: Vec::new(),
            active: true,
        }
    }
}

/// Opens the destination; cheap, since nothing is sent.
pub(crate) fn destination(spec: &PipeSpec) -> Result<Destination, Vec<Problem>> {
    Destination::new(&spec.destination).map_err(|error| vec![millrace_clickhouse::classify(&error)])
}
