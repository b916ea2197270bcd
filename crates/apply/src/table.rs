//! One destination table: what was recorded of it and the rows that wait for it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;

use millrace_mapping::{self as mapping, BlockBuilder, ColumnPlan, EncodedBlock, RowError};
use millrace_model::spec::MetadataColumns;
use millrace_model::{Lsn, PgType, Problem, ReplicaIdentity, TableDefinition, Timestamp};
use millrace_pgoutput::{Cell, OldTuple, Tuple};

use crate::history::{
    Chain, Found, History, IncompleteRow, Newest, Origin, OwnedCell, PlaceValues, SoughtPlace, SourceValues,
    may_be_out_of_line, resolve,
};
use crate::layout::{CellPlace, Layout};
use crate::problem;

/// Places that are looked for at a time are no longer than this together, one place excepted: a statement holds them.
const SOUGHT_BYTES: usize = 2 << 20;

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
    /// Rows of the destination may be younger than the stream up to here: where a copy went on under a later snapshot, or values were
    /// taken from the source. An update that lacks values takes them from the source until then.
    pub distrusted_until: Lsn,
    /// Of a table that keeps every row (MergeTree): versions that the destination holds already, in order, each with the number of its rows. Changes that led
    /// to them are left out.
    pub held: Vec<(u64, u64)>,
    /// Whether changes are carried; those of a table that is set aside are not.
    pub active: bool,
    /// Changes of transactions whose commit record begins before this are left out: the table's copy holds them.
    pub begins: Lsn,
}

impl StreamTable {
    /// Columns whose values PostgreSQL may keep out of line, in the order of the plan.
    pub fn long_columns(&self) -> impl Iterator<Item = &ColumnPlan> {
        self.columns.iter().filter(|column| may_be_out_of_line(&column.source))
    }

    /// Names of the columns that decide where a row stands in the destination. Empty where updates and deletes cannot
    /// occur, because the table has neither a key nor a full identity.
    pub fn place(&self) -> Vec<&str> {
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
    metadata: MetadataColumns,
    /// Kept once a value was missing.
    history: Option<History>,
    /// Rows that wait for values from outside of the batch, in the order of their changes.
    incomplete: Vec<IncompleteRow>,
    incomplete_bytes: usize,
    chains: Vec<Chain>,
    /// Columns whose values may be kept out of line, by their place in the plan.
    long_columns: Vec<usize>,
    /// Columns of the row's place, by their place in the plan.
    place_columns: Vec<usize>,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// Its rows wait in the block.
    Whole,
    /// Its row waits for values from outside of the batch.
    Incomplete,
    /// As `Incomplete`, and as the first of its table: nobody knows the rows that wait in the block by their place.
    FirstIncomplete,
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
        let long = stream.columns.iter().enumerate();
        let long = long.filter(|(_, column)| may_be_out_of_line(&column.source)).map(|(index, _)| index);
        let position = |name: &&str| stream.columns.iter().position(|column| column.name == *name);
        Self {
            builder,
            measured: 0,
            metadata: metadata.clone(),
            history: None,
            incomplete: Vec::new(),
            incomplete_bytes: 0,
            chains: Vec::new(),
            long_columns: long.collect(),
            place_columns: stream.place().iter().filter_map(position).collect(),
            stream,
        }
    }

    /// Rows that wait, the incomplete ones among them.
    pub(crate) fn rows(&self) -> usize {
        self.builder.rows() + self.incomplete.len()
    }

    /// Whether rows wait in the block.
    pub(crate) fn has_block(&self) -> bool {
        self.builder.rows() > 0
    }

    /// Bytes by which what waits has grown since this was last asked.
    pub(crate) fn growth(&mut self) -> usize {
        let history = self.history.as_ref().map_or(0, History::bytes);
        let bytes = self.builder.bytes() + history + self.incomplete_bytes;
        bytes.saturating_sub(std::mem::replace(&mut self.measured, bytes))
    }

    /// Encodes the block. Incomplete rows stay for the next one.
    pub(crate) fn finish(&mut self, synced_at: Timestamp) -> EncodedBlock {
        self.measured = 0;
        self.builder.finish(synced_at)
    }

    /// A batch was taken with everything that waited.
    pub(crate) fn end_batch(&mut self, was_used: bool) {
        if let Some(history) = &mut self.history
            && !history.end_batch(was_used)
        {
            self.history = None;
        }
    }

    /// Writes a new row.
    #[inline]
    pub(crate) fn insert(
        &mut self,
        layout: &Layout,
        lsn: Lsn,
        new: Tuple<'_>,
    ) -> Result<Written, Box<Problem>> {
        let written = self.row(layout, lsn, new, None);
        written.map_err(|fault| self.explain(&fault, layout, new, None))?;
        if self.history.is_some() {
            self.remember(layout, new, None);
        }
        Ok(Written::Whole)
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
    ) -> Result<Written, Box<Problem>> {
        let from = old.filter(|old| moved(layout, *old, new));
        if let Some(from) = from {
            // Looked for before the tombstone is written: the tombstone of an incomplete row waits with it, or it would
            // hide the values that are yet to be found.
            if unsent(layout, from, new) {
                return self.update_incomplete(layout, lsn, old, new, Some(from));
            }
            let written = self.tombstone(layout, lsn, from);
            written.map_err(|fault| self.explain(&fault, layout, from.tuple(), None))?;
        }
        match self.row(layout, lsn, new, old) {
            Ok(()) => {}
            Err(Fault::NotSent(_)) => return self.update_incomplete(layout, lsn, old, new, from),
            Err(fault) => return Err(self.explain(&fault, layout, new, old)),
        }
        if self.history.is_some() {
            if let Some(from) = from {
                self.forget(layout, from);
            }
            self.remember(layout, new, old);
        }
        Ok(Written::Whole)
    }

    /// An update that lacks values: completes it from this batch where it can, else lets it wait.
    #[cold]
    fn update_incomplete(
        &mut self,
        layout: &Layout,
        lsn: Lsn,
        old: Option<OldTuple<'_>>,
        new: Tuple<'_>,
        from: Option<OldTuple<'_>>,
    ) -> Result<Written, Box<Problem>> {
        let mut cells = self.cells(layout, new, old);
        let new_place = self.place_of(&cells);
        let tombstone = from.map(|from| self.old_cells(layout, from));
        let old_place = match &tombstone {
            Some(old_cells) => self.place_of(old_cells),
            None => new_place.clone(),
        };
        let (Some(new_place), Some(old_place)) = (new_place, old_place) else {
            let column = cells.iter().position(Option::is_none).unwrap_or(0);
            return Err(self.explain(&Fault::NotSent(column), layout, new, old));
        };
        let before = self.history.as_ref().map(|history| history.get(&old_place));
        let chain = match before {
            Some(Some(Newest::Complete(values))) => {
                for (column, value) in values {
                    cells[*column].get_or_insert_with(|| value.clone());
                }
                None
            }
            Some(Some(Newest::Incomplete(position))) => {
                let before = &self.incomplete[*position];
                for (cell, value) in cells.iter_mut().zip(&before.cells) {
                    if cell.is_none() {
                        cell.clone_from(value);
                    }
                }
                Some(before.chain)
            }
            Some(Some(Newest::Gone) | None) | None => None,
        };
        let first = self.history.is_none();
        if cells.iter().all(Option::is_some) {
            if let Some(old_cells) = &tombstone {
                self.append(lsn, old_cells, true, layout, new)?;
            }
            self.append(lsn, &cells, false, layout, new)?;
            let long = self.long_columns.iter();
            let values = long.filter_map(|column| Some((*column, cells[*column].clone()?))).collect();
            self.note(tombstone.is_some().then_some(old_place), new_place, Newest::Complete(values));
            return Ok(Written::Whole);
        }
        let sought = |values: &PlaceValues| SoughtPlace { values: values.clone(), found: None };
        let chain = chain.unwrap_or_else(|| {
            let trusted = lsn > self.stream.distrusted_until;
            self.chains.push(Chain {
                first: lsn,
                trusted,
                places: vec![sought(&old_place)],
                rows: Vec::new(),
                at_source: None,
            });
            self.chains.len() - 1
        });
        let Chain { places, rows, .. } = &mut self.chains[chain];
        let place = places.iter().position(|known| known.values == new_place).unwrap_or_else(|| {
            places.push(sought(&new_place));
            places.len() - 1
        });
        rows.push((lsn, place));
        let moved = tombstone.is_some().then_some(old_place);
        let row = IncompleteRow { lsn, cells, tombstone, chain };
        self.incomplete_bytes += row.bytes();
        self.incomplete.push(row);
        self.note(moved, new_place, Newest::Incomplete(self.incomplete.len() - 1));
        Ok(if first { Written::FirstIncomplete } else { Written::Incomplete })
    }

    /// Keeps in mind where the newest version of a row is, and begins to do so where this is the first.
    fn note(&mut self, gone: Option<PlaceValues>, place: PlaceValues, newest: Newest) {
        let history = self.history.get_or_insert_default();
        if let Some(gone) = gone {
            history.set(gone, Newest::Gone);
        }
        history.set(place, newest);
    }

    #[cold]
    fn remember(&mut self, layout: &Layout, new: Tuple<'_>, old: Option<OldTuple<'_>>) {
        let mut cells = self.cells(layout, new, old);
        let Some(place) = self.place_of(&cells) else { return };
        let long = self.long_columns.iter();
        let values = long.filter_map(|column| Some((*column, cells[*column].take()?))).collect();
        self.note(None, place, Newest::Complete(values));
    }

    #[cold]
    fn forget(&mut self, layout: &Layout, old: OldTuple<'_>) {
        let cells = self.old_cells(layout, old);
        let Some(place) = self.place_of(&cells) else { return };
        self.note(None, place, Newest::Gone);
    }

    /// The new row by column; what was not sent and is not known from the old row is absent.
    fn cells(&self, layout: &Layout, new: Tuple<'_>, old: Option<OldTuple<'_>>) -> Vec<Option<OwnedCell>> {
        let mut cells = vec![None; self.stream.columns.len()];
        let mut old_cells = old.map(|old| (old, old.tuple().cells()));
        for (place, mut cell) in layout.cells.iter().zip(new.cells()) {
            let old_cell = old_cells.as_mut().and_then(|(old, cells)| known(*old, *place, cells.next()?));
            let Some(column) = place.column else { continue };
            if let (Cell::Unchanged, Some(kept)) = (cell, old_cell) {
                cell = kept;
            }
            cells[column] = OwnedCell::of(cell);
        }
        cells
    }

    /// The old row by column, as far as it is known.
    fn old_cells(&self, layout: &Layout, old: OldTuple<'_>) -> Vec<Option<OwnedCell>> {
        let mut cells = vec![None; self.stream.columns.len()];
        for (place, cell) in layout.cells.iter().zip(old.tuple().cells()) {
            if let Some(column) = place.column {
                cells[column] = known(old, *place, cell).and_then(OwnedCell::of);
            }
        }
        cells
    }

    /// `None` where the row has no place or it is not known.
    fn place_of(&self, cells: &[Option<OwnedCell>]) -> Option<PlaceValues> {
        let place: Option<PlaceValues> =
            self.place_columns.iter().map(|column| cells[*column].clone()).collect();
        place.filter(|place| !place.is_empty())
    }

    /// Appends a row of owned cells; in a tombstone those that are absent become defaults.
    fn append(
        &mut self,
        lsn: Lsn,
        cells: &[Option<OwnedCell>],
        is_deleted: bool,
        layout: &Layout,
        row: Tuple<'_>,
    ) -> Result<(), Box<Problem>> {
        let appended = append_cells(&mut self.builder, lsn, cells, is_deleted);
        appended.map_err(|error| self.explain(&Fault::Row(error), layout, row, None))
    }

    /// Rows that wait for values from outside of the batch, several versions of one row as one.
    pub(crate) fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Places of which the destination must tell the rows, those of some chains, cut so that they fit into statements. Their numbers stand in the blocks' version column.
    pub(crate) fn sought(&self, chains: Range<usize>) -> Vec<Sought> {
        let mut first = chains.start;
        let mut sought = Vec::new();
        while first < chains.end.min(self.chains.len()) {
            let (places, end) = self.sought_from(first, chains.end);
            sought.push(places);
            first = end;
        }
        sought
    }

    fn sought_from(&self, first: usize, end: usize) -> (Sought, usize) {
        let columns: Vec<ColumnPlan> =
            self.place_columns.iter().map(|column| self.stream.columns[*column].clone()).collect();
        let mut places = BlockBuilder::new(&columns, &self.metadata);
        let before: usize = self.chains[..first].iter().map(|chain| chain.places.len()).sum();
        let mut numbers = before as u64..;
        let mut next = first;
        for chain in self.chains.iter().take(end).skip(first) {
            for (place, number) in chain.places.iter().zip(numbers.by_ref()) {
                // A place that the destination cannot hold is found nowhere.
                let mut cells = place.values.iter().enumerate();
                let appended = cells.try_for_each(|(column, cell)| places.append_cell(column, cell.lend()));
                match appended {
                    Ok(()) => drop(places.end_row(number, false)),
                    Err(_) => places.abandon_row(),
                }
            }
            next += 1;
            if places.bytes() >= SOUGHT_BYTES {
                break;
            }
        }
        let sought = Sought {
            places: places.finish(Timestamp(0)),
            place: columns.into_iter().map(|column| column.name).collect(),
            columns: self.long_columns.clone(),
        };
        (sought, next)
    }

    /// How many chains, from the first, have values of no more than so many bytes together, as told of their places; at least one.
    pub(crate) fn portion(&self, sizes: &[(u64, u64)], most: u64) -> usize {
        let sizes: HashMap<u64, u64> = sizes.iter().copied().collect();
        let mut numbers = 0u64..;
        let mut total = 0u64;
        let fits = |chain: &&Chain| {
            let numbers = numbers.by_ref().take(chain.places.len());
            total = total.saturating_add(numbers.filter_map(|number| sizes.get(&number)).sum());
            total <= most
        };
        self.chains.iter().take_while(fits).count().max(1)
    }

    /// Whether the destination holds the rows of a change already, as it may after a crash.
    pub(crate) fn holds(&mut self, lsn: Lsn, rows: u64) -> bool {
        let Ok(at) = self.stream.held.binary_search_by_key(&lsn.0, |(version, _)| *version) else {
            return false;
        };
        let (_, left) = &mut self.stream.held[at];
        let holds = *left >= rows;
        *left = left.saturating_sub(rows);
        holds
    }

    /// Takes in what the destination has at a sought place.
    pub(crate) fn supply(&mut self, number: u64, found: Found) {
        let mut places = self.chains.iter_mut().flat_map(|chain| &mut chain.places);
        if let Some(place) = usize::try_from(number).ok().and_then(|number| places.nth(number)) {
            place.found = Some(found);
        }
    }

    /// Rows that the destination's answer does not complete, by their newest places; to be looked for at the source.
    pub(crate) fn still_sought(&self, chains: usize) -> Vec<(usize, PlaceValues)> {
        let newest = |(number, chain): (usize, &Chain)| {
            let (_, place) = chain.rows.last()?;
            resolve(chain).1.then(|| (number, chain.places[*place].values.clone()))
        };
        self.chains.iter().take(chains).enumerate().filter_map(newest).collect()
    }

    /// Takes in a row as the source has it.
    pub(crate) fn supply_from_source(&mut self, chain: usize, values: SourceValues) {
        if let Some(chain) = self.chains.get_mut(chain) {
            chain.at_source = Some(values);
        }
    }

    /// Encodes the rows of the first chains by themselves. They come before the others of the batch, which may be of the same places. Gives their number too.
    pub(crate) fn complete_first(
        &mut self,
        chains: usize,
        synced_at: Timestamp,
    ) -> (Result<EncodedBlock, Box<Problem>>, usize) {
        let block = BlockBuilder::new(&self.stream.columns, &self.metadata);
        let block_of_others = std::mem::replace(&mut self.builder, block);
        let later_chains = self.chains.split_off(chains.min(self.chains.len()));
        let rows = std::mem::take(&mut self.incomplete);
        let (first, mut later): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.chain < chains);
        let count = first.len();
        self.incomplete = first;
        let written = self.complete();
        for row in &mut later {
            row.chain -= chains;
        }
        self.incomplete_bytes = later.iter().map(IncompleteRow::bytes).sum();
        (self.chains, self.incomplete) = (later_chains, later);
        let mut block = std::mem::replace(&mut self.builder, block_of_others);
        (written.map(|()| block.finish(synced_at)), count)
    }

    /// Writes the rows that waited, in their order, as far as their values are known.
    pub(crate) fn complete(&mut self) -> Result<(), Box<Problem>> {
        self.incomplete_bytes = 0;
        let chains = std::mem::take(&mut self.chains);
        let mut origins: Vec<_> = chains.iter().map(|chain| resolve(chain).0.into_iter()).collect();
        let (table, builder) = (&self.stream.definition.name, &mut self.builder);
        let mut written = Ok(());
        for row in &self.incomplete {
            if let Some(old_cells) = &row.tombstone {
                written = written.and_then(|()| append_cells(builder, row.lsn, old_cells, true));
            }
            if let Some(Some(origin)) = origins[row.chain].next() {
                written = written.and_then(|()| append_completed(builder, &self.long_columns, row, origin));
            }
        }
        let written = written.map_err(|error| {
            let place = self.incomplete.first().map_or(String::new(), |row| format!("version {}", row.lsn));
            Box::new(problem::row_not_carried(table, &place, &error))
        });
        self.incomplete.clear();
        written
    }

    /// Whether rows wait for values from outside of the batch.
    pub(crate) fn is_incomplete(&self) -> bool {
        !self.incomplete.is_empty()
    }

    /// The source was asked while its log ended here.
    pub(crate) fn distrust_until(&mut self, lsn: Lsn) {
        self.stream.distrusted_until = self.stream.distrusted_until.max(lsn);
    }

    /// Writes a tombstone at the old row's place.
    #[inline]
    pub(crate) fn delete(
        &mut self,
        layout: &Layout,
        lsn: Lsn,
        old: OldTuple<'_>,
    ) -> Result<Written, Box<Problem>> {
        let written = self.tombstone(layout, lsn, old);
        written.map_err(|fault| self.explain(&fault, layout, old.tuple(), None))?;
        if self.history.is_some() {
            self.forget(layout, old);
        }
        Ok(Written::Whole)
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
pub(crate) fn moved(layout: &Layout, old: OldTuple<'_>, new: Tuple<'_>) -> bool {
    let mut cells = layout.cells.iter().zip(old.tuple().cells().zip(new.cells()));
    cells.any(|(place, (was, is))| {
        place.places && is != Cell::Unchanged && known(old, *place, was).is_some_and(|was| was != is)
    })
}

/// Whether neither the new nor the old tuple carries the value of some column.
fn unsent(layout: &Layout, old: OldTuple<'_>, new: Tuple<'_>) -> bool {
    let mut cells = layout.cells.iter().zip(old.tuple().cells().zip(new.cells()));
    cells.any(|(place, (was, is))| {
        place.column.is_some() && is == Cell::Unchanged && known(old, *place, was).is_none()
    })
}

fn append_cells(
    builder: &mut BlockBuilder,
    lsn: Lsn,
    cells: &[Option<OwnedCell>],
    is_deleted: bool,
) -> Result<(), RowError> {
    for (column, cell) in cells.iter().enumerate() {
        let Some(cell) = cell else {
            builder.append_default(column);
            continue;
        };
        if let Err(error) = builder.append_cell(column, cell.lend()) {
            builder.abandon_row();
            return Err(error.into());
        }
    }
    builder.end_row(lsn.0, is_deleted)
}

fn append_completed(
    builder: &mut BlockBuilder,
    long_columns: &[usize],
    row: &IncompleteRow,
    origin: Origin<'_>,
) -> Result<(), RowError> {
    for (column, cell) in row.cells.iter().enumerate() {
        let at = || long_columns.iter().position(|long| *long == column);
        let appended = match (cell, origin) {
            (Some(cell), _) => builder.append_cell(column, cell.lend()),
            (None, Origin::Destination(found)) => match at().and_then(|at| found.values.get(at)) {
                Some(value) => builder.append_row_binary(column, value),
                None => builder.append_cell(column, mapping::Cell::Unchanged),
            },
            (None, Origin::Source(values)) => match at().and_then(|at| values.get(at)) {
                Some(Some(text)) => builder.append_cell(column, mapping::Cell::Text(text)),
                Some(None) => builder.append_cell(column, mapping::Cell::Null),
                None => builder.append_cell(column, mapping::Cell::Unchanged),
            },
        };
        if let Err(error) = appended {
            builder.abandon_row();
            return Err(error.into());
        }
    }
    builder.end_row(row.lsn.0, false)
}

/// Rows that must be found outside of the batch before it can be written.
#[derive(Debug)]
pub struct Sought {
    /// Their places; the version column holds the numbers by which they are named.
    pub places: EncodedBlock,
    /// Names of the place's columns.
    pub place: Vec<String>,
    /// Columns whose values are needed, by their place in the plan.
    pub columns: Vec<usize>,
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
