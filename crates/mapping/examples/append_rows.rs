//! Measures what a typical row costs on its way from a COPY tuple into a block, in nanoseconds:
//! `cargo run --release -p millrace-mapping --example append_rows`.

use std::time::Instant;

use millrace_mapping::{BlockBuilder, MappingOptions, plan_columns};
use millrace_model::spec::MetadataColumns;
use millrace_model::{PgType, ReplicaIdentity, SourceColumn, TableDefinition, TableName, Timestamp};

const TUPLES: usize = 100_000;
const ROUNDS: usize = 30;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let types = [
        PgType::Int8,
        PgType::Int4,
        PgType::TimestampTz,
        PgType::Text,
        PgType::Numeric(Some((12, 2))),
        PgType::Jsonb,
        PgType::Bool,
    ];
    let tuples: Vec<Vec<u8>> = (0..TUPLES as u64).map(tuple).collect();
    let bytes: usize = tuples.iter().map(Vec::len).sum();
    for nullable in [false, true] {
        let plan = plan_columns(
            &table(&types, nullable),
            &MappingOptions { allow_nullable_columns: true, time64: true },
        );
        let mut block = BlockBuilder::new(&plan, &MetadataColumns::millrace());
        let mut costs = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for tuple in &tuples {
                block.append_copy_tuple(tuple)?;
            }
            let encoded = block.finish(Timestamp(0));
            let nanos = start.elapsed().as_nanos() as f64 / TUPLES as f64;
            assert_eq!(encoded.rows, TUPLES);
            costs.push(nanos);
        }
        let form = if nullable { "nullable" } else { "not null" };
        costs.sort_by(f64::total_cmp);
        let (best, median, worst) = (costs[0], costs[ROUNDS / 2], costs[ROUNDS - 1]);
        let size = bytes / TUPLES;
        println!("{form}: {median:.0} ns ({best:.0} to {worst:.0}) a row of {size} bytes and 7 columns");
    }
    Ok(())
}

fn table(types: &[PgType], nullable: bool) -> TableDefinition {
    let columns = types.iter().enumerate().map(|(at, pg_type)| SourceColumn {
        name: format!("c{at}"),
        attribute: at as i16 + 1,
        type_oid: 0,
        type_modifier: -1,
        type_name: String::new(),
        pg_type: pg_type.clone(),
        nullable,
        generated: false,
    });
    TableDefinition {
        name: TableName::new("public", "rows"),
        oid: 1,
        file_node: 1,
        columns: columns.collect(),
        key: vec!["c0".to_owned()],
        replica_identity: ReplicaIdentity::Default,
        pages: 1,
        estimated_rows: 1,
        bytes: 8192,
        retired: Vec::new(),
        partitions: Vec::new(),
        distrusted_until: millrace_model::Lsn::ZERO,
        holds_from: millrace_model::Lsn::ZERO,
    }
}

fn tuple(row: u64) -> Vec<u8> {
    let cents = row * 7919 % 100_000_000;
    let mut numeric = Vec::new();
    for part in [3, 1, 0, 2, cents / 1_000_000, cents / 100 % 10_000, cents % 100 * 100] {
        numeric.extend((part as u16).to_be_bytes());
    }
    let json = format!("\u{1}{{\"k\": {}, \"tag\": \"t{}\"}}", row % 1000, row % 17);
    let text = format!("customer number {row} of the shop");
    let fields: [&[u8]; 7] = [
        &row.to_be_bytes(),
        &(row as u32 % 10_000).to_be_bytes(),
        &(700_000_000_000_000 + row * 1_000_003).to_be_bytes(),
        text.as_bytes(),
        &numeric,
        json.as_bytes(),
        &[u8::from(row.is_multiple_of(3))],
    ];
    let mut tuple = 7u16.to_be_bytes().to_vec();
    for field in fields {
        tuple.extend((field.len() as u32).to_be_bytes());
        tuple.extend(field);
    }
    tuple
}
