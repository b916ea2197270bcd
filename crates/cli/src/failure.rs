//! A failure as a person reads it: what failed, why, what to do.

use std::fmt;
use std::io;

use millrace_api::error::Finding;
use millrace_api::json::JsonError;
use millrace_api::{ApiError, ConnectError};

/// A command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub struct Failure {
    what: String,
    why: String,
    findings: Vec<String>,
    remedy: String,
    usage: bool,
    #[source]
    output: Option<io::Error>,
}

impl Failure {
    /// What was attempted, why it failed, what to do.
    pub fn new(what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
            findings: Vec::new(),
            remedy: remedy.into(),
            usage: false,
            output: None,
        }
    }

    /// The call was refused or failed.
    pub fn refused(what: impl Into<String>, error: impl Into<ApiError>) -> Self {
        let error = error.into();
        // A single finding without a remedy of its own is the message already.
        let told = matches!(error.findings.as_slice(), [finding] if finding.remedy.is_empty() && error.message.ends_with(&finding.message));
        let findings = if told { Vec::new() } else { error.findings.iter().map(finding_text).collect() };
        let remedy = match error.remedy {
            remedy if remedy.is_empty() && !error.findings.is_empty() => {
                "correct what is listed, then try again".to_owned()
            }
            remedy => remedy,
        };
        Self { findings, ..Self::new(what, error.message, remedy) }
    }

    /// There is no connection to a coordinator.
    pub(crate) fn unconnected(what: &str, error: &ConnectError) -> Self {
        let remedy = match error {
            ConnectError::Unreachable { .. } => {
                "start one with 'millrace dev' or 'millrace coordinator', or give its address with --address"
            }
            ConnectError::Address { .. } | ConnectError::Tls { .. } => {
                "give the coordinator's address with --address or MILLRACE_ADDRESS"
            }
        };
        let usage = !matches!(error, ConnectError::Unreachable { .. });
        Self { usage, ..Self::new(what, error.to_string(), remedy) }
    }

    pub(crate) fn with_findings(mut self, findings: Vec<String>) -> Self {
        self.findings = findings;
        self
    }

    pub(crate) fn unprinted(error: io::Error) -> Self {
        let why = error.to_string();
        Self { output: Some(error), ..Self::new("the answer could not be printed", why, "") }
    }

    /// Whether whoever read the output has left.
    pub(crate) fn is_closed_output(&self) -> bool {
        self.output.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// 1, or 2 where the command was called wrongly.
    pub fn exit_code(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }
}

impl From<JsonError> for Failure {
    fn from(error: JsonError) -> Self {
        Self::new("the answer could not be printed", error.to_string(), "use another form with -o")
    }
}

/// One finding: where, what, and below it what to do.
fn finding_text(finding: &Finding) -> String {
    let mut text = String::new();
    if !finding.subject.is_empty() {
        text.push_str(&finding.subject);
        text.push_str(": ");
    }
    text.push_str(&finding.message);
    if !finding.code.is_empty() {
        text.push_str(&format!(" [{}]", finding.code));
    }
    if !finding.remedy.is_empty() {
        text.push_str("\n-> ");
        text.push_str(&finding.remedy);
    }
    text
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        write!(f, "\nwhy:   {}", self.why)?;
        for finding in &self.findings {
            let mut lines = finding.lines();
            write!(f, "\n       - {}", lines.next().unwrap_or_default())?;
            for line in lines {
                write!(f, "\n         {line}")?;
            }
        }
        if !self.remedy.is_empty() {
            write!(f, "\nto do: {}", self.remedy)?;
        }
        Ok(())
    }
}
