//! What can go wrong, by the step that failed.

use std::path::PathBuf;

use millrace_model::{PipeId, Term};

/// What the storage engine said.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A call of the catalog that failed. No message holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file, or a folder above it, cannot be made or made private.
    #[error("cannot prepare the catalog file {}", .path.display())]
    Prepare {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The URL of a catalog is none.
    #[error("the catalog's URL cannot be used: {reason}")]
    Address {
        /// Why; without credentials.
        reason: String,
    },
    /// The database cannot be opened.
    #[error("cannot open the catalog {place}")]
    Open {
        /// The file or the database.
        place: String,
        /// Why.
        source: Cause,
    },
    /// Another coordinator has it.
    #[error("the catalog {} is in use by another process; one coordinator at a time can have it", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A database of another program.
    #[error("{place} is a database, but not a catalog of Millrace; name another one")]
    Foreign {
        /// The file or the database.
        place: String,
    },
    /// Written by a newer release.
    #[error(
        "the catalog {place} has schema version {found}, this release knows versions up to {known}; \
         run the release that wrote it, or a later one"
    )]
    NewerSchema {
        /// The file or the database.
        place: String,
        /// The schema version in it.
        found: i64,
        /// The newest that this release knows.
        known: i64,
    },
    /// A migration failed; the catalog is as before.
    #[error("cannot bring the catalog to schema version {to}")]
    Migrate {
        /// The version that was not reached.
        to: i64,
        /// Why.
        source: Cause,
    },
    /// Reading failed.
    #[error("cannot read {what} from the catalog")]
    Read {
        /// What was read.
        what: &'static str,
        /// Why.
        source: Cause,
    },
    /// Writing failed.
    #[error("cannot write {what} to the catalog")]
    Write {
        /// What was written.
        what: &'static str,
        /// Why.
        source: Cause,
    },
    /// A stored record is not what this release understands.
    #[error("pipe {pipe}: the stored {record} cannot be understood")]
    Unreadable {
        /// The pipe's id as stored.
        pipe: String,
        /// Which of its records.
        record: String,
        /// Where it stops making sense.
        source: Cause,
    },
    /// A record that must be there is not.
    #[error("pipe {pipe}: the stored {record} is missing")]
    Missing {
        /// The pipe's id as stored.
        pipe: String,
        /// Which of its records.
        record: String,
    },
    /// The term in which this was decided is over.
    #[error("another coordinator leads: term {term} is over, the catalog is in term {present}")]
    Deposed {
        /// Of who decided.
        term: Term,
        /// The one that the catalog knows.
        present: Term,
    },
    /// Somebody else changed the pipe since it was loaded.
    #[error("pipe {pipe} is stored with version {found}, not {expected} (0: not stored)")]
    Conflict {
        /// The pipe.
        pipe: PipeId,
        /// The version that the changes were made from.
        expected: u64,
        /// The version that is stored.
        found: u64,
    },
    /// Another pipe has the name.
    #[error("the name '{name}' is taken by pipe {holder}")]
    NameTaken {
        /// The name.
        name: String,
        /// Id of the pipe that has it.
        holder: String,
    },
    /// The changes make no sense by themselves.
    #[error("changes of pipe {pipe} cannot be stored: {reason}")]
    Malformed {
        /// The pipe.
        pipe: PipeId,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// The runtime shuts down.
    #[error("the catalog is closing")]
    Closing,
}

impl CatalogError {
    pub(crate) fn read(what: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Read { what, source: source.into() }
    }

    pub(crate) fn write(what: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Write { what, source: source.into() }
    }
}
