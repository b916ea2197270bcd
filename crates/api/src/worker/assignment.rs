//! Work that is given.

use millrace_model::work::{Assignment, DestinationFacts, SlotRequest, Work};
use millrace_model::{Lsn, PageRange, PipeId};

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
        Work::Provision => WireWork::Provision(wire::ProvisionWork {}),
        Work::SetUp { tables, destination, clear } => WireWork::SetUp(wire::SetUpWork {
            tables: table::write_all(tables),
            destination_time64: destination.time64,
            clear: *clear,
        }),
        Work::Snapshot { slot, tables } => {
            let (slot_name, create_slot) = match slot {
                SlotRequest::Create { name } => (name.clone(), true),
                SlotRequest::Existing { name } => (name.clone(), false),
                SlotRequest::None => (String::new(), false),
            };
            WireWork::Snapshot(wire::SnapshotWork {
                create_slot,
                slot_name,
                tables: table::write_all(tables),
            })
        }
        Work::Copy { table, snapshot_name, partition, range, destination } => {
            WireWork::Copy(wire::CopyWork {
                table: Some(table::write(table)),
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
            consistent_point,
            durable,
            tables,
            destination,
        } => WireWork::Stream(wire::StreamWork {
            slot_name: slot_name.clone(),
            publication_name: publication_name.clone(),
            system_identifier: *system_identifier,
            consistent_point: consistent_point.0,
            durable_lsn: durable.0,
            tables: table::write_all(tables),
            destination_time64: destination.time64,
        }),
        Work::Release { slot_name } => WireWork::Release(wire::ReleaseWork { slot_name: slot_name.clone() }),
        Work::Teardown { slot_name, publication_name } => WireWork::Teardown(wire::TeardownWork {
            slot_name: slot_name.clone().unwrap_or_default(),
            publication_name: publication_name.clone().unwrap_or_default(),
        }),
    }
}

fn read_work(work: WireWork) -> Result<Work, ProtocolError> {
    match work {
        WireWork::Provision(wire::ProvisionWork {}) => Ok(Work::Provision),
        WireWork::SetUp(work) => Ok(Work::SetUp {
            tables: table::read_all("setUp.tables", work.tables)?,
            destination: DestinationFacts { time64: work.destination_time64 },
            clear: work.clear,
        }),
        WireWork::Snapshot(work) => {
            let slot = match (work.create_slot, work.slot_name) {
                (true, name) => SlotRequest::Create { name: not_empty("snapshot.slotName", name)? },
                (false, name) if name.is_empty() => SlotRequest::None,
                (false, name) => SlotRequest::Existing { name },
            };
            Ok(Work::Snapshot { slot, tables: table::read_all("snapshot.tables", work.tables)? })
        }
        WireWork::Copy(work) => {
            let definition = work.table.ok_or_else(|| missing("copy.table"))?;
            if work.end_page.is_some_and(|end| end < work.first_page) {
                return Err(ProtocolError::at("copy.endPage", "lies before firstPage"));
            }
            Ok(Work::Copy {
                table: table::read(definition).map_err(|error| error.within("copy.table"))?,
                snapshot_name: not_empty("copy.snapshotName", work.snapshot_name)?,
                partition: work.partition,
                range: PageRange { first: work.first_page, end: work.end_page },
                destination: DestinationFacts { time64: work.destination_time64 },
            })
        }
        WireWork::Stream(work) => Ok(Work::Stream {
            slot_name: not_empty("stream.slotName", work.slot_name)?,
            publication_name: not_empty("stream.publicationName", work.publication_name)?,
            system_identifier: work.system_identifier,
            consistent_point: Lsn(work.consistent_point),
            durable: Lsn(work.durable_lsn),
            tables: table::read_all("stream.tables", work.tables)?,
            destination: DestinationFacts { time64: work.destination_time64 },
        }),
        WireWork::Release(work) => {
            Ok(Work::Release { slot_name: not_empty("release.slotName", work.slot_name)? })
        }
        WireWork::Teardown(work) => Ok(Work::Teardown {
            slot_name: Some(work.slot_name).filter(|name| !name.is_empty()),
            publication_name: Some(work.publication_name).filter(|name| !name.is_empty()),
        }),
    }
}

fn not_empty(field: &str, text: String) -> Result<String, ProtocolError> {
    if text.is_empty() { Err(missing(field)) } else { Ok(text) }
}
