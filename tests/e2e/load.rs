//! The initial load, alone and while the source changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::Client;

use crate::stack::Stack;

/// Two tables of some size and one that is empty; small partitions, so that there are many.
pub(crate) async fn sample_tables(source: &Client, rows: u32) {
    source
        .batch_execute(&format!(
            "CREATE TABLE orders (id bigint PRIMARY KEY, customer int NOT NULL, placed timestamptz NOT NULL, note text, \
               total numeric(12,2), detail jsonb, open bool NOT NULL);
             INSERT INTO orders SELECT n, n % 1000, timestamptz '2024-01-01 00:00:00+00' + n * interval '1 second', \
               CASE WHEN n % 7 = 0 THEN NULL ELSE 'note ' || n || repeat('x', n % 50) END, n * 1.25, \
               jsonb_build_object('n', n, 'tags', array['a','b']), n % 2 = 0 FROM generate_series(1, {rows}) n;
             CREATE TABLE items (order_id bigint, line int, sku text NOT NULL, PRIMARY KEY (order_id, line));
             INSERT INTO items SELECT n, l, 'sku-' || n || '-' || l FROM generate_series(1, {rows} / 4) n, generate_series(1, 2) l;
             CREATE TABLE nothing (id int PRIMARY KEY, name text);
             ANALYZE;"
        ))
        .await
        .unwrap();
}

pub(crate) const SETTINGS: &str =
    "settings: {snapshotNumRowsPerPartition: 5000, snapshotNumberOfParallelTables: 2, syncInterval: 200ms}";
pub(crate) const TABLES: [&str; 3] = ["orders", "items", "nothing"];

pub(crate) async fn assert_all_equal(stack: &Stack) {
    stack.assert_equal("orders", &["id"]).await;
    stack.assert_equal("items", &["order_id", "line"]).await;
    stack.assert_equal("nothing", &["id"]).await;
}

/// Changes of all kinds, until stopped: inserts, updates that move rows, deletes, key changes, roll-backs.
pub(crate) struct Churn {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u32>,
}

impl Churn {
    pub(crate) async fn start(stack: &Stack, rows: u32) -> Self {
        let mut client = stack.source().await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut rounds = 0;
            while !stopped.load(Ordering::Relaxed) {
                rounds += 1;
                // Walks over the table, so that every part of it changes while it is copied.
                let at = i64::from((rounds * 7919) % rows);
                let fresh = i64::from(rows + rounds * 10);
                let transaction = client.transaction().await.unwrap();
                let run = async |sql: &str, parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)]| {
                    transaction.execute(sql, parameters).await.unwrap();
                };
                run("INSERT INTO orders SELECT $1::bigint + n, 1, now(), 'new', 1, '{}', true FROM generate_series(0, 4) n", &[&fresh]).await;
                run("UPDATE orders SET note = repeat('y', 200), total = total + 1 WHERE id BETWEEN $1 AND $1::bigint + 20", &[&at]).await;
                run("DELETE FROM orders WHERE id BETWEEN $1::bigint + 30 AND $1::bigint + 35", &[&at]).await;
                run("UPDATE orders SET id = -id WHERE id = $1::bigint + 40", &[&at]).await;
                run("UPDATE items SET sku = sku || '!' WHERE order_id BETWEEN $1 AND $1::bigint + 5", &[&at])
                    .await;
                run(
                    "INSERT INTO nothing VALUES ($1::int, 'x') ON CONFLICT DO NOTHING",
                    &[&i32::try_from(rounds).unwrap()],
                )
                .await;
                if rounds % 5 == 0 {
                    transaction.rollback().await.unwrap();
                } else {
                    transaction.commit().await.unwrap();
                }
            }
            rounds
        });
        Self { stop, task }
    }

    /// Stops; gives how many rounds there were.
    pub(crate) async fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_load_several_tables_while_the_source_changes() {
    let stack = Stack::start().await;
    sample_tables(&stack.source().await, 60_000).await;
    let churn = Churn::start(&stack, 60_000).await;
    stack.apply(&stack.write_pipe_of("shop", &TABLES, SETTINGS)).await;
    stack.wait_for("shop", "Running").await;
    assert!(churn.stop().await > 0);
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    assert_eq!(stack.states("shop").await, ["PROVISIONING", "SETUP", "SNAPSHOT", "RUNNING"]);

    // Both workers took part in the largest table.
    let shown = stack.get("shop").await;
    let orders = &shown["tables"][0];
    assert!(orders["partitionsTotal"].as_u64().unwrap() >= 6, "{orders}");
    assert_eq!(orders["partitionsDone"], orders["partitionsTotal"]);
    for worker in ["one", "two"] {
        let log = std::fs::read_to_string(stack.folder.path().join(format!("worker-{worker}.log"))).unwrap();
        assert!(
            log.contains("partition copied") && log.contains("public.orders"),
            "worker {worker} copied nothing:\n{log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_only_pipe_completes_and_leaves_nothing_at_the_source() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    sample_tables(&source, 20_000).await;
    let settings = format!("replicationMode: snapshot\n{SETTINGS}");
    stack.apply(&stack.write_pipe_of("once", &TABLES, &settings)).await;
    stack.wait_for("once", "Completed").await;
    assert_all_equal(&stack).await;
    stack
        .wait("the temporary slot to vanish", async || {
            let row = source.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap();
            row.get::<_, i64>(0) == 0
        })
        .await;
    assert_eq!(stack.states("once").await, ["PROVISIONING", "SETUP", "SNAPSHOT", "COMPLETED"]);
}
