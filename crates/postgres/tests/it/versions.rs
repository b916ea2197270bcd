//! The oldest and the newest version that are supported.

use millrace_model::{Lsn, PageRange};
use millrace_postgres::{
    CopyReader, ReplicationEvent, ReplicationStream, Session, SnapshotSession, classify, copy_query, inspect,
};

use crate::support::{APPLICATION, Server, codes, copy, name};

#[tokio::test]
async fn version_14_is_inspected_copied_and_followed() {
    let server = Server::of_version(14, &[]).await;
    server.run("CREATE TABLE items (id int PRIMARY KEY, v text)").await;
    carries(&server).await;
}

#[tokio::test]
async fn version_18_is_inspected_copied_and_followed() {
    let server = Server::of_version(18, &[]).await;
    server
        .run(
            "CREATE TABLE items (id int PRIMARY KEY, v text, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL,
               w int DEFAULT 1, x int NOT NULL DEFAULT 1);
             INSERT INTO items VALUES (0, NULL, DEFAULT, NULL); ALTER TABLE items ADD CONSTRAINT later NOT NULL w NOT VALID",
        )
        .await;
    let found = inspect(&server.spec(&["public.items"]), None).await;
    let columns: Vec<_> =
        found.tables[0].columns.iter().map(|column| (column.nullable, column.generated)).collect();
    assert_eq!(columns, [(false, false), (true, false), (true, true), (true, false), (false, false)]);
    server.run("DELETE FROM items").await;
    carries(&server).await;
}

/// From nothing to a change that arrived, with a publication of our own and one that is named.
async fn carries(server: &Server) {
    let mut spec = server.spec(&["public.items"]);
    let found = inspect(&spec, None).await;
    assert_eq!(codes(&found.problems), []);
    let table = &found.tables[0];
    let session = Session::connect(&spec.source, APPLICATION).await.unwrap();
    session.publish("p", &[name("public.items")]).await.unwrap();
    spec.settings.publication_name = Some("p".to_owned());
    assert_eq!(codes(&inspect(&spec, None).await.problems), []);

    server.run("INSERT INTO items (id, v) SELECT n, 'v' FROM generate_series(1, 1000) n").await;
    let (snapshot, _) =
        SnapshotSession::with_slot(&spec.source, APPLICATION, "s", millrace_postgres::SlotKind::Lasting)
            .await
            .unwrap();
    server.run("INSERT INTO items (id, v) VALUES (1001, 'later')").await;
    let mut reader = CopyReader::connect(&spec.source, APPLICATION).await.unwrap();
    reader.begin_at_snapshot(snapshot.name()).await.unwrap();
    let mut rows = 0;
    for range in [PageRange { first: 0, end: Some(2) }, PageRange { first: 2, end: None }] {
        rows += copy(&mut reader, &copy_query(table, range, &|_| false), |_| {}).await.unwrap();
    }
    assert_eq!(rows, 1000);
    drop((reader, snapshot));

    session.require_usable_slot("s").await.unwrap();
    session.release_slot("s").await.unwrap();
    let started = ReplicationStream::start(
        &spec.source,
        APPLICATION,
        "s",
        Lsn::ZERO,
        &["p".to_owned()],
        millrace_postgres::StreamForm::whole(true),
    )
    .await;
    let mut stream = started.unwrap();
    let mut kinds = String::new();
    while !kinds.ends_with('C') {
        match stream.next_event().unwrap() {
            Some(ReplicationEvent::XLogData { payload, .. }) => kinds.push(char::from(payload[0])),
            Some(ReplicationEvent::Keepalive { .. }) => {}
            None => stream.fill().await.unwrap(),
        }
    }
    assert_eq!(kinds, "BRIC");
    stream.finish().await.unwrap();
    session.drop_slot("s").await.unwrap();
    let missing = session.require_usable_slot("s").await.unwrap_err();
    assert_eq!(classify(&missing).code, "SLOT_MISSING");
}
