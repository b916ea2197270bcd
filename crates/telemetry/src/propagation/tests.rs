use std::collections::BTreeMap;

use opentelemetry::trace::SpanId;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing::{debug_span, info_span};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

use super::{inject_current, set_parent};
use crate::setup::span_layer;

/// The spans that `work` exports. They are logged too, and the log wants more than the exporter.
fn exported(work: impl FnOnce()) -> Vec<SpanData> {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::sink);
    tracing::subscriber::with_default(Registry::default().with(span_layer(&provider)).with(log), work);
    exporter.get_finished_spans().unwrap()
}

fn named<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
    spans.iter().find(|span| span.name == name).unwrap()
}

#[test]
fn a_context_carried_in_a_message_makes_the_receivers_span_a_child_of_the_senders() {
    let spans = exported(|| {
        let carried = info_span!("sender").in_scope(inject_current);
        assert_eq!(carried.keys().collect::<Vec<_>>(), ["traceparent", "tracestate"]);
        let receiver = info_span!("receiver");
        set_parent(&receiver, &carried);
        receiver.in_scope(|| drop(info_span!("task")));
    });
    let (sender, receiver, task) =
        (named(&spans, "sender"), named(&spans, "receiver"), named(&spans, "task"));
    assert_eq!(receiver.span_context.trace_id(), sender.span_context.trace_id());
    assert_eq!(receiver.parent_span_id, sender.span_context.span_id());
    assert!(receiver.parent_span_is_remote);
    assert_eq!(task.parent_span_id, receiver.span_context.span_id());
}

#[test]
fn a_span_too_fine_to_be_exported_does_not_cut_the_trace() {
    let spans = exported(|| {
        let carried = info_span!("sender").in_scope(|| debug_span!("detail").in_scope(inject_current));
        let receiver = info_span!("receiver");
        set_parent(&receiver, &carried);
    });
    assert_eq!(named(&spans, "receiver").parent_span_id, named(&spans, "sender").span_context.span_id());
}

#[test]
fn without_a_current_span_nothing_is_carried() {
    exported(|| assert_eq!(inject_current(), BTreeMap::new()));
}

#[test]
fn an_empty_or_garbled_context_leaves_a_root() {
    let garbled = BTreeMap::from([("traceparent".to_owned(), "00-0-0-\u{fc}".to_owned())]);
    for carried in [BTreeMap::new(), garbled] {
        let spans = exported(|| set_parent(&info_span!("receiver"), &carried));
        assert_eq!(named(&spans, "receiver").parent_span_id, SpanId::INVALID);
    }
}

#[test]
fn without_an_exporter_a_carried_context_is_ignored() {
    let carried = BTreeMap::from([(
        "traceparent".to_owned(),
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
    )]);
    tracing::subscriber::with_default(Registry::default(), || {
        let span = info_span!("receiver");
        set_parent(&span, &carried);
        assert_eq!(span.in_scope(inject_current), BTreeMap::new());
    });
}
