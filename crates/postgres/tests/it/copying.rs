//! Snapshots, and reading rows under them.

use std::collections::{BTreeMap, BTreeSet};

use millrace_model::{PageRange, PgType, Recovery, SourceColumn, TableDefinition};
use millrace_postgres::{
    CopyReader, Error, Place, Session, SnapshotSession, classify, copy_query, discovery,
};

use crate::support::{APPLICATION, Server, copy, fields, name};

async fn definition(server: &Server, table: &str) -> TableDefinition {
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    discovery::find(&session, &[name(table)]).await.unwrap().remove(0).definition
}

fn binary(_: &SourceColumn) -> bool {
    false
}

fn int(field: Option<&[u8]>) -> i32 {
    i32::from_be_bytes(field.unwrap().try_into().unwrap())
}

#[tokio::test]
async fn ranges_of_one_snapshot_give_every_row_once_and_none_that_came_later() {
    let server = Server::start().await;
    server
        .run(
            "CREATE TABLE items (id int PRIMARY KEY, note text);
             INSERT INTO items SELECT n, repeat('x', n % 300) FROM generate_series(1, 20000) n; ANALYZE items",
        )
        .await;
    let table = definition(&server, "public.items").await;
    assert!(table.pages > 100 && table.estimated_rows == 20_000, "{} {}", table.pages, table.estimated_rows);
    let snapshot = SnapshotSession::plain(&server.source(), APPLICATION).await.unwrap();
    server.run("INSERT INTO items VALUES (0, 'late'); DELETE FROM items WHERE id > 10000; UPDATE items SET note = 'late'").await;

    let mut reader = CopyReader::connect(&server.source(), APPLICATION).await.unwrap();
    reader.begin_at_snapshot(snapshot.name()).await.unwrap();
    let mut seen = BTreeSet::new();
    let ranges = [(0, Some(1)), (1, Some(60)), (60, Some(60)), (60, Some(table.pages)), (table.pages, None)];
    for (first, end) in ranges {
        let sql = copy_query(&table, PageRange { first, end }, &binary);
        let rows = copy(&mut reader, &sql, |tuple| {
            let fields = fields(tuple);
            let id = int(fields[0]);
            assert_eq!(fields[1].unwrap(), vec![b'x'; usize::try_from(id % 300).unwrap()]);
            assert!(seen.insert(id), "{id} came twice");
        })
        .await
        .unwrap();
        assert_eq!(rows == 0, first == end.unwrap_or(first), "{first} {end:?} gave {rows}");
    }
    assert_eq!(seen, (1..=20_000).collect());
}

#[tokio::test]
async fn a_range_is_read_by_its_pages_and_not_by_the_whole_table() {
    let server = Server::start().await;
    server
        .run("CREATE TABLE items (id int); INSERT INTO items SELECT generate_series(1, 50000); ANALYZE items")
        .await;
    let table = definition(&server, "public.items").await;
    let sql = copy_query(&table, PageRange { first: 3, end: Some(9) }, &binary);
    let query = sql.strip_prefix("COPY (").and_then(|sql| sql.split(") TO STDOUT").next()).unwrap();
    let plan = server.client().await.query(&format!("EXPLAIN {query}"), &[]).await.unwrap();
    assert!(plan[0].get::<_, String>(0).contains("Tid Range Scan"), "{plan:?}");
}

#[tokio::test]
async fn large_values_and_nulls_are_lent_as_they_are() {
    let server = Server::start().await;
    server
        .run(
            "CREATE TABLE wide (id int PRIMARY KEY, a text, b bytea, c int);
             INSERT INTO wide VALUES (1, NULL, NULL, NULL), (2, '', '', 0),
               (3, repeat('abcde', 4000000), decode(repeat('00ff', 1000000), 'hex'), 7), (4, 'after', NULL, 8);
             CREATE TABLE bare (); INSERT INTO bare SELECT; INSERT INTO bare SELECT; CREATE TABLE empty (id int)",
        )
        .await;
    let mut reader = CopyReader::connect(&server.source(), APPLICATION).await.unwrap();
    let usual = reader.held();
    let table = definition(&server, "public.wide").await;
    let mut rows = 0;
    let sql = copy_query(&table, PageRange::ALL, &binary);
    copy(&mut reader, &sql, |tuple| {
        rows += 1;
        let fields = fields(tuple);
        match int(fields[0]) {
            1 => assert_eq!(fields[1..], [None, None, None]),
            2 => assert_eq!(fields[1..], [Some(&b""[..]), Some(b""), Some(&[0; 4])]),
            3 => {
                let text = fields[1].unwrap();
                assert_eq!(text.len(), 20_000_000);
                assert!(text.chunks(5).all(|chunk| chunk == b"abcde"));
                assert_eq!(fields[2].unwrap().len(), 2_000_000);
                assert_eq!(int(fields[3]), 7);
            }
            _ => assert_eq!(fields[1], Some(&b"after"[..])),
        }
    })
    .await
    .unwrap();
    assert_eq!(rows, 4);

    // The large value's memory is given back.
    for (table, rows) in [("public.bare", 2), ("public.empty", 0)] {
        let sql = copy_query(&definition(&server, table).await, PageRange::ALL, &binary);
        assert_eq!(copy(&mut reader, &sql, |_| {}).await.unwrap(), rows, "{table}");
    }
    assert_eq!(reader.held(), usual);
}

#[tokio::test]
async fn types_without_a_decoder_come_as_postgresql_writes_them() {
    let server = Server::start().await;
    server
        .run(
            "CREATE TYPE pair AS (a int, b text);
             CREATE TABLE \"Odd \"\"name\" (id int PRIMARY KEY, \"Addr ess\" inet, span interval, p pair, q pair, many inet[]);
             INSERT INTO \"Odd \"\"name\" VALUES (1, '10.0.0.1', '1 year 2 days -3 seconds', '(1,\"x y\")', NULL, '{10.0.0.1,NULL}'),
               (2, NULL, NULL, '(,)', '(,)', NULL)",
        )
        .await;
    let table = definition(&server, "public.\"Odd \"\"name\"").await;
    let as_text = |column: &SourceColumn| match &column.pg_type {
        PgType::Array(element) => matches!(**element, PgType::Other(_)),
        kind => matches!(kind, PgType::Other(_)),
    };
    let sql = copy_query(&table, PageRange::ALL, &as_text);
    let mut reader = CopyReader::connect(&server.source(), APPLICATION).await.unwrap();
    let mut rows = Vec::new();
    copy(&mut reader, &sql, |tuple| {
        let text = |field: Option<&[u8]>| field.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
        rows.push(fields(tuple)[1..].iter().map(|field| text(*field)).collect::<Vec<_>>());
    })
    .await
    .unwrap();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        rows,
        [
            [
                some("10.0.0.1"),
                some("1 year 2 days -00:00:03"),
                some("(1,\"x y\")"),
                None,
                some("{10.0.0.1,NULL}")
            ],
            // A composite of nothing but NULL is not NULL, though SQL's IS NULL says so.
            [None, None, some("(,)"), some("(,)"), None],
        ]
    );
}

#[tokio::test]
async fn a_table_is_read_without_its_children_and_a_partitioned_one_with_all_its_partitions() {
    let server = Server::start().await;
    server
        .run(
            "CREATE TABLE parent (id int); CREATE TABLE child () INHERITS (parent);
             INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2);
             CREATE TABLE split (id int, v text) PARTITION BY RANGE (id);
             CREATE TABLE split_low PARTITION OF split FOR VALUES FROM (0) TO (10);
             CREATE TABLE split_rest (v text, id int) PARTITION BY HASH (id);
             CREATE TABLE split_a PARTITION OF split_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE split_b PARTITION OF split_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
             ALTER TABLE split ATTACH PARTITION split_rest DEFAULT;
             INSERT INTO split SELECT n, 'v' || n FROM generate_series(1, 100) n",
        )
        .await;
    let mut reader = CopyReader::connect(&server.source(), APPLICATION).await.unwrap();
    for (table, range, rows) in [
        ("public.parent", PageRange::ALL, 1),
        ("public.parent", PageRange { first: 0, end: Some(1) }, 1),
        ("public.split", PageRange::ALL, 100),
    ] {
        let sql = copy_query(&definition(&server, table).await, range, &binary);
        let read = copy(&mut reader, &sql, |tuple| {
            if let [Some(id), Some(v)] = fields(tuple)[..] {
                assert_eq!(v, format!("v{}", int(Some(id))).as_bytes());
            }
        });
        assert_eq!(read.await.unwrap(), rows, "{table}");
    }
}

#[tokio::test]
async fn rows_that_a_policy_would_hide_stop_the_copy() {
    let server = Server::start().await;
    server
        .run(
            "CREATE TABLE guarded (id int PRIMARY KEY); INSERT INTO guarded VALUES (1), (2);
             ALTER TABLE guarded ENABLE ROW LEVEL SECURITY; CREATE POLICY one ON guarded USING (id = 1);
             CREATE ROLE reader LOGIN PASSWORD 'reader'; GRANT SELECT ON guarded TO reader",
        )
        .await;
    let sql = copy_query(&definition(&server, "public.guarded").await, PageRange::ALL, &binary);
    let mut reader = CopyReader::connect(&server.source_as("reader", "reader"), APPLICATION).await.unwrap();
    let error = copy(&mut reader, &sql, |_| {}).await.unwrap_err();
    assert_eq!(classify(&error).code, "SOURCE_PERMISSION_DENIED", "{error:?}");
}

#[tokio::test]
async fn a_lost_snapshot_is_noticed_by_its_holder_and_by_those_who_come_later() {
    let server = Server::start().await;
    server.run("CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items VALUES (1)").await;
    let table = definition(&server, "public.items").await;
    let sql = copy_query(&table, PageRange::ALL, &binary);
    let plain = SnapshotSession::plain(&server.source(), APPLICATION).await.unwrap();
    let (slotted, point) =
        SnapshotSession::with_slot(&server.source(), APPLICATION, "s", millrace_postgres::SlotKind::Lasting)
            .await
            .unwrap();
    assert!(point.0 > 0);
    for (mut session, purpose) in [(plain, "client backend"), (slotted, "walsender")] {
        let mut reader = CopyReader::connect(&server.source(), APPLICATION).await.unwrap();
        reader.begin_at_snapshot(session.name()).await.unwrap();
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = '{purpose}' \
             AND state LIKE 'idle%' AND query LIKE ANY (ARRAY['%export_snapshot%', 'CREATE_REPLICATION_SLOT%'])"
        );
        server.run(&end).await;
        let reason = session.wait_closed().await;
        assert_eq!(classify(&reason).recovery, Recovery::Retry, "{reason:?}");
        // Who had imported it goes on.
        assert_eq!(copy(&mut reader, &sql, |_| {}).await.unwrap(), 1);
        drop(reader);
        let mut late = CopyReader::connect(&server.source(), APPLICATION).await.unwrap();
        let error = late.begin_at_snapshot(session.name()).await.unwrap_err();
        let problem = classify(&error);
        assert_eq!(
            (problem.code.as_str(), problem.recovery),
            ("SNAPSHOT_LOST", Recovery::Retry),
            "{error:?}"
        );
    }
    for nonsense in ["no such", "00000003-0000001B-1", "it's"] {
        let mut late = CopyReader::connect(&server.source(), APPLICATION).await.unwrap();
        let error = late.begin_at_snapshot(nonsense).await.unwrap_err();
        assert_eq!(classify(&error).code, "SNAPSHOT_LOST", "{error:?}");
    }
}

#[tokio::test]
async fn a_copy_that_breaks_says_why_and_one_that_is_dropped_leaves_nothing_behind() {
    let server = Server::start().await;
    server.run("CREATE TABLE items (id int, v text); INSERT INTO items SELECT n, repeat('x', 500) FROM generate_series(1, 200000) n").await;
    let table = definition(&server, "public.items").await;
    let sql = copy_query(&table, PageRange::ALL, &binary);
    let mut reader = CopyReader::connect(&server.source(), APPLICATION).await.unwrap();
    reader.start(&sql).await.unwrap();
    reader.fill().await.unwrap();
    drop(reader);
    server.until("NOT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'COPY%')").await;

    let mut reader = CopyReader::connect(&server.source(), APPLICATION).await.unwrap();
    let gone = copy(&mut reader, &sql.replace("items", "gone"), |_| {}).await.unwrap_err();
    assert_eq!(classify(&gone).code, "SOURCE_TABLE_MISSING", "{gone:?}");
    // Fails in the middle: after rows have come.
    let broken = "COPY (SELECT 10 / (1000 - n) FROM generate_series(1, 2000) n) TO STDOUT (FORMAT binary)";
    let mut rows = 0;
    let error = copy(&mut reader, broken, |_| rows += 1).await.unwrap_err();
    assert!(matches!(&error, Error::Refused { source, .. } if source.code == "22012"), "{error:?}");
    assert_eq!((rows, classify(&error).recovery), (999, Recovery::Operator));
}

#[tokio::test]
async fn a_table_that_is_rewritten_between_two_ranges_is_noticed_and_one_that_is_truncated_is_fine() {
    let server = Server::start().await;
    let names = [
        "items",
        "emptied",
        "refilled",
        "reloaded",
        "widened",
        "computed",
        "added",
        "numbered",
        "vanished",
        "relogged",
        "came_and_went",
    ];
    for name in names {
        let sql = format!(
            "CREATE TABLE {name} (id int, n int); INSERT INTO {name} SELECT n, n FROM generate_series(1, 20000) n; ANALYZE {name}"
        );
        server.run(&sql).await;
    }
    let mut tables = BTreeMap::new();
    for name in names {
        tables.insert(name, definition(&server, &format!("public.{name}")).await);
    }
    let snapshot = SnapshotSession::plain(&server.source(), APPLICATION).await.unwrap();
    let open = async || {
        let mut reader = CopyReader::connect(&server.source(), APPLICATION).await.unwrap();
        reader.begin_at_snapshot(snapshot.name()).await.unwrap();
        reader
    };
    let mut reader = open().await;
    for table in tables.values() {
        assert_eq!(reader.hold_in_place(table).await.unwrap(), Place::Same);
    }

    // While it is held, nothing can rewrite it.
    let client = server.client().await;
    let blocked = client.batch_execute("SET lock_timeout = '100ms'; LOCK TABLE items").await.unwrap_err();
    assert_eq!(blocked.code().map(|state| state.code()), Some("55P03"));
    drop(reader);

    server.run("DELETE FROM items WHERE id % 2 = 0").await;
    server.run("VACUUM FULL items").await;
    server
        .run(
            "TRUNCATE emptied; TRUNCATE refilled RESTART IDENTITY; INSERT INTO refilled VALUES (1, 1);
             BEGIN; TRUNCATE reloaded; INSERT INTO reloaded VALUES (1, 1); COMMIT;
             ALTER TABLE widened ALTER n TYPE bigint; ALTER TABLE computed ALTER n TYPE int USING n + 0;
             ALTER TABLE added ADD COLUMN r float8 DEFAULT random();
             ALTER TABLE numbered ADD COLUMN r int NOT NULL GENERATED ALWAYS AS IDENTITY;
             DELETE FROM vanished; ALTER TABLE vanished ALTER n TYPE bigint;
             ALTER TABLE relogged SET UNLOGGED; ALTER TABLE relogged SET LOGGED;
             BEGIN; ALTER TABLE came_and_went ADD COLUMN r float8 DEFAULT random(); ALTER TABLE came_and_went DROP COLUMN r; COMMIT;
             INSERT INTO came_and_went VALUES (1, 1)",
        )
        .await;
    let mut reader = open().await;
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    for (name, table) in &tables {
        let place = reader.hold_in_place(table).await;
        if *name == "items" {
            let rewritten = place.expect_err("its rows are seen");
            assert!(matches!(rewritten, Error::Rewritten), "{rewritten}");
            assert_eq!(classify(&rewritten).code, "SOURCE_TABLE_REWRITTEN");
            continue;
        }
        assert_eq!(place.unwrap(), Place::Hidden, "{name}");
        let truncated = ["emptied", "refilled", "reloaded", "vanished"].contains(name);
        assert_eq!(session.was_truncated(table.oid, &table.name).await.unwrap(), truncated, "{name}");
    }
}
