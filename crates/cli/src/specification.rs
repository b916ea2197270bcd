//! Reading the file that `-f` names.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use millrace_api::yaml::SpecErrors;

use crate::Failure;
use crate::arguments::SpecFile;

/// A reader of the file's text, given the folder where relative paths begin and a look-up of variables.
type Parser<T> = fn(&str, &Path, &dyn Fn(&str) -> Option<String>) -> Result<T, SpecErrors>;

/// A file's text and what it takes to read it.
pub(crate) struct SpecText {
    text: String,
    base_dir: PathBuf,
    shown: String,
}

impl SpecText {
    pub(crate) fn read(file: &SpecFile) -> Result<Self, Failure> {
        let standard_input = file.file == Path::new("-");
        let shown =
            if standard_input { "standard input".to_owned() } else { file.file.display().to_string() };
        let text = if standard_input {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(&file.file)
        };
        let text = text.map_err(|error| {
            Failure::new(
                format!("{shown} could not be read"),
                error.to_string(),
                "name a readable file with -f",
            )
        })?;
        let base_dir = file.file.parent().filter(|_| !standard_input).unwrap_or(Path::new("")).to_owned();
        Ok(Self { text, base_dir, shown })
    }

    /// Parses the text with the variables of this process.
    pub(crate) fn parse<T>(&self, parser: Parser<T>) -> Result<T, Failure> {
        parser(&self.text, &self.base_dir, &|name| std::env::var(name).ok()).map_err(|errors| {
            let findings: Vec<String> = errors.errors().iter().map(ToString::to_string).collect();
            let what = format!("{} is not a valid pipe", self.shown);
            let why = match findings.len() {
                1 => "one thing is wrong in it".to_owned(),
                number => format!("{number} things are wrong in it"),
            };
            Failure::new(what, why, "correct the file; docs/pipe.example.yaml shows every key")
                .with_findings(findings)
        })
    }
}
