//! A worker's session with its coordinator, and the worker around it.
//!
//! One loop owns the desk. It goes on while the coordinator is away: tasks keep working, what they say is kept, and after the next Hello and Welcome both sides
//! agree again (the protocol is told in `proto/millrace/worker/v1/worker_service.proto`).

use std::time::Duration;

use millrace_api::proto::worker::v1 as wire;
use millrace_api::proto::worker::v1::worker_service_client::WorkerServiceClient;
use millrace_api::worker::{CoordinatorMessage, WorkerMessage};
use millrace_model::work::{Assignment, Hello, Report};
use millrace_model::{Epoch, Labels, Problem, Term, WorkerId};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Endpoint;

use crate::budget::Budget;
use crate::desk::{Desk, Held, Recorded, Reporter};
use crate::task::{self, Shared};

/// First pause before dialling again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before dialling again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest time until a coordinator has let this worker in: one that hangs takes connections and answers nothing.
const DIAL: Duration = Duration::from_secs(5);
/// How long a leaving worker waits for its work to be drained or finished.
const LEAVE_PATIENCE: Duration = Duration::from_secs(25);
/// Reports and messages that may wait to be taken.
const QUEUE: usize = 1024;

/// What a worker must know to begin.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses of coordinators, `http://host:port`; tried in turn.
    pub coordinators: Vec<String>,
    /// Its id, unique in the fleet.
    pub id: WorkerId,
    /// Most copies and streams at a time, at least 1.
    pub max_tasks: u32,
    /// Ceiling of the memory that grows with data, in bytes.
    pub memory_budget: u64,
    /// Where it is and whom it serves.
    pub labels: Labels,
}

/// A worker process, or one of several in `millrace dev`.
#[derive(Debug)]
pub struct Worker {
    config: Config,
    instance: String,
}

/// An open stream to a coordinator.
struct Link {
    /// When the worker began to introduce itself.
    introduced: Instant,
    outbound: mpsc::Sender<wire::ConnectRequest>,
    inbound: tonic::Streaming<wire::ConnectResponse>,
}

/// Why a coordinator did not let this worker in.
struct NotIn {
    reason: String,
    /// The coordinator that leads, where the one that was asked follows it.
    leader: Option<String>,
}

impl From<String> for NotIn {
    fn from(reason: String) -> Self {
        Self { reason, leader: None }
    }
}

enum Happening {
    Leave,
    GaveUpWaiting,
    Said(Epoch, Report),
    Heard(Box<Result<Option<wire::ConnectResponse>, tonic::Status>>),
    Dialled(Box<Result<Link, NotIn>>),
    Beat,
}

impl Worker {
    /// A worker that has not begun.
    pub fn new(config: Config) -> Self {
        Self { config, instance: format!("{:016x}", rand::random::<u64>()) }
    }

    /// Works until `leave` is cancelled; then hands back or finishes what it holds, for at most 25 s.
    pub async fn run(self, leave: CancellationToken) {
        let (reports, mut said) = mpsc::channel(QUEUE);
        let budget = Budget::new(self.config.memory_budget);
        let shared = Shared::new(budget.clone());
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let _stop_on_drop = stop.clone().drop_guard();
        let mut desk = Desk::default();
        let mut link: Option<Link> = None;
        let mut attempt = 0usize;
        // By a user, as a coordinator said.
        let mut drained = false;
        let mut dialling = Box::pin(self.dial(attempt, None, desk.epochs(), drained));
        // The greatest in which a coordinator welcomed this worker.
        let mut term = Term::default();
        let mut heartbeat = tokio::time::interval(Duration::from_secs(1));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leaving: Option<Instant> = None;
        loop {
            if leaving.is_some() && desk.is_empty() {
                break;
            }
            let happening = tokio::select! {
                biased;
                // 1. Leaving must not wait behind a flood of reports.
                () = leave.cancelled(), if leaving.is_none() => Happening::Leave,
                () = tokio::time::sleep_until(leaving.unwrap_or_else(Instant::now)), if leaving.is_some() => Happening::GaveUpWaiting,
                // 2. The sign of life comes before what may take long to say.
                _ = heartbeat.tick() => Happening::Beat,
                // 3. Orders come before reports: a revoked task's report is not worth sending.
                heard = hear(&mut link), if link.is_some() => Happening::Heard(Box::new(heard)),
                dialled = &mut dialling, if link.is_none() => Happening::Dialled(Box::new(dialled)),
                // 4. What the tasks say.
                Some((epoch, report)) = said.recv() => Happening::Said(epoch, report),
            };
            let mut lost = None;
            match happening {
                Happening::Leave => {
                    tracing::info!(worker.id = %self.config.id, held = desk.epochs().len(), "leaving");
                    leaving = Some(Instant::now() + LEAVE_PATIENCE);
                    lost = send(&mut link, &heartbeat_message(&budget, true, 0)).err();
                }
                Happening::GaveUpWaiting => {
                    tracing::warn!(worker.id = %self.config.id, held = desk.epochs().len(), "left with work in hand; others will take it over");
                    break;
                }
                Happening::Beat => {
                    shared.close_idle();
                    shared.fence.runs();
                    if link.is_some() {
                        lost = match shared.fence.sign() {
                            Some(number) => {
                                let heartbeat = heartbeat_message(&budget, leaving.is_some(), number);
                                send(&mut link, &heartbeat).err()
                            }
                            None => Some("nobody has heard this worker for a whole lease".to_owned()),
                        };
                    }
                }
                Happening::Said(epoch, report) => {
                    if desk.said(epoch, &report) {
                        lost = send(&mut link, &WorkerMessage::Report { epoch, report }).err();
                    }
                }
                Happening::Heard(heard) => match *heard {
                    Ok(Some(message)) => match CoordinatorMessage::try_from(message) {
                        // Zero comes from a release before there were terms.
                        Ok(CoordinatorMessage::Welcome { term: offered, .. })
                            if offered != Term::default() && offered < term =>
                        {
                            lost = Some(format!(
                                "the coordinator is of term {offered}, but another one leads since, in term {term}"
                            ));
                        }
                        Ok(CoordinatorMessage::Welcome {
                            heartbeat_interval,
                            keep,
                            term: offered,
                            lease,
                        }) => {
                            attempt = 0;
                            term = term.max(offered);
                            desk.keep_only(&keep);
                            let introduced = link.as_ref().map_or_else(Instant::now, |link| link.introduced);
                            shared.fence.begin(lease, introduced);
                            heartbeat = tokio::time::interval(heartbeat_interval);
                            heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
                            for (epoch, report) in desk.to_repeat() {
                                lost =
                                    lost.or(send(&mut link, &WorkerMessage::Report { epoch, report }).err());
                            }
                        }
                        Ok(CoordinatorMessage::Assign(assignment)) => {
                            begin(*assignment, &mut desk, &tasks, &shared, &reports, &stop);
                        }
                        Ok(CoordinatorMessage::Amend(assignment)) => desk.amend(*assignment),
                        Ok(CoordinatorMessage::Revoke(epoch)) => desk.revoke(epoch),
                        Ok(CoordinatorMessage::Drain(epoch)) => desk.drain(epoch),
                        Ok(CoordinatorMessage::Recorded { epoch, table }) => desk.recorded(epoch, table),
                        Ok(CoordinatorMessage::SetDrained(by_user)) => drained = by_user,
                        Ok(CoordinatorMessage::Heard(number)) => shared.fence.heard(number),
                        Ok(CoordinatorMessage::Inspect(inspection)) => {
                            if let Some(link) = &link {
                                let outbound = link.outbound.clone();
                                let stop = stop.clone();
                                tasks.spawn(async move {
                                    tokio::select! {
                                        () = stop.cancelled() => {}
                                        // The asker has its own deadline; a closed stream means that nobody waits.
                                        reply = task::inspect::answer(*inspection) => { let _ = outbound.send((&reply).into()).await; }
                                    }
                                });
                            }
                        }
                        Err(error) => {
                            lost = Some(format!(
                                "the coordinator sent what is no message of this protocol: {error}"
                            ));
                        }
                    },
                    Ok(None) => lost = Some("the coordinator closed the stream".to_owned()),
                    Err(status) => {
                        lost = Some(format!("the stream to the coordinator broke: {}", status.message()));
                    }
                },
                Happening::Dialled(dialled) => match *dialled {
                    Ok(open) => {
                        link = Some(open);
                        if leaving.is_some() {
                            lost = send(&mut link, &heartbeat_message(&budget, true, 0)).err();
                        }
                    }
                    Err(NotIn { reason, leader }) => {
                        if attempt <= 1 && leader.is_none() {
                            tracing::warn!(worker.id = %self.config.id, "cannot reach a coordinator, trying on: {reason}");
                        }
                        attempt += 1;
                        dialling = Box::pin(self.dial(attempt, leader, desk.epochs(), drained));
                    }
                },
            }
            if let Some(reason) = lost {
                tracing::warn!(worker.id = %self.config.id, "{reason}; work goes on, dialling again");
                link = None;
                attempt = attempt.max(1);
                dialling = Box::pin(self.dial(attempt, None, desk.epochs(), drained));
            }
        }
        desk.cancel_all();
        stop.cancel();
        drop(link);
        tasks.close();
        tasks.wait().await;
    }

    /// Opens a stream to the coordinator that is said to lead, or to the next in turn, and introduces this worker, after a pause that grows with the attempt.
    async fn dial(
        &self,
        attempt: usize,
        leader: Option<String>,
        held: Vec<Epoch>,
        drained: bool,
    ) -> Result<Link, NotIn> {
        if attempt > 0 {
            let doubled = FIRST_PAUSE.saturating_mul(1 << attempt.min(8)).min(LONGEST_PAUSE);
            // Spread, so that a fleet does not come back all at once.
            tokio::time::sleep(doubled.mul_f64(rand::random_range(0.5..1.0))).await;
        }
        let in_turn =
            || self.config.coordinators.get(attempt % self.config.coordinators.len().max(1)).cloned();
        let Some(address) = leader.or_else(in_turn) else {
            return Err("no coordinator is configured".to_owned().into());
        };
        let let_in = tokio::time::timeout(DIAL, self.introduce(&address, held, drained)).await;
        let_in.unwrap_or_else(|_| Err(format!("{address}: it does not answer").into()))
    }

    async fn introduce(&self, address: &str, held: Vec<Epoch>, drained: bool) -> Result<Link, NotIn> {
        let introduced = Instant::now();
        let failed = |error: tonic::transport::Error| NotIn::from(format!("{address}: {error}"));
        let channel = Endpoint::from_shared(address.to_owned())
            .map_err(failed)?
            .connect_timeout(DIAL)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(failed)?;
        let (outbound, messages) = mpsc::channel(QUEUE);
        let hello = Hello {
            worker: self.config.id.clone(),
            instance: self.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            max_tasks: self.config.max_tasks,
            memory_budget: self.config.memory_budget,
            held,
            drained,
            labels: self.config.labels.clone(),
        };
        let hello = (&WorkerMessage::Hello(hello)).into();
        outbound.send(hello).await.map_err(|_| "the stream closed".to_owned())?;
        let mut client = WorkerServiceClient::new(channel);
        let answer = client.connect(ReceiverStream::new(messages)).await;
        let inbound = answer.map_err(|status| NotIn {
            reason: format!("{address}: {}", status.message()),
            leader: millrace_api::status::leader(&status),
        })?;
        Ok(Link { introduced, outbound, inbound: inbound.into_inner() })
    }
}

async fn hear(link: &mut Option<Link>) -> Result<Option<wire::ConnectResponse>, tonic::Status> {
    match link {
        Some(link) => link.inbound.message().await,
        None => std::future::pending().await,
    }
}

/// Sends without waiting: a coordinator that takes nothing is one to reconnect to. Without a link nothing is sent; the desk keeps what matters.
fn send(link: &mut Option<Link>, message: &WorkerMessage) -> Result<(), String> {
    let Some(open) = link else { return Ok(()) };
    let sent = open.outbound.try_send(message.into());
    sent.map_err(|error| format!("the coordinator does not take messages: {error}"))
}

fn heartbeat_message(budget: &Budget, draining: bool, number: u64) -> WorkerMessage {
    WorkerMessage::Heartbeat { memory_used: budget.used(), draining, number }
}

/// Starts the task of an assignment; every task ends by saying how, or by being cancelled.
fn begin(
    assignment: Assignment,
    desk: &mut Desk,
    tasks: &TaskTracker,
    shared: &Shared,
    reports: &mpsc::Sender<(Epoch, Report)>,
    stop: &CancellationToken,
) {
    let epoch = assignment.epoch;
    let (cancel, drain) = (stop.child_token(), CancellationToken::new());
    let recorded = Recorded::default();
    let (amend, amendments) = watch::channel(None);
    if !desk.take(epoch, Held::new(cancel.clone(), drain.clone(), recorded.clone(), amend)) {
        tracing::debug!(assignment.epoch = %epoch, "assigned again what is in hand already");
        return;
    }
    let reporter = Reporter::new(epoch, reports.clone());
    let signals = task::Signals { drain, recorded, amendments };
    let shared = shared.clone();
    tasks.spawn(async move {
        let worked = tokio::spawn(task::run(assignment, shared, reporter.clone(), signals, cancel.clone()));
        let guard = AbortOnDrop(worked.abort_handle());
        let report = match worked.await {
            Ok(Ok(Some(outcome))) => Report::Finished(outcome),
            // Cancelled: nobody wants to hear of it.
            Ok(Ok(None)) => return,
            Ok(Err(problems)) => Report::Failed(problems),
            Err(panic) => {
                tracing::error!(assignment.epoch = %epoch, error = %panic, "a task panicked");
                let message = "a task of the worker panicked; this is a fault of Millrace";
                Report::Failed(vec![Problem::transient(
                    "WORKER_FAULT",
                    message,
                    "report it with the worker's log",
                )])
            }
        };
        drop(guard);
        reporter.must_say(report).await;
    });
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
