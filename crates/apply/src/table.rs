//! One destination table: what was recorded of it and the rows that wait for it.

use std::fmt::Write as _;

use millrace_mapping::{self as mapping, BlockBuilder, ColumnPlan, EncodedBlock, RowError};
use millrace_model::spec::MetadataColumns;
use millrace_model::{Lsn, PgType, Problem, ReplicaIdentity, TableDefinition, Timestamp};
use millrace_pgoutput::{Cell, OldTuple, Tuple};

use crate::layout::{CellPlace, Layout};
use crate::problem;

/// A table of the stream as it was recorded when the pipe was set up.
#[derive(Debug, Clone)]
pub struct StreamTable {
    /// What the source offered.
    pub definition: TableDefinition,
    /// Columns of the destination table. The stream must carry every one of them, which it does not of generated columns
    /// before PostgreSQL 18: a table with one of those is set aside.
    pub columns: Vec<ColumnPlan>,
    /// Columns that the user left out, which tells them from new ones.
    pub excluded: Vec<String>,
    /// The destination's `ORDER BY` where it is longer than the key; otherwise empty. Contains the key.
    pub sorting_key: Vec<String>,
    /// Whether changes are carried; those of a table that is set aside are not.
    pub active: bool,
}

impl StreamTable {
    /// Names of the columns that decide where a row stands in the destination. Empty where updates and deletes cannot
    /// occur, because the table has neither a key nor a full identity.
    pub(crate) fn place(&self) -> Vec<&str> {
        let definition = &self.definition;
        let full = definition.replica_identity == ReplicaIdentity::Full;
        if definition.key.is_empty() && !full {
            Vec::new()
        } else if !self.sorting_key.is_empty() {
            self.sorting_key.iter().map(String::as_str).collect()
        } else if !definition.key.is_empty() {
            definition.key.iter().map(String::as_str).collect()
        } else {
            self.columns.iter().map(|column| column.name.as_str()).collect()
        }
    }
}

/// A table and the rows that wait.
pub(crate) struct Table {
    pub(crate) stream: StreamTable,
    builder: BlockBuilder,
    /// Bytes of the block when they were last asked for.
    measured: usize,
}

/// Why a row could not be written; what it had appended is abandoned.
enum Fault {
    /// The stream does not carry the value of this column.
    NotSent(usize),
    /// A value, or the row as a whole, cannot be carried over.
    Row(RowError),
}

impl Table {
    pub(crate) fn new(stream: StreamTable, metadata: &MetadataColumns) -> Self {
        let builder = BlockBuilder::new(&stream.columns, metadata);
        Self { stream, builder, measured: 0 }
    }

    pub(crate) fn rows(&self) -> usize {
        self.builder.rows()
    }

    /// Bytes by which the block has grown since this was last asked.
    pub(crate) fn growth(&mut self) -> usize {
        let bytes = self.builder.bytes();
        bytes.saturating_sub(std::mem::replace(&mut self.measured, bytes))
    }

    pub(crate) fn finish(&mut self, synced_at: Timestamp) -> EncodedBlock {
        self.measured = 0;
        self.builder.finish(synced_at)
    }

    /// Writes a new row.
    #[inline]
    pub(crate) fn insert(&mut self, layout: &Layout, lsn: Lsn, new: Tuple<'_>) -> Result<(), Box<Problem>> {
        let written = self.row(layout, lsn, new, None);
        written.map_err(|fault| self.explain(&fault, layout, new, None))
    }

    /// Writes the new row, and before it a tombstone where the row stood elsewhere. The tombstone comes first: should both
    /// places be equal to the destination although their bytes differ, the last of equal versions wins there.
    #[inline]
    pub(crate) fn update(
        &mut self,
        layout: &Layout,
        lsn: Lsn,
        old: Option<OldTuple<'_>>,
        new: Tuple<'_>,
    ) -> Result<(), Box<Problem>> {
        if let Some(old) = old
            && moved(layout, old, new)
        {
            // Checked before the tombstone, so that a row that cannot be written anew is not taken away either.
            if let Some(column) = unsent(layout, old, new) {
                return Err(self.explain(&Fault::NotSent(column), layout, new, Some(old)));
            }
            let written = self.tombstone(layout, lsn, old);
            written.map_err(|fault| self.explain(&fault, layout, old.tuple(), None))?;
        }
        let written = self.row(layout, lsn, new, old);
        written.map_err(|fault| self.explain(&fault, layout, new, old))
    }

    /// Writes a tombstone at the old row's place.
    #[inline]
    pub(crate) fn delete(
        &mut self,
        layout: &Layout,
        lsn: Lsn,
        old: OldTuple<'_>,
    ) -> Result<(), Box<Problem>> {
        let written = self.tombstone(layout, lsn, old);
        written.map_err(|fault| self.explain(&fault, layout, old.tuple(), None))
    }

    #[inline]
    fn row(
        &mut self,
        layout: &Layout,
        lsn: Lsn,
        new: Tuple<'_>,
        old: Option<OldTuple<'_>>,
    ) -> Result<(), Fault> {
        let mut old_cells = old.map(|old| (old, old.tuple().cells()));
        for (place, mut cell) in layout.cells.iter().zip(new.cells()) {
            let old_cell = old_cells.as_mut().and_then(|(old, cells)| known(*old, *place, cells.next()?));
            let Some(column) = place.column else { continue };
            if cell == Cell::Unchanged {
                match old_cell {
                    Some(kept) => cell = kept,
                    None => return Err(self.abandon(Fault::NotSent(column))),
                }
            }
            if let Err(error) = self.builder.append_cell(column, lend(cell)) {
                return Err(self.abandon(Fault::Row(error.into())));
            }
        }
        self.builder.end_row(lsn.0, false).map_err(Fault::Row)
    }

    #[inline]
    fn tombstone(&mut self, layout: &Layout, lsn: Lsn, old: OldTuple<'_>) -> Result<(), Fault> {
        for (place, cell) in layout.cells.iter().zip(old.tuple().cells()) {
            let Some(column) = place.column else { continue };
            match known(old, *place, cell) {
                Some(cell) => {
                    if let Err(error) = self.builder.append_cell(column, lend(cell)) {
                        return Err(self.abandon(Fault::Row(error.into())));
                    }
                }
                None if place.places => return Err(self.abandon(Fault::NotSent(column))),
                None => self.builder.append_default(column),
            }
        }
        self.builder.end_row(lsn.0, true).map_err(Fault::Row)
    }

    #[cold]
    fn abandon(&mut self, fault: Fault) -> Fault {
        self.builder.abandon_row();
        fault
    }

    #[cold]
    fn explain(
        &self,
        fault: &Fault,
        layout: &Layout,
        row: Tuple<'_>,
        old: Option<OldTuple<'_>>,
    ) -> Box<Problem> {
        let table = &self.stream.definition.name;
        let key = self.key_text(layout, row, old);
        Box::new(match fault {
            Fault::NotSent(column) => {
                let column = self.stream.columns.get(*column).map_or("", |column| column.name.as_str());
                problem::toast_value_missing(table, column, &key)
            }
            Fault::Row(error) => problem::row_not_carried(table, &key, error),
        })
    }

    /// `id = 7, region = eu`: the row's place for people.
    fn key_text(&self, layout: &Layout, row: Tuple<'_>, old: Option<OldTuple<'_>>) -> String {
        let mut text = String::new();
        let mut old_cells = old.map(|old| (old, old.tuple().cells()));
        for (place, mut cell) in layout.cells.iter().zip(row.cells()) {
            let old_cell = old_cells.as_mut().and_then(|(old, cells)| known(*old, *place, cells.next()?));
            let Some(column) = place.column.and_then(|column| self.stream.columns.get(column)) else {
                continue;
            };
            if !place.places {
                continue;
            }
            if let (Cell::Unchanged, Some(kept)) = (cell, old_cell) {
                cell = kept;
            }
            let separator = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{separator}{} = {}", column.name, value_text(cell, &column.source));
        }
        if text.is_empty() { "no key".to_owned() } else { text }
    }
}

/// Whether the old and the new row stand at different places. Bytes are compared: an equal value written differently only
/// costs a tombstone that the new row overrides.
fn moved(layout: &Layout, old: OldTuple<'_>, new: Tuple<'_>) -> bool {
    let mut cells = layout.cells.iter().zip(old.tuple().cells().zip(new.cells()));
    cells.any(|(place, (was, is))| {
        place.places && is != Cell::Unchanged && known(old, *place, was).is_some_and(|was| was != is)
    })
}

/// The first column whose value neither the new nor the old tuple carries.
fn unsent(layout: &Layout, old: OldTuple<'_>, new: Tuple<'_>) -> Option<usize> {
    let mut cells = layout.cells.iter().zip(old.tuple().cells().zip(new.cells()));
    cells.find_map(|(place, (was, is))| {
        let missing = is == Cell::Unchanged && known(old, *place, was).is_none();
        place.column.filter(|_| missing)
    })
}

/// The old value, where the old tuple carries it.
#[inline]
fn known<'a>(old: OldTuple<'_>, place: CellPlace, cell: Cell<'a>) -> Option<Cell<'a>> {
    let carried = matches!(old, OldTuple::Full(_)) || place.in_key_tuple;
    (carried && cell != Cell::Unchanged).then_some(cell)
}

#[inline]
fn lend(cell: Cell<'_>) -> mapping::Cell<'_> {
    match cell {
        Cell::Null => mapping::Cell::Null,
        Cell::Unchanged => mapping::Cell::Unchanged,
        Cell::Text(value) => mapping::Cell::Text(value),
        Cell::Binary(value) => mapping::Cell::Binary(value),
    }
}

/// A key's value for people: text as it is, binary integers as numbers, other binary values in hexadecimal; cut at 64 bytes.
fn value_text(cell: Cell<'_>, source: &PgType) -> String {
    const LONGEST: usize = 64;
    let value = match cell {
        Cell::Null => return "NULL".to_owned(),
        Cell::Unchanged => return "(unchanged)".to_owned(),
        Cell::Text(value) => return text_of(value),
        Cell::Binary(value) => value,
    };
    return match (source, value.len()) {
        (PgType::Text | PgType::Enum | PgType::Json, _) => text_of(value),
        (PgType::Int2 | PgType::Int4 | PgType::Int8, 1..=8) => {
            let negative = value.first().is_some_and(|first| *first >= 0x80);
            let start = if negative { -1 } else { 0 };
            value.iter().fold(start, |number: i64, byte| number << 8 | i64::from(*byte)).to_string()
        }
        _ => {
            let cut = &value[..value.len().min(LONGEST / 2)];
            let hex = cut.iter().fold(String::from("\\x"), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            });
            if cut.len() < value.len() { hex + "…" } else { hex }
        }
    };

    fn text_of(value: &[u8]) -> String {
        let cut = &value[..value.len().min(LONGEST)];
        let text = String::from_utf8_lossy(cut).into_owned();
        if cut.len() < value.len() { text + "…" } else { text }
    }
}
