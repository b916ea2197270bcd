//! What other services see: health, reflection, traces, metrics.

use millrace_api::proto::pipe::v1::pipe_service_client::PipeServiceClient;
use millrace_api::proto::pipe::v1::{GetRequest, PauseRequest, TableMapping, UpdateRequest};
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
use std::collections::BTreeMap;
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

/// The newest value of each gauge, by its name and attributes as text.
#[derive(Clone, Default)]
struct Gauges(Arc<Mutex<BTreeMap<String, f64>>>);

impl Gauges {
    /// Listens for exports; gives where.
    async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder()
            .add_service(MetricsServiceServer::new(self.clone()))
            .add_service(TraceServiceServer::new(Collector::default()));
        // Ends with the test's runtime.
        tokio::spawn(server.serve_with_incoming(incoming));
        endpoint
    }

    fn value(&self, gauge: &str) -> Option<f64> {
        self.0.lock().unwrap().get(gauge).copied()
    }
}

#[tonic::async_trait]
impl MetricsService for Gauges {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        use opentelemetry_proto::tonic::common::v1::any_value::Value;
        use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point};
        let mut gauges = BTreeMap::new();
        let scopes = request.into_inner().resource_metrics.into_iter().flat_map(|one| one.scope_metrics);
        for metric in scopes.flat_map(|scope| scope.metrics) {
            let Some(Data::Gauge(gauge)) = metric.data else { continue };
            for point in gauge.data_points {
                let mut attributes: Vec<String> = Vec::new();
                for attribute in point.attributes {
                    let Some(Value::StringValue(value)) = attribute.value.and_then(|any| any.value) else {
                        continue;
                    };
                    attributes.push(format!("{}={value}", attribute.key));
                }
                attributes.sort();
                if let Some(number_data_point::Value::AsDouble(value)) = point.value {
                    gauges.insert(format!("{} {}", metric.name, attributes.join(" ")), value);
                }
            }
        }
        *self.0.lock().unwrap() = gauges;
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_how_pipes_get_on_and_what_is_in_their_way() {
    let gauges = Gauges::default();
    let endpoint = gauges.listen().await;
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&["--otlp-endpoint", &endpoint]).await;
    stack.start_worker("one").await;
    crate::load::sample_tables(&stack.source().await, 1000).await;
    stack.apply(&stack.write_pipe_of("shop", &TABLES, SETTINGS)).await;
    stack.wait_for("shop", "Running").await;
    stack.caught_up("shop").await;
    let exported = async |gauge: &str, wanted: f64| {
        stack.wait(gauge, async || gauges.value(gauge) == Some(wanted)).await;
    };
    exported("millrace.pipe.state pipe.name=shop state=running", 1.0).await;
    exported("millrace.pipe.health health=ok pipe.name=shop", 1.0).await;
    exported("millrace.pipe.tables pipe.name=shop state=streaming", 3.0).await;
    exported("millrace.workers state=connected", 1.0).await;
    let lag = || gauges.value("millrace.pipe.lag pipe.name=shop");
    stack.wait("the lag", async || lag().is_some()).await;
    assert!(gauges.value("millrace.pipe.report.age pipe.name=shop").unwrap() < 60.0);

    // A row that is lost, and a table that cannot be written.
    let lose = "ALTER TABLE mirror.items DELETE WHERE order_id = 7 AND line = 1 SETTINGS mutations_sync = 2";
    stack.destination().query(lose).execute().await.unwrap();
    assert!(!stack.run(&["pipe", "verify", "shop", "--table", "public.items"]).await.status.success());
    exported("millrace.verify.differences pipe.name=shop table.name=public.items", 1.0).await;
    exported("millrace.pipe.problem code=ROWS_DIFFER pipe.name=shop", 1.0).await;
    stack.clickhouse.set_profile(&[("readonly", "2")]).unwrap();
    stack.source().await.batch_execute("UPDATE orders SET note = 'held' WHERE id < 10").await.unwrap();
    exported(
        "millrace.table.problem code=DESTINATION_READ_ONLY pipe.name=shop table.name=public.orders",
        1.0,
    )
    .await;
    exported("millrace.pipe.health health=degraded pipe.name=shop", 1.0).await;
}

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
