//! Elections among coordinators of one process, on one real catalog.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_catalog::{SqliteCatalog, Stored};
use millrace_lifecycle::{EventRecord, PipeAggregate, PipeChanges};
use millrace_model::spec::{ClickHouseDestination, PipeSettings, PostgresSource, ReplicationMode, TlsMode};
use millrace_model::{Epoch, PipeId, PipeSpec, Secret};
use tokio::sync::{Notify, oneshot};

use super::*;
use crate::input::{Created, Rejection};

/// Long enough that no test waits for its end on a slow machine unless it wants to.
const LEASE: Duration = Duration::from_secs(60);
const RHYTHM: Rhythm = Rhythm { heartbeat: Duration::from_secs(1), lease: Duration::from_secs(10) };

/// A catalog whose calls fail or hang on command.
struct Faulty {
    catalog: SqliteCatalog,
    /// Commits are stored, but their answers are lost.
    loses_answers: AtomicBool,
    /// Campaigns wait until they are let go.
    campaigns: Gate,
    terms: Mutex<Vec<Term>>,
}

#[derive(Default)]
struct Gate {
    shut: AtomicBool,
    opened: Notify,
}

impl Gate {
    async fn pass(&self) {
        loop {
            let opened = self.opened.notified();
            if !self.shut.load(Ordering::SeqCst) {
                return;
            }
            opened.await;
        }
    }

    fn open(&self) {
        self.shut.store(false, Ordering::SeqCst);
        self.opened.notify_waiters();
    }
}

impl Catalog for Faulty {
    async fn campaign(&self, candidate: &Candidate, lease: Duration) -> Result<Standing, CatalogError> {
        self.campaigns.pass().await;
        let standing = self.catalog.campaign(candidate, lease).await?;
        if let Standing::Leads(term) = standing {
            self.terms.lock().unwrap().push(term);
        }
        Ok(standing)
    }

    async fn resign(&self, term: Term) -> Result<(), CatalogError> {
        self.catalog.resign(term).await
    }

    async fn outdo(&self, term: Term) -> Result<(), CatalogError> {
        self.catalog.outdo(term).await
    }

    async fn load(&self) -> Result<Stored, CatalogError> {
        self.catalog.load().await
    }

    async fn load_pipe(&self, id: &PipeId) -> Result<Option<PipeAggregate>, CatalogError> {
        self.catalog.load_pipe(id).await
    }

    async fn commit(
        &self,
        term: Term,
        batch: Vec<(PipeId, PipeChanges)>,
        last_epoch: Epoch,
    ) -> Result<(), CatalogError> {
        self.catalog.commit(term, batch, last_epoch).await?;
        if self.loses_answers.swap(false, Ordering::SeqCst) {
            return Err(CatalogError::Closing);
        }
        Ok(())
    }

    async fn events(
        &self,
        pipe: &PipeId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<EventRecord>, CatalogError> {
        self.catalog.events(pipe, after, limit).await
    }
}

fn catalog(folder: &tempfile::TempDir) -> Arc<Faulty> {
    Arc::new(Faulty {
        catalog: SqliteCatalog::open(&folder.path().join("catalog.sqlite")).unwrap(),
        loses_answers: AtomicBool::new(false),
        campaigns: Gate::default(),
        terms: Mutex::default(),
    })
}

/// A coordinator without its services.
struct Candidacy {
    offices: Offices,
    stop: CancellationToken,
    running: JoinHandle<Result<(), CatalogError>>,
}

impl Candidacy {
    fn begin(catalog: &Arc<Faulty>, name: &str, lease: Duration) -> Self {
        let (sender, offices) = Offices::new();
        let stop = CancellationToken::new();
        let candidate = Candidate { id: name.to_owned(), address: format!("http://{name}") };
        let running = tokio::spawn(run(catalog.clone(), candidate, lease, RHYTHM, sender, stop.clone()));
        Self { offices, stop, running }
    }

    async fn leads(&mut self) -> Lead {
        self.offices.0.wait_for(|office| matches!(office, Office::Leads(_))).await.unwrap();
        self.offices.lead().ok().unwrap()
    }

    async fn follows(&mut self, leader: &str) {
        let address = format!("http://{leader}");
        self.offices
            .0
            .wait_for(|office| office.follows().is_some_and(|leader| leader.candidate.address == address))
            .await
            .unwrap();
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn spec(name: &str) -> PipeSpec {
    PipeSpec {
        name: name.parse().unwrap(),
        mode: ReplicationMode::Cdc,
        source: PostgresSource {
            host: "127.0.0.1".to_owned(),
            port: 5432,
            database: "shop".to_owned(),
            username: "millrace".to_owned(),
            password: Secret::new("local"),
            tls_mode: TlsMode::Disable,
            tls_ca: None,
        },
        destination: ClickHouseDestination {
            url: "http://127.0.0.1:8123".to_owned(),
            database: "shop".to_owned(),
            username: "default".to_owned(),
            password: Secret::new(""),
            cluster: None,
        },
        tables: Vec::new(),
        settings: PipeSettings::default(),
    }
}

async fn ask(lead: &Lead, name: &str) -> oneshot::Receiver<Result<Created, Rejection>> {
    let (reply, answer) = oneshot::channel();
    let input = Input::Create { spec: Box::new(spec(name)), trace: Default::default(), reply };
    lead.inputs.send(input).await.ok().unwrap();
    answer
}

async fn stored(catalog: &Faulty) -> Vec<String> {
    let pipes = catalog.load().await.unwrap().pipes;
    pipes.iter().map(|pipe| pipe.pipe().spec.name.as_str().to_owned()).collect()
}

#[tokio::test]
async fn one_leads_and_the_other_takes_over_what_was_decided() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(&folder);
    let mut first = Candidacy::begin(&catalog, "first", LEASE);
    let lead = first.leads().await;
    let mut second = Candidacy::begin(&catalog, "second", LEASE);
    second.follows("first").await;
    let refusal = second.offices.lead().err().unwrap();
    assert_eq!(millrace_api::status::leader(&refusal).as_deref(), Some("http://first"));
    ask(&lead, "shop").await.await.unwrap().unwrap();

    // Stopping gives the lease back; nobody waits a minute for its end.
    first.stop().await;
    assert!(lead.over.is_cancelled());
    // It asks again within a quarter of the lease; another candidacy asks at once.
    second.stop().await;
    let mut third = Candidacy::begin(&catalog, "third", LEASE);
    let lead = third.leads().await;
    assert!(lead.directory.get("shop").is_some());
    let terms = catalog.terms.lock().unwrap().clone();
    assert!(terms.first() < terms.last(), "{terms:?}");
}

#[tokio::test]
async fn a_leader_whose_hold_has_run_out_says_nothing_until_it_is_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(&folder);
    let mut only = Candidacy::begin(&catalog, "only", Duration::from_millis(400));
    let lead = only.leads().await;
    catalog.campaigns.shut.store(true, Ordering::SeqCst);
    while lead.hold.stands() {
        tokio::task::yield_now().await;
    }
    // The services ask nobody any more.
    assert_eq!(only.offices.lead().err().unwrap().code(), tonic::Code::Unavailable);
    // And what reached the reconciler all the same is not answered, nor even taken.
    let mut answer = ask(&lead, "shop").await;
    let waited = timeout(Duration::from_millis(600), &mut answer).await;
    assert!(waited.is_err(), "it was answered");
    assert_eq!(stored(&catalog).await, [""; 0]);
    catalog.campaigns.open();
    answer.await.unwrap().unwrap();
    assert_eq!(stored(&catalog).await, ["shop"]);
}

#[tokio::test]
async fn a_leader_that_another_one_follows_upon_decides_nothing_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(&folder);
    let lease = Duration::from_millis(400);
    let mut old = Candidacy::begin(&catalog, "old", lease);
    let lead = old.leads().await;
    // As if it had been stopped: it asks for nothing while its lease ends, and goes on believing what it believed.
    catalog.campaigns.shut.store(true, Ordering::SeqCst);
    let newer = Candidate { id: "newer".to_owned(), address: "http://newer".to_owned() };
    let term = loop {
        match catalog.catalog.campaign(&newer, LEASE).await.unwrap() {
            Standing::Leads(term) => break term,
            Standing::Follows(_) => tokio::task::yield_now().await,
        }
    };
    let stale = Reconciler::load(
        catalog.clone(),
        Term(term.0 - 1),
        Hold::new(Instant::now() + LEASE).1,
        RHYTHM,
        Directory::default(),
    );
    let (inputs, queue) = mpsc::channel(8);
    let (reply, answer) = oneshot::channel();
    let create = Input::Create { spec: Box::new(spec("late")), trace: Default::default(), reply };
    inputs.send(create).await.ok().unwrap();
    let ended = stale.await.unwrap().run(queue, CancellationToken::new()).await;
    assert!(matches!(ended, Ended::Catalog(CatalogError::Deposed { .. })));
    assert!(matches!(answer.await.unwrap(), Err(Rejection::Deposed)));
    assert_eq!(stored(&catalog).await, [""; 0]);
    // Once it asks again it learns that it is over.
    let answer = ask(&lead, "later").await;
    catalog.campaigns.open();
    old.follows("newer").await;
    assert!(!matches!(answer.await, Ok(Ok(_))));
    assert_eq!(stored(&catalog).await, [""; 0]);
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_by_loading_anew_in_another_term() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(&folder);
    let mut only = Candidacy::begin(&catalog, "only", LEASE);
    let lead = only.leads().await;
    catalog.loses_answers.store(true, Ordering::SeqCst);
    let answer = ask(&lead, "shop").await.await.unwrap();
    assert!(matches!(answer, Err(Rejection::Storage(_))));
    lead.over.cancelled().await;
    let lead = only.leads().await;
    assert!(lead.directory.get("shop").is_some(), "what was stored is known");
    let again = ask(&lead, "shop").await.await.unwrap().unwrap();
    assert!(!again.created, "repeating the command finds what it made");
    let terms = catalog.terms.lock().unwrap().clone();
    assert!(terms.first() < terms.last(), "nothing of the first term can be stored any more: {terms:?}");
}
