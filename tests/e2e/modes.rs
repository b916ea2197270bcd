//! What a pipe does with its source, and settings that change while it runs.

use crate::load::{Churn, SETTINGS, TABLES, assert_all_equal, sample_tables};
use crate::stack::Stack;

#[tokio::test(flavor = "multi_thread")]
async fn changes_alone_are_followed_from_a_slot_and_publication_that_were_given() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    sample_tables(&source, 100).await;
    source
        .batch_execute("CREATE PUBLICATION \"Odd name, with. dots\" FOR TABLE orders, items")
        .await
        .unwrap();
    source
        .batch_execute("SELECT pg_create_logical_replication_slot('given_slot', 'pgoutput')")
        .await
        .unwrap();
    source
        .batch_execute("INSERT INTO orders SELECT n, 1, now(), 'after the slot', 1, '{}', true FROM generate_series(1001, 1005) n; UPDATE items SET sku = 'changed' WHERE order_id = 3")
        .await
        .unwrap();
    let settings = "replicationMode: cdc_only\nsettings: {publicationName: \"Odd name, with. dots\", replicationSlotName: given_slot, syncInterval: 100ms}";
    stack.apply(&stack.write_pipe_of("only", &["orders", "items"], settings)).await;
    stack.wait_for("only", "Running").await;
    source.batch_execute("INSERT INTO orders VALUES (2000, 1, now(), 'later', 1, '{}', true)").await.unwrap();
    stack.caught_up("only").await;
    let count = async |sql: &str| stack.destination().query(sql).fetch_one::<u64>().await.unwrap();
    assert_eq!(
        count("SELECT count() FROM mirror.orders FINAL").await,
        6,
        "rows from before the slot are absent"
    );
    assert_eq!(count("SELECT count() FROM mirror.items FINAL WHERE sku = 'changed'").await, 2);
    assert_eq!(stack.states("only").await, ["PROVISIONING", "SETUP", "RUNNING"]);
    let refused = stack.fails(&["pipe", "resync", "only"]).await;
    assert!(refused.contains("cdc_only copies nothing"), "{refused}");
    stack.ok(&["pipe", "delete", "only"]).await;
    let slots: i64 = source.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap().get(0);
    assert_eq!(slots, 1, "the slot that was given stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_paused_and_goes_on_and_its_finished_partitions_are_not_read_again() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    stack.start_worker_with("one", &["--max-tasks", "1"]).await;
    let source = stack.source().await;
    sample_tables(&source, 120_000).await;
    let churn = Churn::start(&stack, 120_000).await;
    let settings = SETTINGS.replace("5000", "2000");
    stack.apply(&stack.write_pipe_of("shop", &TABLES, &settings)).await;
    let done = async || {
        let shown = stack.get("shop").await;
        let tables = shown["tables"].as_array().cloned().unwrap_or_default();
        tables.iter().map(|table| table["partitionsDone"].as_u64().unwrap_or(0)).sum::<u64>()
    };
    stack.wait("some partitions to be done", async || done().await >= 4).await;
    stack.ok(&["pipe", "pause", "shop"]).await;
    stack.wait_for("shop", "Paused").await;
    let paused = done().await;
    stack
        .wait("nothing of ours to be open at the source", async || {
            let copying = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'millrace %'";
            source.query(copying, &[]).await.unwrap().is_empty()
        })
        .await;
    stack.ok(&["pipe", "resume", "shop"]).await;
    stack
        .wait("it to go on", async || {
            let shown = stack.get("shop").await;
            shown["status"]["state"] == "PIPE_STATE_RUNNING" || done().await > paused
        })
        .await;
    assert!(done().await >= paused, "what was copied stays copied");
    stack.wait_for("shop", "Running").await;
    churn.stop().await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    assert_eq!(
        stack.states("shop").await,
        ["PROVISIONING", "SETUP", "SNAPSHOT", "PAUSING", "PAUSED", "SNAPSHOT", "RUNNING"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_credentials_change_while_the_pipe_runs() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    sample_tables(&source, 500).await;
    stack.apply(&stack.write_pipe_of("shop", &["orders", "items"], "settings: {syncInterval: 100s}")).await;
    stack.wait_for("shop", "Running").await;
    // The first change goes at once, the next waits for the interval.
    let arrives = async |id: u32| {
        let sql = format!("SELECT count() FROM mirror.orders FINAL WHERE id = {id}");
        stack.destination().query(&sql).fetch_one::<u64>().await.unwrap_or(0) == 1
    };
    let insert = async |id: u32| {
        let sql = format!("INSERT INTO orders VALUES ({id}, 1, now(), 'x', 1, '{{}}', true)");
        source.batch_execute(&sql).await.unwrap();
    };
    insert(9001).await;
    stack.wait("the first", async || arrives(9001).await).await;
    insert(9002).await;
    let file = stack.write_pipe_of("shop", &["orders", "items"], "settings: {syncInterval: 50ms}");
    let said = stack.ok(&["pipe", "apply", "-f", file.to_str().unwrap()]).await;
    assert!(said.contains("syncInterval"), "{said}");
    stack.wait("what waited", async || arrives(9002).await).await;
    let again = stack.ok(&["pipe", "apply", "-f", file.to_str().unwrap()]).await;
    assert!(again.contains("unchanged"), "{again}");

    source.batch_execute("CREATE ROLE other SUPERUSER LOGIN PASSWORD 'another-one'").await.unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text
        .replace(&format!("username: {}", stack.postgres.user()), "username: other")
        .replace(stack.postgres.password(), "another-one");
    let file = stack.write("other.yaml", &text);
    stack.apply(&file).await;
    stack
        .wait("the stream under the other role", async || {
            let sql = "SELECT 1 FROM pg_stat_replication WHERE usename = 'other'";
            !source.query(sql, &[]).await.unwrap().is_empty()
        })
        .await;
    insert(9003).await;
    stack.wait("the third", async || arrives(9003).await).await;
    let refused = text.replace("database: mirror", "database: elsewhere");
    let refused =
        stack.fails(&["pipe", "apply", "-f", stack.write("no.yaml", &refused).to_str().unwrap()]).await;
    assert!(refused.contains("the destination's database cannot be edited"), "{refused}");
    stack.ok(&["pipe", "delete", "shop", "--drop-tables"]).await;
    let left = "SELECT count() FROM system.tables WHERE database = 'mirror'";
    assert_eq!(stack.destination().query(left).fetch_one::<u64>().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rewritten_while_it_is_copied_is_copied_anew_by_itself() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    stack.start_worker_with("one", &["--max-tasks", "1"]).await;
    let source = stack.source().await;
    sample_tables(&source, 60_000).await;
    let settings = SETTINGS.replace("5000", "1000").replace("Tables: 2", "Tables: 1");
    stack.apply(&stack.write_pipe_of("shop", &["orders", "items"], &settings)).await;
    stack
        .wait("some partitions to be done", async || {
            stack.get("shop").await["tables"][0]["partitionsDone"].as_u64().unwrap_or(0) >= 2
        })
        .await;
    // The table under way and the one that waits.
    source.batch_execute("ALTER TABLE items ALTER line TYPE bigint").await.unwrap();
    source.batch_execute("UPDATE orders SET note = 'x' WHERE id < 10").await.unwrap();
    stack.wait_for("shop", "Running").await;
    stack
        .wait("both to stream", async || {
            let shown = stack.get("shop").await;
            let tables = shown["tables"].as_array().cloned().unwrap_or_default();
            tables
                .iter()
                .all(|table| table["state"] == "TABLE_STATE_STREAMING" && table["successor"].is_null())
        })
        .await;
    source.batch_execute("INSERT INTO items VALUES (1, 99, 'after')").await.unwrap();
    stack.caught_up("shop").await;
    stack.assert_equal("orders", &["id"]).await;
    stack.assert_equal("items", &["order_id", "line"]).await;
}
