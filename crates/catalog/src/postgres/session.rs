//! One session: statements are prepared once, and rows come with errors that name what was read.

use std::collections::HashMap;

use tokio::task::JoinHandle;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Connection, Row, Socket, Statement};

use crate::{CatalogError, Cause};

pub(super) struct Session {
    client: Client,
    prepared: HashMap<String, Statement>,
    connection: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    pub(super) fn new(client: Client, connection: Connection<Socket, NoTlsStream>) -> Self {
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a session at the catalog ended");
            }
        });
        Self { client, prepared: HashMap::new(), connection }
    }

    pub(super) fn is_open(&self) -> bool {
        !self.client.is_closed()
    }

    /// Runs a statement, which is prepared at its first use.
    pub(super) async fn rows(
        &mut self,
        what: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, CatalogError> {
        let failed = |error| CatalogError::Read { what, source: cause(error) };
        let statement = match self.prepared.get(sql) {
            Some(statement) => statement.clone(),
            None => {
                let statement = self.client.prepare(sql).await.map_err(failed)?;
                self.prepared.insert(sql.to_owned(), statement.clone());
                statement
            }
        };
        self.client.query(&statement, parameters).await.map_err(failed)
    }

    /// Runs statements without parameters.
    pub(super) async fn run(&self, what: &'static str, sql: &str) -> Result<(), CatalogError> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|error| CatalogError::Write { what, source: cause(error) })
    }
}

/// The same failure, of a statement that writes.
pub(super) fn writing(error: CatalogError) -> CatalogError {
    match error {
        CatalogError::Read { what, source } => CatalogError::Write { what, source },
        other => other,
    }
}

/// What the server said, in one line. tokio-postgres' own text is only "db error".
pub(super) fn cause(error: tokio_postgres::Error) -> Cause {
    match error.as_db_error() {
        Some(said) => format!("{} (SQLSTATE {})", said.message(), said.code().code()).into(),
        None => Box::new(error),
    }
}
