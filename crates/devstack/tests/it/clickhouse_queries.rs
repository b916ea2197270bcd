//! Queries: errors, settings, parameters, formats, compression, concurrency, cancellation.

use std::time::{Duration, Instant};

use anyhow::Result;
use clickhouse::{Client, Compression};

use crate::support::{Fresh, get, number, post, raw, until};

async fn failure(client: &Client, sql: &str) -> String {
    client.query(sql).execute().await.expect_err(sql).to_string()
}

#[tokio::test]
async fn errors_have_the_servers_code_text_and_status() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    for (sql, code, name, status) in [
        ("SELECT * FROM nope", 60, "UNKNOWN_TABLE", 404),
        ("SELECT * FROM nope.t", 81, "UNKNOWN_DATABASE", 404),
        ("SELEC 1", 62, "SYNTAX_ERROR", 400),
        ("SELECT 1; SELECT 2", 62, "SYNTAX_ERROR", 400),
        ("", 62, "SYNTAX_ERROR", 400),
        ("SELECT throwIf(1)", 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO", 500),
        ("SELECT {x:Int8}", 456, "UNKNOWN_QUERY_PARAMETER", 500),
        ("DROP TABLE nope", 60, "UNKNOWN_TABLE", 404),
        ("SELECT 1 INTO OUTFILE 'x'", 48, "NOT_IMPLEMENTED", 501),
    ] {
        let text = failure(&client, sql).await;
        assert!(text.starts_with(&format!("bad response: Code: {code}. DB::Exception: ")), "{sql}: {text}");
        assert!(text.contains(&format!("({name}) (version 26.")), "{sql}: {text}");
        assert!(text.ends_with("(official build))"), "{sql}: {text}");
        let answer = post(&ch.server.url(), "/", sql).await?;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{sql}: {answer}");
        assert!(answer.contains(&format!("x-clickhouse-exception-code: {code}\r\n")), "{sql}: {answer}");
    }
    ch.stop().await
}

#[tokio::test]
async fn an_error_after_the_first_rows_reaches_the_client() -> Result<()> {
    let ch = Fresh::start().await?;
    for compression in [Compression::None, Compression::Lz4] {
        let client = ch.client().with_compression(compression).with_setting("max_block_size", "1000");
        let sql = "SELECT number + throwIf(number = 500000) FROM numbers(1000000)";
        let mut cursor = client.query(sql).fetch::<u64>()?;
        let mut rows = 0;
        let error = loop {
            match cursor.next().await {
                Ok(Some(_)) => rows += 1,
                Ok(None) => anyhow::bail!("{compression:?}: looked complete after {rows} rows"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(rows > 0, "{compression:?}: failed before the first row: {error}");
        assert!(error.contains("Code: 395. DB::Exception"), "{compression:?}: {error}");
    }
    ch.stop().await
}

#[tokio::test]
async fn settings_apply_to_their_query_only_and_unknown_ones_are_refused() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    let threads = "SELECT toUInt64(getSetting('max_threads'))";
    let before = number(&client, threads).await?;
    assert_eq!(number(&client.clone().with_setting("max_threads", "7"), threads).await?, 7);
    assert_eq!(number(&client, threads).await?, before);

    let limited = client.clone().with_setting("max_result_rows", "10");
    assert!(failure(&limited, "SELECT number FROM numbers(100)").await.contains("Code: 396."));
    let unknown = failure(&client.clone().with_setting("no_such_setting", "1"), "SELECT 1").await;
    assert!(unknown.contains("Code: 115. DB::Exception: Unknown setting 'no_such_setting'"), "{unknown}");
    let odd = failure(&client.clone().with_setting("a = 1, b", "1"), "SELECT 1").await;
    assert!(odd.contains("Code: 115."), "{odd}");
    let wrong = failure(&client.clone().with_setting("max_threads", "many"), "SELECT 1").await;
    assert!(wrong.contains("Code: 27."), "{wrong}");
    // SET and USE end with their request, as they do on a server without a session.
    client.query("SET max_threads = 3").execute().await?;
    client.query("USE system").execute().await?;
    assert_eq!(number(&client, threads).await?, before);
    assert_eq!(client.query("SELECT currentDatabase()").fetch_one::<String>().await?, "default");
    ch.stop().await
}

#[tokio::test]
async fn values_are_bound_by_the_client_and_by_the_server() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    let nasty = "it's \\ a 'tab\t and ünïcode\n{x:Int8} ?";
    let bound =
        client.query("SELECT ?, toInt64(?)").bind(nasty).bind(-5_i64).fetch_one::<(String, i64)>().await?;
    assert_eq!(bound, (nasty.to_owned(), -5));
    // These go as a form with `param_` fields.
    let plain = "it's plain";
    let sql = "SELECT {s: String}, {n: Int64}, arrayStringConcat({a: Array(String)}, '+')";
    let query = client.query(sql).param("s", plain).param("n", 42_i64).param("a", vec!["x", "y'z"]);
    let found = query.fetch_one::<(String, i64, String)>().await?;
    assert_eq!(found, (plain.to_owned(), 42, "x+y'z".to_owned()));
    // And these in the address.
    let answer = post(&ch.server.url(), "/?param_n=41", "SELECT {n:Int64} + 1").await?;
    assert!(answer.contains("\r\n42\n"), "{answer}");
    ch.stop().await
}

#[tokio::test]
async fn a_large_result_is_streamed_in_every_encoding() -> Result<()> {
    let ch = Fresh::start().await?;
    for compression in [Compression::None, Compression::Lz4] {
        let client = ch.client().with_compression(compression);
        // With validation the format has a header, which must come once though the engine repeats it.
        for validation in [true, false] {
            let client = client.clone().with_validation(validation);
            let sql = "SELECT number, toString(number) FROM numbers(2000000)";
            let mut cursor = client.query(sql).fetch::<(u64, String)>()?;
            let mut expected = 0;
            while let Some((number, text)) = cursor.next().await? {
                assert_eq!((number, text), (expected, expected.to_string()));
                expected += 1;
            }
            assert_eq!(expected, 2_000_000, "{compression:?} validation {validation}");
        }
        let native =
            client.query("SELECT number FROM numbers(1000000)").fetch_bytes("Native")?.collect().await?;
        assert!(native.len() > 8_000_000 && native.len() < 8_010_000, "{}", native.len());
        let lines = client.query("SELECT number FROM numbers(500000)").fetch_bytes("CSV")?.collect().await?;
        assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), 500_000);
        let json =
            client.query("SELECT number FROM numbers(200000)").fetch_bytes("JSONCompact")?.collect().await?;
        let json: serde_json::Value = serde_json::from_slice(&json)?;
        assert_eq!(json["data"].as_array().map(Vec::len), Some(200_000));
    }
    ch.stop().await
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_the_query() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client().with_compression(Compression::None);
    // 3.2 GB, of which only the beginning is read.
    let unread = client.clone().with_setting("query_id", "unread");
    let mut cursor = unread.query("SELECT number FROM numbers(400000000)").fetch::<u64>()?;
    assert_eq!(cursor.next().await?, Some(0));
    let progress = "SELECT sum(read_rows) FROM system.processes WHERE query_id = 'unread'";
    // It stands still when twenty looks, a while apart, see the same.
    let (mut rows, mut same) = (0, 0);
    while same < 20 {
        let now = number(&client, &format!("{progress} AND sleep(0.02) = 0")).await?;
        same = if now == rows { same + 1 } else { 0 };
        rows = now;
    }
    assert!(rows > 0, "it ran to its end");
    assert!(rows < 50_000_000, "{rows} rows were read for a client that took one piece");
    drop(cursor);
    ch.stop().await
}

#[tokio::test]
async fn queries_run_side_by_side() -> Result<()> {
    let ch = Fresh::start().await?;
    let start = Instant::now();
    let mut queries = tokio::task::JoinSet::new();
    for at in 0..20_u64 {
        let client = ch.client();
        queries.spawn(async move { number(&client, &format!("SELECT toUInt64(sleep(1) + {at})")).await });
    }
    let mut found = queries.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    found.sort_unstable();
    assert_eq!(found, (0..20).collect::<Vec<_>>());
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    ch.stop().await
}

#[tokio::test]
async fn a_query_can_be_seen_and_killed_by_the_id_that_its_client_gave() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    let endless = client.clone().with_setting("query_id", "the-endless-one");
    let query =
        tokio::spawn(async move { failure(&endless, "SELECT count() FROM numbers(1000000000000)").await });
    let seen = "SELECT count() FROM system.processes WHERE query_id = 'the-endless-one'";
    until("it runs", || async { Ok(number(&client, seen).await? == 1) }).await?;
    let twice = failure(&client.clone().with_setting("query_id", "the-endless-one"), "SELECT 1").await;
    assert!(twice.contains("Code: 216."), "{twice}");
    client.query("KILL QUERY WHERE query_id = 'another'").execute().await?;
    assert_eq!(number(&client, seen).await?, 1);
    client.query("KILL QUERY WHERE query_id = 'the-endless-one'").execute().await?;
    let error = query.await?;
    assert!(error.contains("Code: 394."), "{error}");
    until("it is gone", || async { Ok(number(&client, seen).await? == 0) }).await?;
    ch.stop().await
}

#[tokio::test]
async fn a_query_ends_when_its_client_goes_away() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    for (id, sql) in [
        ("before-any-row", "SELECT count() FROM numbers(1000000000000)"),
        ("between-rows", "SELECT number FROM numbers(1000000000000)"),
    ] {
        let seen = format!("SELECT count() FROM system.processes WHERE query_id = '{id}'");
        let mut cursor = client.clone().with_setting("query_id", id).query(sql).fetch::<u64>()?;
        tokio::select! {
            row = cursor.next() => assert_eq!(row?, Some(0), "{id}"),
            seen = until("it runs", || async { Ok(number(&client, &seen).await? == 1) }) => seen?,
        }
        until("it runs", || async { Ok(number(&client, &seen).await? == 1) }).await?;
        drop(cursor);
        until("it has ended", || async { Ok(number(&client, &seen).await? == 0) }).await?;
    }
    ch.stop().await
}

#[tokio::test]
async fn headers_say_what_a_servers_say() -> Result<()> {
    let ch = Fresh::start().await?;
    let url = ch.server.url();
    let answer = post(&url, "/?query_id=mine&default_format=JSONEachRow", "SELECT 1 AS a").await?;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    for header in [
        "x-clickhouse-query-id: mine\r\n",
        "x-clickhouse-format: JSONEachRow\r\n",
        "x-clickhouse-summary: {",
        "x-clickhouse-server-display-name: ",
        "content-type: application/x-ndjson",
        "transfer-encoding: chunked\r\n",
    ] {
        assert!(answer.contains(header), "{header} is not in {answer}");
    }
    assert!(answer.contains("{\"a\":1}\n"), "{answer}");
    assert!(get(&url, "/ping").await?.ends_with("\r\n\r\nOk.\n"));
    assert!(get(&url, "/?query=SELECT%2041%2B1").await?.contains("\r\n42\n"));
    // A GET cannot change anything.
    assert!(get(&url, "/?query=CREATE%20DATABASE%20x").await?.contains("Code: 164."));
    assert!(get(&url, "/elsewhere").await?.starts_with("HTTP/1.1 404 "));
    assert!(
        raw(&url, b"PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await?
            .starts_with("HTTP/1.1 501 ")
    );
    let late = "SELECT number + throwIf(number = 900) FROM numbers(1000) SETTINGS max_block_size = 10";
    assert!(post(&url, "/", late).await?.starts_with("HTTP/1.1 200 "));
    assert!(post(&url, "/?wait_end_of_query=1", late).await?.starts_with("HTTP/1.1 500 "));
    ch.stop().await
}

#[tokio::test]
async fn only_the_one_user_is_let_in_and_sessions_are_refused() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    client.clone().with_user("default").with_password("").query("SELECT 1").execute().await?;
    let bob = failure(&client.clone().with_user("bob"), "SELECT 1").await;
    assert!(bob.contains("Code: 516. DB::Exception: bob: Authentication failed"), "{bob}");
    let wrong = failure(&client.clone().with_user("default").with_password("x"), "SELECT 1").await;
    assert!(wrong.contains("Code: 516."), "{wrong}");
    let session = failure(&client.clone().with_setting("session_id", "s"), "SELECT 1").await;
    assert!(session.contains("Code: 48.") && session.contains("session_id"), "{session}");
    ch.stop().await
}

#[tokio::test]
async fn databases_are_atomic_and_tables_can_be_exchanged() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    client.query("CREATE DATABASE d").execute().await?;
    let engines = "SELECT arrayStringConcat(groupUniqArray(engine)) FROM system.databases WHERE name IN ('d', 'default')";
    assert_eq!(client.query(engines).fetch_one::<String>().await?, "Atomic");
    for database in ["default", "d"] {
        let client = client.clone().with_database(database);
        for (table, rows) in [("a", 1), ("b", 2)] {
            let create = format!("CREATE TABLE {table} (n UInt64) ENGINE = ReplacingMergeTree ORDER BY n");
            client.query(&create).execute().await?;
            client
                .query(&format!("INSERT INTO {table} SELECT number FROM numbers({rows})"))
                .execute()
                .await?;
        }
        client.query("EXCHANGE TABLES a AND b").execute().await?;
        assert_eq!(number(&client, "SELECT count() FROM a").await?, 2, "{database}");
    }
    let missing = failure(&client.clone().with_database("nope"), "SELECT 1").await;
    assert!(missing.contains("Code: 81."), "{missing}");
    ch.stop().await
}
