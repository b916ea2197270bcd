//! What an event costs between the socket and the block: `cargo run --release -p millrace-apply --example apply_cost`.
//!
//! A table of 7 columns and about 120 bytes a row; whole transactions of 1,000 changes; a batch every 100,000 rows.
//! Prints nanoseconds an event: decoding alone, and decoding with applying and taking.

use std::hint::black_box;
use std::time::Instant;

use millrace_apply::{Applier, Step, StreamTable};
use millrace_mapping::{MappingOptions, plan_columns};
use millrace_model::spec::MetadataColumns;
use millrace_model::{Lsn, PgType, ReplicaIdentity, SourceColumn, TableDefinition, TableName, Timestamp};
use millrace_pgoutput::encode::{TupleBuffer, encode};
use millrace_pgoutput::{
    Begin, Body, Cell, Commit, Context, Insert, OldTuple, Relation, RelationColumn, Update, decode,
};

const OID: u32 = 16_384;
const TRANSACTION: usize = 1_000;
const TRANSACTIONS: usize = 1_000;
const BATCH: usize = 100_000;

fn main() {
    for (form, row) in [("binary", binary_row as fn(i64) -> TupleBuffer), ("text", text_row)] {
        let new: Vec<TupleBuffer> = (0..TRANSACTION as i64).map(row).collect();
        let bytes: usize = new.iter().map(|row| encode(&insert(row).into()).len()).sum();
        println!("{form}: {} bytes a message", bytes / new.len());
        let inserts: Vec<Vec<u8>> = new.iter().map(|row| encode(&insert(row).into())).collect();
        let updates: Vec<Vec<u8>> = new.iter().map(|row| encode(&update(row, row).into())).collect();
        for (kind, messages) in [("insert", &inserts), ("update with old row", &updates)] {
            let runs: Vec<(u128, u128)> = (0..5).map(|_| (decoding(messages), applying(messages))).collect();
            let (decode, apply) = (runs.iter().map(|run| run.0).min(), runs.iter().map(|run| run.1).min());
            println!("  {kind}: decode {} ns, all {} ns", decode.unwrap_or(0), apply.unwrap_or(0));
        }
    }
}

fn decoding(messages: &[Vec<u8>]) -> u128 {
    let start = Instant::now();
    for _ in 0..TRANSACTIONS {
        for message in messages {
            black_box(decode(message, &Context::COMMITTED).expect("a message"));
        }
    }
    start.elapsed().as_nanos() / (TRANSACTIONS * messages.len()) as u128
}

fn applying(messages: &[Vec<u8>]) -> u128 {
    let table = table();
    let begin = Begin { final_lsn: Lsn(1), commit_time: Timestamp(0), xid: 1 };
    let begin = encode(&Body::Begin(begin).into());
    let commit = Commit { commit_lsn: Lsn(1), end_lsn: Lsn(2), commit_time: Timestamp(0) };
    let commit = encode(&Body::Commit(commit).into());
    let relation = encode(&Body::Relation(relation(&table)).into());
    let mut applier = Applier::new(vec![table], &MetadataColumns::millrace());
    applier.apply(Lsn(0), &relation).expect("a relation");

    let start = Instant::now();
    let mut lsn = 0;
    for _ in 0..TRANSACTIONS {
        applier.apply(Lsn(lsn), &begin).expect("a begin");
        for message in messages {
            lsn += 200;
            assert_eq!(applier.apply(Lsn(lsn), message), Ok(Step::Buffered));
            if applier.buffered_rows() >= BATCH || applier.buffered_bytes() > 64 << 20 {
                black_box(applier.take(Timestamp(0)));
            }
        }
        applier.apply(Lsn(lsn), &commit).expect("a commit");
    }
    black_box(applier.take(Timestamp(0)));
    start.elapsed().as_nanos() / (TRANSACTIONS * messages.len()) as u128
}

fn insert(new: &TupleBuffer) -> Body<'_> {
    Body::Insert(Insert { relation: OID, new: new.as_tuple() })
}

fn update<'a>(old: &'a TupleBuffer, new: &'a TupleBuffer) -> Body<'a> {
    let old = Some(OldTuple::Full(old.as_tuple()));
    Body::Update(Update { relation: OID, old, new: new.as_tuple() })
}

fn binary_row(id: i64) -> TupleBuffer {
    let amount = [0, 2, 0, 0, 0, 0, 0, 2, 0x04, 0xd2, 0x15, 0xe0];
    let cells = [
        Cell::Binary(&(id * 7_919).to_be_bytes()),
        Cell::Binary(&(id as i32).to_be_bytes()),
        Cell::Binary(&(id * 1_000_003).to_be_bytes()),
        Cell::Binary(b"a customer's note of some thirty bytes"),
        Cell::Binary(&amount),
        Cell::Binary(b"\x01{\"size\": 3, \"colour\": \"red\"}"),
        Cell::Binary(&[1]),
    ];
    cells.into_iter().collect()
}

fn text_row(id: i64) -> TupleBuffer {
    let (key, number) = ((id * 7_919).to_string(), id.to_string());
    let cells = [
        Cell::Text(key.as_bytes()),
        Cell::Text(number.as_bytes()),
        Cell::Text(b"2024-05-06 07:08:09.123456+00"),
        Cell::Text(b"a customer's note of some thirty bytes"),
        Cell::Text(b"1234.56"),
        Cell::Text(b"{\"size\": 3, \"colour\": \"red\"}"),
        Cell::Text(b"t"),
    ];
    cells.into_iter().collect()
}

fn table() -> StreamTable {
    let columns = [
        ("id", 20, PgType::Int8, -1),
        ("number", 23, PgType::Int4, -1),
        ("at", 1184, PgType::TimestampTz, -1),
        ("note", 25, PgType::Text, -1),
        ("amount", 1700, PgType::Numeric(Some((12, 2))), 786_438),
        ("detail", 3802, PgType::Jsonb, -1),
        ("open", 16, PgType::Bool, -1),
    ];
    let column = |((name, type_oid, pg_type, type_modifier), attribute): ((&str, u32, PgType, i32), i16)| {
        let type_name = format!("{pg_type:?}");
        SourceColumn {
            name: name.to_owned(),
            attribute,
            type_oid,
            type_modifier,
            type_name,
            pg_type,
            nullable: name != "id",
            generated: false,
        }
    };
    let definition = TableDefinition {
        name: TableName::new("public", "orders"),
        oid: OID,
        file_node: OID,
        columns: columns.into_iter().zip(1..).map(column).collect(),
        key: vec!["id".to_owned()],
        replica_identity: ReplicaIdentity::Full,
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

fn relation(table: &StreamTable) -> Relation {
    let definition = &table.definition;
    let columns = definition.columns.iter().map(|column| RelationColumn {
        key: true,
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
