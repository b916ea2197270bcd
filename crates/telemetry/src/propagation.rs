//! The W3C trace context (<https://www.w3.org/TR/trace-context/>) in maps and in gRPC metadata.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::{Request, Status};
use tracing::Span;
use tracing_opentelemetry::{OpenTelemetrySpanExt, SetParentError};

/// The current trace context, to be carried in a message and given to [`set_parent`] by whoever receives it.
/// Empty when spans are not exported or none is current.
pub fn inject_current() -> BTreeMap<String, String> {
    let mut carrier = MapCarrier(BTreeMap::new());
    inject(&current(), &mut carrier);
    carrier.0
}

/// Makes `span` continue the trace that [`inject_current`] wrote into `carrier`.
///
/// Call it before the span is entered: a span that has begun keeps its parent. A context that is empty or cannot be
/// read leaves the span the root of its own trace.
pub fn set_parent(span: &Span, carrier: &BTreeMap<String, String>) {
    adopt(span, &Parents(carrier));
}

/// Puts the current trace context into the metadata of an outgoing call; for `InterceptedService` and the generated
/// clients' `with_interceptor`.
///
/// # Errors
/// None; the signature is tonic's.
#[allow(clippy::result_large_err)] // tonic's signature
pub fn trace_interceptor(mut request: Request<()>) -> Result<Request<()>, Status> {
    let mut headers = HeaderCarrier(HeaderMap::new());
    inject(&current(), &mut headers);
    for (name, value) in &headers.0 {
        request.metadata_mut().as_mut().insert(name.clone(), value.clone());
    }
    Ok(request)
}

/// As [`set_parent`], from the headers of an incoming call.
pub(crate) fn set_parent_from_headers(span: &Span, headers: &HeaderMap) {
    adopt(span, &Headers(headers));
}

/// The context of the current span or, where that one is too fine to be exported, of the nearest exported one
/// around it.
fn current() -> Context {
    let context = Span::current().context();
    if context.has_active_span() { context } else { Context::current() }
}

fn inject(context: &Context, carrier: &mut dyn Injector) {
    if context.has_active_span() {
        TraceContextPropagator::new().inject_context(context, carrier);
    }
}

fn adopt(span: &Span, carrier: &dyn Extractor) {
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), carrier);
    if !parent.has_active_span() {
        return;
    }
    match span.set_parent(parent) {
        // Without an exporter, or for a span nobody listens to, there is nothing to continue.
        Ok(()) | Err(SetParentError::LayerNotFound | SetParentError::SpanDisabled) => {}
        Err(SetParentError::AlreadyStarted) => {
            tracing::warn!("a span was begun before it was told its parent; its trace is cut in two");
        }
    }
}

struct MapCarrier(BTreeMap<String, String>);

impl Injector for MapCarrier {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }
}

struct Parents<'a>(&'a BTreeMap<String, String>);

impl Extractor for Parents<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

struct HeaderCarrier(HeaderMap);

impl Injector for HeaderCarrier {
    fn set(&mut self, key: &str, value: String) {
        // The propagator writes ASCII only; anything else would not be a trace context.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests;
