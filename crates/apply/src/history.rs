//! Values that an update leaves out because it did not change them and PostgreSQL keeps them out of line (manual: "TOAST").
//!
//! Such an update carries every other value. What it lacks stands in the row's version before: earlier in the same batch, or in
//! the destination, or, where the destination has lost or never had the row, at the source. A table pays for that only
//! once the first value was missing: from then on it keeps the long values of each batch by the place of their row, until
//! a number of batches had no use for them.
//!
//! An [`IncompleteRow`] waits beside the batch until the destination was asked for the rows as they were before the batch.

use std::collections::HashMap;

use millrace_model::{Lsn, PgType};
use millrace_pgoutput::Cell;

/// Batches without a missing value after which a table stops keeping its values.
const QUIET_BATCHES: u32 = 8;

/// A value that outlives its message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OwnedCell {
    /// NULL.
    Null,
    /// The text form.
    Text(Box<[u8]>),
    /// The binary form.
    Binary(Box<[u8]>),
}

impl OwnedCell {
    /// `None` for a value that was not sent.
    pub(crate) fn of(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Null => Some(Self::Null),
            Cell::Unchanged => None,
            Cell::Text(value) => Some(Self::Text(value.into())),
            Cell::Binary(value) => Some(Self::Binary(value.into())),
        }
    }

    /// The value, to be appended to a block.
    pub fn lend(&self) -> millrace_mapping::Cell<'_> {
        match self {
            Self::Null => millrace_mapping::Cell::Null,
            Self::Text(value) => millrace_mapping::Cell::Text(value),
            Self::Binary(value) => millrace_mapping::Cell::Binary(value),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Null => 0,
                Self::Text(value) | Self::Binary(value) => value.len(),
            }
    }
}

/// The values of a row's place, in the order of the table's place.
pub(crate) type PlaceValues = Vec<OwnedCell>;

/// Whether PostgreSQL may keep values of the type out of line: those without a fixed length.
pub(crate) fn may_be_out_of_line(source: &PgType) -> bool {
    !matches!(
        source,
        PgType::Bool
            | PgType::Int2
            | PgType::Int4
            | PgType::Int8
            | PgType::Oid
            | PgType::Float4
            | PgType::Float8
            | PgType::Uuid
            | PgType::Date
            | PgType::Timestamp
            | PgType::TimestampTz
            | PgType::Time
            | PgType::Enum
    )
}

/// Where the newest version of a row in this batch is.
#[derive(Debug)]
pub(crate) enum Newest {
    /// It is complete; its values of columns that may be kept out of line.
    Complete(Vec<(usize, OwnedCell)>),
    /// It waits itself, at this position.
    Incomplete(usize),
    /// It was deleted or moved away.
    Gone,
}

/// The newest versions of the batch's rows.
#[derive(Debug, Default)]
pub(crate) struct History {
    newest: HashMap<PlaceValues, Newest>,
    quiet: u32,
    bytes: usize,
}

impl History {
    pub(crate) fn set(&mut self, place: PlaceValues, newest: Newest) {
        let kept = match &newest {
            Newest::Complete(values) => values.iter().map(|(_, value)| value.bytes()).sum(),
            Newest::Incomplete(_) | Newest::Gone => 0,
        };
        self.bytes += kept + place.iter().map(OwnedCell::bytes).sum::<usize>();
        self.newest.insert(place, newest);
    }

    pub(crate) fn get(&self, place: &PlaceValues) -> Option<&Newest> {
        self.newest.get(place)
    }

    /// Bytes that it keeps, superseded versions included until the batch ends.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The batch ends. Says whether the next one still needs a history.
    pub(crate) fn end_batch(&mut self, was_used: bool) -> bool {
        self.newest.clear();
        self.bytes = 0;
        self.quiet = if was_used { 0 } else { self.quiet + 1 };
        self.quiet < QUIET_BATCHES
    }
}

/// A row of which values are missing, with the tombstone that goes before it where it moved.
#[derive(Debug)]
pub(crate) struct IncompleteRow {
    pub(crate) lsn: Lsn,
    /// By column; `None` is to be taken from the version before.
    pub(crate) cells: Vec<Option<OwnedCell>>,
    /// The old row, by column, where it stood elsewhere; `None` is not known.
    pub(crate) tombstone: Option<Vec<Option<OwnedCell>>>,
    /// Its chain, by position.
    pub(crate) chain: usize,
}

impl IncompleteRow {
    pub(crate) fn bytes(&self) -> usize {
        let held = self.cells.iter().chain(self.tombstone.iter().flatten()).flatten();
        held.map(OwnedCell::bytes).sum()
    }
}

/// The incomplete versions of one row in this batch: all lack values of the version before the first of them.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Position of the first change.
    pub(crate) first: Lsn,
    /// Whether the destination is known to hold the row as it was before that.
    pub(crate) trusted: bool,
    /// Where the row stood before the batch, then every other place that it had in it.
    pub(crate) places: Vec<SoughtPlace>,
    /// Its versions in their order: their positions, and the numbers of the places where they stood.
    pub(crate) rows: Vec<(Lsn, usize)>,
    /// The row as the source has it, where that was asked.
    pub(crate) at_source: Option<SourceValues>,
}

/// A place and what the destination has there.
#[derive(Debug)]
pub(crate) struct SoughtPlace {
    pub(crate) values: PlaceValues,
    pub(crate) found: Option<Found>,
}

/// The newest version of a row in the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its version.
    pub version: u64,
    /// Whether it is a tombstone.
    pub is_deleted: bool,
    /// Values of the columns that were asked for, each in ClickHouse's `RowBinary` form.
    pub values: Vec<Vec<u8>>,
}

/// Long values of a row as the source has it now, each in its text form.
pub type SourceValues = Vec<Option<Vec<u8>>>;

/// Where the missing values of an incomplete row come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin<'a> {
    /// This version of it in the destination.
    Destination(&'a Found),
    /// The source.
    Source(&'a SourceValues),
}

/// What becomes of each of a chain's rows, given by position and place: `None` leaves it out.
///
/// A version that the destination has already, or has a later one of, is left out. So is one that a later row of the chain
/// replaces and whose values are not known. What nobody knows at the end was deleted or moved since, and the change that did so follows.
///
/// The second value is whether the source must be asked for the last row.
pub(crate) fn resolve(chain: &Chain) -> (Vec<Option<Origin<'_>>>, bool) {
    let mut origins = Vec::with_capacity(chain.rows.len());
    let mut known: Option<&Found> = None;
    if chain.trusted
        && let Some(before) = chain.places.first().and_then(|place| place.found.as_ref())
    {
        known = Some(before).filter(|before| !before.is_deleted && before.version < chain.first.0);
    }
    let mut unresolved = false;
    for (lsn, place) in &chain.rows {
        let found = chain.places.get(*place).and_then(|place| place.found.as_ref());
        if chain.trusted
            && let Some(found) = found.filter(|found| found.version >= lsn.0)
        {
            if found.version == lsn.0 && !found.is_deleted {
                known = Some(found);
            }
            origins.push(None);
            unresolved = false;
            continue;
        }
        unresolved = known.is_none();
        origins.push(known.map(Origin::Destination));
    }
    if unresolved && let (Some(values), Some(last)) = (&chain.at_source, origins.last_mut()) {
        *last = Some(Origin::Source(values));
        unresolved = false;
    }
    (origins, unresolved)
}
