//! The guard of a PostgreSQL: starts it, watches it, stops it.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use super::account::Account;
use super::cluster::{Cluster, Superuser};
use super::{Authentication, PASSWORD_VARIABLE};
use crate::command::end_asked_for;
use crate::guard::{Event, Log, signal};
use crate::{Error, Result, cache, packages};

/// How often a start is tried: another process may take the port, or children of a killed server may still hold its
/// shared memory for a moment.
const ATTEMPTS: u32 = 40;
/// How long to wait between attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// How often `postmaster.pid` is looked at; `pg_ctl` does the same.
const LOOK: Duration = Duration::from_millis(20);
/// How long a fast shutdown may take, then an immediate one.
const PATIENCE: [(Signal, Duration); 2] =
    [(Signal::SIGINT, Duration::from_secs(20)), (Signal::SIGQUIT, Duration::from_secs(10))];

/// Arguments of the guard of a PostgreSQL.
#[derive(Debug, clap::Args)]
pub struct ServeArguments {
    /// Where data and log are.
    #[arg(long)]
    data_dir: PathBuf,
    /// The major version.
    #[arg(long)]
    major: u16,
    /// The TCP port; a free one by default.
    #[arg(long)]
    port: Option<u16>,
    /// The superuser.
    #[arg(long, default_value = "postgres")]
    user: String,
    /// How users prove who they are.
    #[arg(long, value_enum, default_value = "scram")]
    authentication: Authentication,
    /// Whether data survives a crash of the machine.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    durable: bool,
    /// Further settings, `name=value`.
    #[arg(long = "setting", value_parser = setting)]
    settings: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a setting is name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Runs a PostgreSQL until stdin ends.
pub(crate) fn serve(arguments: &ServeArguments) -> Result<()> {
    // One thread: the server is told to end when the thread that started it does, so that must be the last one.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Spawn { program: "tokio".into(), source })?;
    let result = runtime.block_on(async {
        let mut end = std::pin::pin!(end_asked_for());
        let mut running = tokio::select! {
            // The server, if it has begun, is dropped and thereby killed; it has nothing that matters yet.
            () = &mut end => return Ok(()),
            started = start(arguments) => started?,
        };
        Event::Ready { pid: running.pid, port: running.port }.say();
        tokio::select! {
            () = &mut end => running.stop().await,
            status = running.child.wait() => {
                let reason = status.map_or_else(|error| error.to_string(), |status| format!("it ended with {status}"));
                Err(Error::PostgresStart { reason, log: running.log.tail() })
            }
        }
    });
    // The thread that reads stdin may never end.
    runtime.shutdown_background();
    result
}

struct Running {
    child: Child,
    pid: i32,
    port: u16,
    log: Log,
}

impl Running {
    async fn stop(mut self) -> Result<()> {
        for (shutdown, patience) in PATIENCE {
            signal(self.pid, shutdown)?;
            if let Ok(Ok(_)) = timeout(patience, self.child.wait()).await {
                return Ok(());
            }
            tracing::warn!("PostgreSQL still runs {patience:?} after {shutdown}");
        }
        self.child.kill().await.map_err(|source| Error::Spawn { program: "postgres".into(), source })
    }
}

async fn start(arguments: &ServeArguments) -> Result<Running> {
    let announce = |package: &_| Event::Fetching { package: format!("{package}") }.say();
    let package = cache::fetch(packages::postgres(arguments.major)?, announce).await?;
    let data = std::path::absolute(&arguments.data_dir)
        .map_err(|source| Error::Folder { path: arguments.data_dir.clone(), source })?;
    let account = Account::other_than_root();
    let cluster = Cluster { package, path: data.join("cluster"), account };
    if let Some(account) = account {
        // The folder itself is the caller's gift; only what is above it may bar the way.
        account.check_reach(&data)?;
        account.own(&data).map_err(|source| Error::Folder { path: data.clone(), source })?;
    }
    cluster.check_reach()?;
    let superuser = Superuser {
        name: arguments.user.clone(),
        password: std::env::var(PASSWORD_VARIABLE).unwrap_or_else(|_| "postgres".into()),
        authentication: arguments.authentication,
    };
    cluster.make(&superuser, arguments.durable).await?;
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tracing::info!("PostgreSQL did not start, trying again: {last}");
            sleep(PAUSE).await;
        }
        let port = match arguments.port {
            Some(port) => port,
            None => free_port()?,
        };
        cluster.configure(port, arguments.durable, &arguments.settings)?;
        let log = Log::open(&data.join("postgres.log"))?;
        match launch(&cluster, log, port).await? {
            Ok(running) => return Ok(running),
            Err((reason, log)) if passes(&log) => last = format!("{reason}: {log}"),
            Err((reason, log)) => return Err(Error::PostgresStart { reason, log }),
        }
    }
    Err(Error::PostgresStart { reason: format!("{ATTEMPTS} attempts failed"), log: last })
}

/// Whether the server gets a variable that its guard has, see [`Launcher::environment`](crate::Launcher::environment).
fn is_passed_on(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    name == "LD_PRELOAD" || name == "DONT_FAKE_MONOTONIC" || name.starts_with("FAKETIME_")
}

/// Starts the server once; gives why it ended and its log if it did before it was ready.
async fn launch(cluster: &Cluster, log: Log, port: u16) -> Result<Result<Running, (String, String)>> {
    let program = cluster.package.join("native/bin/postgres");
    let failed = |source| Error::Spawn { program: program.clone(), source };
    let mut command = cluster.program("postgres");
    command.envs(std::env::vars_os().filter(|(name, _)| is_passed_on(name)));
    command.arg("-D").arg(&cluster.path).kill_on_drop(true);
    command.stdout(log.file.try_clone().map_err(failed)?).stderr(log.file.try_clone().map_err(failed)?);
    let mut child = command.spawn().map_err(failed)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    loop {
        if let Ok(status) = timeout(LOOK, child.wait()).await {
            let reason = format!("it ended with {}", status.map_err(failed)?);
            return Ok(Err((reason, log.tail())));
        }
        if is_ready(&cluster.path, pid) {
            return Ok(Ok(Running { child, pid, port, log }));
        }
    }
}

/// Whether the server says so in its lock file: the process in the first line, the state in the eighth.
fn is_ready(data: &Path, pid: i32) -> bool {
    let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else { return false };
    let mut lines = text.lines();
    lines.next().is_some_and(|line| line.trim() == pid.to_string())
        && lines.nth(6).is_some_and(|state| state.trim() == "ready")
}

/// Whether what stopped a start may be gone soon.
fn passes(log: &str) -> bool {
    [
        "could not bind",
        "Address already in use",
        "pre-existing shared memory block",
        "lock file \"postmaster.pid\"",
    ]
    .iter()
    .any(|reason| log.contains(reason))
}

/// A port that nobody listens on now.
fn free_port() -> Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|source| Error::Listen { address: "127.0.0.1:0".into(), source })
}
