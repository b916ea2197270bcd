//! The catalog in one SQLite file.
//!
//! One connection, held exclusively for as long as the catalog is open: a second coordinator on the file is refused rather than waited for. Calls run one
//! after the other on the runtime's blocking threads; the lock is never held over an await.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_lifecycle::{EventRecord, PipeAggregate, PipeChanges};
use millrace_model::{Epoch, PipeId, Term};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::{Candidate, Catalog, CatalogError, Leader, Standing, Stored};

mod read;
mod schema;
mod write;

/// How long an opening coordinator waits for the one before it to let go of the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// More than there are different statements.
const CACHED_STATEMENTS: usize = 32;

/// A catalog in an SQLite file, for one coordinator.
#[derive(Debug, Clone)]
pub struct SqliteCatalog {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    /// Who leads, and until when. In memory: no other process has the file, so that a lease of one before is over; and no clock that is set moves its end.
    lease: Option<(Leader, Instant)>,
}

impl SqliteCatalog {
    /// Opens the catalog in a file, which is made where there is none, with the folders above it. File and new folders are its owner's alone; a
    /// file that others may read is closed to them. Blocks: for up to two seconds where another process has the file.
    ///
    /// # Errors
    /// The file cannot be made or opened, another process has it, it belongs to another program or to a newer release, or a migration fails.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        make_private(path).map_err(|source| CatalogError::Prepare { path: path.to_owned(), source })?;
        // The file is there already, so that SQLite need not make it with other permissions; its companions inherit them.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(opening(path))?;
        Self::set_up(connection, path)
    }

    /// An empty catalog that is gone when it is dropped, for tests.
    ///
    /// # Errors
    /// SQLite cannot be set up.
    pub fn open_in_memory() -> Result<Self, CatalogError> {
        let path = Path::new(":memory:");
        Self::set_up(Connection::open_in_memory().map_err(opening(path))?, path)
    }

    fn set_up(mut connection: Connection, path: &Path) -> Result<Self, CatalogError> {
        let configure = |connection: &Connection| {
            connection.busy_timeout(BUSY_TIMEOUT)?;
            // Before the first access, or other processes could share the log's index.
            connection.pragma_update(None, "locking_mode", "exclusive")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            // Every commit reaches the disk before it is answered.
            connection.pragma_update(None, "synchronous", "full")?;
            connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
            Ok(())
        };
        configure(&connection).map_err(opening(path))?;
        schema::check(&connection, path)?;
        connection.pragma_update(None, "journal_mode", "wal").map_err(opening(path))?;
        schema::migrate(&mut connection, path)?;
        Ok(Self { open: Arc::new(Mutex::new(Open { connection, lease: None })) })
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Open) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let open = self.open.clone();
        let run = move || {
            // A panic in another call has rolled its transaction back; the connection is as good as before.
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut open)
        };
        match tokio::task::spawn_blocking(run).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(CatalogError::Closing),
            },
        }
    }
}

impl Open {
    fn campaign(&mut self, candidate: Candidate, lease: Duration) -> Result<Standing, CatalogError> {
        let now = Instant::now();
        if let Some((leader, until)) = &mut self.lease {
            if leader.candidate.id == candidate.id {
                leader.candidate = candidate;
                *until = now + lease;
                return Ok(Standing::Leads(leader.term));
            }
            if *until > now {
                return Ok(Standing::Follows(leader.clone()));
            }
        }
        let term = write::next_term(&self.connection)?;
        self.lease = Some((Leader { term, candidate }, now + lease));
        Ok(Standing::Leads(term))
    }

    fn resign(&mut self, term: Term) {
        self.lease.take_if(|(leader, _)| leader.term == term);
    }
}

impl Catalog for SqliteCatalog {
    async fn campaign(&self, candidate: &Candidate, lease: Duration) -> Result<Standing, CatalogError> {
        let candidate = candidate.clone();
        self.call(move |open| open.campaign(candidate, lease)).await
    }

    async fn resign(&self, term: Term) -> Result<(), CatalogError> {
        self.call(move |open| {
            open.resign(term);
            Ok(())
        })
        .await
    }

    async fn outdo(&self, term: Term) -> Result<(), CatalogError> {
        self.call(move |open| write::outdo(&open.connection, term)).await
    }

    async fn load(&self) -> Result<Stored, CatalogError> {
        self.call(|open| read::everything(&mut open.connection)).await
    }

    async fn load_pipe(&self, id: &PipeId) -> Result<Option<PipeAggregate>, CatalogError> {
        let id = id.clone();
        self.call(move |open| read::one_pipe(&mut open.connection, &id)).await
    }

    async fn commit(
        &self,
        term: Term,
        batch: Vec<(PipeId, PipeChanges)>,
        last_epoch: Epoch,
    ) -> Result<(), CatalogError> {
        self.call(move |open| write::commit(&mut open.connection, term, batch, last_epoch)).await
    }

    async fn events(
        &self,
        pipe: &PipeId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<EventRecord>, CatalogError> {
        let pipe = pipe.clone();
        self.call(move |open| read::events(&mut open.connection, &pipe, after, limit)).await
    }
}

/// Makes the file where there is none, and sees to it that only its owner can read it.
///
/// It never opens a file that exists: closing it again would take away the locks that an open catalog of this process holds on it (POSIX locks belong to
/// process and file, not to the handle).
fn make_private(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    for path in [path.to_owned(), write_ahead_log(path)] {
        match path.metadata() {
            Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 => {
                std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Where SQLite keeps what is committed and not yet in the file itself.
fn write_ahead_log(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

/// Tells a file that another process holds from one that cannot be opened.
fn opening(path: &Path) -> impl FnOnce(rusqlite::Error) -> CatalogError {
    let path = path.to_owned();
    move |source| match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => CatalogError::InUse { path },
        _ => CatalogError::Open { place: path.display().to_string(), source: source.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_commit_reaches_the_disk_before_it_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = SqliteCatalog::open(&folder.path().join("catalog.db")).unwrap();
        let open = catalog.open.lock().unwrap();
        let connection = &open.connection;
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
        assert_eq!((mode.as_str(), synchronous), ("wal", 2), "2 is FULL");
    }
}
