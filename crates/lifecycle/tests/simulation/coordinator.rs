//! The coordinator, as the real one goes about it: take what came in, plan, store, then tell.

use std::collections::{BTreeMap, BTreeSet};

use millrace_lifecycle::aggregate::{Order, PipeChanges};
use millrace_lifecycle::report::Aftermath;
use millrace_lifecycle::{EventKind, PipeAggregate, PipeRecord, PipeState, Task};
use millrace_model::spec::ReplicationMode;
use millrace_model::work::{Report, TraceContext};
use millrace_model::{Epoch, Labels, Timestamp, WorkerId};
use millrace_scheduler::plan::{Action, HeldTask, Holder, OnLeave, PipeFacts, WantedTask, WorkerFacts, plan};

use crate::worker::{Down, Up};
use crate::world::World;

struct Session {
    connected: bool,
    heard: u64,
    leaving: bool,
}

/// What a coordinator holds in memory.
pub(crate) struct Coordinator {
    pub(crate) up: bool,
    pub(crate) back_at: u64,
    pub(crate) pipe: PipeAggregate,
    sessions: BTreeMap<WorkerId, Session>,
    /// When a task that failed is tried again.
    trouble: BTreeMap<Task, u64>,
    last_streamer: Option<WorkerId>,
    last_epoch: Epoch,
}

impl Coordinator {
    pub(crate) fn new(pipe: PipeAggregate) -> Self {
        Self {
            up: true,
            back_at: 0,
            pipe,
            sessions: BTreeMap::new(),
            trouble: BTreeMap::new(),
            last_streamer: None,
            last_epoch: Epoch(0),
        }
    }
}

impl World {
    pub(crate) fn timestamp(&self) -> Timestamp {
        Timestamp(i64::try_from(self.now).unwrap() * 1_000_000)
    }

    /// One turn of the coordinator.
    pub(crate) fn coordinate(&mut self) {
        if !self.coordinator.up {
            if self.now >= self.coordinator.back_at {
                self.begin_anew();
            }
            return;
        }
        for index in 0..self.workers.len() {
            self.listen(index);
        }
        self.plan();
        self.commit();
    }

    /// The process ends; what was not stored is forgotten, what was not sent is lost.
    pub(crate) fn crash(&mut self) {
        self.log(|_| "the coordinator dies".to_owned());
        self.coordinator.up = false;
        self.coordinator.back_at = self.now + 1 + self.random.below(40);
        self.workers.iter_mut().for_each(|worker| worker.connection = None);
    }

    fn begin_anew(&mut self) {
        let last_epoch = self.store.last_epoch;
        let pipe = Coordinator::new(self.store.restore());
        self.coordinator = Coordinator { last_epoch, back_at: self.now, ..pipe };
        self.log(|_| "the coordinator begins anew".to_owned());
    }

    fn listen(&mut self, index: usize) {
        loop {
            let now = self.now;
            let worker = self.workers[index].id.clone();
            let Some(connection) = &mut self.workers[index].connection else {
                if let Some(session) = self.coordinator.sessions.get_mut(&worker) {
                    session.connected = false;
                }
                return;
            };
            if connection.up.front().is_none_or(|(at, _)| *at > now) {
                return;
            }
            let (_, message) = connection.up.pop_front().unwrap();
            match message {
                Up::Hello(held) => self.connect(index, &held),
                Up::Heartbeat { leaving } => {
                    if let Some(session) = self.coordinator.sessions.get_mut(&worker) {
                        (session.heard, session.leaving) = (now, leaving);
                    }
                }
                Up::Report(epoch, report) => self.take(index, epoch, *report),
            }
        }
    }

    fn connect(&mut self, index: usize, held: &[Epoch]) {
        let (worker, now) = (self.workers[index].id.clone(), self.timestamp());
        let session = Session { connected: true, heard: self.now, leaving: false };
        self.coordinator.sessions.insert(worker.clone(), session);
        let pipe = &mut self.coordinator.pipe;
        let of_worker = pipe.assignments().filter(|assignment| assignment.worker == worker);
        let standing: Vec<Epoch> = of_worker.map(|assignment| assignment.epoch).collect();
        let (keep, lost): (Vec<Epoch>, Vec<Epoch>) =
            standing.into_iter().partition(|epoch| held.contains(epoch));
        lost.into_iter().for_each(|epoch| pipe.withdraw(epoch, now));
        let draining = pipe.assignments().filter(|held| held.worker == worker && held.draining);
        let draining: Vec<Epoch> = draining.map(|held| held.epoch).collect();
        if pipe.assignments().any(|held| held.worker == worker && held.task == Task::Stream) {
            pipe.repeat_amendment();
        }
        self.tell(index, Down::Welcome(keep));
        draining.into_iter().for_each(|epoch| self.tell(index, Down::Order(Order::Drain(epoch))));
    }

    fn tell(&mut self, index: usize, message: Down) {
        let at = self.now + self.random.below(self.delay);
        if let Some(connection) = &mut self.workers[index].connection {
            connection.down.push_back((at, message));
        }
    }

    fn take(&mut self, index: usize, epoch: Epoch, report: Report) {
        let (worker, now) = (self.workers[index].id.clone(), self.timestamp());
        if let Some(session) = self.coordinator.sessions.get_mut(&worker) {
            session.heard = self.now;
        }
        let coordinator = &mut self.coordinator;
        if let Report::Progress(millrace_model::work::Progress::Stream(_)) = &report {
            coordinator.last_streamer = Some(worker.clone());
        }
        let task = coordinator.pipe.assignment(epoch).map(|held| held.task.clone());
        let copied = matches!(report, Report::Finished(millrace_model::work::Outcome::Copied { .. }));
        match coordinator.pipe.report(&worker, epoch, report, now) {
            Err(_) => self.tell(index, Down::Order(Order::Revoke(epoch))),
            Ok(Aftermath::Fine) => {
                if let Some(task) = task {
                    coordinator.trouble.remove(&task);
                    if let (true, Task::Copy { table, partition, .. }) = (copied, task) {
                        self.copied_now.insert((table, partition));
                    }
                }
            }
            Ok(Aftermath::TryAgain(task, _)) => {
                coordinator.trouble.insert(task, self.now + 1 + self.random.below(20));
            }
        }
    }

    fn plan(&mut self) {
        let (now, time) = (self.now, self.timestamp());
        let coordinator = &self.coordinator;
        let mode = coordinator.pipe.pipe().spec.mode;
        let wanted = coordinator.pipe.wanted();
        assert_eq!(
            wanted.iter().collect::<BTreeSet<_>>().len(),
            wanted.len(),
            "a task is called for twice: {wanted:?}"
        );
        let holder = |worker: &WorkerId| match coordinator.sessions.get(worker) {
            Some(session) if session.heard + self.lease < now => Holder::Lost,
            Some(session) if session.leaving => Holder::Leaving,
            Some(_) => Holder::Present,
            // A coordinator that began anew gives everybody a lease.
            None if coordinator.back_at + self.lease < now => Holder::Lost,
            None => Holder::Present,
        };
        let facts = PipeFacts {
            pipe: coordinator.pipe.pipe().id.clone(),
            source: "source".to_owned(),
            source_connections: 8,
            selector: Labels::default(),
            wanted: wanted
                .into_iter()
                .map(|task| WantedTask {
                    takes_slot: task.takes_slot(),
                    counts_against_source: matches!(task, Task::Copy { .. }),
                    due: coordinator.trouble.get(&task).is_none_or(|due| *due <= now),
                    prefers: coordinator.last_streamer.clone().filter(|_| task == Task::Stream),
                    task,
                })
                .collect(),
            held: coordinator
                .pipe
                .assignments()
                .map(|held| HeldTask {
                    epoch: held.epoch,
                    task: held.task.clone(),
                    holder: holder(&held.worker),
                    draining: held.draining,
                    on_leave: match held.task {
                        Task::Stream => OnLeave::Drain,
                        Task::Snapshot { .. } if mode == ReplicationMode::Cdc => OnLeave::HandBack,
                        _ => OnLeave::Finish,
                    },
                    counts_against_source: matches!(held.task, Task::Copy { .. }),
                })
                .collect(),
        };
        let tasks = |worker: &WorkerId| {
            let held = coordinator.pipe.assignments();
            let copies = held.filter(|held| &held.worker == worker && held.task.takes_slot()).count();
            u32::try_from(copies).unwrap()
        };
        let connected = coordinator
            .sessions
            .iter()
            .filter(|(_, session)| session.connected && session.heard + self.lease >= now);
        let workers: Vec<WorkerFacts> = connected
            .map(|(id, session)| WorkerFacts {
                id: id.clone(),
                max_tasks: 2,
                tasks: tasks(id),
                lasting: 0,
                draining: session.leaving,
                labels: Labels::default(),
            })
            .collect();
        for action in plan(&[facts], &workers, &BTreeMap::new()).actions {
            let coordinator = &mut self.coordinator;
            match &action {
                Action::Assign { task, worker, .. } => {
                    coordinator.last_epoch = coordinator.last_epoch.next();
                    let epoch = coordinator.last_epoch;
                    let given = coordinator.pipe.assign(
                        epoch,
                        task.clone(),
                        worker.clone(),
                        TraceContext::new(),
                        time,
                    );
                    if given.is_some() {
                        self.log(|_| format!("{epoch}: {action}"));
                    }
                }
                Action::Withdraw { epoch, .. } => {
                    coordinator.pipe.withdraw(*epoch, time);
                    self.log(|_| action.to_string());
                }
                Action::Drain { epoch, .. } => coordinator.pipe.drain(*epoch),
                Action::Wait { .. } => {}
            }
        }
    }

    /// Stores what was decided, then tells it; a crash may come before or in between.
    pub(crate) fn commit(&mut self) {
        let changes = self.coordinator.pipe.take_changes();
        let copied = std::mem::take(&mut self.copied_now);
        if let Some(changes) = changes {
            if self.faults && self.random.chance(4) {
                return self.crash();
            }
            self.check_changes(&changes);
            let removed = changes.removed;
            for event in &changes.events {
                self.log(|_| format!("{}: {} ({:?})", event.actor, event.message, event.kind));
            }
            self.store.commit(changes, self.coordinator.last_epoch);
            self.copied.extend(copied);
            if removed {
                self.removed = true;
                return;
            }
            self.check_store();
            if self.faults && self.random.chance(4) {
                return self.crash();
            }
        }
        for (worker, order) in self.coordinator.pipe.take_orders() {
            if let Order::Assign(assignment) = &order {
                self.check_assignment(assignment);
            }
            let index = self.workers.iter().position(|found| found.id == worker).unwrap();
            self.tell(index, Down::Order(order));
        }
    }

    fn check_changes(&mut self, changes: &PipeChanges) {
        let before = self.store.pipe.as_ref();
        let (mut state, mut event) = before.map_or((None, 0), |pipe| (Some(pipe.state), pipe.last_event));
        for record in &changes.events {
            event += 1;
            assert_eq!(record.id, event, "an event is missing from the history");
            if let EventKind::State { from, to } = &record.kind {
                assert_eq!(*from, state, "the history leaves a state out");
                assert!(
                    from.is_none_or(|from| LEGAL.contains(&(from, *to))),
                    "{from:?} to {to} is not a transition of the life cycle"
                );
                state = Some(*to);
            }
        }
        let after = changes.pipe.as_ref().or(before).unwrap();
        assert_eq!(Some(after.state), state, "the state changed without an entry in the history");
        assert_eq!(after.state == PipeState::Failed, after.failure.is_some(), "a failure without a reason");
    }

    fn check_store(&mut self) {
        let mut tasks = BTreeSet::new();
        for held in self.store.assignments.values() {
            assert!(tasks.insert(&held.task), "{} has two owners", held.task);
        }
        let stored = self.store.restore();
        let durable = self.coordinator.pipe.pipe().durable;
        let stored_pipe = PipeRecord { durable, ..stored.pipe().clone() };
        assert_eq!(&stored_pipe, self.coordinator.pipe.pipe(), "a change of the pipe was not stored");
        let parts = |pipe: &PipeAggregate| {
            let tables: Vec<_> =
                pipe.tables().map(|table| (table.record.clone(), table.partitions.clone())).collect();
            (tables, pipe.assignments().cloned().collect::<Vec<_>>())
        };
        assert_eq!(parts(&stored), parts(&self.coordinator.pipe), "a change was not stored");
        self.check_tables();
    }
}

/// The legal transitions, written down once more so that a slip in the table of transitions is noticed.
const LEGAL: [(PipeState, PipeState); 41] = {
    use PipeState as S;
    [
        (S::Provisioning, S::Setup),
        (S::Provisioning, S::Failed),
        (S::Setup, S::Snapshot),
        (S::Setup, S::Running),
        (S::Setup, S::Failed),
        (S::Snapshot, S::Running),
        (S::Snapshot, S::Completed),
        (S::Snapshot, S::Resync),
        (S::Snapshot, S::Pausing),
        (S::Snapshot, S::Modifying),
        (S::Snapshot, S::Failed),
        (S::Running, S::Pausing),
        (S::Running, S::Snapshot),
        (S::Running, S::Modifying),
        (S::Running, S::Setup),
        (S::Running, S::Failed),
        (S::Pausing, S::Paused),
        (S::Pausing, S::Failed),
        (S::Paused, S::Running),
        (S::Paused, S::Snapshot),
        (S::Paused, S::Modifying),
        (S::Paused, S::Setup),
        (S::Paused, S::Failed),
        (S::Modifying, S::Running),
        (S::Modifying, S::Paused),
        (S::Modifying, S::Snapshot),
        (S::Modifying, S::Completed),
        (S::Modifying, S::Failed),
        (S::Resync, S::Running),
        (S::Resync, S::Completed),
        (S::Resync, S::Paused),
        (S::Resync, S::Failed),
        (S::Completed, S::Setup),
        (S::Completed, S::Snapshot),
        (S::Completed, S::Modifying),
        (S::Failed, S::Setup),
        (S::Failed, S::Provisioning),
        (S::Failed, S::Snapshot),
        (S::Failed, S::Running),
        (S::Failed, S::Modifying),
        (S::Failed, S::Resync),
    ]
};
