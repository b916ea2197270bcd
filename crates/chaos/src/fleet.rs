//! The servers and processes that are struck.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use millrace_devstack::proxy::Proxy;
use millrace_devstack::{ClickHouse, ClickHouseOptions, Launcher, Postgres, PostgresOptions};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio_postgres::{Client, NoTls};

use crate::clock;
use crate::disk::Disk;
use crate::hosts::Hosts;
use crate::memory;
use crate::schedule::{COORDINATORS, Fault, WORKERS};

/// The file that tells PostgreSQL what time it is. (ClickHouse asks the kernel, past libfaketime.)
const SOURCE_CLOCK: &str = "postgres.clock";
/// How long it may take to see that it is right again, and how often that is looked at.
const CLOCK_PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(100);

/// The one pipe.
pub(crate) const PIPE: &str = "chaos";

/// The workers' ids.
pub(crate) const WORKER_IDS: [&str; WORKERS] = ["worker-0", "worker-1", "worker-2"];

/// Everything that a run consists of.
pub(crate) struct Fleet {
    pub(crate) postgres: Postgres,
    pub(crate) clickhouse: ClickHouse,
    pub(crate) source_proxy: Proxy,
    pub(crate) destination_proxy: Proxy,
    /// Between each coordinator and all who were told where it is: workers, and the other coordinator.
    pub(crate) coordinator_proxies: Vec<Proxy>,
    pub(crate) coordinators: Vec<Process>,
    pub(crate) workers: Vec<Process>,
    addresses: Vec<String>,
    program: PathBuf,
    folder: PathBuf,
    hosts: Option<Hosts>,
    /// The source's, where it is one of its own.
    disk: Option<Disk>,
    /// Whether processes can be given another time.
    clocks: bool,
}

/// Somebody with the command line and the coordinators' addresses.
pub(crate) struct User {
    program: PathBuf,
    addresses: Vec<String>,
}

impl User {
    /// Runs a command of the product with the coordinators in turn, until one answers within the patience.
    pub(crate) async fn command(&self, arguments: &[&str], patience: Duration) -> anyhow::Result<Value> {
        let began = Instant::now();
        loop {
            let mut said = String::new();
            for address in &self.addresses {
                let mut command = Command::new(&self.program);
                command.args(arguments).args(["-o", "json"]).env("MILLRACE_ADDRESS", address);
                command.stdin(Stdio::null()).kill_on_drop(true);
                match tokio::time::timeout(Duration::from_secs(15), command.output()).await {
                    Ok(output) => {
                        let output = output?;
                        if output.status.success() {
                            return Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null));
                        }
                        said = String::from_utf8_lossy(&output.stderr).into_owned();
                        if let Ok(answer) = serde_json::from_slice::<Value>(&output.stdout)
                            && !answer.is_null()
                        {
                            bail!("millrace {} found: {answer:#}\n{said}", arguments.join(" "));
                        }
                    }
                    Err(_) => "no answer within 15 s".clone_into(&mut said),
                }
            }
            if began.elapsed() > patience {
                bail!("millrace {} failed for {} s: {said}", arguments.join(" "), patience.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// One of our processes; it is killed with its handle.
pub(crate) struct Process {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    /// The library that gives it another time, where there is one.
    clock: Option<PathBuf>,
    /// The network namespace that it runs in.
    host: Option<String>,
}

impl Process {
    fn new(program: &Path, arguments: Vec<String>, log: PathBuf) -> Self {
        Self { program: program.to_owned(), arguments, log, child: None, clock: clock::library(), host: None }
    }

    /// Moves its wall clock so many hours away from the time that it is.
    pub(crate) fn set_clock(&self, hours: i64) -> anyhow::Result<()> {
        clock::set(&self.clock_file(), hours)
    }

    fn clock_file(&self) -> PathBuf {
        self.log.with_extension("clock")
    }

    /// Starts it, after what there was of it before is gone.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        self.kill().await?;
        let log = std::fs::File::options().create(true).append(true).open(&self.log)?;
        let mut command = match &self.host {
            Some(host) => {
                let mut command = Command::new("ip");
                // It becomes the program, and keeps its process id.
                command.args(["netns", "exec", host]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        if let Some(library) = &self.clock {
            if !self.clock_file().exists() {
                self.set_clock(0)?;
            }
            command.envs(clock::environment(library, &self.clock_file()));
        }
        let child = command
            .args(&self.arguments)
            .env("MILLRACE_LOG", "info,millrace_worker=debug,millrace_coordinator=debug")
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        self.child = Some(child.with_context(|| format!("cannot start {}", self.program.display()))?);
        Ok(())
    }

    /// `kill -9`
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Asks it to leave, and waits until it has.
    pub(crate) async fn leave(&mut self) -> anyhow::Result<()> {
        self.signal("-TERM").await?;
        if let Some(mut child) = self.child.take() {
            child.wait().await?;
        }
        Ok(())
    }

    /// Sends a signal; one that is gone gets none.
    pub(crate) async fn signal(&self, signal: &str) -> anyhow::Result<()> {
        if let Some(id) = self.child.as_ref().and_then(Child::id) {
            Command::new("kill").args([signal, &id.to_string()]).status().await?;
        }
        Ok(())
    }
}

impl Fleet {
    /// Starts servers and processes; logs go into the folder.
    pub(crate) async fn start(program: &Path, folder: &Path, hosts: bool) -> anyhow::Result<Self> {
        let hosts = if hosts { Some(Hosts::make(WORKERS).await?) } else { None };
        let here = hosts.as_ref().map_or(Ipv4Addr::LOCALHOST.into(), Hosts::here);
        let disk = if hosts.is_some() { Some(Disk::make(folder.join("postgres")).await?) } else { None };
        let launcher = || Launcher::new(program, ["devstack"]);
        let mut of_source = launcher();
        if let Some(library) = clock::library() {
            let clock = folder.join(SOURCE_CLOCK);
            clock::set(&clock, 0)?;
            let variables = clock::environment(&library, &clock).into_iter();
            of_source.environment = variables.map(|(name, value)| (name.into(), value)).collect();
        }
        let (postgres, clickhouse) = tokio::join!(
            Postgres::start(of_source, PostgresOptions::new(17, folder.join("postgres"))),
            ClickHouse::start(launcher(), ClickHouseOptions::new(folder.join("clickhouse")))
        );
        let (postgres, clickhouse) = (postgres?, clickhouse?);
        let source_proxy =
            Proxy::start_at(here, format!("{}:{}", postgres.host(), postgres.port()).parse()?).await?;
        let server = clickhouse.url();
        let destination_proxy = Proxy::start_at(here, server.trim_start_matches("http://").parse()?).await?;
        let mut fleet = Self {
            postgres,
            clickhouse,
            source_proxy,
            destination_proxy,
            coordinator_proxies: Vec::new(),
            coordinators: Vec::new(),
            workers: Vec::new(),
            addresses: Vec::new(),
            program: program.to_owned(),
            folder: folder.to_owned(),
            hosts,
            disk,
            clocks: clock::library().is_some(),
        };
        fleet.client("postgres").await?.batch_execute("CREATE DATABASE catalog").await?;
        let catalog = format!(
            "postgresql://{}:{}@{}:{}/catalog",
            fleet.postgres.user(),
            fleet.postgres.password(),
            fleet.postgres.host(),
            fleet.postgres.port()
        );
        for number in 0..COORDINATORS {
            let listen = free_address().await?;
            let proxy = Proxy::start_at(here, listen.parse()?).await?;
            let advertise = format!("http://{}", proxy.address());
            fleet.coordinator_proxies.push(proxy);
            let arguments =
                ["coordinator", "--listen", &listen, "--catalog", &catalog, "--advertise", &advertise];
            let arguments = arguments.map(str::to_owned).to_vec();
            let mut process =
                Process::new(program, arguments, folder.join(format!("coordinator-{number}.log")));
            process.start().await?;
            fleet.coordinators.push(process);
            fleet.addresses.push(format!("http://{listen}"));
        }
        let proxies = fleet.coordinator_proxies.iter().map(|proxy| format!("http://{}", proxy.address()));
        let proxies = proxies.collect::<Vec<_>>().join(",");
        for (number, id) in WORKER_IDS.iter().enumerate() {
            let arguments = ["worker", "--id", id, "--coordinator", &proxies];
            let arguments = arguments.map(str::to_owned).to_vec();
            let mut process = Process::new(program, arguments, folder.join(format!("{id}.log")));
            process.host = fleet.hosts.as_ref().map(|hosts| hosts.name(number));
            process.start().await?;
            fleet.workers.push(process);
        }
        Ok(fleet)
    }

    /// Whether a fault can be played here.
    pub(crate) fn can(&self, fault: Fault) -> bool {
        match fault {
            Fault::WorkerClock(..) | Fault::CoordinatorClock(..) | Fault::SourceClock(_) => self.clocks,
            Fault::SourceOutOfMemory => memory::can_be_limited(),
            Fault::SourceFull => self.disk.is_some(),
            Fault::WorkerUnplugged(_) | Fault::WorkerMute(_) | Fault::WorkerDeaf(_) => self.hosts.is_some(),
            _ => true,
        }
    }

    /// Moves PostgreSQL's wall clock so many hours away from the time that it is.
    pub(crate) fn set_source_clock(&self, hours: i64) -> anyhow::Result<()> {
        clock::set(&self.folder.join(SOURCE_CLOCK), hours)
    }

    /// Waits until PostgreSQL has seen that its clock is right again, which takes a second or two.
    pub(crate) async fn until_source_clock_is_right(&self) -> anyhow::Result<()> {
        let sql = "SELECT abs(extract(epoch FROM clock_timestamp())::float8 - $1::float8) < 3600";
        let seen = async {
            let client = self.client("template1").await?;
            loop {
                let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs_f64();
                if client.query_one(sql, &[&now]).await?.try_get(0)? {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(CLOCK_PATIENCE, seen).await.context("PostgreSQL's clock stays wrong")?
    }

    /// The workers' hosts.
    pub(crate) fn hosts(&self) -> anyhow::Result<&Hosts> {
        self.hosts.as_ref().context("there is one host")
    }

    /// The source's disk.
    pub(crate) fn disk(&self) -> anyhow::Result<&Disk> {
        self.disk.as_ref().context("it has no disk of its own")
    }

    /// Runs statements beside the catalog, past the proxy.
    pub(crate) async fn at_catalog(&self, sql: &str) -> anyhow::Result<()> {
        let client = self.client("template1").await?;
        Ok(client.batch_execute(sql).await?)
    }

    /// Gives every destination table a limit.
    pub(crate) async fn limit_tables(&self, setting: &str, value: &str) -> anyhow::Result<()> {
        self.alter_tables(&format!("MODIFY SETTING {setting} = {value}")).await
    }

    /// Takes the limit from every destination table.
    pub(crate) async fn reset_tables(&self, setting: &str) -> anyhow::Result<()> {
        self.alter_tables(&format!("RESET SETTING {setting}")).await
    }

    async fn alter_tables(&self, change: &str) -> anyhow::Result<()> {
        let destination = self.destination();
        let sql = "SELECT name FROM system.tables WHERE database = 'mirror' AND engine LIKE '%MergeTree'";
        for table in destination.query(sql).fetch_all::<String>().await? {
            // One that was copied anew may be gone by now.
            let _ = destination.query(&format!("ALTER TABLE mirror.{table} {change}")).execute().await;
        }
        Ok(())
    }

    /// A connection to the source, past the proxy.
    pub(crate) async fn client(&self, database: &str) -> anyhow::Result<Client> {
        connect(&self.postgres.connection_string(database)).await
    }

    /// For clients of the source, which find it again after a restart.
    pub(crate) fn source(&self) -> String {
        self.postgres.connection_string("postgres")
    }

    /// A client of the destination, past the proxy.
    pub(crate) fn destination(&self) -> clickhouse::Client {
        clickhouse::Client::default().with_url(self.clickhouse.url())
    }

    /// Writes the pipe's file; source and destination are reached through the proxies.
    pub(crate) fn write_pipe(&self, tables: &str) -> anyhow::Result<PathBuf> {
        let text = format!(
            "name: {PIPE}\nsource:\n  postgres: {{host: {}, port: {}, database: postgres, username: {}, password: {}}}\n\
             destination:\n  clickhouse: {{url: \"http://{}\", database: mirror}}\ntables:\n{tables}\
             settings: {{snapshotNumRowsPerPartition: 2000, syncInterval: 200ms, maxHeldWal: 10GiB}}\n",
            self.source_proxy.address().ip(),
            self.source_proxy.address().port(),
            self.postgres.user(),
            self.postgres.password(),
            self.destination_proxy.address(),
        );
        let path = self.folder.join("pipe.yaml");
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// For commands of the product.
    pub(crate) fn user(&self) -> User {
        User { program: self.program.clone(), addresses: self.addresses.clone() }
    }

    /// Runs a command of the product, see [`User::command`].
    pub(crate) async fn command(&self, arguments: &[&str], patience: Duration) -> anyhow::Result<Value> {
        self.user().command(arguments, patience).await
    }

    /// The pipe as it stands; null while nobody answers.
    pub(crate) async fn pipe(&self) -> Value {
        let shown = self.command(&["pipe", "get", PIPE], Duration::ZERO).await;
        shown.map(|shown| shown["pipe"].clone()).unwrap_or(Value::Null)
    }

    /// What no log may hold.
    pub(crate) fn panics(&self) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        for process in self.coordinators.iter().chain(&self.workers) {
            let text = std::fs::read_to_string(&process.log).unwrap_or_default();
            let panics = text.lines().filter(|line| line.contains("panicked"));
            found.extend(panics.map(|line| format!("{}: {line}", process.log.display())));
        }
        Ok(found)
    }

    /// Ends everything in order.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        for process in self.workers.iter_mut().chain(&mut self.coordinators) {
            process.kill().await?;
        }
        self.clickhouse.stop().await?;
        self.postgres.stop().await?;
        Ok(())
    }
}

/// Connects to PostgreSQL; the connection ends with its client.
pub(crate) async fn connect(settings: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(settings, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.to_string())
}
