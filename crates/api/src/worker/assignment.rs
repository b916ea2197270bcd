//! Work that is given.

use millrace_model::spec::TableSpec;
use millrace_model::work::{
    Assignment, DestinationFacts, KeyRange, SlotRequest, StreamedTable, Swap, TableWork, Work,
};
use millrace_model::{Lsn, PageRange, PipeId, TableId, TableName};

use crate::problem::table as table_name;
use crate::proto::pipe::v1 as pipe_wire;
use crate::proto::worker::v1 as wire;
use crate::spec;
use crate::violation::ProtocolError;
use crate::worker::{missing, read_epoch, table};

use wire::assign::Work as WireWork;

pub(super) fn write(assignment: &Assignment) -> wire::Assign {
    wire::Assign {
        epoch: assignment.epoch.0,
        pipe_id: assignment.pipe.to_string(),
        trace_context: assignment.trace.clone(),
        spec: Some(spec::with_secrets(&assignment.spec)),
        work: Some(write_work(&assignment.work)),
    }
}

pub(super) fn read(assign: wire::Assign) -> Result<Assignment, ProtocolError> {
    let pipe =
        assign.pipe_id.parse::<PipeId>().map_err(|error| ProtocolError::at("pipeId", error.to_string()))?;
    let spec = assign.spec.ok_or_else(|| missing("spec"))?;
    let work = assign.work.ok_or_else(|| missing("work"))?;
    Ok(Assignment {
        epoch: read_epoch("epoch", assign.epoch)?,
        pipe,
        trace: assign.trace_context,
        spec: spec::read_partial(spec).map_err(|error| error.within("spec"))?,
        work: read_work(work)?,
    })
}

fn write_work(work: &Work) -> WireWork {
    match work {
        Work::Provision { anew } => WireWork::Provision(wire::ProvisionWork { anew: *anew }),
        Work::SetUp { tables, destination, clear, publication, slot } => {
            let (publication_name, publication_tables) = publication.clone().unwrap_or_default();
            let (slot_name, create_slot, _, failover) =
                write_slot(slot.as_ref().unwrap_or(&SlotRequest::None));
            WireWork::SetUp(wire::SetUpWork {
                tables: tables.iter().map(write_table).collect(),
                destination_time64: destination.time64,
                clear: *clear,
                publication_name,
                publication_tables: publication_tables.iter().map(TableName::to_string).collect(),
                slot_name,
                create_slot,
                failover,
            })
        }
        Work::Snapshot { slot, tables } => {
            let (slot_name, create_slot, temporary_slot, failover) = write_slot(slot);
            WireWork::Snapshot(wire::SnapshotWork {
                create_slot,
                slot_name,
                tables: table::write_all(tables),
                temporary_slot,
                failover,
            })
        }
        Work::Copy { table, snapshot_name, partition, range, destination } => {
            WireWork::Copy(wire::CopyWork {
                table: Some(write_table(table)),
                snapshot_name: snapshot_name.clone(),
                partition: *partition,
                first_page: range.first,
                end_page: range.end,
                destination_time64: destination.time64,
            })
        }
        Work::Stream {
            slot_name,
            publication_name,
            system_identifier,
            timeline,
            consistent_point,
            durable,
            revision,
            tables,
            swaps,
            destination,
        } => WireWork::Stream(wire::StreamWork {
            slot_name: slot_name.clone(),
            publication_name: publication_name.clone(),
            system_identifier: *system_identifier,
            timeline: *timeline,
            consistent_point: consistent_point.0,
            durable_lsn: durable.0,
            tables: tables
                .iter()
                .map(|streamed| wire::StreamedTable {
                    table: Some(write_table(&streamed.table)),
                    copying: streamed.copying,
                    begins_lsn: streamed.begins.0,
                })
                .collect(),
            destination_time64: destination.time64,
            revision: *revision,
            swaps: swaps.iter().map(write_swap).collect(),
        }),
        Work::Verify { table, range, slot_name, shared_target, destination } => {
            WireWork::Verify(wire::VerifyWork {
                table: Some(write_table(table)),
                range: range.map(|range| wire::KeyRange { from: range.from, until: range.until }),
                slot_name: slot_name.clone(),
                shared_target: *shared_target,
                destination_time64: destination.time64,
            })
        }
        Work::Swap { swaps } => {
            WireWork::Swap(wire::SwapWork { swaps: swaps.iter().map(write_swap).collect() })
        }
        Work::Clean { tables } => WireWork::Clean(wire::CleanWork { tables: tables.clone() }),
        Work::Release { slot_name } => WireWork::Release(wire::ReleaseWork { slot_name: slot_name.clone() }),
        Work::Teardown { slot_name, publication_name, tables } => WireWork::Teardown(wire::TeardownWork {
            slot_name: slot_name.clone().unwrap_or_default(),
            publication_name: publication_name.clone().unwrap_or_default(),
            tables: tables.clone(),
        }),
    }
}

/// Name, whether to make it, whether it is temporary, whether it is synchronised.
fn write_slot(slot: &SlotRequest) -> (String, bool, bool, bool) {
    match slot {
        SlotRequest::Create { name, failover } => (name.clone(), true, false, *failover),
        SlotRequest::Existing { name } => (name.clone(), false, false, false),
        SlotRequest::Temporary => (String::new(), false, true, false),
        SlotRequest::None => (String::new(), false, false, false),
    }
}

fn write_table(table: &TableWork) -> wire::TableWork {
    wire::TableWork {
        id: table.id.0,
        mapping: Some(pipe_wire::TableMapping::from(&table.spec)),
        definition: Some(table::write(&table.definition)),
    }
}

fn write_swap(swap: &Swap) -> wire::Swap {
    wire::Swap {
        id: swap.id.0,
        source: swap.source.to_string(),
        target: swap.target.clone(),
        copied: swap.copied.clone(),
        uuid: swap.uuid.clone(),
        replaces: swap.replaces.clone().unwrap_or_default(),
    }
}

fn read_work(work: WireWork) -> Result<Work, ProtocolError> {
    match work {
        WireWork::Provision(work) => Ok(Work::Provision { anew: work.anew }),
        WireWork::SetUp(work) => {
            let slot = match (work.create_slot, work.slot_name) {
                (_, name) if name.is_empty() => None,
                (true, name) => Some(SlotRequest::Create { name, failover: work.failover }),
                (false, name) => Some(SlotRequest::Existing { name }),
            };
            let publication_tables =
                each("setUp.publicationTables", work.publication_tables, |name| table_name("", &name))?;
            Ok(Work::SetUp {
                tables: each("setUp.tables", work.tables, read_table)?,
                destination: DestinationFacts { time64: work.destination_time64 },
                clear: work.clear,
                publication: Some(work.publication_name)
                    .filter(|name| !name.is_empty())
                    .map(|name| (name, publication_tables)),
                slot,
            })
        }
        WireWork::Snapshot(work) => {
            let slot = match (work.create_slot, work.temporary_slot, work.slot_name) {
                (true, _, name) => SlotRequest::Create {
                    name: not_empty("snapshot.slotName", name)?,
                    failover: work.failover,
                },
                (false, true, _) => SlotRequest::Temporary,
                (false, false, name) if name.is_empty() => SlotRequest::None,
                (false, false, name) => SlotRequest::Existing { name },
            };
            Ok(Work::Snapshot { slot, tables: table::read_all("snapshot.tables", work.tables)? })
        }
        WireWork::Verify(work) => {
            let table = work.table.ok_or_else(|| missing("verify.table"))?;
            Ok(Work::Verify {
                table: read_table(table).map_err(|error| error.within("verify.table"))?,
                range: work.range.map(|range| KeyRange { from: range.from, until: range.until }),
                slot_name: not_empty("verify.slotName", work.slot_name)?,
                shared_target: work.shared_target,
                destination: DestinationFacts { time64: work.destination_time64 },
            })
        }
        WireWork::Copy(work) => {
            let table = work.table.ok_or_else(|| missing("copy.table"))?;
            if work.end_page.is_some_and(|end| end < work.first_page) {
                return Err(ProtocolError::at("copy.endPage", "lies before firstPage"));
            }
            Ok(Work::Copy {
                table: read_table(table).map_err(|error| error.within("copy.table"))?,
                snapshot_name: not_empty("copy.snapshotName", work.snapshot_name)?,
                partition: work.partition,
                range: PageRange { first: work.first_page, end: work.end_page },
                destination: DestinationFacts { time64: work.destination_time64 },
            })
        }
        WireWork::Stream(work) => {
            let streamed = |streamed: wire::StreamedTable| {
                let table = streamed.table.ok_or_else(|| missing("table"))?;
                Ok(StreamedTable {
                    table: read_table(table).map_err(|error| error.within("table"))?,
                    copying: streamed.copying,
                    begins: Lsn(streamed.begins_lsn),
                })
            };
            Ok(Work::Stream {
                slot_name: not_empty("stream.slotName", work.slot_name)?,
                publication_name: not_empty("stream.publicationName", work.publication_name)?,
                system_identifier: work.system_identifier,
                timeline: work.timeline,
                consistent_point: Lsn(work.consistent_point),
                durable: Lsn(work.durable_lsn),
                revision: work.revision,
                tables: each("stream.tables", work.tables, streamed)?,
                swaps: each("stream.swaps", work.swaps, read_swap)?,
                destination: DestinationFacts { time64: work.destination_time64 },
            })
        }
        WireWork::Swap(work) => Ok(Work::Swap { swaps: each("swap.swaps", work.swaps, read_swap)? }),
        WireWork::Clean(work) => {
            Ok(Work::Clean { tables: each("clean.tables", work.tables, |name| not_empty("", name))? })
        }
        WireWork::Release(work) => {
            Ok(Work::Release { slot_name: not_empty("release.slotName", work.slot_name)? })
        }
        WireWork::Teardown(work) => Ok(Work::Teardown {
            slot_name: Some(work.slot_name).filter(|name| !name.is_empty()),
            publication_name: Some(work.publication_name).filter(|name| !name.is_empty()),
            tables: each("teardown.tables", work.tables, |name| not_empty("", name))?,
        }),
    }
}

fn read_table(work: wire::TableWork) -> Result<TableWork, ProtocolError> {
    let mapping = work.mapping.ok_or_else(|| missing("mapping"))?;
    let definition = work.definition.ok_or_else(|| missing("definition"))?;
    Ok(TableWork {
        id: TableId(work.id),
        spec: TableSpec::try_from(mapping).map_err(|error: ProtocolError| error.within("mapping"))?,
        definition: table::read(definition).map_err(|error| error.within("definition"))?,
    })
}

fn read_swap(swap: wire::Swap) -> Result<Swap, ProtocolError> {
    Ok(Swap {
        id: TableId(swap.id),
        source: table_name("source", &swap.source)?,
        target: not_empty("target", swap.target)?,
        copied: not_empty("copied", swap.copied)?,
        uuid: not_empty("uuid", swap.uuid)?,
        replaces: Some(swap.replaces).filter(|uuid| !uuid.is_empty()),
    })
}

/// Every value of a list, read; errors name its place.
fn each<T, R>(
    field: &str,
    values: Vec<T>,
    read: impl Fn(T) -> Result<R, ProtocolError>,
) -> Result<Vec<R>, ProtocolError> {
    let values = values.into_iter().enumerate();
    values
        .map(|(index, value)| read(value).map_err(|error| error.within(&format!("{field}[{index}]"))))
        .collect()
}

fn not_empty(field: &str, text: String) -> Result<String, ProtocolError> {
    if text.is_empty() { Err(missing(field)) } else { Ok(text) }
}
