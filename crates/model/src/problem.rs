//! How trouble is described to the people who must deal with it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::TableName;

/// What can be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recovery {
    /// It passes by itself (connection lost, server restarting, too many parts): try again with backoff.
    Retry,
    /// Somebody must change something; trying again alone does not help.
    Operator,
    /// Nothing mends it short of copying anew (slot lost, another cluster behind the address).
    Never,
}

/// Whether a problem stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; work goes on.
    Warning,
    /// Work cannot go on.
    Error,
}

/// One thing that is wrong: what, why, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable code in `UPPER_SNAKE_CASE`, with a paragraph in `docs/errors.md`.
    pub code: String,
    /// Whether work can go on in spite of it.
    pub severity: Severity,
    /// What can be done about it.
    pub recovery: Recovery,
    /// What is wrong and why, in a sentence; names objects, never secrets.
    pub message: String,
    /// What to do, with the statement that mends it where there is one; may be empty.
    pub remedy: String,
    /// The source table it concerns, where it is one table's.
    pub table: Option<TableName>,
}

impl Problem {
    /// An error that an operator must mend.
    pub fn operator(code: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            severity: Severity::Error,
            recovery: Recovery::Operator,
            message: message.into(),
            remedy: remedy.into(),
            table: None,
        }
    }

    /// An error that passes by itself.
    pub fn transient(code: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { recovery: Recovery::Retry, ..Self::operator(code, message, remedy) }
    }

    /// An error that only a new copy mends.
    pub fn permanent(code: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { recovery: Recovery::Never, ..Self::operator(code, message, remedy) }
    }

    /// Something worth knowing that does not stop work.
    pub fn warning(code: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::operator(code, message, remedy) }
    }

    /// The same problem, said of one table.
    #[must_use]
    pub fn of_table(mut self, table: &TableName) -> Self {
        self.table = Some(table.clone());
        self
    }
}

/// One line: what, why, what to do.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(table) = &self.table {
            write!(f, "{table}: ")?;
        }
        write!(f, "{} [{}]", self.message, self.code)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}
