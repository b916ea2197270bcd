//! The fields of a text log line.

use std::error::Error;
use std::fmt;

use tracing::field::{Field, Visit};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};

/// The usual `name=value`, without `otel.*`: those steer the exported span and mean nothing to a reader of logs.
pub(crate) struct TextFields;

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = WithoutOtel(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

/// Hides `otel.*` from the visitor within.
struct WithoutOtel<'writer>(DefaultVisitor<'writer>);

fn hidden(field: &Field) -> bool {
    field.name().starts_with("otel.")
}

// Numbers and booleans come to `record_debug` by the trait's defaults.
impl Visit for WithoutOtel<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !hidden(field) {
            self.0.record_debug(field, value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if !hidden(field) {
            self.0.record_str(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        if !hidden(field) {
            self.0.record_error(field, value);
        }
    }
}
