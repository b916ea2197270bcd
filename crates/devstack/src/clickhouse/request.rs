//! What a request asks for: the parameters of its address, its headers and, in a form, its body.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::request::Parts;
use http::{HeaderMap, Method};

use super::compression::Encoding;
use super::exception::Exception;

/// A request, its body aside.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// The statement, or its beginning: the body goes on where this ends.
    pub(crate) query: String,
    pub(crate) database: Option<String>,
    pub(crate) default_format: Option<String>,
    pub(crate) query_id: String,
    /// Settings of the query, in the order of the request.
    pub(crate) settings: Vec<(String, String)>,
    /// Values for `{name:Type}`.
    pub(crate) parameters: Vec<(String, String)>,
    /// `decompress=1`: the body is compressed blocks.
    pub(crate) decompress: bool,
    /// `compress=1`: the answer is to be compressed blocks.
    compress: bool,
    /// `wait_end_of_query=1`: nothing is sent before everything is known.
    pub(crate) wait_end: bool,
    /// GET may only read.
    pub(crate) may_only_read: bool,
    /// The body is a form with this boundary, whose fields are further parameters.
    pub(crate) boundary: Option<String>,
    user: Option<String>,
    password: Option<String>,
    accepts_lz4: bool,
}

impl Parameters {
    /// Reads address and headers.
    pub(crate) fn read(parts: &Parts) -> Result<Self, Exception> {
        let mut this = Self {
            may_only_read: parts.method == Method::GET,
            boundary: boundary(&parts.headers),
            accepts_lz4: header(&parts.headers, "accept-encoding")
                .is_some_and(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case("lz4"))),
            ..Self::default()
        };
        if header(&parts.headers, "content-encoding").is_some_and(|value| value != "identity") {
            return Err(Exception::not_implemented("Content-Encoding of a request"));
        }
        for (name, value) in url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
            this.set(&name, value.into_owned())?;
        }
        this.read_credentials(&parts.headers)?;
        if let Some(database) = header(&parts.headers, "x-clickhouse-database") {
            this.database.get_or_insert_with(|| database.to_owned());
        }
        if let Some(format) = header(&parts.headers, "x-clickhouse-format") {
            this.default_format.get_or_insert_with(|| format.to_owned());
        }
        if this.query_id.is_empty() {
            let [high, low] = [rand::random::<u64>(), rand::random::<u64>()];
            this.query_id = format!("{high:016x}{low:016x}");
        }
        Ok(this)
    }

    /// Takes one parameter, of the address or of a form.
    pub(crate) fn set(&mut self, name: &str, value: String) -> Result<(), Exception> {
        let yes = matches!(value.as_str(), "1" | "true");
        match name {
            "query" => self.query.push_str(&value),
            "database" => self.database = Some(value),
            "default_format" => self.default_format = Some(value),
            "query_id" => self.query_id = value,
            "user" => self.user = Some(value),
            "password" => self.password = Some(value),
            "compress" => self.compress = yes,
            "decompress" => self.decompress = yes,
            "wait_end_of_query" => self.wait_end = yes,
            // They change nothing that a client could see.
            "buffer_size" | "quota_key" | "stacktrace" => {}
            "session_id" | "session_check" | "session_timeout" | "close_session" | "role" | "framed" => {
                return Err(Exception::not_implemented(&format!("the parameter `{name}`")));
            }
            "client_protocol_version" if value != "0" => {
                return Err(Exception::not_implemented("a nonzero `client_protocol_version`"));
            }
            "client_protocol_version" => {}
            _ => match name.strip_prefix("param_") {
                Some(parameter) => self.parameters.push((parameter.to_owned(), value)),
                None => self.settings.push((name.to_owned(), value)),
            },
        }
        Ok(())
    }

    /// The last value of a setting.
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().rev().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// How the answer is to be written.
    pub(crate) fn encoding(&self) -> Encoding {
        let allowed = !matches!(self.setting("enable_http_compression"), Some("0" | "false"));
        match (self.compress, self.accepts_lz4 && allowed) {
            (true, _) => Encoding::Blocks,
            (false, true) => Encoding::Frame,
            (false, false) => Encoding::Plain,
        }
    }

    /// Checks user and password: there is one user, `default`.
    pub(crate) fn authenticate(&self, password: &str) -> Result<(), Exception> {
        let user = self.user.as_deref().filter(|user| !user.is_empty()).unwrap_or("default");
        if user == "default" && self.password.as_deref().unwrap_or_default() == password {
            return Ok(());
        }
        let message = format!(
            "{user}: Authentication failed: password is incorrect, or there is no user with such name"
        );
        Err(Exception::new(516, "AUTHENTICATION_FAILED", message))
    }

    fn read_credentials(&mut self, headers: &HeaderMap) -> Result<(), Exception> {
        if let Some(authorization) = header(headers, "authorization") {
            let (user, password) = basic(authorization).ok_or_else(|| {
                Exception::new(516, "AUTHENTICATION_FAILED", "Only Basic authentication is supported")
            })?;
            (self.user, self.password) = (Some(user), Some(password));
        }
        if let Some(user) = header(headers, "x-clickhouse-user") {
            self.user = Some(user.to_owned());
        }
        if let Some(key) = header(headers, "x-clickhouse-key") {
            self.password = Some(key.to_owned());
        }
        Ok(())
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn basic(authorization: &str) -> Option<(String, String)> {
    let encoded = authorization.strip_prefix("Basic ").or_else(|| authorization.strip_prefix("basic "))?;
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

fn boundary(headers: &HeaderMap) -> Option<String> {
    let form = header(headers, "content-type")?.strip_prefix("multipart/form-data")?;
    let value = form.split(';').find_map(|part| part.trim().strip_prefix("boundary="))?;
    Some(value.trim_matches('"').to_owned())
}

/// The fields of a form's body (RFC 7578), as far as a client of ClickHouse sends them: names and text.
pub(crate) fn form_fields(body: &[u8], boundary: &str) -> Result<Vec<(String, String)>, Exception> {
    let wrong = |what: &str| Exception::new(36, "BAD_ARGUMENTS", format!("A multipart form {what}"));
    let text = std::str::from_utf8(body).map_err(|_| wrong("is not UTF-8"))?;
    let delimiter = format!("\r\n--{boundary}");
    // The first delimiter has no line before it.
    let text = format!("\r\n{text}");
    let mut parts = text.split(&delimiter);
    parts.next();
    let mut fields = Vec::new();
    for part in parts {
        if part.starts_with("--") {
            return Ok(fields);
        }
        let (head, value) = part.split_once("\r\n\r\n").ok_or_else(|| wrong("has a part without a value"))?;
        let name = head.split(['\r', '\n', ';']).find_map(|one| one.trim().strip_prefix("name="));
        let name = name.ok_or_else(|| wrong("has a part without a name"))?.trim_matches('"');
        fields.push((name.to_owned(), value.to_owned()));
    }
    Err(wrong("has no end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uri: &str, headers: &[(&str, &str)]) -> Result<Parameters, Exception> {
        let mut request = http::Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Parameters::read(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn what_has_no_meaning_of_its_own_is_a_setting() {
        let uri = "/?query=SELECT+%7Ba%3AInt8%7D&param_a=1&max_threads=2&database=d&decompress=1&query_id=q";
        let found = read(uri, &[]).unwrap();
        assert_eq!(found.query, "SELECT {a:Int8}");
        assert_eq!(found.parameters, [("a".into(), "1".into())]);
        assert_eq!(found.settings, [("max_threads".into(), "2".into())]);
        assert_eq!((found.database.as_deref(), found.decompress, &*found.query_id), (Some("d"), true, "q"));
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for parameter in ["session_id=1", "role=r", "client_protocol_version=54460"] {
            assert_eq!(read(&format!("/?{parameter}"), &[]).unwrap_err().code, 48, "{parameter}");
        }
        assert_eq!(read("/?client_protocol_version=0", &[]).unwrap().settings, []);
    }

    #[test]
    fn the_one_user_is_let_in_by_every_way_of_saying_so() {
        let basic = format!("Basic {}", BASE64_STANDARD.encode("default:secret"));
        for headers in [
            vec![("authorization", basic.as_str())],
            vec![("x-clickhouse-user", "default"), ("x-clickhouse-key", "secret")],
        ] {
            let found = read("/", &headers).unwrap();
            assert_eq!(found.authenticate("secret"), Ok(()));
            assert_eq!(found.authenticate("").unwrap_err().code, 516);
        }
        assert_eq!(read("/?user=bob", &[]).unwrap().authenticate("").unwrap_err().code, 516);
        assert_eq!(read("/", &[]).unwrap().authenticate(""), Ok(()));
        assert_eq!(read("/", &[("authorization", "Bearer x")]).unwrap_err().code, 516);
    }

    #[test]
    fn the_answer_is_compressed_as_asked() {
        let lz4 = [("accept-encoding", "gzip, lz4")];
        assert_eq!(read("/", &[]).unwrap().encoding(), Encoding::Plain);
        assert_eq!(read("/", &lz4).unwrap().encoding(), Encoding::Frame);
        assert_eq!(read("/?enable_http_compression=0", &lz4).unwrap().encoding(), Encoding::Plain);
        assert_eq!(read("/?compress=1", &lz4).unwrap().encoding(), Encoding::Blocks);
    }

    #[test]
    fn a_form_is_further_parameters() {
        let body = "--B\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\nSELECT 1\r\n\r\n--\r\n\
                    --B\r\nContent-Disposition: form-data; name=\"param_a\"\r\n\r\n\r\n--B--\r\n";
        let fields = form_fields(body.as_bytes(), "B").unwrap();
        assert_eq!(
            fields,
            [("query".into(), "SELECT 1\r\n\r\n--".into()), ("param_a".into(), String::new())]
        );
        assert_eq!(form_fields(&body.as_bytes()[..body.len() - 8], "B").unwrap_err().code, 36);
    }
}
