//! Two builders side by side: one sees everything, the other only what went well. They must stay alike.

use millrace_mapping::{BlockBuilder, Cell, ColumnPlan, EncodedBlock, RowError};
use millrace_model::Timestamp;
use millrace_model::spec::MetadataColumns;

/// A builder, and its shadow that never sees what fails.
pub(crate) struct Pair {
    builder: BlockBuilder,
    shadow: BlockBuilder,
    columns: usize,
}

impl Pair {
    pub(crate) fn new(columns: &[ColumnPlan]) -> Self {
        let builder = || BlockBuilder::new(columns, &MetadataColumns::millrace());
        Self { builder: builder(), shadow: builder(), columns: columns.len() }
    }

    /// One tuple of COPY; after an error the block is as before.
    pub(crate) fn copy(&mut self, tuple: &[u8]) {
        let before = self.measure();
        match self.builder.append_copy_tuple(tuple) {
            Ok(()) => {
                assert_eq!(self.builder.rows(), before.0 + 1);
                assert_eq!(self.shadow.append_copy_tuple(tuple), Ok(()), "a tuple that was read before");
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert_eq!(self.measure(), before, "after {error}");
            }
        }
    }

    /// The same cell into every column; where one fails, a default. Gives whether no column failed.
    pub(crate) fn cell(&mut self, cell: Cell<'_>) -> bool {
        let mut all = true;
        for column in 0..self.columns {
            let before = self.measure();
            match self.builder.append_cell(column, cell) {
                Ok(()) => {
                    assert_eq!(self.shadow.append_cell(column, cell), Ok(()));
                    let altered = self.measure();
                    let repeated = self.builder.append_cell(column, cell);
                    assert!(repeated.is_err(), "a column took two values of one row");
                    assert_eq!(self.measure(), altered, "after {repeated:?}");
                }
                Err(error) => {
                    all = false;
                    assert!(!error.to_string().is_empty());
                    assert_eq!(self.measure(), before, "after {error}");
                    self.builder.append_default(column);
                    self.shadow.append_default(column);
                }
            }
        }
        all
    }

    /// Begins a row in one builder alone, and takes it back.
    pub(crate) fn abandoned(&mut self, cell: Cell<'_>) {
        let before = self.measure();
        for column in 0..self.columns {
            let _ = self.builder.append_cell(column, cell);
        }
        if self.columns > 0 && self.builder.end_row(1, false).is_ok() {
            // Every value was good: then the row stands in both.
            self.cell_of_shadow(cell);
        } else {
            self.builder.abandon_row();
            assert_eq!(self.measure(), before, "after an abandoned row");
        }
    }

    fn cell_of_shadow(&mut self, cell: Cell<'_>) {
        for column in 0..self.columns {
            assert_eq!(self.shadow.append_cell(column, cell), Ok(()));
        }
        assert_eq!(self.shadow.end_row(1, false), Ok(()));
    }

    pub(crate) fn end_row(&mut self, version: u64, deleted: bool) -> Result<(), RowError> {
        let ended = self.builder.end_row(version, deleted);
        assert_eq!(self.shadow.end_row(version, deleted), ended);
        ended
    }

    /// Rows, bytes and altered values of the block at hand.
    fn measure(&self) -> (usize, usize, Vec<(usize, u64)>) {
        (self.builder.rows(), self.builder.bytes(), self.builder.altered().collect())
    }

    /// Finishes both blocks, which must be the same; a row at hand is taken back by finishing, and by hand in the shadow.
    pub(crate) fn finish(&mut self) {
        self.shadow.abandon_row();
        let (rows, bytes) = (self.shadow.rows(), self.shadow.bytes());
        let block = self.builder.finish(Timestamp(0));
        assert_eq!((block.rows, block.bytes()), (rows, bytes), "the block's size as it was told");
        let shadow = self.shadow.finish(Timestamp(0));
        assert_eq!(block.altered, shadow.altered);
        assert_eq!(joined(&block), joined(&shadow), "what failed left something behind");
    }
}

/// The block's bytes.
pub(crate) fn joined(block: &EncodedBlock) -> Vec<u8> {
    block.pieces.iter().flat_map(|piece| piece.iter().copied()).collect()
}
