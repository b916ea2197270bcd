//! Transactions that are prepared, that are rolled back in part, and that are open side by side for long.

use crate::stack::Stack;

const TABLES: &str = "CREATE TABLE parts (id int PRIMARY KEY, x int, note text); ALTER TABLE parts ALTER note SET STORAGE EXTERNAL;
    INSERT INTO parts SELECT n, n, repeat('n', 3000) FROM generate_series(1, 100) n;";

/// A pipe whose source sends transactions in blocks as soon as they are larger than 64 kB.
async fn streaming() -> Stack {
    let stack = Stack::start().await;
    let source = stack.source().await;
    for sql in ["ALTER SYSTEM SET logical_decoding_work_mem = '64kB'", "SELECT pg_reload_conf()", TABLES] {
        source.batch_execute(sql).await.unwrap();
    }
    stack.apply(&stack.write_pipe_of("transactions", &["parts"], "settings: {pullBatchSize: 1000}")).await;
    stack.wait_for("transactions", "Running").await;
    stack.caught_up("transactions").await;
    stack
}

async fn streamed_in_blocks(stack: &Stack) -> i64 {
    let sql = "SELECT coalesce(sum(stream_txns), 0)::bigint FROM pg_stat_replication_slots";
    stack.source().await.query_one(sql, &[]).await.unwrap().get(0)
}

/// Rows of transactions in the destination.
async fn seen(stack: &Stack) -> u64 {
    let sql = "SELECT count() FROM mirror.parts FINAL WHERE id > 1000";
    stack.destination().query(sql).fetch_one().await.unwrap()
}

async fn assert_equal(stack: &Stack) {
    stack.caught_up("transactions").await;
    stack.assert_equal("parts", &["id"]).await;
    let shown = stack.get("transactions").await;
    assert_eq!(shown["status"]["tablesSetAside"], 0, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_transactions_are_seen_when_they_are_committed_and_not_before() {
    let mut stack = streaming().await;
    let source = stack.source().await;
    let prepare = |name: &str, first: u32, rows: u32, row: u32| {
        format!(
            "BEGIN; INSERT INTO parts SELECT n, 0, 'prepared' FROM generate_series({first}, {first} + {rows} - 1) n;
             UPDATE parts SET x = -{row} WHERE id = {row}; UPDATE parts SET id = id + 500 WHERE id = {row} + 1; DELETE FROM parts WHERE id = {row} + 2;
             PREPARE TRANSACTION '{name}';"
        )
    };
    // Two of each kind: small ones, and such as are sent while they are in progress.
    for (name, first, rows, row) in [
        ("small", 1001, 10, 10),
        ("void", 2001, 10, 20),
        ("large", 10_001, 5000, 30),
        ("large void", 20_001, 5000, 40),
    ] {
        source.batch_execute(&prepare(name, first, rows, row)).await.unwrap();
    }
    stack.wait("the large ones to be sent", async || streamed_in_blocks(&stack).await >= 2).await;
    // What commits meanwhile overtakes.
    source.batch_execute("INSERT INTO parts VALUES (900, 1, 'meanwhile')").await.unwrap();
    stack.caught_up("transactions").await;
    assert_eq!(seen(&stack).await, 0, "nothing of a transaction that is only prepared may be seen");
    assert_equal(&stack).await;

    // They outlive everybody.
    for worker in &mut stack.fleet.workers {
        worker.kill().await;
    }
    stack.postgres.kill().await.unwrap();
    stack.postgres.restart().await.unwrap();
    for worker in &mut stack.fleet.workers {
        worker.start_again().await;
    }
    let source = stack.source().await;
    source.batch_execute("ROLLBACK PREPARED 'void'").await.unwrap();
    source.batch_execute("COMMIT PREPARED 'large'").await.unwrap();
    source.batch_execute("INSERT INTO parts VALUES (901, 1, 'between')").await.unwrap();
    source.batch_execute("ROLLBACK PREPARED 'large void'").await.unwrap();
    assert_equal(&stack).await;
    assert_eq!(seen(&stack).await, 5000);
    source.batch_execute("COMMIT PREPARED 'small'").await.unwrap();
    assert_equal(&stack).await;
    assert_eq!(seen(&stack).await, 5010);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_subtransactions_did_is_kept_or_void_with_them_at_any_depth() {
    let stack = streaming().await;
    let source = stack.source().await;
    let insert = |first: u32| {
        format!("INSERT INTO parts SELECT n, 0, 'n' FROM generate_series({first}, {first} + 1999) n;")
    };
    // Each part is large enough to be sent before its end is known. Void in the end: c with what was released into it (d), and what came after g in h.
    let nested = format!(
        "BEGIN; {} SAVEPOINT a; {} SAVEPOINT b; {} RELEASE b; SAVEPOINT c; {} SAVEPOINT d; {} UPDATE parts SET x = -1 WHERE id <= 50; RELEASE d; ROLLBACK TO c;
         UPDATE parts SET x = -2 WHERE id <= 10; {} RELEASE a; SAVEPOINT g; {} SAVEPOINT h; {} ROLLBACK TO h; UPDATE parts SET id = id + 500 WHERE id BETWEEN 20 AND 25; RELEASE g; COMMIT;",
        insert(10_001),
        insert(20_001),
        insert(30_001),
        insert(40_001),
        insert(50_001),
        insert(60_001),
        insert(70_001),
        insert(80_001),
    );
    source.batch_execute(&nested).await.unwrap();
    // More subtransactions than a backend keeps at hand, every third of them void, some of them with others inside.
    source
        .batch_execute(
            "DO $$ BEGIN
               FOR n IN 1..300 LOOP
                 BEGIN
                   INSERT INTO parts SELECT 100000 + n * 100 + m, n, 'looped' FROM generate_series(1, 20) m;
                   BEGIN
                     UPDATE parts SET x = x + 1 WHERE id = n % 100 + 1;
                     IF n % 5 = 0 THEN RAISE EXCEPTION 'inner'; END IF;
                   EXCEPTION WHEN raise_exception THEN NULL;
                   END;
                   IF n % 3 = 0 THEN RAISE EXCEPTION 'outer' USING ERRCODE = 'ZZ001'; END IF;
                 EXCEPTION WHEN SQLSTATE 'ZZ001' THEN NULL;
                 END;
               END LOOP;
             END $$;",
        )
        .await
        .unwrap();
    assert_equal(&stack).await;
    assert!(streamed_in_blocks(&stack).await >= 2);
    assert_eq!(seen(&stack).await, 5 * 2000 + 200 * 20);
    // A transaction of which nothing is left but a subtransaction that was rolled back.
    source
        .batch_execute(&format!(
            "BEGIN; SAVEPOINT s; {} ROLLBACK TO s; COMMIT; INSERT INTO parts VALUES (902, 1, 'after')",
            insert(90_001)
        ))
        .await
        .unwrap();
    assert_equal(&stack).await;
    assert_eq!(seen(&stack).await, 5 * 2000 + 200 * 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn ninety_long_transactions_side_by_side_arrive_whole_or_not_at_all() {
    const CLIENTS: u32 = 90;
    const ROUNDS: u32 = 4;
    const ROWS: u32 = 60;
    let stack = streaming().await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(stack.source().await);
        clients.last().unwrap().batch_execute("BEGIN").await.unwrap();
    }
    for round in 0..ROUNDS {
        for (number, client) in (0..).zip(&clients) {
            let first = 10_000 * (number + 1) + round * ROWS;
            // A subtransaction stays open for a round, in which the source may send it.
            let ended = match (round, (number + round) % 2) {
                (0, _) => String::new(),
                (_, 0) => "ROLLBACK TO s;".to_owned(),
                _ => "RELEASE s;".to_owned(),
            };
            client
                .batch_execute(&format!(
                    "{ended} INSERT INTO parts SELECT n, {round}, repeat('x', 500) FROM generate_series({first}, {first} + {ROWS} - 1) n;
                     UPDATE parts SET x = {first} WHERE id = {number} + 1;
                     SAVEPOINT s; DELETE FROM parts WHERE id = {first}; UPDATE parts SET x = -1 WHERE id = {first} + 1;
                     INSERT INTO parts SELECT {first} + 5000 + n, -1, repeat('y', 500) FROM generate_series(1, {ROWS}) n;",
                ))
                .await
                .unwrap();
        }
    }
    stack.wait("transactions to be sent in blocks", async || streamed_in_blocks(&stack).await >= 10).await;
    stack.source().await.batch_execute("INSERT INTO parts VALUES (903, 1, 'meanwhile')").await.unwrap();
    stack.caught_up("transactions").await;
    assert_eq!(seen(&stack).await, 0, "nothing of an open transaction may be seen");
    // The youngest ends first, every fifth in vain, and half of them change what others have left behind.
    for (number, client) in (0..CLIENTS).zip(&clients).rev() {
        if number % 2 == 0 && number + 1 < CLIENTS {
            let next = 10_000 * (number + 2) + 5;
            client.batch_execute(&format!("UPDATE parts SET x = {number} WHERE id = {next}")).await.unwrap();
        }
        client.batch_execute(if number % 5 == 0 { "ROLLBACK" } else { "COMMIT" }).await.unwrap();
    }
    assert_equal(&stack).await;
    let rows: i64 = stack
        .source()
        .await
        .query_one("SELECT count(*) FROM parts WHERE id > 1000", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(seen(&stack).await, u64::try_from(rows).unwrap());
    assert!(rows > i64::from(CLIENTS / 5 * 4 * ROUNDS * (ROWS - 1)));
}
