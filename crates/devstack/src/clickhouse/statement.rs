//! SQL, read only as far as the HTTP interface has to: where an INSERT's data begins, which format is asked for, and
//! where a statement names query ids.

use std::borrow::Cow;
use std::ops::Range;

/// One lexical element; white space and comments are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A keyword or a plain identifier, also a number.
    Word,
    /// An identifier in backticks or double quotes.
    Quoted,
    /// A string.
    Text,
    Symbol(u8),
}

/// Cuts a text into tokens, as ClickHouse's lexer does.
struct Lexer<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Lexer<'t> {
    fn new(text: &'t [u8]) -> Self {
        Self { text, at: 0 }
    }

    fn rest(&self) -> &'t [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            self.at += match rest {
                [b, ..] if b.is_ascii_whitespace() || *b == 0x0b => 1,
                [b'-', b'-', ..] | [b'#', b' ' | b'!', ..] => {
                    find(rest, b"\n").map_or(rest.len(), |end| end + 1)
                }
                [b'/', b'*', ..] => find(&rest[2..], b"*/").map_or(rest.len(), |end| end + 4),
                _ => return,
            };
        }
    }

    /// The length of a quoted piece, its quotes included; a backslash or a second quote escapes.
    fn quoted(rest: &[u8], quote: u8) -> usize {
        let mut at = 1;
        while let Some(&byte) = rest.get(at) {
            match byte {
                b'\\' => at += 2,
                b if b == quote && rest.get(at + 1) == Some(&quote) => at += 2,
                b if b == quote => return at + 1,
                _ => at += 1,
            }
        }
        rest.len()
    }

    /// The length of a `$tag$...$tag$` string, if one begins here.
    fn heredoc(rest: &[u8]) -> Option<usize> {
        let tag_end = 1 + rest.get(1..)?.iter().position(|b| !is_word(*b))?;
        let tag = rest.get(..=tag_end).filter(|tag| tag.ends_with(b"$"))?;
        Some(find(&rest[tag.len()..], tag)? + 2 * tag.len())
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        self.skip_blank();
        let rest = self.rest();
        let (kind, length) = match *rest.first()? {
            b'\'' => (Kind::Text, Self::quoted(rest, b'\'')),
            quote @ (b'`' | b'"') => (Kind::Quoted, Self::quoted(rest, quote)),
            b'$' if Self::heredoc(rest).is_some() => (Kind::Text, Self::heredoc(rest)?),
            byte if is_word(byte) => {
                (Kind::Word, rest.iter().position(|b| !is_word(*b)).unwrap_or(rest.len()))
            }
            byte => (Kind::Symbol(byte), 1),
        };
        let start = self.at;
        self.at = (start + length).min(self.text.len());
        Some(Token { kind, start, end: self.at })
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// A text with its tokens.
struct Tokens<'t> {
    text: &'t [u8],
    tokens: Vec<Token>,
}

impl<'t> Tokens<'t> {
    fn of(text: &'t [u8]) -> Self {
        Self { text, tokens: Lexer::new(text).collect() }
    }

    fn slice(&self, token: Token) -> &'t [u8] {
        self.text.get(token.start..token.end).unwrap_or_default()
    }

    fn is(&self, at: usize, word: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| is_keyword(self.text, *token, word))
    }

    fn is_symbol(&self, at: usize, symbol: u8) -> bool {
        self.tokens.get(at).is_some_and(|token| token.kind == Kind::Symbol(symbol))
    }
}

fn is_keyword(text: &[u8], token: Token, word: &str) -> bool {
    token.kind == Kind::Word
        && text.get(token.start..token.end).is_some_and(|found| found.eq_ignore_ascii_case(word.as_bytes()))
}

/// An INSERT whose data follows its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InsertText {
    /// The statement without FORMAT and data.
    pub(crate) statement: Range<usize>,
    /// The data's format.
    pub(crate) format: String,
    /// Where the data begins.
    pub(crate) data: usize,
}

/// What an INSERT needs that cannot be done here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FromInfile;

/// Finds where the data of an INSERT begins; `None` if the text is not an INSERT with data.
///
/// Nothing behind that point is looked at, so binary data may follow.
pub(crate) fn insert_with_data(text: &[u8]) -> Result<Option<InsertText>, FromInfile> {
    let mut lexer = Lexer::new(text);
    if !lexer.next().is_some_and(|token| is_keyword(text, token, "INSERT")) {
        return Ok(None);
    }
    let (mut depth, mut before, mut end) = (0_usize, None, lexer.at);
    while let Some(token) = lexer.next() {
        let keyword =
            |word| depth == 0 && before != Some(Kind::Symbol(b'.')) && is_keyword(text, token, word);
        let qualifies = text.get(token.end) == Some(&b'.');
        match token.kind {
            Kind::Symbol(b'(') => depth += 1,
            Kind::Symbol(b')') => depth = depth.saturating_sub(1),
            Kind::Symbol(b';') if depth == 0 => break,
            Kind::Word if qualifies => {}
            Kind::Word if keyword("VALUES") => {
                let data = skip_line_end(text, token.end);
                return Ok(Some(InsertText { statement: 0..token.start, format: "Values".into(), data }));
            }
            Kind::Word if keyword("FORMAT") => {
                let name = lexer.next().filter(|name| name.kind == Kind::Word);
                let Some(name) = name else { return Ok(None) };
                let format = String::from_utf8_lossy(text.get(name.start..name.end).unwrap_or_default());
                let data = skip_line_end(text, name.end);
                return Ok(Some(InsertText { statement: 0..token.start, format: format.into(), data }));
            }
            Kind::Word if keyword("INFILE") => return Err(FromInfile),
            // A query instead of data, also when it stands in parentheses.
            Kind::Word
                if (depth == 0 && (keyword("SELECT") || keyword("WITH") || keyword("WATCH")))
                    || (depth > 0
                        && before == Some(Kind::Symbol(b'('))
                        && (is_keyword(text, token, "SELECT") || is_keyword(text, token, "WITH"))) =>
            {
                return Ok(None);
            }
            _ => {}
        }
        before = Some(token.kind);
        end = token.end;
    }
    // Without a clause the data is in the format Values, ClickHouse's default for inserts.
    Ok(Some(InsertText { statement: 0..end, format: "Values".into(), data: skip_line_end(text, lexer.at) }))
}

/// Spaces and one line end after the format's name belong to the statement.
fn skip_line_end(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | 0x0c)) {
        at += 1;
    }
    at += usize::from(text.get(at) == Some(&b'\r'));
    at + usize::from(text.get(at) == Some(&b'\n'))
}

/// The format that a query asks for in its text: `FORMAT name`, followed by nothing but settings.
pub(crate) fn output_format(text: &[u8]) -> Option<String> {
    let tokens = Tokens::of(text);
    let count = tokens.tokens.len();
    let at = (1..count).rev().find(|&at| {
        let ends = at + 2 >= count || tokens.is(at + 2, "SETTINGS") || tokens.is_symbol(at + 2, b';');
        tokens.is(at, "FORMAT") && ends && !tokens.is_symbol(at - 1, b'.')
    })?;
    let name = tokens.tokens.get(at + 1).filter(|token| token.kind == Kind::Word)?;
    Some(String::from_utf8_lossy(tokens.slice(*name)).into_owned())
}

/// Whether a query writes its result to a file of the server.
pub(crate) fn writes_to_file(text: &[u8]) -> bool {
    let tokens = Tokens::of(text);
    (0..tokens.tokens.len()).any(|at| {
        tokens.is(at, "INTO")
            && tokens.is(at + 1, "OUTFILE")
            && tokens.tokens.get(at + 2).is_some_and(|token| token.kind == Kind::Text)
    })
}

/// Whether there is nothing to run.
pub(crate) fn is_empty(text: &[u8]) -> bool {
    Lexer::new(text).all(|token| token.kind == Kind::Symbol(b';'))
}

/// The text with every use of a query's id replaced by `id`, an expression over the columns of `system.processes`:
/// in `KILL QUERY` the column `query_id`, elsewhere the table itself.
pub(crate) fn with_query_ids<'t>(text: &'t [u8], id: &str) -> Cow<'t, [u8]> {
    if find(text, b"KILL").or(find(text, b"kill")).or(find(text, b"rocesses")).is_none() {
        return Cow::Borrowed(text);
    }
    let tokens = Tokens::of(text);
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    if tokens.is(0, "KILL") && tokens.is(1, "QUERY") {
        for token in tokens.tokens.iter().filter(|token| is_column(tokens.slice(**token), "query_id")) {
            edits.push((token.start..token.end, id.to_owned()));
        }
    } else {
        for at in 0..tokens.tokens.len().saturating_sub(2) {
            let (Some(first), Some(last)) = (tokens.tokens.get(at), tokens.tokens.get(at + 2)) else { break };
            if tokens.is(at, "system")
                && tokens.is_symbol(at + 1, b'.')
                && tokens.is(at + 2, "processes")
                && !tokens.is_symbol(at + 3, b'.')
            {
                let table = format!(
                    "(SELECT * REPLACE ({id} AS query_id, {id} AS initial_query_id) FROM system.processes)"
                );
                // The cluster is this host alone, and a subquery cannot be sent to it.
                let of_cluster = (at.checked_sub(4)).filter(|call| {
                    tokens.is(*call, "clusterAllReplicas") && tokens.is_symbol(call + 1, b'(')
                });
                let range = match (of_cluster, tokens.tokens.get(at + 3)) {
                    (Some(call), Some(end)) => tokens.tokens[call].start..end.end,
                    _ => first.start..last.end,
                };
                edits.push((range, table));
            }
        }
    }
    let mut edited = text.to_vec();
    for (range, replacement) in edits.into_iter().rev() {
        edited.splice(range, replacement.into_bytes());
    }
    Cow::Owned(edited)
}

/// A statement for all hosts of a cluster that the engine does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnknownCluster(pub(crate) String);

/// The text without `ON CLUSTER`, which the engine cannot do: `cluster` has this host alone.
pub(crate) fn without_cluster<'t>(text: &'t [u8], cluster: &str) -> Result<Cow<'t, [u8]>, UnknownCluster> {
    if !["CREATE", "ALTER", "DROP", "RENAME", "EXCHANGE", "SYSTEM"]
        .iter()
        .any(|word| Lexer::new(text).next().is_some_and(|token| is_keyword(text, token, word)))
    {
        return Ok(Cow::Borrowed(text));
    }
    let tokens = Tokens::of(text);
    let clause = (0..tokens.tokens.len()).find(|at| tokens.is(*at, "ON") && tokens.is(at + 1, "CLUSTER"));
    let (Some(at), Some(name)) = (clause, clause.and_then(|at| tokens.tokens.get(at + 2))) else {
        return Ok(Cow::Borrowed(text));
    };
    let unquoted = String::from_utf8_lossy(tokens.slice(*name));
    let unquoted = unquoted.trim_matches(['`', '"', '\'']);
    if unquoted != cluster {
        return Err(UnknownCluster(unquoted.to_owned()));
    }
    let mut edited = text.to_vec();
    edited.drain(tokens.tokens[at].start..name.end);
    Ok(Cow::Owned(edited))
}

fn is_column(found: &[u8], name: &str) -> bool {
    found.strip_prefix(b"`").and_then(|rest| rest.strip_suffix(b"`")).unwrap_or(found) == name.as_bytes()
}

/// A string literal.
pub(crate) fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// An identifier in backticks.
pub(crate) fn quote_identifier(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(text: &str) -> Option<(&str, String, &str)> {
        let found = insert_with_data(text.as_bytes()).unwrap()?;
        Some((&text[found.statement], found.format, &text[found.data..]))
    }

    #[test]
    fn data_begins_after_the_format_and_its_line_end() {
        let found = insert("INSERT INTO t (a, b) SETTINGS x = 1 FORMAT RowBinary\n\n\x01(").unwrap();
        assert_eq!(found, ("INSERT INTO t (a, b) SETTINGS x = 1 ", "RowBinary".into(), "\n\x01("));
        assert_eq!(insert("insert into t format TSV  a\tb").unwrap().2, "a\tb");
    }

    #[test]
    fn values_and_no_clause_are_the_format_values() {
        assert_eq!(insert("INSERT INTO t VALUES (1)").unwrap(), ("INSERT INTO t ", "Values".into(), "(1)"));
        assert_eq!(insert("INSERT INTO t (a)").unwrap(), ("INSERT INTO t (a)", "Values".into(), ""));
    }

    #[test]
    fn names_that_look_like_keywords_do_not_end_the_statement() {
        let text =
            "INSERT /* VALUES */ INTO values.`format`(`select`, \"values\") -- FORMAT\n FORMAT Native\nx";
        assert_eq!(insert(text).unwrap().1, "Native");
        assert_eq!(insert("INSERT INTO d.format (format) VALUES (1)").unwrap().2, "(1)");
    }

    #[test]
    fn an_insert_of_a_query_has_no_data() {
        for text in [
            "INSERT INTO t SELECT 1 FORMAT TSV",
            "insert into t (a) with 1 as x select x",
            "INSERT INTO t (SELECT 1)",
            "SELECT 'INSERT INTO t VALUES'",
            "-- INSERT INTO t VALUES\nSELECT 1",
        ] {
            assert_eq!(insert(text), None, "{text}");
        }
        assert_eq!(insert_with_data(b"INSERT INTO t FROM INFILE 'x' FORMAT CSV"), Err(FromInfile));
    }

    #[test]
    fn a_format_is_a_clause_and_not_a_column() {
        let format = |text: &str| output_format(text.as_bytes());
        assert_eq!(format("SELECT 1 FORMAT JSON").as_deref(), Some("JSON"));
        assert_eq!(format("SELECT 1 format CSV SETTINGS a = 1;").as_deref(), Some("CSV"));
        assert_eq!(format("SELECT format FROM t"), None);
        assert_eq!(format("SELECT t.format x"), None);
        assert_eq!(format("SELECT 'a FORMAT JSON'"), None);
    }

    #[test]
    fn query_ids_are_mapped_where_they_are_columns() {
        let map = |text: &str| String::from_utf8(with_query_ids(text.as_bytes(), "ID").into_owned()).unwrap();
        assert_eq!(
            map("KILL QUERY WHERE query_id = 'query_id' OR `query_id` = ''"),
            "KILL QUERY WHERE ID = 'query_id' OR ID = ''"
        );
        assert_eq!(
            map("SELECT query_id FROM system.processes WHERE 1"),
            "SELECT query_id FROM (SELECT * REPLACE (ID AS query_id, ID AS initial_query_id) FROM system.processes) WHERE 1"
        );
        assert_eq!(
            map("SELECT 1 FROM clusterAllReplicas('c', system.processes) WHERE 1"),
            "SELECT 1 FROM (SELECT * REPLACE (ID AS query_id, ID AS initial_query_id) FROM system.processes) WHERE 1"
        );
        assert_eq!(map("SELECT 'system.processes', query_id"), "SELECT 'system.processes', query_id");
    }

    #[test]
    fn a_statement_for_the_cluster_is_one_for_this_host() {
        let without = |text: &str| {
            without_cluster(text.as_bytes(), "c").map(|text| String::from_utf8(text.into_owned()).unwrap())
        };
        assert_eq!(without("DROP TABLE t ON CLUSTER `c` SYNC"), Ok("DROP TABLE t  SYNC".into()));
        assert_eq!(without("rename table a to b on cluster 'c'"), Ok("rename table a to b ".into()));
        let read = "SELECT 'ON CLUSTER c' FROM a JOIN b ON cluster = c";
        assert_eq!(without(read), Ok(read.into()));
        assert_eq!(without("DROP TABLE t ON CLUSTER other"), Err(UnknownCluster("other".into())));
    }

    #[test]
    fn unfinished_text_ends_quietly() {
        for text in ["'abc", "`abc", "/* abc", "$a$ abc", "INSERT INTO t FORMAT", "INSERT", "'abc\\"] {
            let _ = insert_with_data(text.as_bytes());
            assert_eq!(output_format(text.as_bytes()), None, "{text}");
        }
        assert!(is_empty(b" ; -- nothing"));
    }
}
