//! The one place where names and texts become part of a statement.

/// A name as a quoted identifier of ClickHouse's SQL (manual: "Syntax", Identifiers): any character is allowed inside
/// backticks, where a backslash escapes.
pub fn quote_identifier(name: &str) -> String {
    quote(name, '`')
}

/// A text as a string literal (manual: "Syntax", String).
pub fn quote_string(text: &str) -> String {
    quote(text, '\'')
}

fn quote(text: &str, delimiter: char) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push(delimiter);
    for character in text.chars() {
        if character == delimiter || character == '\\' {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push(delimiter);
    quoted
}

/// Reads a list such as `` id, `a b`, `q\`q` `` as `system.tables.sorting_key` holds it. `None` where anything in it is
/// more than a name (`lower(a)`, `a DESC`).
pub(crate) fn parse_identifiers(list: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = list.trim();
    while !rest.is_empty() {
        let (name, after) = match rest.strip_prefix('`') {
            Some(quoted) => split_quoted(quoted)?,
            None => {
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let (name, after) = rest.split_at(rest.find(|c| !plain(c)).unwrap_or(rest.len()));
                (name.to_owned(), after)
            }
        };
        if name.is_empty() {
            return None;
        }
        names.push(name);
        rest = match after.strip_prefix(',') {
            Some(next) if !next.trim().is_empty() => next.trim_start(),
            None if after.is_empty() => after,
            _ => return None,
        };
    }
    Some(names)
}

/// Splits what follows an opening backtick into the unescaped name and what comes after the closing one.
fn split_quoted(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '`' => return Some((name, &text[at + 1..])),
            '\\' => name.push(unescape(characters.next()?.1)),
            other => name.push(other),
        }
    }
    None
}

/// The escapes that ClickHouse itself writes into quoted identifiers.
fn unescape(letter: char) -> char {
    match letter {
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        '0' => '\0',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn delimiters_and_backslashes_are_escaped() {
        assert_eq!(quote_identifier("a`b\\c'd?e.ü"), "`a\\`b\\\\c'd?e.ü`");
        assert_eq!(quote_string("it's `1` \\ ?"), "'it\\'s `1` \\\\ ?'");
    }

    proptest! {
        #[test]
        fn quoted_names_are_read_back(names in proptest::collection::vec("\\PC{1,8}", 0..4)) {
            let list = names.iter().map(|name| quote_identifier(name)).collect::<Vec<_>>().join(", ");
            prop_assert_eq!(parse_identifiers(&list), Some(names));
        }
    }

    #[test]
    fn expressions_are_not_names() {
        assert_eq!(parse_identifiers("id, `a b`"), Some(vec!["id".to_owned(), "a b".to_owned()]));
        assert_eq!(parse_identifiers(""), Some(vec![]));
        for list in ["lower(a)", "a DESC", "`a` DESC", "a,", ",a", "`a", "a,,b", "-a", "`a\\"] {
            assert_eq!(parse_identifiers(list), None, "{list}");
        }
    }
}
