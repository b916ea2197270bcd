//! `pipe verify`: every difference that is put in by hand is found, and none where there is none.

use serde_json::Value;

use crate::load::{Churn, SETTINGS, TABLES, sample_tables};
use crate::stack::Stack;

const ROWS: u32 = 100_000;

async fn running(rows: u32) -> Stack {
    let stack = Stack::start().await;
    sample_tables(&stack.source().await, rows).await;
    stack.apply(&stack.write_pipe_of("shop", &TABLES, SETTINGS)).await;
    stack.wait_for("shop", "Running").await;
    stack
}

async fn destination(stack: &Stack, sql: &str) {
    stack.destination().query(sql).execute().await.unwrap();
}

/// The result of a comparison: whether it exited with 0, and what it says of the tables.
async fn verify(stack: &Stack, more: &[&str]) -> (bool, Value) {
    let output = stack.run(&[&["pipe", "verify", "shop", "-o", "json"], more].concat()).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let answer: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}\n{}", stack.logs()));
    (output.status.success(), answer["pipe"]["tables"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_in_by_hand_is_found_and_named() {
    let stack = running(ROWS).await;
    let source = stack.source().await;
    source
        .batch_execute(
            "UPDATE orders SET note = 'changed' WHERE id % 1000 = 0; DELETE FROM orders WHERE id = 77",
        )
        .await
        .unwrap();
    stack.caught_up("shop").await;
    let (equal, tables) = verify(&stack, &[]).await;
    assert!(equal, "{tables:#}");
    assert_eq!(tables.as_array().unwrap().len(), 3);

    // One altered, one missing, one that never was, one that was deleted and is there again: at keys from a seed.
    let (altered, missing) = (12_345, 54_321);
    let columns: Vec<String> = stack
        .destination()
        .query("SELECT name FROM system.columns WHERE database = 'mirror' AND table = 'orders' AND name NOT LIKE '\\_millrace%' ORDER BY position")
        .fetch_all()
        .await
        .unwrap();
    let columns = columns.join(", ");
    let rewrite = |id: u32, values: &str, version: &str, deleted: u8| {
        format!(
            "INSERT INTO mirror.orders ({columns}, _millrace_version, _millrace_is_deleted, _millrace_synced_at) \
             SELECT {values}, {version}, {deleted}, now64(9) \
             FROM (SELECT * FROM mirror.orders WHERE id = {id} ORDER BY _millrace_version DESC LIMIT 1)"
        )
    };
    let with_note = columns.replace("note", "'forged' AS note");
    destination(&stack, &rewrite(altered, &with_note, "_millrace_version + 1", 0)).await;
    destination(&stack, &rewrite(missing, &columns, "_millrace_version + 1", 1)).await;
    let with_id = columns.replacen("id", "-9 AS id", 1);
    destination(&stack, &rewrite(1, &with_id, "_millrace_version", 0)).await;
    destination(&stack, &rewrite(77, &columns, "_millrace_version + 1", 0)).await;

    let (equal, tables) = verify(&stack, &["--table", "public.orders"]).await;
    assert!(!equal);
    let found = &tables[0]["verification"];
    assert_eq!(found["differences"], "4", "{tables:#}");
    let mut samples: Vec<String> = found["samples"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            format!("{} {} {}", row["key"].as_str().unwrap(), row["kind"].as_str().unwrap(), row["columns"])
        })
        .collect();
    samples.sort();
    assert_eq!(
        samples,
        [
            "-9 ROW_DIFFERENCE_KIND_EXTRA []",
            "12345 ROW_DIFFERENCE_KIND_ALTERED [\"note\"]",
            "54321 ROW_DIFFERENCE_KIND_MISSING []",
            "77 ROW_DIFFERENCE_KIND_EXTRA []",
        ]
    );
    let shown = stack.get("shop").await;
    assert_eq!(shown["status"]["health"], "HEALTH_DEGRADED");
    assert_eq!(shown["status"]["problem"]["code"], "ROWS_DIFFER");
    let said = stack.fails(&["pipe", "verify", "shop", "--table", "public.orders"]).await;
    assert!(said.contains("resync"), "{said}");

    // Mended by a copy, after which there is nothing to complain of.
    stack.ok(&["pipe", "resync", "shop", "--table", "public.orders"]).await;
    stack
        .wait("the copy to take its place", async || {
            let table = stack.get("shop").await["tables"][0].clone();
            table["state"] == "TABLE_STATE_STREAMING"
                && table["successor"].is_null()
                && table["verification"].is_null()
        })
        .await;
    let (equal, tables) = verify(&stack, &[]).await;
    assert!(equal, "{tables:#}");
    assert_eq!(stack.get("shop").await["status"]["health"], "HEALTH_OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_pipe_is_found_equal_and_a_worker_that_dies_is_replaced() {
    let mut stack = running(20_000).await;
    let churn = Churn::start(&stack, 20_000).await;
    for _ in 0..3 {
        let (equal, tables) = verify(&stack, &[]).await;
        assert!(equal, "{tables:#}\n{}", stack.logs());
    }
    stack.ok(&["pipe", "verify", "shop", "--no-wait"]).await;
    stack.fleet.workers[0].kill().await;
    stack
        .wait("the comparison to be made by the other one", async || {
            let tables = stack.get("shop").await["tables"].clone();
            tables.as_array().unwrap().iter().all(|table| table["verification"]["finishedAt"].is_string())
        })
        .await;
    for table in stack.get("shop").await["tables"].as_array().unwrap() {
        assert_eq!(table["verification"]["differences"], "0", "{table:#}");
        assert!(table["verification"]["problem"].is_null(), "{table:#}");
    }
    churn.stop().await;

    stack.ok(&["pipe", "pause", "shop"]).await;
    stack.wait_for("shop", "Paused").await;
    let refused = stack.fails(&["pipe", "verify", "shop"]).await;
    assert!(refused.contains("Paused"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_is_compared_by_the_whole_fleet_range_by_range() {
    const LARGE: i64 = 1_600_000;
    let stack = Stack::start().await;
    let source = stack.source().await;
    // Half of the keys lie close together, so that ranges of the same width would not do.
    source
        .batch_execute(&format!(
            "CREATE TABLE ledger (id bigint PRIMARY KEY, amount integer NOT NULL);
             INSERT INTO ledger SELECT CASE WHEN n <= {half} THEN n ELSE n * 1000 END, n % 1000 FROM generate_series(1, {LARGE}) n;
             ANALYZE ledger",
            half = LARGE / 2
        ))
        .await
        .unwrap();
    stack.apply(&stack.write_pipe_of("shop", &["ledger"], SETTINGS)).await;
    stack.wait_for("shop", "Running").await;
    let (equal, tables) = verify(&stack, &[]).await;
    assert!(equal, "{tables:#}");
    let found = &tables[0]["verification"];
    assert_eq!(
        (&found["sourceRows"], &found["destinationRows"]),
        (&LARGE.to_string().into(), &LARGE.to_string().into())
    );

    // One in the first range, one in the last, one beyond everything that was there when it was divided.
    let forge = |id: i64, amount: i64, deleted: u8| {
        format!(
            "INSERT INTO mirror.ledger (id, amount, _millrace_version, _millrace_is_deleted, _millrace_synced_at) \
             SELECT {id}, {amount}, max(_millrace_version) + 1, {deleted}, now64(9) FROM mirror.ledger"
        )
    };
    destination(&stack, &forge(7, -1, 0)).await;
    destination(&stack, &forge(LARGE * 1000, 0, 1)).await;
    destination(&stack, &forge(i64::MIN, 1, 0)).await;
    let (equal, tables) = verify(&stack, &[]).await;
    assert!(!equal);
    let samples = tables[0]["verification"]["samples"].as_array().unwrap();
    let mut samples: Vec<String> =
        samples.iter().map(|row| format!("{} {}", row["key"], row["kind"])).collect();
    samples.sort();
    assert_eq!(
        samples,
        [
            format!("\"{}\" \"ROW_DIFFERENCE_KIND_EXTRA\"", i64::MIN),
            format!("\"{}\" \"ROW_DIFFERENCE_KIND_MISSING\"", LARGE * 1000),
            "\"7\" \"ROW_DIFFERENCE_KIND_ALTERED\"".to_owned(),
        ]
    );
    assert_eq!(tables[0]["verification"]["differences"], "3");
    let events = stack.ok(&["pipe", "events", "shop"]).await;
    assert!(events.contains("public.ledger is compared in 3 parts"), "{events}");
}
