//! Problems on the wire.

use millrace_model::{Problem, Recovery, Severity, TableName};

use crate::proto::pipe::v1 as wire;
use crate::violation::ProtocolError;

impl From<Severity> for wire::Severity {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Warning => Self::Warning,
            Severity::Error => Self::Error,
        }
    }
}

impl From<Recovery> for wire::Recovery {
    fn from(recovery: Recovery) -> Self {
        match recovery {
            Recovery::Retry => Self::Retry,
            Recovery::Operator => Self::Operator,
            Recovery::Never => Self::Never,
        }
    }
}

impl From<&Problem> for wire::Problem {
    fn from(problem: &Problem) -> Self {
        Self {
            code: problem.code.clone(),
            severity: wire::Severity::from(problem.severity).into(),
            recovery: wire::Recovery::from(problem.recovery).into(),
            message: problem.message.clone(),
            remedy: problem.remedy.clone(),
            table: problem.table.as_ref().map(TableName::to_string).unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::Problem> for Problem {
    type Error = ProtocolError;

    fn try_from(problem: wire::Problem) -> Result<Self, ProtocolError> {
        let severity = match problem.severity() {
            wire::Severity::Warning => Severity::Warning,
            wire::Severity::Error => Severity::Error,
            wire::Severity::Unspecified => return Err(ProtocolError::at("severity", "missing or unknown")),
        };
        let recovery = match problem.recovery() {
            wire::Recovery::Retry => Recovery::Retry,
            wire::Recovery::Operator => Recovery::Operator,
            wire::Recovery::Never => Recovery::Never,
            wire::Recovery::Unspecified => return Err(ProtocolError::at("recovery", "missing or unknown")),
        };
        if problem.code.is_empty() {
            return Err(ProtocolError::at("code", "missing"));
        }
        Ok(Self {
            code: problem.code,
            severity,
            recovery,
            message: problem.message,
            remedy: problem.remedy,
            table: optional_table(&problem.table)?,
        })
    }
}

/// The problems in their order.
pub fn problems_out(problems: &[Problem]) -> Vec<wire::Problem> {
    problems.iter().map(wire::Problem::from).collect()
}

/// The problems in their order, or the first that is not one.
pub fn problems_in(field: &str, problems: Vec<wire::Problem>) -> Result<Vec<Problem>, ProtocolError> {
    let read = |(index, problem): (usize, wire::Problem)| {
        Problem::try_from(problem).map_err(|error| error.within(&format!("{field}[{index}]")))
    };
    problems.into_iter().enumerate().map(read).collect()
}

/// A table where the text is not empty.
pub(crate) fn optional_table(text: &str) -> Result<Option<TableName>, ProtocolError> {
    if text.is_empty() { Ok(None) } else { table("table", text).map(Some) }
}

/// A table by its SQL name.
pub(crate) fn table(field: &str, text: &str) -> Result<TableName, ProtocolError> {
    text.parse()
        .map_err(|error: millrace_model::name::InvalidTableName| ProtocolError::at(field, error.to_string()))
}
