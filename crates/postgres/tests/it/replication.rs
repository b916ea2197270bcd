//! The stream of changes, and the slot behind it.

use std::time::{Duration, Instant};

use millrace_model::{Lsn, Recovery};
use millrace_postgres::{
    BacklogEvent, BacklogReader, Error, ReplicationEvent, ReplicationStream, Session, SnapshotSession,
    classify, identify_system,
};

use crate::support::{APPLICATION, Server, name};

/// A table, a publication `p` and a slot `s` with nothing to tell yet; gives where the slot begins.
async fn prepare(server: &Server) -> Lsn {
    server.run("CREATE TABLE items (id int PRIMARY KEY, v text)").await;
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    session.publish("p", &[name("public.items")]).await.unwrap();
    SnapshotSession::with_slot(&server.source(), APPLICATION, "s", millrace_postgres::SlotKind::Lasting)
        .await
        .unwrap()
        .1
}

async fn open(server: &Server) -> Result<ReplicationStream, Error> {
    let source = server.source();
    ReplicationStream::start(
        &source,
        APPLICATION,
        "s",
        Lsn::ZERO,
        &["p".to_owned()],
        millrace_postgres::StreamForm::whole(true),
    )
    .await
}

/// Reads until so many commits have come; gives the kinds of messages and the position of the last one.
async fn commits(stream: &mut ReplicationStream, count: usize) -> Result<(String, Lsn), Error> {
    let (mut kinds, mut last) = (String::new(), Lsn::ZERO);
    loop {
        while let Some(event) = stream.next_event()? {
            match event {
                ReplicationEvent::XLogData { start, payload, .. } => {
                    kinds.push(char::from(payload[0]));
                    assert!(payload[0] == b'R' || start >= last, "{start} after {last}");
                    last = last.max(start);
                    if payload[0] == b'C' {
                        // flags, position of the commit, end of the transaction
                        last = Lsn(u64::from_be_bytes(payload[10..18].try_into().unwrap()));
                    }
                }
                // Received, not durable: a server that shuts down waits for the former.
                ReplicationEvent::Keepalive { end, reply_requested: true } => {
                    stream.send_status(end, Lsn::ZERO, Lsn::ZERO, false).await?;
                }
                ReplicationEvent::Keepalive { .. } => {}
            }
        }
        if kinds.matches('C').count() >= count {
            return Ok((kinds, last));
        }
        stream.fill().await?;
    }
}

const ACTIVE: &str = "SELECT active FROM pg_replication_slots WHERE slot_name = 's'";

#[tokio::test]
async fn changes_arrive_and_what_is_acknowledged_is_forgotten() {
    let server = Server::start().await;
    let point = prepare(&server).await;
    let mut stream = open(&server).await.unwrap();
    server.run("INSERT INTO items VALUES (1, 'a'), (2, 'b')").await;
    server.run("UPDATE items SET v = 'c' WHERE id = 1; DELETE FROM items WHERE id = 2").await;
    server.run("TRUNCATE items").await;
    let (kinds, end) = commits(&mut stream, 3).await.unwrap();
    assert_eq!(kinds, "BRIICBUDCBRTC");
    assert!(end > point);

    // Told only that it arrived, the slot forgets nothing.
    stream.send_status(end, point, end, true).await.unwrap();
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    loop {
        match stream.next_event().unwrap() {
            Some(ReplicationEvent::Keepalive { end: log_end, .. }) => {
                assert!(log_end >= end);
                break;
            }
            Some(_) => {}
            None => stream.fill().await.unwrap(),
        }
    }
    let slot = session.slot_state("s").await.unwrap().unwrap();
    assert!(slot.active && slot.confirmed_flush < end, "{slot:?}");
    assert_eq!((slot.plugin.as_str(), slot.of_this_database), ("pgoutput", true));

    stream.send_status(end, end, end, false).await.unwrap();
    server.until(&format!("SELECT confirmed_flush_lsn = '{end}' FROM pg_replication_slots")).await;

    // Told goodbye, it is free at once.
    stream.finish().await.unwrap();
    assert_eq!(server.value(ACTIVE).await, "false");
    server.run("INSERT INTO items VALUES (3, 'd')").await;
    let mut stream = open(&server).await.unwrap();
    assert_eq!(commits(&mut stream, 1).await.unwrap().0, "BRIC");
    assert!(session.current_lsn().await.unwrap() > end);
}

#[tokio::test]
async fn names_that_need_quotes_and_several_publications_work() {
    let server = Server::start().await;
    server.run("CREATE SCHEMA \"S 1\"; CREATE TABLE \"S 1\".\"it's, \"\"odd\"\"\" (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)").await;
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    let odd = "it's, \"odd\" \\ one";
    session.publish(odd, &[name("\"S 1\".\"it's, \"\"odd\"\"\"")]).await.unwrap();
    // A second try replaces what the first left.
    session.publish(odd, &[name("\"S 1\".\"it's, \"\"odd\"\"\"")]).await.unwrap();
    session.publish("p", &[name("public.other")]).await.unwrap();
    drop(
        SnapshotSession::with_slot(&server.source(), APPLICATION, "s", millrace_postgres::SlotKind::Lasting)
            .await
            .unwrap(),
    );
    let publications = [odd.to_owned(), "p".to_owned()];
    let source = server.source();
    let started = ReplicationStream::start(
        &source,
        APPLICATION,
        "s",
        Lsn::ZERO,
        &publications,
        millrace_postgres::StreamForm::whole(false),
    );
    let mut stream = started.await.unwrap();
    server.run("INSERT INTO \"S 1\".\"it's, \"\"odd\"\"\" VALUES (1)").await;
    server.run("INSERT INTO other VALUES (1)").await;
    assert_eq!(commits(&mut stream, 2).await.unwrap().0, "BRICBRIC");
    session.drop_publication(odd).await.unwrap();
    session.drop_publication(odd).await.unwrap();
    assert_eq!(server.value("SELECT string_agg(pubname, ',') FROM pg_publication").await, "p");
}

#[tokio::test]
async fn a_status_can_be_sent_while_nothing_is_read_and_the_server_waits_to_write() {
    let server = Server::with(&[("wal_sender_timeout", "1s")]).await;
    prepare(&server).await;
    server.run("INSERT INTO items SELECT n, repeat('x', 1000) FROM generate_series(1, 50000) n").await;
    let mut stream = open(&server).await.unwrap();
    let blocked =
        "(SELECT wait_event = 'WalSenderWriteData' FROM pg_stat_activity WHERE backend_type = 'walsender')";
    // Three times as long as the server waits for a word of ours, counted from when it can write no more.
    let (began, mut since) = (Instant::now(), None::<Instant>);
    while since.is_none_or(|since| since.elapsed() < Duration::from_secs(3)) {
        stream.send_status(Lsn::ZERO, Lsn::ZERO, Lsn::ZERO, false).await.unwrap();
        if since.is_none() && server.value(blocked).await == "true" {
            since = Some(Instant::now());
        }
        assert!(began.elapsed() < Duration::from_secs(30), "the server never waited");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(server.value(ACTIVE).await, "true");
    let (kinds, _) = commits(&mut stream, 1).await.unwrap();
    assert_eq!(kinds.matches('I').count(), 50_000);
}

#[tokio::test]
async fn a_stream_is_ended_also_in_the_middle_of_a_large_transaction() {
    let server = Server::start().await;
    prepare(&server).await;
    server.run("INSERT INTO items SELECT n, repeat('x', 400) FROM generate_series(1, 600000) n").await;
    // With patience the server is heard to the end; without, its process is ended.
    for patience in [Duration::from_secs(60), Duration::from_millis(1)] {
        let mut stream = open(&server).await.unwrap();
        while stream.next_event().unwrap().is_none() {
            stream.fill().await.unwrap();
        }
        stream.finish_within(patience).await.unwrap();
        assert_eq!(server.value(ACTIVE).await, "false", "{patience:?}");
    }
}

#[tokio::test]
async fn a_reader_of_ours_that_was_forgotten_is_ended_and_nobody_elses() {
    let server = Server::start().await;
    prepare(&server).await;
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    let mut forgotten = open(&server).await.unwrap();
    let second = open(&server).await.unwrap_err();
    assert_eq!((classify(&second).code.as_str(), classify(&second).recovery), ("SLOT_BUSY", Recovery::Retry));
    session.release_slot("s").await.unwrap();
    assert_eq!(server.value(ACTIVE).await, "false");
    let error = commits(&mut forgotten, 1).await.unwrap_err();
    assert_eq!(classify(&error).recovery, Recovery::Retry, "{error:?}");
    session.release_slot("s").await.unwrap();
    session.release_slot("no_such_slot").await.unwrap();

    let source = server.source();
    let stranger = ReplicationStream::start(
        &source,
        "psql",
        "s",
        Lsn::ZERO,
        &["p".to_owned()],
        millrace_postgres::StreamForm::whole(true),
    )
    .await;
    for refused in [session.release_slot("s").await, session.drop_slot("s").await] {
        let problem = classify(&refused.unwrap_err());
        assert_eq!(problem.code, "SLOT_BUSY");
        assert!(problem.message.contains("psql"), "{problem}");
    }
    assert_eq!(server.value(ACTIVE).await, "true");
    stranger.unwrap().finish().await.unwrap();

    let _forgotten = open(&server).await.unwrap();
    session.drop_slot("s").await.unwrap();
    session.drop_slot("s").await.unwrap();
    assert_eq!(server.value("SELECT count(*) FROM pg_replication_slots").await, "0");
}

#[tokio::test]
async fn a_server_that_goes_is_tried_again_and_the_slot_is_where_it_was() {
    let mut server = Server::start().await;
    prepare(&server).await;
    server.run("INSERT INTO items VALUES (1, 'a')").await;
    for kill in [false, true] {
        let mut stream = open(&server).await.unwrap();
        assert_eq!(commits(&mut stream, 1).await.unwrap().0, "BRIC");
        let ends = async {
            loop {
                if let Err(error) = commits(&mut stream, 1).await {
                    return error;
                }
            }
        };
        let goes = async {
            if kill {
                server.postgres.kill().await.unwrap();
            }
            server.postgres.restart().await.unwrap();
        };
        let (error, ()) = tokio::join!(ends, goes);
        assert_eq!(classify(&error).recovery, Recovery::Retry, "{error:?}");
    }
    let identity = identify_system(&server.source(), APPLICATION).await.unwrap();
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    assert_eq!(session.system_identifier().await.unwrap(), identity.system_identifier);
    assert_eq!(identity.timeline, 1);
}

#[tokio::test]
async fn a_slot_or_publication_that_is_gone_is_told_apart_from_trouble_that_passes() {
    let server = Server::with(&[
        ("max_slot_wal_keep_size", "1MB"),
        ("min_wal_size", "32MB"),
        ("max_wal_size", "32MB"),
    ])
    .await;
    prepare(&server).await;
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    session.require_usable_slot("s").await.unwrap();

    // The publication.
    server.run("INSERT INTO items VALUES (1, 'a')").await;
    session.drop_publication("p").await.unwrap();
    server.run("INSERT INTO items VALUES (2, 'a')").await;
    let mut stream = open(&server).await.unwrap();
    let error = commits(&mut stream, 2).await.unwrap_err();
    let problem = classify(&error);
    assert_eq!(
        (problem.code.as_str(), problem.recovery),
        ("PUBLICATION_MISSING", Recovery::Never),
        "{error:?}"
    );
    drop(stream);
    session.release_slot("s").await.unwrap();

    // The slot's place in the log.
    let write = "SELECT pg_logical_emit_message(false, 'x', repeat('x', 8000000)); SELECT pg_switch_wal(); CHECKPOINT;";
    server.run(&write.repeat(12)).await;
    server.until("SELECT wal_status = 'lost' FROM pg_replication_slots").await;
    let checked = session.require_usable_slot("s").await.unwrap_err();
    let opened = open(&server).await.unwrap_err();
    for error in [checked, opened] {
        let problem = classify(&error);
        assert_eq!((problem.code.as_str(), problem.recovery), ("SLOT_LOST", Recovery::Never), "{error:?}");
    }

    // The slot itself, and slots of others.
    session.drop_slot("s").await.unwrap();
    let checked = session.require_usable_slot("s").await.unwrap_err();
    let opened = open(&server).await.unwrap_err();
    for error in [checked, opened] {
        assert_eq!(classify(&error).code, "SLOT_MISSING", "{error:?}");
    }
    server.run("SELECT pg_create_physical_replication_slot('s')").await;
    let unfit = session.require_usable_slot("s").await.unwrap_err();
    assert_eq!(classify(&unfit).code, "SLOT_UNFIT", "{unfit:?}");
    let taken =
        SnapshotSession::with_slot(&server.source(), APPLICATION, "s", millrace_postgres::SlotKind::Lasting)
            .await
            .unwrap_err();
    assert_eq!(classify(&taken).code, "SLOT_EXISTS", "{taken:?}");
    session.drop_slot("s").await.unwrap();
    server.run("CREATE DATABASE other").await;
    let mut elsewhere = server.source();
    elsewhere.database = "other".to_owned();
    drop(
        SnapshotSession::with_slot(&elsewhere, APPLICATION, "s", millrace_postgres::SlotKind::Lasting)
            .await
            .unwrap(),
    );
    let unfit = session.require_usable_slot("s").await.unwrap_err();
    assert_eq!(classify(&unfit).code, "SLOT_UNFIT", "{unfit:?}");
}

#[tokio::test]
async fn sizes_are_measured_anew() {
    let server = Server::start().await;
    server
        .run(
            "CREATE TABLE items (id int PRIMARY KEY, v text); INSERT INTO items SELECT n, 'v' FROM generate_series(1, 1000) n;
             ANALYZE items; CREATE TABLE empty (id int);
             CREATE TABLE split (id int) PARTITION BY RANGE (id);
             CREATE TABLE split_1 PARTITION OF split DEFAULT; INSERT INTO split SELECT generate_series(1, 500); ANALYZE split_1",
        )
        .await;
    server.run("INSERT INTO items SELECT n, 'v' FROM generate_series(1001, 10000) n").await;
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    let names = ["public.items", "public.empty", "public.split", "public.gone"].map(name);
    let mut sizes = session.table_sizes(&names).await.unwrap();
    sizes.sort_by(|one, other| one.table.cmp(&other.table));
    let [empty, items, split] = &sizes[..] else { panic!("{sizes:?}") };
    assert_eq!((empty.pages, empty.estimated_rows), (0, 0));
    assert_eq!((split.pages, split.estimated_rows), (0, 500));
    let pages = server.value("pg_relation_size('items') / 8192").await;
    assert_eq!(items.pages.to_string(), pages);
    assert!((9_000..=11_500).contains(&items.estimated_rows), "{items:?}");
}

#[tokio::test]
async fn a_backlog_in_bulk_is_what_the_stream_would_bring_and_the_stream_goes_on_behind_it() {
    let server = Server::start().await;
    prepare(&server).await;
    for first in [1, 2001] {
        server
            .run(&format!(
                "INSERT INTO items SELECT n, 'v' || n FROM generate_series({first}, {first} + 1999) n"
            ))
            .await;
    }
    let open_transaction = server.client().await;
    open_transaction.batch_execute("BEGIN; INSERT INTO items VALUES (-1, 'open')").await.unwrap();
    let take = async |most| {
        let names = ["p".to_owned()];
        let mut reader =
            BacklogReader::start(&server.source(), APPLICATION, "s", &names, true, most).await.unwrap();
        let mut messages = Vec::new();
        loop {
            match reader.next_message().unwrap() {
                BacklogEvent::Message { lsn, payload } => messages.push((lsn, payload.to_vec())),
                BacklogEvent::NeedMore => reader.fill().await.unwrap(),
                BacklogEvent::End => return messages,
            }
        }
    };
    // A call ends with the first commit after its limit; nothing of the open transaction comes.
    let (first, both) = (take(1).await, take(1_000_000).await);
    assert_eq!(first.len(), 2003, "begin, relation, inserts, commit");
    assert_eq!(both[..first.len()], first[..]);
    let mut stream = open(&server).await.unwrap();
    let mut streamed = Vec::new();
    while streamed.len() < both.len() {
        match stream.next_event().unwrap() {
            Some(ReplicationEvent::XLogData { start, payload, .. }) => {
                streamed.push((start, payload.to_vec()));
            }
            Some(ReplicationEvent::Keepalive { .. }) => {}
            None => stream.fill().await.unwrap(),
        }
    }
    stream.finish().await.unwrap();
    // A relation has a position of its own in bulk only.
    let differs = streamed.iter().zip(&both).position(|(streamed, bulk)| {
        streamed.1 != bulk.1 || streamed.0 != bulk.0 && bulk.1.first() != Some(&b'R')
    });
    assert_eq!(differs.map(|at| (&streamed[at], &both[at])), None, "the same messages at the same positions");

    // The end of the first transaction, as its commit message says (byte 10 on).
    let (_, commit) = first.last().unwrap();
    let end = Lsn(u64::from_be_bytes(*commit[10..].first_chunk().unwrap()));
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    session.advance_slot("s", end).await.unwrap();
    session.advance_slot("s", Lsn(1)).await.unwrap();
    assert_eq!(session.slot_state("s").await.unwrap().unwrap().confirmed_flush, end);
    assert_eq!(take(1_000_000).await.len(), 2003, "the second transaction, described anew");
}

#[tokio::test]
async fn a_catalog_that_changes_is_noticed() {
    let server = Server::start().await;
    server.run("CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items VALUES (1)").await;
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    let horizon = session.horizon().await.unwrap();
    server.run("INSERT INTO items VALUES (2)").await;
    assert!(!session.catalog_changed_since(&horizon).await.unwrap());
    server.run("TRUNCATE items").await;
    assert!(session.catalog_changed_since(&horizon).await.unwrap());
    assert!(!session.catalog_changed_since(&session.horizon().await.unwrap()).await.unwrap());
}
