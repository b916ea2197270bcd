//! Values that are stored out of line and that an update leaves out are kept, wherever they have to be found.

use crate::stack::Stack;

/// Long values of several types, none of which compresses into its row.
const COLUMNS: &str = "id int PRIMARY KEY, small int, words text, bytes bytea, document jsonb, list int[], digits numeric, pairs hstore";

fn long(seed: &str) -> String {
    format!(
        "(SELECT string_agg(md5({seed}::text || n), '') FROM generate_series(1, 300) n), \
         (SELECT string_agg(decode(md5(n || {seed}::text), 'hex'), ''::bytea) FROM generate_series(1, 500) n), \
         (SELECT jsonb_object_agg(md5({seed}::text || n), n) FROM generate_series(1, 200) n), \
         (SELECT array_agg(CASE WHEN n % 7 = 0 THEN NULL ELSE hashtext({seed}::text || n) END) FROM generate_series(1, 1500) n), \
         (SELECT string_agg(abs(hashtext({seed}::text || n))::text, '')::numeric FROM generate_series(1, 700) n), \
         (SELECT hstore(array_agg(md5({seed}::text || n)), array_agg(CASE WHEN n % 7 = 0 THEN NULL ELSE n::text END)) FROM generate_series(1, 200) n)"
    )
}

async fn values_are_kept(further: &str) {
    let stack = Stack::start().await;
    let source = stack.source().await;
    let fill = format!(
        "CREATE EXTENSION hstore; CREATE TABLE wide ({COLUMNS}{further}); INSERT INTO wide SELECT g, g, {} FROM generate_series(1, 30) g;",
        long("g")
    );
    source.batch_execute(&fill).await.unwrap();
    stack.apply(&stack.write_pipe_of("toast", &["wide"], "")).await;
    stack.wait_for("toast", "Running").await;
    // Out of the copy, alone and with other changes of the row in one transaction.
    source
        .batch_execute(
            "UPDATE wide SET small = -1 WHERE id <= 10;
             BEGIN; UPDATE wide SET small = -2 WHERE id = 11; UPDATE wide SET small = -3 WHERE id = 11; COMMIT;
             UPDATE wide SET id = 112 WHERE id = 12;
             BEGIN; UPDATE wide SET id = 113 WHERE id = 13; UPDATE wide SET small = -4 WHERE id = 113; UPDATE wide SET id = 213 WHERE id = 113; COMMIT;
             BEGIN; UPDATE wide SET id = 999 WHERE id = 14; UPDATE wide SET id = 14 WHERE id = 15; UPDATE wide SET id = 15 WHERE id = 999; COMMIT;
             BEGIN; UPDATE wide SET small = -5 WHERE id = 16; UPDATE wide SET words = 'short' WHERE id = 16; UPDATE wide SET small = -6 WHERE id = 16; COMMIT;
             BEGIN; UPDATE wide SET small = -7 WHERE id = 17; DELETE FROM wide WHERE id = 17; COMMIT;",
        )
        .await
        .unwrap();
    stack.caught_up("toast").await;
    stack.assert_equal("wide", &["id"]).await;
    // Out of an earlier batch, and out of the same one.
    source.batch_execute("UPDATE wide SET small = small - 100").await.unwrap();
    let within = format!(
        "BEGIN; INSERT INTO wide SELECT g, g, {} FROM generate_series(300, 310) g; UPDATE wide SET small = 0 WHERE id >= 300;
         UPDATE wide SET id = id + 100 WHERE id >= 305; DELETE FROM wide WHERE id = 300; INSERT INTO wide (id, words) VALUES (300, 'again'); COMMIT;",
        long("g")
    );
    source.batch_execute(&within).await.unwrap();
    source.batch_execute("UPDATE wide SET small = 7 WHERE id % 2 = 0").await.unwrap();
    stack.caught_up("toast").await;
    stack.assert_equal("wide", &["id"]).await;
    let shown = stack.get("toast").await;
    assert_eq!(shown["status"]["tablesSetAside"], 0, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_values_are_kept_in_a_binary_stream() {
    values_are_kept("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_values_are_kept_in_a_text_stream() {
    values_are_kept(", address inet").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_values_are_kept_when_the_copy_was_resumed_under_a_later_snapshot() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    stack.start_worker_with("one", &["--max-tasks", "1"]).await;
    let source = stack.source().await;
    let fill = format!(
        "CREATE EXTENSION hstore; CREATE TABLE base ({COLUMNS}); INSERT INTO base SELECT g, g, {} FROM generate_series(0, 49) g;
         CREATE TABLE wide (LIKE base INCLUDING ALL); INSERT INTO wide SELECT n, n, words, bytes, document, list, digits, pairs
           FROM generate_series(1, 4000) n JOIN base ON base.id = n % 50 ORDER BY n; ANALYZE wide;",
        long("g")
    );
    source.batch_execute(&fill).await.unwrap();
    let settings = "settings: {snapshotNumRowsPerPartition: 1000, initialLoadParallelism: 1}";
    stack.apply(&stack.write_pipe_of("toast", &["wide"], settings)).await;
    let done =
        async |stack: &Stack| stack.get("toast").await["tables"][0]["partitionsDone"].as_u64().unwrap_or(0);
    stack.wait("a partition to be done", async || done(&stack).await >= 1).await;
    stack.fleet.workers[0].kill().await;
    // Nobody holds the snapshot any more. What is copied later is younger than the beginning of the stream: rows have moved on, and others
    // have taken their keys.
    source
        .batch_execute(
            "UPDATE wide SET small = 1 WHERE id > 3000;
             UPDATE wide SET id = id + 10000 WHERE id > 3500;
             UPDATE wide SET id = id + 500 WHERE id > 3000 AND id <= 3500;
             UPDATE wide SET small = 2 WHERE id > 3500 AND id % 2 = 0;
             UPDATE wide SET id = id - 10500 WHERE id > 13500;",
        )
        .await
        .unwrap();
    stack.fleet.workers[0].start_again().await;
    stack.wait_for("toast", "Running").await;
    source.batch_execute("UPDATE wide SET small = small + 1 WHERE id > 2900").await.unwrap();
    stack.caught_up("toast").await;
    stack.assert_equal("wide", &["id"]).await;
    assert_eq!(stack.get("toast").await["status"]["tablesSetAside"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_found_at_the_source_also_under_the_names_that_they_have_there_by_now() {
    let mut stack = Stack::start().await;
    let source = stack.source().await;
    let fill = format!(
        "CREATE EXTENSION hstore; CREATE TABLE wide ({COLUMNS}); INSERT INTO wide SELECT g, g, {} FROM generate_series(1, 30) g;
         CREATE TABLE lost (id int PRIMARY KEY, small int, words text); INSERT INTO lost SELECT id, small, words FROM wide;",
        long("g")
    );
    source.batch_execute(&fill).await.unwrap();
    stack.apply(&stack.write_pipe_of("toast", &["wide", "lost"], "")).await;
    stack.wait_for("toast", "Running").await;
    for worker in &mut stack.fleet.workers {
        worker.kill().await;
    }
    // Rows that the destination has lost stand at the source only, where the columns are called otherwise by the time that the stream comes to the updates.
    for table in ["wide", "lost"] {
        let delete = format!("ALTER TABLE mirror.{table} DELETE WHERE id <= 10 SETTINGS mutations_sync = 2");
        stack.destination().query(&delete).execute().await.unwrap();
    }
    source
        .batch_execute(
            "UPDATE wide SET small = -1 WHERE id <= 10; UPDATE lost SET small = -1 WHERE id <= 10;
             ALTER TABLE wide RENAME COLUMN words TO sentences; ALTER TABLE wide RENAME COLUMN pairs TO tags; UPDATE wide SET small = -2 WHERE id = 20;
             ALTER TABLE lost DROP COLUMN words; UPDATE lost SET small = -2 WHERE id = 20;",
        )
        .await
        .unwrap();
    for worker in &mut stack.fleet.workers {
        worker.start_again().await;
    }
    stack.caught_up("toast").await;
    stack.assert_equal("wide", &["id"]).await;
    // What nobody has any more is not made up.
    let shown = stack.get("toast").await;
    assert_eq!(shown["status"]["tablesSetAside"], 1, "{shown}");
    let message = shown["tables"][1]["problem"]["message"].as_str().unwrap();
    assert!(message.contains("a column was dropped whose values"), "{message}");
}
