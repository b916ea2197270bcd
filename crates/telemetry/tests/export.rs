//! The whole way: set-up, a traced call between a real client and server, flush, a collector that received it.
//! One test, because the subscriber is the process's.

#![allow(clippy::unwrap_used)] // the helpers of a test fail it as the test itself does

use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_telemetry::{Config, init, server_layer, trace_interceptor};
use opentelemetry::global;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tracing::{Instrument, info_span};

/// What an OpenTelemetry collector would have received.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.spans.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.metrics.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Collector {
    /// Starts on a free port of loopback; ends with the test's runtime.
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        endpoint
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.spans.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    fn metric_names(&self) -> Vec<String> {
        let requests = self.metrics.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_metrics);
        let metrics = resources.flat_map(|resource| &resource.scope_metrics).flat_map(|scope| &scope.metrics);
        metrics.map(|metric| metric.name.clone()).collect()
    }

    fn resource_of_spans(&self) -> Resource {
        self.spans.lock().unwrap()[0].resource_spans[0].resource.clone().unwrap()
    }
}

fn attribute(resource: &Resource, key: &str) -> Option<String> {
    let found = resource.attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

/// A server whose calls are traced, with the reflection service as its content.
async fn traced_server() -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let reflection = tonic_reflection::server::Builder::configure().build_v1().unwrap();
    let server = Server::builder()
        .layer(server_layer())
        .add_service(reflection)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    Channel::from_shared(endpoint).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn the_flush_at_shutdown_brings_one_trace_of_client_and_server_and_the_metrics_to_the_collector() {
    let collector = Collector::default();
    let guard = init(Config {
        instance_id: Some("worker-1".to_owned()),
        otlp_endpoint: Some(collector.start().await),
        log_filter: "off".to_owned(),
        ..Config::new("millrace-test")
    })
    .unwrap();
    global::meter("millrace.test").u64_counter("millrace.test.rows").build().add(3, &[]);

    let channel = traced_server().await;
    let call = async {
        let mut client = ServerReflectionClient::with_interceptor(channel, trace_interceptor);
        let questions = tokio_stream::once(ServerReflectionRequest::default());
        let mut answers = client.server_reflection_info(questions).await.unwrap().into_inner();
        while let Ok(Some(_)) = answers.message().await {}
    };
    call.instrument(info_span!(target: "millrace_test", "command")).await;
    assert_eq!(collector.spans(), [], "the batch is due seconds later, only the flush sends it now");

    let shutdown = tokio::time::timeout(Duration::from_secs(30), guard.shutdown());
    shutdown.await.expect("the flush ends").unwrap();

    let spans = collector.spans();
    let find = |name: &str| spans.iter().find(|span| span.name == name);
    let command = find("command").unwrap();
    let server = find("grpc.reflection.v1.ServerReflection/ServerReflectionInfo").unwrap();
    assert_eq!(server.trace_id, command.trace_id);
    assert_eq!(server.parent_span_id, command.span_id);
    assert_eq!(spans.len(), 2, "{spans:?}");
    assert_eq!(collector.metric_names(), ["millrace.test.rows"]);
    let resource = collector.resource_of_spans();
    assert_eq!(attribute(&resource, "service.name").as_deref(), Some("millrace-test"));
    assert_eq!(attribute(&resource, "service.instance.id").as_deref(), Some("worker-1"));
    assert_eq!(attribute(&resource, "service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));

    assert!(init(Config::new("again")).is_err(), "a process is set up once");
}
