//! A destination of several hosts. The engine's own cluster has one, behind a Distributed table: what is shown is that a pipe's
//! whole life goes that way, and every row arrives once.

use crate::load::{Churn, sample_tables};
use crate::stack::Stack;

const SHARDED: &str = ", cluster: {name: default, replicated: false, sharded: true}";

async fn number(stack: &Stack, sql: &str) -> u64 {
    stack.destination().query(sql).fetch_one().await.unwrap()
}

async fn names(stack: &Stack) -> Vec<String> {
    let sql = "SELECT name || ' ' || engine FROM system.tables WHERE database = 'mirror' ORDER BY name";
    stack.destination().query(sql).fetch_all().await.unwrap()
}

async fn assert_all_equal(stack: &Stack) {
    stack.caught_up("shop").await;
    stack.assert_equal("orders", &["id"]).await;
    stack.assert_equal("items", &["order_id", "line"]).await;
    stack.assert_equal("nothing", &["id"]).await;
    stack.assert_equal("pages", &["id"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sharded_pipe_lives_its_whole_life() {
    let mut stack = Stack::start().await;
    let source = stack.source().await;
    sample_tables(&source, 20_000).await;
    source
        .batch_execute(
            "CREATE TABLE pages (id bigint PRIMARY KEY, hits int NOT NULL, body text);
             INSERT INTO pages SELECT n, 0, (SELECT string_agg(md5((n * 1000 + m)::text), '') FROM generate_series(1, 200) m) FROM generate_series(1, 300) n",
        )
        .await
        .unwrap();
    let entries = "  - {source: public.orders, target: orders, shardingExpr: 'intDiv(id, 100)'}
  - {source: public.items, target: items}
  - {source: public.nothing, target: nothing}
  - {source: public.pages, target: pages}";
    let settings =
        "settings: {snapshotNumRowsPerPartition: 5000, syncInterval: 50ms, schemaChanges: propagate_all}";
    let file = stack.write_pipe_to(SHARDED, "shop", entries, settings);
    let churn = Churn::start(&stack, 20_000).await;
    stack.apply(&file).await;
    stack.wait_for("shop", "Running").await;
    churn.stop().await;
    // Values that the log leaves out are looked up behind the Distributed table.
    source.batch_execute("UPDATE pages SET hits = hits + 1 WHERE id % 3 = 0").await.unwrap();
    assert_all_equal(&stack).await;
    assert_eq!(
        names(&stack).await,
        [
            "items Distributed",
            "items_local ReplacingMergeTree",
            "nothing Distributed",
            "nothing_local ReplacingMergeTree",
            "orders Distributed",
            "orders_local ReplacingMergeTree",
            "pages Distributed",
            "pages_local ReplacingMergeTree",
        ]
    );

    // Columns come and go, tables are emptied, workers die.
    let churn = Churn::start(&stack, 120_000).await;
    for statements in [
        "ALTER TABLE pages ADD COLUMN title text NOT NULL DEFAULT 'none'; UPDATE pages SET hits = hits + 1 WHERE id < 9",
        "ALTER TABLE pages DROP COLUMN hits; UPDATE pages SET title = 'seen' WHERE id < 50",
        "ALTER TABLE pages RENAME COLUMN title TO heading; UPDATE pages SET heading = 'again' WHERE id < 20",
        "TRUNCATE items; INSERT INTO items SELECT n, 1, 'again' FROM generate_series(1, 500) n",
    ] {
        source.batch_execute(statements).await.unwrap();
        stack.caught_up("shop").await;
    }
    source.batch_execute("UPDATE pages SET heading = 'last' WHERE id % 2 = 0").await.unwrap();
    for worker in &mut stack.fleet.workers {
        worker.kill().await;
        worker.start_again().await;
    }
    churn.stop().await;
    assert_all_equal(&stack).await;

    let churn = Churn::start(&stack, 220_000).await;
    stack.ok(&["pipe", "resync", "shop"]).await;
    stack.wait_for("shop", "Running").await;
    churn.stop().await;
    assert_all_equal(&stack).await;
    stack
        .wait("what is left over to be dropped", async || {
            names(&stack).await.iter().all(|name| !name.contains("_resync_"))
        })
        .await;
    let engine = "SELECT count() FROM system.tables WHERE name = 'orders' AND engine_full LIKE '%orders_local%intDiv(id, 100))'";
    assert_eq!(number(&stack, engine).await, 1, "rows are spread as before");
    stack.ok(&["pipe", "verify", "shop"]).await;

    let elsewhere = stack.write_pipe_to(", cluster: {name: other, sharded: true}", "shop", entries, settings);
    let said = stack.fails(&["pipe", "apply", "-f", elsewhere.to_str().unwrap()]).await;
    assert!(said.contains("the destination's cluster cannot be edited"), "{said}");
    stack.ok(&["pipe", "delete", "shop", "--drop-tables"]).await;
    stack.wait("the tables to go", async || names(&stack).await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_only_table_of_shards_holds_every_change_once() {
    let mut stack = Stack::start().await;
    let source = stack.source().await;
    source
        .batch_execute(
            "CREATE TABLE log (id int PRIMARY KEY); INSERT INTO log SELECT generate_series(1, 500)",
        )
        .await
        .unwrap();
    let tables = "  - {source: public.log, target: log, tableEngine: MergeTree}";
    let settings = "settings: {syncInterval: 20ms, pullBatchSize: 5000}";
    stack.apply(&stack.write_pipe_to(SHARDED, "append", tables, settings)).await;
    stack.wait_for("append", "Running").await;
    source.batch_execute("INSERT INTO log SELECT generate_series(501, 150000)").await.unwrap();
    stack
        .wait("a part to arrive", async || number(&stack, "SELECT count() FROM mirror.log").await > 500)
        .await;
    for worker in &mut stack.fleet.workers {
        worker.kill().await;
        worker.start_again().await;
    }
    stack.caught_up("append").await;
    assert_eq!(number(&stack, "SELECT count() FROM mirror.log").await, 150_000);
    assert_eq!(number(&stack, "SELECT uniqExact(id) FROM mirror.log_local").await, 150_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_does_not_fit_is_refused_with_what_to_do() {
    let stack = Stack::start().await;
    stack
        .source()
        .await
        .batch_execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int); ALTER TABLE b REPLICA IDENTITY FULL")
        .await
        .unwrap();
    let said = async |more: &str, tables: &str| {
        let file = stack.write_pipe_to(more, "shop", tables, "");
        let output = stack.run(&["pipe", "validate", "-f", file.to_str().unwrap()]).await;
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let one = "  - {source: public.a, target: a}";
    let unknown = said(", cluster: {name: nowhere}", one).await;
    assert!(unknown.contains("no cluster 'nowhere'; it knows default"), "{unknown}");
    let neither = said(", cluster: {name: default, replicated: false}", one).await;
    assert!(neither.contains("neither replicated nor sharded"), "{neither}");
    let useless = said("", "  - {source: public.a, target: a, shardingExpr: id}").await;
    assert!(useless.contains("has no use without destination.clickhouse.cluster.sharded"), "{useless}");
    let clash =
        said(SHARDED, "  - {source: public.a, target: a}\n  - {source: public.b, target: a_local}").await;
    assert!(clash.contains("'a_local' is the name of the local tables"), "{clash}");
    let expression = said(SHARDED, "  - {source: public.a, target: a, shardingExpr: rand()}").await;
    assert!(expression.contains("SHARDING_EXPRESSION_INVALID"), "{expression}");
    let keyless = said(SHARDED, "  - {source: public.b, target: b, tableEngine: MergeTree}").await;
    assert!(keyless.contains("SHARDING_EXPRESSION_INVALID"), "{keyless}");
}
