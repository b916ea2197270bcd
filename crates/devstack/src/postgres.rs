//! A PostgreSQL of a chosen major version.
//!
//! [`Postgres`] is the handle; `serve` is what the guard runs. `cluster` makes and configures the data folder, and
//! `account` finds whom the server runs as: PostgreSQL refuses root.
//!
//! In the given folder are `cluster` (PostgreSQL's own data folder) and `postgres.log`. There is no Unix socket.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

mod account;
mod cluster;
mod server;

use serde::{Deserialize, Serialize};
pub use server::ServeArguments;
pub(crate) use server::serve;

use crate::guard::{Guard, Plan};
use crate::{Error, Launcher, Result};

/// The environment variable that carries the superuser's password to the guard.
pub(crate) const PASSWORD_VARIABLE: &str = "MILLRACE_DEVSTACK_POSTGRES_PASSWORD";

/// How users prove who they are. Only matters when the data folder is made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Authentication {
    /// By a password, SCRAM-SHA-256.
    #[default]
    Scram,
    /// Not at all.
    Trust,
}

/// How a PostgreSQL is run.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// The major version, 14 to 18.
    pub major: u16,
    /// Where data and the log are; made if it does not exist. When the caller is root, its parents must be open to
    /// everybody, see [`temporary_dir`](crate::temporary_dir).
    pub data_dir: PathBuf,
    /// The TCP port on 127.0.0.1; `None` chooses a free one.
    pub port: Option<u16>,
    /// The superuser, made with the data folder.
    pub user: String,
    /// The superuser's password.
    pub password: String,
    /// How users prove who they are.
    pub authentication: Authentication,
    /// Whether data survives a crash of the machine. Without it, it survives a crash of PostgreSQL only, and is faster.
    pub durable: bool,
    /// Further settings for `postgresql.conf`, which win over the defaults here: `wal_level=logical`, many senders
    /// and slots, 50 prepared transactions, everything else as PostgreSQL has it.
    pub settings: Vec<(String, String)>,
}

impl PostgresOptions {
    /// A PostgreSQL for tests: superuser `postgres` with the password `postgres`, SCRAM, a free port, not durable.
    pub fn new(major: u16, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            major,
            data_dir: data_dir.into(),
            port: None,
            user: "postgres".into(),
            password: "postgres".into(),
            authentication: Authentication::Scram,
            durable: false,
            settings: Vec::new(),
        }
    }
}

/// A running PostgreSQL. Dropping it stops it, without waiting for that.
pub struct Postgres {
    launcher: Launcher,
    options: PostgresOptions,
    guard: Option<Guard>,
    pid: i32,
    port: u16,
}

impl Postgres {
    /// Starts it and waits until it accepts connections. The first start of a version on a machine downloads it
    /// (25 MB); the first start on a folder runs `initdb`.
    ///
    /// # Errors
    /// [`Error::Start`] with the end of its log, or what keeps its process from being started.
    pub async fn start(launcher: Launcher, options: PostgresOptions) -> Result<Self> {
        let mut this = Self { launcher, options, guard: None, pid: 0, port: 0 };
        this.launch().await?;
        Ok(this)
    }

    /// Where it listens.
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The superuser.
    pub fn user(&self) -> &str {
        &self.options.user
    }

    /// The superuser's password.
    pub fn password(&self) -> &str {
        &self.options.password
    }

    /// The postmaster.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The folder that it was given.
    pub fn data_dir(&self) -> &Path {
        &self.options.data_dir
    }

    /// Where its log is.
    pub fn log(&self) -> PathBuf {
        self.options.data_dir.join("postgres.log")
    }

    /// Settings of `postgresql.conf`, in effect from the next start on.
    pub fn settings_mut(&mut self) -> &mut Vec<(String, String)> {
        &mut self.options.settings
    }

    /// A connection string for the superuser, in libpq's `key=value` form.
    pub fn connection_string(&self, database: &str) -> String {
        let quote = |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
        format!(
            "host={} port={} user={} password={} dbname={}",
            self.host(),
            self.port,
            quote(self.user()),
            quote(self.password()),
            quote(database)
        )
    }

    /// Stops it: sessions are ended, open transactions rolled back, a checkpoint written.
    ///
    /// # Errors
    /// [`Error::Stop`] when it had to be killed or ended badly.
    pub async fn stop(&mut self) -> Result<()> {
        match self.guard.take() {
            Some(guard) => guard.stop().await,
            None => Ok(()),
        }
    }

    /// Kills the postmaster as `kill -9` does, and waits until it is gone; its children end by themselves.
    pub async fn kill(&mut self) -> Result<()> {
        match self.guard.take() {
            Some(guard) => guard.kill().await,
            None => Ok(()),
        }
    }

    /// Starts it again on the same port and data, after stopping it if it runs.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.options.port = Some(self.port);
        self.launch().await
    }

    async fn launch(&mut self) -> Result<()> {
        let options = &self.options;
        let data = &options.data_dir;
        std::fs::create_dir_all(data).map_err(|source| Error::Folder { path: data.clone(), source })?;
        let mut arguments = vec![OsString::from("postgres"), "--data-dir".into(), data.into()];
        let mut add = |name: &str, value: String| arguments.push(format!("--{name}={value}").into());
        add("major", options.major.to_string());
        add("user", options.user.clone());
        add("authentication", format!("{:?}", options.authentication).to_lowercase());
        add("durable", options.durable.to_string());
        if let Some(port) = options.port {
            add("port", port.to_string());
        }
        for (name, value) in &options.settings {
            add("setting", format!("{name}={value}"));
        }
        let guard = Guard::start(&Plan {
            engine: "PostgreSQL",
            launcher: self.launcher.clone(),
            arguments,
            environment: vec![(PASSWORD_VARIABLE, options.password.clone().into())],
            log: self.log(),
        })
        .await?;
        (self.pid, self.port) = (guard.pid, guard.port);
        self.guard = Some(guard);
        Ok(())
    }
}
