//! What a pipe does with its source, and settings that change while it runs.

use crate::load::{Churn, SETTINGS, TABLES, assert_all_equal, sample_tables};
use crate::stack::Stack;

#[tokio::test(flavor = "multi_thread")]
async fn changes_alone_are_followed_from_a_slot_and_publication_that_were_given() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    sample_tables(&source, 100).await;
    source
        .batch_execute("CREATE PUBLICATION \"Odd name, with. dots\" FOR TABLE orders, items")
        .await
        .unwrap();
    source
        .batch_execute("SELECT pg_create_logical_replication_slot('given_slot', 'pgoutput')")
        .await
        .unwrap();
    source
        .batch_execute("INSERT INTO orders SELECT n, 1, now(), 'after the slot', 1, '{}', true FROM generate_series(1001, 1005) n; UPDATE items SET sku = 'changed' WHERE order_id = 3")
        .await
        .unwrap();
    let settings = "replicationMode: cdc_only\nsettings: {publicationName: \"Odd name, with. dots\", replicationSlotName: given_slot, syncInterval: 100ms}";
    stack.apply(&stack.write_pipe_of("only", &["orders", "items"], settings)).await;
    stack.wait_for("only", "Running").await;
    source.batch_execute("INSERT INTO orders VALUES (2000, 1, now(), 'later', 1, '{}', true)").await.unwrap();
    stack.caught_up("only").await;
    let count = async |sql: &str| stack.destination().query(sql).fetch_one::<u64>().await.unwrap();
    assert_eq!(
        count("SELECT count() FROM mirror.orders FINAL").await,
        6,
        "rows from before the slot are absent"
    );
    assert_eq!(count("SELECT count() FROM mirror.items FINAL WHERE sku = 'changed'").await, 2);
    assert_eq!(stack.states("only").await, ["PROVISIONING", "SETUP", "RUNNING"]);
    let refused = stack.fails(&["pipe", "resync", "only"]).await;
    assert!(refused.contains("cdc_only copies nothing"), "{refused}");
    stack.ok(&["pipe", "delete", "only"]).await;
    let slots: i64 = source.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap().get(0);
    assert_eq!(slots, 1, "the slot that was given stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_paused_and_goes_on_and_its_finished_partitions_are_not_read_again() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    stack.start_worker_with("one", &["--max-tasks", "1"]).await;
    let source = stack.source().await;
    sample_tables(&source, 120_000).await;
    let churn = Churn::start(&stack, 120_000).await;
    let settings = SETTINGS.replace("5000", "2000");
    stack.apply(&stack.write_pipe_of("shop", &TABLES, &settings)).await;
    let done = async || {
        let shown = stack.get("shop").await;
        let tables = shown["tables"].as_array().cloned().unwrap_or_default();
        tables.iter().map(|table| table["partitionsDone"].as_u64().unwrap_or(0)).sum::<u64>()
    };
    stack.wait("some partitions to be done", async || done().await >= 4).await;
    stack.ok(&["pipe", "pause", "shop"]).await;
    stack.wait_for("shop", "Paused").await;
    let paused = done().await;
    stack
        .wait("nothing of ours to be open at the source", async || {
            let copying = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'millrace %'";
            source.query(copying, &[]).await.unwrap().is_empty()
        })
        .await;
    stack.ok(&["pipe", "resume", "shop"]).await;
    stack
        .wait("it to go on", async || {
            let shown = stack.get("shop").await;
            shown["status"]["state"] == "PIPE_STATE_RUNNING" || done().await > paused
        })
        .await;
    assert!(done().await >= paused, "what was copied stays copied");
    stack.wait_for("shop", "Running").await;
    churn.stop().await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    assert_eq!(
        stack.states("shop").await,
        ["PROVISIONING", "SETUP", "SNAPSHOT", "PAUSING", "PAUSED", "SNAPSHOT", "RUNNING"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_credentials_change_while_the_pipe_runs() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    sample_tables(&source, 500).await;
    stack.apply(&stack.write_pipe_of("shop", &["orders", "items"], "settings: {syncInterval: 100s}")).await;
    stack.wait_for("shop", "Running").await;
    // The first change goes at once, the next waits for the interval.
    let arrives = async |id: u32| {
        let sql = format!("SELECT count() FROM mirror.orders FINAL WHERE id = {id}");
        stack.destination().query(&sql).fetch_one::<u64>().await.unwrap_or(0) == 1
    };
    let insert = async |id: u32| {
        let sql = format!("INSERT INTO orders VALUES ({id}, 1, now(), 'x', 1, '{{}}', true)");
        source.batch_execute(&sql).await.unwrap();
    };
    insert(9001).await;
    stack.wait("the first", async || arrives(9001).await).await;
    insert(9002).await;
    let file = stack.write_pipe_of("shop", &["orders", "items"], "settings: {syncInterval: 50ms}");
    let said = stack.ok(&["pipe", "apply", "-f", file.to_str().unwrap()]).await;
    assert!(said.contains("syncInterval"), "{said}");
    stack.wait("what waited", async || arrives(9002).await).await;
    let again = stack.ok(&["pipe", "apply", "-f", file.to_str().unwrap()]).await;
    assert!(again.contains("unchanged"), "{again}");

    source.batch_execute("CREATE ROLE other SUPERUSER LOGIN PASSWORD 'another-one'").await.unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text
        .replace(&format!("username: {}", stack.postgres.user()), "username: other")
        .replace(stack.postgres.password(), "another-one");
    let file = stack.write("other.yaml", &text);
    stack.apply(&file).await;
    stack
        .wait("the stream under the other role", async || {
            let sql = "SELECT 1 FROM pg_stat_replication WHERE usename = 'other'";
            !source.query(sql, &[]).await.unwrap().is_empty()
        })
        .await;
    insert(9003).await;
    stack.wait("the third", async || arrives(9003).await).await;
    let refused = text.replace("database: mirror", "database: elsewhere");
    let refused =
        stack.fails(&["pipe", "apply", "-f", stack.write("no.yaml", &refused).to_str().unwrap()]).await;
    assert!(refused.contains("the destination's database cannot be edited"), "{refused}");
    stack.ok(&["pipe", "delete", "shop", "--drop-tables"]).await;
    let left = "SELECT count() FROM system.tables WHERE database = 'mirror'";
    assert_eq!(stack.destination().query(left).fetch_one::<u64>().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rewritten_while_it_is_copied_is_copied_anew_by_itself() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    stack.start_worker_with("one", &["--max-tasks", "1"]).await;
    let source = stack.source().await;
    sample_tables(&source, 60_000).await;
    let settings = SETTINGS.replace("5000", "1000").replace("Tables: 2", "Tables: 1");
    stack.apply(&stack.write_pipe_of("shop", &["orders", "items"], &settings)).await;
    stack
        .wait("some partitions to be done", async || {
            stack.get("shop").await["tables"][0]["partitionsDone"].as_u64().unwrap_or(0) >= 2
        })
        .await;
    // The table under way and the one that waits.
    source.batch_execute("ALTER TABLE items ALTER line TYPE bigint").await.unwrap();
    source.batch_execute("UPDATE orders SET note = 'x' WHERE id < 10").await.unwrap();
    stack.wait_for("shop", "Running").await;
    stack
        .wait("both to stream", async || {
            let shown = stack.get("shop").await;
            let tables = shown["tables"].as_array().cloned().unwrap_or_default();
            tables
                .iter()
                .all(|table| table["state"] == "TABLE_STATE_STREAMING" && table["successor"].is_null())
        })
        .await;
    source.batch_execute("INSERT INTO items VALUES (1, 99, 'after')").await.unwrap();
    stack.caught_up("shop").await;
    stack.assert_equal("orders", &["id"]).await;
    stack.assert_equal("items", &["order_id", "line"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_replica_is_copied_once_and_a_failover_slot_is_made_where_it_is_asked_for() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    sample_tables(&source, 5_000).await;

    // A standby by the low-level backup calls (manual: "Making a Base Backup Using the Low Level API").
    source.execute("SELECT pg_backup_start('standby', true)", &[]).await.unwrap();
    let (primary, standby) = (stack.postgres.data_dir().join("cluster"), stack.folder.path().join("standby"));
    let copy = async |from: &std::path::Path, to: &std::path::Path| {
        let copied = tokio::process::Command::new("cp").arg("-a").arg(from).arg(to).status().await.unwrap();
        assert!(copied.success());
    };
    std::fs::create_dir(&standby).unwrap();
    copy(&primary, &standby).await;
    let label: String =
        source.query_one("SELECT labelfile FROM pg_backup_stop(false)", &[]).await.unwrap().get(0);
    let cluster = standby.join("cluster");
    std::fs::remove_dir_all(cluster.join("pg_wal")).unwrap();
    copy(&primary.join("pg_wal"), &cluster).await;
    std::fs::remove_file(cluster.join("postmaster.pid")).unwrap();
    // Made of files that are there, so that they belong to whom the server runs as.
    for (name, text) in [("backup_label", label.as_str()), ("standby.signal", "")] {
        copy(&cluster.join("PG_VERSION"), &cluster.join(name)).await;
        std::fs::write(cluster.join(name), text).unwrap();
    }
    let options = millrace_devstack::PostgresOptions {
        password: stack.postgres.password().to_owned(),
        ..millrace_devstack::PostgresOptions::new(17, &standby)
    };
    let launcher = millrace_devstack::Launcher::new(crate::stack::millrace(), ["devstack"]);
    let replica = millrace_devstack::Postgres::start(launcher, options).await.unwrap();
    let tables = TABLES.map(|table| format!("  - {{source: public.{table}, target: {table}}}")).join("\n");
    let file = stack.write_pipe("once", &tables, &format!("replicationMode: snapshot\n{SETTINGS}"));
    let text = std::fs::read_to_string(&file).unwrap();
    let text =
        text.replace(&format!("port: {}", stack.postgres.port()), &format!("port: {}", replica.port()));
    stack.apply(&stack.write("once.yaml", &text)).await;
    stack.wait_for("once", "Completed").await;
    assert_all_equal(&stack).await;
    // Changes cannot be followed there.
    let refused = text.replace("replicationMode: snapshot", "").replace("name: once", "name: follows");
    let refused =
        stack.fails(&["pipe", "apply", "-f", stack.write("f.yaml", &refused).to_str().unwrap()]).await;
    assert!(refused.contains("is a standby"), "{refused}");

    let settings = SETTINGS.replace("settings: {", "settings: {enableFailoverSlots: true, ");
    let tables = "  - {source: public.orders, target: followed}";
    stack.apply(&stack.write_pipe("followed", tables, &settings)).await;
    stack.wait_for("followed", "Running").await;
    let failover: bool =
        source.query_one("SELECT failover FROM pg_replication_slots", &[]).await.unwrap().get(0);
    assert!(failover);
}

/// How many partitions each worker copied, and after which of all copies it copied its last.
async fn copies_by_worker(stack: &Stack, workers: &[&str]) -> Vec<(usize, usize)> {
    let mut copies: Vec<(String, usize)> = Vec::new();
    for (number, worker) in workers.iter().enumerate() {
        let log = std::fs::read_to_string(stack.folder.path().join(format!("worker-{worker}.log"))).unwrap();
        let lines = log.lines().filter(|line| line.contains("partition copied"));
        copies.extend(lines.map(|line| (line.split_whitespace().next().unwrap().to_owned(), number)));
    }
    copies.sort();
    let of = |number: usize| copies.iter().enumerate().filter(move |(_, (_, of))| *of == number);
    (0..workers.len())
        .map(|number| (of(number).count(), of(number).next_back().map_or(0, |(at, _)| copies.len() - 1 - at)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_pulled_by_workers_of_different_speed_within_the_sources_limit() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    stack.start_worker_with("slow", &["--max-tasks", "1"]).await;
    stack.start_worker_with("middle", &["--max-tasks", "2"]).await;
    let source = stack.source().await;
    sample_tables(&source, 300_000).await;
    let settings = "settings: {snapshotNumRowsPerPartition: 1000, snapshotNumberOfParallelTables: 1, maxSourceConnections: 5}";
    stack.apply(&stack.write_pipe_of("shop", &["orders"], settings)).await;
    stack
        .wait("some partitions to be done", async || {
            stack.get("shop").await["tables"][0]["partitionsDone"].as_u64().unwrap_or(0) >= 5
        })
        .await;
    // One that joins late helps at once.
    stack.start_worker_with("late", &["--max-tasks", "4"]).await;
    stack
        .wait("the copy to end", async || {
            let copying = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'millrace %' AND query LIKE 'COPY%' AND state = 'active'";
            let copying: i64 = source.query_one(copying, &[]).await.unwrap().get(0);
            assert!(copying <= 5, "{copying} copies at a time");
            stack.get("shop").await["status"]["state"] == "PIPE_STATE_RUNNING"
        })
        .await;
    let by_worker = copies_by_worker(&stack, &["slow", "middle", "late"]).await;
    // Whoever ends first leaves no more behind than what the others had in hand, and were given while it said so.
    let fair = |(copied, after): &(usize, usize)| *copied > 0 && *after <= 2 * 5;
    assert!(by_worker.iter().all(fair), "{by_worker:?}");
    stack.assert_equal("orders", &["id"]).await;
}
