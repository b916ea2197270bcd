//! The servers and processes of one test.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use millrace_devstack::equality::{Differences, Tables, compare};
use millrace_devstack::{ClickHouse, ClickHouseOptions, Launcher, Postgres, PostgresOptions};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_postgres::{Client, NoTls};

/// Longest wait for any state; a test that needs longer is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The product's binary.
pub(crate) fn millrace() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_millrace"))
}

/// A PostgreSQL, a ClickHouse, and whatever processes of ours the test starts.
pub(crate) struct Stack {
    pub(crate) postgres: Postgres,
    pub(crate) clickhouse: ClickHouse,
    pub(crate) fleet: Fleet,
    pub(crate) folder: tempfile::TempDir,
}

/// A coordinator and workers.
#[derive(Default)]
pub(crate) struct Fleet {
    pub(crate) coordinator: Option<Process>,
    pub(crate) workers: Vec<Process>,
    address: String,
}

/// A process of ours; it is killed with its handle.
pub(crate) struct Process {
    child: Child,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Process {
    async fn start(arguments: Vec<String>, log: PathBuf, ready: bool) -> Self {
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut child = Command::new(millrace())
            .args(&arguments)
            .env("MILLRACE_LOG", "info,millrace_worker=debug")
            .env("RUST_BACKTRACE", "1")
            .env("OTEL_METRIC_EXPORT_INTERVAL", "500")
            .stdin(Stdio::null())
            .stdout(if ready { Stdio::piped() } else { Stdio::null() })
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        if ready {
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let line = lines.next_line().await.unwrap();
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(line.is_some_and(|line| line.starts_with("ready ")), "it did not start:\n{}", said());
        }
        Self { child, arguments, log }
    }

    pub(crate) fn id(&self) -> String {
        self.child.id().unwrap().to_string()
    }

    /// kill -9
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Starts it again as it was.
    pub(crate) async fn start_again(&mut self) {
        let ready = self.arguments[0] == "coordinator";
        *self = Self::start(self.arguments.clone(), self.log.clone(), ready).await;
    }

    /// SIGTERM; gives whether it left with success.
    pub(crate) async fn leave(&mut self) -> bool {
        signal("-TERM", &self.id()).await;
        self.child.wait().await.unwrap().success()
    }
}

/// Sends a signal to a process of this test.
pub(crate) async fn signal(signal: &str, process: &str) {
    assert!(Command::new("kill").args([signal, process]).status().await.unwrap().success());
}

/// A port that nobody uses at this moment.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Stack {
    /// Servers only.
    pub(crate) async fn servers() -> Self {
        Self::servers_with_postgres(17).await
    }

    /// Servers, PostgreSQL in a major version of one's choice.
    pub(crate) async fn servers_with_postgres(major: u16) -> Self {
        let folder = millrace_devstack::temporary_dir().unwrap();
        let launcher = || Launcher::new(millrace(), ["devstack"]);
        // Not to be mistaken for a name, where a test looks whether it is shown.
        let postgres = PostgresOptions {
            password: "kept-to-itself".to_owned(),
            ..PostgresOptions::new(major, folder.path().join("postgres"))
        };
        let clickhouse = ClickHouseOptions::new(folder.path().join("clickhouse"));
        let (postgres, clickhouse) =
            tokio::join!(Postgres::start(launcher(), postgres), ClickHouse::start(launcher(), clickhouse));
        let fleet = Fleet { address: format!("127.0.0.1:{}", free_port()), ..Fleet::default() };
        Self { postgres: postgres.unwrap(), clickhouse: clickhouse.unwrap(), fleet, folder }
    }

    /// Servers, a coordinator and two workers.
    pub(crate) async fn start() -> Self {
        let mut stack = Self::servers().await;
        stack.start_coordinator(&[]).await;
        stack.start_worker("one").await;
        stack.start_worker("two").await;
        stack
    }

    pub(crate) async fn start_coordinator(&mut self, more: &[&str]) {
        let data = self.folder.path().join("coordinator").display().to_string();
        let mut arguments = vec!["coordinator", "--listen", &self.fleet.address, "--data-dir", &data];
        arguments.extend(more);
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let log = self.folder.path().join("coordinator.log");
        self.fleet.coordinator = Some(Process::start(arguments, log, true).await);
    }

    /// Starts a process that says when it is ready, with a log of that name.
    pub(crate) async fn start_process(&self, name: &str, arguments: &[&str]) -> Process {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Process::start(arguments, self.folder.path().join(format!("{name}.log")), true).await
    }

    pub(crate) async fn start_worker(&mut self, id: &str) {
        self.start_worker_with(id, &[]).await;
    }

    pub(crate) async fn start_worker_with(&mut self, id: &str, more: &[&str]) {
        let coordinator = self.address();
        let mut arguments = vec!["worker", "--id", id];
        if !more.contains(&"--coordinator") {
            arguments.extend(["--coordinator", &coordinator]);
        }
        arguments.extend(more);
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let log = self.folder.path().join(format!("worker-{id}.log"));
        self.fleet.workers.push(Process::start(arguments, log, false).await);
        self.wait("the worker to connect", async || {
            let workers = self.json(&["worker", "list"]).await;
            workers["workers"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|worker| worker["id"] == id && worker["state"] == "WORKER_STATE_CONNECTED")
        })
        .await;
    }

    /// Waits until a worker that was away is connected again.
    pub(crate) async fn worker_is_back(&self, id: &str) {
        self.wait("the worker to be there again", async || {
            let workers = self.json(&["worker", "list"]).await;
            let connected =
                |worker: &Value| worker["id"] == id && worker["state"] == "WORKER_STATE_CONNECTED";
            workers["workers"].as_array().is_some_and(|workers| workers.iter().any(connected))
        })
        .await;
    }

    pub(crate) fn coordinator(&mut self) -> &mut Process {
        self.fleet.coordinator.as_mut().unwrap()
    }

    pub(crate) fn address(&self) -> String {
        format!("http://{}", self.fleet.address)
    }

    /// A connection to the source as its superuser.
    pub(crate) async fn source(&self) -> Client {
        self.source_as(self.postgres.user(), self.postgres.password(), "postgres").await
    }

    pub(crate) async fn source_as(&self, user: &str, password: &str, database: &str) -> Client {
        let (client, connection) = tokio_postgres::Config::new()
            .host(self.postgres.host())
            .port(self.postgres.port())
            .user(user)
            .password(password)
            .dbname(database)
            .connect(NoTls)
            .await
            .unwrap();
        // Ends with its client.
        tokio::spawn(connection);
        client
    }

    /// A client of the destination.
    pub(crate) fn destination(&self) -> clickhouse::Client {
        clickhouse::Client::default().with_url(self.clickhouse.url())
    }

    /// Writes a pipe.yaml of the servers here; `tables` and `rest` are YAML.
    pub(crate) fn write_pipe(&self, name: &str, tables: &str, rest: &str) -> PathBuf {
        self.write_pipe_to("", name, tables, rest)
    }

    /// As [`Stack::write_pipe`], with more to say of the destination: `, key: value`.
    pub(crate) fn write_pipe_to(&self, more: &str, name: &str, tables: &str, rest: &str) -> PathBuf {
        let text = format!(
            "name: {name}\n{rest}\nsource:\n  postgres: {{host: {}, port: {}, database: postgres, username: {}, password: {}}}\n\
             destination:\n  clickhouse: {{url: \"{}\", database: mirror{more}}}\ntables:\n{tables}\n",
            self.postgres.host(),
            self.postgres.port(),
            self.postgres.user(),
            self.postgres.password(),
            self.clickhouse.url(),
        );
        self.write(&format!("{name}.yaml"), &text)
    }

    /// A pipe of tables in `public`, each to a target of its name.
    pub(crate) fn write_pipe_of(&self, name: &str, tables: &[&str], rest: &str) -> PathBuf {
        let entries: Vec<String> =
            tables.iter().map(|table| format!("  - {{source: public.{table}, target: {table}}}")).collect();
        self.write_pipe(name, &entries.join("\n"), rest)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs a command of the product.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        Command::new(millrace())
            .args(arguments)
            .env("MILLRACE_ADDRESS", self.address())
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap()
    }

    /// Runs a command that must succeed; gives what it printed.
    pub(crate) async fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "millrace {} failed:\n{said}\n{}", arguments.join(" "), self.logs());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail with 1; gives what it said.
    pub(crate) async fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    /// A read command's JSON; null while it fails.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["-o", "json"]].concat()).await;
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    pub(crate) async fn apply(&self, path: &Path) {
        self.ok(&["pipe", "apply", "-f", path.to_str().unwrap()]).await;
    }

    pub(crate) async fn get(&self, pipe: &str) -> Value {
        self.json(&["pipe", "get", pipe]).await["pipe"].clone()
    }

    pub(crate) async fn wait_for(&self, pipe: &str, state: &str) {
        self.ok(&["pipe", "wait", pipe, "--state", state, "--timeout", "60s"]).await;
    }

    /// Waits until something is so.
    pub(crate) async fn wait(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let began = Instant::now();
        while !is_so().await {
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the pipe has carried everything that the source has committed by now.
    pub(crate) async fn caught_up(&self, pipe: &str) {
        let source = self.source().await;
        let row = source.query_one("SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::text", &[]).await.unwrap();
        let goal: u64 = row.get::<_, String>(0).parse().unwrap();
        // An idle log may end before the goal; this gives it something to end with.
        source.execute("SELECT pg_logical_emit_message(true, 'test', 'end')", &[]).await.unwrap();
        self.wait("the stream to catch up", async || {
            let shown = self.get(pipe).await;
            let durable = shown["status"]["stream"]["durableLsn"].as_str().unwrap_or("0/0").to_owned();
            let (high, low) = durable.split_once('/').unwrap();
            let parse = |half: &str| u64::from_str_radix(half, 16).unwrap();
            parse(high) << 32 | parse(low) >= goal
        })
        .await;
    }

    /// Waits until the worker that streams has told the source how far it is, from now on.
    pub(crate) async fn worker_speaks(&self, source: &Client) {
        let since: String = source.query_one("SELECT clock_timestamp()::text", &[]).await.unwrap().get(0);
        let spoke = format!("SELECT 1 FROM pg_stat_replication WHERE reply_time > '{since}'::timestamptz");
        self.wait("the worker to speak", async || !source.query(&spoke, &[]).await.unwrap().is_empty()).await;
    }

    pub(crate) async fn compare(&self, table: &str, key: &[&str], excluded: &[&str]) -> Differences {
        self.compare_with("public", table, table, key, excluded).await
    }

    async fn compare_with(
        &self,
        schema: &str,
        table: &str,
        target: &str,
        key: &[&str],
        excluded: &[&str],
    ) -> Differences {
        let (database, metadata) = ("mirror", "_millrace");
        let tables = Tables { schema, table, database, target, key, excluded, metadata };
        compare(&self.source().await, &self.destination(), tables).await.unwrap()
    }

    /// A table of any schema and its target hold the same rows.
    pub(crate) async fn assert_same(&self, schema: &str, table: &str, target: &str, key: &[&str]) {
        let differences = self.compare_with(schema, table, target, key, &[]).await;
        assert!(differences.is_empty(), "{target}: {differences}\n{}", self.logs());
    }

    /// Both sides hold the same rows.
    pub(crate) async fn assert_equal(&self, table: &str, key: &[&str]) {
        self.assert_equal_without(table, key, &[]).await;
    }

    /// Both sides hold the same rows, some columns apart.
    pub(crate) async fn assert_equal_without(&self, table: &str, key: &[&str], excluded: &[&str]) {
        let differences = self.compare(table, key, excluded).await;
        assert!(differences.is_empty(), "{table}: {differences}\n{}", self.logs());
    }

    /// The pipe's states in order, as its events tell them.
    pub(crate) async fn states(&self, pipe: &str) -> Vec<String> {
        let events = self.json(&["pipe", "events", pipe]).await;
        let events = events["events"].as_array().cloned().unwrap_or_default();
        let states = events.iter().filter(|event| event["kind"] == "state");
        states
            .map(|event| event["toState"].as_str().unwrap().trim_start_matches("PIPE_STATE_").to_owned())
            .collect()
    }

    /// What our processes said, for the message of a failing test.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(self.folder.path()).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let log = std::fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(25)..].join("\n");
                text.push_str(&format!("--- {}\n{tail}\n", path.file_name().unwrap().to_string_lossy()));
            }
        }
        text
    }
}
