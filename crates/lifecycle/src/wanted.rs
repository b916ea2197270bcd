//! Which work a pipe calls for, by its state alone. The planner compares it with what is in workers' hands.

use std::collections::BTreeSet;

use millrace_model::TableId;

use crate::aggregate::{PipeAggregate, PipeTable};
use crate::pipe::PipeState;
use crate::record::{PartitionRecord, Phase, Purpose, RoundRecord, Task};
use crate::table::TableState;

impl PipeAggregate {
    /// The tasks that should be in somebody's hands now, most urgent first.
    ///
    /// Copies are limited by the pipe's own settings: tables at a time, partitions of one table at a time, connections to the source.
    /// What stands already counts, and comes before what would be new.
    pub fn wanted(&self) -> Vec<Task> {
        if self.pipe.deleting {
            return vec![Task::Teardown];
        }
        let mut tasks = Vec::new();
        if self.stream_wanted() {
            tasks.push(Task::Stream);
        }
        match self.pipe.state {
            PipeState::Failed => return Vec::new(),
            // Nothing is read and nothing that readers have is written; what nobody needs goes all the same.
            PipeState::Paused | PipeState::Completed => return self.wanted_cleaning().collect(),
            // A stream that stands drains. Where it went away with its worker, somebody must still see to the slot.
            PipeState::Pausing => {
                if tasks.is_empty() && self.pipe.spec.mode.follows() {
                    tasks.push(Task::Release);
                }
                return tasks;
            }
            PipeState::Provisioning
            | PipeState::Setup
            | PipeState::Snapshot
            | PipeState::Running
            | PipeState::Modifying
            | PipeState::Resync => {}
        }
        if self.pipe.publication_due && self.stream_follows() {
            tasks.push(Task::Publish);
        }
        if self.rounds_go_on() {
            self.pipe.rounds.iter().for_each(|round| self.wanted_of_round(round, &mut tasks));
            tasks.extend(self.wanted_copies());
        }
        if self.pipe.state == PipeState::Running {
            tasks.extend(self.wanted_verifications());
        }
        self.publish_one_by_one(&mut tasks);
        tasks.extend(self.wanted_cleaning());
        tasks
    }

    /// Each task that says which tables the publication has says what was so when it was given out: of two at a time the older could come last.
    fn publish_one_by_one(&self, tasks: &mut Vec<Task>) {
        let publishes = |task: &Task| matches!(task, Task::Publish | Task::SetUp { .. });
        if !self.owns_publication() {
            return;
        }
        let standing = self.assignments().map(|held| &held.task).find(|task| publishes(task));
        let first = standing.or_else(|| tasks.iter().find(|task| publishes(task))).cloned();
        tasks.retain(|task| !publishes(task) || Some(task) == first.as_ref());
    }

    /// Whether a task is a copy that is still to be made, be it now or when there is room.
    pub fn is_open_copy(&self, task: &Task) -> bool {
        let Task::Copy { table, partition, .. } = task else { return false };
        let unfinished = |state| matches!(state, TableState::Waiting | TableState::Copying);
        self.table(*table).is_some_and(|table| {
            let partition = table.partitions.get(*partition as usize);
            unfinished(table.record.state) && partition.is_some_and(|found| found.done.is_none())
        })
    }

    fn wanted_cleaning(&self) -> impl Iterator<Item = Task> {
        (!self.pipe.garbage.is_empty()).then_some(Task::Clean).into_iter()
    }

    /// Whether the slot's changes are to be carried now.
    pub(crate) fn stream_wanted(&self) -> bool {
        self.stream_begins() || self.stream_drains() && self.stream_stands()
    }

    /// Whether a stream is there only to come to its end.
    pub(crate) fn stream_drains(&self) -> bool {
        match self.pipe.state {
            PipeState::Pausing => true,
            // It rests again.
            PipeState::Resync => {
                let over = self.pipe.rounds.iter().all(|round| round.purpose != Purpose::Resync);
                over && self.pipe.after_resync == Some(PipeState::Paused) || self.waits_for_drain()
            }
            PipeState::Setup | PipeState::Snapshot | PipeState::Running => self.waits_for_drain(),
            PipeState::Modifying => self.rounds_go_on() && self.waits_for_drain(),
            PipeState::Provisioning | PipeState::Paused | PipeState::Completed | PipeState::Failed => false,
        }
    }

    /// Whether a stream that does not stand is to begin.
    fn stream_begins(&self) -> bool {
        match self.pipe.state {
            PipeState::Setup | PipeState::Snapshot | PipeState::Running | PipeState::Resync => {
                self.pipe.streams && !self.stream_drains()
            }
            PipeState::Modifying => {
                self.pipe.streams && self.pipe.back_to != Some(PipeState::Paused) && !self.stream_drains()
            }
            PipeState::Provisioning
            | PipeState::Pausing
            | PipeState::Paused
            | PipeState::Completed
            | PipeState::Failed => false,
        }
    }

    /// While tables are taken out of a pipe that rests, nothing else happens.
    fn rounds_go_on(&self) -> bool {
        let rests = [Some(PipeState::Paused), Some(PipeState::Completed)].contains(&self.pipe.back_to);
        self.pipe.state != PipeState::Modifying || !rests
    }

    fn wanted_of_round(&self, round: &RoundRecord, tasks: &mut Vec<Task>) {
        let number = round.number;
        match round.phase {
            Phase::Describe => tasks.push(Task::Provision { round: number }),
            Phase::SetUp => tasks.push(Task::SetUp { round: number }),
            Phase::Copy if round.clear => tasks.push(Task::SetUp { round: number }),
            Phase::Copy => {
                let unfinished = |state| matches!(state, TableState::Waiting | TableState::Copying);
                let held = round.snapshot.is_some();
                // The first snapshot makes the slot. A second one at the same time would make it anew, and what came in between would be lost.
                let makes_slot = self.pipe.spec.mode.follows() && self.pipe.slot.is_none();
                let standing = self.assignments().map(|held| &held.task);
                let others =
                    |task: &Task| matches!(task, Task::Snapshot { .. }) && task.round() != Some(number);
                if makes_slot && standing.chain(&*tasks).any(others) {
                    return;
                }
                if self.round_tables(number).any(|table| unfinished(table.state))
                    && (held || self.is_admitted(round))
                {
                    tasks.push(Task::Snapshot { round: number });
                }
            }
            Phase::Swap => {
                let now = round.purpose == Purpose::Tables || self.pipe.state == PipeState::Resync;
                if now && !self.pipe.spec.mode.follows() {
                    tasks.push(Task::Swap { round: number });
                }
            }
        }
    }

    fn wanted_copies(&self) -> Vec<Task> {
        let settings = &self.pipe.spec.settings;
        let connections = settings.max_source_connections as usize;
        let per_table = match settings.initial_load_parallelism {
            0 => connections,
            limit => limit as usize,
        };
        let standing: BTreeSet<(TableId, u32)> = self
            .assignments()
            .filter_map(|held| match &held.task {
                Task::Copy { table, partition, .. } => Some((*table, *partition)),
                _ => None,
            })
            .collect();
        let mut open: Vec<&PipeTable> = self
            .tables()
            .filter(|table| matches!(table.record.state, TableState::Waiting | TableState::Copying))
            .collect();
        // Tables that were begun are finished first.
        open.sort_by_key(|table| table.record.state != TableState::Copying);
        let task = |table: &PipeTable, partition: &PartitionRecord| Task::Copy {
            table: table.record.id,
            source: table.record.source().clone(),
            partition: partition.number,
        };
        // Whoever took a lost snapshot over already can still finish under it; and no setting takes from anybody what is half done.
        let mut tasks: Vec<Task> = open
            .iter()
            .flat_map(|table| {
                let standing = standing.range((table.record.id, 0)..=(table.record.id, u32::MAX));
                let partitions = standing.filter_map(|(_, number)| table.partitions.get(*number as usize));
                partitions
                    .filter(|partition| partition.done.is_none())
                    .map(|partition| task(table, partition))
            })
            .collect();
        let mut tables = 0;
        for table in open {
            if tables == settings.snapshot_parallel_tables || tasks.len() >= connections {
                break;
            }
            let readable = table.record.round.and_then(|number| self.round(number));
            if !readable.is_some_and(|round| round.snapshot.is_some() && !round.clear) {
                continue;
            }
            let held = standing.range((table.record.id, 0)..=(table.record.id, u32::MAX)).count();
            let room = per_table.saturating_sub(held).min(connections - tasks.len());
            let mut new = table
                .partitions
                .iter()
                .skip(table.progress.first_open)
                .filter(|partition| partition.done.is_none())
                .filter(|partition| !standing.contains(&(table.record.id, partition.number)))
                .peekable();
            // A table whose last partitions are all in hand leaves room for the next one, so that connections do not idle at its end.
            tables += u32::from(new.peek().is_some());
            tasks.extend(new.take(room).map(|partition| task(table, partition)));
        }
        tasks
    }
}
