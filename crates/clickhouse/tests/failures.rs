//! What the adapter makes of servers that are not there, not ClickHouse, or lost half-way. Plain sockets play those.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use bytes::Bytes;
use millrace_clickhouse::{ConnectionOptions, Destination, Error, TableRef, classify};
use millrace_mapping::EncodedBlock;
use millrace_model::spec::ClickHouseDestination;
use millrace_model::{Problem, Recovery, Secret};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

fn destination(url: String, options: ConnectionOptions) -> Destination {
    let settings = ClickHouseDestination {
        url,
        database: "shop".to_owned(),
        username: "me".to_owned(),
        password: Secret::new("hunter2"),
        cluster: None,
    };
    Destination::with_options(&settings, options).unwrap()
}

/// A listener and a destination that leads to it.
async fn listening(options: ConnectionOptions) -> (TcpListener, Destination) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, destination(url, options))
}

fn block(bytes: usize) -> EncodedBlock {
    EncodedBlock { rows: 1, pieces: vec![Bytes::from(vec![b'x'; bytes])], altered: vec![] }
}

async fn insert(destination: &Destination, bytes: usize) -> Result<(), Error> {
    destination.insert(&TableRef::new("shop", "orders"), &block(bytes), "token").await
}

/// Reads to the end of a request that is shorter than the buffers between.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"0\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0, "the request ends early");
    }
    String::from_utf8(request).unwrap()
}

/// What the adapter says of an insert that is answered so, byte for byte.
async fn answered(answer: &'static str) -> Problem {
    let (listener, destination) = listening(ConnectionOptions::default()).await;
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    let (inserted, ()) = tokio::join!(insert(&destination, 10), server);
    let problem = classify(&inserted.unwrap_err());
    assert!(!format!("{problem:?}").contains("hunter2"));
    problem
}

fn outcome(problem: &Problem) -> (&str, Recovery) {
    (&problem.code, problem.recovery)
}

#[tokio::test]
async fn an_insert_is_one_request_with_everything_that_makes_it_safe() {
    let (listener, destination) = listening(ConnectionOptions::default()).await;
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        request
    };
    let table = TableRef::new("shop", "or?ders");
    let block = block(10);
    let sent = destination.insert(&table, &block, "tok en");
    let (inserted, request) = tokio::join!(sent, server);
    inserted.unwrap();
    let (line, _) = request.split_once(" HTTP/1.1\r\n").unwrap();
    let mut parameters = line.split_once('?').unwrap().1.split('&').collect::<Vec<_>>();
    parameters.sort_unstable();
    let id = parameters.iter().position(|parameter| parameter.starts_with("query_id=")).unwrap();
    let id = parameters.remove(id);
    // Its end is another for each attempt.
    assert!(id.starts_with("query_id=millrace-insert-%2560shop%2560.%2560or%253Fders%2560-"), "{id}");
    insta::assert_snapshot!(parameters.join("\n"), @r"
    async_insert=0
    input_format_native_allow_types_conversion=0
    input_format_null_as_default=0
    input_format_skip_unknown_fields=0
    insert_deduplicate=1
    insert_deduplication_token=tok+en
    max_query_size=16777216
    query=INSERT+INTO+%60shop%60.%60or%3Fders%60+FORMAT+Native
    wait_end_of_query=1
    ");
}

#[tokio::test]
async fn nobody_listening_passes_by_itself() {
    let (listener, destination) = listening(ConnectionOptions::default()).await;
    drop(listener);
    let problem = classify(&insert(&destination, 10).await.unwrap_err());
    assert_eq!(outcome(&problem), ("DESTINATION_UNREACHABLE", Recovery::Retry));
    assert!(problem.message.contains("refused"), "{problem}");
    let problems = destination.inspect(&[], None).await;
    assert_eq!(
        problems.iter().map(outcome).collect::<Vec<_>>(),
        [("DESTINATION_UNREACHABLE", Recovery::Retry)]
    );
}

#[tokio::test]
async fn a_host_without_address_passes_by_itself() {
    let destination =
        destination("http://no-such-host.invalid:8123".to_owned(), ConnectionOptions::default());
    let problem = classify(&insert(&destination, 10).await.unwrap_err());
    assert_eq!(outcome(&problem), ("DESTINATION_UNREACHABLE", Recovery::Retry), "{problem}");
}

#[tokio::test]
async fn a_connection_that_breaks_during_the_insert_passes_by_itself() {
    let (listener, destination) = listening(ConnectionOptions::default()).await;
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut some = vec![0; 1 << 20];
        stream.read_exact(&mut some).await.unwrap();
    };
    let (inserted, ()) = tokio::join!(insert(&destination, 64 << 20), server);
    assert_eq!(outcome(&classify(&inserted.unwrap_err())), ("DESTINATION_UNREACHABLE", Recovery::Retry));
}

#[tokio::test]
async fn a_lost_answer_passes_by_itself() {
    assert_eq!(outcome(&answered("").await), ("DESTINATION_UNREACHABLE", Recovery::Retry));
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab";
    assert_eq!(outcome(&answered(cut).await), ("DESTINATION_UNREACHABLE", Recovery::Retry));
}

#[tokio::test]
async fn silence_ends_at_the_timeout() {
    let short = Duration::from_millis(50);
    let options =
        ConnectionOptions { insert_timeout: short, statement_timeout: short, ..ConnectionOptions::default() };
    let (listener, destination) = listening(options).await;
    // The backlog takes the connections, nobody serves them.
    let problem = classify(&insert(&destination, 10).await.unwrap_err());
    assert_eq!(outcome(&problem), ("DESTINATION_TIMEOUT", Recovery::Retry));
    let problem = classify(&insert(&destination, 64 << 20).await.unwrap_err());
    assert_eq!(outcome(&problem), ("DESTINATION_TIMEOUT", Recovery::Retry));
    let problem = classify(&destination.server().await.unwrap_err());
    assert_eq!(outcome(&problem), ("DESTINATION_TIMEOUT", Recovery::Retry));
    drop(listener);
}

#[tokio::test]
async fn what_answers_but_is_not_clickhouse_is_named() {
    let cases = [
        ("SSH-2.0-OpenSSH_9.6\r\n", ("DESTINATION_NOT_CLICKHOUSE", Recovery::Operator)),
        (
            "HTTP/1.0 400 Bad Request\r\n\r\nPort 9000 is for clickhouse-client program",
            ("DESTINATION_NOT_CLICKHOUSE", Recovery::Operator),
        ),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            ("DESTINATION_NOT_CLICKHOUSE", Recovery::Operator),
        ),
        (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
            ("DESTINATION_UNAVAILABLE", Recovery::Retry),
        ),
        (
            "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 45\r\n\r\n<html><title>502 Bad Gateway</title></html>  ",
            ("DESTINATION_UNAVAILABLE", Recovery::Retry),
        ),
    ];
    for (answer, expected) in cases {
        let problem = answered(answer).await;
        assert_eq!(outcome(&problem), expected, "{answer}: {problem}");
    }
}

#[tokio::test]
async fn an_exception_in_a_good_answer_is_noticed() {
    let problem = answered(
        "HTTP/1.1 200 OK\r\nX-ClickHouse-Exception-Code: 241\r\nContent-Length: 66\r\n\r\n\
         Code: 241. DB::Exception: Memory limit (total) exceeded. (version)",
    )
    .await;
    assert_eq!(outcome(&problem), ("DESTINATION_BUSY", Recovery::Retry));
}

#[tokio::test]
async fn a_tls_port_that_is_none_is_the_operators() {
    let (listener, _) = listening(ConnectionOptions::default()).await;
    let url = format!("https://{}", listener.local_addr().unwrap());
    let destination = destination(url, ConnectionOptions::default());
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    };
    let (facts, ()) = tokio::join!(destination.server(), server);
    let problem = classify(&facts.unwrap_err());
    assert_eq!(outcome(&problem), ("DESTINATION_TLS_FAILED", Recovery::Operator), "{problem}");
}

#[tokio::test]
async fn an_insert_that_is_dropped_half_way_never_looks_whole() {
    let (listener, destination) = listening(ConnectionOptions::default()).await;
    let (begun, has_begun) = oneshot::channel();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 1 << 20];
        stream.read_exact(&mut request).await.unwrap();
        begun.send(()).unwrap();
        let _ = stream.read_to_end(&mut request).await;
        request
    });
    let blocks =
        EncodedBlock { rows: 1, pieces: vec![Bytes::from(vec![b'x'; 32 << 20]); 4], altered: vec![] };
    let table = TableRef::new("shop", "orders");
    tokio::select! {
        result = destination.insert(&table, &blocks, "token") => panic!("{result:?}"),
        result = has_begun => result.unwrap(),
    }
    let request = server.await.unwrap();
    assert!(request.len() < 128 << 20);
    assert!(!request.ends_with(b"0\r\n\r\n"));
}
