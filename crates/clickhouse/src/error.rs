//! What can go wrong, by the step that failed.

use std::time::Duration;

use millrace_model::Problem;

use crate::TableRef;

/// A step towards the destination that failed. [`crate::classify`] says what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address of the destination is not one.
    #[error("'{url}' is not the address of a ClickHouse server: {reason}")]
    Address {
        /// As configured, without credentials and parameters.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Asking the server what it is and allows.
    #[error("cannot learn about the ClickHouse server at {url}")]
    Facts {
        /// Where it was expected.
        url: String,
        /// What the exchange came to.
        source: Failure,
    },
    /// Making the database.
    #[error("cannot create database {database}")]
    CreateDatabase {
        /// The database.
        database: String,
        /// What the exchange came to.
        source: Failure,
    },
    /// Dropping the database.
    #[error("cannot drop database {database}")]
    DropDatabase {
        /// The database.
        database: String,
        /// What the exchange came to.
        source: Failure,
    },
    /// Changing a table's columns.
    #[error("cannot change the columns of table {table}")]
    Alter {
        /// The table.
        table: TableRef,
        /// What the exchange came to.
        source: Failure,
    },
    /// Reading back rows.
    #[error("cannot read back rows of table {table}")]
    LookUp {
        /// The table.
        table: TableRef,
        /// What the exchange came to.
        source: Failure,
    },
    /// Giving a table the place of another.
    #[error("cannot swap in table {table}")]
    Swap {
        /// The table.
        table: TableRef,
        /// What the exchange came to.
        source: Failure,
    },
    /// Reading a table's definition.
    #[error("cannot look up table {table}")]
    Describe {
        /// The table.
        table: TableRef,
        /// What the exchange came to.
        source: Failure,
    },
    /// Making a table.
    #[error("cannot create table {table}")]
    Create {
        /// The table.
        table: TableRef,
        /// What the exchange came to.
        source: Failure,
    },
    /// Inserting a block. Whether it was applied is unknown unless the server refused it.
    #[error("cannot insert into table {table}")]
    Insert {
        /// The table.
        table: TableRef,
        /// What the exchange came to.
        source: Failure,
    },
    /// Deleting what a TRUNCATE at the source removed.
    #[error("cannot delete older rows of table {table}")]
    DeleteOlder {
        /// The table.
        table: TableRef,
        /// What the exchange came to.
        source: Failure,
    },
    /// Counting rows.
    #[error("cannot count the rows of table {table}")]
    Count {
        /// The table.
        table: TableRef,
        /// What the exchange came to.
        source: Failure,
    },
    /// Dropping a table.
    #[error("cannot drop table {table}")]
    Drop {
        /// The table.
        table: TableRef,
        /// What the exchange came to.
        source: Failure,
    },
    /// The table cannot be declared as asked for.
    #[error("table {table} cannot be made: {problem}")]
    Undeclarable {
        /// The table.
        table: TableRef,
        /// The first of [`crate::TargetTable::problems`].
        problem: Box<Problem>,
    },
    /// A table of that name exists and is another one.
    #[error("table {table} exists and differs: {}", differences.join("; "))]
    Differs {
        /// The table.
        table: TableRef,
        /// What differs, a sentence each.
        differences: Vec<String>,
    },
    /// A table of that name holds rows that are not the pipe's.
    #[error("table {table} exists and is not empty: it holds {rows} rows")]
    NotEmpty {
        /// The table.
        table: TableRef,
        /// How many rows.
        rows: u64,
    },
    /// The hosts of the cluster do not have the same table.
    #[error("the hosts of the cluster do not agree on table {table}: {reason}")]
    Uneven {
        /// The table.
        table: TableRef,
        /// Which of them has what.
        reason: String,
    },
    /// A table that is to be dropped was not made by the pipe that asks.
    #[error("table {table} was not made by this pipe")]
    NotOurs {
        /// The table.
        table: TableRef,
    },
}

/// What an exchange with the server came to, when not to what was wanted.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// ClickHouse answered with an exception.
    #[error("ClickHouse answered with code {code}: {text}")]
    Refused {
        /// ClickHouse's number for it (`system.errors`).
        code: u32,
        /// What it said.
        text: String,
    },
    /// Something answered that is not ClickHouse, such as a proxy before it.
    #[error("not ClickHouse but something before it answered: {text}")]
    Foreign {
        /// What it said, in part.
        text: String,
    },
    /// The whole exchange took longer than it may.
    #[error("no answer within {after:?}")]
    TimedOut {
        /// How long it may take.
        after: Duration,
    },
    /// The connection could not be made, or broke.
    #[error("the connection failed")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request could not be made, or the answer not be understood.
    #[error("the exchange was not understood")]
    Exchange(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Most bytes of a foreign or refusing answer that are kept.
const ANSWER_LIMIT: usize = 2_000;

impl From<clickhouse::error::Error> for Failure {
    fn from(error: clickhouse::error::Error) -> Self {
        match error {
            clickhouse::error::Error::BadResponse(text) => Self::from_answer(&text),
            clickhouse::error::Error::Network(source) => Self::Connection(source),
            other => Self::Exchange(Box::new(other)),
        }
    }
}

impl Failure {
    /// Reads `Code: 60. DB::Exception: Table a.b does not exist. (UNKNOWN_TABLE) (version …)`, or `Code: 60` alone where
    /// the body was lost.
    fn from_answer(text: &str) -> Self {
        let exception = || {
            let genuine = text.starts_with("Code: ") || text.contains("Exception");
            let rest = &text[text.find("Code: ").filter(|_| genuine)? + "Code: ".len()..];
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            Some((rest[..digits].parse().ok()?, &rest[digits..]))
        };
        match exception() {
            Some((code, rest)) => {
                let rest = rest.trim_start_matches(['.', ',', ' ']);
                let rest = rest.strip_prefix("DB::Exception: ").unwrap_or(rest);
                let rest = rest.rfind(" (version ").map_or(rest, |at| &rest[..at]);
                Self::Refused { code, text: shortened(rest) }
            }
            None => Self::Foreign { text: shortened(text) },
        }
    }

    /// ClickHouse's code, where it answered with one.
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

fn shortened(text: &str) -> String {
    let end = text.floor_char_boundary(ANSWER_LIMIT.min(text.len()));
    text[..end].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_is_told_from_what_a_proxy_says() {
        let refused = |text: &str| match Failure::from_answer(text) {
            Failure::Refused { code, text } => (code, text),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            refused(
                "Code: 60. DB::Exception: Table a.b does not exist. (UNKNOWN_TABLE) (version 24.8.4.13 (official build))"
            ),
            (60, "Table a.b does not exist. (UNKNOWN_TABLE)".to_owned())
        );
        assert_eq!(refused("Code: 241"), (241, String::new()));
        assert_eq!(
            refused("Poco::Exception. Code: 1000, e.code() = 0, Timeout (version 24.8.4.13)"),
            (1000, "e.code() = 0, Timeout".to_owned())
        );
        assert!(matches!(Failure::from_answer("502 Bad Gateway"), Failure::Foreign { .. }));
        assert!(matches!(Failure::from_answer("Error Code: 503"), Failure::Foreign { .. }));
        assert!(matches!(Failure::from_answer("Code: x"), Failure::Foreign { .. }));
    }

    #[test]
    fn a_long_answer_is_cut_between_characters() {
        let Failure::Foreign { text } = Failure::from_answer(&"ü".repeat(1_500)) else { panic!() };
        assert_eq!(text.len(), 2_000);
        let Failure::Foreign { text } = Failure::from_answer(&format!("a{}", "ü".repeat(1_500))) else {
            panic!()
        };
        assert_eq!(text.len(), 1_999);
    }
}
