//! One broken table never stops the others.

use crate::load::{SETTINGS, sample_tables};
use crate::stack::Stack;

async fn running(settings: &str) -> Stack {
    let stack = Stack::start().await;
    sample_tables(&stack.source().await, 2_000).await;
    stack.apply(&stack.write_pipe_of("shop", &["orders", "items"], settings)).await;
    stack.wait_for("shop", "Running").await;
    stack.caught_up("shop").await;
    stack
}

async fn destination(stack: &Stack, sql: &str) {
    stack.destination().query(sql).execute().await.unwrap();
}

/// The other table arrives while this one cannot.
async fn others_go_on(stack: &Stack, mark: &str) {
    let update = format!("UPDATE items SET sku = '{mark}' WHERE order_id < 50");
    stack.source().await.batch_execute(&update).await.unwrap();
    stack
        .wait("the other table to go on", async || {
            let sql = format!("SELECT count() FROM mirror.items FINAL WHERE sku = '{mark}'");
            stack.destination().query(&sql).fetch_one::<u64>().await.unwrap_or(0) == 98
        })
        .await;
}

async fn held(stack: &Stack) -> serde_json::Value {
    stack
        .wait("the table to be held", async || !stack.get("shop").await["tables"][0]["held"].is_null())
        .await;
    stack.get("shop").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_written_for_a_while_is_held_and_heals_by_itself() {
    let stack = running(SETTINGS).await;
    let source = stack.source().await;
    for (number, (breaks, mends, code)) in [
        (
            "RENAME TABLE mirror.orders TO mirror.away",
            "RENAME TABLE mirror.away TO mirror.orders",
            "DESTINATION_TABLE_MISSING",
        ),
        (
            "ALTER TABLE mirror.orders MODIFY COLUMN note Nullable(Int32) SETTINGS mutations_sync = 2",
            "ALTER TABLE mirror.orders MODIFY COLUMN note Nullable(String) SETTINGS mutations_sync = 2",
            "DESTINATION_",
        ),
        (
            "ALTER TABLE mirror.orders ADD CONSTRAINT never CHECK customer > 1000000",
            "ALTER TABLE mirror.orders DROP CONSTRAINT never",
            "DESTINATION_",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        if number == 1 {
            // A column of another type takes no old values along.
            destination(
                &stack,
                "ALTER TABLE mirror.orders UPDATE note = NULL WHERE 1 SETTINGS mutations_sync = 2",
            )
            .await;
        }
        destination(&stack, breaks).await;
        source
            .batch_execute(&format!("UPDATE orders SET note = '{number}', total = {number}"))
            .await
            .unwrap();
        let shown = held(&stack).await;
        let problem = &shown["tables"][0]["held"];
        assert!(problem["code"].as_str().unwrap().starts_with(code), "{problem:#}");
        assert_eq!(shown["status"]["health"], "HEALTH_DEGRADED", "{shown:#}");
        assert_eq!(shown["status"]["state"], "PIPE_STATE_RUNNING");
        others_go_on(&stack, &format!("round {number}")).await;
        destination(&stack, mends).await;
        stack
            .wait("the table to be written again", async || {
                stack.get("shop").await["tables"][0]["held"].is_null()
            })
            .await;
        stack.caught_up("shop").await;
        stack.assert_equal("orders", &["id"]).await;
        stack.assert_equal("items", &["order_id", "line"]).await;
    }
    assert_eq!(stack.get("shop").await["status"]["tablesSetAside"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_holds_back_too_much_is_set_aside_and_a_retry_mends_it() {
    let settings = SETTINGS.replace("settings: {", "settings: {maxHeldWal: 1MiB, ");
    let stack = running(&settings).await;
    let source = stack.source().await;
    destination(&stack, "DROP TABLE mirror.orders SYNC").await;
    source.batch_execute("UPDATE orders SET note = 'held'").await.unwrap();
    held(&stack).await;
    // Twice as much log as may be held, also where values are compressed.
    let hashes = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 40) n)";
    source.batch_execute(&format!("UPDATE orders SET note = {hashes}")).await.unwrap();
    stack
        .wait("it to be set aside", async || {
            stack.get("shop").await["tables"][0]["state"] == "TABLE_STATE_SET_ASIDE"
        })
        .await;
    others_go_on(&stack, "after").await;
    stack.caught_up("shop").await;
    let refused = stack.fails(&["pipe", "retry", "shop", "--table", "public.items"]).await;
    assert!(refused.contains("streaming"), "{refused}");
    stack.ok(&["pipe", "retry", "shop", "--table", "public.orders"]).await;
    stack
        .wait("it to stream again", async || {
            let table = stack.get("shop").await["tables"][0].clone();
            table["state"] == "TABLE_STATE_STREAMING" && table["successor"].is_null()
        })
        .await;
    source.batch_execute("UPDATE orders SET note = 'mended' WHERE id < 100").await.unwrap();
    stack.caught_up("shop").await;
    stack.assert_equal("orders", &["id"]).await;
    let states = stack.states("shop").await;
    assert_eq!(states, ["PROVISIONING", "SETUP", "SNAPSHOT", "RUNNING"], "the pipe was Running all the time");
}
