//! A pipe that is far behind takes its backlog in bulk.

use crate::stack::Stack;

/// A paused pipe with a backlog of inserts, updates, moves and deletes of two tables, well beyond what the stream is left to carry.
async fn behind() -> Stack {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source
        .batch_execute(
            "CREATE TABLE a (id int PRIMARY KEY, x int, note text); CREATE TABLE b (id int PRIMARY KEY, note text);
             ALTER TABLE a ALTER note SET STORAGE EXTERNAL; INSERT INTO a SELECT n, n, repeat('a', 3000) FROM generate_series(1, 200) n;",
        )
        .await
        .unwrap();
    stack.apply(&stack.write_pipe_of("late", &["a", "b"], "")).await;
    stack.wait_for("late", "Running").await;
    stack.ok(&["pipe", "pause", "late"]).await;
    stack.wait_for("late", "Paused").await;
    for round in 0..12 {
        source
            .batch_execute(&format!(
                "INSERT INTO a SELECT n, 0, 'n' FROM generate_series({first}, {first} + 19999) n;
                 UPDATE a SET x = x + 1 WHERE id <= 200; UPDATE a SET id = -id WHERE id % 1000 = {round}; DELETE FROM a WHERE id % 777 = {round};
                 BEGIN; INSERT INTO b SELECT n, repeat('b', 40) FROM generate_series({first}, {first} + 9999) n; SAVEPOINT s; DELETE FROM b; ROLLBACK TO s; COMMIT;",
                first = 1000 + round * 20_000
            ))
            .await
            .unwrap();
    }
    stack
}

async fn in_bulk(stack: &Stack) -> bool {
    stack.logs().contains("taking the backlog in bulk")
}

async fn ends_equal(stack: &Stack) {
    stack.wait_for("late", "Running").await;
    stack.caught_up("late").await;
    // What the stream brings after it.
    stack
        .source()
        .await
        .batch_execute("UPDATE a SET x = -1 WHERE id <= 100; INSERT INTO b VALUES (-1, 'after')")
        .await
        .unwrap();
    stack.caught_up("late").await;
    for table in ["a", "b"] {
        stack.assert_equal(table, &["id"]).await;
    }
    assert_eq!(stack.get("late").await["status"]["tablesSetAside"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_taken_in_bulk_and_the_stream_goes_on_behind_it() {
    let stack = behind().await;
    stack
        .source()
        .await
        .batch_execute("ALTER TABLE b ADD COLUMN added int DEFAULT 7; INSERT INTO b VALUES (-2, 'n', 8)")
        .await
        .unwrap();
    stack.ok(&["pipe", "resume", "late"]).await;
    ends_equal(&stack).await;
    assert!(in_bulk(&stack).await, "{}", stack.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_in_the_middle_of_a_backlog_nothing_is_lost() {
    let mut stack = behind().await;
    stack.ok(&["pipe", "resume", "late"]).await;
    for _ in 0..2 {
        stack
            .wait("a part of the backlog to arrive", async || {
                let count = "SELECT count() FROM mirror.a";
                stack.destination().query(count).fetch_one::<u64>().await.unwrap() > 1000
            })
            .await;
        for worker in &mut stack.fleet.workers {
            worker.kill().await;
            worker.start_again().await;
        }
    }
    ends_equal(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_in_the_middle_of_a_backlog_keeps_its_place() {
    let stack = behind().await;
    stack.ok(&["pipe", "resume", "late"]).await;
    stack.wait("the backlog to be begun", async || in_bulk(&stack).await).await;
    stack.ok(&["pipe", "pause", "late"]).await;
    let paused = stack.run(&["pipe", "wait", "late", "--state", "Paused", "--timeout", "30s"]).await;
    assert!(paused.status.success());
    let active = "SELECT active FROM pg_replication_slots";
    assert!(!stack.source().await.query_one(active, &[]).await.unwrap().get::<_, bool>(0));
    stack.ok(&["pipe", "resume", "late"]).await;
    ends_equal(&stack).await;
}
