//! The durable truth about pipes.
//!
//! # What do we store?
//!
//! | table | one row is | changes when |
//! |---|---|---|
//! | `pipes` | a pipe: its id, its name (unique), its version and its [`PipeRecord`](millrace_lifecycle::PipeRecord) | with every commit for the pipe; each raises the version by one |
//! | `tables` | a table of a pipe, by its id (`position`): [`TableRecord`](millrace_lifecycle::TableRecord) | the table goes on, breaks, is provisioned, cut, or gone |
//! | `partitions` | a range of pages of a table, with the rows and bytes it held once it is copied | the table is cut; the partition is in the destination |
//! | `assignments` | a task in a worker's hands, by epoch: [`AssignmentRecord`](millrace_lifecycle::AssignmentRecord) | it is given out, drained, ended or taken back |
//! | `events` | an entry of a pipe's history, by number: [`EventRecord`] | never; entries are only added |
//! | `meta` | the last epoch that was given out, the last term of leading | work is given out; another coordinator leads |
//! | `leadership` | in PostgreSQL: who leads, in which term, until when | a coordinator campaigns |
//!
//! Not stored: progress within a partition, retries and their pauses, which workers are connected. The coordinator learns these anew.
//!
//! Records are stored as JSON in the form that `millrace-lifecycle` gives them; partitions are columns, because there may be a million.
//! **The records hold the passwords of sources and destinations in the clear.** Until they are encrypted at rest, what protects
//! them is that the file can be read by its owner alone (mode 0600), or the rights in the database, and that no error here shows a secret.
//!
//! # This crate
//!
//! Owns: the trait [`Catalog`], its implementations in an SQLite file ([`SqliteCatalog`]) and in a PostgreSQL database ([`PostgresCatalog`]), their schemas and migrations, and the way from one to the
//! other ([`Dump`]). The tests are one contract over every implementation (`tests/contract/suite.rs`) and what only one of them can show (`sqlite.rs` and `postgres.rs` beside it).
//!
//! Never contains: decisions. What a record means and when it changes is the business of `millrace-lifecycle`.
//!
//! Start reading at [`Catalog`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use millrace_lifecycle::{EventRecord, PipeAggregate, PipeChanges};
use millrace_model::{Epoch, PipeId, Term};

mod dump;
mod error;
mod location;
mod postgres;
mod sqlite;
mod stored;

pub use dump::{Dump, DumpError, export, import};
pub use error::{CatalogError, Cause};
pub use location::{AnyCatalog, Location};
pub use postgres::PostgresCatalog;
pub use sqlite::SqliteCatalog;

/// Everything that a coordinator needs to go on where the last one stopped.
#[derive(Debug, Clone)]
pub struct Stored {
    /// All pipes, by id, without their history.
    pub pipes: Vec<PipeAggregate>,
    /// The greatest epoch that was ever committed; zero in a new catalog.
    pub last_epoch: Epoch,
    /// The last term that began; zero in a new catalog.
    pub last_term: Term,
}

/// A coordinator that would lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Names the process: made anew at every start.
    pub id: String,
    /// Where other coordinators reach it, `http://host:port`.
    pub address: String,
}

/// The coordinator that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Since it leads.
    pub term: Term,
    /// The process.
    pub candidate: Candidate,
}

/// How a candidate stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It leads, for one lease from the moment at which it asked.
    Leads(Term),
    /// Another one leads.
    Follows(Leader),
}

/// Where the durable truth is kept.
///
/// Every call is atomic and sees all commits that were answered before it began. A future that is dropped does not take its call back: a commit may
/// have been stored, and only loading again tells.
pub trait Catalog: Send + Sync + 'static {
    /// Asks to lead, or to go on leading, for the length of `lease`. Granted to who leads already (same id, same term), and, with a greater term, to anybody once the
    /// leader's lease has ended by the catalog's own clock or was given back.
    ///
    /// # Errors
    /// Reading or writing fails; whether the candidate leads is then open.
    fn campaign(
        &self,
        candidate: &Candidate,
        lease: Duration,
    ) -> impl Future<Output = Result<Standing, CatalogError>> + Send;

    /// Gives the lease of a term back, so that another coordinator need not wait for its end: whoever leads next, the same one included, does so in a greater term. Nothing happens
    /// where that term is over.
    ///
    /// # Errors
    /// Writing fails; the lease ends by itself then.
    fn resign(&self, term: Term) -> impl Future<Output = Result<(), CatalogError>> + Send;

    /// Sees to it that every term that begins from now on is greater than this one, of a catalog whose place this one takes: workers turn away from smaller terms than they have seen.
    ///
    /// # Errors
    /// Writing fails.
    fn outdo(&self, term: Term) -> impl Future<Output = Result<(), CatalogError>> + Send;

    /// Loads everything but the history. What a leader loads after it was granted its term is all that will ever be stored in the terms before.
    ///
    /// # Errors
    /// Reading fails, or a record cannot be understood; the error names it.
    fn load(&self) -> impl Future<Output = Result<Stored, CatalogError>> + Send;

    /// Loads one pipe; `None` where there is none with this id.
    ///
    /// # Errors
    /// As [`Catalog::load`].
    fn load_pipe(
        &self,
        id: &PipeId,
    ) -> impl Future<Output = Result<Option<PipeAggregate>, CatalogError>> + Send;

    /// Stores the changes of any number of pipes, each named at most once, in one transaction: all or nothing. Once it is answered, they survive a crash
    /// of the process and of the machine.
    ///
    /// Every pipe must be stored with the `expected_version` of its changes (0: not at all), and has the version after it from then on. A removed
    /// pipe goes with all that belongs to it, and its name is free for another pipe of the same batch. The stored epoch becomes `last_epoch` unless it is
    /// greater already. Nothing is stored in a term that is over; one whose lease has ended goes on until another one begins.
    ///
    /// # Errors
    /// [`CatalogError::Deposed`] where the term is over, [`CatalogError::Conflict`] where another version is stored, [`CatalogError::NameTaken`] where another pipe has the name,
    /// [`CatalogError::Malformed`] for changes that no [`PipeAggregate`] makes, or writing fails. Nothing is changed then, save that a failure of the
    /// storage in the very moment of the commit leaves it open.
    fn commit(
        &self,
        term: Term,
        batch: Vec<(PipeId, PipeChanges)>,
        last_epoch: Epoch,
    ) -> impl Future<Output = Result<(), CatalogError>> + Send;

    /// The first `limit` events of a pipe whose ids are greater than `after`, in order; none for a pipe that is not there.
    ///
    /// # Errors
    /// As [`Catalog::load`].
    fn events(
        &self,
        pipe: &PipeId,
        after: u64,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<EventRecord>, CatalogError>> + Send;
}

/// A catalog that is shared.
impl<C: Catalog> Catalog for Arc<C> {
    fn campaign(
        &self,
        candidate: &Candidate,
        lease: Duration,
    ) -> impl Future<Output = Result<Standing, CatalogError>> + Send {
        C::campaign(self, candidate, lease)
    }

    fn resign(&self, term: Term) -> impl Future<Output = Result<(), CatalogError>> + Send {
        C::resign(self, term)
    }

    fn outdo(&self, term: Term) -> impl Future<Output = Result<(), CatalogError>> + Send {
        C::outdo(self, term)
    }

    fn load(&self) -> impl Future<Output = Result<Stored, CatalogError>> + Send {
        C::load(self)
    }

    fn load_pipe(
        &self,
        id: &PipeId,
    ) -> impl Future<Output = Result<Option<PipeAggregate>, CatalogError>> + Send {
        C::load_pipe(self, id)
    }

    fn commit(
        &self,
        term: Term,
        batch: Vec<(PipeId, PipeChanges)>,
        last_epoch: Epoch,
    ) -> impl Future<Output = Result<(), CatalogError>> + Send {
        C::commit(self, term, batch, last_epoch)
    }

    fn events(
        &self,
        pipe: &PipeId,
        after: u64,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<EventRecord>, CatalogError>> + Send {
        C::events(self, pipe, after, limit)
    }
}
