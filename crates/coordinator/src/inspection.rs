//! Questions to a worker about a source and destination: read-only, answered once, never repeated.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_api::offer::OfferedTable;
use millrace_api::worker::{self, CoordinatorMessage, InspectionSubject};
use millrace_model::work::TraceContext;
use millrace_model::{PipeId, Problem, WorkerId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::input::{Inspected, Inspection, NoWorker};

/// More questions than this are not kept; the caller is told that nobody can look.
const MOST_OPEN: usize = 256;

/// Slots that are looked at at a time; the others wait for their turn.
const MOST_SLOTS: usize = 64;

/// A slot that was not answered about for so long is asked for again.
const SLOT_PATIENCE: Duration = Duration::from_secs(15);

struct Open {
    worker: WorkerId,
    reply: oneshot::Sender<Result<Inspected, NoWorker>>,
}

/// A slot that somebody looks at.
struct OpenSlot {
    worker: WorkerId,
    pipe: PipeId,
    asked: Instant,
}

/// Questions that were asked and not answered yet.
#[derive(Default)]
pub(crate) struct Inspections {
    last: u64,
    open: BTreeMap<u64, Open>,
    slots: BTreeMap<u64, OpenSlot>,
}

impl Inspections {
    /// Takes a question down; gives what to send and to whom. Without a worker the caller hears so at once.
    pub(crate) fn begin(
        &mut self,
        request: Inspection,
        reply: oneshot::Sender<Result<Inspected, NoWorker>>,
        worker: Option<&WorkerId>,
    ) -> Option<(WorkerId, CoordinatorMessage)> {
        self.open.retain(|_, open| !open.reply.is_closed());
        let Some(worker) = worker.filter(|_| self.open.len() < MOST_OPEN) else {
            let _ = reply.send(Err(NoWorker));
            return None;
        };
        self.last += 1;
        self.open.insert(self.last, Open { worker: worker.clone(), reply });
        let inspection =
            worker::Inspection { request_id: self.last, subject: request.subject, trace: request.trace };
        Some((worker.clone(), CoordinatorMessage::Inspect(Box::new(inspection))))
    }

    /// How many more slots can be asked for.
    pub(crate) fn room_for_slots(&mut self) -> usize {
        self.slots.retain(|_, open| open.asked.elapsed() < SLOT_PATIENCE);
        MOST_SLOTS.saturating_sub(self.slots.len())
    }

    /// Asks a worker about a pipe's slot.
    pub(crate) fn begin_slot(
        &mut self,
        pipe: PipeId,
        subject: InspectionSubject,
        worker: &WorkerId,
    ) -> CoordinatorMessage {
        self.last += 1;
        self.slots.insert(self.last, OpenSlot { worker: worker.clone(), pipe, asked: Instant::now() });
        let inspection =
            worker::Inspection { request_id: self.last, subject, trace: TraceContext::default() };
        CoordinatorMessage::Inspect(Box::new(inspection))
    }

    /// The pipe whose slot an answer is about; `None` where that worker was not asked for one by this number.
    pub(crate) fn answered_slot(&mut self, worker: &WorkerId, request_id: u64) -> Option<PipeId> {
        let asked = self.slots.get(&request_id).is_some_and(|open| &open.worker == worker);
        asked.then(|| self.slots.remove(&request_id).map(|open| open.pipe)).flatten()
    }

    /// Passes an answer on; false where that worker was not asked, or nobody waits any more.
    pub(crate) fn answer(
        &mut self,
        worker: &WorkerId,
        request_id: u64,
        problems: Vec<Problem>,
        tables: Vec<OfferedTable>,
    ) -> bool {
        if self.open.get(&request_id).is_none_or(|open| &open.worker != worker) {
            return false;
        }
        let open = self.open.remove(&request_id);
        open.is_some_and(|open| open.reply.send(Ok(Inspected { problems, tables })).is_ok())
    }

    /// The worker is gone and will not answer.
    pub(crate) fn abandon(&mut self, worker: &WorkerId) {
        self.slots.retain(|_, open| &open.worker != worker);
        let gone: Vec<u64> =
            self.open.iter().filter(|(_, open)| &open.worker == worker).map(|(id, _)| *id).collect();
        for open in gone.iter().filter_map(|id| self.open.remove(id)) {
            let _ = open.reply.send(Err(NoWorker));
        }
    }
}
