//! Columns that change at the source while the pipe runs.

use crate::stack::Stack;

const START: &str =
    "CREATE TABLE parts (id int PRIMARY KEY, a int NOT NULL, b text, price numeric(10, 2), secret text);
    INSERT INTO parts SELECT n, n, 'part ' || n, n * 1.5, 'hidden' FROM generate_series(1, 100) n;
    CREATE TABLE other (id int PRIMARY KEY, x int);";

async fn streaming(settings: &str) -> Stack {
    let stack = Stack::start().await;
    stack.source().await.batch_execute(START).await.unwrap();
    let tables = "  - {source: public.parts, target: parts, excludedColumns: [secret]}\n  - {source: public.other, target: other}";
    stack.apply(&stack.write_pipe("evolving", tables, settings)).await;
    stack.wait_for("evolving", "Running").await;
    stack
}

async fn run(stack: &Stack, sql: &str) {
    stack.source().await.batch_execute(sql).await.unwrap();
    stack.caught_up("evolving").await;
}

/// Source and destination hold the same in all columns that the source has, the excluded one apart.
async fn assert_parts_equal(stack: &Stack) {
    let shown = stack.get("evolving").await;
    assert_eq!(shown["status"]["tablesSetAside"], 0, "{shown}");
    stack.assert_equal_without("parts", &["id"], &["secret"]).await;
}

async fn reason(stack: &Stack) -> String {
    stack
        .wait("the table to be set aside", async || {
            stack.get("evolving").await["tables"][0]["state"] == "TABLE_STATE_SET_ASIDE"
        })
        .await;
    let shown = stack.get("evolving").await;
    assert_eq!(shown["tables"][0]["problem"]["code"], "SOURCE_SCHEMA_CHANGED", "{shown}");
    // The others go on.
    run(stack, "INSERT INTO other VALUES (1, 1)").await;
    stack.assert_equal("other", &["id"]).await;
    shown["tables"][0]["problem"]["message"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn added_renamed_and_widened_columns_follow() {
    let mut stack = streaming("").await;
    run(&stack, "ALTER TABLE parts ADD COLUMN c int; INSERT INTO parts VALUES (201, 1, 'b', 1, 's', 7)")
        .await;
    assert_parts_equal(&stack).await;
    run(
        &stack,
        "ALTER TABLE parts ADD COLUMN d int NOT NULL DEFAULT 5, ADD COLUMN e text DEFAULT 'it''s', ADD COLUMN f timestamptz DEFAULT '2024-05-06 07:08:09.5+02',
           ADD COLUMN g bool NOT NULL DEFAULT true;
         UPDATE parts SET d = 6 WHERE id = 1; INSERT INTO parts (id, a) VALUES (202, 2)",
    )
    .await;
    assert_parts_equal(&stack).await;
    // Renamed, by its number told from a drop and an addition; and both at once.
    run(&stack, "ALTER TABLE parts RENAME COLUMN b TO label; ALTER TABLE parts ADD COLUMN h uuid; UPDATE parts SET label = 'x' WHERE id < 10").await;
    assert_parts_equal(&stack).await;
    run(&stack, "ALTER TABLE parts ALTER a TYPE bigint, ALTER price TYPE numeric(14, 4); INSERT INTO parts (id, a, price) VALUES (203, 5000000000, 0.0001)").await;
    assert_parts_equal(&stack).await;
    run(&stack, "ALTER TABLE parts ALTER a DROP NOT NULL; INSERT INTO parts (id, a) VALUES (204, NULL)")
        .await;
    assert_parts_equal(&stack).await;
    // Right after a change, in one transaction with it, and in one that is rolled back.
    run(
        &stack,
        "BEGIN; ALTER TABLE parts ADD COLUMN i int DEFAULT 1; INSERT INTO parts (id, a) VALUES (205, 1); ROLLBACK;
         INSERT INTO parts (id, a) VALUES (206, 1);
         BEGIN; INSERT INTO parts (id, a) VALUES (207, 1); ALTER TABLE parts ADD COLUMN j int DEFAULT 2; INSERT INTO parts (id, a) VALUES (208, 1); COMMIT;",
    )
    .await;
    assert_parts_equal(&stack).await;
    // A type whose values only travel as text: the stream is opened anew.
    run(
        &stack,
        "ALTER TABLE parts ADD COLUMN k inet; INSERT INTO parts (id, a, k) VALUES (209, 1, '10.0.0.1')",
    )
    .await;
    assert_parts_equal(&stack).await;
    // What was decided outlives everybody.
    stack.coordinator().kill().await;
    for worker in &mut stack.fleet.workers {
        worker.kill().await;
    }
    stack.coordinator().start_again().await;
    for worker in &mut stack.fleet.workers {
        worker.start_again().await;
    }
    run(&stack, "UPDATE parts SET d = d + 1; INSERT INTO parts (id, a, j, k) VALUES (210, 1, 3, '::1')")
        .await;
    assert_parts_equal(&stack).await;
    let events = stack.json(&["pipe", "events", "evolving"]).await.to_string();
    assert!(events.contains("from now on"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_column_stays_and_is_filled_with_nothing() {
    let stack = streaming("").await;
    run(&stack, "ALTER TABLE parts DROP COLUMN b; INSERT INTO parts (id, a) VALUES (201, 1)").await;
    assert_parts_equal(&stack).await;
    let sql = "SELECT countIf(b IS NULL), countIf(b IS NOT NULL) FROM mirror.parts FINAL";
    let (empty, kept): (u64, u64) = stack.destination().query(sql).fetch_one().await.unwrap();
    assert_eq!((empty, kept), (1, 100));
    // Another column under its name would show the old values.
    stack
        .source()
        .await
        .batch_execute("ALTER TABLE parts ADD COLUMN b text; INSERT INTO parts (id, a) VALUES (202, 1)")
        .await
        .unwrap();
    assert!(reason(&stack).await.contains("has the name of a dropped column"));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_columns_go_where_that_is_asked_for() {
    let stack = streaming("settings: {schemaChanges: propagate_all}").await;
    run(
        &stack,
        "ALTER TABLE parts DROP COLUMN b, ADD COLUMN z int; INSERT INTO parts (id, a) VALUES (201, 1)",
    )
    .await;
    assert_parts_equal(&stack).await;
    run(&stack, "ALTER TABLE parts ADD COLUMN b int DEFAULT 3; INSERT INTO parts (id, a) VALUES (202, 1)")
        .await;
    assert_parts_equal(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn added_columns_can_be_ignored() {
    let stack = streaming("settings: {schemaChanges: ignore}").await;
    run(&stack, "ALTER TABLE parts ADD COLUMN z int DEFAULT 4; INSERT INTO parts (id, a) VALUES (201, 1)")
        .await;
    assert_eq!(stack.get("evolving").await["status"]["tablesSetAside"], 0);
    stack.assert_equal_without("parts", &["id"], &["secret", "z"]).await;
    let columns =
        "SELECT count() FROM system.columns WHERE database = 'mirror' AND table = 'parts' AND name = 'z'";
    assert_eq!(stack.destination().query(columns).fetch_one::<u64>().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_change_stops_the_table_where_that_is_asked_for() {
    let stack = streaming("settings: {schemaChanges: stop}").await;
    stack
        .source()
        .await
        .batch_execute("ALTER TABLE parts ADD COLUMN z int; INSERT INTO parts (id, a) VALUES (201, 1)")
        .await
        .unwrap();
    assert!(reason(&stack).await.contains("\"z\" was added"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_carried_stops_that_table_only() {
    for (change, expected) in [
        ("ALTER TABLE parts ALTER a TYPE text", "was integer and is text now"),
        ("ALTER TABLE parts ADD COLUMN r float8 DEFAULT random()", "computed row by row"),
        ("ALTER TABLE parts RENAME COLUMN id TO key", "cannot be renamed"),
        ("ALTER TABLE parts RENAME COLUMN secret TO open", "may be the same under another name"),
    ] {
        let stack = streaming("").await;
        let insert = "INSERT INTO parts SELECT (jsonb_populate_record(NULL::parts, '{\"id\": 201, \"key\": 201, \"a\": 1}')).*";
        stack.source().await.batch_execute(&format!("{change}; {insert}")).await.unwrap();
        let reason = reason(&stack).await;
        assert!(reason.contains(expected), "{change}: {reason}");
    }
}
