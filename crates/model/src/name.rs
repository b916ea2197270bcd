//! Names of source tables, written as in SQL.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A table of the source by schema and name, both as PostgreSQL stores them (unquoted, case kept).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// Schema, at most 63 bytes.
    pub schema: String,
    /// Table, at most 63 bytes.
    pub name: String,
}

impl TableName {
    /// Joins a schema and a table name.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// What the destination table is called where the user says nothing: `<schema>_<table>`.
    pub fn default_target(&self) -> String {
        format!("{}_{}", self.schema, self.name)
    }
}

/// `public.orders`, `"Odd schema"."my.table"`: quoted only where SQL needs it.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in [&self.schema, &self.name].into_iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            let plain = part.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if plain {
                f.write_str(part)?;
            } else {
                write!(f, "\"{}\"", part.replace('"', "\"\""))?;
            }
        }
        Ok(())
    }
}

/// The text does not name a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTableName {
    /// There is no schema, or more than two parts.
    #[error(
        "'{0}' does not name a table; write schema.table, with double quotes around a part that holds a dot, as in public.\"my.table\""
    )]
    Parts(String),
    /// A double quote is open at the end, or text follows a closing one.
    #[error("the quoting in '{0}' is not closed; a quote inside a quoted name is written twice")]
    Quoting(String),
    /// PostgreSQL would cut the name.
    #[error("'{0}' is longer than the 63 bytes that PostgreSQL keeps of a name")]
    TooLong(String),
}

/// Reads `schema.table` with SQL's quoting. Unquoted parts are folded to lower case as SQL does, but may hold any
/// character save dots and quotes, so that names such as `public.my-table` need no quotes in a file.
impl FromStr for TableName {
    type Err = InvalidTableName;

    fn from_str(text: &str) -> Result<Self, InvalidTableName> {
        let mut parts = Vec::new();
        let mut rest = text;
        loop {
            let (part, after) = if let Some(quoted) = rest.strip_prefix('"') {
                split_quoted(quoted).ok_or_else(|| InvalidTableName::Quoting(text.to_owned()))?
            } else {
                let end = rest.find('.').unwrap_or(rest.len());
                let (part, after) = rest.split_at(end);
                if part.contains('"') {
                    return Err(InvalidTableName::Quoting(text.to_owned()));
                }
                (part.to_lowercase(), after)
            };
            if part.is_empty() {
                return Err(InvalidTableName::Parts(text.to_owned()));
            }
            if part.len() > 63 {
                return Err(InvalidTableName::TooLong(part));
            }
            parts.push(part);
            match after.strip_prefix('.') {
                Some(next) => rest = next,
                None if after.is_empty() => break,
                None => return Err(InvalidTableName::Quoting(text.to_owned())),
            }
        }
        match <[String; 2]>::try_from(parts) {
            Ok([schema, name]) => Ok(Self { schema, name }),
            Err(_) => Err(InvalidTableName::Parts(text.to_owned())),
        }
    }
}

/// Splits what follows an opening quote into the unescaped name and what comes after the closing quote.
fn split_quoted(text: &str) -> Option<(String, &str)> {
    let mut part = String::new();
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        if character != '"' {
            part.push(character);
        } else if characters.next_if(|(_, next)| *next == '"').is_some() {
            part.push('"');
        } else {
            return Some((part, &text[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(schema in "\\PC{1,12}", name in "\\PC{1,12}") {
            let table = TableName::new(schema, name);
            prop_assert_eq!(table.to_string().parse(), Ok(table));
        }
    }

    #[test]
    fn names_are_read_as_sql_reads_them() {
        let read = |text: &str| text.parse::<TableName>();
        assert_eq!(read("Public.Orders"), Ok(TableName::new("public", "orders")));
        assert_eq!(read("\"Public\".\"my.table\""), Ok(TableName::new("Public", "my.table")));
        assert_eq!(read("s.\"a\"\"b\""), Ok(TableName::new("s", "a\"b")));
        for wrong in ["orders", "a.b.c", ".", "a.", "\"a", "a.\"b\"c", "a.b\"", ""] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
