//! Tables come and go while the pipe runs.

use crate::load::{Churn, sample_tables};
use crate::stack::Stack;

const SETTINGS: &str =
    "settings: {snapshotNumRowsPerPartition: 5000, snapshotNumberOfParallelTables: 2, syncInterval: 200ms}";

/// `orders` and `items` stream; `nothing` and `more` are there at the source.
async fn streaming() -> Stack {
    let stack = Stack::start().await;
    let source = stack.source().await;
    sample_tables(&source, 20_000).await;
    source
        .batch_execute(
            "CREATE TABLE more (id bigint PRIMARY KEY, note text);
             INSERT INTO more SELECT n, repeat('m', 60) || n FROM generate_series(1, 60000) n; ANALYZE more;",
        )
        .await
        .unwrap();
    stack.apply(&stack.write_pipe_of("shop", &["orders", "items"], SETTINGS)).await;
    stack.wait_for("shop", "Running").await;
    stack
}

async fn published(stack: &Stack) -> Vec<String> {
    let sql = "SELECT tablename::text FROM pg_publication_tables ORDER BY 1";
    stack.source().await.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Changes of `more`, for as long as the future runs.
async fn changes_of_more(stack: &Stack) -> tokio::task::JoinHandle<()> {
    let client = stack.source().await;
    tokio::spawn(async move {
        for round in 0_i64.. {
            let at = round * 37 % 60_000;
            let statements = format!(
                "UPDATE more SET note = 'changed {round}' WHERE id BETWEEN {at} AND {at} + 10; \
                 DELETE FROM more WHERE id BETWEEN {at} + 20 AND {at} + 22; \
                 UPDATE more SET id = -id WHERE id = {at} + 30; \
                 INSERT INTO more VALUES ({round} + 100000, 'new')"
            );
            if client.batch_execute(&statements).await.is_err() {
                return;
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_added_while_the_others_stream_and_taken_out_again() {
    let stack = streaming().await;
    let churn = Churn::start(&stack, 20_000).await;
    let more = changes_of_more(&stack).await;
    let said = stack.write_pipe_of("shop", &["orders", "items", "more", "nothing"], SETTINGS);
    let said = stack.ok(&["pipe", "apply", "-f", said.to_str().unwrap()]).await;
    assert!(said.contains("adds public.more, public.nothing"), "{said}");
    stack.wait_for("shop", "Running").await;
    more.abort();
    churn.stop().await;
    stack.caught_up("shop").await;
    stack.assert_equal("orders", &["id"]).await;
    stack.assert_equal("items", &["order_id", "line"]).await;
    stack.assert_equal("more", &["id"]).await;
    stack.assert_equal("nothing", &["id"]).await;
    assert_eq!(published(&stack).await, ["items", "more", "nothing", "orders"]);
    assert_eq!(
        stack.states("shop").await,
        ["PROVISIONING", "SETUP", "SNAPSHOT", "RUNNING", "SNAPSHOT", "RUNNING"]
    );

    let source = stack.source().await;
    stack.apply(&stack.write_pipe_of("shop", &["orders", "nothing"], SETTINGS)).await;
    stack.wait_for("shop", "Running").await;
    assert_eq!(published(&stack).await, ["nothing", "orders"]);
    assert_eq!(stack.states("shop").await[6..], ["MODIFYING", "RUNNING"]);
    let before = stack.compare("more", &["id"], &[]).await;
    assert!(before.is_empty(), "the table that was taken out stays as it was: {before}");
    source.batch_execute("UPDATE orders SET note = 'after'; UPDATE more SET note = 'after'").await.unwrap();
    stack.caught_up("shop").await;
    stack.assert_equal("orders", &["id"]).await;
    assert!(!stack.compare("more", &["id"], &[]).await.is_empty(), "nobody carries it any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_addition_that_is_stuck_can_be_cancelled_and_what_is_paused_goes_on_with_it() {
    let stack = streaming().await;
    // Whoever makes a slot waits for the end of this transaction.
    let holder = stack.source().await;
    holder.batch_execute("BEGIN; UPDATE nothing SET name = name; SELECT pg_current_xact_id()").await.unwrap();
    stack.apply(&stack.write_pipe_of("shop", &["orders", "items", "more"], SETTINGS)).await;
    stack
        .wait("the addition to wait for its snapshot", async || {
            let shown = stack.get("shop").await;
            let works = shown["status"]["assignments"].as_array().cloned().unwrap_or_default();
            works.iter().any(|work| work["work"] == "snapshot")
        })
        .await;
    let source = stack.source().await;
    source.batch_execute("UPDATE orders SET note = 'meanwhile' WHERE id < 100").await.unwrap();
    stack.caught_up("shop").await;
    stack.assert_equal("orders", &["id"]).await;
    assert_eq!(stack.get("shop").await["status"]["state"], "PIPE_STATE_SNAPSHOT");

    stack.apply(&stack.write_pipe_of("shop", &["orders", "items"], SETTINGS)).await;
    stack.wait_for("shop", "Running").await;
    assert_eq!(published(&stack).await, ["items", "orders"]);
    holder.batch_execute("COMMIT").await.unwrap();

    // Added while it rests, a table is copied when it goes on.
    stack.ok(&["pipe", "pause", "shop"]).await;
    stack.wait_for("shop", "Paused").await;
    stack.apply(&stack.write_pipe_of("shop", &["orders", "items", "nothing"], SETTINGS)).await;
    source.batch_execute("INSERT INTO nothing VALUES (1, 'one')").await.unwrap();
    assert_eq!(stack.get("shop").await["status"]["state"], "PIPE_STATE_PAUSED");
    stack.ok(&["pipe", "resume", "shop"]).await;
    stack.wait_for("shop", "Running").await;
    stack.caught_up("shop").await;
    stack.assert_equal("nothing", &["id"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_truncated_while_it_is_added_is_copied_anew() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    stack.start_worker_with("one", &["--max-tasks", "1"]).await;
    let source = stack.source().await;
    sample_tables(&source, 2_000).await;
    source
        .batch_execute(
            "CREATE TABLE more (id bigint PRIMARY KEY, note text);
             INSERT INTO more SELECT n, repeat('m', 200) || n FROM generate_series(1, 200000) n; ANALYZE more;",
        )
        .await
        .unwrap();
    let settings =
        "settings: {snapshotNumRowsPerPartition: 1000, initialLoadParallelism: 1, syncInterval: 200ms}";
    stack.apply(&stack.write_pipe_of("shop", &["orders"], settings)).await;
    stack.wait_for("shop", "Running").await;
    stack.apply(&stack.write_pipe_of("shop", &["orders", "more"], settings)).await;
    stack
        .wait("some of it to be copied", async || {
            stack.get("shop").await["tables"][1]["partitionsDone"].as_u64().unwrap_or(0) >= 2
        })
        .await;
    source.batch_execute("TRUNCATE more; INSERT INTO more VALUES (7, 'after')").await.unwrap();
    stack
        .wait("the table to stream", async || {
            let table = stack.get("shop").await["tables"][1].clone();
            table["state"] == "TABLE_STATE_STREAMING" && table["successor"].is_null()
        })
        .await;
    stack.wait_for("shop", "Running").await;
    stack.caught_up("shop").await;
    stack.assert_equal("more", &["id"]).await;
}
