//! The contract on a PostgreSQL database, and what only several coordinators on one can show.

use std::time::Duration;

use millrace_catalog::{Catalog, CatalogError, PostgresCatalog, Standing};
use millrace_devstack::{Launcher, Postgres, PostgresOptions, temporary_dir};
use millrace_model::spec::ReplicationMode::Cdc;
use millrace_model::{Epoch, Term};
use tokio_postgres::{Client, NoTls};

use crate::dump;
use crate::sqlite::Folder;
use crate::story::{Story, candidate, lead};
use crate::suite::{self, Place};

/// A server of its own, with a database for each place.
struct Server {
    postgres: Postgres,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let folder = temporary_dir().unwrap();
        let options = PostgresOptions::new(17, folder.path().join("pg"));
        let launcher = Launcher::this_test_binary("devstack_guard").unwrap();
        Self { postgres: Postgres::start(launcher, options).await.unwrap(), _folder: folder }
    }

    async fn client(&self, database: &str) -> Client {
        let (client, connection) =
            tokio_postgres::connect(&self.postgres.connection_string(database), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn place(&self, name: &str) -> Database {
        self.client("postgres").await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let (host, port) = (self.postgres.host(), self.postgres.port());
        let (user, password) = (self.postgres.user(), self.postgres.password());
        Database { url: format!("postgresql://{user}:{password}@{host}:{port}/{name}") }
    }
}

struct Database {
    url: String,
}

impl Place for Database {
    type Catalog = PostgresCatalog;

    async fn open(&self) -> PostgresCatalog {
        PostgresCatalog::open(&self.url).await.unwrap()
    }
}

/// The whole contract on one server: a start of a server for each part would take longer than all of them.
#[tokio::test]
async fn a_postgresql_database_keeps_the_contract() {
    macro_rules! each {
        ($server:expr; $($name:ident,)*) => {
            $(
                println!("{}", stringify!($name));
                suite::$name(&$server.place(stringify!($name)).await).await;
            )*
        };
    }
    let server = Server::start().await;
    suite::names!(each server);
}

async fn waits_for_a_lock(server: &Server, query: &str) {
    let client = server.client("postgres").await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1";
    while client.query_one(sql, &[&format!("%{query}%")]).await.unwrap().get::<_, i64>(0) == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_takes_over_waits_for_a_commit_under_way_and_stops_all_later_ones() {
    let server = Server::start().await;
    let place = server.place("catalog").await;
    let (old, new) = (place.open().await, place.open().await);
    let Standing::Leads(first) = old.campaign(&candidate("old"), Duration::ZERO).await.unwrap() else {
        panic!("nobody leads")
    };
    // Keeps a commit from getting beyond its middle.
    let obstacle = server.client("catalog").await;
    obstacle.batch_execute("BEGIN; SELECT 1 FROM millrace.meta FOR UPDATE").await.unwrap();
    let mut story = Story::new(1, Cdc, &["orders"]);
    let changes = story.changes();
    let slow = old.clone();
    let commit = tokio::spawn(async move { slow.commit(first, vec![changes], Epoch(9)).await });
    waits_for_a_lock(&server, "UPDATE meta").await;
    let taking_over = tokio::spawn(async move {
        let standing = new.campaign(&candidate("new"), Duration::from_secs(3600)).await;
        (standing, new)
    });
    waits_for_a_lock(&server, "UPDATE leadership").await;
    obstacle.batch_execute("COMMIT").await.unwrap();
    commit.await.unwrap().unwrap();
    let (standing, new) = taking_over.await.unwrap();
    assert!(matches!(standing.unwrap(), Standing::Leads(term) if term > first));
    assert_eq!(new.load().await.unwrap().pipes.len(), 1, "what was stored in the term before is seen");
    story.note("too late");
    let late = old.commit(first, vec![story.changes()], Epoch(10)).await.unwrap_err();
    assert!(matches!(late, CatalogError::Deposed { .. }), "{late}");
    assert_eq!(new.load().await.unwrap().last_epoch, Epoch(9));
}

/// A coordinator that is stopped in the middle of a commit keeps its transaction open; PostgreSQL ends that.
#[tokio::test]
async fn a_leader_that_is_stopped_in_a_commit_does_not_hold_up_the_next() {
    let server = Server::start().await;
    let place = server.place("catalog").await;
    let catalog = place.open().await;
    let Standing::Leads(first) = catalog.campaign(&candidate("old"), Duration::ZERO).await.unwrap() else {
        panic!("nobody leads")
    };
    let settings = format!(
        "{} options='-c idle_in_transaction_session_timeout=5s'",
        server.postgres.connection_string("catalog")
    );
    let (stopped, connection) = tokio_postgres::connect(&settings, NoTls).await.unwrap();
    tokio::spawn(connection);
    stopped.batch_execute("BEGIN; SELECT term FROM millrace.leadership FOR SHARE").await.unwrap();
    let standing = catalog.campaign(&candidate("new"), Duration::from_secs(3600)).await.unwrap();
    assert!(matches!(standing, Standing::Leads(term) if term > first));
}

#[tokio::test]
async fn sessions_that_the_server_ended_are_replaced() {
    let server = Server::start().await;
    let place = server.place("catalog").await;
    let catalog = place.open().await;
    let mut story = Story::copying(&catalog, 1, Cdc).await;
    let end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'millrace-coordinator'";
    server.client("postgres").await.query(end_all, &[]).await.unwrap();
    // One call may fail, if it began before the end was known; none after that.
    let term = match lead_again(&catalog).await {
        Ok(term) => term,
        Err(_) => lead_again(&catalog).await.unwrap(),
    };
    story.note("here still");
    let changes = story.changes();
    catalog.commit(term, vec![changes], Epoch(100)).await.unwrap();
    assert_eq!(catalog.load().await.unwrap().last_epoch, Epoch(100));
}

async fn lead_again(catalog: &PostgresCatalog) -> Result<Term, CatalogError> {
    match catalog.campaign(&candidate("coordinator"), Duration::from_secs(3600)).await? {
        Standing::Leads(term) => Ok(term),
        Standing::Follows(leader) => panic!("{leader:?} leads"),
    }
}

#[tokio::test]
async fn urls_and_databases_that_cannot_be_used_are_refused_with_the_reason() {
    let refusal = async |url: &str| PostgresCatalog::open(url).await.unwrap_err().to_string();
    assert!(refusal("postgresql://me:hunter2@h/db?sslmode=require").await.contains("sslmode=disable"));
    for url in ["mysql://me:hunter2@h/db", "postgresql://me:hunter2@h/db?sslmode=odd", "postgresql://"] {
        let refused = refusal(url).await;
        assert!(refused.contains("URL") && !refused.contains("hunter2"), "{refused}");
    }
    let server = Server::start().await;
    let place = server.place("other").await;
    let client = server.client("other").await;
    client.batch_execute("CREATE SCHEMA millrace; CREATE TABLE millrace.notes (x int)").await.unwrap();
    let refused = PostgresCatalog::open(&place.url).await.unwrap_err();
    assert!(matches!(refused, CatalogError::Foreign { .. }), "{refused}");
    let place = server.place("newer").await;
    drop(place.open().await);
    let client = server.client("newer").await;
    client.batch_execute("UPDATE millrace.schema_version SET version = 99").await.unwrap();
    let refused = PostgresCatalog::open(&place.url).await.unwrap_err();
    assert!(matches!(refused, CatalogError::NewerSchema { found: 99, .. }), "{refused}");
    let (user, password) = (server.postgres.user(), server.postgres.password());
    let wrong = place.url.replacen(&format!("{user}:{password}@"), &format!("{user}:hunter2@"), 1);
    let refused = format!("{:?}", PostgresCatalog::open(&wrong).await.unwrap_err());
    assert!(refused.contains("28P01") && !refused.contains("hunter2"), "{refused}");
}

#[tokio::test]
async fn coordinators_that_start_together_make_the_schema_once() {
    let server = Server::start().await;
    let place = server.place("catalog").await;
    let opening = (0..8).map(|_| {
        let url = place.url.clone();
        tokio::spawn(async move { PostgresCatalog::open(&url).await })
    });
    for opened in opening.collect::<Vec<_>>() {
        opened.await.unwrap().unwrap();
    }
    let catalog = place.open().await;
    lead(&catalog).await;
}

#[tokio::test]
async fn a_catalog_moves_from_a_file_to_a_database_and_back() {
    let server = Server::start().await;
    let (file, other) = (Folder::new(), Folder::new());
    dump::there_and_back(&file, &server.place("there").await, &other).await;
    dump::there_and_back(&server.place("here").await, &Folder::new(), &server.place("back").await).await;
}
