//! From a [`Config`] to a process-wide subscriber, and the flush at the end.

use std::fmt;
use std::io::{IsTerminal, stderr};
use std::str::FromStr;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Subscriber};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::filter::{EnvFilter, ParseError, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry};

use crate::text::TextFields;

/// How long each step of [`Guard::shutdown`] waits for the collector.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What to record and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `service.name` of everything exported, such as `millrace-worker`.
    pub service_name: String,
    /// `service.instance.id` of everything exported: tells workers apart, such as by the worker's id. Without it,
    /// metrics of several processes of one service run into one another.
    pub instance_id: Option<String>,
    /// The OTLP/gRPC collector, such as `http://127.0.0.1:4317`; absent or empty: nothing is exported.
    pub otlp_endpoint: Option<String>,
    /// The shape of a log line.
    pub log_format: LogFormat,
    /// Which events are logged, as directives of `tracing_subscriber::EnvFilter`, such as
    /// `info,millrace_worker=debug`. What is exported as spans does not depend on it.
    pub log_filter: String,
}

impl Config {
    /// Text logs from level `info` on, nothing exported.
    pub fn new(service_name: impl Into<String>) -> Self {
        Self {
            service_name: service_name.into(),
            instance_id: None,
            otlp_endpoint: None,
            log_format: LogFormat::default(),
            log_filter: "info".to_owned(),
        }
    }
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = UnknownLogFormat;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(UnknownLogFormat(name.to_owned())),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// A log format that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown log format '{0}': expected 'text' or 'json'")]
pub struct UnknownLogFormat(String);

/// Why telemetry could not be set up or flushed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log filter is not one.
    #[error("the log filter '{filter}' cannot be read")]
    Filter {
        /// As configured.
        filter: String,
        /// Which directive and why.
        source: ParseError,
    },
    /// An exporter was configured outside of a tokio runtime, which its connection needs.
    #[error("exporting over OTLP needs a running tokio runtime")]
    NoRuntime,
    /// The exporter of spans or metrics could not be made, usually for a wrong endpoint.
    #[error("cannot export to '{endpoint}'")]
    Exporter {
        /// As configured.
        endpoint: String,
        /// What is wrong with it.
        source: ExporterBuildError,
    },
    /// The process has its subscriber already.
    #[error("telemetry is set up already")]
    AlreadySetUp(#[source] TryInitError),
    /// The last spans did not reach the collector.
    #[error("the last spans were not exported")]
    FlushSpans(#[source] OTelSdkError),
    /// The last metrics did not reach the collector.
    #[error("the last metrics were not exported")]
    FlushMetrics(#[source] OTelSdkError),
    /// The thread that flushes died.
    #[error("the flush was cut short")]
    FlushAborted(#[source] tokio::task::JoinError),
}

/// Holds the exporters of this process; what it has not flushed with [`Guard::shutdown`] is lost at exit.
#[derive(Debug)]
#[must_use = "the last spans and metrics are exported by `shutdown`"]
pub struct Guard {
    exporters: Option<Exporters>,
}

#[derive(Debug)]
struct Exporters {
    tracer: SdkTracerProvider,
    meter: SdkMeterProvider,
}

/// Sets up logs, and the export of spans and metrics where configured, for this whole process.
///
/// Call it once, before the first meter is taken, and inside the tokio runtime when there is an endpoint. The
/// collector need not be there: it is connected to when there is something to send. An `https` endpoint needs
/// rustls' process-wide provider to be installed.
///
/// # Errors
/// A filter or endpoint that cannot be read, or a second call.
pub fn init(config: Config) -> Result<Guard, Error> {
    let (dispatch, guard) = build(config, stderr, stderr().is_terminal() && colour_wanted())?;
    dispatch.try_init().map_err(Error::AlreadySetUp)?;
    if let Some(exporters) = &guard.exporters {
        global::set_meter_provider(exporters.meter.clone());
    }
    Ok(guard)
}

impl Guard {
    /// Sends the last spans and metrics and ends the export. A collector that does not answer is waited for a few
    /// seconds, not longer. Without an exporter it does nothing.
    ///
    /// # Errors
    /// The collector did not take them; both are tried, the first failure is told.
    pub async fn shutdown(self) -> Result<(), Error> {
        let Some(Exporters { tracer, meter }) = self.exporters else { return Ok(()) };
        // Both calls block until the exporters' own threads are done, and those need this runtime for their I/O.
        tokio::task::spawn_blocking(move || {
            // Shutting the spans down flushes them too, but keeps silent about the outcome.
            let spans = tracer.force_flush().map_err(Error::FlushSpans);
            let metrics = meter.shutdown_with_timeout(FLUSH_TIMEOUT).map_err(Error::FlushMetrics);
            let ended = tracer.shutdown_with_timeout(FLUSH_TIMEOUT).map_err(Error::FlushSpans);
            spans.and(metrics).and(ended)
        })
        .await
        .map_err(Error::FlushAborted)?
    }
}

/// Everything of [`init`] that is not process-wide.
pub(crate) fn build<W>(config: Config, writer: W, colour: bool) -> Result<(Dispatch, Guard), Error>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let Config { service_name, instance_id, otlp_endpoint, log_format, log_filter } = config;
    let logs = log_layer(log_format, log_filter, writer, colour)?;
    let endpoint = otlp_endpoint.filter(|endpoint| !endpoint.is_empty());
    let exporters =
        endpoint.map(|endpoint| exporters(&endpoint, resource(service_name, instance_id))).transpose()?;
    let spans = exporters.as_ref().map(|exporters| span_layer(&exporters.tracer));
    Ok((Registry::default().with(spans).with(logs).into(), Guard { exporters }))
}

fn log_layer<S, W>(
    format: LogFormat,
    filter: String,
    writer: W,
    colour: bool,
) -> Result<Box<dyn Layer<S> + Send + Sync + 'static>, Error>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(&filter)
        .map_err(|source| Error::Filter { filter, source })?;
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colour);
    Ok(match format {
        LogFormat::Text => layer.fmt_fields(TextFields).with_filter(filter).boxed(),
        LogFormat::Json => {
            layer.json().flatten_event(true).with_current_span(false).with_filter(filter).boxed()
        }
    })
}

/// Turns Millrace's own spans, from level `info` on, into OpenTelemetry spans. Those of libraries stay out: they
/// are many, and the exporter's own connection would trace itself.
pub(crate) fn span_layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + Send + Sync + 'static + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    OpenTelemetryLayer::new(provider.tracer("millrace"))
        // Three attributes a span that nobody reads, on spans as frequent as batches.
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(Targets::new().with_target("millrace", LevelFilter::INFO))
}

fn exporters(endpoint: &str, resource: Resource) -> Result<Exporters, Error> {
    tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
    let refused = |source| Error::Exporter { endpoint: endpoint.to_owned(), source };
    let spans = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(refused)?;
    let metrics = MetricExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(refused)?;
    Ok(Exporters {
        tracer: SdkTracerProvider::builder()
            .with_batch_exporter(spans)
            .with_resource(resource.clone())
            .build(),
        meter: SdkMeterProvider::builder().with_periodic_exporter(metrics).with_resource(resource).build(),
    })
}

/// Who is speaking: `OTEL_RESOURCE_ATTRIBUTES`, then what is configured.
fn resource(service_name: String, instance_id: Option<String>) -> Resource {
    let instance = instance_id.map(|id| KeyValue::new("service.instance.id", id));
    Resource::builder()
        .with_service_name(service_name)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(instance)
        .build()
}

/// The convention of <https://no-color.org>.
fn colour_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests;
