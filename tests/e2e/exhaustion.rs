//! A destination that runs out of something: what passes is waited for, what somebody has to mend is said, and nothing is lost.

use crate::load::{SETTINGS, TABLES, assert_all_equal, sample_tables};
use std::time::{Duration, Instant};

use crate::stack::{PATIENCE, Stack};

/// No query has room; what is too small to be counted by itself is counted, too.
const OUT_OF_MEMORY: [(&str, &str); 2] = [("max_memory_usage", "1000"), ("max_untracked_memory", "1")];

async fn running() -> Stack {
    let stack = Stack::start().await;
    sample_tables(&stack.source().await, 2_000).await;
    stack.apply(&stack.write_pipe_of("shop", &TABLES, SETTINGS)).await;
    stack.wait_for("shop", "Running").await;
    stack.caught_up("shop").await;
    stack
}

async fn at_destination(stack: &Stack, sql: &str) {
    stack.destination().query(sql).execute().await.unwrap();
}

async fn change(stack: &Stack, mark: &str) {
    let sql = format!("UPDATE items SET sku = '{mark}' WHERE order_id < 100");
    stack.source().await.batch_execute(&sql).await.unwrap();
}

/// Waits until the trouble is shown with its code; the pipe is Running all the while.
async fn shown(stack: &Stack, code: &str) {
    stack.wait(code, async || stack.get("shop").await.to_string().contains(code)).await;
    assert_eq!(stack.get("shop").await["status"]["state"], "PIPE_STATE_RUNNING");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_room_no_memory_and_too_many_parts_pass_by_themselves() {
    let stack = running().await;
    at_destination(&stack, "SYSTEM STOP MERGES mirror.items").await;
    at_destination(&stack, "INSERT INTO mirror.items SELECT * FROM mirror.items LIMIT 1").await;
    for (setting, value, code) in [
        ("min_free_disk_bytes_to_perform_insert", "1000000000000000", "DESTINATION_DISK_FULL"),
        ("parts_to_throw_insert", "1", "DESTINATION_TOO_MANY_PARTS"),
    ] {
        at_destination(&stack, &format!("ALTER TABLE mirror.items MODIFY SETTING {setting} = {value}")).await;
        change(&stack, code).await;
        shown(&stack, code).await;
        at_destination(&stack, &format!("ALTER TABLE mirror.items RESET SETTING {setting}")).await;
        stack.caught_up("shop").await;
    }
    at_destination(&stack, "SYSTEM START MERGES mirror.items").await;
    stack.clickhouse.set_profile(&OUT_OF_MEMORY).unwrap();
    change(&stack, "memory").await;
    shown(&stack, "DESTINATION_BUSY").await;
    stack.clickhouse.set_profile(&[]).unwrap();
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    assert_eq!(stack.states("shop").await.len(), 4, "the pipe was Running all the time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_only_read_is_named_and_once_he_may_write_the_stream_goes_on() {
    let stack = running().await;
    // 2 lets a request choose settings still, so it is the insert that is refused.
    stack.clickhouse.set_profile(&[("readonly", "2")]).unwrap();
    change(&stack, "unwritten").await;
    shown(&stack, "DESTINATION_READ_ONLY").await;
    stack.clickhouse.set_profile(&[]).unwrap();
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_turns_everybody_away_is_not_stormed() {
    let mut stack = running().await;
    stack.postgres.kill().await.unwrap();
    // Whoever comes to its address is turned away at once: the one stream at first soon again, then ever more seldom.
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", stack.postgres.port())).await.unwrap();
    let began = Instant::now();
    for _ in 0..6 {
        drop(tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap());
    }
    let took = began.elapsed();
    drop(listener);
    assert!(took > Duration::from_secs(2), "6 connections within {took:?}");
    stack.postgres.restart().await.unwrap();
    change(&stack, "after").await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_fills_while_the_pipe_rests_is_told_before_it_is_lost() {
    let stack = running().await;
    let source = stack.source().await;
    source.batch_execute("ALTER SYSTEM SET max_slot_wal_keep_size = '160MB'").await.unwrap();
    source.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    stack.ok(&["pipe", "pause", "shop"]).await;
    stack.wait_for("shop", "Paused").await;
    // Nothing flows, and it is looked at all the same.
    stack
        .wait("the slot to be seen", async || {
            stack.get("shop").await["status"]["stream"]["slot"]["headroomBytes"].is_string()
        })
        .await;
    // Ten segments of eleven.
    for _ in 0..10 {
        change(&stack, "paused").await;
        source.batch_execute("SELECT pg_switch_wal()").await.unwrap();
    }
    stack
        .wait("the slot to be complained of", async || {
            stack.get("shop").await["status"]["problem"]["code"] == "SLOT_FILLS"
        })
        .await;
    let shown = stack.get("shop").await;
    assert_eq!(shown["status"]["state"], "PIPE_STATE_PAUSED");
    assert_eq!(shown["status"]["health"], "HEALTH_DEGRADED");
    let said = stack.ok(&["pipe", "get", "shop"]).await;
    assert!(said.contains(" for the slot (") && said.contains("max_slot_wal_keep_size"), "{said}");

    stack.ok(&["pipe", "resume", "shop"]).await;
    stack.caught_up("shop").await;
    stack
        .wait("nothing to be complained of", async || {
            stack.get("shop").await["status"]["health"] == "HEALTH_OK"
        })
        .await;
    assert_all_equal(&stack).await;
}
