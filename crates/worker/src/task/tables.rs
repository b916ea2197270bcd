//! What a table becomes in the destination: drawn the same way by every task from what was recorded.

use millrace_apply::StreamTable;
use millrace_clickhouse::{Destination, TargetTable};
use millrace_mapping::{ColumnPlan, MappingOptions, override_columns, plan_columns};
use millrace_model::spec::TableSpec;
use millrace_model::work::{DestinationFacts, StreamedTable, TableWork};
use millrace_model::{Lsn, PipeSpec, Problem, TableDefinition, TableId};

/// A table's way from source to destination.
pub(crate) struct PlannedTable {
    pub(crate) definition: TableDefinition,
    pub(crate) columns: Vec<ColumnPlan>,
    pub(crate) target: TargetTable,
    pub(crate) spec: TableSpec,
    /// Columns that appeared while the pipe ran and that its policy leaves out.
    pub(crate) ignored: Vec<String>,
    /// Names the table in reports of a stream.
    pub(crate) id: TableId,
    /// Whether rows of it are being copied while changes of it are carried.
    pub(crate) copying: bool,
    /// Changes of transactions that committed before this are in the copy.
    pub(crate) begins: Lsn,
    /// The recorded form, while the stream is read again and sends changes from before it.
    pub(crate) ahead: Option<Box<TableDefinition>>,
}

/// Plans one table; fails where its specification does not fit what the source has.
pub(crate) fn plan(
    spec: &PipeSpec,
    table: &TableSpec,
    definition: &TableDefinition,
    destination: &Destination,
    facts: DestinationFacts,
) -> Result<PlannedTable, Vec<Problem>> {
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
        sharding: table.sharding.clone(),
        delete_on_merge: spec.settings.delete_on_merge,
    };
    Ok(PlannedTable {
        definition: definition.clone(),
        columns,
        target,
        spec: table.clone(),
        ignored: Vec::new(),
        id: TableId::default(),
        copying: false,
        begins: Lsn::ZERO,
        ahead: None,
    })
}

/// Plans one table of a stream.
pub(crate) fn plan_streamed(
    spec: &PipeSpec,
    streamed: &StreamedTable,
    destination: &Destination,
    facts: DestinationFacts,
) -> Result<PlannedTable, Vec<Problem>> {
    let TableWork { id, spec: table, definition } = &streamed.table;
    let planned = plan(spec, table, definition, destination, facts)?;
    Ok(PlannedTable { id: *id, copying: streamed.copying, begins: streamed.begins, ..planned })
}

impl PlannedTable {
    /// Up to where the destination's rows may be younger than the stream: for ever, while rows are still being copied.
    pub(crate) fn distrusted_until(&self) -> Lsn {
        if self.copying { Lsn(u64::MAX) } else { self.definition.distrusted_until }
    }

    /// The table as the stream needs it.
    pub(crate) fn stream_table(&self) -> StreamTable {
        StreamTable {
            definition: self.definition.clone(),
            columns: self.columns.clone(),
            excluded: [self.spec.excluded_columns.as_slice(), &self.ignored].concat(),
            sorting_key: self.spec.sorting_keys.clone(),
            distrusted_until: self.distrusted_until(),
            held: Vec::new(),
            active: true,
            begins: self.begins,
        }
    }
}

/// Opens the destination; cheap, since nothing is sent.
pub(crate) fn destination(spec: &PipeSpec) -> Result<Destination, Vec<Problem>> {
    Destination::new(&spec.destination).map_err(|error| vec![millrace_clickhouse::classify(&error)])
}
