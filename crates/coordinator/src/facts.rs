//! What the planner must know, drawn from what the reconciler holds.

use std::collections::BTreeMap;

use millrace_lifecycle::{AssignmentRecord, PipeAggregate, Task};
use millrace_model::{Labels, WorkerId};
use millrace_scheduler::plan::{HeldTask, Holder, OnLeave, PipeFacts, WantedTask, WorkerFacts};

use crate::memory::Memory;
use crate::session::{Sessions, Worker};

/// One pipe's side of the plan.
pub(crate) fn pipe_facts(pipe: &PipeAggregate, memory: &Memory, sessions: &Sessions) -> PipeFacts<Task> {
    let record = pipe.pipe();
    let wanted = pipe.wanted().into_iter().map(|task| WantedTask {
        takes_slot: task.takes_slot(),
        counts_against_source: task.reads_tables(),
        due: memory.is_due(&task),
        prefers: memory.last_streamer.clone().filter(|_| task == Task::Stream),
        task,
    });
    let selector = &record.spec.settings.worker_selector;
    let held = pipe.assignments().map(|held| HeldTask {
        epoch: held.epoch,
        task: held.task.clone(),
        holder: holder(held, selector, sessions),
        draining: held.draining,
        on_leave: on_leave(&held.task, record.spec.mode.follows()),
        counts_against_source: held.task.reads_tables(),
    });
    PipeFacts {
        pipe: record.id.clone(),
        source: source_of(pipe),
        source_connections: record.spec.settings.max_source_connections,
        selector: selector.clone(),
        wanted: wanted.collect(),
        held: held.collect(),
    }
}

/// Names the source server that a pipe reads, so that pipes on one share its limit.
pub(crate) fn source_of(pipe: &PipeAggregate) -> String {
    let source = &pipe.pipe().spec.source;
    format!("{}:{}", source.host, source.port)
}

/// Workers that can be given work.
pub(crate) fn worker_facts(
    sessions: &Sessions,
    tasks: &BTreeMap<&WorkerId, u32>,
    streams: &BTreeMap<&WorkerId, u32>,
) -> Vec<WorkerFacts> {
    let connected = sessions.iter().filter(|(_, worker)| worker.connected());
    let facts = connected.map(|(id, worker)| WorkerFacts {
        id: id.clone(),
        max_tasks: worker.hello.max_tasks,
        tasks: tasks.get(id).copied().unwrap_or(0),
        lasting: streams.get(id).copied().unwrap_or(0),
        draining: sessions.drains(id),
        labels: worker.hello.labels.clone(),
    });
    facts.collect()
}

fn holder(held: &AssignmentRecord, selector: &Labels, sessions: &Sessions) -> Holder {
    let selected = |worker: &Worker| worker.hello.labels.satisfy(selector);
    match (sessions.is_lost(&held.worker), sessions.drains(&held.worker)) {
        (true, _) => Holder::Lost,
        (false, true) => Holder::Leaving,
        (false, false) if !sessions.get(&held.worker).is_none_or(selected) => Holder::Unselected,
        (false, false) => Holder::Present,
    }
}

/// A snapshot that a stream stands behind can be taken anew by somebody else; without one the whole copy would begin again.
fn on_leave(task: &Task, follows: bool) -> OnLeave {
    match task {
        Task::Stream => OnLeave::Drain,
        Task::Snapshot { .. } if follows => OnLeave::HandBack,
        Task::Verify { .. } => OnLeave::HandBack,
        _ => OnLeave::Finish,
    }
}
