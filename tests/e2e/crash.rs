//! Whoever is killed, nothing is lost or doubled.

use crate::life::running;
use crate::load::{Churn, SETTINGS, TABLES, assert_all_equal, sample_tables};
use crate::stack::{Stack, signal};

const ROWS: u32 = 120_000;

/// A load that has begun and is not done: small partitions, one copy of each worker at a time.
async fn loading() -> (Stack, Churn) {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    for id in ["one", "two"] {
        stack.start_worker_with(id, &["--max-tasks", "1"]).await;
    }
    sample_tables(&stack.source().await, ROWS).await;
    let churn = Churn::start(&stack, ROWS).await;
    let settings = SETTINGS.replace("5000", "1000");
    stack.apply(&stack.write_pipe_of("shop", &TABLES, &settings)).await;
    stack
        .wait("some partitions to be done, and not all", async || {
            let done = stack.get("shop").await["tables"][0]["partitionsDone"].as_u64().unwrap_or(0);
            done >= 3
        })
        .await;
    (stack, churn)
}

async fn ends_equal(stack: Stack, churn: Churn) {
    stack.wait_for("shop", "Running").await;
    churn.stop().await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_is_killed_during_the_load() {
    let (mut stack, churn) = loading().await;
    stack.coordinator().kill().await;
    stack.coordinator().start_again().await;
    ends_equal(stack, churn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_workers_are_killed_one_after_the_other_during_the_load() {
    let (mut stack, churn) = loading().await;
    // Whoever holds the snapshot is among them: the rest is read under another one.
    for worker in 0..2 {
        stack.fleet.workers[worker].kill().await;
        stack.fleet.workers[worker].start_again().await;
    }
    ends_equal(stack, churn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_of_ours_is_killed_at_once_during_the_load() {
    let (mut stack, churn) = loading().await;
    stack.coordinator().kill().await;
    for worker in &mut stack.fleet.workers {
        worker.kill().await;
    }
    stack.coordinator().start_again().await;
    for worker in &mut stack.fleet.workers {
        worker.start_again().await;
    }
    ends_equal(stack, churn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_partitions_are_not_read_again_after_a_crash() {
    let (mut stack, churn) = loading().await;
    churn.stop().await;
    let done = |shown: &serde_json::Value| shown["tables"][0]["partitionsDone"].as_u64().unwrap();
    let before = done(&stack.get("shop").await);
    stack.fleet.workers[0].kill().await;
    stack.coordinator().kill().await;
    stack.coordinator().start_again().await;
    stack.fleet.workers[0].start_again().await;
    assert!(done(&stack.get("shop").await) >= before, "what was done is still done");
    stack.wait_for("shop", "Running").await;
    // Copied rows that the destination was ever sent: a partition that was read twice would show here.
    let total = stack.get("shop").await["tables"][0]["partitionsTotal"].as_u64().unwrap();
    let mut copied = 0;
    for worker in ["one", "two"] {
        let log = std::fs::read_to_string(stack.folder.path().join(format!("worker-{worker}.log"))).unwrap();
        copied += log
            .lines()
            .filter(|line| line.contains("partition copied") && line.contains("public.orders"))
            .count() as u64;
    }
    // The two that were in hand at the crash may have been finished without anybody hearing of it.
    assert!(copied <= total + 2, "{copied} copies of {total} partitions");
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_and_then_all_are_killed_while_changes_stream() {
    let mut stack = running(5000).await;
    let churn = Churn::start(&stack, 5000).await;
    stack.coordinator().kill().await;
    stack.coordinator().start_again().await;
    for worker in 0..2 {
        stack.fleet.workers[worker].kill().await;
        stack.fleet.workers[worker].start_again().await;
    }
    stack.coordinator().kill().await;
    for worker in &mut stack.fleet.workers {
        worker.kill().await;
    }
    stack.coordinator().start_again().await;
    for worker in &mut stack.fleet.workers {
        worker.start_again().await;
    }
    churn.stop().await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    assert_eq!(stack.get("shop").await["status"]["state"], "PIPE_STATE_RUNNING");
}

#[tokio::test(flavor = "multi_thread")]
async fn source_and_destination_are_killed_while_changes_stream() {
    let mut stack = running(5000).await;
    let churn = Churn::start(&stack, 5000).await;
    stack.clickhouse.kill().await.unwrap();
    stack.clickhouse.restart().await.unwrap();
    churn.stop().await;
    stack.postgres.kill().await.unwrap();
    stack.postgres.restart().await.unwrap();
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    assert_eq!(
        stack.states("shop").await.last().unwrap(),
        "RUNNING",
        "trouble that passes never fails a pipe"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_to_leave_drains_its_stream_and_another_goes_on() {
    let mut stack = running(2000).await;
    let churn = Churn::start(&stack, 2000).await;
    let holder = |shown: &serde_json::Value| {
        let assignments = shown["status"]["assignments"].as_array().cloned().unwrap_or_default();
        assignments
            .iter()
            .find(|held| held["work"] == "stream")
            .map(|held| held["workerId"].as_str().unwrap().to_owned())
    };
    stack.wait("somebody to stream", async || holder(&stack.get("shop").await).is_some()).await;
    let first = holder(&stack.get("shop").await).unwrap();
    let leaving = usize::from(first == "two");
    assert!(stack.fleet.workers[leaving].leave().await, "it did not leave in peace");
    stack
        .wait("the other to stream", async || {
            holder(&stack.get("shop").await).is_some_and(|now| now != first)
        })
        .await;
    churn.stop().await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_never_passes_what_clickhouse_has_not_answered_for() {
    let mut stack = running(500).await;
    let source = stack.source().await;
    stack.caught_up("shop").await;
    let clickhouse = stack.clickhouse.pid().to_string();
    signal("-STOP", &clickhouse).await;
    source
        .batch_execute("INSERT INTO nothing SELECT n, 'held' FROM generate_series(1, 100) n")
        .await
        .unwrap();
    let end: String = source.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0);
    // The worker has received the changes, and has spoken to the source since.
    let sent = format!("SELECT now()::text FROM pg_stat_replication WHERE sent_lsn >= '{end}'::pg_lsn");
    stack.wait("the changes to be sent", async || !source.query(&sent, &[]).await.unwrap().is_empty()).await;
    stack.worker_speaks(&source).await;
    let passed = format!("SELECT confirmed_flush_lsn >= '{end}'::pg_lsn FROM pg_replication_slots");
    assert!(
        !source.query_one(&passed, &[]).await.unwrap().get::<_, bool>(0),
        "forgotten before it was answered for"
    );

    // Nor when the worker dies with what it holds.
    for worker in &mut stack.fleet.workers {
        worker.kill().await;
    }
    signal("-CONT", &clickhouse).await;
    for worker in &mut stack.fleet.workers {
        worker.start_again().await;
    }
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_a_user_drains_hands_its_stream_over_and_gets_nothing_more() {
    let mut stack = running(5_000).await;
    let churn = Churn::start(&stack, 5_000).await;
    let streamer = async |stack: &Stack| {
        let assignments = stack.get("shop").await["status"]["assignments"].clone();
        let stream =
            assignments.as_array().into_iter().flatten().find(|held| held["work"] == "stream").cloned();
        stream.and_then(|held| held["workerId"].as_str().map(str::to_owned)).unwrap_or_default()
    };
    let first = streamer(&stack).await;
    let said = stack.ok(&["worker", "drain", &first]).await;
    assert!(said.contains("holds nothing"), "{said}");
    stack
        .wait("the other one to stream", async || {
            !["", first.as_str()].contains(&streamer(&stack).await.as_str())
        })
        .await;
    // Also where it comes back meanwhile, or where nobody else is left.
    let second = streamer(&stack).await;
    let place = usize::from(second == "two");
    stack.fleet.workers[place].kill().await;
    stack
        .wait("the pipe to say that nobody takes its stream", async || {
            let shown = stack.get("shop").await;
            shown["status"]["next"].as_str().unwrap_or_default().contains("busy or leaving")
        })
        .await;
    stack.ok(&["worker", "drain", &first, "--undo"]).await;
    stack.wait("it to stream again", async || streamer(&stack).await == first).await;
    assert!(stack.fails(&["worker", "drain", "nobody"]).await.contains("worker list"));
    ends_equal(stack, churn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_wakes_up_after_its_lease_puts_no_older_rows_into_a_copy_that_began_anew() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    stack.start_worker("one").await;
    let source = stack.source().await;
    source
        .batch_execute(
            "CREATE TABLE wide (id int PRIMARY KEY, state text NOT NULL, filling text NOT NULL);
             INSERT INTO wide SELECT n, 'old', repeat('x', 400) FROM generate_series(1, 300000) n; ANALYZE;",
        )
        .await
        .unwrap();
    let settings = "replicationMode: snapshot\nsettings: {snapshotNumRowsPerPartition: 100000}";
    stack.apply(&stack.write_pipe_of("once", &["wide"], settings)).await;
    // It holds the snapshot, and rows that it has read and not sent.
    let rows = "SELECT count() FROM mirror.wide";
    stack
        .wait("rows to arrive", async || {
            stack.destination().query(rows).fetch_one::<u64>().await.is_ok_and(|rows| rows > 0)
        })
        .await;
    let stopped = stack.fleet.workers[0].id();
    signal("-STOP", &stopped).await;
    source.batch_execute("UPDATE wide SET state = 'new'").await.unwrap();
    stack.start_worker("two").await;
    stack.wait_for("once", "Completed").await;
    stack.assert_equal("wide", &["id"]).await;
    signal("-CONT", &stopped).await;
    stack
        .wait("it to notice", async || {
            let log = std::fs::read_to_string(stack.folder.path().join("worker-one.log")).unwrap();
            log.contains("LEASE_LOST") || log.contains("nobody has heard this worker for a whole lease")
        })
        .await;
    assert!(stack.fleet.workers[0].leave().await);
    stack.assert_equal("wide", &["id"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_wakes_up_after_its_lease_does_not_bring_back_what_was_truncated_meanwhile() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source.batch_execute("CREATE TABLE notes (id bigserial PRIMARY KEY, note text)").await.unwrap();
    stack.apply(&stack.write_pipe_of("notes", &["notes"], SETTINGS)).await;
    stack.wait_for("notes", "Running").await;
    stack.caught_up("notes").await;
    let streamer = async || {
        let assignments = stack.get("notes").await["status"]["assignments"].clone();
        assignments[0]["workerId"].as_str().unwrap_or_default().to_owned()
    };
    // It has rows in hand that it sends again and again.
    stack.clickhouse.set_profile(&[("readonly", "2")]).unwrap();
    source
        .batch_execute("INSERT INTO notes (note) SELECT 'before' FROM generate_series(1, 20)")
        .await
        .unwrap();
    stack
        .wait("the rows to be refused", async || {
            stack.get("notes").await["tables"][0].to_string().contains("DESTINATION_READ_ONLY")
        })
        .await;
    let first = streamer().await;
    let worker = &stack.fleet.workers[usize::from(first == "two")];
    signal("-STOP", &worker.id()).await;
    stack.clickhouse.set_profile(&[]).unwrap();
    stack
        .wait("the other one to stream", async || !["", first.as_str()].contains(&streamer().await.as_str()))
        .await;
    source.batch_execute("TRUNCATE notes; INSERT INTO notes (note) VALUES ('after')").await.unwrap();
    stack.caught_up("notes").await;
    signal("-CONT", &worker.id()).await;
    stack.worker_is_back(&first).await;
    // Whatever it held has been sent or given up once it has done something else.
    stack.ok(&["worker", "drain", if first == "one" { "two" } else { "one" }]).await;
    stack.wait("it to stream again", async || streamer().await == first).await;
    source.batch_execute("INSERT INTO notes (note) VALUES ('later')").await.unwrap();
    stack.caught_up("notes").await;
    stack.assert_equal("notes", &["id"]).await;
}
