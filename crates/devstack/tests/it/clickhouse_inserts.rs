//! Inserts: formats, streamed bodies, compression, cut-off bodies, deduplication.

use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use clickhouse::{Client, Compression, Row};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::{Fresh, number, post, until};

#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
struct Event {
    id: u64,
    text: String,
}

fn event(id: u64) -> Event {
    Event { id, text: format!("event {id}: it's ünïcode\n") }
}

async fn table(client: &Client, settings: &str) -> Result<()> {
    let sql = format!("CREATE TABLE t (id UInt64, text String) ENGINE = MergeTree ORDER BY id {settings}");
    Ok(client.query(&sql).execute().await?)
}

/// One block in the format Native: the columns `id` and `text`, of which the latter repeats `text`.
#[allow(clippy::unwrap_used, reason = "a number of rows fits a usize")]
fn native(ids: std::ops::Range<u64>, text: &str) -> Bytes {
    let mut block = BytesMut::new();
    let rows = usize::try_from(ids.end - ids.start).unwrap();
    let varint = |block: &mut BytesMut, mut value: usize| {
        while value >= 0x80 {
            block.extend_from_slice(&[(value as u8) | 0x80]);
            value >>= 7;
        }
        block.extend_from_slice(&[value as u8]);
    };
    let string = |block: &mut BytesMut, value: &str| {
        varint(block, value.len());
        block.extend_from_slice(value.as_bytes());
    };
    varint(&mut block, 2);
    varint(&mut block, rows);
    string(&mut block, "id");
    string(&mut block, "UInt64");
    ids.for_each(|id| block.extend_from_slice(&id.to_le_bytes()));
    string(&mut block, "text");
    string(&mut block, "String");
    (0..rows).for_each(|_| string(&mut block, text));
    block.freeze()
}

async fn insert_native(client: &Client, pieces: impl IntoIterator<Item = Bytes>) -> Result<()> {
    let mut insert = client.insert_formatted_with("INSERT INTO t (id, text) FORMAT Native");
    for piece in pieces {
        insert.send(piece).await?;
    }
    Ok(insert.end().await?)
}

#[tokio::test]
async fn typed_rows_come_back_as_they_were() -> Result<()> {
    let ch = Fresh::start().await?;
    for compression in [Compression::None, Compression::Lz4] {
        let client = ch.client().with_compression(compression);
        client.query("DROP TABLE IF EXISTS t").execute().await?;
        table(&client, "").await?;
        let mut insert = client.insert::<Event>("t").await?;
        for id in 0..300_000 {
            insert.write(&event(id)).await?;
        }
        insert.end().await?;
        let mut cursor = client.query("SELECT ?fields FROM t ORDER BY id").fetch::<Event>()?;
        let mut expected = 0;
        while let Some(row) = cursor.next().await? {
            assert_eq!(row, event(expected));
            expected += 1;
        }
        assert_eq!(expected, 300_000, "{compression:?}");
    }
    ch.stop().await
}

#[tokio::test]
async fn native_blocks_of_any_size_are_streamed_and_one_block_is_one_part() -> Result<()> {
    let ch = Fresh::start().await?;
    for compression in [Compression::None, Compression::Lz4] {
        let client = ch.client().with_compression(compression);
        client.query("DROP TABLE IF EXISTS t").execute().await?;
        table(&client, "").await?;
        let block = native(0..2_000_000, "some text of a few bytes, newline \n and quote ' included");
        assert!(block.len() > 100_000_000);
        let pieces =
            (0..block.len()).step_by(300_007).map(|at| block.slice(at..(at + 300_007).min(block.len())));
        insert_native(&client, pieces).await?;
        assert_eq!(number(&client, "SELECT count() FROM t").await?, 2_000_000);
        assert_eq!(number(&client, "SELECT sum(id) FROM t").await?, 1_999_999_000_000);
        let parts = "SELECT count() FROM system.parts WHERE table = 't' AND database = 'default' AND level = 0 AND active";
        assert_eq!(number(&client, parts).await?, 1, "{compression:?}");
    }
    ch.stop().await
}

#[tokio::test]
async fn an_insert_that_is_cut_off_leaves_nothing() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    table(&client, "").await?;
    let seen = "SELECT count() FROM system.processes WHERE query_id LIKE 'cut-%'";

    // By the client library: the insert is dropped without its end, after whole blocks.
    let cut = client.clone().with_setting("query_id", "cut-by-client");
    let mut insert = cut.insert_formatted_with("INSERT INTO t FORMAT Native");
    insert.send(native(0..1000, "x")).await?;
    until("it runs", || async { Ok(number(&client, seen).await? == 1) }).await?;
    drop(insert);
    until("it has ended", || async { Ok(number(&client, seen).await? == 0) }).await?;

    // By the network: a body shorter than announced, ending between blocks.
    let block = native(1000..2000, "y");
    let target = "/?query_id=cut-by-network&query=INSERT%20INTO%20t%20FORMAT%20Native";
    let mut stream = TcpStream::connect(ch.server.url().trim_start_matches("http://")).await?;
    let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", block.len() + 1);
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&block).await?;
    until("it runs", || async { Ok(number(&client, seen).await? == 1) }).await?;
    drop(stream);
    until("it has ended", || async { Ok(number(&client, seen).await? == 0) }).await?;

    assert_eq!(number(&client, "SELECT count() FROM t").await?, 0);
    ch.stop().await
}

#[tokio::test]
async fn wrong_data_fails_the_insert_with_the_servers_code() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    table(&client, "").await?;
    for compression in [Compression::None, Compression::Lz4] {
        let client = client.clone().with_compression(compression);
        let block = native(0..100_000, "x");
        let half = block.slice(..block.len() / 2);
        let error = insert_native(&client, [half]).await.expect_err("half a block").to_string();
        assert!(error.contains("Code: 33.") || error.contains("Code: 32."), "{error}");
        // Also when the engine gives up long before the body ends.
        let mut insert = client.insert_formatted_with("INSERT INTO t FORMAT TSV");
        let mut sent = insert.send("no number\tx\n".into()).await;
        for _ in 0..2000 {
            if sent.is_err() {
                break;
            }
            sent = insert.send(Bytes::from(vec![b'7'; 10_000])).await;
        }
        let error = match sent {
            Ok(()) => insert.end().await,
            error => error,
        };
        let error = error.expect_err("text is no number").to_string();
        assert!(error.contains("Code: 27."), "{error}");
    }
    let error = insert_native(&client.clone().with_database("nope"), [native(0..1, "x")]).await;
    assert!(error.expect_err("no database").to_string().contains("Code: 81."));
    let mut missing = client.insert_formatted_with("INSERT INTO nope FORMAT Native");
    let _ = missing.send(native(0..1, "x")).await;
    assert!(missing.end().await.expect_err("no table").to_string().contains("Code: 60."));
    let strict = client.clone().with_setting("input_format_native_allow_types_conversion", "0");
    client.query("CREATE TABLE n (id Int32, text String) ENGINE = MergeTree ORDER BY id").execute().await?;
    let mut wrong = strict.insert_formatted_with("INSERT INTO n FORMAT Native");
    wrong.send(native(0..1, "x")).await?;
    assert!(wrong.end().await.expect_err("other type").to_string().contains("Code: 53."));
    assert_eq!(number(&client, "SELECT count() FROM t").await?, 0);
    ch.stop().await
}

#[tokio::test]
async fn a_corrupted_block_is_noticed() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    table(&client, "").await?;
    let target = "/?decompress=1&query=INSERT%20INTO%20t%20FORMAT%20TSV";
    let body = "0123456789abcdef\u{2}\u{a}\0\0\0\u{1}\0\0\0x";
    let answer = post(&ch.server.url(), target, body).await?;
    assert!(answer.contains("Code: 40."), "{answer}");
    ch.stop().await
}

#[tokio::test]
async fn a_repeated_token_is_inserted_once() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    table(&client, "SETTINGS non_replicated_deduplication_window = 100").await?;
    let with_token = |token: &str| client.clone().with_setting("insert_deduplication_token", token);
    for token in ["a", "a", "b"] {
        insert_native(&with_token(token), [native(0..10, "x")]).await?;
    }
    assert_eq!(number(&client, "SELECT count() FROM t").await?, 20);
    ch.stop().await
}

#[tokio::test]
async fn inserts_of_every_shape_of_text() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    table(&client, "").await?;
    client.query("INSERT INTO t VALUES (1, 'a''b'), (1 + 1, 'c')").execute().await?;
    client.query("INSERT INTO t SELECT number + 10, 'x' FROM numbers(3)").execute().await?;
    client.query("INSERT INTO t (id) FORMAT JSONEachRow {\"id\": 20}\n{\"id\": 21}").execute().await?;
    let url = ch.server.url();
    // Text and data in the body; text in the address and data in the body; both in the address.
    post(&url, "/", "INSERT INTO t FORMAT TSV\n30\ta\n31\tb\n").await?;
    post(&url, "/?query=INSERT%20INTO%20t%20FORMAT%20CSV", "40,\"a\nb\"\n").await?;
    post(&url, "/?query=INSERT%20INTO%20t%20VALUES%20(50,'x')", "").await?;
    let answer = post(&url, "/?query=INSERT%20INTO%20t%20VALUES", "(60,'x'),(61,'y')").await?;
    assert!(answer.contains("\"written_rows\":\"2\""), "{answer}");
    let found = client.query("SELECT id FROM t ORDER BY id").fetch_all::<u64>().await?;
    assert_eq!(found, [1, 2, 10, 11, 12, 20, 21, 30, 31, 40, 50, 60, 61]);
    assert_eq!(client.query("SELECT text FROM t WHERE id = 40").fetch_one::<String>().await?, "a\nb");
    ch.stop().await
}

#[tokio::test]
async fn asynchronous_inserts_are_refused_rather_than_pretended() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    table(&client, "").await?;
    let asynchronous = client.clone().with_setting("async_insert", "1");
    let error = insert_native(&asynchronous, [native(0..1, "x")]).await.expect_err("refused").to_string();
    assert!(error.contains("Code: 48.") && error.contains("async_insert"), "{error}");
    ch.stop().await
}

#[tokio::test]
async fn inserts_into_one_table_run_side_by_side() -> Result<()> {
    let ch = Fresh::start().await?;
    let client = ch.client();
    table(&client, "").await?;
    // All of them are open at once before any ends.
    let mut open = Vec::new();
    for at in 0..16 {
        let mut insert = client.insert_formatted_with("INSERT INTO t FORMAT Native");
        insert.send(native(at * 1000..(at + 1) * 1000, "x")).await?;
        open.push(insert);
    }
    let mut ends = tokio::task::JoinSet::new();
    open.into_iter().for_each(|insert| {
        ends.spawn(insert.end());
    });
    ends.join_all().await.into_iter().collect::<Result<Vec<_>, _>>().context("an insert")?;
    assert_eq!(number(&client, "SELECT uniqExact(id) FROM t").await?, 16_000);
    ch.stop().await
}
