//! What travels on the stream between a coordinator and a worker, as checked values.
//!
//! The head of `proto/millrace/worker/v1/worker_service.proto` tells the protocol stage by stage.

mod assignment;
mod report;
mod table;

use std::time::Duration;

use millrace_model::spec::PostgresSource;
use millrace_model::work::{Assignment, Hello, Report, SlotHealth, TraceContext};
use millrace_model::{Epoch, Labels, PipeSpec, Problem, TableId, Term, WorkerId};

use crate::offer::OfferedTable;
use crate::problem::{problems_in, problems_out};
use crate::proto::pipe::v1 as pipe_wire;
use crate::proto::worker::v1 as wire;
use crate::spec::source_with_secrets;
use crate::violation::ProtocolError;

use wire::connect_request::Message as Request;
use wire::connect_response::Message as Response;

/// What a worker says.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerMessage {
    /// The first message of every stream.
    Hello(Hello),
    /// It lives.
    Heartbeat {
        /// Memory that grows with data, as used now, in bytes.
        memory_used: u64,
        /// Whether it wants to leave: it gets no more work, and a drain for what it holds.
        draining: bool,
        /// Answered with [`CoordinatorMessage::Heard`]; zero where no answer is wanted.
        number: u64,
    },
    /// How an assignment does.
    Report {
        /// Which assignment.
        epoch: Epoch,
        /// What happened.
        report: Report,
    },
    /// The answer to an inspection.
    InspectReply {
        /// The number that the inspection came with.
        request_id: u64,
        /// What is wrong.
        problems: Vec<Problem>,
        /// Tables as found.
        tables: Vec<OfferedTable>,
        /// The slot that was asked for.
        slot: Option<SlotHealth>,
    },
}

/// What a coordinator says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoordinatorMessage {
    /// The answer to hello.
    Welcome {
        /// How often to send a heartbeat.
        heartbeat_interval: Duration,
        /// Without a sign of life for so long the worker's work is given to others.
        lease: Duration,
        /// Of what the worker holds, that which stands; the rest is to be stopped at once.
        keep: Vec<Epoch>,
        /// In which the coordinator leads; zero from one of a release before there were terms.
        term: Term,
    },
    /// Do this.
    Assign(Box<Assignment>),
    /// Go on with the stream that you hold under this epoch in this way.
    Amend(Box<Assignment>),
    /// Stop at once and say no more about it.
    Revoke(Epoch),
    /// Stop reading, make durable what was read, and report that.
    Drain(Epoch),
    /// A final report, or one about a table of a stream, is in the catalog.
    Recorded {
        /// Of which assignment.
        epoch: Epoch,
        /// The table; `None` for a final report.
        table: Option<TableId>,
    },
    /// Look and answer.
    Inspect(Box<Inspection>),
    /// A user drains you, or undoes that: say so in every hello.
    SetDrained(bool),
    /// The heartbeat of this number has come: your lease lasts on from when you sent it.
    Heard(u64),
}

/// A question about a source and a destination: read-only, with a deadline, never repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The answer carries it.
    pub request_id: u64,
    /// What to look at.
    pub subject: InspectionSubject,
    /// What led to it.
    pub trace: TraceContext,
}

/// What an [`Inspection`] looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InspectionSubject {
    /// Everything that stands in a pipe's way.
    Pipe(Box<PipeSpec>),
    /// All tables that a source offers.
    Source(PostgresSource),
    /// How much log a slot of the source holds back.
    Slot(PostgresSource, String),
}

impl From<&WorkerMessage> for wire::ConnectRequest {
    fn from(message: &WorkerMessage) -> Self {
        let message = match message {
            WorkerMessage::Hello(hello) => Request::Hello(wire::Hello {
                worker_id: hello.worker.to_string(),
                instance_id: hello.instance.clone(),
                version: hello.version.clone(),
                max_tasks: hello.max_tasks,
                memory_budget_bytes: hello.memory_budget,
                held_epochs: hello.held.iter().map(|epoch| epoch.0).collect(),
                drained: hello.drained,
                labels: hello.labels.as_map().clone(),
            }),
            WorkerMessage::Heartbeat { memory_used, draining, number } => {
                Request::Heartbeat(wire::Heartbeat {
                    memory_used_bytes: *memory_used,
                    draining: *draining,
                    number: *number,
                })
            }
            WorkerMessage::Report { epoch, report } => report::write(*epoch, report),
            WorkerMessage::InspectReply { request_id, problems, tables, slot } => {
                Request::InspectReply(wire::InspectReply {
                    slot: slot.as_ref().map(write_slot),
                    request_id: *request_id,
                    problems: problems_out(problems),
                    tables: tables.iter().map(pipe_wire::SourceTable::from).collect(),
                })
            }
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<wire::ConnectRequest> for WorkerMessage {
    type Error = ProtocolError;

    fn try_from(request: wire::ConnectRequest) -> Result<Self, ProtocolError> {
        let message = request.message.ok_or_else(|| missing("message"))?;
        match message {
            Request::Hello(hello) => {
                read_hello(hello).map(Self::Hello).map_err(|error| error.within("hello"))
            }
            Request::Heartbeat(heartbeat) => Ok(Self::Heartbeat {
                memory_used: heartbeat.memory_used_bytes,
                draining: heartbeat.draining,
                number: heartbeat.number,
            }),
            Request::Progress(progress) => {
                report::read_progress(progress).map_err(|error| error.within("progress"))
            }
            Request::Finished(finished) => {
                report::read_finished(finished).map_err(|error| error.within("finished"))
            }
            Request::Failed(failed) => report::read_failed(failed).map_err(|error| error.within("failed")),
            Request::TableSetAside(set_aside) => {
                report::read_set_aside(set_aside).map_err(|error| error.within("tableSetAside"))
            }
            Request::TableChanged(changed) => {
                report::read_changed(changed).map_err(|error| error.within("tableChanged"))
            }
            Request::TableSwapped(swapped) => {
                report::read_swapped(&swapped).map_err(|error| error.within("tableSwapped"))
            }
            Request::ValuesAltered(altered) => {
                report::read_altered(&altered).map_err(|error| error.within("valuesAltered"))
            }
            Request::InspectReply(reply) => {
                read_inspect_reply(reply).map_err(|error| error.within("inspectReply"))
            }
        }
    }
}

fn read_hello(hello: wire::Hello) -> Result<Hello, ProtocolError> {
    let worker = hello
        .worker_id
        .parse::<WorkerId>()
        .map_err(|error| ProtocolError::at("workerId", error.to_string()))?;
    if hello.instance_id.is_empty() {
        return Err(missing("instanceId"));
    }
    if hello.max_tasks == 0 {
        return Err(ProtocolError::at("maxTasks", "0 is out of range; expected at least 1"));
    }
    Ok(Hello {
        worker,
        instance: hello.instance_id,
        version: hello.version,
        max_tasks: hello.max_tasks,
        memory_budget: hello.memory_budget_bytes,
        held: read_epochs("heldEpochs", hello.held_epochs)?,
        drained: hello.drained,
        labels: Labels::new(hello.labels).map_err(|error| ProtocolError::at("labels", error.to_string()))?,
    })
}

fn read_inspect_reply(reply: wire::InspectReply) -> Result<WorkerMessage, ProtocolError> {
    let table = |(index, table)| {
        OfferedTable::try_from(table)
            .map_err(|error: ProtocolError| error.within(&format!("tables[{index}]")))
    };
    Ok(WorkerMessage::InspectReply {
        request_id: reply.request_id,
        problems: problems_in("problems", reply.problems)?,
        tables: reply.tables.into_iter().enumerate().map(table).collect::<Result<_, _>>()?,
        slot: reply.slot.map(read_slot).transpose()?,
    })
}

fn write_slot(slot: &SlotHealth) -> wire::SlotHealth {
    wire::SlotHealth {
        wal_status: slot.wal_status.clone(),
        retained_bytes: slot.retained,
        headroom_bytes: slot.headroom,
    }
}

fn read_slot(slot: wire::SlotHealth) -> Result<SlotHealth, ProtocolError> {
    if !SlotHealth::STATES.contains(&slot.wal_status.as_str()) {
        let reason = format!("expected one of {}", SlotHealth::STATES.join(", "));
        return Err(ProtocolError::at("slot.walStatus", reason));
    }
    Ok(SlotHealth {
        wal_status: slot.wal_status,
        retained: slot.retained_bytes,
        headroom: slot.headroom_bytes,
    })
}

impl From<&CoordinatorMessage> for wire::ConnectResponse {
    fn from(message: &CoordinatorMessage) -> Self {
        let message = match message {
            CoordinatorMessage::Welcome { heartbeat_interval, lease, keep, term } => {
                Response::Welcome(wire::Welcome {
                    heartbeat_interval_millis: millis(*heartbeat_interval),
                    lease_millis: millis(*lease),
                    keep_epochs: keep.iter().map(|epoch| epoch.0).collect(),
                    term: term.0,
                })
            }
            CoordinatorMessage::Assign(assignment) => Response::Assign(assignment::write(assignment)),
            CoordinatorMessage::Amend(assignment) => {
                Response::Amend(wire::Amend { assign: Some(assignment::write(assignment)) })
            }
            CoordinatorMessage::Revoke(epoch) => Response::Revoke(wire::Revoke { epoch: epoch.0 }),
            CoordinatorMessage::Drain(epoch) => Response::Drain(wire::Drain { epoch: epoch.0 }),
            CoordinatorMessage::Recorded { epoch, table } => {
                Response::Recorded(wire::Recorded { epoch: epoch.0, table_id: table.map(|id| id.0) })
            }
            CoordinatorMessage::Inspect(inspection) => Response::Inspect(write_inspection(inspection)),
            CoordinatorMessage::Heard(number) => Response::Heard(wire::Heard { number: *number }),
            CoordinatorMessage::SetDrained(drained) => {
                Response::SetDrained(wire::SetDrained { drained: *drained })
            }
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<wire::ConnectResponse> for CoordinatorMessage {
    type Error = ProtocolError;

    fn try_from(response: wire::ConnectResponse) -> Result<Self, ProtocolError> {
        let message = response.message.ok_or_else(|| missing("message"))?;
        match message {
            Response::Welcome(welcome) => read_welcome(welcome).map_err(|error| error.within("welcome")),
            Response::Assign(assign) => {
                let assignment = assignment::read(assign).map_err(|error| error.within("assign"))?;
                Ok(Self::Assign(Box::new(assignment)))
            }
            Response::Amend(amend) => {
                let assign = amend.assign.ok_or_else(|| missing("amend.assign"))?;
                let assignment = assignment::read(assign).map_err(|error| error.within("amend.assign"))?;
                Ok(Self::Amend(Box::new(assignment)))
            }
            Response::Revoke(revoke) => Ok(Self::Revoke(read_epoch("revoke.epoch", revoke.epoch)?)),
            Response::Drain(drain) => Ok(Self::Drain(read_epoch("drain.epoch", drain.epoch)?)),
            Response::Recorded(recorded) => Ok(Self::Recorded {
                epoch: read_epoch("recorded.epoch", recorded.epoch)?,
                table: recorded.table_id.map(TableId),
            }),
            Response::Heard(heard) => Ok(Self::Heard(heard.number)),
            Response::SetDrained(set) => Ok(Self::SetDrained(set.drained)),
            Response::Inspect(inspect) => {
                let inspection = read_inspection(inspect).map_err(|error| error.within("inspect"))?;
                Ok(Self::Inspect(Box::new(inspection)))
            }
        }
    }
}

fn read_welcome(welcome: wire::Welcome) -> Result<CoordinatorMessage, ProtocolError> {
    let positive = |field: &str, millis: u32| match millis {
        0 => Err(ProtocolError::at(field, "0 is out of range; expected at least 1")),
        millis => Ok(Duration::from_millis(millis.into())),
    };
    Ok(CoordinatorMessage::Welcome {
        heartbeat_interval: positive("heartbeatIntervalMillis", welcome.heartbeat_interval_millis)?,
        lease: positive("leaseMillis", welcome.lease_millis)?,
        keep: read_epochs("keepEpochs", welcome.keep_epochs)?,
        term: Term(welcome.term),
    })
}

fn write_inspection(inspection: &Inspection) -> wire::Inspect {
    let of_source = |source| pipe_wire::PipeSpec {
        source: Some(source_with_secrets(source)),
        ..pipe_wire::PipeSpec::default()
    };
    let (spec, list_source_tables, slot_name) = match &inspection.subject {
        InspectionSubject::Pipe(spec) => (crate::spec::with_secrets(spec), false, String::new()),
        InspectionSubject::Source(source) => (of_source(source), true, String::new()),
        // A worker of the release before knows of no slots, and lists tables, which does no harm.
        InspectionSubject::Slot(source, name) => (of_source(source), true, name.clone()),
    };
    wire::Inspect {
        slot_name,
        request_id: inspection.request_id,
        spec: Some(spec),
        list_source_tables,
        trace_context: inspection.trace.clone(),
    }
}

fn read_inspection(inspect: wire::Inspect) -> Result<Inspection, ProtocolError> {
    let spec = inspect.spec.ok_or_else(|| missing("spec"))?;
    let slot_name = inspect.slot_name;
    let subject = if inspect.list_source_tables {
        let source = spec.source.ok_or_else(|| missing("spec.source"))?;
        let source = PostgresSource::try_from(source).map_err(|error| error.within("spec.source"))?;
        match slot_name.is_empty() {
            true => InspectionSubject::Source(source),
            false => InspectionSubject::Slot(source, slot_name),
        }
    } else {
        InspectionSubject::Pipe(Box::new(PipeSpec::try_from(spec).map_err(|error| error.within("spec"))?))
    };
    Ok(Inspection { request_id: inspect.request_id, subject, trace: inspect.trace_context })
}

fn missing(field: &str) -> ProtocolError {
    ProtocolError::at(field, "missing")
}

/// Milliseconds, at least 1 so that a short time does not become none.
fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).max(1)
}

/// An epoch; zero is what an absent field reads as, and no assignment has it.
fn read_epoch(field: &str, epoch: u64) -> Result<Epoch, ProtocolError> {
    if epoch == 0 { Err(missing(field)) } else { Ok(Epoch(epoch)) }
}

fn read_epochs(field: &str, epochs: Vec<u64>) -> Result<Vec<Epoch>, ProtocolError> {
    let epoch = |(index, epoch)| read_epoch(&format!("{field}[{index}]"), epoch);
    epochs.into_iter().enumerate().map(epoch).collect()
}
