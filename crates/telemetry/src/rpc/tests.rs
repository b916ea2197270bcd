//! Real servers and clients over loopback, spans kept in memory.

use std::future::pending;
use std::net::SocketAddr;

use opentelemetry::trace::{SpanId, SpanKind, Status as SpanStatus};
use opentelemetry::{Key, Value};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tracing::subscriber::DefaultGuard;
use tracing::{Instrument, info_span};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Registry, util::SubscriberInitExt};

use super::server_layer;
use crate::setup::span_layer;
use crate::trace_interceptor;

const EXPORT: &str = "opentelemetry.proto.collector.trace.v1.TraceService/Export";
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// The answer of the unary service of these tests.
#[derive(Clone)]
enum Answer {
    Ok,
    Fail(Status),
    Never,
}

#[tonic::async_trait]
impl TraceService for Answer {
    async fn export(
        &self,
        _: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        drop(info_span!("work of the handler"));
        match self {
            Self::Ok => Ok(Response::new(ExportTraceServiceResponse::default())),
            Self::Fail(status) => Err(status.clone()),
            Self::Never => pending().await,
        }
    }
}

/// Spans of the current thread, which in these tests is all there is.
struct Spans {
    provider: SdkTracerProvider,
    exported: InMemorySpanExporter,
    _current: DefaultGuard,
}

impl Spans {
    fn record() -> Self {
        let exported = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exported.clone()).build();
        let current = Registry::default().with(span_layer(&provider)).set_default();
        Self { provider, exported, _current: current }
    }

    fn finished(&self) -> Vec<SpanData> {
        self.provider.force_flush().unwrap();
        self.exported.get_finished_spans().unwrap()
    }

    fn find(&self, name: &str) -> Option<SpanData> {
        self.finished().into_iter().find(|span| span.name == name)
    }

    /// A server's span ends a moment after the caller has its answer.
    async fn wait_for(&self, name: &str) -> SpanData {
        loop {
            match self.find(name) {
                Some(span) => return span,
                None => tokio::task::yield_now().await,
            }
        }
    }
}

async fn serve(answer: Answer) -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .layer(server_layer())
        .add_service(TraceServiceServer::new(answer))
        .add_service(reflection)
        .add_service(health)
        .serve_with_incoming(TcpListenerStream::new(listener));
    // Ends with the test's runtime.
    tokio::spawn(server);
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

async fn call(channel: Channel) -> Result<(), Status> {
    let mut client = TraceServiceClient::with_interceptor(channel, trace_interceptor);
    client.export(ExportTraceServiceRequest::default()).await.map(drop)
}

fn attribute(span: &SpanData, key: &'static str) -> Option<Value> {
    let found = span.attributes.iter().find(|attribute| attribute.key == Key::from_static_str(key));
    found.map(|attribute| attribute.value.clone())
}

#[tokio::test]
async fn a_call_is_one_trace_from_the_caller_through_the_server_into_the_handler() {
    let spans = Spans::record();
    let channel = serve(Answer::Ok).await;
    call(channel).instrument(info_span!("caller")).await.unwrap();

    let server = spans.wait_for(EXPORT).await;
    let caller = spans.find("caller").unwrap();
    let handler = spans.find("work of the handler").unwrap();
    assert_eq!(server.span_context.trace_id(), caller.span_context.trace_id());
    assert_eq!(handler.span_context.trace_id(), caller.span_context.trace_id());
    assert_eq!(server.parent_span_id, caller.span_context.span_id());
    assert_eq!(handler.parent_span_id, server.span_context.span_id());
    assert!(server.parent_span_is_remote);
}

#[tokio::test]
async fn the_span_of_an_rpc_names_system_service_method_and_status() {
    let spans = Spans::record();
    let channel = serve(Answer::Ok).await;
    call(channel).await.unwrap();

    let span = spans.wait_for(EXPORT).await;
    assert_eq!(span.span_kind, SpanKind::Server);
    assert_eq!(span.parent_span_id, SpanId::INVALID, "without a caller's trace it is a root");
    assert_eq!(attribute(&span, "rpc.system"), Some("grpc".into()));
    assert_eq!(
        attribute(&span, "rpc.service"),
        Some("opentelemetry.proto.collector.trace.v1.TraceService".into())
    );
    assert_eq!(attribute(&span, "rpc.method"), Some("Export".into()));
    assert_eq!(attribute(&span, "rpc.grpc.status_code"), Some(0.into()));
    assert_eq!(span.status, SpanStatus::Unset);
}

#[tokio::test]
async fn an_answer_the_caller_has_to_mend_is_no_error_of_the_server() {
    let spans = Spans::record();
    let channel = serve(Answer::Fail(Status::failed_precondition("paused"))).await;
    call(channel).await.unwrap_err();

    let span = spans.wait_for(EXPORT).await;
    assert_eq!(attribute(&span, "rpc.grpc.status_code"), Some(9.into()));
    assert_eq!(span.status, SpanStatus::Unset);
}

#[tokio::test]
async fn a_server_that_fails_marks_its_span_as_error() {
    let spans = Spans::record();
    let channel = serve(Answer::Fail(Status::unavailable("no worker"))).await;
    call(channel).await.unwrap_err();

    let span = spans.wait_for(EXPORT).await;
    assert_eq!(attribute(&span, "rpc.grpc.status_code"), Some(14.into()));
    assert!(matches!(span.status, SpanStatus::Error { .. }), "{:?}", span.status);
}

#[tokio::test]
async fn a_caller_who_leaves_before_the_answer_is_recorded_as_cancelled() {
    let spans = Spans::record();
    let channel = serve(Answer::Never).await;
    let calling = tokio::spawn(call(channel));
    spans.wait_for("work of the handler").await;
    calling.abort();

    let span = spans.wait_for(EXPORT).await;
    assert_eq!(attribute(&span, "rpc.grpc.status_code"), Some(1.into()));
    assert_eq!(span.status, SpanStatus::Unset);
}

#[tokio::test]
async fn the_span_of_a_stream_lasts_as_long_as_the_stream() {
    let spans = Spans::record();
    let mut client = ServerReflectionClient::new(InterceptedService::new(
        serve(Answer::Ok).await,
        trace_interceptor as fn(Request<()>) -> Result<Request<()>, Status>,
    ));
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let (ask, questions) = tokio::sync::mpsc::channel(1);
    ask.send(question).await.unwrap();
    let questions = tokio_stream::wrappers::ReceiverStream::new(questions);
    let mut answers = client.server_reflection_info(questions).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    assert!(spans.find(REFLECTION).is_none(), "the stream is still open");

    drop(ask);
    assert!(answers.message().await.unwrap().is_none());
    let span = spans.wait_for(REFLECTION).await;
    assert_eq!(attribute(&span, "rpc.grpc.status_code"), Some(0.into()));
}

#[tokio::test]
async fn health_checks_leave_no_spans() {
    let spans = Spans::record();
    let channel = serve(Answer::Ok).await;
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
    call(channel).await.unwrap();

    spans.wait_for(EXPORT).await;
    let health: Vec<_> =
        spans.finished().into_iter().filter(|span| span.name.contains("grpc.health")).collect();
    assert!(health.is_empty(), "{health:?}");
}

#[tokio::test]
async fn a_garbled_trace_context_leaves_the_rpc_a_root() {
    let spans = Spans::record();
    let mut client = TraceServiceClient::new(serve(Answer::Ok).await);
    let mut request = Request::new(ExportTraceServiceRequest::default());
    request.metadata_mut().insert("traceparent", "00-zz-1-".parse().unwrap());
    client.export(request).await.unwrap();

    assert_eq!(spans.wait_for(EXPORT).await.parent_span_id, SpanId::INVALID);
}

#[test]
fn only_the_products_own_spans_are_exported() {
    let spans = Spans::record();
    drop(info_span!(target: "h2", "a library's span"));
    drop(info_span!("our span"));
    let names: Vec<_> = spans.finished().into_iter().map(|span| span.name).collect();
    assert_eq!(names, ["our span"]);
}
