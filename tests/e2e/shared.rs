//! Several sources in one destination table, such as shards.

use crate::stack::Stack;

const SETTINGS: &str = "settings: {syncInterval: 100ms, snapshotNumRowsPerPartition: 1000}";

fn tables(shards: &[&str]) -> String {
    let shard = |name: &&str| format!("  - {{source: public.{name}, target: events}}");
    shards.iter().map(shard).collect::<Vec<_>>().join("\n")
}

/// Both sides as numbers of rows and sum of a column.
async fn same(stack: &Stack, shards: &[&str]) {
    let source = stack.source().await;
    let all: Vec<String> = shards.iter().map(|name| format!("SELECT id, n FROM {name}")).collect();
    let sql = format!(
        "SELECT count(*), coalesce(sum(id * 31 + n), 0)::bigint FROM ({}) AS x",
        all.join(" UNION ALL ")
    );
    let row = source.query_one(&sql, &[]).await.unwrap();
    let expected: (i64, i64) = (row.get(0), row.get(1));
    stack
        .wait("both sides to be the same", async || {
            let sql = "SELECT toInt64(count()), toInt64(sum(id * 31 + n)) FROM mirror.events FINAL WHERE _millrace_is_deleted = 0";
            stack.destination().query(sql).fetch_one::<(i64, i64)>().await.is_ok_and(|found| found == expected)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_feed_one_table_and_are_resynced_together_and_taken_out_alone() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    for (number, shard) in ["shard_a", "shard_b", "shard_c"].into_iter().enumerate() {
        let first = number * 100_000 + 1;
        source
            .batch_execute(&format!(
                "CREATE TABLE {shard} (id int PRIMARY KEY, n int NOT NULL);
                 INSERT INTO {shard} SELECT n, n % 7 FROM generate_series({first}, {first} + 4999) n;"
            ))
            .await
            .unwrap();
    }
    let other = "  - {source: public.shard_a, target: events}\n  - {source: public.shard_b, target: events, tableEngine: MergeTree}";
    let refused = stack.write_pipe("wrong", other, SETTINGS);
    let refused = stack.fails(&["pipe", "apply", "-f", refused.to_str().unwrap()]).await;
    assert!(refused.contains("must be the same for both"), "{refused}");

    stack.apply(&stack.write_pipe("shards", &tables(&["shard_a", "shard_b"]), SETTINGS)).await;
    stack.wait_for("shards", "Running").await;
    same(&stack, &["shard_a", "shard_b"]).await;
    // One more, while the others stream.
    stack.apply(&stack.write_pipe("shards", &tables(&["shard_a", "shard_b", "shard_c"]), SETTINGS)).await;
    source.batch_execute("UPDATE shard_a SET n = n + 1; DELETE FROM shard_b WHERE id % 10 = 0; UPDATE shard_c SET n = 5 WHERE id % 3 = 0").await.unwrap();
    stack.wait_for("shards", "Running").await;
    same(&stack, &["shard_a", "shard_b", "shard_c"]).await;

    stack.ok(&["pipe", "resync", "shards", "--table", "public.shard_b"]).await;
    source
        .batch_execute("UPDATE shard_a SET n = n + 1 WHERE id % 2 = 0; UPDATE shard_b SET n = n + 2")
        .await
        .unwrap();
    stack
        .wait("the new table to be in its place", async || {
            let shown = stack.get("shards").await;
            let tables = shown["tables"].as_array().cloned().unwrap_or_default();
            tables.len() == 3
                && tables
                    .iter()
                    .all(|table| table["state"] == "TABLE_STATE_STREAMING" && table["successor"].is_null())
        })
        .await;
    same(&stack, &["shard_a", "shard_b", "shard_c"]).await;

    // A truncation of one must not empty the others.
    source.batch_execute("TRUNCATE shard_c").await.unwrap();
    stack
        .wait("the truncated one to be set aside", async || {
            stack.get("shards").await["tables"][2]["problem"]["code"] == "TRUNCATE_OF_SHARED_TARGET"
        })
        .await;
    source.batch_execute("UPDATE shard_a SET n = 0 WHERE id < 100").await.unwrap();
    stack.ok(&["pipe", "retry", "shards", "--table", "public.shard_c"]).await;
    same(&stack, &["shard_a", "shard_b", "shard_c"]).await;

    stack.apply(&stack.write_pipe("shards", &tables(&["shard_a", "shard_c"]), SETTINGS)).await;
    stack.wait_for("shards", "Running").await;
    source.batch_execute("UPDATE shard_b SET n = 99; INSERT INTO shard_a VALUES (50000, 1)").await.unwrap();
    stack.caught_up("shards").await;
    let kept = "SELECT count() FROM mirror.events FINAL WHERE id BETWEEN 100001 AND 200000 AND n <> 99";
    assert_eq!(
        stack.destination().query(kept).fetch_one::<u64>().await.unwrap(),
        4_500,
        "its rows stay as they were"
    );
}
