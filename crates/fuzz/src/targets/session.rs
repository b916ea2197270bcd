//! Whole replication sessions: one message after another into an applier.
//!
//! Promises: no messages make it panic; the rows that it says wait are the rows that it gives; a table that was set aside
//! stays so; the committed position never goes back.

use millrace_apply::{Applier, Step, StreamTable, TableIndex};
use millrace_mapping::{MappingOptions, plan_columns};
use millrace_model::spec::MetadataColumns;
use millrace_model::{Lsn, PgType, ReplicaIdentity, TableDefinition, Timestamp};

use super::types::{column, table};
use crate::frames::Frames;

/// Each frame is a message. The options say after how many messages what waits is taken.
pub fn run(input: &[u8]) {
    let input = Frames::parse(input);
    let tables = tables();
    let count = tables.len();
    let mut applier = Applier::new(tables, &MetadataColumns::millrace());
    let every = usize::from(input.options % 16) + 1;
    let mut aside = vec![false; count];
    for (at, message) in input.frames.iter().enumerate() {
        let committed = applier.committed();
        // Fewer positions than messages: several changes of one record share theirs.
        let step = applier.apply(Lsn(1 + at as u64 / 2), message);
        for (table, problem) in applier.take_refused() {
            assert!(!problem.to_string().is_empty());
            aside[table.0] = true;
        }
        match step {
            Ok(Step::Truncate { tables, .. }) => {
                assert!(
                    tables.iter().all(|table| !aside[table.0]),
                    "a truncate of a table that is set aside"
                );
                take(&mut applier, &mut aside);
            }
            Ok(Step::Buffered) => assert!(applier.buffered_rows() > 0 && applier.buffered_bytes() > 0),
            // What waited before goes first; the change itself is kept apart.
            Ok(Step::Apart) => {
                for (table, _) in applier.complete() {
                    aside[table.0] = true;
                }
                drop(applier.take(Timestamp(0)));
                assert_eq!(applier.incomplete_rows(), 1);
            }
            Ok(Step::SchemaChanged { table, .. }) => {
                applier.set_aside(table);
                aside[table.0] = true;
            }
            Ok(Step::Replay { commit, .. }) => applier.end_replay(&commit),
            Ok(_) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        assert!(applier.committed() >= committed, "the committed position went back");
        for (index, aside) in aside.iter().enumerate() {
            assert_eq!(applier.is_active(TableIndex(index)), !aside);
        }
        if at % every == every - 1 {
            take(&mut applier, &mut aside);
        }
    }
    take(&mut applier, &mut aside);
}

fn take(applier: &mut Applier, aside: &mut [bool]) {
    let rows = (!applier.is_incomplete()).then(|| applier.buffered_rows());
    // Nobody knows the missing values, so the rows that wait for them are left out.
    assert!(applier.sought().iter().all(|(_, sought)| sought.places.rows > 0 && !sought.columns.is_empty()));
    for (table, _) in applier.complete() {
        aside[table.0] = true;
    }
    let batch = applier.take(Timestamp(0));
    let taken = batch.blocks.iter().map(|(_, block)| block.rows).sum::<usize>();
    assert!(rows.is_none_or(|rows| rows == taken));
    assert!(batch.blocks.iter().all(|(_, block)| block.rows > 0), "an empty block");
    assert_eq!(batch.commits.is_some(), batch.changes > 0);
    assert_eq!((applier.buffered_rows(), applier.buffered_bytes()), (0, 0));
}

/// Tables as a pipe would have recorded them; their oids are 100 and on, and those of types PostgreSQL's own.
pub fn definitions() -> Vec<TableDefinition> {
    let bigint = |name: &str| column(name, PgType::Int8, 20, false);
    let text = |name: &str, nullable| column(name, PgType::Text, 25, nullable);
    let array = |element| PgType::Array(Box::new(element));
    vec![
        table(
            "keyed",
            100,
            vec![
                bigint("id"),
                text("name", true),
                column("total", PgType::Numeric(None), 1700, true),
                column("at", PgType::TimestampTz, 1184, true),
                column("tags", array(PgType::Text), 1009, true),
            ],
            &["id"],
            ReplicaIdentity::Default,
        ),
        table(
            "pairs",
            101,
            vec![bigint("a"), text("b", false), column("mood", PgType::Enum, 16_500, true)],
            &["a", "b"],
            ReplicaIdentity::Index,
        ),
        table(
            "keyless",
            102,
            vec![bigint("x"), text("large", true), column("u", PgType::Uuid, 2950, true)],
            &[],
            ReplicaIdentity::Full,
        ),
        table("log", 103, vec![column("line", PgType::Jsonb, 3802, false)], &[], ReplicaIdentity::Default),
    ]
}

fn tables() -> Vec<StreamTable> {
    let options = MappingOptions { allow_nullable_columns: true, time64: true };
    let tables = definitions().into_iter().map(|definition| StreamTable {
        columns: plan_columns(&definition, &options),
        sorting_key: if definition.oid == 101 { vec!["a".into(), "b".into()] } else { Vec::new() },
        excluded: Vec::new(),
        distrusted_until: Lsn::ZERO,
        held: Vec::new(),
        active: true,
        begins: millrace_model::Lsn::ZERO,
        definition,
    });
    tables.collect()
}
