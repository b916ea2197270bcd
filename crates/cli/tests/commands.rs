//! What the commands print, against a coordinator that answers from a script over real gRPC.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use clap::Parser;
use jiff::tz::TimeZone;
use millrace_api::proto::pipe::v1 as wire;
use millrace_api::status;
use millrace_cli::{ClientCommand, Console, Globals, WorkerCommand, execute};
use millrace_model::{Problem, TableName};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};
use wire::fleet_service_server::{FleetService, FleetServiceServer};
use wire::pipe_service_server::{PipeService, PipeServiceServer};

/// The command line as the binary mounts it.
#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: ClientCommand,
}

type Updates = Pin<Box<dyn tokio_stream::Stream<Item = Result<wire::WatchPipeResponse, Status>> + Send>>;

/// One pipe, `shop`, and what its watch is going to say.
#[derive(Default)]
struct Script {
    pipe: wire::Pipe,
    problems: Vec<Problem>,
    updates: Vec<Result<wire::WatchPipeResponse, Status>>,
    /// What a watch says after the one before ended; then the pipe is gone.
    later_updates: Vec<wire::WatchPipeResponse>,
    watches: Vec<u64>,
    /// Whether a watch stays open behind its last update.
    open: bool,
    /// Where it is set, a watch says more than its first update only once the pipe is being deleted.
    deletion: Option<Arc<Notify>>,
    deleted: bool,
    created: Option<wire::CreateRequest>,
    /// Whether the pipe stands with another specification.
    differs: bool,
    /// What an edit finds.
    differences: Vec<&'static str>,
    /// Why an edit, resync or retry is refused: command, reason and remedy.
    unfit: Option<(&'static str, &'static str, &'static str)>,
    updated: Option<wire::UpdateRequest>,
    resynced: Option<wire::ResyncRequest>,
    retried: Option<wire::RetryTableRequest>,
    /// What a comparison finds, by table.
    verifications: Vec<wire::Verification>,
    deletion_asked: Option<wire::DeleteRequest>,
}

#[derive(Clone, Default)]
struct Coordinator(Arc<Mutex<Script>>);

impl Coordinator {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().expect("no test panicked with it")
    }

    fn refusal(&self) -> Result<(), Status> {
        match self.script().unfit {
            Some((command, reason, remedy)) => Err(status::unfit_command("shop", command, reason, remedy)),
            None => Ok(()),
        }
    }

    fn known(&self, name: &str) -> Result<wire::Pipe, Status> {
        let script = self.script();
        if name == "shop" && !script.deleted {
            Ok(script.pipe.clone())
        } else {
            Err(status::pipe_not_found(name))
        }
    }
}

#[tonic::async_trait]
impl PipeService for Coordinator {
    type WatchPipeStream = Updates;

    async fn validate(
        &self,
        _: Request<wire::ValidateRequest>,
    ) -> Result<Response<wire::ValidateResponse>, Status> {
        let problems = self.script().problems.iter().map(wire::Problem::from).collect();
        Ok(Response::new(wire::ValidateResponse { problems, tables: vec![source_table()] }))
    }

    async fn create(
        &self,
        request: Request<wire::CreateRequest>,
    ) -> Result<Response<wire::CreateResponse>, Status> {
        let mut script = self.script();
        let errors: Vec<Problem> = script
            .problems
            .iter()
            .filter(|problem| problem.severity == millrace_model::Severity::Error)
            .cloned()
            .collect();
        if !errors.is_empty() {
            return Err(status::checks_failed(&errors));
        }
        if script.differs {
            return Err(status::pipe_exists("shop", &["tables"]));
        }
        let created = script.created.is_none();
        script.created = Some(request.into_inner());
        let problems = script.problems.iter().map(wire::Problem::from).collect();
        Ok(Response::new(wire::CreateResponse { pipe: Some(script.pipe.clone()), created, problems }))
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::GetResponse>, Status> {
        let pipe = self.known(&request.into_inner().name)?;
        Ok(Response::new(wire::GetResponse { pipe: Some(pipe) }))
    }

    async fn list(
        &self,
        request: Request<wire::ListRequest>,
    ) -> Result<Response<wire::ListResponse>, Status> {
        // Two pages of one pipe each.
        let first = request.into_inner().page_token.is_empty();
        let mut pipe = self.script().pipe.clone();
        if !first && let Some(spec) = &mut pipe.spec {
            spec.name = "a much longer name".to_owned();
        }
        let next_page_token = if first { "2".to_owned() } else { String::new() };
        Ok(Response::new(wire::ListResponse { pipes: vec![pipe], next_page_token }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateRequest>,
    ) -> Result<Response<wire::UpdateResponse>, Status> {
        let request = request.into_inner();
        if self.script().created.is_none() && !self.script().differs {
            return Err(status::pipe_not_found("shop"));
        }
        if !request.allow_resync {
            self.refusal()?;
        }
        let mut script = self.script();
        script.updated = Some(request);
        let differences = script.differences.iter().map(|text| (*text).to_owned()).collect();
        let problems = script.problems.iter().map(wire::Problem::from).collect();
        Ok(Response::new(wire::UpdateResponse { pipe: Some(script.pipe.clone()), differences, problems }))
    }

    async fn resync(
        &self,
        request: Request<wire::ResyncRequest>,
    ) -> Result<Response<wire::ResyncResponse>, Status> {
        let request = request.into_inner();
        let pipe = self.known(&request.name)?;
        self.refusal()?;
        self.script().resynced = Some(request);
        Ok(Response::new(wire::ResyncResponse { pipe: Some(pipe) }))
    }

    async fn retry_table(
        &self,
        request: Request<wire::RetryTableRequest>,
    ) -> Result<Response<wire::RetryTableResponse>, Status> {
        let request = request.into_inner();
        let pipe = self.known(&request.name)?;
        self.refusal()?;
        self.script().retried = Some(request);
        Ok(Response::new(wire::RetryTableResponse { pipe: Some(pipe) }))
    }

    async fn verify(
        &self,
        request: Request<wire::VerifyRequest>,
    ) -> Result<Response<wire::VerifyResponse>, Status> {
        let mut pipe = self.known(&request.into_inner().name)?;
        self.refusal()?;
        for table in &mut pipe.tables {
            table.verification = Some(wire::Verification { requested_at: at(100), ..Default::default() });
        }
        // The next look finds it done.
        let mut script = self.script();
        let found = std::mem::take(&mut script.verifications);
        for (table, found) in script.pipe.tables.iter_mut().zip(found) {
            table.verification = Some(found);
        }
        Ok(Response::new(wire::VerifyResponse { pipe: Some(pipe) }))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteRequest>,
    ) -> Result<Response<wire::DeleteResponse>, Status> {
        let request = request.into_inner();
        let pipe = self.known(&request.name)?;
        let mut script = self.script();
        script.deleted = true;
        script.deletion_asked = Some(request);
        if let Some(deletion) = &script.deletion {
            deletion.notify_one();
        }
        Ok(Response::new(wire::DeleteResponse { pipe: Some(pipe) }))
    }

    async fn pause(
        &self,
        request: Request<wire::PauseRequest>,
    ) -> Result<Response<wire::PauseResponse>, Status> {
        let mut pipe = self.known(&request.into_inner().name)?;
        if let Some(status) = &mut pipe.status {
            status.state = wire::PipeState::Pausing.into();
        }
        Ok(Response::new(wire::PauseResponse { pipe: Some(pipe) }))
    }

    async fn resume(
        &self,
        request: Request<wire::ResumeRequest>,
    ) -> Result<Response<wire::ResumeResponse>, Status> {
        let name = request.into_inner().name;
        self.known(&name)?;
        Err(status::illegal_command(&name, "resume", "Running", &["pause", "delete"]))
    }

    async fn list_events(
        &self,
        request: Request<wire::ListEventsRequest>,
    ) -> Result<Response<wire::ListEventsResponse>, Status> {
        self.known(&request.into_inner().name)?;
        let events =
            self.script().updates.iter().flatten().flat_map(|update| update.events.clone()).collect();
        Ok(Response::new(wire::ListEventsResponse { events, next_page_token: String::new() }))
    }

    async fn list_source_tables(
        &self,
        _: Request<wire::ListSourceTablesRequest>,
    ) -> Result<Response<wire::ListSourceTablesResponse>, Status> {
        Ok(Response::new(wire::ListSourceTablesResponse {
            tables: vec![source_table()],
            problems: Vec::new(),
        }))
    }

    async fn watch_pipe(
        &self,
        request: Request<wire::WatchPipeRequest>,
    ) -> Result<Response<Updates>, Status> {
        let request = request.into_inner();
        self.known(&request.name)?;
        let mut script = self.script();
        script.watches.push(request.after_event_id);
        let updates = std::mem::take(&mut script.updates);
        script.updates = std::mem::take(&mut script.later_updates).into_iter().map(Ok).collect();
        let (open, mut deletion) = (script.open, script.deletion.clone());
        script.deleted = script.updates.is_empty() && !open && deletion.is_none();
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            for update in updates {
                if sender.send(update).await.is_err() {
                    return;
                }
                if let Some(deletion) = deletion.take() {
                    deletion.notified().await;
                }
            }
            if open {
                sender.closed().await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl FleetService for Coordinator {
    async fn drain_worker(
        &self,
        request: Request<wire::DrainWorkerRequest>,
    ) -> Result<Response<wire::DrainWorkerResponse>, Status> {
        let id = request.into_inner().worker_id;
        if id != "worker-1" {
            return Err(status::worker_not_found(&id));
        }
        let worker = wire::Worker { id, tasks: 2, ..Default::default() };
        Ok(Response::new(wire::DrainWorkerResponse { worker: Some(worker) }))
    }

    async fn list_workers(
        &self,
        _: Request<wire::ListWorkersRequest>,
    ) -> Result<Response<wire::ListWorkersResponse>, Status> {
        let worker = wire::Worker {
            id: "worker-1".to_owned(),
            state: wire::WorkerState::Connected.into(),
            version: "0.1.0".to_owned(),
            connected_at: at(0),
            heard_at: at(61),
            max_tasks: 4,
            tasks: 2,
            memory_budget_bytes: 1 << 29,
            memory_used_bytes: 5 << 20,
            labels: [("zone".to_owned(), "a".to_owned())].into(),
        };
        Ok(Response::new(wire::ListWorkersResponse { workers: vec![worker], next_page_token: String::new() }))
    }
}

#[allow(clippy::unnecessary_wraps)]
fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: 1_750_000_000 + seconds, nanos: 0 })
}

fn source_table() -> wire::SourceTable {
    wire::SourceTable {
        name: "public.orders".to_owned(),
        rows_estimated: 1_000_000,
        bytes: 123 << 20,
        key: vec!["id".to_owned()],
        replica_identity: "default".to_owned(),
        columns: vec![wire::SourceColumn {
            name: "id".to_owned(),
            r#type: "bigint".to_owned(),
            nullable: false,
        }],
        problems: Vec::new(),
    }
}

fn problem() -> Problem {
    Problem::operator("TARGET_NOT_EMPTY", "shop.orders holds 7 rows", "TRUNCATE TABLE shop.orders")
        .of_table(&TableName::new("public", "orders"))
}

fn pipe(state: wire::PipeState) -> wire::Pipe {
    let table = wire::TableStatus {
        source: "public.orders".to_owned(),
        target: "orders".to_owned(),
        state: wire::TableState::Streaming.into(),
        rows_copied: 1_234_567,
        bytes_copied: 123 << 20,
        rows_estimated: 1_200_000,
        partitions_done: 12,
        partitions_total: 12,
        changes_applied: 42,
        ..Default::default()
    };
    let stream = wire::StreamStatus {
        durable_lsn: "0/16B3748".to_owned(),
        source_lsn: "0/16B4748".to_owned(),
        lag_bytes: 4096,
        changes_applied: 42,
        delay: Some(prost_types::Duration { seconds: 0, nanos: 12_000_000 }),
        reported_at: at(61),
        slot: Some(wire::SlotStatus {
            wal_status: "extended".to_owned(),
            retained_bytes: 3 << 20,
            headroom_bytes: Some(5 << 30),
            measured_at: at(62),
        }),
    };
    wire::Pipe {
        id: "00000000000a".to_owned(),
        etag: "1".to_owned(),
        spec: Some(wire::PipeSpec {
            name: "shop".to_owned(),
            replication_mode: wire::ReplicationMode::Cdc.into(),
            source: Some(wire::PostgresSource {
                host: "127.0.0.1".to_owned(),
                port: 5432,
                database: "shop".to_owned(),
                username: "millrace".to_owned(),
                ..Default::default()
            }),
            destination: Some(wire::ClickHouseDestination {
                url: "http://127.0.0.1:8123".to_owned(),
                database: "shop".to_owned(),
                ..Default::default()
            }),
            tables: vec![wire::TableMapping { source: "public.orders".to_owned(), ..Default::default() }],
            settings: None,
        }),
        status: Some(wire::PipeStatus {
            state: state.into(),
            state_since: at(60),
            cause: "all tables are copied".to_owned(),
            next: "changes stream until it is paused".to_owned(),
            health: wire::Health::Ok.into(),
            health_since: at(0),
            slot_name: "millrace_00000000000a".to_owned(),
            publication_name: "millrace_00000000000a".to_owned(),
            consistent_point: "0/16A0000".to_owned(),
            stream: Some(stream),
            assignments: vec![wire::AssignmentStatus {
                epoch: 9,
                work: "stream".to_owned(),
                worker_id: "worker-1".to_owned(),
                detail: String::new(),
            }],
            commands: vec!["pause".to_owned(), "delete".to_owned()],
            ..Default::default()
        }),
        tables: vec![table],
        created_at: at(0),
    }
}

fn failed() -> wire::Pipe {
    let mut pipe = pipe(wire::PipeState::Failed);
    if let Some(status) = &mut pipe.status {
        status.stream = None;
        status.health = wire::Health::Stalled.into();
        status.cause = "the destination table is not empty".to_owned();
        status.next = String::new();
        status.problem = Some((&problem()).into());
    }
    pipe
}

/// A running pipe of which one table is copied anew and another cannot be written.
fn busy() -> wire::Pipe {
    let mut pipe = pipe(wire::PipeState::Running);
    let successor = wire::TableStatus {
        source: "public.orders".to_owned(),
        target: "orders_resync".to_owned(),
        state: wire::TableState::Copying.into(),
        rows_copied: 600_000,
        bytes_copied: 60 << 20,
        rows_estimated: 1_200_000,
        partitions_done: 6,
        partitions_total: 12,
        ..Default::default()
    };
    let held = Problem::operator(
        "DESTINATION_READ_ONLY",
        "shop.lines is read-only",
        "see why with: SELECT * FROM system.replicas WHERE is_readonly",
    );
    let lines = wire::TableStatus {
        source: "public.lines".to_owned(),
        target: "lines".to_owned(),
        held: Some((&held).into()),
        ..pipe.tables[0].clone()
    };
    let aside = wire::TableStatus {
        source: "public.notes".to_owned(),
        target: "notes".to_owned(),
        state: wire::TableState::SetAside.into(),
        problem: Some((&Problem::operator("TARGET_MISSING", "shop.notes is gone", "retry it")).into()),
        ..pipe.tables[0].clone()
    };
    pipe.tables[0].successor = Some(Box::new(successor));
    pipe.tables.push(lines);
    pipe.tables.push(aside);
    if let Some(status) = &mut pipe.status {
        status.health = wire::Health::Degraded.into();
        status.problem = Some((&held.of_table(&TableName::new("public", "lines"))).into());
        status.tables_set_aside = 1;
        status.commands = ["pause", "resync", "retry", "change settings", "delete"].map(str::to_owned).into();
    }
    pipe
}

fn event(id: u64, from: wire::PipeState, to: wire::PipeState, message: &str) -> wire::Event {
    wire::Event {
        id,
        time: at(i64::try_from(id).unwrap_or(0)),
        kind: "state".to_owned(),
        message: message.to_owned(),
        actor: "coordinator".to_owned(),
        from_state: from.into(),
        to_state: to.into(),
        ..Default::default()
    }
}

fn update(pipe: wire::Pipe, events: Vec<wire::Event>) -> wire::WatchPipeResponse {
    wire::WatchPipeResponse { pipe: Some(pipe), events }
}

/// From Provisioning to Running.
fn life() -> Vec<wire::WatchPipeResponse> {
    use wire::PipeState::{Provisioning, Running, Setup, Snapshot, Unspecified};
    let mut copying = pipe(Snapshot);
    for table in &mut copying.tables {
        table.state = wire::TableState::Copying.into();
        table.rows_copied = 600_000;
        table.partitions_done = 6;
    }
    vec![
        update(pipe(Provisioning), vec![event(1, Unspecified, Provisioning, "created")]),
        update(pipe(Setup), vec![event(2, Provisioning, Setup, "source and destination are checked")]),
        update(copying, vec![event(3, Setup, Snapshot, "destination tables are made")]),
        update(pipe(Running), vec![event(4, Snapshot, Running, "all tables are copied")]),
    ]
}

/// What is printed, kept.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no test panicked with it").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Paper {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no test panicked with it")).into_owned()
    }
}

const PIPE_YAML: &str = "\
name: shop
source: {postgres: {host: 127.0.0.1, database: shop, username: millrace}}
destination: {clickhouse: {url: 'http://127.0.0.1:8123', database: shop}}
tables: [{source: public.orders, target: orders}]
";

/// Runs a command against the coordinator; gives what is printed, what is complained, the failure and the exit code in one text.
async fn run(coordinator: &Coordinator, arguments: &[&str]) -> String {
    run_at(Some(coordinator), arguments).await
}

async fn run_at(coordinator: Option<&Coordinator>, arguments: &[&str]) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let server = coordinator.map(|coordinator| {
        let server = tonic::transport::Server::builder()
            .add_service(PipeServiceServer::new(coordinator.clone()))
            .add_service(FleetServiceServer::new(coordinator.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server)
    });
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("pipe.yaml");
    std::fs::write(&file, PIPE_YAML).expect("a file");
    let file = file.display().to_string();
    let arguments = arguments.iter().map(|argument| if *argument == "FILE" { &file } else { *argument });
    let line = ["millrace", "--address", &address].into_iter().chain(arguments);
    let line = CommandLine::try_parse_from(line).expect("a command line");
    let (out, err) = (Paper::default(), Paper::default());
    let mut console = Console::new(Box::new(out.clone()), Box::new(err.clone()), TimeZone::UTC);
    let result = execute(line.command, &line.globals, Ok, &mut console).await;
    let (failure, code) = match result {
        Ok(()) => (String::new(), 0),
        Err(failure) => (format!("{failure}\n"), failure.exit_code()),
    };
    if let Some(server) = server {
        server.abort();
    }
    let err = err.text();
    let complaint = if err.is_empty() { String::new() } else { format!("(stderr)\n{err}") };
    format!("{}{complaint}{failure}(exit {code})", out.text()).replace(&address, "<address>")
}

fn coordinator(pipe: wire::Pipe) -> Coordinator {
    let coordinator = Coordinator::default();
    coordinator.script().pipe = pipe;
    coordinator
}

#[tokio::test]
async fn reads_are_tables_for_people() {
    let coordinator = coordinator(pipe(wire::PipeState::Running));
    coordinator.script().updates = life().into_iter().map(Ok).collect();
    let mut told = String::new();
    for command in
        ["pipe list", "pipe get shop", "pipe tables shop", "pipe events shop", "source tables -f FILE"]
    {
        let arguments: Vec<&str> = command.split(' ').collect();
        told.push_str(&format!("$ {command}\n{}\n\n", run(&coordinator, &arguments).await));
    }
    insta::assert_snapshot!(told);
}

#[tokio::test]
async fn a_failed_pipe_shows_why_and_what_to_do() {
    insta::assert_snapshot!(run(&coordinator(failed()), &["pipe", "get", "shop"]).await);
}

#[tokio::test]
async fn reads_are_proto_json_or_yaml_for_programs() {
    let coordinator = coordinator(pipe(wire::PipeState::Running));
    let json = run(&coordinator, &["pipe", "list", "-o", "json"]).await;
    assert!(json.contains("\"state\": \"PIPE_STATE_RUNNING\""), "{json}");
    assert!(json.contains("\"rowsCopied\": \"1234567\""), "{json}");
    assert!(json.contains("a much longer name"), "all pages are one answer: {json}");
    let yaml = run(&coordinator, &["-o", "yaml", "pipe", "get", "shop"]).await;
    assert!(yaml.contains("    state: PIPE_STATE_RUNNING\n"), "{yaml}");
}

#[tokio::test]
async fn workers_are_listed_with_what_they_carry() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = FleetServiceServer::new(Coordinator::default());
    let server = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    let server = tokio::spawn(server);
    let globals = Globals { address, output: millrace_cli::Output::Table };
    let out = Paper::default();
    let mut console = Console::new(Box::new(out.clone()), Box::new(Paper::default()), TimeZone::UTC);
    execute(ClientCommand::Worker(WorkerCommand::List), &globals, Ok, &mut console).await.unwrap();
    server.abort();
    insta::assert_snapshot!(out.text());
}

#[tokio::test]
async fn a_pipe_is_checked_and_all_problems_are_told() {
    let coordinator = coordinator(pipe(wire::PipeState::Provisioning));
    let mut told = run(&coordinator, &["pipe", "validate", "-f", "FILE"]).await;
    let warning = Problem::warning("SLOT_MAY_GROW", "max_slot_wal_keep_size is 1 GB", "raise it to 4 GB");
    coordinator.script().problems = vec![problem(), warning];
    told.push_str("\n\n");
    told.push_str(&run(&coordinator, &["pipe", "validate", "-f", "FILE"]).await);
    insta::assert_snapshot!(told);
}

#[tokio::test]
async fn apply_tells_what_it_did() {
    let coordinator = coordinator(pipe(wire::PipeState::Provisioning));
    let mut told = String::new();
    let mut apply = async |arguments: &[&str]| {
        told.push_str(&run(&coordinator, arguments).await);
        told.push_str("\n\n");
    };
    coordinator.script().problems =
        vec![problem(), Problem::operator("WAL_LEVEL", "wal_level is replica", "")];
    apply(&["pipe", "apply", "-f", "FILE"]).await;
    coordinator.script().problems =
        vec![Problem::warning("SLOT_MAY_GROW", "max_slot_wal_keep_size is 1 GB", "raise it to 4 GB")];
    apply(&["pipe", "apply", "-f", "FILE"]).await;
    apply(&["pipe", "apply", "-f", "FILE"]).await;
    coordinator.script().created = None;
    coordinator.script().problems.clear();
    apply(&["pipe", "apply", "-f", "FILE", "--dry-run"]).await;
    let asked = coordinator.script().created.clone().unwrap();
    assert!(asked.validate_only);
    insta::assert_snapshot!(told);
}

#[tokio::test]
async fn a_pipe_that_stands_is_edited_and_the_differences_are_told() {
    let coordinator = coordinator(pipe(wire::PipeState::Running));
    let mut told = String::new();
    let mut apply = async |flags: &[&str]| {
        let line: Vec<&str> = ["pipe", "apply", "-f", "FILE"].iter().chain(flags).copied().collect();
        told.push_str(&format!("$ apply {}\n{}\n\n", flags.join(" "), run(&coordinator, &line).await));
        coordinator.script().updated.take()
    };
    coordinator.script().differs = true;
    coordinator.script().differences =
        vec!["adds public.lines", "removes public.notes", "changes syncInterval"];
    let asked = apply(&["--dry-run"]).await.unwrap();
    assert!(asked.validate_only && !asked.allow_resync);
    let asked = apply(&[]).await.unwrap();
    assert!(!asked.validate_only && !asked.allow_resync);
    assert_eq!(asked.spec.unwrap().name, "shop");
    assert!(asked.update_mask.is_none() && asked.etag.is_empty(), "the file says all of it");
    coordinator.script().differences.clear();
    apply(&["--dry-run"]).await;
    apply(&[]).await;
    coordinator.script().unfit = Some((
        "change settings",
        "sortingKeys of public.orders needs a resync",
        "apply it with --resync: the tables are copied anew while readers keep what they have",
    ));
    coordinator.script().differences = vec!["adds public.lines", "resyncs for sortingKeys of public.orders"];
    assert!(apply(&["--dry-run"]).await.unwrap().validate_only, "what would change is told all the same");
    assert!(apply(&[]).await.is_none());
    coordinator.script().problems =
        vec![Problem::warning("SLOT_MAY_GROW", "the slot may grow", "mind the disk")];
    assert!(apply(&["--resync"]).await.unwrap().allow_resync);
    insta::assert_snapshot!(told);
    let json = run(&coordinator, &["pipe", "apply", "-f", "FILE", "--resync", "-o", "json"]).await;
    assert!(
        json.contains(
            "\"differences\": [\n    \"adds public.lines\",\n    \"resyncs for sortingKeys of public.orders\""
        ),
        "{json}"
    );
}

#[tokio::test]
async fn a_resync_says_what_is_copied_anew() {
    let coordinator = coordinator(pipe(wire::PipeState::Running));
    let mut told = String::new();
    let mut resync = async |arguments: &[&str]| {
        let line: Vec<&str> = ["pipe", "resync"].iter().chain(arguments).copied().collect();
        told.push_str(&format!("$ {}\n{}\n\n", line.join(" "), run(&coordinator, &line).await));
        coordinator.script().resynced.take()
    };
    let asked = resync(&["shop"]).await.unwrap();
    assert!(asked.tables.is_empty());
    assert_eq!(asked.settings, Some(wire::SnapshotSettings::default()), "nothing is given, so all stays");
    let tables = ["shop", "--table", "public.Orders", "--table", "\"Odd\".\"a.b\""];
    let asked = resync(&tables).await.unwrap();
    assert_eq!(asked.tables, ["public.orders", "\"Odd\".\"a.b\""]);
    let numbers = [
        "shop",
        "--table",
        "public.orders",
        "--rows-per-partition",
        "5000",
        "--parallel-tables",
        "2",
        "--parallelism",
        "0",
        "--max-source-connections",
        "4",
    ];
    let settings = wire::SnapshotSettings {
        initial_load_parallelism: Some(0),
        max_source_connections: Some(4),
        snapshot_num_rows_per_partition: Some(5000),
        snapshot_number_of_parallel_tables: Some(2),
    };
    assert_eq!(resync(&numbers).await.unwrap().settings, Some(settings));
    resync(&["shp"]).await;
    coordinator.script().unfit =
        Some(("resync", "replicationMode cdc_only copies nothing", "make a pipe with replicationMode: cdc"));
    resync(&["shop"]).await;
    insta::assert_snapshot!(told);
}

#[tokio::test]
async fn a_table_that_was_set_aside_is_retried() {
    let coordinator = coordinator(pipe(wire::PipeState::Running));
    let mut told = String::new();
    let mut retry = async |table: &str| {
        let line = ["pipe", "retry", "shop", "--table", table];
        told.push_str(&format!("$ retry {table}\n{}\n\n", run(&coordinator, &line).await));
        coordinator.script().retried.take()
    };
    assert_eq!(retry("public.notes").await.unwrap().table, "public.notes");
    coordinator.script().unfit = Some((
        "retry",
        "public.orders is streaming",
        "only a table that is set aside can be retried; resync copies any table anew",
    ));
    assert!(retry("public.orders").await.is_none());
    insta::assert_snapshot!(told);
}

#[tokio::test]
async fn a_comparison_names_what_differs_and_fails_then() {
    let equal = wire::Verification {
        requested_at: at(100),
        finished_at: at(103),
        source_rows: 1_200_000,
        destination_rows: 1_200_000,
        ..Default::default()
    };
    let mut told = String::new();
    let coordinator = coordinator(busy());
    let mut verify = async |found: Vec<wire::Verification>, more: &[&str]| {
        coordinator.script().verifications = found;
        let line = [&["pipe", "verify", "shop"], more].concat();
        told.push_str(&format!("$ {}\n{}\n\n", line.join(" "), run(&coordinator, &line).await));
    };
    let busy = wire::Verification { unsettled: 3, ..equal.clone() };
    verify(vec![equal.clone(), busy, equal.clone()], &[]).await;
    let row = |kind: wire::RowDifferenceKind, key: &str, columns: &[&str]| wire::RowDifference {
        kind: kind.into(),
        key: key.to_owned(),
        columns: columns.iter().map(|name| (*name).to_owned()).collect(),
    };
    let samples = vec![
        row(wire::RowDifferenceKind::Altered, "(7, \"a\")", &["note", "total"]),
        row(wire::RowDifferenceKind::Missing, "8", &[]),
        row(wire::RowDifferenceKind::Extra, "9", &[]),
    ];
    let differs = wire::Verification { differences: 3, samples, ..equal.clone() };
    let unfit = wire::Verification { problem: Some((&problem()).into()), ..equal.clone() };
    verify(vec![differs, unfit, equal], &[]).await;
    verify(Vec::new(), &["--no-wait"]).await;
    coordinator.script().unfit = Some(("verify", "no table streams", "wait until one does"));
    told.push_str(&run(&coordinator, &["pipe", "verify", "shop"]).await);
    insta::assert_snapshot!(told);
}

#[tokio::test]
async fn a_table_that_is_copied_anew_or_held_shows_it() {
    let coordinator = coordinator(busy());
    let json = run(&coordinator, &["pipe", "tables", "shop", "-o", "json"]).await;
    assert!(json.contains("\"successor\": {") && json.contains("DESTINATION_READ_ONLY"), "{json}");
    let mut told = String::new();
    for command in ["pipe tables shop", "pipe get shop"] {
        let arguments: Vec<&str> = command.split(' ').collect();
        told.push_str(&format!("$ {command}\n{}\n\n", run(&coordinator, &arguments).await));
    }
    let mut written = busy();
    written.tables[1].held = None;
    coordinator.script().updates = vec![Ok(update(busy(), Vec::new())), Ok(update(written, Vec::new()))];
    told.push_str(&format!("$ pipe watch shop\n{}", run(&coordinator, &["pipe", "watch", "shop"]).await));
    insta::assert_snapshot!(told);
}

#[tokio::test]
async fn top_without_a_terminal_is_one_table() {
    let coordinator = coordinator(busy());
    insta::assert_snapshot!(run(&coordinator, &["top"]).await);
    let yaml = run(&coordinator, &["top", "--once", "-o", "yaml"]).await;
    assert!(yaml.contains("lagBytes: '4096'") || yaml.contains("lagBytes: \"4096\""), "{yaml}");
    let nobody = run_at(None, &["top"]).await;
    assert!(
        nobody.starts_with("error: the pipes could not be listed") && nobody.ends_with("(exit 1)"),
        "{nobody}"
    );
}

#[tokio::test]
async fn commands_tell_the_state_they_led_to_or_why_they_are_illegal() {
    let coordinator = coordinator(pipe(wire::PipeState::Running));
    let mut told = String::new();
    for command in ["pipe pause shop", "pipe resume shop", "pipe pause shp"] {
        let arguments: Vec<&str> = command.split(' ').collect();
        told.push_str(&format!("$ {command}\n{}\n\n", run(&coordinator, &arguments).await));
    }
    insta::assert_snapshot!(told);
}

#[tokio::test]
async fn nobody_at_the_address_is_told_with_the_address() {
    insta::assert_snapshot!(run_at(None, &["pipe", "list"]).await);
}

#[tokio::test]
async fn a_wrong_file_is_told_before_anything_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pipe.yaml");
    std::fs::write(&file, "name: shop\ntabels: []\nsource: {postgres: {host: h, prt: 1}}\n").unwrap();
    let file = file.display().to_string();
    let told = run_at(None, &["pipe", "apply", "-f", &file]).await;
    let absent = run_at(None, &["pipe", "apply", "-f", "/absent/pipe.yaml"]).await;
    insta::assert_snapshot!(format!("{told}\n\n{absent}").replace(&file, "pipe.yaml"));
}

#[tokio::test]
async fn a_watch_shows_every_state_in_order() {
    let coordinator = coordinator(pipe(wire::PipeState::Provisioning));
    coordinator.script().updates = life().into_iter().map(Ok).collect();
    insta::assert_snapshot!(run(&coordinator, &["pipe", "watch", "shop", "--until", "running"]).await);
}

#[tokio::test]
async fn a_watch_goes_on_behind_the_last_event_when_the_coordinator_was_away() {
    let coordinator = coordinator(pipe(wire::PipeState::Provisioning));
    let mut life = life();
    {
        let mut script = coordinator.script();
        // The event that came before the break is told again after it.
        let again = life[1].events.clone();
        script.later_updates = life.split_off(2);
        script.later_updates[0].events.splice(0..0, again);
        script.updates = life.into_iter().map(Ok).collect();
        script.updates.push(Err(Status::unavailable("the coordinator is stopping")));
        script.open = true;
    }
    let told = run(&coordinator, &["pipe", "watch", "shop", "--until", "Running"]).await;
    assert_eq!(told.matches("Provisioning -> Setup").count(), 1, "{told}");
    assert_eq!(told.matches("Snapshot -> Running").count(), 1, "{told}");
    assert_eq!(coordinator.script().watches, [0, 2]);
}

#[tokio::test]
async fn a_watch_of_a_failing_pipe_ends_with_the_reason() {
    let coordinator = coordinator(failed());
    coordinator.script().updates = vec![Ok(update(failed(), Vec::new()))];
    insta::assert_snapshot!(run(&coordinator, &["pipe", "watch", "shop"]).await);
}

#[tokio::test]
async fn a_watch_for_programs_is_one_line_an_update() {
    let coordinator = coordinator(pipe(wire::PipeState::Provisioning));
    coordinator.script().updates = life().into_iter().map(Ok).collect();
    let told = run(&coordinator, &["pipe", "watch", "shop", "--until", "Running", "-o", "json"]).await;
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 5, "{told}");
    assert!(lines[..4].iter().all(|line| line.starts_with("{\"pipe\":{") && line.ends_with('}')), "{told}");
}

#[tokio::test]
async fn waiting_ends_when_the_state_is_reached_or_cannot_be() {
    let mut told = String::new();
    let mut wait = async |updates: Vec<wire::WatchPipeResponse>, arguments: &[&str]| {
        let coordinator = coordinator(pipe(wire::PipeState::Provisioning));
        {
            let mut script = coordinator.script();
            script.updates = updates.into_iter().map(Ok).collect();
            script.open = true;
        }
        let line = ["pipe", "wait", "shop"].iter().chain(arguments).copied().collect::<Vec<_>>();
        told.push_str(&format!("$ {}\n{}\n\n", arguments.join(" "), run(&coordinator, &line).await));
    };
    wait(life(), &["--state", "Running"]).await;
    wait(life(), &["--state", "Setup"]).await;
    wait(vec![update(failed(), Vec::new())], &["--state", "Running"]).await;
    let copying = life().swap_remove(2);
    wait(vec![copying], &["--state", "Running", "--timeout", "500ms"]).await;
    insta::assert_snapshot!(told);
}

#[tokio::test]
async fn deleting_waits_until_the_pipe_is_gone_and_tells_what_stayed() {
    let coordinator = coordinator(pipe(wire::PipeState::Running));
    let left = Problem::operator(
        "LEFT_BEHIND",
        "slot millrace_00000000000a could not be dropped: connection refused",
        "SELECT pg_drop_replication_slot('millrace_00000000000a')",
    );
    let left =
        wire::Event { problem: Some((&left).into()), ..event(2, Default::default(), Default::default(), "") };
    coordinator.script().deletion = Some(Arc::default());
    coordinator.script().updates = vec![
        Ok(update(
            pipe(wire::PipeState::Running),
            vec![event(1, Default::default(), Default::default(), "")],
        )),
        Ok(update(pipe(wire::PipeState::Running), vec![left])),
    ];
    insta::assert_snapshot!(run(&coordinator, &["pipe", "delete", "shop"]).await);
    assert!(!coordinator.script().deletion_asked.clone().unwrap().drop_tables);
}

#[tokio::test]
async fn deleting_with_the_tables_says_so() {
    let coordinator = coordinator(pipe(wire::PipeState::Running));
    coordinator.script().deletion = Some(Arc::default());
    coordinator.script().updates = vec![Ok(update(pipe(wire::PipeState::Running), Vec::new()))];
    let told = run(&coordinator, &["pipe", "delete", "shop", "--drop-tables"]).await;
    assert_eq!(told, "pipe shop and its destination tables deleted\n(exit 0)");
    assert!(coordinator.script().deletion_asked.clone().unwrap().drop_tables);
    let absent = run(&coordinator, &["pipe", "delete", "shop", "--drop-tables"]).await;
    assert!(absent.contains("there is no pipe 'shop'") && absent.ends_with("(exit 1)"), "{absent}");
}

#[test]
fn wrong_usage_is_told_by_the_command_line() {
    use clap::CommandFactory as _;
    CommandLine::command().debug_assert();
    let parse = |line: &str| {
        CommandLine::try_parse_from(line.split(' ')).map(|_| ()).map_err(|error| error.exit_code())
    };
    assert_eq!(parse("millrace pipe wait shop --state Running --timeout 5m"), Ok(()));
    assert_eq!(parse("millrace pipe wait shop --state Flying"), Err(2));
    assert_eq!(parse("millrace pipe wait shop --state Running --timeout 5"), Err(2));
    assert_eq!(parse("millrace pipe apply"), Err(2));
    assert_eq!(parse("millrace pipe apply -f a --dry-run --resync"), Ok(()));
    assert_eq!(parse("millrace pipe resync"), Err(2));
    assert_eq!(parse("millrace pipe resync shop --table orders"), Err(2), "a table has a schema");
    assert_eq!(parse("millrace pipe resync shop --rows-per-partition 999"), Err(2));
    assert_eq!(parse("millrace pipe resync shop --rows-per-partition 1000 --parallelism 0"), Ok(()));
    assert_eq!(parse("millrace pipe resync shop --parallel-tables 0"), Err(2));
    assert_eq!(parse("millrace pipe resync shop --parallelism many"), Err(2));
    assert_eq!(parse("millrace pipe resync shop --max-source-connections 0"), Err(2));
    assert_eq!(parse("millrace pipe retry shop"), Err(2), "one table at a time");
    assert_eq!(parse("millrace pipe retry shop --table public.a --table public.b"), Err(2));
    assert_eq!(parse("millrace pipe delete shop --drop-tables"), Ok(()));
    assert_eq!(parse("millrace pipe delete shop --drop-table"), Err(2));
    assert_eq!(parse("millrace top --once"), Ok(()));
    assert_eq!(parse("millrace top shop"), Err(2));
    assert_eq!(parse("millrace worker list"), Err(2), "the binary mounts it");
}
