//! A PostgreSQL to test against, and specifications that name it.

use std::time::{Duration, Instant};

use millrace_devstack::{Launcher, Postgres, PostgresOptions, temporary_dir};
use millrace_model::spec::{
    ClickHouseDestination, PipeSettings, PostgresSource, ReplicationMode, TableSpec, TlsMode,
};
use millrace_model::{PipeSpec, Problem, Secret, TableName};
use millrace_postgres::{CopyEvent, CopyReader, Error};
use tokio_postgres::{Client, NoTls};

/// How connections of these tests are named; the adapter takes such names for its own.
pub(crate) const APPLICATION: &str = "millrace test 1";

/// A running server with nothing in it, gone when it is dropped.
pub(crate) struct Server {
    pub(crate) postgres: Postgres,
    folder: tempfile::TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    pub(crate) async fn with(settings: &[(&str, &str)]) -> Self {
        Self::of_version(17, settings).await
    }

    pub(crate) async fn of_version(major: u16, settings: &[(&str, &str)]) -> Self {
        let folder = temporary_dir().unwrap();
        let mut options = PostgresOptions::new(major, folder.path().join("pg"));
        options.settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let launcher = Launcher::this_test_binary("devstack_guard").unwrap();
        Self { postgres: Postgres::start(launcher, options).await.unwrap(), folder }
    }

    /// PostgreSQL's own data folder.
    pub(crate) fn cluster(&self) -> std::path::PathBuf {
        self.folder.path().join("pg/cluster")
    }

    /// As the superuser.
    pub(crate) fn source(&self) -> PostgresSource {
        self.source_as(self.postgres.user(), self.postgres.password())
    }

    pub(crate) fn source_as(&self, username: &str, password: &str) -> PostgresSource {
        PostgresSource {
            host: self.postgres.host().to_owned(),
            port: self.postgres.port(),
            database: "postgres".to_owned(),
            username: username.to_owned(),
            password: Secret::new(password),
            tls_mode: TlsMode::Disable,
            tls_ca: None,
        }
    }

    /// Another client than the one that is tested, as the superuser.
    pub(crate) async fn client(&self) -> Client {
        let settings = self.postgres.connection_string("postgres");
        let (client, connection) = tokio_postgres::connect(&settings, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.client().await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// The one value that a query gives, as text.
    pub(crate) async fn value(&self, expression: &str) -> String {
        let sql = format!("SELECT ({expression})::text");
        let row = self.client().await.query_one(&sql, &[]).await;
        row.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get::<_, Option<String>>(0).unwrap_or_default()
    }

    /// Waits until the expression is true.
    pub(crate) async fn until(&self, expression: &str) {
        let (client, began) = (self.client().await, Instant::now());
        let sql = format!("SELECT coalesce(({expression}), false)");
        while !client.query_one(&sql, &[]).await.unwrap().get::<_, bool>(0) {
            assert!(began.elapsed() < Duration::from_secs(30), "it did not become true: {expression}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A pipe of these tables.
    pub(crate) fn spec(&self, tables: &[&str]) -> PipeSpec {
        PipeSpec {
            name: "test".parse().unwrap(),
            mode: ReplicationMode::Cdc,
            source: self.source(),
            destination: ClickHouseDestination {
                url: "http://127.0.0.1:1".to_owned(),
                database: "mirror".to_owned(),
                username: "default".to_owned(),
                password: Secret::default(),
                cluster: None,
            },
            tables: tables.iter().map(|name| table(name)).collect(),
            settings: PipeSettings::default(),
        }
    }
}

pub(crate) fn name(table: &str) -> TableName {
    table.parse().unwrap()
}

pub(crate) fn table(source: &str) -> TableSpec {
    TableSpec::new(name(source), source)
}

/// Code and table of each problem.
pub(crate) fn codes(problems: &[Problem]) -> Vec<(String, String)> {
    let table = |problem: &Problem| problem.table.as_ref().map(ToString::to_string).unwrap_or_default();
    problems.iter().map(|problem| (problem.code.clone(), table(problem))).collect()
}

/// Statements of remedies, as an operator would run them: what follows "run", up to an alternative.
pub(crate) fn statement(problem: &Problem) -> String {
    let after = problem.remedy.split_once("run ").unwrap_or_else(|| panic!("no statement in {problem}")).1;
    let end = after.find(", or ").or_else(|| after.find("; or ")).unwrap_or(after.len());
    after[..end].replace(" and SELECT", "; SELECT").replace(" and restart PostgreSQL", "")
}

/// Fields of a tuple of binary COPY.
pub(crate) fn fields(tuple: &[u8]) -> Vec<Option<&[u8]>> {
    let (count, mut rest) = tuple.split_first_chunk::<2>().unwrap();
    let mut fields = Vec::new();
    for _ in 0..i16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>().unwrap();
        match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                fields.push(Some(&after[..length]));
                rest = &after[length..];
            }
            Err(_) => {
                fields.push(None);
                rest = after;
            }
        }
    }
    assert!(rest.is_empty(), "{} bytes after the last field", rest.len());
    fields
}

/// Copies to the end; `take` sees each tuple where it stands.
pub(crate) async fn copy(
    reader: &mut CopyReader,
    sql: &str,
    mut take: impl FnMut(&[u8]),
) -> Result<usize, Error> {
    reader.start(sql).await?;
    let mut rows = 0;
    loop {
        match reader.next_row()? {
            CopyEvent::Row(tuple) => {
                rows += 1;
                take(tuple);
            }
            CopyEvent::NeedMore => reader.fill().await?,
            CopyEvent::End => return Ok(rows),
        }
    }
}
