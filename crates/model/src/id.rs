//! Identifiers. Newtypes, because swapped integers and strings are the classic fault of this field.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A pipe's identity for as long as it exists: 12 lowercase hexadecimal digits.
///
/// It is part of the names of the slot and publication that the pipe owns, so it stays within what PostgreSQL allows there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PipeId(String);

impl PipeId {
    /// Makes an id from 48 random bits; higher bits are dropped.
    pub fn from_random(bits: u64) -> Self {
        Self(format!("{:012x}", bits & 0xffff_ffff_ffff))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the replication slot that the pipe owns where the user named none.
    pub fn slot_name(&self) -> String {
        format!("millrace_{}", self.0)
    }

    /// Name of the publication that the pipe owns where the user named none.
    pub fn publication_name(&self) -> String {
        format!("millrace_{}", self.0)
    }
}

impl fmt::Display for PipeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is not an identifier of the kind that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Not 12 hexadecimal digits.
    #[error("'{0}' is not a pipe id; expected 12 lowercase hexadecimal digits")]
    Pipe(String),
    /// Empty, too long, or with control characters.
    #[error(
        "'{0}' cannot be a name; use 1 to 63 bytes without control characters or white space at the ends"
    )]
    Name(String),
}

impl FromStr for PipeId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let valid = text.len() == 12 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidId::Pipe(text.to_owned())) }
    }
}

fn checked_name(text: &str) -> Result<String, InvalidId> {
    let valid = (1..=63).contains(&text.len()) && text.trim() == text && !text.chars().any(char::is_control);
    if valid { Ok(text.to_owned()) } else { Err(InvalidId::Name(text.to_owned())) }
}

/// What users call a pipe: 1 to 63 bytes, any printable characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PipeName(String);

impl PipeName {
    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PipeName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        checked_name(text).map(Self)
    }
}

impl fmt::Display for PipeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A worker process as its operator named it (or as it named itself at start): 1 to 63 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(String);

impl WorkerId {
    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkerId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        checked_name(text).map(Self)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one assignment of one piece of work, and orders assignments in time.
///
/// The coordinator takes each from one counter in its catalog, so no two assignments ever share one and a later one is
/// always greater. A report that carries the epoch of an assignment that no longer stands changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One time of leading among coordinators.
///
/// The catalog gives a greater one to every new leader. What a coordinator decides in a term that is over is not stored, and workers turn away from one whose
/// term is behind what they have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One copy of a source table within a pipe. A table that is copied anew gets another; none is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TableId(pub u32);

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
