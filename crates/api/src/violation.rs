//! What is wrong with a message that came in: every field, not just the first.

use std::fmt;

/// One field that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its path in the names of proto JSON, such as `spec.tables[2].source`; empty where it is the message itself.
    pub field: String,
    /// What is wrong with it and what would be right. Never holds a secret.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// A message does not keep the rules of the protocol. Holds at least one violation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtocolError {
    violations: Vec<Violation>,
}

impl ProtocolError {
    /// One field is wrong.
    pub fn at(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { violations: vec![Violation { field: field.into(), message: message.into() }] }
    }

    /// What is wrong, in the order in which it was found.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// The same error of a message that is the field `outer` of another.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        for violation in &mut self.violations {
            violation.field = joined(outer, &violation.field);
        }
        self
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.violations.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{violation}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ProtocolError {}

/// The path of `inner` in the field `outer`.
pub(crate) fn joined(outer: &str, inner: &str) -> String {
    if outer.is_empty() || inner.is_empty() || inner.starts_with('[') {
        format!("{outer}{inner}")
    } else {
        format!("{outer}.{inner}")
    }
}

/// Collects violations while a message is read.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    violations: Vec<Violation>,
}

impl Checker {
    /// Records that a field is wrong.
    pub(crate) fn refuse(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.violations.push(Violation { field: field.into(), message: message.into() });
    }

    /// Records that a field is wrong unless `holds`.
    pub(crate) fn demand(&mut self, holds: bool, field: &str, message: impl FnOnce() -> String) {
        if !holds {
            self.refuse(field, message());
        }
    }

    /// The value, or `None` and its violation recorded.
    pub(crate) fn accept<T, E: fmt::Display>(&mut self, field: &str, result: Result<T, E>) -> Option<T> {
        result.inspect_err(|error| self.refuse(field, error.to_string())).ok()
    }

    /// The value where nothing was refused. A reader gives `None` only after it has refused something.
    pub(crate) fn finish<T>(mut self, value: Option<T>) -> Result<T, ProtocolError> {
        match value {
            Some(value) if self.violations.is_empty() => Ok(value),
            _ => {
                if self.violations.is_empty() {
                    self.refuse("", "incomplete");
                }
                Err(ProtocolError { violations: self.violations })
            }
        }
    }
}
