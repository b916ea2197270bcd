//! The contract on an SQLite file, and what only a file can show.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use millrace_catalog::{Catalog, CatalogError, SqliteCatalog};
use millrace_model::PipeId;
use millrace_model::spec::ReplicationMode::Cdc;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::story::{Story, assert_same, lead};
use crate::suite::{self, Place, tests};

/// A folder of its own.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("catalog.db")
    }
}

impl Place for Folder {
    type Catalog = SqliteCatalog;

    async fn open(&self) -> SqliteCatalog {
        SqliteCatalog::open(&self.file()).unwrap()
    }
}

suite::names!(tests Folder::new());

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

/// An error with its causes, as a log would show it.
fn chain(error: &CatalogError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        write!(text, ": {cause}").unwrap();
        source = cause.source();
    }
    text
}

#[tokio::test]
async fn file_and_folders_are_their_owners_alone() {
    let folder = Folder::new();
    let path = folder.0.path().join("some/where/catalog.db");
    let catalog = SqliteCatalog::open(&path).unwrap();
    Story::copying(&catalog, 1, Cdc).await;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&path.with_extension("db-wal")), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(path.parent().unwrap().parent().unwrap()), 0o700);
}

#[tokio::test]
async fn files_that_others_may_read_are_closed_to_them() {
    let folder = Folder::new();
    let catalog = folder.open().await;
    Story::copying(&catalog, 1, Cdc).await;
    // What a crash leaves: the file and a log with what is not in the file yet.
    let crashed = Folder::new();
    let log = |folder: &Folder| folder.0.path().join("catalog.db-wal");
    for (from, to) in [(folder.file(), crashed.file()), (log(&folder), log(&crashed))] {
        fs::copy(from, &to).unwrap();
        fs::set_permissions(to, Permissions::from_mode(0o644)).unwrap();
    }
    let catalog = crashed.open().await;
    assert_eq!((mode(&crashed.file()), mode(&log(&crashed))), (0o600, 0o600));
    assert_eq!(catalog.load().await.unwrap().pipes.len(), 1);
}

#[tokio::test]
async fn a_catalog_in_memory_is_a_catalog() {
    let catalog = SqliteCatalog::open_in_memory().unwrap();
    Story::copying(&catalog, 1, Cdc).await;
    assert!(SqliteCatalog::open_in_memory().unwrap().load().await.unwrap().pipes.is_empty());
}

#[tokio::test]
async fn a_second_coordinator_is_refused_while_the_first_goes_on() {
    let folder = Folder::new();
    let catalog = folder.open().await;
    let second = SqliteCatalog::open(&folder.file()).unwrap_err();
    assert!(matches!(second, CatalogError::InUse { .. }), "{}", chain(&second));
    assert!(second.to_string().contains("in use by another process"), "{second}");
    let story = Story::copying(&catalog, 1, Cdc).await;
    drop(catalog);
    let loaded = folder.open().await.load_pipe(&story.id()).await.unwrap().unwrap();
    assert_same(&loaded, &story.pipe);
}

#[test]
fn a_catalog_of_a_newer_release_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    drop(SqliteCatalog::open(&folder.file()).unwrap());
    let newer = Connection::open(folder.file()).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    newer.close().unwrap();
    let before = fs::read(folder.file()).unwrap();
    let refused = SqliteCatalog::open(&folder.file()).unwrap_err();
    assert!(matches!(refused, CatalogError::NewerSchema { found: 99, known: 2, .. }), "{}", chain(&refused));
    assert_eq!(fs::read(folder.file()).unwrap(), before);
}

/// What the first release wrote: the tables as its migration made them, and records as they are today, for their form is that of `millrace-lifecycle`, which tests what it reads.
#[tokio::test]
async fn a_catalog_of_the_first_release_is_brought_up_to_date() {
    let today = Folder::new();
    let catalog = today.open().await;
    let story = Story::copying(&catalog, 1, Cdc).await;
    let last_epoch = catalog.load().await.unwrap().last_epoch;
    drop(catalog);
    let first = Folder::new();
    let old = Connection::open(first.file()).unwrap();
    old.execute_batch(include_str!("../../migrations/sqlite/0001_pipes.sql")).unwrap();
    old.pragma_update(None, "application_id", 0x4d4c_5243).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    old.execute("ATTACH ?1 AS today", [today.file().to_str().unwrap()]).unwrap();
    for table in ["pipes", "tables", "partitions", "assignments", "events"] {
        old.execute_batch(&format!("INSERT INTO main.{table} SELECT * FROM today.{table}")).unwrap();
    }
    old.execute_batch("UPDATE main.meta SET last_epoch = (SELECT last_epoch FROM today.meta)").unwrap();
    old.close().unwrap();
    let catalog = first.open().await;
    let stored = catalog.load().await.unwrap();
    assert_eq!((stored.last_epoch, stored.last_term.0), (last_epoch, 0));
    assert_same(&stored.pipes[0], &story.pipe);
    lead(&catalog).await;
}

#[test]
fn another_programs_database_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    let other = Connection::open(folder.file()).unwrap();
    other.execute_batch("CREATE TABLE bookmarks (url TEXT)").unwrap();
    other.close().unwrap();
    let before = fs::read(folder.file()).unwrap();
    let refused = SqliteCatalog::open(&folder.file()).unwrap_err();
    assert!(matches!(refused, CatalogError::Foreign { .. }), "{}", chain(&refused));
    assert_eq!(fs::read(folder.file()).unwrap(), before);
}

#[test]
fn what_is_no_database_is_refused() {
    let folder = Folder::new();
    fs::write(folder.file(), "shopping list\n".repeat(1000)).unwrap();
    let refused = SqliteCatalog::open(&folder.file()).unwrap_err();
    assert!(matches!(refused, CatalogError::Open { .. }), "{}", chain(&refused));
    let refused = SqliteCatalog::open(folder.0.path()).unwrap_err();
    assert!(matches!(refused, CatalogError::Open { .. }), "{}", chain(&refused));
    let below_a_file = folder.file().join("catalog.db");
    let refused = SqliteCatalog::open(&below_a_file).unwrap_err();
    assert!(matches!(refused, CatalogError::Prepare { .. }), "{}", chain(&refused));
}

#[tokio::test]
async fn a_record_that_cannot_be_understood_is_named() {
    let cases = [
        ("UPDATE pipes SET record = '{}'", "the stored record of the pipe cannot be understood"),
        (
            "UPDATE tables SET record = replace(record, '\"since\"', '\"sins\"') WHERE position = 1",
            "the stored table 1 cannot be understood",
        ),
        (
            "DELETE FROM partitions WHERE table_position = 1 AND number = 1",
            "the stored partition 1 of table 1 is missing",
        ),
        (
            "UPDATE assignments SET record = substr(record, 1, 20) WHERE epoch = 4",
            "the stored assignment 4 cannot be understood",
        ),
    ];
    for (damage, expected) in cases {
        let folder = Folder::new();
        let id = Story::copying(&folder.open().await, 1, Cdc).await.id();
        Connection::open(folder.file()).unwrap().execute_batch(damage).unwrap();
        let catalog = folder.open().await;
        for error in [catalog.load().await.unwrap_err(), catalog.load_pipe(&id).await.unwrap_err()] {
            assert_eq!(error.to_string(), format!("pipe {id}: {expected}"), "{}", chain(&error));
        }
    }
}

#[tokio::test]
async fn an_event_that_cannot_be_understood_is_named() {
    let folder = Folder::new();
    let id = Story::copying(&folder.open().await, 1, Cdc).await.id();
    let damage = "UPDATE events SET record = '[]' WHERE id = 2";
    Connection::open(folder.file()).unwrap().execute_batch(damage).unwrap();
    let catalog = folder.open().await;
    let error = catalog.events(&id, 0, 10).await.unwrap_err();
    assert_eq!(error.to_string(), format!("pipe {id}: the stored event 2 cannot be understood"));
    assert_eq!(catalog.events(&id, 0, 1).await.unwrap().len(), 1, "those before it can be read");
    assert!(catalog.load_pipe(&id).await.is_ok(), "the pipe can go on");
}

/// Set in the child that is to be killed: where its catalog is.
const DOOMED: &str = "MILLRACE_TEST_DOOMED_CATALOG";
const STORED: &str = "stored event ";

/// The parent starts this very test once more as a child, which commits for as long as it lives.
#[tokio::test]
async fn what_was_answered_survives_kill_9() {
    if let Some(path) = std::env::var_os(DOOMED) {
        commit_for_ever(Path::new(&path)).await;
    }
    let folder = Folder::new();
    let id = PipeId::from_random(1);
    let mut last = 0;
    for round in 1..=5u64 {
        let name = "sqlite::what_was_answered_survives_kill_9";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(DOOMED, folder.file())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut answered = last;
        let output = BufReader::new(child.stdout.take().unwrap());
        for line in output.lines() {
            let line = line.unwrap();
            let Some(event) = line.strip_prefix(STORED) else { continue };
            answered = event.parse().unwrap();
            if answered == last + 20 * round {
                if round == 1 {
                    let meanwhile = SqliteCatalog::open(&folder.file()).unwrap_err();
                    assert!(matches!(meanwhile, CatalogError::InUse { .. }), "{}", chain(&meanwhile));
                }
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(answered >= last + 20 * round, "the child ended by itself after event {answered}");
        let catalog = folder.open().await;
        let pipe = catalog.load_pipe(&id).await.unwrap().unwrap();
        let events = catalog.events(&id, 0, usize::MAX).await.unwrap();
        last = pipe.pipe().last_event;
        assert!((answered..=answered + 1).contains(&last), "answered {answered}, stored {last}");
        let ids: Vec<u64> = events.iter().map(|event| event.id).collect();
        assert_eq!(ids, (1..=last).collect::<Vec<_>>(), "a commit was stored in part");
        assert_eq!(pipe.version(), last);
    }
}

async fn commit_for_ever(path: &Path) -> ! {
    let catalog = SqliteCatalog::open(path).unwrap();
    let mut story = Story::new(1, Cdc, &["orders"]);
    match catalog.load_pipe(&story.id()).await.unwrap() {
        Some(pipe) => story = Story::of(pipe),
        None => story.try_save(&catalog).await.unwrap(),
    }
    loop {
        story.note("still alive");
        story.try_save(&catalog).await.unwrap();
        let event = story.pipe.pipe().last_event;
        // Not println: the test harness may hold that back.
        writeln!(std::io::stdout().lock(), "{STORED}{event}").unwrap();
    }
}
