//! What a worker must know to do a task.

use millrace_model::spec::TableEngine;
use millrace_model::work::{Assignment, SlotRequest, StreamedTable, Swap, TableWork, TraceContext, Work};
use millrace_model::{Epoch, Lsn, PipeSpec, TableId, TableName};

use crate::aggregate::PipeAggregate;
use crate::pipe::PipeState;
use crate::record::{Phase, Purpose, TableRecord, Task};
use crate::table::TableState;

impl PipeAggregate {
    /// The assignment of a task; `None` where it cannot be given now.
    pub(crate) fn assignment_of(&self, epoch: Epoch, task: &Task, trace: TraceContext) -> Option<Assignment> {
        let work = self.work(task)?;
        let tables = match task {
            Task::Provision { round } => self
                .round_tables(*round)
                .map(|table| millrace_model::spec::TableSpec {
                    target: table.written.clone(),
                    ..table.spec.clone()
                })
                .collect(),
            _ => Vec::new(),
        };
        let spec = PipeSpec { tables, ..self.pipe.spec.clone() };
        Some(Assignment { epoch, pipe: self.pipe.id.clone(), trace, spec, work })
    }

    /// The slot's name, whether it stands or not.
    pub fn slot_name(&self) -> String {
        let stands = self.pipe.slot.as_ref().map(|slot| slot.name.clone());
        let named = self.pipe.spec.settings.replication_slot_name.clone();
        stands.or(named).unwrap_or_else(|| self.pipe.id.slot_name())
    }

    /// The publication's name.
    pub fn publication_name(&self) -> String {
        let named = self.pipe.spec.settings.publication_name.clone();
        named.unwrap_or_else(|| self.pipe.id.publication_name())
    }

    /// Whether the pipe makes, changes and drops its publication itself.
    pub(crate) fn owns_publication(&self) -> bool {
        self.pipe.spec.mode.follows() && self.pipe.spec.settings.publication_name.is_none()
    }

    /// Whether the slot goes with the pipe: one that a user gave to a pipe that copies nothing does not.
    fn owns_slot(&self) -> bool {
        let settings = &self.pipe.spec.settings;
        self.pipe.spec.mode.copies() || settings.replication_slot_name.is_none()
    }

    /// The pipe's own publication with all its tables.
    fn publication(&self) -> Option<(String, Vec<TableName>)> {
        self.owns_publication().then(|| {
            let tables = self.tables.iter().map(|table| &table.record);
            let mut sources: Vec<TableName> = tables
                .filter(|table| table.state != TableState::Removed && table.replaces.is_none())
                // Not one that nobody has described: it may not exist.
                .filter(|table| {
                    let successor = self.successor(table.id).map(|table| &table.record);
                    table.definition.is_some()
                        || successor.is_some_and(|successor| successor.definition.is_some())
                })
                .map(|table| table.source().clone())
                .collect();
            sources.sort();
            sources.dedup();
            (self.publication_name(), sources)
        })
    }

    fn work(&self, task: &Task) -> Option<Work> {
        let destination = self.pipe.destination;
        Some(match task {
            Task::Provision { round } => {
                Work::Provision { anew: self.round(*round)?.purpose != Purpose::Initial }
            }
            Task::SetUp { round } => Work::SetUp {
                tables: self.round_tables(*round).filter_map(table_work).collect(),
                destination,
                clear: self.round(*round)?.clear,
                publication: self.publication(),
                slot: self.slot_without_copy(),
            },
            Task::Publish => Work::SetUp {
                tables: Vec::new(),
                destination,
                clear: false,
                publication: self.publication(),
                slot: None,
            },
            Task::Snapshot { round } => Work::Snapshot {
                slot: self.slot_request(self.round(*round)?.purpose),
                tables: self.round_tables(*round).filter_map(|table| table.definition.clone()).collect(),
            },
            Task::Copy { table, partition, .. } => {
                let table = self.table(*table)?;
                let round = self.round(table.record.round?)?;
                Work::Copy {
                    table: table_work(&table.record)?,
                    snapshot_name: round.snapshot.as_ref()?.name.clone(),
                    partition: *partition,
                    range: table.partitions.get(*partition as usize)?.range,
                    destination,
                }
            }
            Task::Stream => {
                let slot = self.pipe.slot.as_ref()?;
                Work::Stream {
                    slot_name: slot.name.clone(),
                    publication_name: self.publication_name(),
                    system_identifier: self.pipe.system_identifier?,
                    consistent_point: slot.consistent_point,
                    durable: self.pipe.durable,
                    timeline: self.pipe.timeline,
                    revision: self.pipe.revision,
                    tables: self.active().filter_map(|table| self.streamed(table)).collect(),
                    swaps: self.swaps(|_| true),
                    destination,
                }
            }
            Task::Verify { table, part, .. } => {
                let record = &self.table(*table)?.record;
                let range = match part {
                    None => None,
                    Some(part) => Some(record.verification.as_ref()?.parts.get(*part as usize)?.range),
                };
                let same_target = |other: &&TableRecord| other.spec.target == record.spec.target;
                Work::Verify {
                    table: table_work(record)?,
                    range,
                    slot_name: self.pipe.slot.as_ref()?.name.clone(),
                    shared_target: self
                        .active()
                        .filter(|other| other.replaces.is_none())
                        .filter(same_target)
                        .count()
                        > 1,
                    destination,
                }
            }
            Task::Swap { round } => Work::Swap { swaps: self.swaps(|of| of == *round) },
            Task::Clean => Work::Clean { tables: self.pipe.garbage.clone() },
            Task::Release => Work::Release { slot_name: self.slot_name() },
            Task::Teardown => {
                let follows = self.pipe.spec.mode.follows();
                let tables = self.tables.iter().map(|table| &table.record);
                let names = tables.flat_map(|table| match (table.replaces, self.pipe.drop_tables) {
                    // Under both names: nobody may have recorded that it took the other's place.
                    (Some(_), _) => vec![table.written.clone(), Swap::retired_name(&table.written)],
                    (None, true) => vec![table.written.clone()],
                    (None, false) => Vec::new(),
                });
                Work::Teardown {
                    slot_name: (follows && self.owns_slot()).then(|| self.slot_name()),
                    publication_name: self.owns_publication().then(|| self.publication_name()),
                    tables: names.chain(self.pipe.garbage.iter().cloned()).collect(),
                }
            }
        })
    }

    fn slot_request(&self, purpose: Purpose) -> SlotRequest {
        let failover = self.pipe.spec.settings.enable_failover_slots;
        match &self.pipe.slot {
            _ if !self.pipe.spec.mode.follows() => SlotRequest::None,
            None => SlotRequest::Create { name: self.slot_name(), failover },
            Some(slot) if purpose == Purpose::Initial => SlotRequest::Existing { name: slot.name.clone() },
            Some(_) => SlotRequest::Temporary,
        }
    }

    /// A pipe that copies nothing needs its slot as soon as its publication stands.
    fn slot_without_copy(&self) -> Option<SlotRequest> {
        if self.pipe.spec.mode.copies() || self.pipe.slot.is_some() {
            return None;
        }
        let (name, failover) = (self.slot_name(), self.pipe.spec.settings.enable_failover_slots);
        Some(if self.owns_slot() {
            SlotRequest::Create { name, failover }
        } else {
            SlotRequest::Existing { name }
        })
    }

    /// The table as the stream is to carry it; `None` where it is not its turn yet.
    fn streamed(&self, table: &TableRecord) -> Option<StreamedTable> {
        let copying = match table.state {
            TableState::CatchingUp | TableState::Streaming | TableState::Swapping => false,
            TableState::Waiting | TableState::Copying => {
                let round = self.round(table.round?)?;
                let keeps_every_row = table.spec.engine != TableEngine::ReplacingMergeTree;
                if round.phase != Phase::Copy || keeps_every_row && table.begins == Lsn::ZERO {
                    return None;
                }
                true
            }
            TableState::Completed | TableState::SetAside | TableState::Removed => return None,
        };
        // A ReplacingMergeTree shows a row once, however often it comes.
        let begins = if table.spec.engine == TableEngine::ReplacingMergeTree {
            table.published
        } else {
            table.begins.max(table.published)
        };
        Some(StreamedTable { table: table_work(table)?, copying, begins })
    }

    /// The swaps that are to be made now, of rounds that are picked.
    fn swaps(&self, picks: impl Fn(u32) -> bool) -> Vec<Swap> {
        let now = |table: &TableRecord| {
            let round = table.round.and_then(|number| self.round(number));
            round.is_some_and(|round| {
                picks(round.number)
                    && round.phase == Phase::Swap
                    && (round.purpose == Purpose::Tables || self.pipe.state == PipeState::Resync)
            })
        };
        self.active()
            .filter(|table| table.state == TableState::Swapping && now(table))
            .filter_map(|table| {
                let original = self.table(table.replaces?)?;
                Some(Swap {
                    id: table.id,
                    source: table.source().clone(),
                    target: table.spec.target.clone(),
                    copied: table.written.clone(),
                    uuid: table.uuid.clone()?,
                    replaces: original.record.uuid.clone(),
                })
            })
            .collect()
    }

    /// Ids of the tables with a name, for reports that name one by its source.
    pub(crate) fn ids_in_round(&self, round: u32, source: &TableName) -> Vec<TableId> {
        let of_source = |table: &&TableRecord| table.source() == source;
        self.round_tables(round).filter(of_source).map(|table| table.id).collect()
    }
}

fn table_work(table: &TableRecord) -> Option<TableWork> {
    let spec = millrace_model::spec::TableSpec { target: table.written.clone(), ..table.spec.clone() };
    Some(TableWork { id: table.id, spec, definition: table.definition.clone()? })
}
