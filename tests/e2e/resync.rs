//! Tables are copied anew while readers keep what they have.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::load::{Churn, SETTINGS, TABLES, assert_all_equal, sample_tables};
use crate::stack::Stack;

async fn running(rows: u32) -> Stack {
    let stack = Stack::start().await;
    sample_tables(&stack.source().await, rows).await;
    stack.apply(&stack.write_pipe_of("shop", &TABLES, SETTINGS)).await;
    stack.wait_for("shop", "Running").await;
    stack.caught_up("shop").await;
    stack
}

async fn tables_of(stack: &Stack) -> Vec<String> {
    let sql = "SELECT name FROM system.tables WHERE database = 'mirror' ORDER BY name";
    stack.destination().query(sql).fetch_all::<String>().await.unwrap()
}

async fn nothing_is_left_over(stack: &Stack) {
    stack
        .wait("what is left over to be dropped", async || {
            let tables = tables_of(stack).await;
            tables.iter().all(|name| !name.contains("_resync_"))
        })
        .await;
}

/// Looks at a table and a view of it, again and again: neither may be missing, or hold fewer rows than `least`.
struct Reader {
    stop: Arc<AtomicBool>,
    least: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<u32, String>>,
}

impl Reader {
    fn start(stack: &Stack, queries: &'static [&'static str], least: u64) -> Self {
        let (client, stop) = (stack.destination(), Arc::new(AtomicBool::new(false)));
        let least = Arc::new(AtomicU64::new(least));
        let (stopped, bound) = (stop.clone(), least.clone());
        let task = tokio::spawn(async move {
            let mut looks = 0;
            while !stopped.load(Ordering::Relaxed) {
                for query in queries {
                    let seen = client.query(query).fetch_one::<u64>().await;
                    let seen = seen.map_err(|error| format!("{query}: {error}"))?;
                    if seen < bound.load(Ordering::Relaxed) {
                        return Err(format!("{query}: {seen} rows"));
                    }
                    looks += 1;
                }
            }
            Ok(looks)
        });
        Self { stop, least, task }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let looks = self.task.await.unwrap().unwrap();
        assert!(looks > 0, "nobody looked (at least {} rows)", self.least.load(Ordering::Relaxed));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pipe_is_resynced_and_readers_never_see_a_gap() {
    let stack = running(30_000).await;
    stack
        .destination()
        .query("CREATE VIEW mirror.seen AS SELECT * FROM mirror.items FINAL WHERE _millrace_is_deleted = 0")
        .execute()
        .await
        .unwrap();
    // A row that is only in the destination, as if its deletion had been lost.
    let phantom = "INSERT INTO mirror.items SELECT 999999, 1, 'phantom', 1, 0, now64(9)";
    stack.destination().query(phantom).execute().await.unwrap();
    let churn = Churn::start(&stack, 30_000).await;
    let reader = Reader::start(
        &stack,
        &["SELECT count() FROM mirror.seen", "SELECT count() FROM mirror.items FINAL"],
        15_000,
    );
    stack.ok(&["pipe", "resync", "shop"]).await;
    stack.wait_for("shop", "Running").await;
    reader.stop().await;
    churn.stop().await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    assert_eq!(stack.states("shop").await[4..], ["SETUP", "SNAPSHOT", "RESYNC", "RUNNING"]);
    nothing_is_left_over(&stack).await;
    let seen = stack.destination().query("SELECT count() FROM mirror.seen").fetch_one::<u64>().await.unwrap();
    assert_eq!(seen, 15_000, "the view reads the new table");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_table_is_resynced_with_another_sorting_key_while_the_pipe_runs() {
    let stack = running(20_000).await;
    let source = stack.source().await;
    source.batch_execute("ALTER TABLE items REPLICA IDENTITY FULL").await.unwrap();
    let tables = "  - {source: public.orders, target: orders}\n  - {source: public.items, target: items, sortingKeys: [sku, order_id, line]}\n  - {source: public.nothing, target: nothing}";
    let file = stack.write_pipe("shop", tables, SETTINGS);
    let file = file.to_str().unwrap();
    let said = stack.fails(&["pipe", "apply", "-f", file]).await;
    assert!(said.contains("sortingKeys of public.items") && said.contains("--resync"), "{said}");
    let said = stack.ok(&["pipe", "apply", "-f", file, "--dry-run", "--resync"]).await;
    assert!(said.contains("resyncs for sortingKeys of public.items"), "{said}");
    let churn = Churn::start(&stack, 20_000).await;
    let reader = Reader::start(&stack, &["SELECT count() FROM mirror.items FINAL"], 10_000);
    stack.ok(&["pipe", "apply", "-f", file, "--resync"]).await;
    stack
        .wait("the new table to be in its place", async || {
            let sql = "SELECT sorting_key FROM system.tables WHERE database = 'mirror' AND name = 'items'";
            stack.destination().query(sql).fetch_one::<String>().await.unwrap_or_default()
                == "sku, order_id, line"
        })
        .await;
    reader.stop().await;
    churn.stop().await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    assert_eq!(stack.states("shop").await.len(), 4, "the pipe was Running all the time");
    nothing_is_left_over(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_fails_the_pipe_and_a_resync_heals_it() {
    let stack = running(5_000).await;
    let source = stack.source().await;
    stack.ok(&["pipe", "pause", "shop"]).await;
    stack.wait_for("shop", "Paused").await;
    source
        .batch_execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        .await
        .unwrap();
    source.batch_execute("DELETE FROM orders WHERE id < 1000; UPDATE items SET sku = 'lost'").await.unwrap();
    stack.ok(&["pipe", "resume", "shop"]).await;
    stack.wait_for("shop", "Failed").await;
    let shown = stack.get("shop").await;
    assert_eq!(shown["status"]["problem"]["code"], "SLOT_MISSING", "{shown:#}");
    let refused = stack.fails(&["pipe", "resync", "shop", "--table", "public.orders"]).await;
    assert!(refused.contains("resync the whole pipe"), "{refused}");
    stack.ok(&["pipe", "resync", "shop"]).await;
    stack.wait_for("shop", "Running").await;
    source.batch_execute("UPDATE orders SET note = 'again' WHERE id < 2000").await.unwrap();
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    nothing_is_left_over(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_pipe_rests_again_after_its_resync_and_a_completed_one_is_complete() {
    let stack = running(5_000).await;
    let source = stack.source().await;
    stack.ok(&["pipe", "pause", "shop"]).await;
    stack.wait_for("shop", "Paused").await;
    source.batch_execute("UPDATE orders SET note = 'while it rested' WHERE id < 500").await.unwrap();
    stack.ok(&["pipe", "resync", "shop"]).await;
    stack
        .wait("it to rest again", async || {
            let states = stack.states("shop").await;
            states.ends_with(&["RESYNC".to_owned(), "PAUSED".to_owned()])
        })
        .await;
    let active = "SELECT count(*) FROM pg_replication_slots WHERE active";
    let active: i64 = source.query_one(active, &[]).await.unwrap().get(0);
    assert_eq!(active, 0, "nobody reads the slot");
    assert_all_equal(&stack).await;

    let once = format!("replicationMode: snapshot\n{SETTINGS}");
    let tables =
        TABLES.map(|table| format!("  - {{source: public.{table}, target: once_{table}}}")).join("\n");
    stack.apply(&stack.write_pipe("once", &tables, &once)).await;
    stack.wait_for("once", "Completed").await;
    source.batch_execute("DELETE FROM orders WHERE id < 3000").await.unwrap();
    stack.ok(&["pipe", "resync", "once", "--table", "public.orders"]).await;
    stack
        .wait("it to be complete again", async || {
            stack.states("once").await.ends_with(&["RESYNC".to_owned(), "COMPLETED".to_owned()])
        })
        .await;
    let count = "SELECT count() FROM mirror.once_orders FINAL WHERE _millrace_is_deleted = 0";
    let copied = stack.destination().query(count).fetch_one::<u64>().await.unwrap();
    assert_eq!(copied, 2_001);
    nothing_is_left_over(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_goes_on_whoever_is_killed_in_it() {
    let mut stack = running(60_000).await;
    let churn = Churn::start(&stack, 60_000).await;
    stack.ok(&["pipe", "resync", "shop"]).await;
    for round in 0..4 {
        let state = ["PIPE_STATE_SETUP", "PIPE_STATE_SNAPSHOT"];
        stack
            .wait("it to be under way, or over", async || {
                let now = stack.get("shop").await["status"]["state"].as_str().unwrap_or_default().to_owned();
                state.contains(&now.as_str()) || now == "PIPE_STATE_RESYNC" || now == "PIPE_STATE_RUNNING"
            })
            .await;
        match round {
            0 | 3 => {
                stack.coordinator().kill().await;
                stack.coordinator().start_again().await;
            }
            worker => {
                stack.fleet.workers[worker - 1].kill().await;
                stack.fleet.workers[worker - 1].start_again().await;
            }
        }
    }
    stack.wait_for("shop", "Running").await;
    churn.stop().await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    let shown = stack.get("shop").await;
    assert_eq!(shown["status"]["tablesSetAside"], 0, "{shown:#}");
    nothing_is_left_over(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_heal_by_itself_fails_the_pipe_with_its_reason_and_is_mended() {
    let stack = running(2_000).await;
    let source = stack.source().await;
    // The publication is dropped: what changes without it is not decoded, so only a resync mends it.
    source
        .batch_execute(
            "DO $$ BEGIN EXECUTE 'DROP PUBLICATION ' || (SELECT pubname FROM pg_publication); END $$; \
             UPDATE orders SET note = 'unpublished' WHERE id < 100",
        )
        .await
        .unwrap();
    stack.wait_for("shop", "Failed").await;
    let shown = stack.get("shop").await;
    let problem = &shown["status"]["problem"];
    assert_eq!(problem["code"], "PUBLICATION_MISSING", "{problem:#}");
    assert!(problem["remedy"].as_str().unwrap().contains("resync"), "{problem:#}");
    stack.ok(&["pipe", "resync", "shop"]).await;
    stack.wait_for("shop", "Running").await;
    source.batch_execute("UPDATE orders SET note = 'published' WHERE id < 50").await.unwrap();
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    nothing_is_left_over(&stack).await;
}
