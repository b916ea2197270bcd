//! Rows on the wire (manual: "Logical Replication Message Formats", TupleData).

use std::fmt;

/// A row's cells, lent from the message. Lengths were checked when it was decoded, so that iteration cannot fail.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    /// Number of cells.
    pub(crate) columns: u16,
    /// The cells, each a kind and, for values, a length and the bytes.
    pub(crate) bytes: &'a [u8],
}

/// One value of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    /// `n`: NULL; in a key tuple also "not part of the key".
    Null,
    /// `u`: stored out of line and not changed by the update; its value is not sent.
    Unchanged,
    /// `t`: the type's text form.
    Text(&'a [u8]),
    /// `b`: the type's binary form.
    Binary(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// Number of cells: as many as the relation has columns.
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// Whether there are no cells (a table without columns).
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The cells in the order of the relation's columns.
    pub fn cells(&self) -> Cells<'a> {
        Cells { left: self.columns, bytes: self.bytes }
    }
}

impl fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.cells()).finish()
    }
}

/// Iterates over the cells of a [`Tuple`].
#[derive(Debug, Clone)]
pub struct Cells<'a> {
    left: u16,
    bytes: &'a [u8],
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    #[inline]
    fn next(&mut self) -> Option<Cell<'a>> {
        if self.left == 0 {
            return None;
        }
        let (&kind, rest) = self.bytes.split_first()?;
        let cell = match kind {
            b'n' => Cell::Null,
            b'u' => Cell::Unchanged,
            _ => {
                let (length, rest) = rest.split_first_chunk::<4>()?;
                let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
                self.left -= 1;
                self.bytes = rest;
                return Some(if kind == b't' { Cell::Text(value) } else { Cell::Binary(value) });
            }
        };
        self.left -= 1;
        self.bytes = rest;
        Some(cell)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Cells<'_> {}
