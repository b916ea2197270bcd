//! From stored rows to pipes, whatever keeps the rows.

use std::collections::BTreeMap;

use millrace_lifecycle::{PartitionRecord, PipeAggregate, PipeRecord, TableRecord};
use millrace_model::TableId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::CatalogError;

/// The rows of one pipe.
#[derive(Default)]
pub(crate) struct PipeRows {
    pub(crate) id: String,
    pub(crate) version: u64,
    pub(crate) record: String,
    /// By id.
    pub(crate) tables: Vec<(u32, String)>,
    /// By the id of their table; within one in order.
    pub(crate) partitions: Vec<(u32, PartitionRecord)>,
    /// By epoch.
    pub(crate) assignments: Vec<(u64, String)>,
}

impl PipeRows {
    /// # Errors
    /// A record cannot be understood, or a partition is missing.
    pub(crate) fn restore(self) -> Result<PipeAggregate, CatalogError> {
        let pipe = &self.id;
        let record: PipeRecord = decode(pipe, || "record of the pipe".to_owned(), &self.record)?;
        let mut partitions: BTreeMap<TableId, Vec<PartitionRecord>> = BTreeMap::new();
        for (table, partition) in self.partitions {
            let of_table = partitions.entry(TableId(table)).or_default();
            if of_table.len() != partition.number as usize {
                return Err(CatalogError::Missing {
                    pipe: pipe.clone(),
                    record: format!("partition {} of table {table}", of_table.len()),
                });
            }
            of_table.push(partition);
        }
        let mut tables = Vec::new();
        for (id, json) in &self.tables {
            let table: TableRecord = decode(pipe, || format!("table {id}"), json)?;
            let of_table = partitions.remove(&table.id).unwrap_or_default();
            tables.push((table, of_table));
        }
        let assignments = self
            .assignments
            .iter()
            .map(|(epoch, json)| decode(pipe, || format!("assignment {epoch}"), json))
            .collect::<Result<_, _>>()?;
        Ok(PipeAggregate::restore(record, tables, assignments, self.version))
    }
}

/// Reads a record; `record` names it in the error.
pub(crate) fn decode<T: DeserializeOwned>(
    pipe: &str,
    record: impl FnOnce() -> String,
    json: &str,
) -> Result<T, CatalogError> {
    serde_json::from_str(json).map_err(|source| CatalogError::Unreadable {
        pipe: pipe.to_owned(),
        record: record(),
        source: source.into(),
    })
}

/// Writes a record; `what` names it in the error.
pub(crate) fn encode(what: &'static str, record: &impl Serialize) -> Result<String, CatalogError> {
    serde_json::to_string(record).map_err(|source| CatalogError::Write { what, source: source.into() })
}
