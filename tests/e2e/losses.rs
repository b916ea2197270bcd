//! Sequences that once lost rows without a word: either both sides are equal, or the table is set aside.

use tokio_postgres::Client;

use crate::stack::Stack;

/// Servers, a coordinator and one worker, and a pipe whose batches are seconds apart.
async fn streaming(tables: &str, settings: &str, setup: &str) -> (Stack, Client) {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    stack.start_worker("one").await;
    let source = stack.source().await;
    source.batch_execute(setup).await.unwrap();
    stack.apply(&stack.write_pipe("losses", tables, settings)).await;
    stack.wait_for("losses", "Running").await;
    (stack, source)
}

fn entries(tables: &[&str]) -> String {
    let entry = |table: &&str| format!("  - {{source: public.{table}, target: {table}}}\n");
    tables.iter().map(entry).collect()
}

async fn count(stack: &Stack, sql: &str) -> u64 {
    stack.destination().query(sql).fetch_one().await.unwrap()
}

/// kill -9, and another in its stead.
async fn crash(stack: &mut Stack) {
    stack.fleet.workers[0].kill().await;
    stack.fleet.workers[0].start_again().await;
}

/// Codes of the tables' problems, by the tables' names.
async fn set_aside(stack: &Stack) -> Vec<(String, String)> {
    let shown = stack.get("losses").await;
    let tables = shown["tables"].as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let aside = tables.iter().filter(|table| table["state"] == "TABLE_STATE_SET_ASIDE");
    let mut aside: Vec<_> = aside
        .map(|table| (text(&table["source"]).replace("public.", ""), text(&table["problem"]["code"])))
        .collect();
    aside.sort();
    aside
}

async fn wait_for_set_aside(stack: &Stack, expected: &[(&str, &str)]) {
    let expected: Vec<_> =
        expected.iter().map(|(table, code)| ((*table).to_owned(), (*code).to_owned())).collect();
    stack.wait("the tables to be set aside", async || set_aside(stack).await.len() >= expected.len()).await;
    assert_eq!(set_aside(stack).await, expected, "{}", stack.get("losses").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_updates_of_several_tables_leave_out_survive_a_crash() {
    let long = "(SELECT string_agg(md5((g * 1000 + n)::text), '') FROM generate_series(1, 200) n)";
    let tables: Vec<String> = ["one", "two", "kept"]
        .iter()
        .map(|name| {
            format!(
                "CREATE TABLE {name} (id int PRIMARY KEY, n int NOT NULL, long text); ALTER TABLE {name} ALTER long SET STORAGE external;
                 INSERT INTO {name} SELECT g, 0, {long} FROM generate_series(1, 5) g;"
            )
        })
        .collect();
    let setup = format!("{} CREATE TABLE beat (id int PRIMARY KEY)", tables.join("\n"));
    let entries = format!(
        "{}  - {{source: public.kept, target: kept, tableEngine: MergeTree}}\n",
        entries(&["one", "two", "beat"])
    );
    let (mut stack, source) = streaming(&entries, "settings: {syncInterval: 100s}", &setup).await;
    let beats = async |stack: &Stack, expected| {
        let sql = "SELECT count() FROM mirror.beat FINAL";
        stack.wait("the beat", async || count(stack, sql).await == expected).await;
    };
    source.execute("INSERT INTO beat VALUES (1)", &[]).await.unwrap();
    beats(&stack, 1).await;
    // The next batch is some seconds away. Were it not for the last update, everything would wait until then.
    source.batch_execute("UPDATE one SET n = 7 WHERE id = 1").await.unwrap();
    source.batch_execute("INSERT INTO beat VALUES (2)").await.unwrap();
    source.batch_execute("UPDATE two SET n = 8 WHERE id = 1").await.unwrap();
    beats(&stack, 2).await;
    stack.worker_speaks(&source).await;
    crash(&mut stack).await;
    stack.caught_up("losses").await;
    stack.assert_equal("one", &["id"]).await;
    stack.assert_equal("two", &["id"]).await;
    // A row that lacks a value and is overwritten in the same batch, in a table that keeps every row, before another table lacks one.
    source.batch_execute("INSERT INTO beat VALUES (3)").await.unwrap();
    beats(&stack, 3).await;
    source
        .batch_execute(
            "BEGIN; UPDATE kept SET n = 1 WHERE id = 1; UPDATE kept SET n = 2, long = 'new' WHERE id = 1; UPDATE two SET n = 3 WHERE id = 1; COMMIT",
        )
        .await
        .unwrap();
    stack.caught_up("losses").await;
    let kept = "SELECT countIf(n = 1 AND length(long) = 6400) * 10 + countIf(n = 2 AND long = 'new') FROM mirror.kept WHERE id = 1";
    assert_eq!(count(&stack, kept).await, 11, "{}", stack.logs());
    assert_eq!(set_aside(&stack).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_come_and_go_leave_no_wrong_values() {
    let tables = ["again", "computed", "domains", "migrated", "emptied", "earlier"];
    let setup: String = tables
        .iter()
        .map(|name| {
            format!(
                "CREATE TABLE {name} (id int PRIMARY KEY, n int, note text); INSERT INTO {name} SELECT g, g, 'old ' || g FROM generate_series(1, 5) g;"
            )
        })
        .collect();
    let setup = format!("CREATE DOMAIN positive AS int DEFAULT 7 CHECK (value > 0); {setup}");
    let (mut stack, source) = streaming(&entries(&tables), "settings: {syncInterval: 100s}", &setup).await;
    source
        .batch_execute(
            "INSERT INTO again VALUES (6, 6, 'six'); INSERT INTO emptied VALUES (6, 6, 'six');
             ALTER TABLE again DROP COLUMN note; ALTER TABLE again ADD COLUMN note text; INSERT INTO again VALUES (7, 7, 'seven');
             BEGIN; ALTER TABLE computed ADD COLUMN r float8 NOT NULL DEFAULT random() + 1; ALTER TABLE computed ALTER r DROP DEFAULT; COMMIT;
             INSERT INTO computed VALUES (7, 7, 'x', 5);
             ALTER TABLE domains ADD COLUMN d positive; INSERT INTO domains VALUES (7, 7, 'x', 5);
             BEGIN; ALTER TABLE migrated ADD COLUMN m int; UPDATE migrated SET m = n; ALTER TABLE migrated ALTER m SET NOT NULL; COMMIT;
             TRUNCATE emptied; INSERT INTO emptied VALUES (8, 8, 'eight'); ALTER TABLE emptied ADD COLUMN m int; INSERT INTO emptied VALUES (9, 9, 'nine', NULL);",
        )
        .await
        .unwrap();
    let expected = ["again", "computed", "domains"].map(|table| (table, "SOURCE_SCHEMA_CHANGED"));
    wait_for_set_aside(&stack, &expected).await;
    stack.caught_up("losses").await;
    stack.assert_equal("migrated", &["id"]).await;
    stack.assert_equal("emptied", &["id"]).await;
    // The definition is recorded, the slot still before the change: what is read again comes in the form before.
    source
        .batch_execute(
            "BEGIN; INSERT INTO earlier VALUES (6, 6, 'six'); UPDATE earlier SET n = -1 WHERE id = 1;
             ALTER TABLE earlier ALTER n TYPE bigint; ALTER TABLE earlier ADD COLUMN c int DEFAULT 5; INSERT INTO earlier VALUES (7, 5000000000, 'seven', 6); COMMIT;",
        )
        .await
        .unwrap();
    stack
        .wait("the definition to be recorded", async || {
            let events = stack.json(&["pipe", "events", "losses"]).await.to_string();
            events.contains("public.earlier has the columns")
        })
        .await;
    crash(&mut stack).await;
    source.batch_execute("INSERT INTO earlier VALUES (8, 8, 'eight', 8)").await.unwrap();
    stack.caught_up("losses").await;
    stack.assert_equal("earlier", &["id"]).await;
    assert_eq!(set_aside(&stack).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_with_rows_that_come_and_go_set_their_table_aside() {
    let tables = ["leaf_emptied", "detached", "attached", "fine"];
    let mut setup: String = tables
        .iter()
        .map(|name| {
            format!(
                "CREATE TABLE {name} (id int, k int, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
                 CREATE TABLE {name}_0 PARTITION OF {name} FOR VALUES FROM (0) TO (10);
                 CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (10) TO (20);
                 INSERT INTO {name} SELECT g, g % 20 FROM generate_series(1, 60) g;"
            )
        })
        .collect();
    setup.push_str("CREATE TABLE fine_2 PARTITION OF fine FOR VALUES FROM (20) TO (30);");
    let (stack, source) = streaming(&entries(&tables), "", &setup).await;
    let key = ["id", "k"];
    // What the stream explains, or what loses nothing.
    source
        .batch_execute(
            "CREATE TABLE fine_3 PARTITION OF fine FOR VALUES FROM (30) TO (40); INSERT INTO fine VALUES (1000, 35);
             CREATE TABLE fine_4 (LIKE fine INCLUDING ALL); ALTER TABLE fine ATTACH PARTITION fine_4 FOR VALUES FROM (40) TO (50); INSERT INTO fine VALUES (1001, 45);
             ALTER TABLE fine DETACH PARTITION fine_2;",
        )
        .await
        .unwrap();
    source.batch_execute("VACUUM FULL fine_0").await.unwrap();
    source
        .batch_execute(
            "ALTER TABLE fine ADD COLUMN c int DEFAULT 5; INSERT INTO fine VALUES (1002, 5, 6);
             TRUNCATE leaf_emptied_0; ALTER TABLE detached DETACH PARTITION detached_1;
             CREATE TABLE attached_2 (LIKE attached INCLUDING ALL); INSERT INTO attached_2 VALUES (2000, 25);
             ALTER TABLE attached ATTACH PARTITION attached_2 FOR VALUES FROM (20) TO (30);
             INSERT INTO leaf_emptied VALUES (1000, 15); INSERT INTO detached VALUES (1000, 5); INSERT INTO attached VALUES (1000, 15);",
        )
        .await
        .unwrap();
    stack.caught_up("losses").await;
    stack.assert_equal("fine", &key).await;
    let expected = ["attached", "detached", "leaf_emptied"].map(|table| (table, "PARTITIONS_CHANGED"));
    wait_for_set_aside(&stack, &expected).await;
    source.batch_execute("TRUNCATE fine; INSERT INTO fine VALUES (1, 1, 1), (2, 15, 2)").await.unwrap();
    stack.caught_up("losses").await;
    stack.assert_equal("fine", &key).await;
    assert_eq!(set_aside(&stack).await.len(), 3);
}

/// Most memory that a process has had, in MiB.
fn peak(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_updates_leave_out_fit_into_memory_and_their_keys_into_statements() {
    const ROW: u64 = 24;
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    stack.start_worker_with("one", &["--memory-budget", "32MiB"]).await;
    let source = stack.source().await;
    let setup = format!(
        "CREATE TABLE heavy (id int PRIMARY KEY, n int, value bytea); ALTER TABLE heavy ALTER value SET STORAGE external;
         INSERT INTO heavy SELECT g, 0, decode(repeat(md5(g::text), {ROW} * 65536), 'hex') FROM generate_series(1, 8) g;
         CREATE TABLE long_keys (key text PRIMARY KEY, n int, value text); ALTER TABLE long_keys ALTER key SET STORAGE plain, ALTER value SET STORAGE external;
         INSERT INTO long_keys SELECT (SELECT string_agg(md5((g * 1000 + n)::text), '') FROM generate_series(1, 81) n), 0, repeat(md5(g::text), 70)
           FROM generate_series(1, 5000) g;"
    );
    source.batch_execute(&setup).await.unwrap();
    stack.apply(&stack.write_pipe("losses", &entries(&["heavy", "long_keys"]), "")).await;
    stack.wait_for("losses", "Running").await;
    stack.caught_up("losses").await;
    let worker = stack.fleet.workers[0].id();
    let before = peak(&worker);
    source.batch_execute("UPDATE heavy SET n = n + 1").await.unwrap();
    stack.caught_up("losses").await;
    let grown = peak(&worker) - before;
    stack.assert_equal("heavy", &["id"]).await;
    // One row at a time, some copies of it.
    assert!(grown < 4 * ROW, "{grown} MiB more, {before} before");
    source.batch_execute("UPDATE long_keys SET n = n + 1").await.unwrap();
    stack.caught_up("losses").await;
    stack.assert_equal("long_keys", &["key"]).await;
    assert_eq!(set_aside(&stack).await, []);
}
