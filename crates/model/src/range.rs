//! Ranges of a table's pages, the unit in which it is copied.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A half-open range of heap pages, read as `ctid >= '(first,0)' AND ctid < '(end,0)'` (manual: "TID Range Scan").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageRange {
    /// First page, from 0.
    pub first: u32,
    /// First page that is no longer part of it; `None` reads to the end, so that rows which came after the table was measured are not missed.
    pub end: Option<u32>,
}

impl PageRange {
    /// The whole table.
    pub const ALL: PageRange = PageRange { first: 0, end: None };
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end {
            Some(end) => write!(f, "pages {}..{end}", self.first),
            None => write!(f, "pages {}..", self.first),
        }
    }
}
