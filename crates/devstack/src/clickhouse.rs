//! A ClickHouse: the engine as a library in a process of its own, behind the HTTP interface.
//!
//! [`ClickHouse`] is the handle; `serve` is what the guard runs. Inside, `server` speaks HTTP, `request` reads what
//! a request asks for, `statement` reads SQL as far as needed, `execution` runs it on the engine, `reply` writes
//! the answer, `exception` and `compression` hold the formats.
//!
//! What differs from a server, because the library knows nothing of it, or the client never asks for it:
//!
//! - One user, `default`, with the password that the options give; roles, grants and quotas do not exist. Every
//!   other user or password is refused as a server refuses it (code 516).
//! - `session_id`, `role`, `framed`, a nonzero `client_protocol_version`, `Content-Encoding` of requests, `INTO OUTFILE`,
//!   `FROM INFILE` and `async_insert=1` are answered by 501 (code 48). Inserts are synchronous unless asked otherwise,
//!   where a server since 26.2 is asynchronous: a client that needs an answer to mean "inserted" must send
//!   `async_insert=0`.
//! - No `system.query_log`, no Keeper, so Replicated engines do not work.
//! - Results in `RowBinary*`, `Native`, `TabSeparated`, `CSV` and the `...EachRow` formats are streamed; in any other
//!   format they are held in memory first.
//! - `query_id` lives in the setting `log_comment`. `KILL QUERY` and `system.processes` show it as `query_id`; the
//!   function `queryID()` does not.
//! - The client going away ends a query that only reads. (A server does that only when it writes to the connection.)

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

mod compression;
mod engine;
mod exception;
mod execution;
mod reply;
mod request;
mod server;
mod statement;

pub use server::ServeArguments;
pub(crate) use server::serve;

use crate::guard::{Guard, Plan};
use crate::{Error, Launcher, Result};

/// The environment variable that carries the password to the guard.
pub(crate) const PASSWORD_VARIABLE: &str = "MILLRACE_DEVSTACK_CLICKHOUSE_PASSWORD";
/// The settings of the user's profile, in the data folder.
pub(crate) const PROFILE: &str = "profile";

/// How a ClickHouse is run.
#[derive(Debug, Clone)]
pub struct ClickHouseOptions {
    /// Where data and the log `clickhouse.log` are; made if it does not exist.
    pub data_dir: PathBuf,
    /// The address to listen on; port 0 chooses a free one.
    pub listen: SocketAddr,
    /// The password of the user `default`.
    pub password: String,
}

impl ClickHouseOptions {
    /// Data in `data_dir`, a free port on the loopback interface, no password.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            password: String::new(),
        }
    }
}

/// A running ClickHouse. Dropping it stops it, without waiting for that.
pub struct ClickHouse {
    launcher: Launcher,
    options: ClickHouseOptions,
    guard: Option<Guard>,
    pid: i32,
}

impl ClickHouse {
    /// Starts it and waits until it answers. The first start on a machine downloads the engine (170 MB).
    ///
    /// # Errors
    /// [`Error::Start`] with the end of its log, or what keeps its process from being started.
    pub async fn start(launcher: Launcher, options: ClickHouseOptions) -> Result<Self> {
        let mut this = Self { launcher, options, guard: None, pid: 0 };
        this.launch().await?;
        Ok(this)
    }

    /// Where it answers, for example `http://127.0.0.1:41234`.
    pub fn url(&self) -> String {
        format!("http://{}", self.options.listen)
    }

    /// The process of the engine, which is also the guard's.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The folder that it was given.
    pub fn data_dir(&self) -> &Path {
        &self.options.data_dir
    }

    /// Settings of the user's profile, which every request begins with from now on.
    ///
    /// # Errors
    /// They cannot be written down.
    pub fn set_profile(&self, settings: &[(&str, &str)]) -> Result<()> {
        let text: Vec<String> = settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let path = self.options.data_dir.join(PROFILE);
        std::fs::write(&path, text.join(", ")).map_err(|source| Error::Folder { path, source })
    }

    /// Stops it: no new requests, a moment for those that run.
    ///
    /// # Errors
    /// [`Error::Stop`] when it had to be killed or ended badly.
    pub async fn stop(&mut self) -> Result<()> {
        match self.guard.take() {
            Some(guard) => guard.stop().await,
            None => Ok(()),
        }
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        match self.guard.take() {
            Some(guard) => guard.kill().await,
            None => Ok(()),
        }
    }

    /// Starts it again on the same port and data, after stopping it if it runs.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.launch().await
    }

    async fn launch(&mut self) -> Result<()> {
        let data = &self.options.data_dir;
        std::fs::create_dir_all(data).map_err(|source| Error::Folder { path: data.clone(), source })?;
        let arguments = vec![
            OsString::from("clickhouse"),
            "--data-dir".into(),
            data.into(),
            "--listen".into(),
            self.options.listen.to_string().into(),
        ];
        let guard = Guard::start(&Plan {
            engine: "ClickHouse",
            launcher: self.launcher.clone(),
            arguments,
            environment: vec![(PASSWORD_VARIABLE, self.options.password.clone().into())],
            log: data.join("clickhouse.log"),
        })
        .await?;
        self.options.listen.set_port(guard.port);
        self.pid = guard.pid;
        self.guard = Some(guard);
        Ok(())
    }
}
