//! The one task that owns all state.
//!
//! A turn of its loop: take what has come in; notice leases that ended; plan for every pipe that something happened to; commit all changes in one
//! transaction; then, and only then, and only while the lease holds, answer callers and tell workers; publish what can be read. A failed commit ends the
//! reconciler; the next one loads the pipes anew, so that memory never runs ahead of the catalog.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use millrace_api::edit::{merge, with_snapshot_settings};
use millrace_api::worker::{CoordinatorMessage, InspectionSubject, WorkerMessage};
use millrace_catalog::{Catalog, CatalogError};
use millrace_lifecycle::aggregate::Order;
use millrace_lifecycle::report::Aftermath;
use millrace_lifecycle::{Actor, AssignmentRecord, PipeAggregate, PipeChanges, Task};
use millrace_model::work::{Hello, Report, SlotHealth, TraceContext};
use millrace_model::{Epoch, Labels, PipeId, PipeSpec, Problem, Term, Timestamp, WorkerId};
use millrace_scheduler::plan::{Action, plan};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::directory::{Directory, PipeView};
use crate::facts;
use crate::input::{ConnectRefusal, Created, Edit, Edited, Input, Rejection, Wish};
use crate::inspection::Inspections;
use crate::leadership::Hold;
use crate::memory::Memory;
use crate::refused::Refused;
use crate::session::{SessionId, Sessions};
use crate::view;

/// Inputs that are taken into one turn at most, so that callers of the first do not wait for a flood behind it.
const INPUTS_PER_TURN: usize = 512;

/// Pipes that are planned for in one turn at most; where all are to be placed at once, others get their turns in between.
const PIPES_PER_TURN: usize = 1000;

/// How often leases, retries and waiting work are looked at when nothing comes in.
const TICK: Duration = Duration::from_millis(200);

/// How often the durable positions of streams are stored.
const STORE_POSITIONS: Duration = Duration::from_secs(10);

/// How often a pipe's slot is looked at.
const LOOK_AT_SLOT: Duration = Duration::from_secs(15);

/// How workers and coordinator keep in touch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rhythm {
    pub(crate) heartbeat: Duration,
    pub(crate) lease: Duration,
}

struct Pipe {
    aggregate: PipeAggregate,
    memory: Memory,
}

/// What is done once the turn's decisions are stored.
type Afterwards = Box<dyn FnOnce(&BTreeMap<PipeId, Pipe>, Result<(), &CatalogError>) + Send>;

/// Why a reconciler decides nothing any more.
pub(crate) enum Ended {
    /// It was asked to stop. What was decided by then is stored.
    Stopped,
    /// The catalog did not take a decision, or may not have: only loading tells.
    Catalog(CatalogError),
}

/// Owns all pipes and sessions.
pub(crate) struct Reconciler<C> {
    catalog: C,
    term: Term,
    hold: Hold,
    rhythm: Rhythm,
    directory: Directory,
    pipes: BTreeMap<PipeId, Pipe>,
    names: BTreeMap<String, PipeId>,
    /// The pipe of each standing assignment.
    owners: BTreeMap<Epoch, PipeId>,
    sessions: Sessions,
    inspections: Inspections,
    last_epoch: Epoch,
    /// Pipes that something happened to since they were planned for.
    dirty: BTreeSet<PipeId>,
    /// Pipes that are stored as they are, and wait for another turn to be planned for.
    deferred: BTreeSet<PipeId>,
    /// The last one that was chosen of more than one turn plans for.
    planned_last: Option<PipeId>,
    /// The last one whose slot was asked for.
    slots_seen_to: Option<PipeId>,
    /// Workers came, went, or are drained since the list of them was published.
    workers_changed: bool,
    /// Pipes whose view is out of date, though nothing of them was stored.
    stale_views: BTreeSet<PipeId>,
    /// Pipes that wait for a worker or a connection to come free.
    waiting: BTreeSet<PipeId>,
    afterwards: Vec<Afterwards>,
    positions_stored: Instant,
}

impl<C: Catalog> Reconciler<C> {
    /// Takes over what the catalog holds, to lead in this term.
    pub(crate) async fn load(
        catalog: C,
        term: Term,
        hold: Hold,
        rhythm: Rhythm,
        directory: Directory,
    ) -> Result<Self, millrace_catalog::CatalogError> {
        let stored = catalog.load().await?;
        let mut reconciler = Self {
            catalog,
            term,
            hold,
            rhythm,
            directory,
            pipes: BTreeMap::new(),
            names: BTreeMap::new(),
            owners: BTreeMap::new(),
            sessions: Sessions::new(rhythm.lease),
            inspections: Inspections::default(),
            last_epoch: stored.last_epoch,
            dirty: BTreeSet::new(),
            deferred: BTreeSet::new(),
            planned_last: None,
            slots_seen_to: None,
            workers_changed: true,
            stale_views: BTreeSet::new(),
            waiting: BTreeSet::new(),
            afterwards: Vec::new(),
            positions_stored: Instant::now(),
        };
        for aggregate in stored.pipes {
            let id = aggregate.pipe().id.clone();
            reconciler.names.insert(aggregate.pipe().spec.name.as_str().to_owned(), id.clone());
            let standing = aggregate.assignments().map(|held| (held.epoch, id.clone()));
            reconciler.owners.extend(standing);
            reconciler.dirty.insert(id.clone());
            reconciler.pipes.insert(id, Pipe { aggregate, memory: Memory::default() });
        }
        reconciler.publish(&reconciler.pipes.keys().cloned().collect());
        reconciler.publish_workers();
        Ok(reconciler)
    }

    /// Runs until cancelled, or until the catalog fails.
    pub(crate) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        cancelled: CancellationToken,
    ) -> Ended {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        // Inputs that came before the time was up, and are still to be taken before leases are looked at.
        let mut ahead: Option<usize> = None;
        loop {
            let input = tokio::select! {
                biased;
                // 1. Leaving comes first: everything decided is stored already.
                () = cancelled.cancelled() => return Ended::Stopped,
                // 2. What came in.
                input = inputs.recv() => match input {
                    Some(input) => Some(input),
                    None => return Ended::Stopped,
                },
                // 3. What was left for another turn.
                () = std::future::ready(()), if !self.deferred.is_empty() => None,
                // 4. Time passes.
                _ = tick.tick() => None,
            };
            // Some things are answered at once, which is not for this coordinator to do while it may not lead any more.
            if !self.hold.stands() {
                tokio::select! {
                    () = cancelled.cancelled() => return Ended::Stopped,
                    () = self.hold.wait() => {}
                }
            }
            let mut taken = usize::from(input.is_some());
            if let Some(input) = input {
                self.take(input);
            }
            while taken < INPUTS_PER_TURN {
                let Ok(input) = inputs.try_recv() else { break };
                self.take(input);
                taken += 1;
            }
            // Signs of life that wait to be taken count before anybody's lease is found to have ended; those that come later do not put it off.
            ahead = match ahead {
                Some(ahead) => Some(ahead.saturating_sub(taken)),
                None => (looked.elapsed() >= TICK).then(|| inputs.len()),
            };
            if ahead == Some(0) {
                (looked, ahead) = (Instant::now(), None);
                self.time_passed();
            }
            if let Err(ended) = self.turn(&cancelled).await {
                return ended;
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Create { spec, trace, reply } => self.create(*spec, trace, reply),
            Input::Command { name, wish, trace, reply } => match self.carry_out(&name, wish, trace) {
                Ok(id) => self.reply_with_view(id, reply, |view| view),
                Err(rejection) => answer(reply, Err(rejection)),
            },
            Input::Edit { edit, trace, reply } => match self.edit(&edit, trace) {
                Ok((id, differences)) => {
                    self.reply_with_view(id, reply, |pipe| Edited { pipe, differences });
                }
                Err(rejection) => answer(reply, Err(rejection)),
            },
            Input::DrainWorker { worker, undo, reply } => {
                let known = self.sessions.drain(&worker, undo);
                self.workers_changed = true;
                if known {
                    tracing::info!(worker.id = %worker, undo, "a user drains the worker, or undoes that");
                    self.touch_holders(&worker);
                    self.wake_waiting();
                }
                let tasks = self.pipes.values().flat_map(|pipe| pipe.aggregate.assignments());
                let tasks =
                    u32::try_from(tasks.filter(|held| held.worker == worker).count()).unwrap_or(u32::MAX);
                answer(reply, view::worker(&self.sessions, &worker, tasks));
            }
            Input::Connected { hello, outbound, reply } => self.connect(hello, outbound, reply),
            Input::Message { session, message, room: _room } => self.message(session, *message),
            Input::Disconnected { session } => {
                if let Some(worker) = self.sessions.disconnect(session) {
                    self.workers_changed = true;
                    tracing::info!(worker.id = %worker, "worker disconnected");
                    self.inspections.abandon(&worker);
                }
            }
            Input::Merge { edit, reply } => answer(reply, self.merged(&edit)),
            Input::Inspect { request, reply } => {
                let selector = match &request.subject {
                    InspectionSubject::Pipe(spec) => spec.settings.worker_selector.clone(),
                    InspectionSubject::Source(_) | InspectionSubject::Slot(..) => Labels::default(),
                };
                if let Some((worker, message)) =
                    self.inspections.begin(request, reply, self.sessions.any_connected(&selector))
                {
                    self.sessions.send(&worker, message);
                }
            }
        }
    }

    /// The pipe of a name, about to hear what a user wants.
    fn named(&mut self, name: &str) -> Result<(PipeId, &mut Pipe), Rejection> {
        let id = self.names.get(name).cloned();
        let pipe = id.as_ref().and_then(|id| self.pipes.get_mut(id));
        id.zip(pipe).ok_or_else(|| Rejection::NotFound(name.to_owned()))
    }

    fn carry_out(&mut self, name: &str, wish: Wish, trace: TraceContext) -> Result<PipeId, Rejection> {
        let (id, pipe) = self.named(name)?;
        let aggregate = &mut pipe.aggregate;
        let done = match wish {
            Wish::Pause => aggregate.pause(now()),
            Wish::Resume => aggregate.resume(now()),
            Wish::Retry(table) => aggregate.retry(&table, now()),
            Wish::Verify(tables) => aggregate.verify(&tables, now()),
            Wish::Delete { drop_tables } => aggregate.delete(drop_tables, now()),
            Wish::Resync { tables, settings } => {
                let spec = aggregate.pipe().spec.clone();
                let spec = match settings {
                    Some(settings) => with_snapshot_settings(&spec, &settings).map_err(Rejection::Invalid)?,
                    None => spec,
                };
                aggregate.resync_with(spec, &tables, now())
            }
        };
        done.map_err(|refusal| Rejection::Refused { name: name.to_owned(), refusal })?;
        pipe.memory.begin_anew(trace);
        self.touch(&id);
        Ok(id)
    }

    /// The specification that an edit would lead to, secrets included, and the present one.
    fn merged(&mut self, edit: &Edit) -> Result<(PipeSpec, PipeSpec), Rejection> {
        let (_, pipe) = self.named(edit.spec.name.as_str())?;
        let present = pipe.aggregate.pipe().spec.clone();
        let merged = merge(&present, &edit.spec, &edit.mask).map_err(Rejection::Invalid)?;
        Ok((merged, present))
    }

    fn edit(&mut self, edit: &Edit, trace: TraceContext) -> Result<(PipeId, Vec<String>), Rejection> {
        let name = edit.spec.name.as_str().to_owned();
        let (id, pipe) = self.named(&name)?;
        let record = pipe.aggregate.pipe();
        if !edit.etag.is_empty() && edit.etag != view::etag(record) {
            return Err(Rejection::EditedMeanwhile(name));
        }
        let spec = merge(&record.spec, &edit.spec, &edit.mask).map_err(Rejection::Invalid)?;
        let refused = |refusal| Rejection::Refused { name: name.clone(), refusal };
        let difference = if edit.dry_run {
            // What an edit would be refused for, it is refused for here too.
            pipe.aggregate.clone().edit(spec, edit.resync, now()).map_err(refused)?
        } else {
            pipe.aggregate.edit(spec, edit.resync, now()).map_err(refused)?
        };
        if !difference.is_empty() && !edit.dry_run {
            pipe.memory.begin_anew(trace);
            self.touch(&id);
        }
        Ok((id, difference.in_words()))
    }

    fn create(
        &mut self,
        spec: PipeSpec,
        trace: TraceContext,
        reply: oneshot::Sender<Result<Created, Rejection>>,
    ) {
        let name = spec.name.as_str().to_owned();
        if let Some(id) = self.names.get(&name).cloned() {
            let same = self.pipes.get(&id).is_some_and(|pipe| pipe.aggregate.pipe().spec == spec);
            return if same {
                self.reply_with_view(id, reply, |pipe| Created { pipe, created: false });
            } else {
                answer(reply, Err(Rejection::Differs(name)));
            };
        }
        let id = loop {
            let id = PipeId::from_random(rand::random());
            if !self.pipes.contains_key(&id) {
                break id;
            }
        };
        tracing::info!(pipe.id = %id, pipe.name = %name, "pipe created");
        let aggregate = PipeAggregate::create(id.clone(), spec, now());
        self.names.insert(name, id.clone());
        self.pipes.insert(id.clone(), Pipe { aggregate, memory: Memory { trace, ..Memory::default() } });
        self.touch(&id);
        self.reply_with_view(id, reply, |pipe| Created { pipe, created: true });
    }

    /// Answers with the pipe as it is after this turn, once that is stored.
    fn reply_with_view<T: Send + 'static>(
        &mut self,
        id: PipeId,
        reply: oneshot::Sender<Result<T, Rejection>>,
        shape: impl FnOnce(Arc<PipeView>) -> T + Send + 'static,
    ) {
        self.afterwards.push(Box::new(move |pipes, stored| {
            let result = match (stored, pipes.get(&id)) {
                (Ok(()), Some(pipe)) => Ok(shape(Arc::new(view::pipe_view(&pipe.aggregate, &pipe.memory)))),
                (Ok(()), None) => Err(Rejection::NotFound(id.to_string())),
                (Err(CatalogError::Deposed { .. }), _) => Err(Rejection::Deposed),
                (Err(error), _) => Err(Rejection::Storage(error.to_string())),
            };
            answer(reply, result);
        }));
    }

    /// Lets a worker in and makes both sides agree: what it holds and the catalog names stands, everything else is stopped or placed anew.
    fn connect(
        &mut self,
        hello: Hello,
        outbound: mpsc::Sender<CoordinatorMessage>,
        reply: oneshot::Sender<Result<SessionId, ConnectRefusal>>,
    ) {
        if self.sessions.id_is_taken(&hello) {
            let _ = reply.send(Err(ConnectRefusal::IdTaken(hello.worker.to_string())));
            return;
        }
        let id = hello.worker.clone();
        let held: BTreeSet<Epoch> = hello.held.iter().copied().collect();
        let mut keep = Vec::new();
        for (pipe_id, pipe) in &mut self.pipes {
            let of_worker = pipe.aggregate.assignments().filter(|assignment| assignment.worker == id);
            let standing: Vec<Epoch> = of_worker.map(|assignment| assignment.epoch).collect();
            for epoch in standing {
                if held.contains(&epoch) {
                    keep.push(epoch);
                } else {
                    // It never heard of it, or forgot it with its last process.
                    pipe.aggregate.withdraw(epoch, now());
                }
                self.dirty.insert(pipe_id.clone());
            }
        }
        tracing::info!(worker.id = %id, held = held.len(), kept = keep.len(), "worker connected");
        let session = self.sessions.connect(hello, outbound, now());
        self.workers_changed = true;
        let welcome = CoordinatorMessage::Welcome {
            heartbeat_interval: self.rhythm.heartbeat,
            lease: self.rhythm.lease,
            keep,
            term: self.term,
        };
        self.sessions.send(&id, welcome);
        self.sessions.send(&id, CoordinatorMessage::SetDrained(self.sessions.is_drained(&id)));
        // Draining assignments hear of it again: the order may have been lost with the connection.
        for pipe in self.pipes.values_mut() {
            let holds = |held: &&AssignmentRecord| held.worker == id;
            for assignment in pipe.aggregate.assignments().filter(holds).filter(|held| held.draining) {
                self.sessions.send(&id, CoordinatorMessage::Drain(assignment.epoch));
            }
            // So may what its stream was to do differently; the order goes with this turn, as the pipe is touched.
            if pipe.aggregate.assignments().any(|held| held.worker == id && held.task == Task::Stream) {
                pipe.aggregate.repeat_amendment();
            }
        }
        self.wake_waiting();
        let _ = reply.send(Ok(session));
    }

    fn message(&mut self, session: SessionId, message: WorkerMessage) {
        let Some(worker_id) = self.sessions.worker_of(session).cloned() else { return };
        let Some(worker) = self.sessions.heard(session, now()) else { return };
        match message {
            WorkerMessage::Heartbeat { memory_used, draining, number } => {
                worker.memory_used = memory_used;
                if draining && !worker.leaving {
                    tracing::info!(worker.id = %worker_id, "worker is leaving");
                    worker.leaving = true;
                    self.touch_holders(&worker_id);
                }
                if number != 0 {
                    self.sessions.send(&worker_id, CoordinatorMessage::Heard(number));
                }
            }
            WorkerMessage::Report { epoch, report } => self.report(&worker_id, epoch, report),
            WorkerMessage::InspectReply { request_id, problems, tables, slot } => {
                if let Some(id) = self.inspections.answered_slot(&worker_id, request_id) {
                    if problems.is_empty() {
                        self.slot_seen(id, slot);
                    }
                } else if !self.inspections.answer(&worker_id, request_id, problems, tables) {
                    Refused::Unasked.count();
                }
            }
            WorkerMessage::Hello(_) => {
                Refused::OutOfTurn.count();
                tracing::warn!(worker.id = %worker_id, "worker introduced itself twice; its session is closed");
                self.sessions.disconnect(session);
            }
        }
    }

    fn report(&mut self, worker: &WorkerId, epoch: Epoch, report: Report) {
        let owner = self.owners.get(&epoch).and_then(|id| self.pipes.get_mut(id));
        let standing =
            owner.and_then(|pipe| pipe.aggregate.assignment(epoch).cloned().map(|held| (pipe, held)));
        let Some((pipe, held)) = standing.filter(|(_, held)| &held.worker == worker) else {
            let refused = if self.owners.contains_key(&epoch) { Refused::NotItsOwn } else { Refused::Stale };
            refused.count();
            tracing::debug!(worker.id = %worker, assignment.epoch = %epoch, reason = %refused, "report of an assignment that does not stand with this worker");
            self.sessions.send(worker, CoordinatorMessage::Revoke(epoch));
            return;
        };
        let id = pipe.aggregate.pipe().id.clone();
        let progress = match &report {
            Report::Progress(progress) => Some(progress.clone()),
            _ => None,
        };
        let revision = pipe.aggregate.pipe().last_event;
        let followed = pipe.aggregate.followed_revision();
        let outcome = pipe.aggregate.report(worker, epoch, report, now());
        let pipe_decided =
            pipe.aggregate.pipe().last_event != revision || pipe.aggregate.followed_revision() != followed;
        let mut decided_nothing = false;
        if outcome.is_ok() {
            decided_nothing = pipe.memory.takes(worker, epoch, progress, now()) && !pipe_decided;
        }
        match outcome {
            // What was called off in this very turn may still be spoken of; the plan takes it back.
            Err(stale) if !pipe.aggregate.wanted().contains(&held.task) => {
                Refused::Stale.count();
                tracing::debug!(worker.id = %worker, pipe.id = %id, "{stale}");
            }
            Err(stale) => {
                Refused::Impossible.count();
                tracing::warn!(worker.id = %worker, pipe.id = %id, assignment.epoch = %epoch, "refused a report that does not fit its assignment: {stale}");
                // What its worker does now is anybody's guess: it is stopped, and the work is given out anew after a while.
                let problem = Problem::transient(
                    "WORKER_FAULT",
                    format!("worker '{worker}' said of {} what cannot be said of it", held.task),
                    "see the worker's log, and whether it is a worker of Millrace",
                );
                pipe.aggregate.withdraw(epoch, now());
                pipe.memory.copies.remove(&epoch);
                if pipe.memory.fails(held.task, problem.clone(), now()) {
                    pipe.aggregate.note_problem(problem, Actor::Worker(worker.clone()), now());
                }
            }
            Ok(Aftermath::Fine) => {
                if pipe.memory.succeeds(&held.task) {
                    let task = held.task;
                    pipe.aggregate.note(format!("{task} works again"), Actor::Worker(worker.clone()), now());
                }
            }
            Ok(Aftermath::TryAgain(task, problem)) => {
                tracing::warn!(worker.id = %worker, pipe.id = %id, assignment.epoch = %epoch, task = %task, %problem, "will be tried again");
                if pipe.memory.fails(task, problem.clone(), now()) {
                    pipe.aggregate.note_problem(problem, Actor::Worker(worker.clone()), now());
                }
            }
        }
        // Most reports of progress decide nothing, and nothing has to be planned for them.
        if decided_nothing {
            self.stale_views.insert(id);
        } else {
            self.touch(&id);
            self.wake_waiting();
        }
    }

    /// Has slots looked at whose turn it is, whether or not anything flows: a pipe that rests is the one whose slot fills. Where they are more than can be asked for at a time, it goes on
    /// behind the last one, so that none is left out. The worker that streams, or did last, reaches the source.
    fn look_at_slots(&mut self) {
        let due = |pipe: &Pipe| {
            let asked = pipe.memory.slot_asked;
            pipe.aggregate.pipe().slot.is_some() && asked.is_none_or(|asked| asked.elapsed() >= LOOK_AT_SLOT)
        };
        let ids = self.pipes.iter().filter(|(_, pipe)| due(pipe)).map(|(id, _)| id.clone()).collect();
        for id in in_turn(&ids, self.slots_seen_to.as_ref(), self.inspections.room_for_slots()) {
            let Some(pipe) = self.pipes.get_mut(&id) else { continue };
            let record = pipe.aggregate.pipe();
            let Some(slot) = &record.slot else { continue };
            let selector = &record.spec.settings.worker_selector;
            let streamer = pipe.memory.last_streamer.as_ref();
            let fits = streamer.filter(|worker| self.sessions.is_connected(worker, selector));
            let Some(worker) = fits.or_else(|| self.sessions.any_connected(selector)).cloned() else {
                continue;
            };
            let subject = InspectionSubject::Slot(record.spec.source.clone(), slot.name.clone());
            let message = self.inspections.begin_slot(id.clone(), subject, &worker);
            self.sessions.send(&worker, message);
            pipe.memory.slot_asked = Some(Instant::now());
            self.slots_seen_to = Some(id);
        }
    }

    /// Keeps what was seen of a pipe's slot. What could not be seen leaves what was seen before, which grows old.
    fn slot_seen(&mut self, id: PipeId, slot: Option<SlotHealth>) {
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.memory.sees_slot(slot, now());
            self.stale_views.insert(id);
        }
    }

    fn time_passed(&mut self) {
        self.workers_changed = true;
        for worker in self.sessions.expire() {
            self.inspections.abandon(&worker);
        }
        self.look_at_slots();
        let mut due = Vec::new();
        for (id, pipe) in &self.pipes {
            let lost = pipe.aggregate.assignments().any(|held| self.sessions.is_lost(&held.worker));
            if lost || pipe.memory.trouble.values().any(|trouble| trouble.due()) {
                due.push(id.clone());
            }
        }
        self.dirty.extend(due);
        if self.positions_stored.elapsed() >= STORE_POSITIONS {
            self.positions_stored = Instant::now();
            for (id, pipe) in &mut self.pipes {
                if pipe.aggregate.assignments().any(|held| held.task == Task::Stream) {
                    pipe.aggregate.store_position();
                    self.stale_views.insert(id.clone());
                    if pipe.aggregate.verify_by_schedule(now()) {
                        self.dirty.insert(id.clone());
                    }
                }
            }
        }
    }

    /// Plans for what was touched, stores what was decided, then tells everybody, unless it may not be for this coordinator to tell.
    async fn turn(&mut self, cancelled: &CancellationToken) -> Result<(), Ended> {
        let began = Instant::now();
        let mut touched = std::mem::take(&mut self.dirty);
        self.deferred.extend(touched.iter().cloned());
        let mut chosen = self.choose();
        let planned = chosen.len();
        let unsettled = self.plan(&chosen);
        let planning = began.elapsed();
        touched.append(&mut chosen);
        touched.append(&mut self.stale_views);
        // The next tick plans for them.
        self.dirty = unsettled;
        let mut batch: Vec<(PipeId, PipeChanges)> = Vec::new();
        for id in &touched {
            if let Some(changes) = self.pipes.get_mut(id).and_then(|pipe| pipe.aggregate.take_changes()) {
                for epoch in &changes.withdrawn {
                    self.owners.remove(epoch);
                }
                batch.push((id.clone(), changes));
            }
        }
        let removed: BTreeMap<PipeId, PipeChanges> =
            batch.iter().filter(|(_, changes)| changes.removed).cloned().collect();
        let (stored, storing) = (batch.len(), Instant::now());
        if !batch.is_empty() {
            let stored = self.catalog.commit(self.term, batch, self.last_epoch).await;
            if let Err(error) = stored {
                for afterwards in std::mem::take(&mut self.afterwards) {
                    afterwards(&self.pipes, Err(&error));
                }
                return Err(Ended::Catalog(error));
            }
        }
        let storing = storing.elapsed();
        if !self.hold.stands() {
            tokio::select! {
                // Those who wait for an answer learn that there is none.
                () = cancelled.cancelled() => return Err(Ended::Stopped),
                () = self.hold.wait() => {}
            }
        }
        for afterwards in std::mem::take(&mut self.afterwards) {
            afterwards(&self.pipes, Ok(()));
        }
        for id in &touched {
            let orders = self.pipes.get_mut(id).map(|pipe| pipe.aggregate.take_orders()).unwrap_or_default();
            for (worker, order) in orders {
                self.sessions.send(&worker, message(order));
            }
        }
        self.publish(&touched);
        if std::mem::take(&mut self.workers_changed) {
            self.publish_workers();
        }
        for (id, changes) in removed {
            if let Some(pipe) = self.pipes.remove(&id) {
                let name = pipe.aggregate.pipe().spec.name.as_str();
                self.names.remove(name);
                let mut view = view::pipe_view(&pipe.aggregate, &pipe.memory);
                view.farewell = Some(changes.events);
                self.directory.publish(name, Arc::new(view));
            }
        }
        // What `cargo xtask bench --case fleet` reads.
        tracing::debug!(
            target: "millrace_coordinator::turn",
            planned,
            plan_us = planning.as_micros(),
            stored,
            store_us = storing.as_micros(),
            turn_us = began.elapsed().as_micros(),
        );
        Ok(())
    }

    /// Takes the pipes of one turn from those that wait to be planned for, and goes on behind the last ones, so that nobody is passed over for ever.
    fn choose(&mut self) -> BTreeSet<PipeId> {
        if self.deferred.len() <= PIPES_PER_TURN {
            return std::mem::take(&mut self.deferred);
        }
        let chosen = in_turn(&self.deferred, self.planned_last.as_ref(), PIPES_PER_TURN);
        self.planned_last = chosen.last().cloned();
        let chosen = chosen.into_iter().collect();
        self.deferred.retain(|id| !BTreeSet::contains(&chosen, id));
        chosen
    }

    /// Gives out and takes back. What is planned follows from what was wanted before: the pipes of which something was taken back, or that did not take what was planned for them,
    /// may want something else now, and must be planned for again.
    fn plan(&mut self, chosen: &BTreeSet<PipeId>) -> BTreeSet<PipeId> {
        if chosen.is_empty() {
            return BTreeSet::new();
        }
        for id in chosen {
            self.waiting.remove(id);
            let Some(Pipe { aggregate, memory }) = self.pipes.get_mut(id) else { continue };
            memory.waiting = None;
            if !memory.trouble.is_empty() {
                // What is no longer to be done troubles nobody.
                let wanted = aggregate.wanted();
                memory.trouble.retain(|task, _| wanted.contains(task) || aggregate.is_open_copy(task));
            }
        }
        let mut tasks: BTreeMap<&WorkerId, u32> = BTreeMap::new();
        let mut streams: BTreeMap<&WorkerId, u32> = BTreeMap::new();
        let mut source_usage: BTreeMap<String, u32> = BTreeMap::new();
        for (id, pipe) in &self.pipes {
            for held in pipe.aggregate.assignments() {
                if held.task == Task::Stream {
                    *streams.entry(&held.worker).or_default() += 1;
                }
                if held.task.takes_slot() {
                    *tasks.entry(&held.worker).or_default() += 1;
                }
                if held.task.reads_tables() && !chosen.contains(id) {
                    *source_usage.entry(facts::source_of(&pipe.aggregate)).or_default() += 1;
                }
            }
        }
        let workers = facts::worker_facts(&self.sessions, &tasks, &streams);
        let pipes: Vec<_> = chosen
            .iter()
            .filter_map(|id| self.pipes.get(id))
            .map(|pipe| facts::pipe_facts(&pipe.aggregate, &pipe.memory, &self.sessions))
            .collect();
        let actions = plan(&pipes, &workers, &source_usage).actions;
        actions.into_iter().filter_map(|action| self.act(action)).collect()
    }

    /// Carries one action out; gives the pipe where it may want something else afterwards.
    fn act(&mut self, action: Action<Task>) -> Option<PipeId> {
        tracing::debug!("{action}");
        let now = now();
        match action {
            Action::Assign { pipe, task, worker, .. } => {
                let entry = self.pipes.get_mut(&pipe)?;
                self.last_epoch = self.last_epoch.next();
                self.owners.insert(self.last_epoch, pipe.clone());
                let trace = entry.memory.trace.clone();
                if entry.aggregate.assign(self.last_epoch, task, worker, trace, now).is_none() {
                    tracing::debug!(pipe.id = %pipe, "planned a task that cannot be given out now");
                    return Some(pipe);
                }
            }
            Action::Withdraw { pipe, epoch, .. } => {
                let entry = self.pipes.get_mut(&pipe)?;
                entry.memory.copies.remove(&epoch);
                entry.aggregate.withdraw(epoch, now);
                return Some(pipe);
            }
            Action::Drain { pipe, epoch, .. } => {
                if let Some(entry) = self.pipes.get_mut(&pipe) {
                    entry.aggregate.drain(epoch);
                }
            }
            Action::Wait { pipe, reason, .. } => {
                if let Some(entry) = self.pipes.get_mut(&pipe) {
                    entry.memory.waiting.get_or_insert((reason, now));
                }
                self.waiting.insert(pipe);
            }
        }
        None
    }

    /// Something came free: pipes that wait are planned for again.
    fn wake_waiting(&mut self) {
        self.dirty.append(&mut self.waiting);
    }

    /// The pipes of which a worker holds work are planned for again.
    fn touch_holders(&mut self, worker: &WorkerId) {
        let holds = |pipe: &Pipe| pipe.aggregate.assignments().any(|held| &held.worker == worker);
        let holding = self.pipes.iter().filter(|(_, pipe)| holds(pipe)).map(|(id, _)| id.clone());
        self.dirty.extend(holding);
    }

    fn touch(&mut self, id: &PipeId) {
        self.dirty.insert(id.clone());
    }

    fn publish(&self, ids: &BTreeSet<PipeId>) {
        for pipe in ids.iter().filter_map(|id| self.pipes.get(id)) {
            let view = Arc::new(view::pipe_view(&pipe.aggregate, &pipe.memory));
            self.directory.publish(pipe.aggregate.pipe().spec.name.as_str(), view);
        }
    }

    fn publish_workers(&self) {
        let mut tasks: BTreeMap<&WorkerId, u32> = BTreeMap::new();
        for held in self.pipes.values().flat_map(|pipe| pipe.aggregate.assignments()) {
            *tasks.entry(&held.worker).or_default() += 1;
        }
        self.directory.publish_workers(view::workers(&self.sessions, &tasks));
    }
}

/// At most so many of the pipes, from the one behind the last on and round from the first, each once: whoever takes turns so leaves nobody out.
fn in_turn(pipes: &BTreeSet<PipeId>, last: Option<&PipeId>, most: usize) -> Vec<PipeId> {
    let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
    let round = pipes.range::<PipeId, _>((behind, Bound::Unbounded)).chain(pipes);
    round.take(most.min(pipes.len())).cloned().collect()
}

fn message(order: Order) -> CoordinatorMessage {
    match order {
        Order::Assign(assignment) => CoordinatorMessage::Assign(assignment),
        Order::Amend(assignment) => CoordinatorMessage::Amend(assignment),
        Order::Revoke(epoch) => CoordinatorMessage::Revoke(epoch),
        Order::Drain(epoch) => CoordinatorMessage::Drain(epoch),
        Order::Recorded(epoch, table) => CoordinatorMessage::Recorded { epoch, table },
    }
}

/// A caller that went away does not want its answer.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    let _ = reply.send(value);
}

fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_more_pipes_than_there_is_room_for_each_has_its_turn() {
        let pipes: BTreeSet<PipeId> = (0..7).map(PipeId::from_random).collect();
        let (mut last, mut turns) = (None, Vec::new());
        for _ in 0..7 {
            let chosen = in_turn(&pipes, last.as_ref(), 3);
            assert_eq!(chosen.len(), 3);
            last = chosen.last().cloned();
            turns.extend(chosen);
        }
        for pipe in &pipes {
            assert_eq!(turns.iter().filter(|turn| *turn == pipe).count(), 3, "{pipe}");
        }
        assert_eq!(in_turn(&pipes, last.as_ref(), 100).len(), 7, "each once");
        let gone = PipeId::from_random(99);
        assert_eq!(in_turn(&pipes, Some(&gone), 2).len(), 2);
        assert!(in_turn(&BTreeSet::new(), None, 3).is_empty());
    }
}
