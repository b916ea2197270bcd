//! What is no worker, or a broken one, on the workers' stream: refused, counted, and without effect.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use millrace_api::proto::pipe::v1 as pb;
use millrace_api::proto::worker::v1 as wire;
use millrace_api::proto::worker::v1::connect_request::Message as Say;
use millrace_api::proto::worker::v1::connect_response::Message as Told;
use millrace_api::proto::worker::v1::worker_service_client::WorkerServiceClient;
use millrace_api::spec::with_secrets;
use millrace_api::yaml::parse_pipe_yaml;
use millrace_api::{ApiError, Clients};
use millrace_catalog::SqliteCatalog;
use millrace_coordinator::{Config, Coordinator, Error};
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, SdkMeterProvider};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

/// A coordinator that leads, and what it counts.
struct Target {
    address: String,
    clients: Clients,
    meters: SdkMeterProvider,
    counted: InMemoryMetricExporter,
    stop: CancellationToken,
    served: JoinHandle<Result<(), Error>>,
    _folder: tempfile::TempDir,
}

/// Somebody on the workers' stream who was let in.
struct Caller {
    say: mpsc::Sender<wire::ConnectRequest>,
    told: Streaming<wire::ConnectResponse>,
}

impl Target {
    async fn start() -> Self {
        let counted = InMemoryMetricExporter::default();
        let meters = SdkMeterProvider::builder().with_periodic_exporter(counted.clone()).build();
        opentelemetry::global::set_meter_provider(meters.clone());
        let folder = tempfile::tempdir().unwrap();
        let catalog = SqliteCatalog::open(&folder.path().join("catalog.sqlite")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let served = tokio::spawn(Coordinator::new(Config::default(), catalog, listener).run(stop.clone()));
        let clients = millrace_api::connect(&address).await.unwrap();
        Self { address, clients, meters, counted, stop, served, _folder: folder }
    }

    /// Says one thing first, and is let in or not.
    async fn dial(&self, first: impl Into<Option<Say>>) -> Result<Caller, Status> {
        let channel = Endpoint::from_shared(self.address.clone()).unwrap().connect().await.unwrap();
        let mut client = WorkerServiceClient::new(channel).max_encoding_message_size(64 << 20);
        let (say, said) = mpsc::channel(16);
        match first.into() {
            Some(first) => {
                say.send(wire::ConnectRequest { message: Some(first) }).await.unwrap();
                let told = client.connect(ReceiverStream::new(said)).await?.into_inner();
                Ok(Caller { say, told })
            }
            None => {
                drop(say);
                let told = client.connect(ReceiverStream::new(said)).await?.into_inner();
                Ok(Caller { say: mpsc::channel(1).0, told })
            }
        }
    }

    /// Who dials is turned away with this code and reason.
    async fn turns_away(&self, first: impl Into<Option<Say>>, code: Code, reason: &str) {
        let first = first.into();
        let said = format!("{first:?}");
        let Err(status) = self.dial(first).await else { panic!("let in: {said:.200}") };
        assert_eq!(status.code(), code, "{status:?}");
        assert_eq!(ApiError::from(status).reason.as_deref(), Some(reason));
    }

    /// Messages that were refused so far, by reason.
    fn refused(&self) -> BTreeMap<String, u64> {
        self.counted.reset();
        self.meters.force_flush().unwrap();
        let exported = self.counted.get_finished_metrics().unwrap();
        let metrics = exported.iter().flat_map(|resource| resource.scope_metrics());
        let mut refused = BTreeMap::new();
        let is_asked_for = |name: &str| name == "millrace.coordinator.refused_messages";
        for metric in metrics.flat_map(|scope| scope.metrics()).filter(|metric| is_asked_for(metric.name())) {
            let AggregatedMetrics::U64(MetricData::Sum(sum)) = metric.data() else { panic!("no sum") };
            for point in sum.data_points() {
                let reason = point.attributes().next().unwrap().value.to_string();
                refused.insert(reason, point.value());
            }
        }
        refused
    }

    async fn create(&mut self, name: &str) {
        let yaml = format!(
            "name: {name}\n\
             source: {{postgres: {{host: 127.0.0.1, database: shop, username: millrace}}}}\n\
             destination: {{clickhouse: {{url: \"http://127.0.0.1:8123\", database: shop}}}}\n\
             tables: [{{source: public.orders}}]\n"
        );
        let spec = with_secrets(&parse_pipe_yaml(&yaml, Path::new("."), &|_| None).unwrap());
        self.clients
            .pipes
            .create(pb::CreateRequest { spec: Some(spec), ..Default::default() })
            .await
            .unwrap();
    }

    async fn pipe(&mut self, name: &str) -> pb::Pipe {
        let request = pb::GetRequest { name: name.to_owned() };
        self.clients.pipes.get(request).await.unwrap().into_inner().pipe.unwrap()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.served.await.unwrap().unwrap();
    }
}

impl Caller {
    async fn say(&self, message: Say) {
        self.say.send(wire::ConnectRequest { message: Some(message) }).await.unwrap();
    }

    async fn hear(&mut self) -> Told {
        self.told.message().await.unwrap().unwrap().message.unwrap()
    }

    /// Gets no more work.
    async fn is_leaving(&self) {
        self.say(Say::Heartbeat(wire::Heartbeat {
            memory_used_bytes: 0,
            draining: true,
            ..Default::default()
        }))
        .await;
    }

    /// Hears nothing more.
    async fn hears_the_end(mut self) {
        while let Ok(Some(_)) = self.told.message().await {}
    }

    async fn is_assigned(&mut self) -> wire::Assign {
        loop {
            if let Told::Assign(assign) = self.hear().await {
                return assign;
            }
        }
    }

    async fn is_revoked(&mut self, epoch: u64) {
        loop {
            if let Told::Revoke(revoke) = self.hear().await {
                assert_eq!(revoke.epoch, epoch);
                return;
            }
        }
    }
}

fn hello(worker: &str) -> wire::Hello {
    wire::Hello {
        worker_id: worker.to_owned(),
        instance_id: format!("{worker}-1"),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        max_tasks: 4,
        memory_budget_bytes: 1 << 28,
        ..Default::default()
    }
}

fn problem(message: &str) -> pb::Problem {
    pb::Problem {
        code: "SOURCE_LIES".to_owned(),
        severity: pb::Severity::Error.into(),
        recovery: pb::Recovery::Operator.into(),
        message: message.to_owned(),
        table: "public.orders".to_owned(),
        ..Default::default()
    }
}

fn streams(epoch: u64) -> Say {
    let stream = wire::StreamProgress { durable_lsn: u64::MAX, caught_up: true, ..Default::default() };
    Say::Progress(wire::Progress { epoch, progress: Some(wire::progress::Progress::Stream(stream)) })
}

#[tokio::test]
async fn who_does_not_introduce_himself_as_a_worker_is_turned_away() {
    let mut target = Target::start().await;
    // A user's bad input comes back in the error, which still arrives.
    let long = pb::GetRequest { name: "p".repeat(1 << 20) };
    let refused = target.clients.pipes.get(long).await.unwrap_err();
    assert_eq!(ApiError::from(refused).reason.as_deref(), Some("PIPE_NOT_FOUND"));
    let protocol = "WORKER_PROTOCOL";
    target.turns_away(None, Code::InvalidArgument, protocol).await;
    let heartbeat =
        Say::Heartbeat(wire::Heartbeat { memory_used_bytes: 1, draining: true, ..Default::default() });
    target.turns_away(heartbeat, Code::InvalidArgument, protocol).await;
    target.turns_away(streams(1), Code::InvalidArgument, protocol).await;
    let malformed = [
        wire::Hello::default(),
        wire::Hello { worker_id: "w\n".to_owned(), ..hello("w") },
        wire::Hello { worker_id: "w".repeat(1 << 20), ..hello("w") },
        wire::Hello { instance_id: String::new(), ..hello("w") },
        wire::Hello { max_tasks: 0, ..hello("w") },
        wire::Hello { held_epochs: vec![0], ..hello("w") },
    ];
    let times = malformed.len() as u64;
    for hello in malformed {
        target.turns_away(Say::Hello(hello), Code::InvalidArgument, protocol).await;
    }
    for version in ["", "99.0.0", "0.99.0", "latest\u{1b}[31m"] {
        let hello = wire::Hello { version: version.to_owned(), ..hello("w") };
        target.turns_away(Say::Hello(hello), Code::FailedPrecondition, "VERSION_MISMATCH").await;
    }
    // Larger than any message may be.
    let large = wire::Hello { held_epochs: vec![u64::MAX; 1 << 20], ..hello("w") };
    target.turns_away(Say::Hello(large), Code::InvalidArgument, protocol).await;
    let refused = target.refused();
    assert_eq!(refused["out_of_turn"], 3, "{refused:?}");
    assert_eq!(refused["malformed"], times + 1, "{refused:?}");
    assert_eq!(refused["version"], 4, "{refused:?}");
    target.stop().await;
}

#[tokio::test]
async fn who_opens_a_stream_and_says_nothing_is_turned_away() {
    let target = Target::start().await;
    let channel = Endpoint::from_shared(target.address.clone()).unwrap().connect().await.unwrap();
    // Open, and silent.
    let (_say, said) = mpsc::channel(1);
    let mut client = WorkerServiceClient::new(channel);
    let answer = client.connect(ReceiverStream::new(said));
    let answer = tokio::time::timeout(Duration::from_secs(60), answer).await.unwrap();
    let Err(status) = answer else { panic!("let in") };
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(target.refused()["out_of_turn"], 1);
    target.stop().await;
}

#[tokio::test]
async fn a_worker_that_breaks_the_protocol_hears_the_end() {
    let target = Target::start().await;
    let twice = target.dial(Say::Hello(hello("twice"))).await.unwrap();
    twice.say(Say::Hello(hello("twice"))).await;
    twice.hears_the_end().await;
    let malformed = target.dial(Say::Hello(hello("malformed"))).await.unwrap();
    malformed.say(Say::Progress(wire::Progress { epoch: 1, progress: None })).await;
    malformed.hears_the_end().await;
    let large = target.dial(Say::Hello(hello("large"))).await.unwrap();
    let problems = vec![problem(&"x".repeat(8 << 20))];
    large.say(Say::Failed(wire::Failed { epoch: 1, problems })).await;
    large.hears_the_end().await;

    // A second process under an id that is connected; the first one goes on.
    let mut first = target.dial(Say::Hello(hello("one"))).await.unwrap();
    let other = wire::Hello { instance_id: "another".to_owned(), ..hello("one") };
    target.turns_away(Say::Hello(other), Code::AlreadyExists, "WORKER_ID_TAKEN").await;
    first.say(streams(4711)).await;
    first.is_revoked(4711).await;
    let refused = target.refused();
    assert_eq!(refused["out_of_turn"], 1, "{refused:?}");
    assert_eq!(refused["malformed"], 2, "{refused:?}");
    assert_eq!(refused["id_taken"], 1, "{refused:?}");
    assert_eq!(refused["stale"], 1, "{refused:?}");
    target.stop().await;
}

#[tokio::test]
async fn what_a_worker_says_of_anothers_work_changes_nothing() {
    let mut target = Target::start().await;
    // Before there is a worker who would be asked to look first.
    target.create("shop").await;
    let mut owner = target.dial(Say::Hello(hello("owner"))).await.unwrap();
    let assigned = owner.is_assigned().await;
    assert!(matches!(assigned.work, Some(wire::assign::Work::Provision(_))), "{assigned:?}");
    let before = target.pipe("shop").await;

    let mut liar = target.dial(Say::Hello(hello("liar"))).await.unwrap();
    let epoch = assigned.epoch;
    let problem = problem("drop everything");
    let copied = wire::finished::Result::Copy(wire::CopyResult { rows: 1, bytes: 1 });
    let lies = [
        streams(epoch),
        Say::Failed(wire::Failed { epoch, problems: vec![problem.clone()] }),
        Say::Finished(wire::Finished { epoch, result: Some(copied) }),
        Say::TableSetAside(wire::TableSetAside { epoch, table_id: 1, problem: Some(problem) }),
        Say::TableSwapped(wire::TableSwapped { epoch, table_id: 1 }),
        Say::ValuesAltered(wire::ValuesAltered { epoch, table_id: 1, values: 1 << 40 }),
    ];
    let times = lies.len() as u64;
    for lie in lies {
        liar.say(lie).await;
        liar.is_revoked(epoch).await;
    }
    // An answer to a question that nobody asked.
    liar.say(Say::InspectReply(wire::InspectReply { request_id: 1, ..Default::default() })).await;
    liar.say(streams(u64::MAX)).await;
    liar.is_revoked(u64::MAX).await;
    let after = target.pipe("shop").await;
    assert_eq!(after, before);
    let refused = target.refused();
    assert_eq!(refused["not_its_own"], times, "{refused:?}");
    assert_eq!(refused["unasked"], 1, "{refused:?}");

    liar.is_leaving().await;

    // What cannot be said of a provisioning, by the one that has it: it is stopped, and the work given out anew.
    owner.say(streams(epoch)).await;
    owner.is_revoked(epoch).await;
    assert_eq!(target.refused()["impossible"], 1);
    let again = owner.is_assigned().await;
    assert!(again.epoch > epoch, "{again:?}");
    let pipe = target.pipe("shop").await;
    assert_eq!(pipe.status.clone().unwrap().state(), pb::PipeState::Provisioning, "{pipe:?}");
    target.stop().await;
}

#[tokio::test]
async fn a_flood_does_not_keep_users_waiting() {
    let mut target = Target::start().await;
    let flood = target.dial(Say::Hello(hello("flood"))).await.unwrap();
    let flooding = tokio::spawn(async move {
        let problem = problem(&"x".repeat(1 << 18));
        for epoch in 1..=500 {
            let failed = Say::Failed(wire::Failed { epoch, problems: vec![problem.clone()] });
            // It does not read what it is told.
            flood.say.send(wire::ConnectRequest { message: Some(failed) }).await.unwrap();
        }
        flood
    });
    let mut asked = 0u32;
    while !flooding.is_finished() {
        let request = pb::DrainWorkerRequest { worker_id: "flood".to_owned(), undo: asked % 2 == 1 };
        let answer = target.clients.fleet.drain_worker(request);
        tokio::time::timeout(Duration::from_secs(20), answer).await.unwrap().unwrap();
        asked += 1;
    }
    assert!(asked > 5, "{asked}");
    drop(flooding.await.unwrap());
    target.stop().await;
}
