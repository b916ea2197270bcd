//! ClickHouse's errors, as its HTTP interface shows them.

use http::StatusCode;

/// An error in ClickHouse's own form: a code and one line of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exception {
    /// The number in ClickHouse's table of errors.
    pub(crate) code: u32,
    /// `Code: N. DB::Exception: ... (NAME)`, without the version.
    text: String,
}

impl Exception {
    /// An error that is found here, not in the engine.
    pub(crate) fn new(code: u32, name: &str, message: impl AsRef<str>) -> Self {
        Self { code, text: format!("Code: {code}. DB::Exception: {}. ({name})", message.as_ref()) }
    }

    /// Something that a server does and this wrapper does not.
    pub(crate) fn not_implemented(what: &str) -> Self {
        Self::new(48, "NOT_IMPLEMENTED", format!("{what} is not supported by the embedded ClickHouse"))
    }

    /// An error in the engine's words.
    pub(crate) fn from_engine(text: &str) -> Self {
        // Depending on where it was made, the text ends with the version already.
        let text = match text.rfind(" (version ") {
            Some(at) if text[at..].trim_end().ends_with(')') => &text[..at],
            _ => text,
        }
        .trim_end();
        let digits = text.strip_prefix("Code: ").map(|rest| rest.split('.').next().unwrap_or_default());
        match digits.and_then(|digits| digits.parse().ok()) {
            Some(code) => Self { code, text: text.to_owned() },
            None => Self::new(1001, "STD_EXCEPTION", text),
        }
    }

    /// The line that a client gets.
    pub(crate) fn line(&self, version: &str) -> String {
        format!("{} (version {version} (official build))", self.text)
    }

    /// The status of a response that has not begun, as in ClickHouse's `exceptionCodeToHTTPStatus`.
    pub(crate) fn status(&self) -> StatusCode {
        match self.code {
            194 => StatusCode::UNAUTHORIZED,
            192 | 193 | 497 | 512 | 516 => StatusCode::FORBIDDEN,
            6 | 8 | 15 | 25 | 26 | 27 | 36 | 38 | 41 | 44 | 53 | 62 | 67 | 72 | 117 | 167 | 168 | 223
            | 235 | 321 | 376 | 427 | 441 | 675 | 676 => StatusCode::BAD_REQUEST,
            46 | 47 | 50 | 56 | 60 | 63 | 73 | 78 | 81 | 99 | 115 | 336 | 511 => StatusCode::NOT_FOUND,
            229 => StatusCode::PAYLOAD_TOO_LARGE,
            48 => StatusCode::NOT_IMPLEMENTED,
            76 | 209 | 439 => StatusCode::SERVICE_UNAVAILABLE,
            381 => StatusCode::LENGTH_REQUIRED,
            159 => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What follows the bytes of a result that has begun when it cannot be completed: since 25.11 the message
    /// stands between two markers, with its length and the tag that a header named beforehand.
    pub(crate) fn tail(&self, version: &str, tag: &str) -> String {
        let message = format!("{}\n", self.line(version));
        format!("\r\n__exception__\r\n{tag}\r\n{message}{} {tag}\r\n__exception__\r\n", message.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINE: &str = "Code: 60. DB::Exception: Unknown table expression identifier 'x'. (UNKNOWN_TABLE)";

    #[test]
    fn the_version_appears_once_wherever_the_engine_put_it() {
        for text in [ENGINE.to_owned(), format!("{ENGINE} (version 26.7.2.1)")] {
            let exception = Exception::from_engine(&text);
            assert_eq!(exception.code, 60);
            assert_eq!(exception.line("26.7.2.1"), format!("{ENGINE} (version 26.7.2.1 (official build))"));
        }
    }

    #[test]
    fn a_text_without_a_code_is_still_an_exception() {
        let exception = Exception::from_engine("No active streaming query");
        assert_eq!(
            exception.line("1"),
            "Code: 1001. DB::Exception: No active streaming query. (STD_EXCEPTION) (version 1 (official build))"
        );
        assert_eq!(exception.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn codes_become_the_statuses_that_a_server_sends() {
        let status = |code| Exception::new(code, "X", "x").status().as_u16();
        assert_eq!(
            [60, 81, 115, 62, 516, 48, 159, 395, 241].map(status),
            [404, 404, 404, 400, 403, 501, 408, 500, 500]
        );
    }

    #[test]
    fn the_tail_states_the_length_of_its_message() {
        let tail = Exception::new(395, "X", "boom").tail("1", "abcdefghijklmnop");
        let message = "Code: 395. DB::Exception: boom. (X) (version 1 (official build))\n";
        let expected = format!(
            "\r\n__exception__\r\nabcdefghijklmnop\r\n{message}{} abcdefghijklmnop\r\n__exception__\r\n",
            message.len()
        );
        assert_eq!(tail, expected);
    }
}
