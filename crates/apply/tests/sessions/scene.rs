//! A replication session told in a few words per message, and what the applier made of it as text.

use std::fmt::Write as _;

use millrace_apply::{Applier, ApplyError, Step, StreamTable, TableIndex};
use millrace_mapping::{MappingOptions, plan_columns};
use millrace_model::spec::MetadataColumns;
use millrace_model::{Lsn, PgType, ReplicaIdentity, SourceColumn, TableDefinition, TableName, Timestamp};
use millrace_pgoutput::encode::{RelationList, TupleBuffer, encode};
use millrace_pgoutput::{
    Begin, Body, Cell, Commit, Delete, Insert, Message, OldTuple, Relation, RelationColumn, Update,
};

use crate::native;

/// `name type`, the type one of `bigint`, `integer`, `text`; with `!` behind it where NULL cannot occur.
pub(crate) fn table(
    oid: u32,
    name: &str,
    columns: &[&str],
    key: &[&str],
    identity: ReplicaIdentity,
) -> StreamTable {
    let columns = columns.iter().zip(1..).map(|(column, attribute)| {
        let (name, type_name) = column.split_once(' ').expect("name and type");
        let plain = type_name.trim_end_matches('!');
        let (type_oid, pg_type) = match plain {
            "bigint" => (20, PgType::Int8),
            "integer" => (23, PgType::Int4),
            _ => (25, PgType::Text),
        };
        SourceColumn {
            name: name.to_owned(),
            attribute,
            type_oid,
            type_modifier: -1,
            type_name: plain.to_owned(),
            pg_type,
            nullable: plain == type_name,
            generated: false,
        }
    });
    let definition = TableDefinition {
        name: TableName::new("public", name),
        oid,
        file_node: oid,
        columns: columns.collect(),
        key: key.iter().map(|name| (*name).to_owned()).collect(),
        replica_identity: identity,
        pages: 0,
        estimated_rows: 0,
        bytes: 0,
        retired: Vec::new(),
        partitions: Vec::new(),
        distrusted_until: millrace_model::Lsn::ZERO,
        holds_from: millrace_model::Lsn::ZERO,
    };
    let options = MappingOptions { allow_nullable_columns: true, time64: true };
    StreamTable {
        columns: plan_columns(&definition, &options),
        definition,
        excluded: Vec::new(),
        sorting_key: Vec::new(),
        distrusted_until: Lsn::ZERO,
        held: Vec::new(),
        active: true,
        begins: millrace_model::Lsn::ZERO,
    }
}

/// What the source says of a table that is as it was recorded.
pub(crate) fn relation_of(table: &StreamTable) -> Relation {
    let definition = &table.definition;
    let full = definition.replica_identity == ReplicaIdentity::Full;
    let columns = definition.columns.iter().map(|column| RelationColumn {
        key: full || definition.key.contains(&column.name),
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
    });
    Relation {
        oid: definition.oid,
        schema: definition.name.schema.clone(),
        name: definition.name.name.clone(),
        replica_identity: definition.replica_identity,
        columns: columns.collect(),
    }
}

/// `1, first, NULL, ~`: text values, NULL, and `~` for one that is unchanged and not sent.
pub(crate) fn row(text: &str) -> TupleBuffer {
    let cell = |cell: &'static str| match cell {
        "NULL" => Cell::Null,
        "~" => Cell::Unchanged,
        value => Cell::Text(value.as_bytes()),
    };
    let owned: &'static str = text.to_owned().leak();
    owned.split(", ").map(cell).collect()
}

/// One session. Messages stand 16 bytes apart, the first at 0/10; transactions commit one second apart.
pub(crate) struct Scene {
    pub(crate) applier: Applier,
    pub(crate) lsn: Lsn,
    names: Vec<String>,
    commit_time: Timestamp,
    story: String,
}

impl Scene {
    pub(crate) fn new(tables: Vec<StreamTable>) -> Self {
        Self {
            names: tables.iter().map(|table| table.definition.name.name.clone()).collect(),
            applier: Applier::new(tables, &MetadataColumns::millrace()),
            lsn: Lsn(0),
            commit_time: Timestamp(0),
            story: String::new(),
        }
    }

    /// A session whose tables are all described and that has begun a transaction.
    pub(crate) fn begun(tables: Vec<StreamTable>) -> Self {
        let relations: Vec<Relation> = tables.iter().map(relation_of).collect();
        let mut scene = Self::new(tables);
        scene.begin();
        for relation in relations {
            scene.relation(relation);
        }
        scene
    }

    pub(crate) fn try_send(&mut self, body: Body<'_>) -> Result<Step, ApplyError> {
        self.lsn = Lsn(self.lsn.0 + 16);
        self.applier.apply(self.lsn, &encode(&Message::from(body)))
    }

    pub(crate) fn send(&mut self, body: Body<'_>) -> Step {
        let step = self.try_send(body).expect("the session goes on");
        let name = |table: &TableIndex| self.names[table.0].as_str();
        match &step {
            Step::Buffered | Step::Ignored | Step::Described(_) => {}
            Step::Apart => self.story.push_str("apart\n"),
            Step::SchemaChanged { table, relation } => {
                let columns: Vec<&str> = relation.columns.iter().map(|column| column.name.as_str()).collect();
                let _ = writeln!(self.story, "{} has the columns {} now", name(table), columns.join(", "));
            }
            Step::Spool { .. } | Step::Forget { .. } | Step::Replay { .. } => {
                let _ = writeln!(self.story, "{step:?}");
            }
            Step::Committed { end, commit_time } => {
                let _ = writeln!(self.story, "committed {end} at {}s", commit_time.0 / 1_000_000);
            }
            Step::Truncate { tables, lsn } => {
                let tables: Vec<&str> = tables.iter().map(name).collect();
                let _ = writeln!(self.story, "truncate {} below {lsn}", tables.join(", "));
            }
        }
        for (table, problem) in self.applier.take_refused() {
            let _ = writeln!(self.story, "set aside {}: {problem}", name(&table));
        }
        step
    }

    pub(crate) fn begin(&mut self) {
        self.commit_time = Timestamp(self.commit_time.0 + 1_000_000);
        let begin = Begin { final_lsn: Lsn::ZERO, commit_time: self.commit_time, xid: 7 };
        self.send(Body::Begin(begin));
    }

    pub(crate) fn commit(&mut self) {
        let commit_lsn = Lsn(self.lsn.0 + 16);
        let end_lsn = Lsn(commit_lsn.0 + 8);
        self.send(Body::Commit(Commit { commit_lsn, end_lsn, commit_time: self.commit_time }));
    }

    pub(crate) fn relation(&mut self, relation: Relation) -> Step {
        self.send(Body::Relation(relation))
    }

    pub(crate) fn insert(&mut self, relation: u32, new: &str) -> Step {
        self.send(Body::Insert(Insert { relation, new: row(new).as_tuple() }))
    }

    pub(crate) fn update(&mut self, relation: u32, new: &str) -> Step {
        self.send(Body::Update(Update { relation, old: None, new: row(new).as_tuple() }))
    }

    pub(crate) fn update_from_key(&mut self, relation: u32, old: &str, new: &str) -> Step {
        let (old, new) = (row(old), row(new));
        let old = Some(OldTuple::Key(old.as_tuple()));
        self.send(Body::Update(Update { relation, old, new: new.as_tuple() }))
    }

    pub(crate) fn update_from_row(&mut self, relation: u32, old: &str, new: &str) -> Step {
        let (old, new) = (row(old), row(new));
        let old = Some(OldTuple::Full(old.as_tuple()));
        self.send(Body::Update(Update { relation, old, new: new.as_tuple() }))
    }

    pub(crate) fn delete_key(&mut self, relation: u32, old: &str) -> Step {
        self.send(Body::Delete(Delete { relation, old: OldTuple::Key(row(old).as_tuple()) }))
    }

    pub(crate) fn delete_row(&mut self, relation: u32, old: &str) -> Step {
        self.send(Body::Delete(Delete { relation, old: OldTuple::Full(row(old).as_tuple()) }))
    }

    pub(crate) fn truncate(&mut self, relations: &[u32]) -> Step {
        let relations: RelationList = relations.iter().copied().collect();
        self.send(Body::Truncate(relations.truncate(false, false)))
    }

    /// Takes what waits into the story, one line a row: `version sign columns`, the sign `-` for a tombstone.
    pub(crate) fn take(&mut self) {
        let batch = self.applier.take(Timestamp(0));
        let _ = write!(self.story, "batch of {} changes, committed {}", batch.changes, batch.committed);
        match batch.commits {
            Some(times) => {
                let (oldest, newest) = (times.oldest.0 / 1_000_000, times.newest.0 / 1_000_000);
                let _ = writeln!(self.story, ", commits at {oldest}s to {newest}s");
            }
            None => self.story.push('\n'),
        }
        for (table, block) in &batch.blocks {
            let _ = writeln!(self.story, "  {}", self.names[table.0]);
            for row in native::rows(block) {
                let sign = if row.is_deleted { '-' } else { '+' };
                let values: Vec<&str> = row.values.iter().map(String::as_str).collect();
                let _ = writeln!(self.story, "    {} {sign} {}", Lsn(row.version), values.join(", "));
            }
        }
    }

    /// Everything so far, with what waits.
    pub(crate) fn story(mut self) -> String {
        self.take();
        self.story
    }
}
