//! Mappings of a file: which keys they may have and what type each value is.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use crate::violation::{Violation, joined};
use crate::yaml::node::{Entry, Node, Value};
use crate::yaml::scalar;
use crate::yaml::{Place, SpecError};

/// Collects what is wrong while a file is read.
pub(super) struct Reader<'a> {
    base_dir: &'a Path,
    env: &'a dyn Fn(&str) -> Option<String>,
    errors: Vec<SpecError>,
    places: HashMap<String, Place>,
}

/// A mapping of which some keys are yet to be read.
pub(super) struct Section {
    path: String,
    entries: Vec<Entry>,
}

/// A value that was given, with its path.
pub(super) struct Given {
    pub(super) path: String,
    pub(super) node: Node,
}

/// A single value after its references were replaced.
enum Scalar {
    Bool(bool),
    Integer(i128),
    Text { text: String, referred: bool },
}

impl Section {
    /// A section that says nothing.
    pub(super) fn empty() -> Self {
        Self { path: String::new(), entries: Vec::new() }
    }

    /// The value of a key. A key without a value counts as absent.
    pub(super) fn take(&mut self, key: &str) -> Option<Given> {
        self.take_any(key).filter(|given| !matches!(given.node.value, Value::Null))
    }

    /// The value of a key for which YAML's `null` is a word like others.
    pub(super) fn take_any(&mut self, key: &str) -> Option<Given> {
        let index = self.entries.iter().position(|entry| entry.key == key)?;
        let entry = self.entries.swap_remove(index);
        Some(Given { path: joined(&self.path, key), node: entry.node })
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(base_dir: &'a Path, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { base_dir, env, errors: Vec::new(), places: HashMap::new() }
    }

    pub(super) fn refuse(&mut self, given: &Given, message: impl Into<String>) {
        self.errors.push(SpecError::new(&given.path, message, given.node.place));
    }

    /// What the file breaks, and of `violations` those that do not follow from it, in the order of the file.
    pub(super) fn errors_with(self, violations: &[Violation]) -> Vec<SpecError> {
        let mut errors = self.errors;
        let broken: Vec<String> = errors
            .iter()
            .flat_map(|error| [Some(error.path.clone()), error.meant.clone()])
            .flatten()
            .collect();
        for violation in violations {
            let path = path_in_file(&violation.field);
            if broken.iter().any(|broken| holds(broken, &path) || holds(&path, broken)) {
                continue;
            }
            let place = enclosing(&path).find_map(|path| self.places.get(path)).copied();
            errors.push(SpecError::new(path, &violation.message, place));
        }
        // Stable, so that errors without a place stay behind the others in the order of the rules.
        errors.sort_by_key(|error| (error.place.is_none(), error.place));
        errors
    }

    /// A mapping with only these keys. `None` where it is none.
    pub(super) fn section(&mut self, given: Given, known: &[&str]) -> Option<Section> {
        let Value::Map(entries) = given.node.value else {
            self.mismatch(&given, "a mapping");
            return None;
        };
        let (entries, unknown): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| known.contains(&entry.key.as_str()));
        for entry in unknown {
            let nearest = scalar::nearest(&entry.key, known);
            let message = match nearest {
                Some(nearest) => format!("unknown key, did you mean '{nearest}'?"),
                None => format!("unknown key; known here: {}", known.join(", ")),
            };
            let mut error = SpecError::new(joined(&given.path, &entry.key), message, entry.place);
            error.meant = nearest.map(|nearest| joined(&given.path, nearest));
            self.errors.push(error);
        }
        for entry in &entries {
            self.remember(&joined(&given.path, &entry.key), entry.place);
        }
        Some(Section { path: given.path, entries })
    }

    fn remember(&mut self, path: &str, place: Option<Place>) {
        if let Some(place) = place {
            self.places.insert(path.to_owned(), place);
        }
    }

    fn mismatch(&mut self, given: &Given, expected: &str) {
        let found = given.node.value.kind();
        let quotes = matches!(given.node.value, Value::Bool(_) | Value::Integer(_) | Value::Float);
        let hint = if expected == "text" && quotes { "; put it in quotes" } else { "" };
        self.refuse(given, format!("expected {expected}, found {found}{hint}"));
    }

    /// A single value, or `None` and the mismatch recorded.
    fn scalar(&mut self, given: &Given, expected: &str) -> Option<Scalar> {
        match &given.node.value {
            Value::Bool(value) => Some(Scalar::Bool(*value)),
            Value::Integer(value) => Some(Scalar::Integer(*value)),
            Value::Text(text) => match scalar::resolve(text, self.base_dir, self.env) {
                Ok(resolved) => Some(Scalar::Text { referred: resolved != *text, text: resolved }),
                Err(message) => {
                    self.refuse(given, message);
                    None
                }
            },
            Value::Null | Value::Float | Value::List(_) | Value::Map(_) => {
                self.mismatch(given, expected);
                None
            }
        }
    }

    /// A text; empty where it is absent or refused.
    pub(super) fn text(&mut self, section: &mut Section, key: &str) -> String {
        section.take(key).and_then(|given| self.given_text(&given)).unwrap_or_default()
    }

    pub(super) fn given_text(&mut self, given: &Given) -> Option<String> {
        if let Scalar::Text { text, .. } = self.scalar(given, "text")? {
            return Some(text);
        }
        self.mismatch(given, "text");
        None
    }

    /// A number of 0 to 4294967295, also out of a reference.
    pub(super) fn number(&mut self, section: &mut Section, key: &str) -> Option<u32> {
        let given = section.take(key)?;
        self.given_number(&given)
    }

    pub(super) fn given_number(&mut self, given: &Given) -> Option<u32> {
        let number = match self.scalar(given, "a whole number")? {
            Scalar::Integer(number) => number,
            Scalar::Text { text, referred: true } => {
                let Ok(number) = text.trim().parse() else {
                    self.refuse(given, "expected a whole number; what it refers to is none");
                    return None;
                };
                number
            }
            Scalar::Bool(_) | Scalar::Text { .. } => {
                self.mismatch(given, "a whole number");
                return None;
            }
        };
        let fits = u32::try_from(number).ok();
        if fits.is_none() {
            self.refuse(given, format!("{number} is out of range; expected 0 to {}", u32::MAX));
        }
        fits
    }

    /// True or false, also out of a reference.
    pub(super) fn boolean(&mut self, section: &mut Section, key: &str) -> Option<bool> {
        let given = section.take(key)?;
        self.given_boolean(&given)
    }

    pub(super) fn given_boolean(&mut self, given: &Given) -> Option<bool> {
        match self.scalar(given, "true or false")? {
            Scalar::Bool(value) => Some(value),
            Scalar::Text { text, referred: true } if text.trim() == "true" => Some(true),
            Scalar::Text { text, referred: true } if text.trim() == "false" => Some(false),
            Scalar::Text { referred: true, .. } => {
                self.refuse(given, "expected true or false; what it refers to is neither");
                None
            }
            Scalar::Integer(_) | Scalar::Text { .. } => {
                self.mismatch(given, "true or false");
                None
            }
        }
    }

    /// `1s`, `250ms`.
    pub(super) fn duration(&mut self, section: &mut Section, key: &str) -> Option<Duration> {
        let given = section.take(key)?;
        let expected = "a duration with its unit, such as 1s or 250ms";
        let Scalar::Text { text, .. } = self.scalar(&given, expected)? else {
            self.mismatch(&given, expected);
            return None;
        };
        let duration = scalar::duration(&text);
        if duration.is_none() {
            self.refuse(&given, format!("'{text}' is not {expected}"));
        }
        duration
    }

    /// One of the words, with what it stands for.
    pub(super) fn choice<T: Copy>(
        &mut self,
        section: &mut Section,
        key: &str,
        choices: &[(&str, T)],
        later: &[&str],
    ) -> Option<T> {
        let given = section.take(key)?;
        self.given_choice(&given, choices, later)
    }

    pub(super) fn given_choice<T: Copy>(
        &mut self,
        given: &Given,
        choices: &[(&str, T)],
        later: &[&str],
    ) -> Option<T> {
        let text = match &given.node.value {
            // `outOfRange: null` says it without quotes.
            Value::Null => "null".to_owned(),
            _ => self.given_text(given)?,
        };
        let chosen = choices.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        if chosen.is_none() && later.contains(&text.as_str()) {
            self.refuse(given, format!("'{text}' is not supported by this release"));
        } else if chosen.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            self.refuse(given, format!("'{text}' is not known; expected {}", words.join(", ")));
        }
        chosen
    }

    /// A key of a later release: only its default is accepted.
    pub(super) fn default_only(&mut self, section: &mut Section, key: &str, default: &str, later: &[&str]) {
        self.choice(section, key, &[(default, ())], later);
    }

    /// The values of a mapping with keys of the user's own, each with its path. Nothing where it is absent or no mapping.
    pub(super) fn map(&mut self, section: &mut Section, key: &str) -> Vec<(String, Given)> {
        let Some(given) = section.take(key) else { return Vec::new() };
        let Value::Map(entries) = given.node.value else {
            self.mismatch(&given, "a mapping");
            return Vec::new();
        };
        let mut values = Vec::with_capacity(entries.len());
        for entry in entries {
            let path = joined(&given.path, &entry.key);
            self.remember(&path, entry.place);
            values.push((entry.key, Given { path, node: entry.node }));
        }
        values
    }

    /// The items of a list, each with its path. Nothing where it is absent or not a list.
    pub(super) fn list(&mut self, section: &mut Section, key: &str) -> Vec<Given> {
        let Some(given) = section.take(key) else { return Vec::new() };
        let Value::List(items) = given.node.value else {
            self.mismatch(&given, "a list");
            return Vec::new();
        };
        let mut list = Vec::with_capacity(items.len());
        for (index, node) in items.into_iter().enumerate() {
            let path = format!("{}[{index}]", given.path);
            self.remember(&path, node.place);
            list.push(Given { path, node });
        }
        list
    }

    /// A list of texts. A refused one stays as an empty text, so that the others keep their index.
    pub(super) fn texts(&mut self, section: &mut Section, key: &str) -> Vec<String> {
        let items = self.list(section, key);
        items.iter().map(|item| self.given_text(item).unwrap_or_default()).collect()
    }

    /// The content of the file that a key names.
    pub(super) fn file(&mut self, section: &mut Section, key: &str) -> Option<String> {
        let given = section.take(key)?;
        let path = self.given_text(&given)?;
        scalar::read_file(self.base_dir, &path).map_err(|message| self.refuse(&given, message)).ok()
    }
}

/// The path in a `pipe.yaml` of a field of the wire form.
fn path_in_file(field: &str) -> String {
    let nested = [
        ("source.tlsMode", "source.postgres.tls.mode"),
        ("source.tlsCa", "source.postgres.tls.caFile"),
        ("source", "source.postgres"),
        ("destination", "destination.clickhouse"),
    ];
    for (wire, file) in nested {
        if holds(wire, field) {
            return format!("{file}{}", &field[wire.len()..]);
        }
    }
    field.to_owned()
}

/// Whether `inner` is the path `outer` or lies in it. Everything lies in the empty path.
fn holds(outer: &str, inner: &str) -> bool {
    outer.is_empty()
        || inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// A path and those around it, innermost first.
fn enclosing(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rfind(['.', '[']).map(|end| &path[..end]))
}
