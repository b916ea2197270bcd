//! Logs, traces and metrics of the one binary: set-up, flush, and the trace context on its way across gRPC.
//!
//! Owns what happens to `tracing` spans and events and to OpenTelemetry instruments once they are recorded:
//! logs to stderr, spans and metrics to a collector over OTLP/gRPC when an endpoint is configured, and nothing at
//! all when it is not. Owns also the W3C trace context in gRPC metadata and in the messages of the worker stream.
//!
//! Does not own any metric or span of the domain: those are declared beside what they measure, with
//! `opentelemetry::global::meter` and `tracing`. Because a meter taken before [`init`] stays silent for ever, take
//! meters after it.
//!
//! Start reading at [`init`]; then [`server_layer`] for what every RPC gets, and [`inject_current`] with
//! [`set_parent`] for a context carried in a message.

mod propagation;
mod rpc;
mod setup;
mod text;

pub use propagation::{inject_current, set_parent, trace_interceptor};
pub use rpc::{ResponseFuture, TracedBody, TracedServer, TracingLayer, server_layer};
pub use setup::{Config, Error, Guard, LogFormat, UnknownLogFormat, init};
