//! A failed call as a client tells it to a person: why, and what to do.

use std::error::Error;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::status::{DOMAIN, REMEDY};

/// A call failed. What was attempted is the caller's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The gRPC code.
    pub code: Code,
    /// The stable reason, where the answer came from Millrace.
    pub reason: Option<String>,
    /// Why it failed.
    pub message: String,
    /// What to do; may be empty.
    pub remedy: String,
    /// The single findings, where there are several or where they say where.
    pub findings: Vec<Finding>,
}

/// One of the things that made a call fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A stable code; empty for a field.
    pub code: String,
    /// The field's path, or the table; may be empty.
    pub subject: String,
    /// What is wrong.
    pub message: String,
    /// What to do; may be empty.
    pub remedy: String,
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN);
        let mut findings = Vec::new();
        for field in details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default() {
            findings.push(Finding {
                code: String::new(),
                subject: field.field.clone(),
                message: field.description.clone(),
                remedy: String::new(),
            });
        }
        let failure = details.precondition_failure();
        for violation in failure.map(|failure| failure.violations.as_slice()).unwrap_or_default() {
            // An illegal command is told in full by the status itself.
            if violation.r#type == "PIPE_STATE" {
                continue;
            }
            let (message, remedy) =
                violation.description.split_once('\n').unwrap_or((&violation.description, ""));
            findings.push(Finding {
                code: violation.r#type.clone(),
                subject: violation.subject.clone(),
                message: message.to_owned(),
                remedy: remedy.to_owned(),
            });
        }
        let remedy = match info.and_then(|info| info.metadata.get(REMEDY)) {
            Some(remedy) => remedy.clone(),
            None if info.is_none() => general_remedy(status.code()).to_owned(),
            None => String::new(),
        };
        Self {
            code: status.code(),
            reason: info.map(|info| info.reason.clone()),
            message: told(&status),
            remedy,
            findings,
        }
    }
}

/// The status' message, with the cause at the bottom where the connection failed.
fn told(status: &Status) -> String {
    let mut message = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        cause = error.source();
        let text = error.to_string();
        if cause.is_none() && !message.contains(&text) {
            message = format!("{message}: {text}");
        }
    }
    if message.is_empty() { status.code().description().to_owned() } else { message }
}

fn general_remedy(code: Code) -> &'static str {
    match code {
        Code::Unavailable | Code::Unknown => "see whether the coordinator runs and answers, then try again",
        Code::Unimplemented => "the coordinator is of another release; update it or this client",
        Code::DeadlineExceeded => "try again; if that does not help, see the coordinator's log",
        _ => "see the coordinator's log",
    }
}
