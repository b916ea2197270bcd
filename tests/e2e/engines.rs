//! Destination tables of every engine, partitioned ones, and tables without a key.

use crate::stack::{Stack, signal};

async fn number(stack: &Stack, sql: &str) -> u64 {
    stack.destination().query(sql).fetch_one().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_only_table_holds_every_row_and_every_change_once_whoever_is_killed() {
    let mut stack = Stack::start().await;
    let source = stack.source().await;
    source
        .batch_execute(
            "CREATE TABLE log (id int PRIMARY KEY, x int); INSERT INTO log SELECT n, 0 FROM generate_series(1, 500) n;
             CREATE TABLE keyless (x int); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless SELECT 1 FROM generate_series(1, 10);",
        )
        .await
        .unwrap();
    let tables = "  - {source: public.log, target: log, tableEngine: MergeTree}\n  - {source: public.keyless, target: keyless, tableEngine: MergeTree}";
    stack
        .apply(&stack.write_pipe("append", tables, "settings: {syncInterval: 20ms, pullBatchSize: 5000}"))
        .await;
    stack.wait_for("append", "Running").await;
    let mut changes = 500;
    for round in 0..2 {
        for _ in 0..40 {
            // One record of many rows, single rows, and a key that changes: two rows.
            source
                .batch_execute(&format!(
                    "INSERT INTO log SELECT n, {round} FROM generate_series((SELECT max(id) + 1 FROM log), (SELECT max(id) + 50 FROM log)) n;
                     UPDATE log SET x = x + 1 WHERE id = {round} + 1; DELETE FROM log WHERE id = (SELECT min(id) FROM log WHERE id > 400);
                     UPDATE log SET id = -id WHERE id = (SELECT max(id) FROM log);"
                ))
                .await
                .unwrap();
            changes += 50 + 1 + 1 + 2;
        }
        // Whoever streams dies in the middle of a transaction of which a part is there already.
        let before = number(&stack, "SELECT count() FROM mirror.log").await;
        source
            .batch_execute("INSERT INTO log SELECT n, 0 FROM generate_series((SELECT max(id) + 1 FROM log), (SELECT max(id) + 150000 FROM log)) n")
            .await
            .unwrap();
        changes += 150_000;
        stack
            .wait("a part to arrive", async || {
                number(&stack, "SELECT count() FROM mirror.log").await > before
            })
            .await;
        for worker in &mut stack.fleet.workers {
            worker.kill().await;
            worker.start_again().await;
        }
    }
    source
        .batch_execute("INSERT INTO keyless VALUES (2), (2); DELETE FROM keyless WHERE x = 2")
        .await
        .unwrap();
    stack.caught_up("append").await;
    assert_eq!(number(&stack, "SELECT count() FROM mirror.log").await, changes);
    let distinct = "SELECT uniqExact(id, _millrace_version, _millrace_is_deleted) FROM mirror.log";
    assert_eq!(number(&stack, distinct).await, changes);
    assert_eq!(number(&stack, "SELECT countIf(_millrace_is_deleted = 0) FROM mirror.keyless").await, 12);
    assert_eq!(number(&stack, "SELECT countIf(_millrace_is_deleted = 1) FROM mirror.keyless").await, 2);
    assert_eq!(stack.get("append").await["status"]["tablesSetAside"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_that_outlives_its_worker_is_not_made_again() {
    let mut stack = Stack::start().await;
    let source = stack.source().await;
    source.batch_execute("CREATE TABLE log (id int PRIMARY KEY); INSERT INTO log VALUES (1)").await.unwrap();
    let tables = "  - {source: public.log, target: log, tableEngine: MergeTree}";
    stack.apply(&stack.write_pipe("append", tables, "settings: {syncInterval: 20ms}")).await;
    stack.wait_for("append", "Running").await;
    stack.caught_up("append").await;
    // ClickHouse takes three seconds for three rows, and shows none of them before.
    let slow = "ALTER TABLE mirror.log ADD COLUMN slow UInt8 MATERIALIZED sleepEachRow(1)";
    stack.destination().query(slow).execute().await.unwrap();
    source.batch_execute("INSERT INTO log VALUES (2), (3), (4)").await.unwrap();
    let underway = "SELECT count() FROM system.processes WHERE startsWith(query_id, 'millrace-insert-')";
    stack.wait("the insert to be at work", async || number(&stack, underway).await == 1).await;
    for worker in &mut stack.fleet.workers {
        worker.kill().await;
        worker.start_again().await;
    }
    stack.caught_up("append").await;
    assert_eq!(number(&stack, "SELECT count() FROM mirror.log").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_stopped_with_rows_in_hand_does_not_write_what_its_successor_writes() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source
        .batch_execute("CREATE TABLE log (id bigserial PRIMARY KEY); INSERT INTO log DEFAULT VALUES")
        .await
        .unwrap();
    let tables = "  - {source: public.log, target: log, tableEngine: MergeTree}";
    // A batch a second, so that rows are in hand at almost any time.
    stack.apply(&stack.write_pipe("append", tables, "settings: {syncInterval: 10s}")).await;
    stack.wait_for("append", "Running").await;
    stack.caught_up("append").await;
    let streamer = async || {
        let held = stack.get("append").await["status"]["assignments"][0].clone();
        held["workerId"].as_str().unwrap_or_default().to_owned()
    };
    let first = streamer().await;
    let place = usize::from(first == "two");
    let writer = stack.source().await;
    let before = number(&stack, "SELECT count() FROM mirror.log").await;
    // Rows come all the time: some have just been written, others wait.
    stack
        .wait("rows to arrive", async || {
            for _ in 0..20 {
                writer.batch_execute("INSERT INTO log DEFAULT VALUES").await.unwrap();
            }
            number(&stack, "SELECT count() FROM mirror.log").await > before
        })
        .await;
    for _ in 0..200 {
        writer.batch_execute("INSERT INTO log DEFAULT VALUES").await.unwrap();
    }
    let process = stack.fleet.workers[place].id();
    signal("-STOP", &process).await;
    stack
        .wait("the other one to stream", async || !["", first.as_str()].contains(&streamer().await.as_str()))
        .await;
    stack.caught_up("append").await;
    signal("-CONT", &process).await;
    // It has come back to its senses once the coordinator has heard of it, and whatever it held has been sent or given up.
    stack.worker_is_back(&first).await;
    source.batch_execute("INSERT INTO log DEFAULT VALUES").await.unwrap();
    stack.caught_up("append").await;
    let rows: i64 = source.query_one("SELECT count(*) FROM log", &[]).await.unwrap().get(0);
    assert_eq!(number(&stack, "SELECT uniqExact(id) FROM mirror.log").await, rows.unsigned_abs());
    assert_eq!(
        number(&stack, "SELECT count() FROM mirror.log").await,
        rows.unsigned_abs(),
        "some rows are there twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_only_copy_that_is_interrupted_is_made_anew_and_holds_every_row_once() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    stack.start_worker_with("one", &["--max-tasks", "1"]).await;
    let source = stack.source().await;
    source
        .batch_execute(
            "CREATE TABLE log (id int PRIMARY KEY, x text); INSERT INTO log SELECT n, repeat('x', 500) FROM generate_series(1, 60000) n; ANALYZE log;
             CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1);",
        )
        .await
        .unwrap();
    let tables = "  - {source: public.log, target: log, tableEngine: MergeTree}\n  - {source: public.other, target: other}";
    let settings = "settings: {snapshotNumRowsPerPartition: 1000, initialLoadParallelism: 1}";
    stack.apply(&stack.write_pipe("append", tables, settings)).await;
    stack
        .wait("a partition to be done", async || {
            stack.get("append").await["tables"][0]["partitionsDone"].as_u64().unwrap_or(0) >= 1
        })
        .await;
    stack.fleet.workers[0].kill().await;
    stack.fleet.workers[0].start_again().await;
    // Some of these are in the new copy, some come by the stream; all of them once.
    source
        .batch_execute("INSERT INTO log SELECT n, 'later' FROM generate_series(60001, 61000) n")
        .await
        .unwrap();
    stack
        .wait("the new copy to be in its place", async || {
            let table = stack.get("append").await["tables"][0].clone();
            table["state"] == "TABLE_STATE_STREAMING" && table["successor"].is_null()
        })
        .await;
    stack.wait_for("append", "Running").await;
    source
        .batch_execute("INSERT INTO log VALUES (61001, 'last'); INSERT INTO other VALUES (2)")
        .await
        .unwrap();
    stack.caught_up("append").await;
    stack.assert_equal("other", &["id"]).await;
    assert_eq!(number(&stack, "SELECT count() FROM mirror.log").await, 61_001);
    assert_eq!(number(&stack, "SELECT uniqExact(id) FROM mirror.log").await, 61_001);
    let events = stack.ok(&["pipe", "events", "append"]).await;
    assert!(events.contains("APPEND_ONLY_COPY_INTERRUPTED"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_only_copy_whose_snapshot_leaves_with_its_worker_is_made_anew() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    for worker in ["one", "two"] {
        stack.start_worker_with(worker, &["--max-tasks", "1"]).await;
    }
    let source = stack.source().await;
    source
        .batch_execute("CREATE TABLE log (id int PRIMARY KEY, x text); INSERT INTO log SELECT n, repeat('x', 500) FROM generate_series(1, 60000) n; ANALYZE log")
        .await
        .unwrap();
    let tables = "  - {source: public.log, target: log, tableEngine: MergeTree}";
    let settings = "settings: {snapshotNumRowsPerPartition: 1000, initialLoadParallelism: 2}";
    stack.apply(&stack.write_pipe("append", tables, settings)).await;
    let shown = || async { stack.get("append").await };
    stack
        .wait("a partition to be done", async || {
            shown().await["tables"][0]["partitionsDone"].as_u64().unwrap_or(0) >= 1
        })
        .await;
    let assignments = shown().await["status"]["assignments"].clone();
    let snapshot = assignments.as_array().unwrap().iter().find(|held| held["work"] == "snapshot");
    let holder = usize::from(snapshot.expect("the copy is under way")["workerId"] == "two");
    stack.fleet.workers[holder].leave().await;
    stack
        .wait("the new copy to be in its place", async || {
            let table = stack.get("append").await["tables"][0].clone();
            table["state"] == "TABLE_STATE_STREAMING" && table["successor"].is_null()
        })
        .await;
    source.batch_execute("INSERT INTO log VALUES (60001, 'last')").await.unwrap();
    stack.caught_up("append").await;
    assert_eq!(number(&stack, "SELECT count() FROM mirror.log").await, 60_001);
    assert_eq!(number(&stack, "SELECT uniqExact(id) FROM mirror.log").await, 60_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_null_table_feeds_its_views() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source
        .batch_execute("CREATE TABLE hits (id int PRIMARY KEY, page text); INSERT INTO hits VALUES (1, 'a')")
        .await
        .unwrap();
    for sql in [
        "CREATE DATABASE mirror ENGINE = Atomic",
        "CREATE TABLE mirror.hits (id Int32, page Nullable(String), _millrace_version UInt64, _millrace_is_deleted UInt8, \
         _millrace_synced_at DateTime64(9)) ENGINE = Null",
        "CREATE MATERIALIZED VIEW mirror.pages ENGINE = MergeTree ORDER BY tuple() AS SELECT id, page FROM mirror.hits WHERE _millrace_is_deleted = 0",
    ] {
        stack.destination().query(sql).execute().await.unwrap();
    }
    let tables = "  - {source: public.hits, target: hits, tableEngine: 'Null'}";
    stack.apply(&stack.write_pipe("nulls", tables, "")).await;
    stack.wait_for("nulls", "Running").await;
    source
        .batch_execute("INSERT INTO hits VALUES (2, 'b'); TRUNCATE hits; INSERT INTO hits VALUES (3, 'c')")
        .await
        .unwrap();
    stack.caught_up("nulls").await;
    assert_eq!(number(&stack, "SELECT toUInt64(sum(id)) FROM mirror.pages").await, 6);
    assert_eq!(number(&stack, "SELECT count() FROM mirror.hits").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_and_kept_deletions_and_other_names() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source
        .batch_execute(
            "CREATE TABLE visits (id int, at date, note text, PRIMARY KEY (id, at));
             INSERT INTO visits SELECT n, date '2024-01-15' + n * 31, 'n' FROM generate_series(1, 12) n;",
        )
        .await
        .unwrap();
    let tables = "  - {source: public.visits, target: visits, partitionByExpr: toYYYYMM(at)}";
    let settings = "settings: {deleteOnMerge: false, metadataColumns: peerdb}";
    stack.apply(&stack.write_pipe("visits", tables, settings)).await;
    stack.wait_for("visits", "Running").await;
    source
        .batch_execute("DELETE FROM visits WHERE id = 1; UPDATE visits SET at = '2023-05-05' WHERE id = 2; UPDATE visits SET note = 'm' WHERE id = 3")
        .await
        .unwrap();
    stack.caught_up("visits").await;
    let live = "SELECT count() FROM mirror.visits FINAL WHERE _peerdb_is_deleted = 0";
    assert_eq!(number(&stack, live).await, 11);
    // The engine does not hide what is deleted; both the deleted row and the old place of the one that moved are there.
    assert_eq!(number(&stack, "SELECT count() FROM mirror.visits FINAL").await, 13);
    let partitions = "SELECT uniqExact(partition) FROM system.parts WHERE database = 'mirror' AND table = 'visits' AND active";
    assert_eq!(number(&stack, partitions).await, 13);
    let moved = "SELECT count() FROM mirror.visits FINAL WHERE _peerdb_is_deleted = 0 AND id = 2 AND at = '2023-05-05'";
    assert_eq!(number(&stack, moved).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_expression_is_checked_before_anything_is_made() {
    let stack = Stack::start().await;
    stack
        .source()
        .await
        .batch_execute("CREATE TABLE visits (id int PRIMARY KEY, at date NOT NULL)")
        .await
        .unwrap();
    for (expression, expected) in [
        ("toYYYYMM(at)", "columns of the sorting key"),
        ("toYYYYMM(", "cannot be used"),
        ("no_such_function(id)", "no_such_function"),
    ] {
        let tables =
            format!("  - {{source: public.visits, target: visits, partitionByExpr: '{expression}'}}");
        let path = stack.write_pipe("bad", &tables, "");
        let said = stack.run(&["pipe", "validate", "-f", path.to_str().unwrap()]).await;
        let told = String::from_utf8(said.stdout).unwrap();
        assert_eq!(said.status.code(), Some(1), "{expression}: {told}");
        let said = told;
        assert!(said.contains("PARTITION_EXPRESSION_INVALID") && said.contains(expected), "{said}");
    }
}
