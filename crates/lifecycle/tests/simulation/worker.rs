//! Workers: they do what they are told, later or never, and repeat what is not recorded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use millrace_lifecycle::aggregate::Order;
use millrace_model::spec::TableEngine;
use millrace_model::work::{
    Assignment, DestinationFacts, Outcome, Progress, Report, SlotRequest, StreamProgress, StreamedTable,
    Swap, TableSize, TableWork, Verified, Work,
};
use millrace_model::{Epoch, Lsn, Problem, TableDefinition, TableId, TableName, WorkerId};

use crate::fixtures::definition;
use crate::source::{PAGES, Slot};
use crate::world::World;

/// What a worker says.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    Hello(Vec<Epoch>),
    Heartbeat { leaving: bool },
    Report(Epoch, Box<Report>),
}

/// What a worker hears.
#[derive(Debug, Clone)]
pub(crate) enum Down {
    Welcome(Vec<Epoch>),
    Order(Order),
}

/// A stream of messages: in order while it lasts, lost with all that is under way when it breaks.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    pub(crate) up: VecDeque<(u64, Up)>,
    pub(crate) down: VecDeque<(u64, Down)>,
    pub(crate) welcomed: bool,
}

pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) alive: bool,
    pub(crate) leaving: bool,
    pub(crate) connection: Option<Connection>,
    pub(crate) connects_at: u64,
    /// When it last heard from a coordinator.
    pub(crate) heard: u64,
    /// It does nothing before.
    pub(crate) hangs_until: u64,
    pub(crate) held: BTreeMap<Epoch, Held>,
}

pub(crate) struct Held {
    work: Work,
    tables: Vec<TableName>,
    due: u64,
    begun: bool,
    /// What it said and nobody recorded yet.
    unrecorded: Vec<Report>,
    over: bool,
    draining: bool,
    /// The snapshot that it holds, once it said so.
    ready: Option<Report>,
    stream: Option<Stream>,
}

/// How a swap went.
enum Swapped {
    Whole,
    /// The process died between the exchange and the renaming.
    ByHalf,
}

/// A stream that runs.
struct Stream {
    position: Lsn,
    end_at_start: Lsn,
    follows: Option<u64>,
    tables: Vec<StreamedTable>,
    /// Left out by itself, and before which change.
    aside: BTreeMap<TableId, Lsn>,
    /// Those of them that are recorded.
    recorded: BTreeSet<TableId>,
}

fn keeps_all(table: &TableWork) -> bool {
    table.spec.engine == TableEngine::MergeTree
}

/// The table that a report is about.
fn about(report: &Report) -> Option<TableId> {
    match report {
        Report::TableChanged(id, _) | Report::TableSetAside(id, _) | Report::TableSwapped(id) => Some(*id),
        Report::Progress(_) | Report::Finished(_) | Report::Failed(_) | Report::ValuesAltered(..) => None,
    }
}

impl World {
    /// Everything that happens at workers in this tick.
    pub(crate) fn workers(&mut self) {
        for index in 0..self.workers.len() {
            let now = self.now;
            let worker = &mut self.workers[index];
            if !worker.alive {
                if now >= worker.connects_at {
                    (worker.alive, worker.leaving) = (true, false);
                    worker.heard = now;
                }
                continue;
            }
            if now < worker.hangs_until {
                continue;
            }
            if worker.leaving && worker.held.is_empty() {
                self.kill(index);
                continue;
            }
            self.fence(index);
            self.hear(index);
            let worker = &mut self.workers[index];
            if worker.connection.is_none() && now >= worker.connects_at && self.coordinator.up {
                worker.connection = Some(Connection::default());
                let held = worker.held.keys().copied().collect();
                self.say(index, Up::Hello(held));
            }
            if now % 5 == index as u64 % 5 {
                let leaving = self.workers[index].leaving;
                self.say(index, Up::Heartbeat { leaving });
            }
            let due: Vec<Epoch> = self.workers[index]
                .held
                .iter()
                .filter(|(_, held)| !held.over && held.due <= now)
                .map(|(epoch, _)| *epoch)
                .collect();
            for epoch in due {
                // The worker may die of one that comes before.
                let Some(held) = self.workers[index].held.get_mut(&epoch) else { continue };
                held.due = now + 1 + self.random.below(self.pace);
                self.advance(index, epoch);
            }
        }
    }

    /// A worker that heard nothing for the length of its lease gives up what somebody else may do by now; a stream is fenced by its slot.
    fn fence(&mut self, index: usize) {
        if self.now - self.workers[index].heard < self.lease {
            return;
        }
        let stopped: Vec<Epoch> = self.workers[index]
            .held
            .iter()
            .filter(|(_, held)| !matches!(held.work, Work::Stream { .. }) && !held.over)
            .map(|(epoch, _)| *epoch)
            .collect();
        if !stopped.is_empty() {
            // What it holds from now on is said by the next hello.
            self.workers[index].connection = None;
        }
        for epoch in stopped {
            self.stop(index, epoch);
        }
    }

    fn stop(&mut self, index: usize, epoch: Epoch) {
        self.workers[index].held.remove(&epoch);
        self.source.disconnect(epoch);
    }

    /// The process ends, and comes back later as another.
    pub(crate) fn kill(&mut self, index: usize) {
        self.log(|world| format!("{} dies", world.workers[index].id));
        for epoch in self.workers[index].held.keys().copied().collect::<Vec<_>>() {
            self.stop(index, epoch);
        }
        let back = self.now + 5 + self.random.below(60);
        let worker = &mut self.workers[index];
        (worker.alive, worker.connection, worker.connects_at) = (false, None, back);
    }

    pub(crate) fn say(&mut self, index: usize, message: Up) {
        let at = self.now + self.random.below(self.delay);
        if let Some(connection) = &mut self.workers[index].connection {
            let hello = matches!(message, Up::Hello(_));
            if hello || connection.welcomed || matches!(message, Up::Heartbeat { .. }) {
                connection.up.push_back((at, message));
            }
        }
    }

    fn report(&mut self, index: usize, epoch: Epoch, report: Report) {
        self.say(index, Up::Report(epoch, Box::new(report)));
    }

    fn hear(&mut self, index: usize) {
        loop {
            let Some(connection) = &mut self.workers[index].connection else { return };
            if connection.down.front().is_none_or(|(at, _)| *at > self.now) {
                return;
            }
            let (_, message) = connection.down.pop_front().unwrap();
            self.workers[index].heard = self.now;
            match message {
                Down::Welcome(keep) => self.welcome(index, &keep),
                Down::Order(order) => self.obey(index, order),
            }
        }
    }

    fn welcome(&mut self, index: usize, keep: &[Epoch]) {
        let worker = &mut self.workers[index];
        if let Some(connection) = &mut worker.connection {
            connection.welcomed = true;
        }
        for epoch in worker.held.keys().copied().collect::<Vec<_>>() {
            if !keep.contains(&epoch) {
                self.stop(index, epoch);
                continue;
            }
            // What was said and not recorded is said again.
            let held = &self.workers[index].held[&epoch];
            let again: Vec<Report> = held.ready.iter().chain(&held.unrecorded).cloned().collect();
            for report in again {
                self.report(index, epoch, report);
            }
        }
    }

    fn obey(&mut self, index: usize, order: Order) {
        match order {
            Order::Assign(assignment) => {
                let Assignment { epoch, spec, work, .. } = *assignment;
                let held = Held {
                    work,
                    tables: spec.tables.into_iter().map(|table| table.source).collect(),
                    due: self.now + self.random.below(self.pace),
                    begun: false,
                    unrecorded: Vec::new(),
                    over: false,
                    draining: false,
                    ready: None,
                    stream: None,
                };
                self.workers[index].held.insert(epoch, held);
            }
            Order::Amend(assignment) => {
                if let Some(held) = self.workers[index].held.get_mut(&assignment.epoch) {
                    let revision = |work: &Work| match work {
                        Work::Stream { revision, .. } => *revision,
                        _ => panic!("only a stream is amended"),
                    };
                    if revision(&assignment.work) > revision(&held.work) {
                        held.work = assignment.work;
                    }
                }
            }
            Order::Revoke(epoch) => self.stop(index, epoch),
            Order::Drain(epoch) => {
                if let Some(held) = self.workers[index].held.get_mut(&epoch) {
                    held.draining = true;
                }
            }
            Order::Recorded(epoch, None) => self.stop(index, epoch),
            Order::Recorded(epoch, Some(id)) => {
                if let Some(held) = self.workers[index].held.get_mut(&epoch) {
                    let found = held.unrecorded.iter().position(|report| about(report) == Some(id));
                    if let Some(found) = found {
                        let report = held.unrecorded.remove(found);
                        if let (Report::TableSetAside(id, _), Some(stream)) = (report, &mut held.stream) {
                            stream.recorded.insert(id);
                        }
                    }
                }
            }
        }
    }

    /// Says how it ended and closes what it had open.
    fn end(&mut self, index: usize, epoch: Epoch, report: Report) {
        self.source.disconnect(epoch);
        let held = self.workers[index].held.get_mut(&epoch).unwrap();
        held.over = true;
        held.unrecorded.push(report.clone());
        self.log(|world| format!("{} ends {epoch}: {report:?}", world.workers[index].id));
        self.report(index, epoch, report.clone());
        if self.faults && self.random.chance(50) {
            self.report(index, epoch, report);
        }
    }

    fn fail(&mut self, index: usize, epoch: Epoch, problem: Problem) {
        self.end(index, epoch, Report::Failed(vec![problem]));
    }

    /// Trouble that has nothing to do with the work itself.
    fn trouble(&mut self, tables: &[TableName]) -> Option<Problem> {
        if self.rights_withdrawn > self.now {
            return Some(Problem::operator("SOURCE_DENIED", "permission denied", "GRANT it"));
        }
        if !self.faults {
            return None;
        }
        if self.random.chance(60) {
            return Some(Problem::transient("SOURCE_UNREACHABLE", "connection refused", ""));
        }
        let table = self.random.pick(tables)?;
        self.random
            .chance(15)
            .then(|| Problem::operator("TABLE_REFUSED", "a table", "mend it").of_table(&table))
    }

    /// One step of an assignment.
    fn advance(&mut self, index: usize, epoch: Epoch) {
        let held = &self.workers[index].held[&epoch];
        match held.work.clone() {
            Work::Provision { .. } => {
                let tables = held.tables.clone();
                if let Some(problem) = self.trouble(&tables) {
                    return self.fail(index, epoch, problem);
                }
                let outcome = Outcome::Provisioned {
                    system_identifier: 42,
                    server_version: 170_010,
                    tables: tables.iter().map(definition).collect(),
                    warnings: vec![],
                    destination: DestinationFacts { time64: true },
                };
                self.end(index, epoch, Report::Finished(outcome));
            }
            Work::SetUp { tables, clear, publication, slot, .. } => {
                self.set_up(index, epoch, &tables, clear, publication, slot);
            }
            Work::Snapshot { slot, tables } => self.hold_snapshot(index, epoch, slot, &tables),
            Work::Copy { table, snapshot_name, range, .. } => {
                let end = range.end.unwrap_or(u32::MAX);
                self.copy(index, epoch, &table, &snapshot_name, range.first..end);
            }
            Work::Verify { .. } => {
                self.end(index, epoch, Report::Finished(Outcome::Verified(Verified::default())));
            }
            Work::Stream { .. } => self.stream(index, epoch),
            Work::Swap { swaps } => {
                for swap in &swaps {
                    match self.swap(swap, None) {
                        Ok(Swapped::Whole) => {}
                        Ok(Swapped::ByHalf) => return self.kill(index),
                        Err(problem) => return self.fail(index, epoch, *problem),
                    }
                }
                let tables = swaps.iter().map(|swap| swap.id).collect();
                self.end(index, epoch, Report::Finished(Outcome::Swapped { tables }));
            }
            Work::Clean { tables } => {
                for table in &tables {
                    self.drop_table(table);
                }
                self.end(index, epoch, Report::Finished(Outcome::Cleaned { tables }));
            }
            Work::Release { .. } => {
                if let Some(slot) = &mut self.source.slot {
                    slot.reader = None;
                }
                self.end(index, epoch, Report::Finished(Outcome::Released));
            }
            Work::Teardown { slot_name, publication_name, tables } => {
                if slot_name.is_some() {
                    self.source.slot = None;
                }
                if publication_name.is_some() {
                    self.source.publication = None;
                }
                for table in tables {
                    self.destination.drop(&table);
                }
                self.end(index, epoch, Report::Finished(Outcome::TornDown { left_behind: vec![] }));
            }
        }
    }

    fn set_up(
        &mut self,
        index: usize,
        epoch: Epoch,
        tables: &[TableWork],
        clear: bool,
        publication: Option<(String, Vec<TableName>)>,
        slot: Option<SlotRequest>,
    ) {
        let sources: Vec<TableName> = tables.iter().map(|table| table.spec.source.clone()).collect();
        if let Some(problem) = self.trouble(&sources) {
            return self.fail(index, epoch, problem);
        }
        let mut made = Vec::new();
        for table in tables {
            let target = &table.spec.target;
            made.push((table.id, self.destination.create(target, keeps_all(table))));
            if clear {
                self.check_unread(target, "emptied");
                self.destination.table(target).unwrap().empty();
            }
        }
        let mut begins = Lsn::ZERO;
        if let Some((_, published)) = publication {
            self.source.publication = Some(published.into_iter().collect());
            begins = self.source.lsn;
        }
        let begins = match slot {
            None => begins,
            Some(SlotRequest::Create { name, .. } | SlotRequest::Existing { name }) => {
                let confirmed = self.source.lsn;
                self.source.slot = Some(Slot { name, confirmed, reader: None });
                confirmed
            }
            Some(other) => panic!("{other:?} for a pipe that copies nothing"),
        };
        self.end(index, epoch, Report::Finished(Outcome::SetUp { tables: made, begins }));
    }

    fn hold_snapshot(&mut self, index: usize, epoch: Epoch, slot: SlotRequest, tables: &[TableDefinition]) {
        let held = &self.workers[index].held[&epoch];
        if held.ready.is_some() {
            let gone = self.source.sessions.values().all(|session| session.holder != epoch);
            if gone || self.faults && self.random.chance(4) {
                self.fail(index, epoch, Problem::transient("SNAPSHOT_LOST", "the session ended", ""));
            }
            return;
        }
        let sources: Vec<TableName> = tables.iter().map(|table| table.name.clone()).collect();
        if let Some(problem) = self.trouble(&sources) {
            return self.fail(index, epoch, problem);
        }
        let mut consistent_point = self.source.lsn;
        match slot {
            SlotRequest::Create { name, .. } => {
                if self.source.slot.as_ref().is_some_and(|slot| slot.reader.is_some()) {
                    let busy = Problem::transient("SLOT_BUSY", "somebody reads it", "");
                    return self.fail(index, epoch, busy);
                }
                self.source.slot = Some(Slot { name, confirmed: consistent_point, reader: None });
            }
            SlotRequest::Existing { .. } => {
                if self.source.slot.is_none() {
                    return self.fail(index, epoch, slot_lost());
                }
            }
            SlotRequest::Temporary => {}
            SlotRequest::None => consistent_point = Lsn::ZERO,
        }
        let snapshot_name = self.source.export(epoch);
        let size = |table: &TableName| TableSize {
            table: table.clone(),
            pages: PAGES,
            estimated_rows: 3000,
            file_node: 2,
        };
        let sizes = sources.iter().map(size).collect();
        let ready = Report::Progress(Progress::SnapshotReady { snapshot_name, consistent_point, sizes });
        self.log(|world| format!("{} holds {epoch}: {ready:?}", world.workers[index].id));
        self.workers[index].held.get_mut(&epoch).unwrap().ready = Some(ready.clone());
        self.report(index, epoch, ready);
    }

    fn copy(
        &mut self,
        index: usize,
        epoch: Epoch,
        table: &TableWork,
        snapshot: &str,
        pages: std::ops::Range<u32>,
    ) {
        let begun = self.workers[index].held[&epoch].begun;
        let source = table.spec.source.clone();
        let interrupted = |problem: Problem| match begun && keeps_all(table) {
            true => Problem::transient("APPEND_ONLY_COPY_INTERRUPTED", "some rows are there", "")
                .of_table(&source),
            false => problem,
        };
        if let Some(problem) = self.trouble(std::slice::from_ref(&source)) {
            let problem = interrupted(problem);
            return self.fail(index, epoch, problem);
        }
        let Some(session) = self.source.sessions.get(snapshot) else {
            let lost = Problem::transient("SNAPSHOT_LOST", "the snapshot is gone", "");
            return self.fail(index, epoch, interrupted(lost));
        };
        let rows = session.rows.get(&source).cloned().unwrap_or_default();
        let rows: Vec<(u8, u64)> = rows
            .iter()
            .filter(|(_, row)| pages.contains(&row.page))
            .map(|(key, row)| (*key, row.value))
            .collect();
        let half = rows.len() / 2;
        let Some(destination) = self.destination.table(&table.spec.target) else {
            let missing = Problem::operator("TARGET_MISSING", "no such table", "").of_table(&source);
            return self.fail(index, epoch, missing);
        };
        if !begun {
            rows[..half].iter().for_each(|(key, value)| destination.copy(*key, *value));
            self.workers[index].held.get_mut(&epoch).unwrap().begun = true;
            return;
        }
        rows[half..].iter().for_each(|(key, value)| destination.copy(*key, *value));
        let outcome = Outcome::Copied { rows: rows.len() as u64, bytes: 0 };
        self.end(index, epoch, Report::Finished(outcome));
    }

    fn stream(&mut self, index: usize, epoch: Epoch) {
        let held = &self.workers[index].held[&epoch];
        let Work::Stream { slot_name, revision, tables, swaps, .. } = held.work.clone() else {
            panic!("a stream's work")
        };
        let (draining, standing) = (held.draining, held.stream.is_some());
        if let Some(problem) = self.trouble(&[]) {
            return self.fail(index, epoch, problem);
        }
        let Some(slot) = self.source.slot.as_mut().filter(|slot| slot.name == slot_name) else {
            return self.fail(index, epoch, slot_lost());
        };
        if !standing {
            // Whoever reads it still is not heard any more.
            slot.reader = Some(epoch);
            let stream = Stream {
                position: slot.confirmed,
                end_at_start: self.source.lsn,
                follows: None,
                tables: Vec::new(),
                aside: BTreeMap::new(),
                recorded: BTreeSet::new(),
            };
            self.workers[index].held.get_mut(&epoch).unwrap().stream = Some(stream);
        } else if slot.reader != Some(epoch) {
            let lost = Problem::transient("STREAM_TERMINATED", "somebody else reads the slot", "");
            return self.fail(index, epoch, lost);
        }
        let mut stream = self.workers[index].held.get_mut(&epoch).unwrap().stream.take().unwrap();
        if stream.follows != Some(revision) {
            let mut refused = BTreeMap::new();
            // Not one that it leaves out: what is stored about it is out of date.
            for swap in swaps.iter().filter(|swap| !stream.aside.contains_key(&swap.id)) {
                let report = match self.swap(swap, Some(stream.position)) {
                    Ok(Swapped::Whole) => Report::TableSwapped(swap.id),
                    Ok(Swapped::ByHalf) => return self.kill(index),
                    Err(problem) => {
                        refused.insert(swap.id, stream.position);
                        Report::TableSetAside(swap.id, *problem)
                    }
                };
                self.table_report(index, epoch, report);
                if self.faults && self.random.chance(100) {
                    self.workers[index].held.get_mut(&epoch).unwrap().stream = Some(stream);
                    return self.kill(index);
                }
            }
            stream.aside.extend(refused);
            stream.tables = tables;
            for swap in swaps.iter().filter(|swap| !stream.aside.contains_key(&swap.id)) {
                // From here on the new one is written under its last name, and the one before no more.
                let goes = |streamed: &StreamedTable| {
                    streamed.table.spec.target == swap.target && streamed.table.id != swap.id
                };
                stream.tables.retain(|streamed| !goes(streamed));
                for streamed in stream.tables.iter_mut().filter(|streamed| streamed.table.id == swap.id) {
                    streamed.table.spec.target.clone_from(&swap.target);
                }
            }
            stream.follows = Some(revision);
        }
        if !draining {
            let many = usize::try_from(self.random.below(12)).unwrap();
            self.carry(index, epoch, &mut stream, many);
        }
        // The slot does not pass what led to something that is not recorded yet.
        let unrecorded = stream.aside.iter().filter(|(id, _)| !stream.recorded.contains(id));
        let confirmed = unrecorded.map(|(_, before)| *before).min().unwrap_or(stream.position);
        let waits = !self.workers[index].held[&epoch].unrecorded.is_empty();
        if let Some(slot) = &mut self.source.slot {
            slot.confirmed = slot.confirmed.max(confirmed);
        }
        let progress = StreamProgress {
            durable: confirmed,
            source: self.source.lsn,
            caught_up: confirmed >= stream.end_at_start,
            revision,
            ..StreamProgress::default()
        };
        self.workers[index].held.get_mut(&epoch).unwrap().stream = Some(stream);
        if draining && !waits {
            self.end(index, epoch, Report::Finished(Outcome::Drained { durable: confirmed }));
        } else {
            self.report(index, epoch, Report::Progress(Progress::Stream(progress)));
        }
    }

    fn table_report(&mut self, index: usize, epoch: Epoch, report: Report) {
        let held = self.workers[index].held.get_mut(&epoch).unwrap();
        if held.unrecorded.iter().all(|said| about(said) != about(&report)) {
            held.unrecorded.push(report.clone());
        }
        self.log(|world| format!("{} says in {epoch}: {report:?}", world.workers[index].id));
        self.report(index, epoch, report);
    }

    /// Brings the next changes to the tables that the stream carries.
    fn carry(&mut self, index: usize, epoch: Epoch, stream: &mut Stream, many: usize) {
        let first = self.source.log.partition_point(|change| change.lsn <= stream.position);
        let next: Vec<_> = self.source.log[first..].iter().take(many).cloned().collect();
        let complete = next.len() < many;
        for change in next {
            let concerned: Vec<StreamedTable> = stream
                .tables
                .iter()
                .filter(|streamed| streamed.table.spec.source == change.table && change.published)
                .filter(|streamed| !stream.aside.contains_key(&streamed.table.id))
                .cloned()
                .collect();
            for streamed in concerned {
                let table = &streamed.table;
                if change.lsn <= streamed.begins {
                    continue;
                }
                let name = table.spec.target.clone();
                let aside = if change.key.is_none() && streamed.copying {
                    Some(Problem::transient("TRUNCATED", "truncated while it was copied", ""))
                } else if self.destination.table(&name).is_none() {
                    Some(Problem::operator("TARGET_MISSING", format!("no table {name}"), ""))
                } else if self.faults && self.random.chance(6) {
                    Some(Problem::operator("VALUE_REFUSED", "a value", "exclude it"))
                } else {
                    None
                };
                if let Some(problem) = aside {
                    let problem = problem.of_table(&change.table);
                    stream.aside.insert(table.id, stream.position);
                    self.table_report(index, epoch, Report::TableSetAside(table.id, problem));
                    continue;
                }
                let destination = self.destination.table(&name).unwrap();
                match change.key {
                    Some(key) => destination.apply(change.lsn, key, change.value),
                    None => destination.empty(),
                }
            }
            stream.position = change.lsn;
        }
        if complete {
            stream.position = self.source.lsn;
        }
    }

    /// Lets a table take the place of the one before; done again, it changes nothing.
    fn swap(&mut self, swap: &Swap, position: Option<Lsn>) -> Result<Swapped, Box<Problem>> {
        let retired = Swap::retired_name(&swap.copied);
        let target = self.destination.names.get(&swap.target).cloned();
        let copied = self.destination.names.get(&swap.copied).cloned();
        if target.as_ref() == Some(&swap.uuid) {
            // It was done before; the old table may not have its last name yet.
            self.destination.rename(&swap.copied, &retired);
            return Ok(Swapped::Whole);
        }
        if copied.as_ref() != Some(&swap.uuid) {
            let message = format!("{} is not the table that was copied", swap.copied);
            let problem = Problem::operator("SWAP_IMPOSSIBLE", message, "");
            return Err(Box::new(problem.of_table(&swap.source)));
        }
        self.check_complete(swap, position);
        self.swapped_in.insert(swap.uuid.clone());
        match target {
            None => self.destination.rename(&swap.copied, &swap.target),
            // One of the pipe's own, as its comment tells.
            Some(_) => {
                self.destination.exchange(&swap.copied, &swap.target);
                if self.faults && self.random.chance(200) {
                    return Ok(Swapped::ByHalf);
                }
                self.destination.rename(&swap.copied, &retired);
            }
        }
        Ok(Swapped::Whole)
    }

    fn drop_table(&mut self, name: &str) {
        self.check_unread(name, "dropped");
        if let Some(uuid) = self.destination.drop(name) {
            self.check_unneeded(&uuid, name);
        }
    }
}

fn slot_lost() -> Problem {
    Problem::permanent("SLOT_LOST", "the slot is lost", "resync")
}
