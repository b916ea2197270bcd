//! What other services see: health, reflection, traces.

use millrace_api::proto::pipe::v1::pipe_service_client::PipeServiceClient;
use millrace_api::proto::pipe::v1::{GetRequest, PauseRequest, TableMapping, UpdateRequest};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use std::sync::{Arc, Mutex};
use tonic::{Request, Response, Status};
use tonic_types::StatusExt as _;

use crate::life::running;
use crate::load::{SETTINGS, TABLES};
use crate::stack::Stack;

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    let channel = tonic::transport::Endpoint::from_shared(stack.address()).unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let service = "millrace.pipe.v1.PipeService".to_owned();
    let answer = health.check(tonic_health::pb::HealthCheckRequest { service }).await.unwrap();
    assert_eq!(answer.into_inner().status(), tonic_health::pb::health_check_response::ServingStatus::Serving);

    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    };
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(question))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for name in
        ["millrace.pipe.v1.PipeService", "millrace.pipe.v1.FleetService", "millrace.worker.v1.WorkerService"]
    {
        assert!(names.iter().any(|known| known == name), "{name} is not among {names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_takes_the_fields_of_its_mask_and_no_others_also_where_added_tables_are_looked_at() {
    let stack = running(100).await;
    stack.source().await.batch_execute("CREATE TABLE late (id int PRIMARY KEY)").await.unwrap();
    let mut pipes = PipeServiceClient::new(millrace_api::client::dial(&stack.address()).await.unwrap());
    let got = pipes.get(GetRequest { name: "shop".into() }).await.unwrap().into_inner().pipe.unwrap();
    let mut spec = got.spec.unwrap();
    spec.source.as_mut().unwrap().port = 1;
    spec.tables.push(TableMapping {
        source: "public.late".into(),
        target: "late".into(),
        ..TableMapping::default()
    });
    let mut request = UpdateRequest { spec: Some(spec), ..UpdateRequest::default() };
    request.update_mask.get_or_insert_default().paths = vec!["tables".into()];
    let updated = pipes.update(request).await.unwrap().into_inner();
    assert_eq!(updated.differences, ["adds public.late"]);
    stack.wait_for("shop", "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_carry_a_stable_reason_and_the_state() {
    let stack = running(100).await;
    let mut pipes = PipeServiceClient::new(millrace_api::client::dial(&stack.address()).await.unwrap());
    let missing = pipes.get(GetRequest { name: "none".into() }).await.unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound);
    assert_eq!(missing.get_details_error_info().unwrap().reason, "PIPE_NOT_FOUND");
    stack.ok(&["pipe", "pause", "shop"]).await;
    stack.wait_for("shop", "Paused").await;
    let refused = pipes.pause(PauseRequest { name: "shop".into() }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert_eq!(refused.get_details_error_info().unwrap().reason, "ILLEGAL_COMMAND");
    assert!(
        refused.message().contains("Paused") && refused.message().contains("'shop'"),
        "{}",
        refused.message()
    );
}

/// A span as it was exported: trace, name, service, attributes as text.
type Span = (Vec<u8>, String, String);

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let service = format!("{:?}", service.and_then(|attribute| attribute.value));
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push((span.trace_id, span.name, service.clone()));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_from_the_call_through_coordinator_and_worker_to_the_insert() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    // Ends with the test's runtime.
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(incoming),
    );
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&["--otlp-endpoint", &endpoint]).await;
    stack.start_worker_with("traced", &["--otlp-endpoint", &endpoint]).await;
    crate::load::sample_tables(&stack.source().await, 1000).await;
    stack.apply(&stack.write_pipe_of("shop", &TABLES, SETTINGS)).await;
    stack.wait_for("shop", "Running").await;
    let together = || {
        let spans = collector.0.lock().unwrap();
        let creation = spans.iter().find(|(_, name, service)| {
            name.ends_with("PipeService/Create") && service.contains("coordinator")
        });
        creation.is_some_and(|(trace, _, _)| {
            ["provision", "setup", "copy", "insert"].iter().all(|work| {
                spans.iter().any(|(other, name, service)| {
                    other == trace && name == work && service.contains("worker")
                })
            })
        })
    };
    stack.wait("the spans of one trace to be exported", async || together()).await;
}
