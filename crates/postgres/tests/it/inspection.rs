//! Everything that is wrong, at once, and that the remedies mend it.

use millrace_model::spec::{PostgresSource, ReplicationMode};
use millrace_model::{Problem, Severity};
use millrace_postgres::{SnapshotSession, inspect};

use crate::support::{APPLICATION, Server, codes, name, statement, table};

fn of(code: &str, table: &str) -> (String, String) {
    (code.to_owned(), table.to_owned())
}

fn one<'a>(problems: &'a [Problem], code: &str, table: &str) -> &'a Problem {
    let table = (!table.is_empty()).then(|| name(table));
    let mut found = problems.iter().filter(|problem| problem.code == code && problem.table == table);
    let first = found.next().unwrap_or_else(|| panic!("no {code} of {table:?} in {:?}", codes(problems)));
    assert!(found.next().is_none(), "{code} of {table:?} twice");
    first
}

fn errors(problems: &[Problem]) -> Vec<Problem> {
    problems.iter().filter(|problem| problem.severity == Severity::Error).cloned().collect()
}

#[tokio::test]
async fn a_source_that_fits_has_no_problems() {
    let server = Server::start().await;
    server
        .run(
            "CREATE TABLE a (id int PRIMARY KEY, secret text, v text); CREATE TABLE b (v text);
             ALTER TABLE b REPLICA IDENTITY FULL",
        )
        .await;
    let mut spec = server.spec(&["public.b", "public.a"]);
    spec.tables[1].excluded_columns = vec!["secret".to_owned()];
    spec.tables[0].sorting_keys = vec!["v".to_owned()];
    let found = inspect(&spec, None).await;
    assert_eq!(codes(&found.problems), []);
    assert!(found.server_version >= 170_000);
    let identifier = server.value("SELECT system_identifier FROM pg_control_system()").await;
    assert_eq!(found.system_identifier.to_string(), identifier);
    let tables: Vec<_> = found.tables.iter().map(|table| table.name.to_string()).collect();
    assert_eq!(tables, ["public.b", "public.a"]);
    let columns: Vec<_> = found.tables[1].columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(columns, ["id", "v"]);
}

#[tokio::test]
async fn all_problems_of_all_tables_are_told_at_once_and_remedies_mend_them() {
    let server = Server::start().await;
    server
        .run(
            "CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE keyless (v text);
             CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
             CREATE TABLE sorted (id int PRIMARY KEY, at date, v text);
             CREATE TABLE by_value (v text); CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
             CREATE VIEW seen AS SELECT 1 AS id; CREATE MATERIALIZED VIEW kept AS SELECT 1 AS id; CREATE SEQUENCE counted;
             CREATE EXTENSION IF NOT EXISTS plpgsql;
             CREATE TABLE split (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE split_good PARTITION OF split FOR VALUES FROM (0) TO (10);
             CREATE TABLE split_bad PARTITION OF split DEFAULT; ALTER TABLE split_bad REPLICA IDENTITY NOTHING",
        )
        .await;
    let mut spec = server.spec(&[
        "public.good",
        "public.keyless",
        "public.nothing",
        "public.sorted",
        "public.by_value",
        "public.fleeting",
        "public.seen",
        "public.kept",
        "public.counted",
        "public.gone",
        "gone.too",
        "public.split",
    ]);
    spec.tables[0].excluded_columns = vec!["id".to_owned(), "no_such".to_owned()];
    spec.tables[3].sorting_keys = vec!["at".to_owned(), "nor_such".to_owned()];
    spec.tables[4].sorting_keys = vec!["v".to_owned()];
    let found = inspect(&spec, None).await;
    let mut expected = [
        of("COLUMN_MISSING", "public.good"),
        of("KEY_EXCLUDED", "public.good"),
        of("KEY_MISSING", "public.keyless"),
        of("SOURCE_REPLICA_IDENTITY_MISSING", "public.nothing"),
        of("COLUMN_MISSING", "public.sorted"),
        of("SORTING_KEY_LACKS_KEY", "public.sorted"),
        of("SORTING_KEY_NOT_IN_IDENTITY", "public.sorted"),
        of("SOURCE_REPLICA_IDENTITY_MISSING", "public.by_value"),
        of("SORTING_KEY_NOT_IN_IDENTITY", "public.by_value"),
        of("SOURCE_TABLE_UNLOGGED", "public.fleeting"),
        of("SOURCE_NOT_A_TABLE", "public.seen"),
        of("SOURCE_NOT_A_TABLE", "public.kept"),
        of("SOURCE_NOT_A_TABLE", "public.counted"),
        of("SOURCE_TABLE_MISSING", "public.gone"),
        of("SOURCE_TABLE_MISSING", "gone.too"),
        of("SOURCE_REPLICA_IDENTITY_MISSING", "public.split"),
    ];
    let mut told = codes(&errors(&found.problems));
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
    assert!(found.tables.is_empty());
    let may_come = one(&found.problems, "PARTITIONS_CHANGED", "public.split");
    assert_eq!(may_come.severity, Severity::Warning);
    assert!(
        one(&found.problems, "SOURCE_REPLICA_IDENTITY_MISSING", "public.split").message.contains("split_bad")
    );
    assert!(one(&found.problems, "SOURCE_NOT_A_TABLE", "public.kept").message.contains("materialised view"));

    for (code, table) in [
        ("SOURCE_REPLICA_IDENTITY_MISSING", "public.nothing"),
        ("SORTING_KEY_NOT_IN_IDENTITY", "public.sorted"),
        ("SOURCE_REPLICA_IDENTITY_MISSING", "public.by_value"),
        ("SOURCE_TABLE_UNLOGGED", "public.fleeting"),
        ("SOURCE_REPLICA_IDENTITY_MISSING", "public.split"),
    ] {
        server.run(&statement(one(&found.problems, code, table))).await;
    }
    spec.tables.retain(|table| {
        ["nothing", "sorted", "by_value", "fleeting", "split"].contains(&table.source.name.as_str())
    });
    spec.tables[1].sorting_keys = vec!["at".to_owned(), "id".to_owned()];
    let found = inspect(&spec, None).await;
    assert_eq!(codes(&errors(&found.problems)), []);
    assert_eq!(found.tables.len(), 5, "a warning keeps no table out");
}

#[tokio::test]
async fn a_poor_role_is_told_every_right_that_it_lacks() {
    let server = Server::start().await;
    server
        .run(
            "CREATE ROLE \"poor One\" LOGIN PASSWORD 'poor'; CREATE SCHEMA shut;
             CREATE TABLE shut.hidden (id int PRIMARY KEY); CREATE TABLE closed (id int PRIMARY KEY);
             CREATE TABLE partly (id int PRIMARY KEY, secret text, other text);
             GRANT SELECT (id, other) ON partly TO \"poor One\"; GRANT SELECT ON shut.hidden TO \"poor One\";
             CREATE TABLE guarded (id int PRIMARY KEY); GRANT SELECT ON guarded TO \"poor One\";
             ALTER TABLE guarded ENABLE ROW LEVEL SECURITY; CREATE POLICY none ON guarded USING (false)",
        )
        .await;
    let mut spec = server.spec(&["shut.hidden", "public.closed", "public.partly", "public.guarded"]);
    spec.source = server.source_as("poor One", "poor");
    let found = inspect(&spec, None).await;
    let mut told = codes(&found.problems);
    told.sort();
    let denied = "SOURCE_PERMISSION_DENIED";
    let mut expected = vec![
        // REPLICATION, and CREATE on the database.
        of(denied, ""),
        of(denied, ""),
        of(denied, "shut.hidden"),
        of(denied, "public.closed"),
        of(denied, "public.partly"),
        of("SOURCE_ROWS_HIDDEN", "public.guarded"),
    ];
    let owned = ["shut.hidden", "public.closed", "public.partly", "public.guarded"];
    expected.extend(owned.map(|table| of("SOURCE_NOT_OWNER", table)));
    expected.sort();
    assert_eq!(told, expected);
    assert!(one(&found.problems, denied, "public.partly").message.contains("secret"));
    assert!(!one(&found.problems, denied, "public.partly").message.contains("other"));

    // A column that may not be read is fine if it is excluded.
    let mut excluded = spec.clone();
    excluded.tables[2].excluded_columns = vec!["secret".to_owned()];
    let told = codes(&inspect(&excluded, None).await.problems);
    assert!(!told.contains(&of(denied, "public.partly")), "{told:?}");

    for problem in found.problems.iter().filter(|problem| problem.code != "SOURCE_NOT_OWNER") {
        server.run(&statement(problem)).await;
    }
    // Somebody who owns the tables makes the publication.
    let not_owner = one(&found.problems, "SOURCE_NOT_OWNER", "public.closed");
    server.run(&statement(not_owner).replace(", and name it as settings.publicationName", "")).await;
    spec.settings.publication_name = Some("millrace".to_owned());
    assert_eq!(codes(&inspect(&spec, None).await.problems), []);
}

#[tokio::test]
async fn a_publication_that_is_named_must_fit() {
    let server = Server::start().await;
    server
        .run(
            "CREATE TABLE a (id int PRIMARY KEY, v text, w text); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY);
             CREATE TABLE split (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF split DEFAULT",
        )
        .await;
    let mut spec = server.spec(&["public.a", "public.b", "public.c", "public.split"]);
    spec.settings.publication_name = Some("it's \"mine\"".to_owned());
    let found = errors(&inspect(&spec, None).await.problems);
    assert_eq!(codes(&found), [of("PUBLICATION_MISSING", "")]);
    server.run(&statement(&found[0])).await;
    assert_eq!(codes(&errors(&inspect(&spec, None).await.problems)), []);

    spec.settings.publication_name = Some("narrow".to_owned());
    server
        .run(
            "CREATE PUBLICATION narrow FOR TABLE a (id, w), b WHERE (id > 5), split WITH (publish = 'insert, update, delete')",
        )
        .await;
    let found = errors(&inspect(&spec, None).await.problems);
    let incomplete = |table| of("PUBLICATION_INCOMPLETE", table);
    assert_eq!(
        codes(&found),
        [
            incomplete(""),
            incomplete("public.a"),
            incomplete("public.b"),
            incomplete("public.c"),
            incomplete("public.split")
        ]
    );
    assert!(found[1].message.contains("\"v\""), "{}", found[1]);
    spec.tables[0].excluded_columns = vec!["v".to_owned()];
    assert!(!codes(&errors(&inspect(&spec, None).await.problems)).contains(&incomplete("public.a")));
    spec.tables[0].excluded_columns = Vec::new();
    for problem in &found {
        server.run(&statement(problem)).await;
    }
    assert_eq!(codes(&errors(&inspect(&spec, None).await.problems)), []);

    server.run("CREATE PUBLICATION everything FOR ALL TABLES WITH (publish_via_partition_root = true)").await;
    spec.settings.publication_name = Some("everything".to_owned());
    assert_eq!(codes(&errors(&inspect(&spec, None).await.problems)), []);
}

#[tokio::test]
async fn a_server_that_is_not_set_up_for_changes_can_still_be_copied() {
    let settings = [("wal_level", "minimal"), ("max_wal_senders", "0"), ("max_replication_slots", "0")];
    let server = Server::with(&settings).await;
    server.run("CREATE TABLE a (id int PRIMARY KEY)").await;
    let mut spec = server.spec(&["public.a", "public.gone"]);
    let found = inspect(&spec, None).await;
    assert_eq!(
        codes(&found.problems),
        [
            of("SOURCE_WAL_LEVEL", ""),
            of("SOURCE_OUT_OF_SLOTS", ""),
            of("SOURCE_OUT_OF_SLOTS", ""),
            of("SOURCE_TABLE_MISSING", "public.gone")
        ]
    );
    assert_eq!(statement(&found.problems[0]), "ALTER SYSTEM SET wal_level = logical");
    spec.mode = ReplicationMode::Snapshot;
    spec.tables.truncate(1);
    let found = inspect(&spec, None).await;
    assert_eq!(codes(&found.problems), []);
    assert_ne!(found.system_identifier, 0);
    SnapshotSession::plain(&spec.source, APPLICATION).await.unwrap();
}

#[tokio::test]
async fn slots_that_are_used_up_or_taken_are_told() {
    let server = Server::with(&[("max_replication_slots", "1"), ("max_slot_wal_keep_size", "1MB")]).await;
    server
        .run("CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT n, repeat('x', 200) FROM generate_series(1, 10000) n")
        .await;
    let mut spec = server.spec(&["public.a"]);
    let found = inspect(&spec, None).await;
    assert_eq!(codes(&found.problems), [of("SOURCE_WAL_KEEP_SIZE", "")]);
    assert_eq!(found.problems[0].severity, Severity::Warning);
    assert_eq!(found.tables.len(), 1);
    server.run("ALTER SYSTEM SET max_slot_wal_keep_size = -1").await;
    server.run("SELECT pg_reload_conf()").await;
    server.until("SELECT setting = '-1' FROM pg_settings WHERE name = 'max_slot_wal_keep_size'").await;

    drop(
        SnapshotSession::with_slot(&spec.source, APPLICATION, "mine", millrace_postgres::SlotKind::Lasting)
            .await
            .unwrap(),
    );
    spec.settings.replication_slot_name = Some("mine".to_owned());
    let found = inspect(&spec, None).await;
    assert_eq!(codes(&found.problems), [of("SOURCE_OUT_OF_SLOTS", ""), of("SLOT_EXISTS", "")]);
    // The slot of a pipe that exists is its own.
    let pipe = "0123456789ab".parse().unwrap();
    assert_eq!(codes(&inspect(&spec, Some(&pipe)).await.problems), []);
    server.run(statement(&found.problems[1]).trim_end_matches(" if nobody needs it")).await;
    assert_eq!(codes(&inspect(&spec, None).await.problems), []);
}

#[tokio::test]
async fn without_a_connection_there_is_one_problem() {
    let server = Server::start().await;
    let mut spec = server.spec(&["public.a"]);
    spec.tables.push(table("public.b"));
    for (source, code) in [
        (PostgresSource { port: 1, ..server.source() }, "SOURCE_UNREACHABLE"),
        (server.source_as("postgres", "wrong"), "SOURCE_AUTHENTICATION_FAILED"),
        (PostgresSource { database: "gone".to_owned(), ..server.source() }, "SOURCE_DATABASE_MISSING"),
    ] {
        spec.source = source;
        let found = inspect(&spec, None).await;
        assert_eq!(codes(&found.problems), [of(code, "")]);
        assert!(found.tables.is_empty());
    }
}

#[tokio::test]
async fn a_standby_is_refused_for_changes_and_may_be_copied() {
    let mut server = Server::start().await;
    server.run("CREATE TABLE a (id int PRIMARY KEY)").await;
    server.postgres.stop().await.unwrap();
    // A cluster that waits for a primary which never comes.
    std::fs::write(server.cluster().join("standby.signal"), "").unwrap();
    server.postgres.settings_mut().push(("hot_standby".to_owned(), "on".to_owned()));
    if let Err(error) = server.postgres.restart().await {
        panic!("{error}");
    }
    let mut spec = server.spec(&["public.a"]);
    assert_eq!(codes(&inspect(&spec, None).await.problems), [of("SOURCE_IS_STANDBY", "")]);
    spec.mode = ReplicationMode::Snapshot;
    assert_eq!(codes(&inspect(&spec, None).await.problems), []);
}
