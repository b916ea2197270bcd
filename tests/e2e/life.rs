//! Streaming, pausing, resuming, deleting.

use crate::load::{Churn, SETTINGS, TABLES, assert_all_equal, sample_tables};
use crate::stack::{Stack, signal};

pub(crate) async fn running(rows: u32) -> Stack {
    let stack = Stack::start().await;
    sample_tables(&stack.source().await, rows).await;
    stack.apply(&stack.write_pipe_of("shop", &TABLES, SETTINGS)).await;
    stack.wait_for("shop", "Running").await;
    stack
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_arrives() {
    let stack = running(2000).await;
    let source = stack.source().await;
    let statements = [
        "INSERT INTO nothing VALUES (1, 'a'), (2, NULL), (3, 'c')",
        "UPDATE nothing SET name = 'b' WHERE id = 2",
        "UPDATE orders SET id = id + 1000000 WHERE id <= 10",
        "DELETE FROM items WHERE order_id % 3 = 0",
        // One key deleted and inserted again, and changed several times, in one transaction.
        "BEGIN; DELETE FROM nothing WHERE id = 1; INSERT INTO nothing VALUES (1, 'again'); \
         UPDATE nothing SET name = 'once more' WHERE id = 1; COMMIT",
        // Keys swapped between two rows by way of a third.
        "BEGIN; UPDATE nothing SET id = -1 WHERE id = 2; UPDATE nothing SET id = 2 WHERE id = 3; \
         UPDATE nothing SET id = 3 WHERE id = -1; COMMIT",
        "BEGIN; INSERT INTO nothing VALUES (50, 'no'); ROLLBACK",
        "BEGIN; INSERT INTO nothing VALUES (60, 'yes'); SAVEPOINT s; INSERT INTO nothing VALUES (61, 'no'); \
         ROLLBACK TO s; COMMIT",
    ];
    for statement in statements {
        source.batch_execute(statement).await.unwrap();
    }
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;

    source.batch_execute("BEGIN; INSERT INTO items VALUES (1, 99, 'before'); TRUNCATE items, nothing; INSERT INTO items VALUES (7, 7, 'after'); COMMIT").await.unwrap();
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    assert_eq!(stack.compare("items", &["order_id", "line"], &[]).await.destination_rows, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_under_load_makes_everything_durable_and_a_resume_loses_nothing() {
    let stack = running(20_000).await;
    let source = stack.source().await;
    let churn = Churn::start(&stack, 20_000).await;
    stack.ok(&["pipe", "pause", "shop"]).await;
    stack.wait_for("shop", "Paused").await;
    let slot = "SELECT active, (confirmed_flush_lsn - '0/0'::pg_lsn)::text FROM pg_replication_slots";
    let row = source.query_one(slot, &[]).await.unwrap();
    assert!(!row.get::<_, bool>(0), "the slot is still read");
    let confirmed: u64 = row.get::<_, String>(1).parse().unwrap();
    let shown = stack.get("shop").await;
    let durable = shown["status"]["stream"]["durableLsn"].as_str().unwrap().to_owned();
    let (high, low) = durable.split_once('/').unwrap();
    let durable = u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap();
    assert_eq!(confirmed, durable, "what the slot may forget is what is in ClickHouse");

    // Nothing moves while it is paused, and what is not legal is refused with the state's name.
    let refused = stack.fails(&["pipe", "pause", "shop"]).await;
    assert!(refused.contains("Paused") && refused.contains("resume"), "{refused}");

    stack.ok(&["pipe", "resume", "shop"]).await;
    stack.wait_for("shop", "Running").await;
    churn.stop().await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    let states = stack.states("shop").await;
    assert_eq!(states[4..], ["PAUSING", "PAUSED", "RUNNING"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pipe_frees_its_slot_and_publication_and_its_name() {
    let stack = running(500).await;
    let source = stack.source().await;
    let held = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)";
    assert_eq!(source.query_one(held, &[]).await.unwrap().get::<_, i64>(0), 2);
    stack.ok(&["pipe", "delete", "shop"]).await;
    assert_eq!(source.query_one(held, &[]).await.unwrap().get::<_, i64>(0), 0);
    assert!(stack.fails(&["pipe", "get", "shop"]).await.contains("no pipe"));
    assert_eq!(
        stack.compare("orders", &["id"], &[]).await.destination_rows,
        500,
        "the destination's tables stay"
    );

    // A new pipe needs empty targets; the old ones are in the way, and it says so.
    let again = stack.write_pipe_of("shop", &TABLES, SETTINGS);
    assert!(stack.fails(&["pipe", "apply", "-f", again.to_str().unwrap()]).await.contains("not empty"));
    stack.destination().query("DROP DATABASE mirror").execute().await.unwrap();
    stack.apply(&again).await;
    stack.wait_for("shop", "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_is_deleted_also_when_its_source_is_away() {
    let mut stack = running(500).await;
    stack.postgres.kill().await.unwrap();
    let deleted = stack.run(&["pipe", "delete", "shop"]).await;
    assert!(deleted.status.success());
    let said = String::from_utf8_lossy(&deleted.stderr);
    assert!(said.contains("could not be dropped") && said.contains("pg_drop_replication_slot"), "{said}");
    assert!(stack.fails(&["pipe", "get", "shop"]).await.contains("no pipe"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_go_on_is_set_aside_and_the_others_go_on() {
    let stack = breakable().await;
    let source = stack.source().await;
    source.batch_execute("ALTER TABLE wide RENAME TO wider; UPDATE wider SET small = 0").await.unwrap();
    stack
        .wait("the table to be set aside", async || {
            stack.get("shop").await["tables"][0]["state"] == "TABLE_STATE_SET_ASIDE"
        })
        .await;
    source.batch_execute("INSERT INTO other VALUES (1)").await.unwrap();
    stack.caught_up("shop").await;
    stack.assert_equal("other", &["id"]).await;
    let shown = stack.get("shop").await;
    assert_eq!(shown["tables"][0]["problem"]["code"], "SOURCE_SCHEMA_CHANGED");
    assert!(shown["tables"][0]["problem"]["message"].as_str().unwrap().contains("public.wider"));
    assert_eq!(shown["status"]["state"], "PIPE_STATE_RUNNING");
    assert_eq!(shown["status"]["health"], "HEALTH_DEGRADED");
    // Not one wrong value: what is there is what was copied.
    let count = "SELECT count() FROM mirror.wide FINAL WHERE small = id";
    assert_eq!(stack.destination().query(count).fetch_one::<u64>().await.unwrap(), 20);
}

/// A table that is going to break, and another one, streaming.
async fn breakable() -> Stack {
    let stack = Stack::start().await;
    stack
        .source()
        .await
        .batch_execute(
            "CREATE TABLE wide (id int PRIMARY KEY, small int); INSERT INTO wide SELECT n, n FROM generate_series(1, 20) n;
             CREATE TABLE other (id int PRIMARY KEY);",
        )
        .await
        .unwrap();
    stack.apply(&stack.write_pipe_of("shop", &["wide", "other"], "")).await;
    stack.wait_for("shop", "Running").await;
    stack.caught_up("shop").await;
    stack
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_stays_before_a_change_that_sets_a_table_aside_until_that_is_recorded() {
    let mut stack = breakable().await;
    let source = stack.source().await;
    let coordinator = stack.coordinator().id();
    signal("-STOP", &coordinator).await;
    source
        .batch_execute(
            "ALTER TABLE wide RENAME TO wider; UPDATE wider SET small = 0; INSERT INTO other VALUES (1)",
        )
        .await
        .unwrap();
    let end: String = source.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0);
    let arrived = "SELECT count() FROM mirror.other";
    let destination = stack.destination();
    stack
        .wait("what came after it to arrive", async || {
            destination.query(arrived).fetch_one::<u64>().await.unwrap() == 1
        })
        .await;
    stack.worker_speaks(&source).await;
    let passed = format!("SELECT confirmed_flush_lsn >= '{end}'::pg_lsn FROM pg_replication_slots");
    assert!(
        !source.query_one(&passed, &[]).await.unwrap().get::<_, bool>(0),
        "nobody knows that the table is set aside"
    );
    signal("-CONT", &coordinator).await;
    stack.wait("the slot to go on", async || source.query_one(&passed, &[]).await.unwrap().get(0)).await;
    assert_eq!(stack.get("shop").await["tables"][0]["state"], "TABLE_STATE_SET_ASIDE");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_pipe_still_moves_its_slot() {
    let stack = running(500).await;
    let source = stack.source().await;
    stack.caught_up("shop").await;
    // Log of tables that no pipe carries.
    source.batch_execute("CREATE TABLE elsewhere (x text); INSERT INTO elsewhere SELECT repeat('x', 1000) FROM generate_series(1, 1000)").await.unwrap();
    let goal: String = source.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    stack
        .wait("the slot to pass log that holds nothing for us", async || {
            let passed = format!("SELECT confirmed_flush_lsn >= '{goal}'::pg_lsn FROM pg_replication_slots");
            source.query_one(&passed, &[]).await.unwrap().get::<_, bool>(0)
        })
        .await;
}
