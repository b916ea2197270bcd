//! Large transactions, which the source sends while they are still being written.

use crate::stack::Stack;

const TABLES: &str = "CREATE TABLE parts (id int PRIMARY KEY, x int, note text); ALTER TABLE parts ALTER note SET STORAGE EXTERNAL;
    INSERT INTO parts SELECT n, n, repeat('n', 3000) FROM generate_series(1, 50) n;";

/// A pipe whose source sends transactions in blocks as soon as they are larger than 64 kB.
async fn streaming() -> Stack {
    let stack = Stack::start().await;
    let source = stack.source().await;
    for sql in ["ALTER SYSTEM SET logical_decoding_work_mem = '64kB'", "SELECT pg_reload_conf()"] {
        source.batch_execute(sql).await.unwrap();
    }
    source.batch_execute(TABLES).await.unwrap();
    stack.apply(&stack.write_pipe_of("large", &["parts"], "settings: {pullBatchSize: 1000}")).await;
    stack.wait_for("large", "Running").await;
    stack.caught_up("large").await;
    stack
}

async fn streamed_in_blocks(stack: &Stack) -> i64 {
    let sql = "SELECT coalesce(sum(stream_count), 0)::bigint FROM pg_stat_replication_slots";
    stack.source().await.query_one(sql, &[]).await.unwrap().get(0)
}

async fn arrived(stack: &Stack) -> u64 {
    stack
        .destination()
        .query("SELECT count() FROM mirror.parts FINAL WHERE id > 1000")
        .fetch_one()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_seen_before_the_commit_and_all_of_it_after() {
    let mut stack = streaming().await;
    let (first, second, third) = (stack.source().await, stack.source().await, stack.source().await);
    first
        .batch_execute(
            "BEGIN; INSERT INTO parts SELECT n, 0, 'a' FROM generate_series(1001, 6000) n;
             SAVEPOINT s; INSERT INTO parts SELECT n, 0, 'b' FROM generate_series(6001, 9000) n; UPDATE parts SET x = -1 WHERE id < 10; ROLLBACK TO s;
             UPDATE parts SET x = 7 WHERE id <= 20; UPDATE parts SET id = id + 100 WHERE id > 45 AND id <= 50;
             SAVEPOINT t; INSERT INTO parts SELECT n, 0, 'c' FROM generate_series(9001, 12000) n; RELEASE t;",
        )
        .await
        .unwrap();
    second
        .batch_execute("BEGIN; INSERT INTO parts SELECT n, 0, 'd' FROM generate_series(20001, 24000) n")
        .await
        .unwrap();
    third.batch_execute("BEGIN; INSERT INTO parts SELECT n, 0, 'e' FROM generate_series(30001, 34000) n; UPDATE parts SET x = 8 WHERE id = 30").await.unwrap();
    stack
        .wait("the source to send what is in progress", async || streamed_in_blocks(&stack).await > 10)
        .await;
    // What commits meanwhile overtakes.
    stack.source().await.batch_execute("INSERT INTO parts VALUES (500, 1, 'small')").await.unwrap();
    stack.caught_up("large").await;
    assert_eq!(arrived(&stack).await, 0, "nothing of a transaction in progress may be seen");
    second.batch_execute("ROLLBACK").await.unwrap();
    third.batch_execute("COMMIT").await.unwrap();
    stack.caught_up("large").await;
    assert_eq!(arrived(&stack).await, 4000);
    // Whoever has kept the first transaction dies; the source sends it again.
    for worker in &mut stack.fleet.workers {
        worker.kill().await;
        worker.start_again().await;
    }
    first.batch_execute("DELETE FROM parts WHERE id = 1001; COMMIT").await.unwrap();
    stack.caught_up("large").await;
    stack.assert_equal("parts", &["id"]).await;
    assert_eq!(arrived(&stack).await, 4000 + 8000 - 1);
    assert_eq!(stack.get("large").await["status"]["tablesSetAside"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_may_change_in_the_middle_of_a_transaction_in_progress() {
    let stack = streaming().await;
    let source = stack.source().await;
    source
        .batch_execute(
            "BEGIN; INSERT INTO parts SELECT n, 0, 'a' FROM generate_series(1001, 4000) n;
             SAVEPOINT s; ALTER TABLE parts ADD COLUMN gone int DEFAULT 3; INSERT INTO parts SELECT n, 0, 'b', 1 FROM generate_series(4001, 7000) n; ROLLBACK TO s;
             INSERT INTO parts SELECT n, 0, 'c' FROM generate_series(7001, 9000) n;
             ALTER TABLE parts ADD COLUMN stays int DEFAULT 4; INSERT INTO parts SELECT n, 0, 'd', n FROM generate_series(9001, 12000) n;
             TRUNCATE parts; INSERT INTO parts SELECT n, 0, 'e', n FROM generate_series(13001, 15000) n; COMMIT;",
        )
        .await
        .unwrap();
    stack.caught_up("large").await;
    assert!(streamed_in_blocks(&stack).await > 0);
    stack.assert_equal("parts", &["id"]).await;
    assert_eq!(arrived(&stack).await, 2000);
    let shown = stack.get("large").await;
    assert_eq!(shown["status"]["tablesSetAside"], 0, "{shown}");
}
