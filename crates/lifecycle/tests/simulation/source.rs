//! The source: rows that change and move, a log, a publication, one slot, and sessions that hold snapshots.

use std::collections::{BTreeMap, BTreeSet};

use millrace_model::{Epoch, Lsn, TableName};

use crate::random::Random;

/// Rows have keys from 0 to one less than this.
pub(crate) const KEYS: u8 = 8;

/// As many pages as make three partitions.
pub(crate) const PAGES: u32 = 384;

/// A row lies on a page; its value is the position of the change that made it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) page: u32,
    pub(crate) value: u64,
}

pub(crate) type Rows = BTreeMap<u8, Row>;

/// One change, a transaction of its own.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) lsn: Lsn,
    pub(crate) table: TableName,
    /// Absent for a truncate.
    pub(crate) key: Option<u8>,
    /// Absent for a delete.
    pub(crate) value: Option<u64>,
    /// Whether the table was in the publication then.
    pub(crate) published: bool,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) confirmed: Lsn,
    /// The assignment that reads it.
    pub(crate) reader: Option<Epoch>,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) holder: Epoch,
    pub(crate) rows: BTreeMap<TableName, Rows>,
}

#[derive(Debug, Default)]
pub(crate) struct Source {
    pub(crate) lsn: Lsn,
    rows: BTreeMap<TableName, Rows>,
    pub(crate) log: Vec<Change>,
    pub(crate) publication: Option<BTreeSet<TableName>>,
    pub(crate) slot: Option<Slot>,
    pub(crate) sessions: BTreeMap<String, Session>,
    /// Where snapshots were taken.
    pub(crate) points: Vec<Lsn>,
}

impl Source {
    fn append(&mut self, table: &TableName, key: Option<u8>, value: impl FnOnce(u64) -> Option<u64>) -> u64 {
        self.lsn.0 += 1;
        let published = self.publication.as_ref().is_some_and(|published| published.contains(table));
        let value = value(self.lsn.0);
        self.log.push(Change { lsn: self.lsn, table: table.clone(), key, value, published });
        self.lsn.0
    }

    /// Inserts or updates a row, which may move to another page.
    pub(crate) fn set(&mut self, table: &TableName, key: u8, random: &mut Random) {
        let value = self.append(table, Some(key), Some);
        let page = u32::try_from(random.below(PAGES.into())).unwrap();
        self.rows.entry(table.clone()).or_default().insert(key, Row { page, value });
    }

    pub(crate) fn delete(&mut self, table: &TableName, key: u8) {
        if self.rows.get_mut(table).and_then(|rows| rows.remove(&key)).is_some() {
            self.append(table, Some(key), |_| None);
        }
    }

    pub(crate) fn truncate(&mut self, table: &TableName) {
        self.append(table, None, |_| None);
        self.rows.remove(table);
    }

    /// Something happens that is no change of ours: the log grows.
    pub(crate) fn other(&mut self) {
        self.lsn.0 += 1;
    }

    pub(crate) fn rows(&self, table: &TableName) -> BTreeMap<u8, u64> {
        self.rows.get(table).into_iter().flatten().map(|(key, row)| (*key, row.value)).collect()
    }

    /// What a table held at a position.
    pub(crate) fn rows_at(&self, table: &TableName, at: Lsn) -> BTreeMap<u8, u64> {
        let mut rows = BTreeMap::new();
        for change in self.log.iter().filter(|change| &change.table == table && change.lsn <= at) {
            match (change.key, change.value) {
                (None, _) => rows.clear(),
                (Some(key), Some(value)) => drop(rows.insert(key, value)),
                (Some(key), None) => drop(rows.remove(&key)),
            }
        }
        rows
    }

    /// Whether rows are what the source had at the position or, each for itself, later; if not, which is not.
    pub(crate) fn is_fresh(
        &self,
        table: &TableName,
        rows: &BTreeMap<u8, u64>,
        at: Lsn,
    ) -> Result<(), String> {
        let base = self.rows_at(table, at);
        let later: Vec<&Change> =
            self.log.iter().filter(|change| &change.table == table && change.lsn > at).collect();
        for key in 0..KEYS {
            let found = rows.get(&key).copied();
            let of_key = |change: &&&Change| change.key.is_none_or(|changed| changed == key);
            let fits = base.get(&key).copied() == found
                || later.iter().filter(of_key).any(|change| change.key.and(change.value) == found);
            if !fits {
                return Err(format!(
                    "key {key} of {table} is {found:?}, but was {:?} at {at} already",
                    base.get(&key)
                ));
            }
        }
        Ok(())
    }

    /// Opens a session with a snapshot of this moment.
    pub(crate) fn export(&mut self, holder: Epoch) -> String {
        let name = format!("snapshot {holder} at {}", self.lsn);
        self.points.push(self.lsn);
        self.sessions.insert(name.clone(), Session { holder, rows: self.rows.clone() });
        name
    }

    /// Everything that an assignment had open is closed.
    pub(crate) fn disconnect(&mut self, holder: Epoch) {
        self.sessions.retain(|_, session| session.holder != holder);
        if let Some(slot) = self.slot.as_mut().filter(|slot| slot.reader == Some(holder)) {
            slot.reader = None;
        }
    }
}
