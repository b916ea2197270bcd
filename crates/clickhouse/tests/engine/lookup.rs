//! Looking for rows by their keys.

use millrace_clickhouse::{Keys, TargetTable};
use millrace_mapping::ChType;

use crate::support::{Engine, block, notes, owner};

#[tokio::test]
async fn a_row_whose_key_holds_null_is_found_by_it() {
    let engine = Engine::start().await;
    for (destination, name) in [(engine.destination("nulls"), "nulls"), (engine.sharded("spread"), "spread")]
    {
        let target = TargetTable {
            sorting_key: vec!["note".to_owned(), "id".to_owned()],
            ..notes(destination.table("notes"))
        };
        destination.ensure_table(&target, &owner()).await.unwrap();
        let rows = block(
            &target,
            &[
                (&[Some("1"), None], 1, false),
                (&[Some("1"), None], 3, false),
                (&[Some("1"), Some("")], 5, false),
                (&[Some("2"), Some("x")], 7, true),
            ],
        );
        destination.insert(&target.table, &rows, "token").await.unwrap();
        destination.wait_for_inserts(&target.table).await.unwrap();
        let keys = block(
            &target,
            &[
                (&[Some("1"), None], 0, false),
                (&[Some("2"), None], 1, false),
                (&[Some("2"), Some("x")], 2, false),
            ],
        );
        let sought = Keys { block: &keys, columns: &target.sorting_key };
        let id = ChType::Int64;
        let found =
            destination.current_rows(&target, sought, &[("id", &id)], 1 << 20).await.unwrap().unwrap();
        let mut found: Vec<_> = found.iter().map(|row| (row.ordinal, row.version, row.is_deleted)).collect();
        found.sort_unstable();
        assert_eq!(found, [(0, 3, false), (2, 7, true)], "{name}");
    }
}
