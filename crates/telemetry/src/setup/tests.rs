use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing::dispatcher::with_default;
use tracing::{debug, info, info_span};
use tracing_subscriber::fmt::MakeWriter;

use super::{Config, Error, Guard, LogFormat, build};
use crate::inject_current;

/// What would stand on stderr.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Everything logged while `work` runs under `config`.
fn logged(config: Config, work: impl FnOnce()) -> (String, Guard) {
    let lines = Lines::default();
    let (dispatch, guard) = build(config, lines.clone(), false).unwrap();
    with_default(&dispatch, work);
    (lines.text(), guard)
}

fn config() -> Config {
    Config::new("millrace-test")
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_exported_and_nothing_is_said() {
    for endpoint in [None, Some(String::new())] {
        let (lines, guard) = logged(Config { otlp_endpoint: endpoint, ..config() }, || {
            info_span!("pipe").in_scope(|| assert!(inject_current().is_empty()));
        });
        assert_eq!(lines, "");
        assert!(guard.exporters.is_none());
        guard.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn spans_are_exported_also_where_the_log_does_not_want_them() {
    // Nobody listens there; nothing is sent, for the batch is not due.
    let endpoint = Some("http://127.0.0.1:9".to_owned());
    let silent = Config { log_filter: "off".to_owned(), otlp_endpoint: endpoint, ..config() };
    let (lines, _guard) = logged(silent, || {
        let span = info_span!("batch");
        assert!(span.in_scope(inject_current).contains_key("traceparent"));
        // Ends with nothing recorded, or the guard would wait for the collector.
        std::mem::forget(span);
    });
    assert_eq!(lines, "");
}

#[test]
fn a_text_line_shows_the_fields_of_its_spans_but_not_those_for_the_exporter() {
    let (lines, _) = logged(config(), || {
        info_span!("rpc", otel.name = "S/M", otel.kind = "server", rpc.method = "M", n = 3).in_scope(|| {
            info!(pipe.id = "orders", "pipe made");
        });
        debug!("too fine");
    });
    assert!(
        lines.ends_with(
            "rpc{rpc.method=\"M\" n=3}: millrace_telemetry::setup::tests: pipe made pipe.id=\"orders\"\n"
        ),
        "{lines}"
    );
    assert_eq!(lines.lines().count(), 1, "{lines}");
}

#[test]
fn a_json_line_is_one_object_with_the_fields_at_the_top() {
    let (lines, _) = logged(Config { log_format: LogFormat::Json, ..config() }, || {
        info_span!("assignment", assignment.epoch = 7).in_scope(|| info!(pipe.id = "orders", "copying"));
    });
    for part in [
        r#""level":"INFO""#,
        r#""message":"copying""#,
        r#""pipe.id":"orders""#,
        r#""spans":[{"assignment.epoch":7,"name":"assignment"}]"#,
    ] {
        assert!(lines.contains(part), "{part} is not in {lines}");
    }
}

#[test]
fn a_log_filter_that_cannot_be_read_is_named() {
    let wrong = Config { log_filter: "millrace=loud".to_owned(), ..config() };
    let error = build(wrong, io::sink, false).unwrap_err();
    assert_eq!(error.to_string(), "the log filter 'millrace=loud' cannot be read");
}

#[tokio::test]
async fn an_endpoint_that_is_no_address_is_named() {
    let wrong = Config { otlp_endpoint: Some("http://collector port".to_owned()), ..config() };
    let error = build(wrong, io::sink, false).unwrap_err();
    assert_eq!(error.to_string(), "cannot export to 'http://collector port'");
}

#[test]
fn an_exporter_outside_of_a_runtime_is_an_error_and_no_panic() {
    let early = Config { otlp_endpoint: Some("http://127.0.0.1:4317".to_owned()), ..config() };
    assert!(matches!(build(early, io::sink, false), Err(Error::NoRuntime)));
}

#[test]
fn log_formats_are_read_as_they_are_written() {
    for format in [LogFormat::Text, LogFormat::Json] {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    let error = "xml".parse::<LogFormat>().unwrap_err();
    assert_eq!(error.to_string(), "unknown log format 'xml': expected 'text' or 'json'");
}
