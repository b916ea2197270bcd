//! The destination: tables by UUID under names, rows by version.

use std::collections::BTreeMap;

use millrace_model::Lsn;

#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Keeps every row (MergeTree).
    pub(crate) keeps_all: bool,
    /// The newest version of each row, and what it holds.
    newest: BTreeMap<u8, (u64, Option<u64>)>,
    /// Every row that was ever inserted, and how often.
    pub(crate) inserted: BTreeMap<(u64, u8, Option<u64>), u32>,
}

impl Table {
    /// One copied row.
    pub(crate) fn copy(&mut self, key: u8, value: u64) {
        self.insert(0, key, Some(value));
        *self.inserted.entry((0, key, Some(value))).or_default() += 1;
    }

    /// One change; a repeated one carries the token of the first.
    pub(crate) fn apply(&mut self, lsn: Lsn, key: u8, value: Option<u64>) {
        self.insert(lsn.0, key, value);
        self.inserted.insert((lsn.0, key, value), 1);
    }

    fn insert(&mut self, version: u64, key: u8, value: Option<u64>) {
        // Of two with one version the last one counts.
        if self.newest.get(&key).is_none_or(|(known, _)| *known <= version) {
            self.newest.insert(key, (version, value));
        }
    }

    pub(crate) fn empty(&mut self) {
        self.newest.clear();
        self.inserted.clear();
    }

    /// As readers see it.
    pub(crate) fn rows(&self) -> BTreeMap<u8, u64> {
        self.newest.iter().filter_map(|(key, (_, value))| Some((*key, (*value)?))).collect()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Destination {
    /// UUIDs by name.
    pub(crate) names: BTreeMap<String, String>,
    tables: BTreeMap<String, Table>,
    made: u32,
}

impl Destination {
    /// Makes a table where there is none of the name.
    pub(crate) fn create(&mut self, name: &str, keeps_all: bool) -> String {
        if let Some(uuid) = self.names.get(name) {
            return uuid.clone();
        }
        self.made += 1;
        let uuid = format!("uuid-{}", self.made);
        self.names.insert(name.to_owned(), uuid.clone());
        self.tables.insert(uuid.clone(), Table { keeps_all, ..Table::default() });
        uuid
    }

    pub(crate) fn table(&mut self, name: &str) -> Option<&mut Table> {
        self.tables.get_mut(self.names.get(name)?)
    }

    pub(crate) fn drop(&mut self, name: &str) -> Option<String> {
        let uuid = self.names.remove(name)?;
        self.tables.remove(&uuid);
        Some(uuid)
    }

    pub(crate) fn exchange(&mut self, one: &str, other: &str) {
        let (first, second) = (self.names[one].clone(), self.names[other].clone());
        self.names.insert(one.to_owned(), second);
        self.names.insert(other.to_owned(), first);
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        if let Some(uuid) = self.names.remove(from) {
            self.names.insert(to.to_owned(), uuid);
        }
    }
}
