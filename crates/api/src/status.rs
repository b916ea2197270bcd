//! Errors as they travel in gRPC: a code, a message, and `google.rpc` details that programs can read.
//!
//! Every status made here carries `ErrorInfo` with a stable reason, the domain [`DOMAIN`] and, where there is one, the remedy in
//! its metadata. Fields that are wrong travel as `BadRequest`, problems of the pipe's surroundings and illegal commands as
//! `PreconditionFailure`. [`crate::ApiError`] reads all of it back.

use std::collections::HashMap;

use millrace_model::{Problem, TableName};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt as _};

use crate::violation::ProtocolError;

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "millrace";

/// Characters of a message, and of each violation's, at most.
const LONGEST: usize = 500;

/// Violations that are told at most.
const MOST: usize = 50;

/// Key of the leader's address in the metadata of a `NOT_LEADER`.
pub(crate) const LEADER: &str = "leader";

/// Key of the remedy in an `ErrorInfo`'s metadata.
pub(crate) const REMEDY: &str = "remedy";

/// Stable reasons. Each has a paragraph in `docs/errors.md`.
pub mod reason {
    /// A request breaks rules that can be told without looking anywhere.
    pub const INVALID_REQUEST: &str = "INVALID_REQUEST";
    /// No pipe has that name.
    pub const PIPE_NOT_FOUND: &str = "PIPE_NOT_FOUND";
    /// A pipe of that name stands with another specification.
    pub const PIPE_EXISTS: &str = "PIPE_EXISTS";
    /// The command is not legal in the pipe's state.
    pub const ILLEGAL_COMMAND: &str = "ILLEGAL_COMMAND";
    /// The state allows the command, but not for what it was asked for.
    pub const UNFIT_COMMAND: &str = "UNFIT_COMMAND";
    /// The pipe was edited by somebody else meanwhile.
    pub const EDITED_MEANWHILE: &str = "EDITED_MEANWHILE";
    /// Source, destination or tables have problems.
    pub const CHECKS_FAILED: &str = "CHECKS_FAILED";
    /// No worker of that id is known.
    pub const WORKER_NOT_FOUND: &str = "WORKER_NOT_FOUND";
    /// No worker is connected that could look.
    pub const NO_WORKER: &str = "NO_WORKER";
    /// A worker did not answer in time.
    pub const WORKER_SILENT: &str = "WORKER_SILENT";
    /// No coordinator leads for now.
    pub const NO_LEADER: &str = "NO_LEADER";
    /// Another coordinator leads.
    pub const NOT_LEADER: &str = "NOT_LEADER";
    /// What somebody said on the workers' stream is not what a worker says.
    pub const WORKER_PROTOCOL: &str = "WORKER_PROTOCOL";
    /// Another worker has that id.
    pub const WORKER_ID_TAKEN: &str = "WORKER_ID_TAKEN";
    /// Coordinator and worker are of releases that are too far apart.
    pub const VERSION_MISMATCH: &str = "VERSION_MISMATCH";
    /// The coordinator is stopping.
    pub const SHUTTING_DOWN: &str = "SHUTTING_DOWN";
    /// A fault in Millrace itself.
    pub const INTERNAL: &str = "INTERNAL";
}

/// A status with reason and remedy. The named constructors below are to be preferred where one fits.
pub fn status(code: Code, reason: &str, message: impl Into<String>, remedy: &str) -> Status {
    Status::with_error_details(code, bounded(message), details(reason, remedy))
}

/// Messages repeat what they complain about, and a status travels in headers: one that is too long reaches nobody.
fn bounded(message: impl Into<String>) -> String {
    let mut message = message.into();
    if let Some((end, _)) = message.char_indices().nth(LONGEST) {
        message.truncate(end);
        message.push('…');
    }
    message
}

/// `INVALID_ARGUMENT`: the request breaks rules; every violation with its field.
pub fn invalid(error: &ProtocolError) -> Status {
    let mut details = details(reason::INVALID_REQUEST, "");
    let field = |violation: &crate::Violation| {
        FieldViolation::new(bounded(&violation.field), bounded(&violation.message))
    };
    details.set_bad_request(error.violations().iter().take(MOST).map(field).collect::<Vec<_>>());
    let message = match error.violations() {
        [violation] => bounded(violation.to_string()),
        violations => format!("{} fields of the request are wrong", violations.len()),
    };
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// `NOT_FOUND`: no pipe has that name.
pub fn pipe_not_found(name: &str) -> Status {
    let mut details = details(reason::PIPE_NOT_FOUND, "list the pipes that exist: millrace pipe list");
    let name = bounded(name);
    details.set_resource_info("millrace.pipe.v1.Pipe", &name, "", "");
    Status::with_error_details(Code::NotFound, format!("there is no pipe '{name}'"), details)
}

/// `ALREADY_EXISTS`: a pipe of that name stands with another specification; `differing` names what differs, such as `settings`.
pub fn pipe_exists(name: &str, differing: &[&str]) -> Status {
    let remedy = "edit it with Update, or give the pipe another name";
    let mut details = details(reason::PIPE_EXISTS, remedy);
    details.set_resource_info("millrace.pipe.v1.Pipe", name, "", "");
    let mut message = format!("pipe '{name}' exists already with another specification");
    if !differing.is_empty() {
        message.push_str("; these differ: ");
        message.push_str(&differing.join(", "));
    }
    Status::with_error_details(Code::AlreadyExists, message, details)
}

/// `FAILED_PRECONDITION`: the command is not legal in the pipe's state. `legal` are the commands that are.
pub fn illegal_command(pipe: &str, command: &str, state: &str, legal: &[&str]) -> Status {
    let remedy = if legal.is_empty() {
        "wait for the next state".to_owned()
    } else {
        format!("legal now: {}", legal.join(", "))
    };
    let message = format!("pipe '{pipe}' is {state}; {command} is not legal in that state");
    let mut details = details(reason::ILLEGAL_COMMAND, &remedy);
    details.add_precondition_failure_violation("PIPE_STATE", pipe, state);
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// `FAILED_PRECONDITION`: the state allows the command, but not for what it was asked for.
pub fn unfit_command(pipe: &str, command: &str, reason: &str, remedy: &str) -> Status {
    let mut details = details(reason::UNFIT_COMMAND, remedy);
    details.add_precondition_failure_violation("COMMAND", pipe, reason);
    let message = format!("pipe '{pipe}' cannot {command}: {reason}");
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// `ABORTED`: the etag that was given is not the pipe's any more.
pub fn edited_meanwhile(pipe: &str) -> Status {
    status(
        Code::Aborted,
        reason::EDITED_MEANWHILE,
        format!("pipe '{pipe}' was edited by somebody else meanwhile"),
        "get it again, see what changed, and edit it anew",
    )
}

/// `FAILED_PRECONDITION`: source, destination or tables have these problems; nothing was changed.
pub fn checks_failed(problems: &[Problem]) -> Status {
    let mut details = details(reason::CHECKS_FAILED, "mend each problem as it says, then try again");
    let violation = |problem: &Problem| {
        let table = problem.table.as_ref().map(TableName::to_string).unwrap_or_default();
        // The remedy has no field of its own in a PreconditionFailure: it is the second line.
        let description = format!("{}\n{}", problem.message, problem.remedy);
        PreconditionViolation::new(&problem.code, table, description.trim_end())
    };
    details.set_precondition_failure(problems.iter().map(violation).collect::<Vec<_>>());
    let message = match problems {
        [problem] => problem.message.clone(),
        problems => format!("{} problems stand in the way", problems.len()),
    };
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// `NOT_FOUND`: no worker of that id is connected, or was until a moment ago.
pub fn worker_not_found(id: &str) -> Status {
    status(
        Code::NotFound,
        reason::WORKER_NOT_FOUND,
        format!("no worker '{id}' is known"),
        "list the workers that are: millrace worker list",
    )
}

/// `UNAVAILABLE`: there is no worker to ask.
pub fn no_worker() -> Status {
    status(
        Code::Unavailable,
        reason::NO_WORKER,
        "no worker is connected; only workers reach source and destination",
        "start one with 'millrace worker', or see 'millrace worker list'",
    )
}

/// `DEADLINE_EXCEEDED`: the worker that was asked did not answer in time.
pub fn worker_silent() -> Status {
    let message = "the worker that was asked did not answer in time";
    status(
        Code::DeadlineExceeded,
        reason::WORKER_SILENT,
        message,
        "see whether source and destination answer, then try again",
    )
}

/// `UNAVAILABLE`: the coordinator is stopping.
pub fn shutting_down() -> Status {
    status(Code::Unavailable, reason::SHUTTING_DOWN, "the coordinator is stopping", "try again in a moment")
}

/// `UNAVAILABLE`: none of the coordinators leads for now, or this one cannot be sure that it does.
pub fn no_leader() -> Status {
    status(
        Code::Unavailable,
        reason::NO_LEADER,
        "no coordinator leads for now; what runs goes on",
        "try again in some seconds; if it stays so, see whether the coordinators reach their catalog",
    )
}

/// `UNAVAILABLE`: the coordinator at this address leads, and only it can answer.
pub fn not_leader(address: &str) -> Status {
    let mut info = details(reason::NOT_LEADER, &format!("ask the one that leads: {address}"));
    if let Some(mut error) = info.error_info().cloned() {
        error.metadata.insert(LEADER.to_owned(), address.to_owned());
        info.set_error_info(error.reason, error.domain, error.metadata);
    }
    let message = format!("this coordinator does not lead; the one at {address} does");
    Status::with_error_details(Code::Unavailable, message, info)
}

/// The address of the coordinator that leads, from a [`not_leader`].
pub fn leader(status: &Status) -> Option<String> {
    let details = status.get_error_details();
    let info =
        details.error_info().filter(|info| info.domain == DOMAIN && info.reason == reason::NOT_LEADER)?;
    info.metadata.get(LEADER).cloned()
}

/// `INTERNAL`: a fault in Millrace; the message must not hold secrets.
pub fn internal(message: impl Into<String>) -> Status {
    status(Code::Internal, reason::INTERNAL, message, "see the coordinator's log")
}

fn details(reason: &str, remedy: &str) -> ErrorDetails {
    let mut metadata = HashMap::new();
    if !remedy.is_empty() {
        metadata.insert(REMEDY.to_owned(), remedy.to_owned());
    }
    ErrorDetails::with_error_info(reason, DOMAIN, metadata)
}
