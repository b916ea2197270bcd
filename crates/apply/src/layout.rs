//! How the cells of a relation's tuples meet the columns of its destination table.

use millrace_model::{Problem, ReplicaIdentity, SourceColumn};
use millrace_pgoutput::{Relation, RelationColumn};

use crate::StreamTable;
use crate::problem;

/// One entry per cell of a tuple.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) cells: Vec<CellPlace>,
}

/// What is to be done with one cell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CellPlace {
    /// The column it goes to; `None` where it is left out.
    pub(crate) column: Option<usize>,
    /// Part of the row's place: a change of it leaves a tombstone.
    pub(crate) places: bool,
    /// Carried by key tuples.
    pub(crate) in_key_tuple: bool,
}

impl Layout {
    /// Compares what the stream says of a table with what was recorded of it. Columns that are `left_out` count as known.
    ///
    /// # Errors
    /// Says everything that changed in a way that would make later rows wrong.
    pub(crate) fn match_up(
        relation: &Relation,
        table: &StreamTable,
        left_out: &[String],
    ) -> Result<Self, Mismatch> {
        let mismatch = |problem| Mismatch::Final(Box::new(problem));
        let changes = identity_changes(relation, table);
        if !changes.is_empty() {
            return Err(mismatch(problem::source_schema_changed(&table.definition.name, &changes)));
        }
        let changes = column_changes(relation, table, left_out);
        if !changes.is_empty() {
            return Err(Mismatch::Columns(changes));
        }
        let unsent = generated_columns_not_sent(relation, table);
        if !unsent.is_empty() {
            return Err(mismatch(problem::generated_columns_not_streamed(&table.definition.name, &unsent)));
        }
        let place = table.place();
        let lost: Vec<&str> = place.iter().copied().filter(|name| !old_value_sent(relation, name)).collect();
        if !lost.is_empty() {
            return Err(mismatch(problem::replica_identity_changed(&table.definition.name, &lost)));
        }
        let cells = relation.columns.iter().map(|cell| CellPlace {
            column: table.columns.iter().position(|column| column.name == cell.name),
            places: place.contains(&cell.name.as_str()),
            in_key_tuple: cell.key,
        });
        Ok(Self { cells: cells.collect() })
    }
}

/// Why a relation does not fit what was recorded.
#[derive(Debug)]
pub(crate) enum Mismatch {
    /// Its columns are others, which the destination may be able to follow; in words.
    Columns(Vec<String>),
    /// The table cannot go on.
    Final(Box<Problem>),
}

fn old_value_sent(relation: &Relation, column: &str) -> bool {
    match relation.replica_identity {
        ReplicaIdentity::Full => true,
        ReplicaIdentity::Nothing => false,
        ReplicaIdentity::Default | ReplicaIdentity::Index => {
            relation.columns.iter().any(|cell| cell.name == column && cell.key)
        }
    }
}

/// Planned columns that the source computes and does not publish; whatever were written in their stead would be wrong.
fn generated_columns_not_sent<'a>(relation: &Relation, table: &'a StreamTable) -> Vec<&'a str> {
    let planned = table.columns.iter().map(|column| column.name.as_str());
    let unsent = planned.filter(|name| relation.columns.iter().all(|cell| cell.name != *name));
    unsent.collect()
}

/// Whether it is another table, or called otherwise.
fn identity_changes(relation: &Relation, table: &StreamTable) -> Vec<String> {
    let definition = &table.definition;
    let mut changes = Vec::new();
    if relation.oid != definition.oid {
        let (old, new) = (definition.oid, relation.oid);
        changes.push(format!("another table bears its name now (oid {new} in place of {old})"));
        return changes;
    }
    if relation.schema != definition.name.schema || relation.name != definition.name.name {
        changes.push(format!("it is called {} now", problem::name_of(relation)));
    }
    changes
}

/// Columns that differ, save generated columns that are not sent, each as part of a sentence.
fn column_changes(relation: &Relation, table: &StreamTable, left_out: &[String]) -> Vec<String> {
    let definition = &table.definition;
    let mut changes = Vec::new();
    for column in &table.columns {
        let recorded = definition.columns.iter().find(|recorded| recorded.name == column.name);
        let sent = relation.columns.iter().find(|cell| cell.name == column.name);
        match (recorded, sent) {
            (Some(recorded), Some(sent)) => {
                if (recorded.type_oid, recorded.type_modifier) != (sent.type_oid, sent.type_modifier) {
                    changes.push(format!(
                        "column {:?} was {} (type oid {}, modifier {}) and has type oid {}, modifier {} now",
                        column.name,
                        recorded.type_name,
                        recorded.type_oid,
                        recorded.type_modifier,
                        sent.type_oid,
                        sent.type_modifier,
                    ));
                }
            }
            (Some(SourceColumn { generated: true, .. }), None) => {}
            (_, None) => changes.push(format!("column {:?} is gone (dropped or renamed)", column.name)),
            (None, Some(_)) => changes.push(format!("column {:?} was not recorded", column.name)),
        }
    }
    // Columns come in the order of their numbers, so one that stands elsewhere is another under an old name.
    let number = |cell: &RelationColumn| {
        definition.columns.iter().find(|column| column.name == cell.name).map(|column| column.attribute)
    };
    let numbers: Vec<i16> = relation.columns.iter().filter_map(number).collect();
    if !numbers.is_sorted() {
        changes.push("a column was dropped and added again under its name".to_owned());
    }
    for cell in &relation.columns {
        let known = definition.columns.iter().any(|column| column.name == cell.name)
            || table.excluded.contains(&cell.name)
            || left_out.contains(&cell.name);
        if !known {
            changes.push(format!(
                "column {:?} is new (added or renamed; type oid {}, modifier {})",
                cell.name, cell.type_oid, cell.type_modifier
            ));
        }
    }
    changes
}
