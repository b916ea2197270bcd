//! Rounds: tables that are described, set up and copied together; and the conclusions that are drawn from how far they are.
//!
//! A table is copied at most once. One that must be copied again (a resync, a retry, a copy that became void) is another table, written under a name
//! of its own, which takes the place of the first when it is complete and up to date. So readers never see a table half-filled, and nothing
//! that is still on its way to the first can get into the second.

use std::collections::BTreeMap;

use millrace_model::spec::TableEngine;
use millrace_model::work::{Swap, TableSize};
use millrace_model::{Epoch, Lsn, Problem, Recovery, TableId, Timestamp, WorkerId};

use crate::aggregate::PipeAggregate;
use crate::pipe::{PipeEvent, PipeState};
use crate::record::{Actor, PartitionRecord, Phase, Purpose, RoundRecord, TableRecord, Task};
use crate::table::{TableEvent, TableState};

/// A table that failed so often in a row is not copied anew without somebody's doing.
const FAILURES: u32 = 2;

impl PipeAggregate {
    /// Begins a round of tables that wait.
    pub(crate) fn begin_round(&mut self, purpose: Purpose, tables: &[TableId]) {
        let number = self.pipe.next_round;
        self.pipe.next_round += 1;
        self.pipe.rounds.push(RoundRecord {
            number,
            purpose,
            phase: Phase::Describe,
            revision: 0,
            snapshot: None,
            clear: false,
        });
        for id in tables {
            if let Some(table) = self.table_mut(*id) {
                table.record.round = Some(number);
            }
        }
        self.touch_pipe();
    }

    /// The tables of a round that take part in it.
    pub(crate) fn round_tables(&self, number: u32) -> impl Iterator<Item = &TableRecord> {
        self.active().filter(move |table| table.round == Some(number))
    }

    /// Destination tables stand, so copies may begin.
    pub(crate) fn begin_copies(&mut self, number: u32) {
        self.revise();
        let revision = self.pipe.revision;
        if let Some(round) = self.round_mut(number) {
            round.phase = Phase::Copy;
            round.revision = revision;
        }
        if self.waits_for_drain() {
            self.drain_stream();
        }
    }

    /// A table that keeps every row is about to be copied while changes stream. The stream must stand still until the snapshot says from which transaction on
    /// its changes count, or some would be in both.
    pub(crate) fn waits_for_drain(&self) -> bool {
        self.pipe.streams
            && self.pipe.rounds.iter().any(|round| {
                round.phase == Phase::Copy
                    && round.snapshot.is_none()
                    && self.round_tables(round.number).any(|table| {
                        table.spec.engine != TableEngine::ReplacingMergeTree
                            && table.state == TableState::Waiting
                            && table.begins == Lsn::ZERO
                    })
            })
    }

    /// Whether the stream carries the round's tables, so that a snapshot taken from now on and the stream have no gap between them.
    pub(crate) fn is_admitted(&self, round: &RoundRecord) -> bool {
        if !self.pipe.streams {
            return true;
        }
        if self.waits_for_drain() {
            return !self.stream_stands();
        }
        self.followed_revision().is_some_and(|followed| followed >= round.revision)
    }

    /// The revision that the stream says it follows.
    pub fn followed_revision(&self) -> Option<u64> {
        let (epoch, revision) = self.followed?;
        self.assignment(epoch).filter(|held| !held.draining).map(|_| revision)
    }

    /// Whether nobody carries what was taken out any more.
    pub(crate) fn stream_follows(&self) -> bool {
        !self.stream_wanted() || self.followed_revision() == Some(self.pipe.revision)
    }

    /// A snapshot is open: the tables that are to be read under it are cut.
    pub(crate) fn open_snapshot(
        &mut self,
        number: u32,
        point: Lsn,
        sizes: &[TableSize],
        worker: &WorkerId,
        now: Timestamp,
    ) {
        let first_of_slot = self.pipe.slot.as_ref().is_none_or(|slot| slot.consistent_point >= point);
        let unfinished: Vec<TableId> = self
            .round_tables(number)
            .filter(|table| matches!(table.state, TableState::Waiting | TableState::Copying))
            .map(|table| table.id)
            .collect();
        for id in &unfinished {
            let Some(table) = self.table_mut(*id) else { continue };
            let table = &mut table.record;
            table.goal = point;
            if table.state == TableState::Waiting {
                table.begins = point;
            }
            // What is copied from now on may be younger than the stream.
            if let Some(definition) = table.definition.as_mut().filter(|_| !first_of_slot) {
                definition.distrusted_until = definition.distrusted_until.max(point);
            }
        }
        self.cut_tables(number, sizes, worker, now);
    }

    /// Cuts every table of the round that was not cut yet; one that could not be measured is set aside.
    fn cut_tables(&mut self, number: u32, sizes: &[TableSize], worker: &WorkerId, now: Timestamp) {
        let rows_per_partition = self.pipe.spec.settings.snapshot_rows_per_partition;
        let uncut: Vec<(TableId, Option<TableSize>)> = self
            .round_tables(number)
            .filter(|table| !table.cut)
            .map(|table| (table.id, sizes.iter().find(|size| &size.table == table.source()).cloned()))
            .collect();
        for (id, size) in uncut {
            let Some(size) = size else {
                // Without partitions it would wait for ever, and the pipe with it.
                let Some(source) = self.table(id).map(|table| table.record.source().clone()) else {
                    continue;
                };
                let problem = Problem::operator(
                    "SOURCE_TABLE_MISSING",
                    "the table went away between the checks and the copy",
                    "bring it back under its name and run `millrace pipe retry`, or take it out of the pipe",
                );
                self.set_aside(id, problem.of_table(&source), Actor::Worker(worker.clone()), now);
                continue;
            };
            let ranges =
                millrace_scheduler::partition::cut(size.pages, size.estimated_rows, rows_per_partition);
            let partitions =
                (0..).zip(ranges).map(|(number, range)| PartitionRecord { number, range, done: None });
            self.set_partitions(id, partitions.collect());
            if let Some(table) = self.table_mut(id) {
                table.record.cut = true;
                table.record.rows_estimated = size.estimated_rows;
                if let Some(definition) = &mut table.record.definition {
                    definition.file_node = size.file_node;
                }
            }
        }
    }

    /// The snapshot is gone with its session. A pipe with a stream goes on under a later one, since the stream brings what changed in between
    /// (design, "A copy that survives"); one without must begin its copy anew, or rows that moved between partitions would be lost.
    pub(crate) fn lose_snapshot(&mut self, epoch: Epoch, now: Timestamp) {
        let holds = |round: &&mut RoundRecord| {
            round.snapshot.as_ref().is_some_and(|snapshot| snapshot.epoch == epoch)
        };
        let Some(round) = self.pipe.rounds.iter_mut().find(holds) else { return };
        round.snapshot = None;
        let number = round.number;
        self.touch_pipe();
        let tables: Vec<TableId> = self.round_tables(number).map(|table| table.id).collect();
        if self.pipe.spec.mode.follows() {
            tables.into_iter().for_each(|id| self.interrupt_append_only(id, now));
            return;
        }
        self.note(
            "the session that held the snapshot ended; without a stream of changes the copy begins anew",
            Actor::Coordinator,
            now,
        );
        if let Some(round) = self.round_mut(number) {
            round.clear = true;
        }
        self.release_all(|task| matches!(task, Task::Copy { table, .. } if tables.contains(table)));
        for id in tables {
            self.advance_table(id, TableEvent::CopyVoided, Actor::Coordinator, now);
            let partitions = self.table(id).map(|table| table.partitions.clone()).unwrap_or_default();
            let voided = partitions.into_iter().map(|partition| PartitionRecord { done: None, ..partition });
            self.set_partitions(id, voided.collect());
        }
    }

    /// Leaves a table out, with its reason, while the others go on.
    pub(crate) fn set_aside(&mut self, id: TableId, problem: Problem, actor: Actor, now: Timestamp) {
        if let Some(table) = self.table_mut(id).filter(|table| table.record.state.is_active()) {
            table.record.failures += 1;
            self.leave_out(id, problem, actor, now);
        }
    }

    /// Copies a table anew for a reason that has nothing to do with the table: however often that happens, it is begun again.
    pub(crate) fn begin_anew(&mut self, id: TableId, problem: Problem, now: Timestamp) {
        self.leave_out(id, problem, Actor::Coordinator, now);
    }

    fn leave_out(&mut self, id: TableId, problem: Problem, actor: Actor, now: Timestamp) {
        let Some(table) = self.table_mut(id).filter(|table| table.record.state.is_active()) else { return };
        table.record.problem = Some(problem.clone());
        let failures = table.record.failures;
        self.advance_table(id, TableEvent::Broke, actor.clone(), now);
        self.release_all(|task| matches!(task, Task::Copy { table, .. } if *table == id));
        self.note_problem(problem.clone(), actor.clone(), now);
        self.revise();
        // Without its rows, the others that feed the same destination table would take its place with less than readers have.
        if let Some(original) = self.table(id).and_then(|table| table.record.replaces) {
            for other in self.sharing(original).into_iter().filter(|other| *other != original) {
                self.give_up_successor(other);
            }
        }
        if problem.recovery == Recovery::Retry && failures < FAILURES {
            self.copy_anew(id, failures, now);
        }
        if self.active().next().is_none() {
            self.break_down(problem, actor, now);
        } else {
            self.conclude(&actor, now);
        }
    }

    /// Begins to copy a table into another, which takes its place in the end; one that was on its way to that place already is given up.
    pub(crate) fn copy_anew(&mut self, id: TableId, failures: u32, now: Timestamp) {
        let Some(table) = self.table(id).map(|table| table.record.clone()) else { return };
        let original = table.replaces.unwrap_or(id);
        let purpose = table.round.and_then(|number| self.round(number)).map(|round| round.purpose);
        let purpose = purpose.filter(|purpose| purpose.replaces()).unwrap_or(Purpose::Tables);
        self.begin_resync(&[original], purpose, now);
        let successor = self.successor(original).map(|table| table.record.id);
        if let Some(table) = successor.and_then(|successor| self.table_mut(successor)) {
            table.record.failures = failures;
        }
    }

    /// The table itself and all others that feed the same destination table: what takes the place of one takes the place of all.
    pub(crate) fn sharing(&self, original: TableId) -> Vec<TableId> {
        let target = self.table(original).map(|table| table.record.spec.target.clone());
        self.ids(|table| {
            table.replaces.is_none()
                && table.state != TableState::Removed
                && (table.id == original || target.as_ref() == Some(&table.spec.target))
        })
    }

    /// Begins to copy tables into others, which take their places when all of them are complete and up to date. Those that feed one destination table go together.
    pub(crate) fn begin_resync(&mut self, originals: &[TableId], purpose: Purpose, now: Timestamp) {
        let mut all: Vec<TableId> = originals.iter().flat_map(|original| self.sharing(*original)).collect();
        all.sort();
        all.dedup();
        all.iter().for_each(|original| self.give_up_successor(*original));
        let mut written: BTreeMap<String, String> = BTreeMap::new();
        let mut successors = Vec::new();
        for original in all {
            let Some(known) = self.table(original).map(|table| table.record.spec.clone()) else { continue };
            let spec = self.pipe.spec.tables.iter().find(|table| table.source == known.source).cloned();
            let target = spec.as_ref().unwrap_or(&known).target.clone();
            let successor = self.add_table(spec.unwrap_or(known), Some(original), now);
            if let Some(table) = self.table_mut(successor) {
                let first = written.entry(target).or_insert_with(|| table.record.written.clone());
                table.record.written.clone_from(first);
            }
            successors.push(successor);
        }
        self.begin_round(purpose, &successors);
    }

    /// A destination table of ours that nobody needs any more. It goes under both names: nobody may have recorded that it took the other's place.
    fn discard(&mut self, written: &str) {
        for name in [written.to_owned(), Swap::retired_name(written)] {
            if !self.pipe.garbage.contains(&name) {
                self.pipe.garbage.push(name);
            }
        }
        self.touch_pipe();
    }

    /// Drops what was to take a table's place.
    pub(crate) fn give_up_successor(&mut self, original: TableId) {
        while let Some(successor) = self.successor(original).map(|table| table.record.clone()) {
            self.release_all(|task| matches!(task, Task::Copy { table, .. } if *table == successor.id));
            self.discard(&successor.written);
            self.forget_table(successor.id);
            self.revise();
        }
    }

    /// A table that was copied anew has taken the place of the one before.
    pub(crate) fn swapped(&mut self, id: TableId, actor: &Actor, now: Timestamp) -> Option<()> {
        let table = self.table(id)?.record.clone();
        let original = table.replaces?;
        if table.state != TableState::Swapping {
            return None;
        }
        self.discard(&table.written);
        self.advance_table(original, TableEvent::Removed, actor.clone(), now);
        self.forget_table(original);
        let table = &mut self.table_mut(id)?.record;
        table.replaces = None;
        table.round = None;
        table.failures = 0;
        table.written.clone_from(&table.spec.target);
        let for_good = !self.pipe.spec.mode.follows();
        let event = if for_good { TableEvent::SwappedForGood } else { TableEvent::SwappedBeforeStream };
        self.advance_table(id, event, actor.clone(), now);
        self.revise();
        Some(())
    }

    /// The pipe cannot go on.
    pub(crate) fn break_down(&mut self, problem: Problem, actor: Actor, now: Timestamp) {
        self.note_problem(problem.clone(), actor.clone(), now);
        if self.advance(PipeEvent::Broke, problem.message.clone(), actor, now).is_ok() {
            self.pipe.failure = Some(problem);
        }
    }

    /// Draws the conclusions from what is done by now: for each round, then for the pipe.
    pub(crate) fn conclude(&mut self, actor: &Actor, now: Timestamp) {
        if self.pipe.deleting {
            return;
        }
        let rounds: Vec<u32> = self.pipe.rounds.iter().map(|round| round.number).collect();
        rounds.into_iter().for_each(|number| self.conclude_round(number, actor, now));
        self.conclude_pipe(actor, now);
    }

    fn conclude_round(&mut self, number: u32, actor: &Actor, now: Timestamp) {
        let Some((purpose, phase)) = self.round(number).map(|round| (round.purpose, round.phase)) else {
            return;
        };
        if phase == Phase::Copy {
            let for_good = !self.pipe.spec.mode.follows();
            let copied = |table: &TableRecord| {
                let found = self.table(table.id);
                table.cut
                    && table.state == TableState::Copying
                    && found.is_some_and(|table| table.progress.done as usize == table.partitions.len())
            };
            let copied: Vec<TableId> =
                self.round_tables(number).filter(|table| copied(table)).map(|table| table.id).collect();
            let event = if for_good { TableEvent::CopiedForGood } else { TableEvent::CopiedBeforeStream };
            for id in copied {
                self.advance_table(id, event, actor.clone(), now);
                self.revise();
            }
        }
        let states: Vec<(TableId, TableState)> =
            self.round_tables(number).map(|table| (table.id, table.state)).collect();
        let all = |is_so: fn(TableState) -> bool| states.iter().all(|(_, state)| is_so(*state));
        if all(TableState::is_copied) {
            self.release_all(|task| *task == Task::Snapshot { round: number });
            if let Some(round) = self.round_mut(number) {
                round.snapshot = None;
            }
        }
        let over = states.is_empty() || !purpose.replaces() && all(TableState::is_copied);
        let up_to_date = |state| matches!(state, TableState::Streaming | TableState::Completed);
        if over {
            self.end_round(number);
        } else if phase == Phase::Copy && purpose.replaces() && all(up_to_date) {
            if let Some(round) = self.round_mut(number) {
                round.phase = Phase::Swap;
            }
            for (id, _) in states {
                self.advance_table(id, TableEvent::SwapBegun, actor.clone(), now);
            }
            self.revise();
        }
    }

    fn end_round(&mut self, number: u32) {
        self.release_all(|task| task.round() == Some(number));
        self.pipe.rounds.retain(|round| round.number != number);
        for id in self.ids(|table| table.round == Some(number)) {
            if let Some(table) = self.table_mut(id) {
                table.record.round = None;
            }
        }
        self.touch_pipe();
    }

    /// Whether the pipe as a whole has something to copy.
    pub(crate) fn has_copies(&self) -> bool {
        self.pipe.rounds.iter().any(|round| round.purpose != Purpose::Tables && round.phase < Phase::Swap)
    }

    /// Whether the pipe shows Snapshot while it works: something is copied, or waits to be swapped in.
    pub(crate) fn shows_snapshot(&self) -> bool {
        let resyncs = self.pipe.rounds.iter().any(|round| round.purpose == Purpose::Resync);
        self.has_copies() || resyncs || self.pipe.after_resync.is_some() || !self.pipe.spec.mode.follows()
    }

    /// Whether readers lack a table that was set aside, or one is being mended.
    fn lacks_tables(&self) -> bool {
        let mended = self.pipe.rounds.iter().any(|round| round.purpose == Purpose::Tables);
        let lacking = |table: &TableRecord| {
            let successor = self.successor(table.id);
            table.replaces.is_none()
                && table.state == TableState::SetAside
                && successor.is_none_or(|successor| !successor.record.state.is_active())
        };
        mended || self.tables.iter().any(|table| lacking(&table.record))
    }

    fn conclude_pipe(&mut self, actor: &Actor, now: Timestamp) {
        let follows = self.pipe.spec.mode.follows();
        // Not one that is copied anew beside the others: it may be long, and the stream carries it as it carries a resync.
        let holds_the_stream_back = |table: &TableRecord| {
            let round = table.round.and_then(|number| self.round(number));
            matches!(table.state, TableState::Waiting | TableState::Copying)
                && round.is_none_or(|round| round.purpose != Purpose::Tables)
        };
        if follows
            && !self.pipe.streams
            && self.pipe.slot.is_some()
            && !self.active().any(holds_the_stream_back)
            && matches!(
                self.pipe.state,
                PipeState::Setup | PipeState::Snapshot | PipeState::Running | PipeState::Resync
            )
        {
            self.pipe.streams = true;
            self.revise();
        }
        // Also where Modifying failed and a resync led on from there.
        if !self.pipe.publication_due && self.stream_follows() {
            self.forget_removed();
        }
        // Each arm names an event that its state allows, so none of them can be refused.
        let (event, cause) = match self.pipe.state {
            PipeState::Setup => {
                let described =
                    |round: &RoundRecord| round.purpose == Purpose::Tables || round.phase >= Phase::Copy;
                if !self.pipe.rounds.iter().all(described) {
                    return;
                }
                let cause = if follows {
                    "destination tables and publication stand".to_owned()
                } else {
                    "destination tables stand".to_owned()
                };
                let copies = self.pipe.spec.mode.copies();
                (if copies { PipeEvent::SetUp } else { PipeEvent::SetUpForChanges }, cause)
            }
            PipeState::Snapshot => {
                if self.has_copies() {
                    return;
                }
                let swaps = |round: &RoundRecord| round.purpose == Purpose::Resync;
                if !follows && self.lacks_tables() {
                    // A snapshot-only pipe with a table set aside is not complete.
                    return;
                }
                let cause = match self.active().count() {
                    1 => "the table is copied".to_owned(),
                    tables => format!("{tables} tables copied"),
                };
                // One that rested rests again, also where all that was to be swapped was taken out meanwhile.
                let rests = self.pipe.after_resync == Some(PipeState::Paused);
                if self.pipe.rounds.iter().any(swaps) || rests {
                    self.revise();
                    (PipeEvent::ReadyToSwap, "the new copies are complete and up to date".to_owned())
                } else if follows {
                    (PipeEvent::CopiedBeforeStream, cause)
                } else if self.pipe.rounds.is_empty() {
                    (PipeEvent::CopiedForGood, cause)
                } else {
                    return;
                }
            }
            PipeState::Resync => {
                if self.pipe.rounds.iter().any(|round| round.purpose == Purpose::Resync) {
                    return;
                }
                let otherwise = if follows { PipeState::Running } else { PipeState::Completed };
                let back_to = self.pipe.after_resync.unwrap_or(otherwise);
                if back_to == PipeState::Paused && self.stream_stands() {
                    return self.drain_stream();
                }
                (PipeEvent::Swapped { back_to }, "the new tables are in place".to_owned())
            }
            PipeState::Modifying => {
                if self.pipe.publication_due || !self.stream_follows() {
                    return;
                }
                let before = self.pipe.back_to.unwrap_or(PipeState::Running);
                let back_to = match before {
                    PipeState::Running | PipeState::Snapshot if self.shows_snapshot() => PipeState::Snapshot,
                    PipeState::Snapshot if !self.pipe.streams => PipeState::Snapshot,
                    PipeState::Snapshot => PipeState::Running,
                    other => other,
                };
                (PipeEvent::Modified { back_to }, "the tables are taken out".to_owned())
            }
            PipeState::Pausing => {
                if follows || self.assignments().next().is_some() {
                    return;
                }
                (PipeEvent::Drained, "no copy is under way any more".to_owned())
            }
            PipeState::Provisioning
            | PipeState::Running
            | PipeState::Paused
            | PipeState::Completed
            | PipeState::Failed => return,
        };
        if matches!(
            event,
            PipeEvent::Swapped { .. } | PipeEvent::CopiedBeforeStream | PipeEvent::CopiedForGood
        ) {
            self.pipe.after_resync = None;
        }
        if self.advance(event, cause, actor.clone(), now).is_ok() {
            // The new state may be over, too.
            self.conclude_pipe(actor, now);
        }
    }

    /// Tables that were taken out are gone for good.
    fn forget_removed(&mut self) {
        for id in self.ids(|table| table.state == TableState::Removed) {
            self.give_up_successor(id);
            if let Some(table) = self.table(id).filter(|table| table.record.replaces.is_some()) {
                let written = table.record.written.clone();
                self.discard(&written);
            }
            self.forget_table(id);
        }
    }
}
