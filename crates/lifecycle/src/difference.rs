//! What an edit of a pipe's specification asks for, in words and as data.

use std::fmt;

use millrace_model::spec::{Cluster, TableSpec};
use millrace_model::{PipeSpec, TableName};

/// The difference between two specifications of one pipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Tables to be copied and followed.
    pub added: Vec<TableName>,
    /// Tables to be taken out; their destination tables stay.
    pub removed: Vec<TableName>,
    /// Tables that must be copied anew, and why.
    pub changed: Vec<(TableName, Vec<&'static str>)>,
    /// Settings for which all tables must be copied anew.
    pub all_anew: Vec<&'static str>,
    /// Settings that take effect at once.
    pub settings: Vec<String>,
    /// What cannot be edited, and what to do instead.
    pub refused: Vec<(String, &'static str)>,
}

impl Difference {
    /// Compares; `before` and `after` are of one pipe.
    pub fn between(before: &PipeSpec, after: &PipeSpec) -> Self {
        let find = |spec: &PipeSpec, source: &TableName| -> Option<TableSpec> {
            spec.tables.iter().find(|table| &table.source == source).cloned()
        };
        let only_in = |one: &PipeSpec, other: &PipeSpec| -> Vec<TableName> {
            let tables = one.tables.iter().map(|table| table.source.clone());
            tables.filter(|source| find(other, source).is_none()).collect()
        };
        let mut difference =
            Self { added: only_in(after, before), removed: only_in(before, after), ..Self::default() };
        for table in &after.tables {
            if let Some(old) = find(before, &table.source) {
                let what = table_changes(&old, table);
                if !what.is_empty() {
                    difference.changed.push((table.source.clone(), what));
                }
                if old.out_of_range != table.out_of_range {
                    difference.settings.push(format!("outOfRange of {}", table.source));
                }
            }
        }
        difference.compare_ends(before, after);
        difference.compare_settings(before, after);
        difference
    }

    fn compare_ends(&mut self, before: &PipeSpec, after: &PipeSpec) {
        let anew = "make another pipe";
        if before.mode != after.mode {
            self.refused.push(("replicationMode cannot be edited".to_owned(), anew));
        }
        let (old, new) = (&before.source, &after.source);
        if old.database != new.database {
            self.refused.push(("the source's database cannot be edited".to_owned(), anew));
        }
        if old != new && old.database == new.database {
            self.settings.push("the connection to the source".to_owned());
        }
        let (old, new) = (&before.destination, &after.destination);
        let layout = |cluster: &Option<Cluster>| {
            cluster.clone().map(|cluster| (cluster.name, cluster.replicated, cluster.sharded))
        };
        if old.database != new.database {
            self.refused.push(("the destination's database cannot be edited".to_owned(), anew));
        } else if layout(&old.cluster) != layout(&new.cluster) {
            self.refused.push(("the destination's cluster cannot be edited".to_owned(), anew));
        } else if old != new {
            self.settings.push("the connection to the destination".to_owned());
        }
    }

    fn compare_settings(&mut self, before: &PipeSpec, after: &PipeSpec) {
        let (old, new) = (&before.settings, &after.settings);
        let anew = "make another pipe";
        let mut refuse = |differs: bool, what: &str| {
            if differs {
                self.refused.push((format!("{what} cannot be edited"), anew));
            }
        };
        refuse(old.publication_name != new.publication_name, "publicationName");
        refuse(old.replication_slot_name != new.replication_slot_name, "replicationSlotName");
        refuse(old.enable_failover_slots != new.enable_failover_slots, "enableFailoverSlots");
        let copied = [
            (old.allow_nullable_columns != new.allow_nullable_columns, "allowNullableColumns"),
            (old.metadata_columns != new.metadata_columns, "metadataColumns"),
            (old.delete_on_merge != new.delete_on_merge, "deleteOnMerge"),
        ];
        self.all_anew.extend(copied.iter().filter(|(differs, _)| *differs).map(|(_, what)| *what));
        let live = [
            (old.sync_interval != new.sync_interval, "syncInterval"),
            (old.pull_batch_size != new.pull_batch_size, "pullBatchSize"),
            (old.initial_load_parallelism != new.initial_load_parallelism, "initialLoadParallelism"),
            (old.max_source_connections != new.max_source_connections, "maxSourceConnections"),
            (
                old.snapshot_rows_per_partition != new.snapshot_rows_per_partition,
                "snapshotNumRowsPerPartition",
            ),
            (old.snapshot_parallel_tables != new.snapshot_parallel_tables, "snapshotNumberOfParallelTables"),
            (old.schema_changes != new.schema_changes, "schemaChanges"),
            (old.truncate != new.truncate, "truncate"),
            (old.out_of_range != new.out_of_range, "outOfRange"),
            (old.max_held_wal != new.max_held_wal, "maxHeldWal"),
            (old.verify_every != new.verify_every, "verifyEvery"),
            (old.verify_rows_per_second != new.verify_rows_per_second, "verifyRowsPerSecond"),
            (old.worker_selector != new.worker_selector, "workerSelector"),
        ];
        self.settings.extend(live.iter().filter(|(differs, _)| *differs).map(|(_, what)| (*what).to_owned()));
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    /// What asks for a copy anew, in words.
    pub fn needing_resync(&self) -> Vec<String> {
        let tables = self.changed.iter().map(|(table, what)| format!("{} of {table}", what.join(" and ")));
        tables.chain(self.all_anew.iter().map(|what| (*what).to_owned())).collect()
    }
}

fn table_changes(old: &TableSpec, new: &TableSpec) -> Vec<&'static str> {
    let changes = [
        (old.target != new.target, "target"),
        (old.excluded_columns != new.excluded_columns, "excludedColumns"),
        (old.sorting_keys != new.sorting_keys, "sortingKeys"),
        (old.engine != new.engine, "tableEngine"),
        (old.partition_by != new.partition_by, "partitionByExpr"),
        (old.sharding != new.sharding, "shardingExpr"),
        (old.column_types != new.column_types, "columnTypes"),
    ];
    changes.into_iter().filter(|(differs, _)| *differs).map(|(_, what)| what).collect()
}

impl Difference {
    /// One sentence for each thing that differs.
    pub fn in_words(&self) -> Vec<String> {
        let names =
            |tables: &[TableName]| tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut parts = Vec::new();
        if !self.added.is_empty() {
            parts.push(format!("adds {}", names(&self.added)));
        }
        if !self.removed.is_empty() {
            parts.push(format!("removes {}", names(&self.removed)));
        }
        let anew = self.needing_resync();
        if !anew.is_empty() {
            parts.push(format!("resyncs for {}", anew.join(", ")));
        }
        if !self.settings.is_empty() {
            parts.push(format!("changes {}", self.settings.join(", ")));
        }
        for (what, remedy) in &self.refused {
            parts.push(format!("{what}: {remedy}"));
        }
        parts
    }
}

/// One line, such as `adds public.a; removes public.b; resyncs for sortingKeys of public.c; changes syncInterval`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.in_words();
        if words.is_empty() { f.write_str("nothing") } else { f.write_str(&words.join("; ")) }
    }
}
