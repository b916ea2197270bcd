//! Bad input: every problem at once, each with its remedy, and nothing half-made is left behind.

use crate::stack::Stack;

async fn nothing_was_made(stack: &Stack) {
    let source = stack.source().await;
    let held = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)";
    assert_eq!(
        source.query_one(held, &[]).await.unwrap().get::<_, i64>(0),
        0,
        "something was left at the source"
    );
    assert_eq!(stack.json(&["pipe", "list"]).await["pipes"].as_array().map(Vec::len), Some(0));
    let databases = "SELECT count() FROM system.databases WHERE name = 'mirror'";
    assert_eq!(stack.destination().query(databases).fetch_one::<u64>().await.unwrap(), 0);
}

/// Both commands refuse the file, and say all of this.
async fn refused(stack: &Stack, path: &std::path::Path, says: &[&str]) {
    for command in ["validate", "apply"] {
        let said = stack.run(&["pipe", command, "-f", path.to_str().unwrap()]).await;
        assert_eq!(said.status.code(), Some(1), "{command}");
        let said =
            format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        for part in says {
            assert!(said.contains(part), "{command} does not say '{part}':\n{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_is_refused_with_the_path_of_what_is_wrong() {
    let stack = Stack::start().await;
    let cases = [
        ("settings: {syncIntervall: 1s}", "syncIntervall"),
        ("settings: {pullBatchSize: many}", "settings.pullBatchSize"),
        ("settings: {snapshotNumRowsPerPartition: 1}", "settings.snapshotNumRowsPerPartition"),
        ("replicationMode: cdc_onli", "replicationMode"),
        ("settings: {newTables: include}", "settings.newTables"),
    ];
    for (rest, says) in cases {
        let path = stack.write_pipe_of("wrong", &["orders"], rest);
        refused(&stack, &path, &[says]).await;
    }
    let path =
        stack.write_pipe("wrong", "  - {source: public.orders, target: '${env:NO_SUCH_VARIABLE}'}", "");
    refused(&stack, &path, &["NO_SUCH_VARIABLE", "tables[0].target"]).await;
    nothing_was_made(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_problems_of_source_and_destination_are_told_at_once() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source
        .batch_execute(
            "CREATE TABLE good (id int PRIMARY KEY, v text);
             CREATE TABLE keyless (v text);
             CREATE TABLE taken (id int PRIMARY KEY);
             CREATE TABLE differs (id int PRIMARY KEY, v int);
             CREATE VIEW a_view AS SELECT 1 AS id;
             CREATE ROLE poor LOGIN PASSWORD 'poor';
             GRANT SELECT ON good TO poor;",
        )
        .await
        .unwrap();
    let destination = stack.destination();
    for statement in [
        "CREATE DATABASE other",
        "CREATE TABLE other.taken (id Int32, _millrace_version UInt64, _millrace_is_deleted UInt8, \
         _millrace_synced_at DateTime64(9)) ENGINE = ReplacingMergeTree(_millrace_version, _millrace_is_deleted) ORDER BY id",
        "INSERT INTO other.taken VALUES (1, 0, 0, 0)",
        "CREATE TABLE other.differs (id String) ENGINE = MergeTree ORDER BY id",
    ] {
        destination.query(statement).execute().await.unwrap();
    }
    let tables: Vec<String> = ["good", "keyless", "taken", "differs", "a_view", "missing_one", "missing_two"]
        .iter()
        .map(|table| format!("  - {{source: public.{table}, target: {table}}}"))
        .collect();
    let path = stack.write_pipe("bad", &tables.join("\n"), "");
    let text = std::fs::read_to_string(&path).unwrap().replace("database: mirror", "database: other");
    std::fs::write(&path, text).unwrap();
    let says = [
        "public.keyless",
        "REPLICA IDENTITY",
        "public.a_view",
        "public.missing_one",
        "public.missing_two",
        "public.taken",
        "not empty",
        "public.differs",
    ];
    refused(&stack, &path, &says).await;

    let poor = std::fs::read_to_string(&path).unwrap();
    let poor = poor
        .replace(&format!("username: {}", stack.postgres.user()), "username: poor")
        .replace(&format!("password: {}", stack.postgres.password()), "password: poor");
    let path = stack.write("poor.yaml", &poor);
    refused(&stack, &path, &["REPLICATION", "GRANT SELECT", "public.taken"]).await;
    nothing_was_made(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_cannot_be_reached_or_refuse_are_named_with_the_reason() {
    let stack = Stack::start().await;
    stack.source().await.batch_execute("CREATE TABLE orders (id int PRIMARY KEY)").await.unwrap();
    let good = std::fs::read_to_string(stack.write_pipe_of("far", &["orders"], "")).unwrap();
    let port = crate::stack::free_port();

    let path = stack.write(
        "a.yaml",
        &good.replace(&format!("port: {}", stack.postgres.port()), &format!("port: {port}")),
    );
    refused(&stack, &path, &["SOURCE_UNREACHABLE", "refused"]).await;

    let password = format!("password: {}", stack.postgres.password());
    let path = stack.write("b.yaml", &good.replace(&password, "password: wrong"));
    refused(&stack, &path, &["SOURCE_AUTHENTICATION_FAILED"]).await;

    let path = stack.write("c.yaml", &good.replace("database: postgres", "database: no_such_database"));
    refused(&stack, &path, &["no_such_database"]).await;

    let path =
        stack.write("d.yaml", &good.replace(&stack.clickhouse.url(), &format!("http://127.0.0.1:{port}")));
    refused(&stack, &path, &["DESTINATION_UNREACHABLE"]).await;

    let path = stack.write("e.yaml", &good.replace("database: mirror", "database: mirror, username: nobody"));
    refused(&stack, &path, &["DESTINATION_AUTHENTICATION_FAILED"]).await;

    // Both sides at once.
    let both = good
        .replace(&stack.clickhouse.url(), &format!("http://127.0.0.1:{port}"))
        .replace(&format!("port: {}", stack.postgres.port()), &format!("port: {port}"));
    let path = stack.write("f.yaml", &both);
    refused(&stack, &path, &["SOURCE_UNREACHABLE", "DESTINATION_UNREACHABLE"]).await;
    nothing_was_made(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_logical_wal_is_told_what_to_set() {
    let mut stack = Stack::start().await;
    let source = stack.source().await;
    source.batch_execute("CREATE TABLE orders (id int PRIMARY KEY)").await.unwrap();
    source.batch_execute("ALTER SYSTEM SET wal_level = replica").await.unwrap();
    stack.postgres.restart().await.unwrap();
    let path = stack.write_pipe_of("flat", &["orders"], "");
    refused(&stack, &path, &["wal_level", "ALTER SYSTEM SET wal_level"]).await;
    nothing_was_made(&stack).await;
}
