//! Which of the coordinators on one catalog leads: a lease in the catalog, renewed by who holds it.
//!
//! [`run`] campaigns again and again. Once a term is granted it begins a **reign**: the pipes are loaded and a reconciler of its own decides in that term, until the term is over or the
//! catalog fails; then everything is forgotten and the next reign begins with loading. So a first start, a failed commit and a change of leaders are one path.
//!
//! Three fences keep a leader that was stopped for a while, or cut off, from doing harm:
//!
//! 1. The catalog stores nothing that was decided in a term that is over ([`Catalog::commit`]).
//! 2. A leader tells nobody anything once its own count of the lease has run out ([`Hold`]): it counts from before it asked, by a clock that goes on while the process is stopped, so its hold
//!    ends before the lease does in the catalog.
//! 3. Workers turn away from a coordinator whose term is smaller than one they were welcomed in.

use std::sync::Arc;
use std::time::Duration;

use millrace_catalog::{Candidate, Catalog, CatalogError, Leader, Standing};
use millrace_model::Term;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::directory::Directory;
use crate::input::Input;
use crate::reconciler::{Ended, Reconciler, Rhythm};

/// Inputs that may wait for the reconciler; whoever finds no room waits.
const QUEUE: usize = 4096;

/// The lease is asked for so many times before it would end.
const ASKED_PER_LEASE: u32 = 4;

/// Between two reigns, or two tries at a catalog that does not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// How long a reconciler may take to finish its turn once its reign is over.
const LAST_TURN: Duration = Duration::from_secs(5);

/// Where this coordinator stands.
#[derive(Clone)]
pub(crate) enum Office {
    /// Nobody is known to lead, or the pipes are being loaded.
    Vacant,
    /// Another one leads.
    Follows(Leader),
    /// This one leads.
    Leads(Lead),
}

/// What the services need of a coordinator while it leads.
#[derive(Clone)]
pub(crate) struct Lead {
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) directory: Directory,
    /// Cancelled when the reign is over.
    pub(crate) over: CancellationToken,
    hold: Hold,
}

/// Where this coordinator stands, as the services see it.
#[derive(Clone)]
pub(crate) struct Offices(watch::Receiver<Office>);

impl Offices {
    /// At first vacant; the other half is [`run`]'s.
    pub(crate) fn new() -> (watch::Sender<Office>, Self) {
        let (sender, receiver) = watch::channel(Office::Vacant);
        (sender, Self(receiver))
    }

    /// For calls that only a leader can answer.
    ///
    /// # Errors
    /// `NOT_LEADER` with the leader's address, `NO_LEADER` where none is known or this one cannot be sure of its lease for now.
    pub(crate) fn lead(&self) -> Result<Lead, Status> {
        match &*self.0.borrow() {
            Office::Leads(lead) if lead.hold.stands() => Ok(lead.clone()),
            Office::Follows(leader) => Err(millrace_api::status::not_leader(&leader.candidate.address)),
            Office::Leads(_) | Office::Vacant => Err(millrace_api::status::no_leader()),
        }
    }

    /// The address of the coordinator that this one follows.
    pub(crate) fn followed(&self) -> Option<String> {
        match &*self.0.borrow() {
            Office::Follows(leader) => Some(leader.candidate.address.clone()),
            Office::Leads(_) | Office::Vacant => None,
        }
    }

    /// Waits until it is known who leads.
    pub(crate) async fn settled(&mut self) {
        // An error says that the election is over: nothing will settle any more.
        let _ = self.0.wait_for(|office| !matches!(office, Office::Vacant)).await;
    }
}

/// Until when a leader may act on its own count of the lease.
#[derive(Clone)]
pub(crate) struct Hold(watch::Receiver<Instant>);

impl Hold {
    /// Until the time that is sent last.
    pub(crate) fn new(until: Instant) -> (watch::Sender<Instant>, Self) {
        let (sender, receiver) = watch::channel(until);
        (sender, Self(receiver))
    }

    /// Whether it has not run out. (`Instant` is CLOCK_MONOTONIC on Linux: it does not jump with the wall clock and goes on while the process is stopped.)
    pub(crate) fn stands(&self) -> bool {
        Instant::now() < *self.0.borrow()
    }

    /// Waits until it stands; for ever where it is never renewed, as the reign is ended from outside then.
    pub(crate) async fn wait(&mut self) {
        while !self.stands() {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// One time of leading.
struct Reign {
    term: Term,
    until: watch::Sender<Instant>,
    over: CancellationToken,
    reconciling: JoinHandle<Ended>,
}

impl Reign {
    fn begin<C: Catalog>(
        catalog: &Arc<C>,
        term: Term,
        until: Instant,
        rhythm: Rhythm,
        offices: &watch::Sender<Office>,
    ) -> Self {
        let over = CancellationToken::new();
        let (until, hold) = Hold::new(until);
        let reconciling =
            tokio::spawn(reign(catalog.clone(), term, rhythm, hold, offices.clone(), over.clone()));
        Self { term, until, over, reconciling }
    }

    /// Ends it from outside: the turn under way may end, if it does so soon.
    async fn end(mut self) {
        self.over.cancel();
        if timeout(LAST_TURN, &mut self.reconciling).await.is_err() {
            // What it was about to store is stored or not; loading tells.
            self.reconciling.abort();
        }
    }
}

async fn reign<C: Catalog>(
    catalog: Arc<C>,
    term: Term,
    rhythm: Rhythm,
    hold: Hold,
    offices: watch::Sender<Office>,
    over: CancellationToken,
) -> Ended {
    let directory = Directory::default();
    let loaded = Reconciler::load(catalog, term, hold.clone(), rhythm, directory.clone()).await;
    let reconciler = match loaded {
        Ok(reconciler) => reconciler,
        Err(error) => return Ended::Catalog(error),
    };
    let (inputs, queue) = mpsc::channel(QUEUE);
    let lead = Lead { inputs, directory, over: over.clone(), hold };
    offices.send_if_modified(|office| {
        // Whoever ends a reign cancels it first and then says who leads.
        let stands = !over.is_cancelled();
        if stands {
            *office = Office::Leads(lead);
        }
        stands
    });
    reconciler.run(queue, over).await
}

/// Campaigns until cancelled, and leads for as long as it is granted.
///
/// # Errors
/// What the catalog holds cannot be understood, so that no try to lead will succeed.
pub(crate) async fn run<C: Catalog>(
    catalog: Arc<C>,
    candidate: Candidate,
    lease: Duration,
    rhythm: Rhythm,
    offices: watch::Sender<Office>,
    cancelled: CancellationToken,
) -> Result<(), CatalogError> {
    let mut reign: Option<Reign> = None;
    let mut answers = true;
    loop {
        let asked = Instant::now();
        let standing = tokio::select! {
            biased;
            () = cancelled.cancelled() => break,
            standing = timeout(lease, catalog.campaign(&candidate, lease)) => standing,
        };
        let mut pause = lease / ASKED_PER_LEASE;
        match standing {
            Ok(Ok(Standing::Leads(term))) => {
                answers = true;
                let until = asked + lease;
                match &reign {
                    Some(reign) if reign.term == term => {
                        reign.until.send_replace(until);
                    }
                    _ => {
                        if let Some(former) = reign.take() {
                            offices.send_replace(Office::Vacant);
                            former.end().await;
                        }
                        tracing::info!(%term, "this coordinator leads");
                        reign = Some(Reign::begin(&catalog, term, until, rhythm, &offices));
                    }
                }
            }
            Ok(Ok(Standing::Follows(leader))) => {
                answers = true;
                let former = reign.take();
                if let Some(former) = &former {
                    former.over.cancel();
                }
                let news = offices.borrow().follows() != Some(&leader);
                if news {
                    tracing::info!(term = %leader.term, leader = %leader.candidate.address, "another coordinator leads");
                    offices.send_replace(Office::Follows(leader));
                }
                if let Some(former) = former {
                    former.end().await;
                }
            }
            failed => {
                let error = failed.map_or_else(
                    |_| "it did not answer within the lease".to_owned(),
                    |result| result.map_or_else(|error| in_full(&error), |_| String::new()),
                );
                if std::mem::take(&mut answers) {
                    tracing::warn!(%error, "the catalog does not say who leads; asking again");
                }
                if reign.is_none() {
                    offices.send_replace(Office::Vacant);
                }
                pause = pause.min(PAUSE);
            }
        }
        let ended = tokio::select! {
            biased;
            () = cancelled.cancelled() => break,
            ended = ended(&mut reign) => ended,
            () = tokio::time::sleep(pause) => continue,
        };
        let term = reign.take().map(|former| {
            former.over.cancel();
            former.term
        });
        offices.send_replace(Office::Vacant);
        match ended {
            Ended::Stopped => {}
            Ended::Catalog(error @ (CatalogError::Unreadable { .. } | CatalogError::Missing { .. })) => {
                return Err(error);
            }
            Ended::Catalog(error) => {
                tracing::error!(error = %in_full(&error), "what was decided last may not be stored; everything is loaded anew");
                if let (Some(term), false) = (term, matches!(error, CatalogError::Deposed { .. })) {
                    // In a new term nothing that is still on its way to the catalog will be stored.
                    let _ = timeout(PAUSE, catalog.resign(term)).await;
                }
            }
        }
        tokio::select! {
            () = cancelled.cancelled() => break,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    offices.send_replace(Office::Vacant);
    if let Some(reign) = reign {
        let term = reign.term;
        reign.end().await;
        // Another one need not wait for the end of the lease.
        if let Ok(Err(error)) = timeout(LAST_TURN, catalog.resign(term)).await {
            tracing::warn!(error = %in_full(&error), "the lease could not be given back; it ends by itself");
        }
    }
    Ok(())
}

impl Office {
    fn follows(&self) -> Option<&Leader> {
        match self {
            Office::Follows(leader) => Some(leader),
            Office::Leads(_) | Office::Vacant => None,
        }
    }
}

/// How the reign ended by itself; pending where there is none.
async fn ended(reign: &mut Option<Reign>) -> Ended {
    match reign {
        Some(reign) => match (&mut reign.reconciling).await {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "the reconciler panicked; this is a fault of Millrace");
                Ended::Stopped
            }
        },
        None => std::future::pending().await,
    }
}

/// An error with what led to it.
fn in_full(error: &CatalogError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests;
