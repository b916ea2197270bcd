//! The workers that are connected, or were until a moment ago.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millrace_api::worker::CoordinatorMessage;
use millrace_model::work::Hello;
use millrace_model::{Labels, Timestamp, WorkerId};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// One connection of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// A worker as the reconciler knows it.
pub(crate) struct Worker {
    pub(crate) hello: Hello,
    /// It says that it leaves.
    pub(crate) leaving: bool,
    pub(crate) memory_used: u64,
    pub(crate) connected_at: Timestamp,
    pub(crate) heard_at: Timestamp,
    /// For the lease; the wall clock may jump.
    heard: Instant,
    link: Option<Link>,
}

struct Link {
    session: SessionId,
    outbound: mpsc::Sender<CoordinatorMessage>,
}

impl Worker {
    /// Whether its stream is open.
    pub(crate) fn connected(&self) -> bool {
        self.link.is_some()
    }
}

/// All workers by id.
pub(crate) struct Sessions {
    lease: Duration,
    started: Instant,
    last: u64,
    workers: BTreeMap<WorkerId, Worker>,
    /// Those that a user lets have no more work.
    drained: BTreeSet<WorkerId>,
    by_session: BTreeMap<SessionId, WorkerId>,
}

impl Sessions {
    /// Nobody is connected yet. For one lease from now, workers that are not heard of may still be at work.
    pub(crate) fn new(lease: Duration) -> Self {
        Self {
            lease,
            started: Instant::now(),
            last: 0,
            workers: BTreeMap::new(),
            drained: BTreeSet::new(),
            by_session: BTreeMap::new(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.workers.iter()
    }

    pub(crate) fn get(&self, id: &WorkerId) -> Option<&Worker> {
        self.workers.get(id)
    }

    pub(crate) fn worker_of(&self, session: SessionId) -> Option<&WorkerId> {
        self.by_session.get(&session)
    }

    /// Whether a user drained a worker.
    pub(crate) fn is_drained(&self, id: &WorkerId) -> bool {
        self.drained.contains(id)
    }

    /// Whether a worker gets no more work and hands over what it holds.
    pub(crate) fn drains(&self, id: &WorkerId) -> bool {
        self.drained.contains(id) || self.workers.get(id).is_some_and(|worker| worker.leaving)
    }

    /// Lets a worker have no more work, or have it again; false where no such worker is known.
    pub(crate) fn drain(&mut self, id: &WorkerId, undo: bool) -> bool {
        if undo {
            self.drained.remove(id);
        } else if self.workers.contains_key(id) {
            self.drained.insert(id.clone());
        }
        self.send(id, CoordinatorMessage::SetDrained(!undo));
        self.workers.contains_key(id)
    }

    /// Whether another process under the same id is connected and alive.
    pub(crate) fn id_is_taken(&self, hello: &Hello) -> bool {
        self.workers
            .get(&hello.worker)
            .is_some_and(|known| known.connected() && known.hello.instance != hello.instance)
    }

    pub(crate) fn connect(
        &mut self,
        hello: Hello,
        outbound: mpsc::Sender<CoordinatorMessage>,
        now: Timestamp,
    ) -> SessionId {
        self.last += 1;
        let session = SessionId(self.last);
        let id = hello.worker.clone();
        // Drained under the leader before this one; of a worker that is known this coordinator knows better.
        if hello.drained && !self.workers.contains_key(&id) {
            self.drained.insert(id.clone());
        }
        let worker = Worker {
            hello,
            leaving: false,
            memory_used: 0,
            connected_at: now,
            heard_at: now,
            heard: Instant::now(),
            link: Some(Link { session, outbound }),
        };
        if let Some(Link { session: old, .. }) =
            self.workers.insert(id.clone(), worker).and_then(|old| old.link)
        {
            self.by_session.remove(&old);
        }
        self.by_session.insert(session, id);
        session
    }

    /// Takes note of a sign of life. `None` where the session is not the worker's present one.
    pub(crate) fn heard(&mut self, session: SessionId, now: Timestamp) -> Option<&mut Worker> {
        let worker = self.workers.get_mut(self.by_session.get(&session)?)?;
        worker.heard = Instant::now();
        worker.heard_at = now;
        Some(worker)
    }

    /// Closes a session; its worker keeps its lease.
    pub(crate) fn disconnect(&mut self, session: SessionId) -> Option<WorkerId> {
        let id = self.by_session.remove(&session)?;
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.link = None;
        }
        Some(id)
    }

    /// Sends a message, or closes the session of a worker that does not take it: after a reconnect both sides agree anew.
    pub(crate) fn send(&mut self, id: &WorkerId, message: CoordinatorMessage) {
        let Some(link) = self.workers.get(id).and_then(|worker| worker.link.as_ref()) else { return };
        if let Err(error) = link.outbound.try_send(message) {
            tracing::warn!(worker.id = %id, %error, "worker does not take messages; its session is closed");
            let session = link.session;
            self.disconnect(session);
        }
    }

    /// Whether the worker's lease has ended. A worker never heard of has one lease from the start of this coordinator.
    pub(crate) fn is_lost(&self, id: &WorkerId) -> bool {
        let since = self.workers.get(id).map_or(self.started, |worker| worker.heard);
        since.elapsed() > self.lease
    }

    /// Closes the sessions of workers that were silent for a whole lease, and forgets those that have been gone for ten.
    /// Gives the workers whose lease ended.
    pub(crate) fn expire(&mut self) -> Vec<WorkerId> {
        let (lease, mut lost) = (self.lease, Vec::new());
        let silent: Vec<SessionId> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.heard.elapsed() > lease)
            .filter_map(|(_, worker)| worker.link.as_ref().map(|link| link.session))
            .collect();
        for session in silent {
            if let Some(id) = self.disconnect(session) {
                tracing::warn!(worker.id = %id, "worker was silent for a whole lease; its work is given to others");
                lost.push(id);
            }
        }
        self.workers.retain(|_, worker| worker.connected() || worker.heard.elapsed() < lease * 10);
        lost
    }

    /// Whether a worker of those selected is connected, to be asked something.
    pub(crate) fn is_connected(&self, id: &WorkerId, selector: &Labels) -> bool {
        let fits = |worker: &Worker| worker.hello.labels.satisfy(selector) && worker.connected();
        self.workers.get(id).is_some_and(fits) && !self.drains(id)
    }

    /// A connected worker of those selected, for a question that any of them can answer.
    pub(crate) fn any_connected(&self, selector: &Labels) -> Option<&WorkerId> {
        self.workers.keys().find(|id| self.is_connected(id, selector))
    }
}
