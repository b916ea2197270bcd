//! The oldest and the newest PostgreSQL that are supported, by a chosen part of what runs on the one in between.

use crate::load::{Churn, SETTINGS, TABLES, assert_all_equal, sample_tables};
use crate::stack::Stack;

const FURTHER: &str = "
    CREATE EXTENSION hstore;
    CREATE TABLE parts (id int PRIMARY KEY, a int NOT NULL, small int, note text, pairs hstore, price numeric(10, 2)); ALTER TABLE parts ALTER note SET STORAGE EXTERNAL;
    INSERT INTO parts SELECT n, n, 0, repeat('n', 3000), hstore('n', n::text), n FROM generate_series(1, 100) n;
    CREATE TABLE split (id int PRIMARY KEY, x int) PARTITION BY RANGE (id); CREATE TABLE split_low PARTITION OF split FOR VALUES FROM (0) TO (100);
    CREATE TABLE split_rest (x int, id int NOT NULL); ALTER TABLE split ATTACH PARTITION split_rest DEFAULT; INSERT INTO split SELECT n, n FROM generate_series(1, 200) n;";

async fn is_followed(major: u16) {
    let mut stack = Stack::servers_with_postgres(major).await;
    stack.start_coordinator(&[]).await;
    stack.start_worker("one").await;
    let source = stack.source().await;
    sample_tables(&source, 12_000).await;
    let churn = Churn::start(&stack, 12_000).await;
    stack.apply(&stack.write_pipe_of("shop", &TABLES, SETTINGS)).await;
    stack.wait_for("shop", "Running").await;
    churn.stop().await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;

    for sql in ["ALTER SYSTEM SET logical_decoding_work_mem = '64kB'", "SELECT pg_reload_conf()", FURTHER] {
        source.batch_execute(sql).await.unwrap();
    }
    let further = stack.write_pipe_of("further", &["parts", "split"], "");
    if major < 15 {
        let refused = stack.fails(&["pipe", "apply", "-f", further.to_str().unwrap()]).await;
        assert!(
            refused.contains("SOURCE_PARTITION_LAYOUT") && refused.contains("public.split_rest"),
            "{refused}"
        );
        let in_order = "DROP TABLE split_rest; CREATE TABLE split_rest PARTITION OF split DEFAULT; INSERT INTO split SELECT n, n FROM generate_series(100, 200) n";
        source.batch_execute(in_order).await.unwrap();
    }
    stack.apply(&further).await;
    stack.wait_for("further", "Running").await;
    let equal = async |stack: &Stack| {
        stack.caught_up("further").await;
        stack.assert_equal("parts", &["id"]).await;
        stack.assert_equal("split", &["id"]).await;
        let shown = stack.get("further").await;
        assert_eq!(shown["status"]["tablesSetAside"], 0, "{shown}");
    };
    // Long values that updates leave out: from the copy, from an earlier batch, from the same one, and with another key.
    source
        .batch_execute(
            "UPDATE parts SET small = 1 WHERE id <= 50; UPDATE parts SET small = 2 WHERE id <= 10; UPDATE parts SET id = id + 1000 WHERE id > 90;
             BEGIN; INSERT INTO parts SELECT n, 1, 1, repeat('m', 3000) FROM generate_series(201, 210) n; UPDATE parts SET small = 3 WHERE id > 200; COMMIT;
             UPDATE split SET id = id + 1000 WHERE id BETWEEN 90 AND 99; UPDATE split SET x = -1 WHERE id % 3 = 0; DELETE FROM split WHERE id = 7;",
        )
        .await
        .unwrap();
    equal(&stack).await;
    // Transactions in progress, one of them prepared, with subtransactions that are void, and columns that change in their midst.
    let other = stack.source().await;
    other
        .batch_execute(
            "BEGIN; INSERT INTO parts SELECT n, 0, 0, 'a' FROM generate_series(10001, 14000) n; SAVEPOINT s;
             INSERT INTO parts SELECT n, 0, 0, 'void' FROM generate_series(20001, 24000) n; UPDATE parts SET small = -1; ROLLBACK TO s; UPDATE parts SET small = 4 WHERE id = 20;
             PREPARE TRANSACTION 'p'",
        )
        .await
        .unwrap();
    source.batch_execute("INSERT INTO parts VALUES (300, 1, 1, 'overtakes')").await.unwrap();
    let streamed = "SELECT coalesce(sum(stream_txns), 0)::bigint FROM pg_stat_replication_slots";
    stack
        .wait("the source to send what is in progress", async || {
            source.query_one(streamed, &[]).await.unwrap().get::<_, i64>(0) > 0
        })
        .await;
    stack.caught_up("further").await;
    let seen = "SELECT count() FROM mirror.parts FINAL WHERE id > 10000";
    assert_eq!(stack.destination().query(seen).fetch_one::<u64>().await.unwrap(), 0);
    other.batch_execute("COMMIT PREPARED 'p'").await.unwrap();
    equal(&stack).await;
    source
        .batch_execute(
            "BEGIN; INSERT INTO parts SELECT n, 0, 0, 'b' FROM generate_series(30001, 34000) n; ALTER TABLE parts ADD COLUMN b int NOT NULL DEFAULT 5, ADD COLUMN tags text[] DEFAULT '{}';
             INSERT INTO parts SELECT n, 0, 0, 'c', NULL, 1, n FROM generate_series(40001, 44000) n; COMMIT;",
        )
        .await
        .unwrap();
    equal(&stack).await;
    source
        .batch_execute(
            "ALTER TABLE parts RENAME COLUMN note TO text; ALTER TABLE split ADD COLUMN y text NOT NULL DEFAULT 'y'; UPDATE parts SET text = 'new' WHERE id < 5; UPDATE split SET y = 'z' WHERE id > 150;",
        )
        .await
        .unwrap();
    equal(&stack).await;
    source
        .batch_execute(
            "ALTER TABLE parts ALTER a TYPE bigint, ALTER price TYPE numeric(14, 4); INSERT INTO parts (id, a, price) VALUES (50001, 5000000000, 0.0001); UPDATE parts SET small = 5 WHERE id < 30;",
        )
        .await
        .unwrap();
    equal(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_14_is_loaded_and_followed() {
    is_followed(14).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_18_is_loaded_and_followed() {
    is_followed(18).await;
}
