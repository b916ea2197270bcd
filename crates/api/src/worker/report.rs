//! What a worker reports about an assignment.

use std::time::Duration;

use millrace_model::work::{
    DestinationFacts, DifferenceKind, KeyRange, Outcome, Progress, Report, RowDifference, StreamProgress,
    TableSize, Verified,
};
use millrace_model::{Epoch, Lsn, Problem, TableId};

use crate::problem::{problems_in, problems_out, table};
use crate::proto::pipe::v1 as pipe_wire;
use crate::proto::worker::v1 as wire;
use crate::violation::ProtocolError;
use crate::worker::{WorkerMessage, missing, read_epoch, table as definition};

use wire::connect_request::Message as Request;
use wire::finished::Result as WireOutcome;
use wire::progress::Progress as WireProgress;

pub(super) fn write(epoch: Epoch, report: &Report) -> Request {
    let epoch = epoch.0;
    match report {
        Report::Progress(progress) => {
            Request::Progress(wire::Progress { epoch, progress: Some(write_progress(progress)) })
        }
        Report::Finished(outcome) => {
            Request::Finished(wire::Finished { epoch, result: Some(write_outcome(outcome)) })
        }
        Report::Failed(problems) => Request::Failed(wire::Failed { epoch, problems: problems_out(problems) }),
        Report::TableChanged(id, table) => Request::TableChanged(wire::TableChanged {
            epoch,
            table: Some(definition::write(table)),
            table_id: id.0,
        }),
        Report::TableSetAside(id, problem) => Request::TableSetAside(wire::TableSetAside {
            epoch,
            problem: Some(pipe_wire::Problem::from(problem)),
            table_id: id.0,
        }),
        Report::ValuesAltered(id, values) => {
            Request::ValuesAltered(wire::ValuesAltered { epoch, table_id: id.0, values: *values })
        }
        Report::TableSwapped(id) => Request::TableSwapped(wire::TableSwapped { epoch, table_id: id.0 }),
    }
}

fn write_progress(progress: &Progress) -> WireProgress {
    match progress {
        Progress::SnapshotReady { snapshot_name, consistent_point, sizes } => {
            let size = |size: &TableSize| wire::TableSize {
                table: size.table.to_string(),
                pages: size.pages,
                estimated_rows: size.estimated_rows,
                file_node: size.file_node,
            };
            WireProgress::Snapshot(wire::SnapshotReady {
                snapshot_name: snapshot_name.clone(),
                consistent_point: consistent_point.0,
                sizes: sizes.iter().map(size).collect(),
            })
        }
        Progress::Copy { rows, bytes } => {
            WireProgress::Copy(wire::CopyProgress { rows: *rows, bytes: *bytes })
        }
        Progress::Verify { rows } => WireProgress::Verify(wire::VerifyProgress { rows_read: *rows }),
        Progress::Stream(stream) => WireProgress::Stream(wire::StreamProgress {
            durable_lsn: stream.durable.0,
            timeline: stream.timeline,
            source_lsn: stream.source.0,
            changes_applied: stream.changes,
            // Zero says that there is none, so a delay below a microsecond counts as one.
            delay_micros: stream
                .delay
                .map_or(0, |delay| u64::try_from(delay.as_micros()).unwrap_or(u64::MAX).max(1)),
            caught_up: stream.caught_up,
            tables: stream
                .tables
                .iter()
                .map(|(table, changes)| wire::TableChanges { id: table.0, changes: *changes })
                .collect(),
            revision: stream.revision,
            held: stream
                .held
                .iter()
                .map(|(table, problem)| wire::HeldTable {
                    id: table.0,
                    problem: Some(pipe_wire::Problem::from(problem)),
                })
                .collect(),
        }),
    }
}

fn write_outcome(outcome: &Outcome) -> WireOutcome {
    match outcome {
        Outcome::Provisioned { system_identifier, server_version, tables, warnings, destination } => {
            WireOutcome::Provision(wire::ProvisionResult {
                system_identifier: *system_identifier,
                server_version: *server_version,
                tables: definition::write_all(tables),
                warnings: problems_out(warnings),
                destination_time64: destination.time64,
            })
        }
        Outcome::SetUp { tables, begins } => {
            let identity =
                |(id, uuid): &(TableId, String)| wire::TableIdentity { id: id.0, uuid: uuid.clone() };
            WireOutcome::SetUp(wire::SetUpResult {
                tables: tables.iter().map(identity).collect(),
                begins_lsn: begins.0,
            })
        }
        Outcome::Swapped { tables } => {
            WireOutcome::Swap(wire::SwapResult { tables: tables.iter().map(|id| id.0).collect() })
        }
        Outcome::Cleaned { tables } => WireOutcome::Clean(wire::CleanResult { tables: tables.clone() }),
        Outcome::Copied { rows, bytes } => WireOutcome::Copy(wire::CopyResult { rows: *rows, bytes: *bytes }),
        Outcome::Drained { durable } => WireOutcome::Stream(wire::StreamResult { durable_lsn: durable.0 }),
        Outcome::Verified(found) => WireOutcome::Verify(write_verified(found)),
        Outcome::Divided { bounds } => {
            WireOutcome::VerifyDivision(wire::VerifyDivision { bounds: bounds.clone() })
        }
        Outcome::Released => WireOutcome::Release(wire::ReleaseResult {}),
        Outcome::TornDown { left_behind } => {
            WireOutcome::Teardown(wire::TeardownResult { left_behind: problems_out(left_behind) })
        }
    }
}

fn write_verified(found: &Verified) -> wire::VerifyResult {
    let sample = |row: &RowDifference| pipe_wire::RowDifference {
        kind: match row.kind {
            DifferenceKind::Altered => pipe_wire::RowDifferenceKind::Altered,
            DifferenceKind::Missing => pipe_wire::RowDifferenceKind::Missing,
            DifferenceKind::Extra => pipe_wire::RowDifferenceKind::Extra,
        }
        .into(),
        key: row.key.clone(),
        columns: row.columns.clone(),
    };
    wire::VerifyResult {
        source_rows: found.source_rows,
        destination_rows: found.destination_rows,
        differences: found.differences,
        more: found.more,
        samples: found.samples.iter().map(sample).collect(),
        unsettled: found.unsettled,
        problem: found.problem.as_ref().map(pipe_wire::Problem::from),
    }
}

fn read_verified(found: wire::VerifyResult) -> Result<Verified, ProtocolError> {
    let sample = |(index, row): (usize, pipe_wire::RowDifference)| {
        let kind = match row.kind() {
            pipe_wire::RowDifferenceKind::Altered => DifferenceKind::Altered,
            pipe_wire::RowDifferenceKind::Missing => DifferenceKind::Missing,
            pipe_wire::RowDifferenceKind::Extra => DifferenceKind::Extra,
            pipe_wire::RowDifferenceKind::Unspecified => {
                return Err(missing(&format!("samples[{index}].kind")));
            }
        };
        Ok(RowDifference { kind, key: row.key, columns: row.columns })
    };
    Ok(Verified {
        source_rows: found.source_rows,
        destination_rows: found.destination_rows,
        differences: found.differences,
        more: found.more,
        unsettled: found.unsettled,
        samples: found.samples.into_iter().enumerate().map(sample).collect::<Result<_, _>>()?,
        problem: problems_in("problem", found.problem.into_iter().collect())?.pop(),
    })
}

fn message(epoch: u64, report: Report) -> Result<WorkerMessage, ProtocolError> {
    Ok(WorkerMessage::Report { epoch: read_epoch("epoch", epoch)?, report })
}

pub(super) fn read_progress(progress: wire::Progress) -> Result<WorkerMessage, ProtocolError> {
    let read = match progress.progress.ok_or_else(|| missing("progress"))? {
        WireProgress::Snapshot(ready) => read_snapshot(ready).map_err(|error| error.within("snapshot"))?,
        WireProgress::Verify(verify) => Progress::Verify { rows: verify.rows_read },
        WireProgress::Copy(copy) => Progress::Copy { rows: copy.rows, bytes: copy.bytes },
        WireProgress::Stream(stream) => {
            Progress::Stream(read_stream(stream).map_err(|error| error.within("stream"))?)
        }
    };
    message(progress.epoch, Report::Progress(read))
}

fn read_snapshot(ready: wire::SnapshotReady) -> Result<Progress, ProtocolError> {
    if ready.snapshot_name.is_empty() {
        return Err(missing("snapshotName"));
    }
    let size = |(index, size): (usize, wire::TableSize)| {
        Ok(TableSize {
            table: table(&format!("sizes[{index}].table"), &size.table)?,
            pages: size.pages,
            estimated_rows: size.estimated_rows,
            file_node: size.file_node,
        })
    };
    Ok(Progress::SnapshotReady {
        snapshot_name: ready.snapshot_name,
        consistent_point: Lsn(ready.consistent_point),
        sizes: ready.sizes.into_iter().enumerate().map(size).collect::<Result<_, ProtocolError>>()?,
    })
}

fn read_stream(stream: wire::StreamProgress) -> Result<StreamProgress, ProtocolError> {
    let held = |(index, held): (usize, wire::HeldTable)| {
        let problem = held.problem.ok_or_else(|| missing("problem")).and_then(Problem::try_from);
        let problem = problem.map_err(|error| error.within(&format!("held[{index}]")))?;
        Ok((TableId(held.id), problem))
    };
    Ok(StreamProgress {
        durable: Lsn(stream.durable_lsn),
        timeline: stream.timeline,
        source: Lsn(stream.source_lsn),
        changes: stream.changes_applied,
        delay: (stream.delay_micros > 0).then(|| Duration::from_micros(stream.delay_micros)),
        caught_up: stream.caught_up,
        tables: stream.tables.into_iter().map(|table| (TableId(table.id), table.changes)).collect(),
        revision: stream.revision,
        held: stream.held.into_iter().enumerate().map(held).collect::<Result<_, ProtocolError>>()?,
    })
}

pub(super) fn read_finished(finished: wire::Finished) -> Result<WorkerMessage, ProtocolError> {
    let outcome = match finished.result.ok_or_else(|| missing("result"))? {
        WireOutcome::Provision(result) => Outcome::Provisioned {
            system_identifier: result.system_identifier,
            server_version: result.server_version,
            tables: definition::read_all("provision.tables", result.tables)?,
            warnings: problems_in("provision.warnings", result.warnings)?,
            destination: DestinationFacts { time64: result.destination_time64 },
        },
        WireOutcome::SetUp(result) => Outcome::SetUp {
            tables: result.tables.into_iter().map(|table| (TableId(table.id), table.uuid)).collect(),
            begins: Lsn(result.begins_lsn),
        },
        WireOutcome::Swap(result) => {
            Outcome::Swapped { tables: result.tables.into_iter().map(TableId).collect() }
        }
        WireOutcome::Clean(result) => Outcome::Cleaned { tables: result.tables },
        WireOutcome::Copy(result) => Outcome::Copied { rows: result.rows, bytes: result.bytes },
        WireOutcome::Stream(result) => Outcome::Drained { durable: Lsn(result.durable_lsn) },
        WireOutcome::Verify(found) => {
            Outcome::Verified(read_verified(found).map_err(|error| error.within("verify"))?)
        }
        WireOutcome::VerifyDivision(wire::VerifyDivision { bounds }) => {
            if !(1..=KeyRange::MOST_BOUNDS).contains(&bounds.len())
                || !bounds.is_sorted_by(|one, next| one < next)
            {
                return Err(ProtocolError::at(
                    "verifyDivision.bounds",
                    "1 to 1000 are expected, ascending, none twice",
                ));
            }
            Outcome::Divided { bounds }
        }
        WireOutcome::Release(wire::ReleaseResult {}) => Outcome::Released,
        WireOutcome::Teardown(result) => {
            Outcome::TornDown { left_behind: problems_in("teardown.leftBehind", result.left_behind)? }
        }
    };
    message(finished.epoch, Report::Finished(outcome))
}

pub(super) fn read_failed(failed: wire::Failed) -> Result<WorkerMessage, ProtocolError> {
    if failed.problems.is_empty() {
        return Err(missing("problems"));
    }
    message(failed.epoch, Report::Failed(problems_in("problems", failed.problems)?))
}

pub(super) fn read_changed(changed: wire::TableChanged) -> Result<WorkerMessage, ProtocolError> {
    let table = changed.table.ok_or_else(|| missing("table"))?;
    let table = definition::read(table).map_err(|error| error.within("table"))?;
    message(changed.epoch, Report::TableChanged(TableId(changed.table_id), Box::new(table)))
}

pub(super) fn read_set_aside(set_aside: wire::TableSetAside) -> Result<WorkerMessage, ProtocolError> {
    let problem = set_aside.problem.ok_or_else(|| missing("problem"))?;
    let problem = Problem::try_from(problem).map_err(|error| error.within("problem"))?;
    if problem.table.is_none() {
        return Err(missing("problem.table"));
    }
    message(set_aside.epoch, Report::TableSetAside(TableId(set_aside.table_id), problem))
}

pub(super) fn read_altered(altered: &wire::ValuesAltered) -> Result<WorkerMessage, ProtocolError> {
    message(altered.epoch, Report::ValuesAltered(TableId(altered.table_id), altered.values))
}

pub(super) fn read_swapped(swapped: &wire::TableSwapped) -> Result<WorkerMessage, ProtocolError> {
    message(swapped.epoch, Report::TableSwapped(TableId(swapped.table_id)))
}
