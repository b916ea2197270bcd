//! One block of rows in ClickHouse's `Native` format, built column by column while rows arrive.
//!
//! A row is begun by its first value and ended by [`BlockBuilder::end_row`]; until then
//! [`BlockBuilder::abandon_row`] takes it back. Over HTTP a block is: counts of columns and rows, then each column's
//! name, type and values, with nothing before it. The types are those of the plan, letter by letter, as inserts are made
//! with `input_format_native_allow_types_conversion=0`.

use bytes::Bytes;
use millrace_model::Timestamp;
use millrace_model::spec::MetadataColumns;

use crate::column::{Column, Walk};
use crate::decoder::Form;
use crate::error::{Fault, RowError, ValueError};
use crate::native::{Pieces, put_string, put_varuint, string_len, varuint_len};
use crate::plan::{ColumnPlan, metadata_columns};

/// Bytes of the metadata columns a row: version, deleted flag, time.
const METADATA_BYTES: usize = 8 + 1 + 8;

/// One value as pgoutput or COPY delivers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    /// NULL.
    Null,
    /// An unchanged TOAST value that the stream leaves out. Appending it is an error: the caller must find the value.
    Unchanged,
    /// The value's text form.
    Text(&'a [u8]),
    /// The value's binary form.
    Binary(&'a [u8]),
}

/// A block that is ready to be sent as the body of `INSERT INTO t FORMAT Native`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedBlock {
    /// Its rows, at least one unless it was finished empty.
    pub rows: usize,
    /// Its bytes, in pieces that follow one another; small blocks have one.
    pub pieces: Vec<Bytes>,
    /// Columns (by their place in the plan) with values that ClickHouse could not hold, and how many were altered.
    pub altered: Vec<(usize, u64)>,
}

impl EncodedBlock {
    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

/// Turns rows into blocks. One block after another, always of the same columns.
#[derive(Debug)]
pub struct BlockBuilder {
    columns: Vec<PlannedColumn>,
    metadata: [Vec<u8>; 3],
    versions: Vec<u8>,
    deleted: Vec<u8>,
    synced: Vec<u8>,
    rows: usize,
    /// Columns that have a value for the row at hand.
    filled: usize,
    /// Bytes of all names and types.
    header_len: usize,
}

#[derive(Debug)]
struct PlannedColumn {
    values: Column,
    copy_form: Form,
    /// Name and type as a block has them.
    header: Vec<u8>,
    name: String,
    target: String,
}

impl PlannedColumn {
    fn new(plan: &ColumnPlan) -> Self {
        let target = plan.target.to_string();
        Self {
            values: Column::new(plan),
            copy_form: if plan.as_text { Form::Text } else { Form::Binary },
            header: header(&plan.name, &target),
            name: plan.name.clone(),
            target,
        }
    }

    #[cold]
    fn error(&self, fault: Fault) -> ValueError {
        ValueError { column: self.name.clone(), target: self.target.clone(), fault }
    }
}

fn header(name: &str, target: &str) -> Vec<u8> {
    let mut header = Vec::with_capacity(string_len(name.len()) + string_len(target.len()));
    put_string(&mut header, name.as_bytes());
    put_string(&mut header, target.as_bytes());
    header
}

impl BlockBuilder {
    /// A builder of blocks with the planned columns and, after them, the three metadata columns.
    ///
    /// A pair of types that [`crate::plan_columns`] never makes is refused with its first value.
    pub fn new(columns: &[ColumnPlan], metadata: &MetadataColumns) -> Self {
        let columns: Vec<_> = columns.iter().map(PlannedColumn::new).collect();
        let metadata = metadata_columns(metadata).map(|(name, target)| header(name, &target.to_string()));
        let header_len =
            columns.iter().map(|column| &column.header).chain(&metadata).map(Vec::len).sum::<usize>()
                + varuint_len(columns.len() + metadata.len());
        Self {
            columns,
            metadata,
            versions: Vec::new(),
            deleted: Vec::new(),
            synced: Vec::new(),
            rows: 0,
            filled: 0,
            header_len,
        }
    }

    /// Appends one row out of one tuple of `COPY ... (FORMAT binary)`: a 16-bit count of fields, then a 32-bit length (-1
    /// is NULL) and the bytes of each (manual: "COPY", "Binary Format"). The fields are in the plan's order; those that
    /// are planned [`ColumnPlan::as_text`] hold text. The row's version is 0. After an error the block is as before.
    pub fn append_copy_tuple(&mut self, tuple: &[u8]) -> Result<(), RowError> {
        self.abandon_row();
        let appended = self.append_fields(tuple);
        match appended {
            Ok(()) => self.finish_row(0, false),
            Err(_) => self.abandon_row(),
        }
        appended
    }

    /// Writes one tuple of `COPY ... (FORMAT binary)` as ClickHouse writes the row that it becomes, in `RowBinary`: the planned columns one after another, each ending in `values` where
    /// `ends` says. The block at hand must be empty and stays so.
    ///
    /// # Errors
    /// As [`BlockBuilder::append_copy_tuple`].
    pub fn row_binary_of_copy_tuple(
        &mut self,
        tuple: &[u8],
        values: &mut Vec<u8>,
        ends: &mut Vec<usize>,
    ) -> Result<(), RowError> {
        values.clear();
        ends.clear();
        self.abandon_row();
        let appended = self.append_fields(tuple);
        if appended.is_ok() && self.rows == 0 {
            for column in &self.columns {
                Walk::new(&column.values).next(values);
                ends.push(values.len());
            }
        }
        self.abandon_row();
        appended
    }

    fn append_fields(&mut self, tuple: &[u8]) -> Result<(), RowError> {
        let (count, mut rest) = tuple.split_first_chunk::<2>().ok_or(RowError::TupleLength)?;
        let found = usize::from(u16::from_be_bytes(*count));
        if found != self.columns.len() {
            return Err(RowError::FieldCount { expected: self.columns.len(), found });
        }
        // A row that is taken back is recognised by this count.
        self.filled = found;
        for column in &mut self.columns {
            let (length, after) = rest.split_first_chunk::<4>().ok_or(RowError::TupleLength)?;
            let length = i32::from_be_bytes(*length);
            let value = if length == -1 {
                rest = after;
                None
            } else {
                let length = usize::try_from(length).map_err(|_| RowError::TupleLength)?;
                let (value, after) = after.split_at_checked(length).ok_or(RowError::TupleLength)?;
                rest = after;
                Some(value)
            };
            if let Err(fault) = column.values.append(value, column.copy_form) {
                return Err(column.error(fault).into());
            }
        }
        if rest.is_empty() { Ok(()) } else { Err(RowError::TupleLength) }
    }

    /// Appends one value of the row at hand; `column` is its place in the plan. Each column takes one value a row, in any order.
    ///
    /// After an error the other values of the row still stand: give the column another value, or abandon the row.
    #[inline]
    pub fn append_cell(&mut self, column: usize, cell: Cell<'_>) -> Result<(), ValueError> {
        let rows = self.rows;
        let Some(column) = self.columns.get_mut(column) else {
            return Err(no_column(column));
        };
        if column.values.rows() != rows {
            return Err(column.error(Fault::Repeated));
        }
        let appended = match cell {
            Cell::Null => column.values.append(None, Form::Binary),
            Cell::Text(value) => column.values.append(Some(value), Form::Text),
            Cell::Binary(value) => column.values.append(Some(value), Form::Binary),
            Cell::Unchanged => Err(Fault::Unchanged),
        };
        match appended {
            Ok(()) => {
                self.filled += 1;
                Ok(())
            }
            Err(fault) => Err(column.error(fault)),
        }
    }

    /// Appends a value that was read back from the destination's column in `RowBinary`
    /// ([`crate::row_binary::take_value`]); otherwise as [`BlockBuilder::append_cell`].
    pub fn append_row_binary(&mut self, column: usize, value: &[u8]) -> Result<(), ValueError> {
        let rows = self.rows;
        let Some(column) = self.columns.get_mut(column) else {
            return Err(no_column(column));
        };
        if column.values.rows() != rows {
            return Err(column.error(Fault::Repeated));
        }
        column.values.append_row_binary(value).map_err(|fault| column.error(fault))?;
        self.filled += 1;
        Ok(())
    }

    /// Appends what stands in a tombstone for a value that is not known: NULL where the column can hold it, else the
    /// type's default. Nothing is counted as altered. Does nothing where the row has a value already.
    pub fn append_default(&mut self, column: usize) {
        let rows = self.rows;
        if let Some(column) = self.columns.get_mut(column)
            && column.values.rows() == rows
        {
            column.values.append_default();
            self.filled += 1;
        }
    }

    /// Ends the row at hand: `version` is 0 for a copied row, else the LSN of the change.
    ///
    /// # Errors
    /// [`RowError::FieldCount`] where columns lack a value; the row is abandoned then.
    pub fn end_row(&mut self, version: u64, is_deleted: bool) -> Result<(), RowError> {
        if self.filled != self.columns.len() {
            let error = RowError::FieldCount { expected: self.columns.len(), found: self.filled };
            self.abandon_row();
            return Err(error);
        }
        self.finish_row(version, is_deleted);
        Ok(())
    }

    #[inline]
    fn finish_row(&mut self, version: u64, is_deleted: bool) {
        self.versions.extend_from_slice(&version.to_le_bytes());
        self.deleted.push(u8::from(is_deleted));
        self.rows += 1;
        self.filled = 0;
    }

    /// Takes back the values of the row at hand, where there are any; the block is as it was after the last whole row.
    #[inline]
    pub fn abandon_row(&mut self) {
        if self.filled == 0 {
            return;
        }
        for column in &mut self.columns {
            if column.values.rows() > self.rows {
                column.values.take_back();
            }
        }
        self.filled = 0;
    }

    /// Whole rows of the block at hand.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that the block takes when it is finished. Costs an addition per column; buffers may hold up to twice as much memory.
    pub fn bytes(&self) -> usize {
        let columns: usize = self.columns.iter().map(|column| column.values.encoded_len()).sum();
        self.header_len + varuint_len(self.rows) + columns + self.rows * METADATA_BYTES
    }

    /// Columns (by their place in the plan) of the block at hand with values that ClickHouse cannot hold, and how many
    /// were altered: dates and timestamps beyond its range, NaN in a Decimal, NULL in place of an array.
    pub fn altered(&self) -> impl Iterator<Item = (usize, u64)> {
        let counts = self.columns.iter().map(|column| column.values.altered()).enumerate();
        counts.filter(|(_, altered)| *altered > 0)
    }

    /// Encodes the block and begins the next. `synced_at` is the time that its rows are marked with. A row at hand is abandoned.
    pub fn finish(&mut self, synced_at: Timestamp) -> EncodedBlock {
        self.abandon_row();
        let altered = self.altered().collect();
        let rows = std::mem::take(&mut self.rows);
        let nanos = synced_at.0.saturating_mul(1_000).to_le_bytes();
        self.synced.extend(std::iter::repeat_n(nanos, rows).flatten());

        let mut pieces = Pieces::default();
        put_varuint(pieces.small(), self.columns.len() + self.metadata.len());
        put_varuint(pieces.small(), rows);
        for column in &mut self.columns {
            pieces.small().extend_from_slice(&column.header);
            column.values.write(&mut pieces);
        }
        let values = [&mut self.versions, &mut self.deleted, &mut self.synced];
        for (header, values) in self.metadata.iter().zip(values) {
            pieces.small().extend_from_slice(header);
            pieces.take(values);
        }
        EncodedBlock { rows, pieces: pieces.finish(), altered }
    }
}

#[cold]
fn no_column(column: usize) -> ValueError {
    ValueError { column: column.to_string(), target: String::new(), fault: Fault::NoColumn }
}
