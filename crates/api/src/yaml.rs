//! `pipe.yaml`: the form in which people write a pipe.
//!
//! The file is read in three steps: YAML into a tree that knows its places ([`node`]), the tree into the wire form with unknown
//! keys, wrong types and missing references refused ([`section`]), the wire form into the model by the rules that hold for
//! every client ([`crate::spec`]). What is found at any step is told together, by its path in the file.
//!
//! `${env:NAME}` and `${file:path}` stand for a variable and a file's content in every text value; `$${` is a literal `${`.
//! Keys of later releases are known: their default is accepted, anything else is refused and never ignored.

mod node;
mod pipe;
mod scalar;
mod section;

use std::fmt;
use std::path::Path;

use millrace_model::PipeSpec;
use millrace_model::spec::PostgresSource;

use crate::proto::pipe::v1 as wire;
use crate::violation::ProtocolError;

use section::Reader;

/// A place in a file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

/// One thing that is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecError {
    /// Path of the key, such as `tables[1].source`; empty where it is the file as a whole.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
    /// Where it stands, as far as that is known.
    pub place: Option<Place>,
    /// The path that was probably meant, for an unknown key.
    meant: Option<String>,
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match self.place {
            Some(Place { line, column }) => write!(f, " (line {line}, column {column})"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong in a file, in the order of the file. Holds at least one error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecErrors(Vec<SpecError>);

impl SpecErrors {
    /// The errors.
    pub fn errors(&self) -> &[SpecError] {
        &self.0
    }
}

/// One error a line.
impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecErrors {}

/// Reads a `pipe.yaml`.
///
/// `base_dir` is where relative paths in the file begin: the folder of the file. `env` looks variables up.
pub fn parse_pipe_yaml(
    text: &str,
    base_dir: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<PipeSpec, SpecErrors> {
    let (reader, spec) = read(text, base_dir, env)?;
    finish(reader, PipeSpec::try_from(spec), |_| true)
}

/// Reads the source alone from a `pipe.yaml`, whatever is missing or wrong elsewhere in it.
pub fn parse_source_yaml(
    text: &str,
    base_dir: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<PostgresSource, SpecErrors> {
    let (reader, spec) = read(text, base_dir, env)?;
    let source =
        spec.source.ok_or_else(|| ProtocolError::at("", "missing")).and_then(PostgresSource::try_from);
    let source = source.map_err(|error: ProtocolError| error.within("source"));
    let concerns_source = |path: &str| path.is_empty() || path.starts_with("source");
    finish(reader, source, |error| {
        concerns_source(&error.path) || error.meant.as_deref().is_some_and(concerns_source)
    })
}

/// Reads a duration as it stands in a `pipe.yaml`: a whole number with its unit, `250ms`, `1s`, `5m` or `1h`.
pub fn parse_duration(text: &str) -> Option<std::time::Duration> {
    scalar::duration(text)
}

fn read<'a>(
    text: &str,
    base_dir: &'a Path,
    env: &'a dyn Fn(&str) -> Option<String>,
) -> Result<(Reader<'a>, wire::PipeSpec), SpecErrors> {
    let root = node::parse(text).map_err(|error| SpecErrors(vec![error]))?;
    let mut reader = Reader::new(base_dir, env);
    let spec = pipe::read(&mut reader, root);
    Ok((reader, spec))
}

/// Joins what the file breaks with what the rules of every client refuse.
fn finish<T>(
    reader: Reader<'_>,
    checked: Result<T, ProtocolError>,
    concerns: impl Fn(&SpecError) -> bool,
) -> Result<T, SpecErrors> {
    let violations = checked.as_ref().err().map(ProtocolError::violations).unwrap_or_default();
    let mut errors = reader.errors_with(violations);
    errors.retain(concerns);
    match checked {
        Ok(value) if errors.is_empty() => Ok(value),
        Err(error) if errors.is_empty() => Err(SpecErrors(vec![SpecError::new("", error.to_string(), None)])),
        _ => Err(SpecErrors(errors)),
    }
}

impl SpecError {
    fn new(path: impl Into<String>, message: impl Into<String>, place: Option<Place>) -> Self {
        Self { path: path.into(), message: message.into(), place, meant: None }
    }
}
