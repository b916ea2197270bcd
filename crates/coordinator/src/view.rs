//! What users see of a pipe, drawn from what is stored and what is remembered.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_api::proto::pipe::v1 as pb;
use millrace_api::spec::without_secrets;
use millrace_api::time::{duration, timestamp};
use millrace_lifecycle::pipe::next_in_words;
use millrace_lifecycle::record::EventKind;
use millrace_lifecycle::{
    EventRecord, Health, PipeAggregate, PipeRecord, PipeState, PipeTable, TableRecord, TableState, Task,
    command,
};
use millrace_model::work::{DifferenceKind, RowDifference, SlotHealth};
use millrace_model::{Problem, TableId, Timestamp, WorkerId};

use crate::directory::PipeView;
use crate::memory::Memory;
use crate::session::Sessions;

/// Trouble that lasts so long is more than a hiccup.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// The pipe as it stands.
pub(crate) fn pipe_view(pipe: &PipeAggregate, memory: &Memory) -> PipeView {
    let record = pipe.pipe();
    let (health, health_since, problem) = health(pipe, memory);
    let status = pb::PipeStatus {
        state: state(record.state).into(),
        state_since: Some(timestamp(record.since)),
        cause: record.cause.clone(),
        next: match (record.deleting, memory.waiting) {
            (true, _) => "slot and publication are freed, then the pipe is gone".to_owned(),
            (false, Some((reason, _))) => format!("{}; now waiting: {reason}", next_in_words(record.state)),
            (false, None) => next_in_words(record.state).to_owned(),
        },
        health: match health {
            Health::Ok => pb::Health::Ok,
            Health::Degraded => pb::Health::Degraded,
            Health::Stalled => pb::Health::Stalled,
        }
        .into(),
        health_since: Some(timestamp(health_since)),
        problem: problem.as_ref().map(pb::Problem::from),
        deleting: record.deleting,
        slot_name: record.slot.as_ref().map(|slot| slot.name.clone()).unwrap_or_default(),
        publication_name: if record.spec.mode.follows() { pipe.publication_name() } else { String::new() },
        consistent_point: record
            .slot
            .as_ref()
            .map(|slot| slot.consistent_point.to_string())
            .unwrap_or_default(),
        stream: stream(pipe, memory),
        assignments: pipe.assignments().map(assignment).collect(),
        commands: command::legal_in(record.state, record.deleting).iter().map(ToString::to_string).collect(),
        tables_set_aside: count(
            pipe.tables().filter(|table| table.record.state == TableState::SetAside).count(),
        ),
    };
    let pipe = pb::Pipe {
        id: record.id.to_string(),
        etag: etag(record),
        spec: Some(without_secrets(&record.spec)),
        status: Some(status),
        tables: tables(pipe, memory),
        created_at: Some(timestamp(record.created)),
    };
    PipeView { id: record.id.clone(), pipe, last_event: record.last_event, farewell: None }
}

/// Changes with every edit.
pub(crate) fn etag(record: &PipeRecord) -> String {
    record.generation.to_string()
}

/// Whether the pipe gets on, since when, and what is in the way.
fn health(pipe: &PipeAggregate, memory: &Memory) -> (Health, Timestamp, Option<Problem>) {
    let record = pipe.pipe();
    if record.state == PipeState::Failed {
        return (Health::Stalled, record.since, record.failure.clone());
    }
    // A copy that fails leaves the others going, and what nobody needs is in nobody's way; any other task that fails holds the whole pipe up.
    let holds_up = |task: &Task| !matches!(task, Task::Copy { .. } | Task::Verify { .. } | Task::Clean);
    let worst = memory
        .trouble
        .iter()
        .max_by_key(|(task, trouble)| (holds_up(task), std::cmp::Reverse(trouble.since)));
    if let Some((task, trouble)) = worst {
        let lasted = Timestamp::from_system(std::time::SystemTime::now()).millis_since(trouble.since);
        let stalled = holds_up(task) && u128::from(lasted) > STALLED_AFTER.as_millis();
        let health = if stalled { Health::Stalled } else { Health::Degraded };
        return (health, trouble.since, Some(trouble.problem.clone()));
    }
    if let (Some(since), Some((_, problem))) = (memory.held_since, held(pipe, memory).first()) {
        return (Health::Degraded, since, Some(problem.clone()));
    }
    if let (Some(_), Some(since), Some((slot, _))) = (&record.slot, memory.slot_in_danger, &memory.slot) {
        return (Health::Degraded, since, Some(slot_fills(slot)));
    }
    let set_aside = pipe.tables().find(|table| table.record.state == TableState::SetAside);
    if let Some(table) = set_aside {
        return (Health::Degraded, table.record.since, table.record.problem.clone());
    }
    // Found by the last comparison, and nothing has replaced the table since.
    if let Some((since, problem)) = pipe.differing() {
        return (Health::Degraded, since, Some(problem));
    }
    match memory.waiting {
        Some((_, since)) if pipe.assignments().next().is_none() => (Health::Degraded, since, None),
        _ => (Health::Ok, record.since, None),
    }
}

/// What a slot in danger is complained of with.
fn slot_fills(slot: &SlotHealth) -> Problem {
    let left = match slot.headroom {
        Some(bytes) if slot.wal_status != "lost" => format!(", and has room for {bytes} bytes more"),
        _ => String::new(),
    };
    let message = format!(
        "the slot holds back {} bytes of the source's log{left} (wal_status {}); beyond max_slot_wal_keep_size the source throws away what the pipe still needs",
        slot.retained, slot.wal_status
    );
    let remedy = "resume the pipe or mend what keeps it from streaming, or raise max_slot_wal_keep_size at the source; once the slot is lost only `millrace pipe resync` helps";
    Problem::operator("SLOT_FILLS", message, remedy)
}

/// Tables that the present stream cannot write.
fn held<'a>(pipe: &PipeAggregate, memory: &'a Memory) -> &'a [(TableId, Problem)] {
    let streams = pipe.assignments().any(|held| held.task == Task::Stream);
    memory.stream.as_ref().filter(|_| streams).map(|(stream, _)| stream.held.as_slice()).unwrap_or_default()
}

fn stream(pipe: &PipeAggregate, memory: &Memory) -> Option<pb::StreamStatus> {
    let record = pipe.pipe();
    record.slot.as_ref()?;
    let slot = memory.slot.as_ref().map(|(slot, measured_at)| pb::SlotStatus {
        wal_status: slot.wal_status.clone(),
        retained_bytes: slot.retained,
        headroom_bytes: slot.headroom,
        measured_at: Some(timestamp(*measured_at)),
    });
    let Some((progress, reported_at)) = &memory.stream else {
        return Some(pb::StreamStatus {
            durable_lsn: record.durable.to_string(),
            slot,
            ..pb::StreamStatus::default()
        });
    };
    Some(pb::StreamStatus {
        slot,
        durable_lsn: progress.durable.to_string(),
        source_lsn: progress.source.to_string(),
        lag_bytes: progress.source.0.saturating_sub(progress.durable.0),
        changes_applied: progress.changes,
        delay: progress.delay.map(duration),
        reported_at: Some(timestamp(*reported_at)),
    })
}

fn tables(pipe: &PipeAggregate, memory: &Memory) -> Vec<pb::TableStatus> {
    let mut running: BTreeMap<TableId, (u64, u64)> = BTreeMap::new();
    for held in pipe.assignments() {
        if let (Task::Copy { table, .. }, Some((rows, bytes))) = (&held.task, memory.copies.get(&held.epoch))
        {
            let sum = running.entry(*table).or_default();
            sum.0 += rows;
            sum.1 += bytes;
        }
    }
    let mut compared: BTreeMap<TableId, u64> = BTreeMap::new();
    for held in pipe.assignments() {
        if let (Task::Verify { table, .. }, Some((rows, _))) = (&held.task, memory.copies.get(&held.epoch)) {
            *compared.entry(*table).or_default() += rows;
        }
    }
    let stream = memory.stream.as_ref().map(|(stream, _)| stream);
    let changes: BTreeMap<TableId, u64> =
        stream.iter().flat_map(|stream| stream.tables.iter().copied()).collect();
    let held: BTreeMap<TableId, &Problem> =
        held(pipe, memory).iter().map(|(id, problem)| (*id, problem)).collect();
    let status = |table: &PipeTable| {
        let (record, progress) = (&table.record, table.progress);
        let (rows, bytes) = running.get(&record.id).copied().unwrap_or_default();
        pb::TableStatus {
            source: record.source().to_string(),
            target: record.written.clone(),
            state: table_state(record.state).into(),
            state_since: Some(timestamp(record.since)),
            problem: record.problem.as_ref().map(pb::Problem::from),
            rows_copied: progress.copied.rows + rows,
            bytes_copied: progress.copied.bytes + bytes,
            rows_estimated: record.rows_estimated,
            partitions_done: progress.done,
            partitions_total: count(table.partitions.len()),
            changes_applied: changes.get(&record.id).copied().unwrap_or(0),
            successor: None,
            values_altered: record.altered,
            held: held.get(&record.id).map(|problem| pb::Problem::from(*problem)),
            verification: verification(record, compared.get(&record.id).copied()),
        }
    };
    let successors: BTreeMap<TableId, &PipeTable> =
        pipe.tables().filter_map(|table| Some((table.record.replaces?, table))).collect();
    // In the order of the specification, whatever was copied anew.
    let place = |table: &&PipeTable| {
        let tables = &pipe.pipe().spec.tables;
        tables.iter().position(|spec| &spec.source == table.record.source()).unwrap_or(usize::MAX)
    };
    let mut originals: Vec<&PipeTable> =
        pipe.tables().filter(|table| table.record.replaces.is_none()).collect();
    originals.sort_by_key(place);
    originals
        .into_iter()
        .map(|table| pb::TableStatus {
            successor: successors.get(&table.record.id).map(|successor| Box::new(status(successor))),
            ..status(table)
        })
        .collect()
}

fn assignment(held: &millrace_lifecycle::AssignmentRecord) -> pb::AssignmentStatus {
    let detail = match &held.task {
        Task::Copy { source, partition, .. } => format!("{source} partition {partition}"),
        Task::Verify { source, part: None, .. } => source.to_string(),
        Task::Verify { source, part: Some(part), .. } => format!("{source} part {part}"),
        _ => String::new(),
    };
    pb::AssignmentStatus {
        epoch: held.epoch.0,
        work: held.task.kind().to_owned(),
        worker_id: held.worker.to_string(),
        detail,
    }
}

/// An event as users see it.
pub(crate) fn event(event: &EventRecord) -> pb::Event {
    let mut shown = pb::Event {
        id: event.id,
        time: Some(timestamp(event.time)),
        message: event.message.clone(),
        actor: event.actor.to_string(),
        ..pb::Event::default()
    };
    let kind = match &event.kind {
        EventKind::State { from, to } => {
            shown.from_state = from.map_or(pb::PipeState::Unspecified, state).into();
            shown.to_state = state(*to).into();
            "state"
        }
        EventKind::Table { table, .. } => {
            shown.table = table.to_string();
            "table"
        }
        EventKind::Command => "command",
        EventKind::Problem(problem) => {
            shown.table = problem.table.as_ref().map(ToString::to_string).unwrap_or_default();
            shown.problem = Some(problem.into());
            "problem"
        }
        EventKind::Note => "note",
    };
    kind.clone_into(&mut shown.kind);
    shown
}

/// The fleet as it stands.
pub(crate) fn workers(sessions: &Sessions, tasks: &BTreeMap<&WorkerId, u32>) -> Vec<pb::Worker> {
    let counted = sessions.iter().map(|(id, _)| (id, tasks.get(id).copied().unwrap_or(0)));
    counted.filter_map(|(id, tasks)| worker(sessions, id, tasks)).collect()
}

/// One worker, with so many tasks in hand; `None` where it is not known.
pub(crate) fn worker(sessions: &Sessions, id: &WorkerId, tasks: u32) -> Option<pb::Worker> {
    let worker = sessions.get(id)?;
    Some(pb::Worker {
        id: id.to_string(),
        state: match (worker.connected(), sessions.drains(id)) {
            (false, _) => pb::WorkerState::Lost,
            (true, true) => pb::WorkerState::Draining,
            (true, false) => pb::WorkerState::Connected,
        }
        .into(),
        version: worker.hello.version.clone(),
        connected_at: Some(timestamp(worker.connected_at)),
        heard_at: Some(timestamp(worker.heard_at)),
        max_tasks: worker.hello.max_tasks,
        tasks,
        memory_budget_bytes: worker.hello.memory_budget,
        memory_used_bytes: worker.memory_used,
        labels: worker.hello.labels.as_map().clone(),
    })
}

fn state(state: PipeState) -> pb::PipeState {
    match state {
        PipeState::Provisioning => pb::PipeState::Provisioning,
        PipeState::Setup => pb::PipeState::Setup,
        PipeState::Snapshot => pb::PipeState::Snapshot,
        PipeState::Running => pb::PipeState::Running,
        PipeState::Pausing => pb::PipeState::Pausing,
        PipeState::Paused => pb::PipeState::Paused,
        PipeState::Modifying => pb::PipeState::Modifying,
        PipeState::Resync => pb::PipeState::Resync,
        PipeState::Completed => pb::PipeState::Completed,
        PipeState::Failed => pb::PipeState::Failed,
    }
}

/// The last comparison of a table, or the one under way, of which so many rows were read.
fn verification(table: &TableRecord, rows_read: Option<u64>) -> Option<pb::Verification> {
    let verification = table.verification.as_ref()?;
    let requested_at = Some(timestamp(verification.requested));
    let Some((finished, found)) = &verification.finished else {
        return Some(pb::Verification {
            requested_at,
            rows_read: rows_read.unwrap_or(0)
                + verification.so_far.as_ref().map_or(0, |found| found.source_rows + found.destination_rows),
            ..pb::Verification::default()
        });
    };
    let sample = |row: &RowDifference| pb::RowDifference {
        kind: match row.kind {
            DifferenceKind::Altered => pb::RowDifferenceKind::Altered,
            DifferenceKind::Missing => pb::RowDifferenceKind::Missing,
            DifferenceKind::Extra => pb::RowDifferenceKind::Extra,
        }
        .into(),
        key: row.key.clone(),
        columns: row.columns.clone(),
    };
    Some(pb::Verification {
        requested_at,
        finished_at: Some(timestamp(*finished)),
        rows_read: found.source_rows + found.destination_rows,
        source_rows: found.source_rows,
        destination_rows: found.destination_rows,
        differences: found.differences,
        more: found.more,
        samples: found.samples.iter().map(sample).collect(),
        unsettled: found.unsettled,
        problem: found.problem.as_ref().map(pb::Problem::from),
    })
}

fn table_state(state: TableState) -> pb::TableState {
    match state {
        TableState::Waiting => pb::TableState::Waiting,
        TableState::Copying => pb::TableState::Copying,
        TableState::CatchingUp => pb::TableState::CatchingUp,
        TableState::Streaming => pb::TableState::Streaming,
        TableState::Completed => pb::TableState::Completed,
        TableState::Swapping => pb::TableState::Swapping,
        TableState::SetAside => pb::TableState::SetAside,
        TableState::Removed => pb::TableState::Removed,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
