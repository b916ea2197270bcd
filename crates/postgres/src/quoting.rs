//! The one place where names and texts become part of SQL.

use millrace_model::TableName;

/// A name as SQL reads it back unchanged (manual: "Identifiers and Key Words").
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text constant; with backslashes it is written as `E'...'`, so that `standard_conforming_strings` does not matter.
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// A text constant in a replication command, whose grammar is not SQL's: it knows no `E'...'`, and a backslash is one.
pub fn quote_replication_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A table as SQL reads it back unchanged.
pub fn quote_table(table: &TableName) -> String {
    format!("{}.{}", quote_identifier(&table.schema), quote_identifier(&table.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_inside_are_doubled() {
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\b'"), "E'a\\\\b'''");
        assert_eq!(quote_replication_literal("a\\b'"), "'a\\b'''");
        assert_eq!(quote_table(&TableName::new("S", "my.table")), "\"S\".\"my.table\"");
    }
}
