//! Which work a pipe calls for, by its state alone. The planner compares it with what is in workers' hands.

use std::collections::BTreeSet;

use millrace_model::TableName;

use crate::aggregate::PipeAggregate;
use crate::pipe::PipeState;
use crate::record::{PartitionRecord, Task};
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
        match self.pipe.state {
            PipeState::Provisioning => vec![Task::Provision],
            PipeState::Setup => vec![Task::SetUp],
            PipeState::Snapshot if self.pipe.clear_tables => vec![Task::SetUp],
            PipeState::Snapshot => {
                let mut tasks = vec![Task::Snapshot];
                if self.pipe.snapshot.is_some() {
                    tasks.extend(self.wanted_copies());
                } else {
                    // Whoever took the lost snapshot over already can still finish under it.
                    let copies = self.assignments().map(|held| &held.task);
                    tasks.extend(copies.filter(|task| matches!(task, Task::Copy { .. })).cloned());
                }
                tasks
            }
            PipeState::Running => vec![Task::Stream],
            // A stream that stands drains. Where it went away with its worker, somebody must still see to the slot.
            PipeState::Pausing if self.assignments().any(|held| held.task == Task::Stream) => {
                vec![Task::Stream]
            }
            PipeState::Pausing => vec![Task::Release],
            PipeState::Paused | PipeState::Completed | PipeState::Failed => Vec::new(),
        }
    }

    fn wanted_copies(&self) -> Vec<Task> {
        let settings = &self.pipe.spec.settings;
        let connections = settings.max_source_connections as usize;
        let per_table = match settings.initial_load_parallelism {
            0 => connections,
            limit => limit as usize,
        };
        let standing: BTreeSet<(&TableName, u32)> = self
            .assignments()
            .filter_map(|held| match &held.task {
                Task::Copy { table, partition } => Some((table, *partition)),
                _ => None,
            })
            .collect();
        // Tables that were begun are finished first.
        let mut open: Vec<usize> = (0..self.tables.len())
            .filter(|index| matches!(self.tables[*index].state, TableState::Waiting | TableState::Copying))
            .collect();
        open.sort_by_key(|index| self.tables[*index].state != TableState::Copying);
        let mut tasks = Vec::new();
        let mut tables = 0;
        for index in open {
            let table = &self.tables[index].source;
            if tables == settings.snapshot_parallel_tables || tasks.len() == connections {
                break;
            }
            let first_open = self.progress_of(index).first_open;
            let unfinished =
                self.partitions[index].iter().skip(first_open).filter(|partition| partition.done.is_none());
            let (standing, new): (Vec<&PartitionRecord>, Vec<&PartitionRecord>) = unfinished
                .take(per_table + standing.len())
                .partition(|open| standing.contains(&(table, open.number)));
            // A table whose last partitions are all in hand leaves room for the next one, so that connections do not idle at its end.
            let saturated = !new.is_empty();
            let picked = standing.into_iter().chain(new).take(per_table.min(connections - tasks.len()));
            tasks.extend(picked.map(|open| Task::Copy { table: table.clone(), partition: open.number }));
            tables += u32::from(saturated);
        }
        tasks
    }
}
