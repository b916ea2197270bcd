//! Where a catalog is, as a configuration says it, and the one that is found there.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use millrace_lifecycle::{EventRecord, PipeAggregate, PipeChanges};
use millrace_model::{Epoch, PipeId, Secret, Term};

use crate::{Candidate, Catalog, CatalogError, PostgresCatalog, SqliteCatalog, Standing, Stored};

/// Where a catalog is.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A file, for one coordinator.
    File(PathBuf),
    /// A PostgreSQL database, for several: `postgresql://user:password@host:port/database`.
    Database(Secret),
}

impl Location {
    /// A URL, or the path of a file.
    pub fn new(text: &str) -> Self {
        let url = ["postgresql://", "postgres://"].iter().any(|scheme| text.starts_with(scheme));
        if url { Self::Database(Secret::new(text)) } else { Self::File(text.into()) }
    }

    /// Whether several coordinators can have it at once.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Database(_))
    }

    /// Opens what is there, brought to the present schema; made where there is nothing.
    ///
    /// # Errors
    /// As [`SqliteCatalog::open`] and [`PostgresCatalog::open`].
    pub async fn open(&self) -> Result<AnyCatalog, CatalogError> {
        match self {
            Self::File(path) => SqliteCatalog::open(path).map(AnyCatalog::File),
            Self::Database(url) => PostgresCatalog::open(url.expose()).await.map(AnyCatalog::Database),
        }
    }
}

/// For people: without credentials.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Database(url) => match PostgresCatalog::place_of(url.expose()) {
                Some(place) => f.write_str(&place),
                None => f.write_str("postgresql://(not a URL)"),
            },
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A catalog of either kind.
#[derive(Debug, Clone)]
pub enum AnyCatalog {
    /// In a file.
    File(SqliteCatalog),
    /// In PostgreSQL.
    Database(PostgresCatalog),
}

macro_rules! either {
    ($catalog:expr, $name:ident($($argument:expr),*)) => {
        match $catalog {
            AnyCatalog::File(catalog) => catalog.$name($($argument),*).await,
            AnyCatalog::Database(catalog) => catalog.$name($($argument),*).await,
        }
    };
}

impl Catalog for AnyCatalog {
    async fn campaign(&self, candidate: &Candidate, lease: Duration) -> Result<Standing, CatalogError> {
        either!(self, campaign(candidate, lease))
    }

    async fn resign(&self, term: Term) -> Result<(), CatalogError> {
        either!(self, resign(term))
    }

    async fn outdo(&self, term: Term) -> Result<(), CatalogError> {
        either!(self, outdo(term))
    }

    async fn load(&self) -> Result<Stored, CatalogError> {
        either!(self, load())
    }

    async fn load_pipe(&self, id: &PipeId) -> Result<Option<PipeAggregate>, CatalogError> {
        either!(self, load_pipe(id))
    }

    async fn commit(
        &self,
        term: Term,
        batch: Vec<(PipeId, PipeChanges)>,
        last_epoch: Epoch,
    ) -> Result<(), CatalogError> {
        either!(self, commit(term, batch, last_epoch))
    }

    async fn events(
        &self,
        pipe: &PipeId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<EventRecord>, CatalogError> {
        either!(self, events(pipe, after, limit))
    }
}
