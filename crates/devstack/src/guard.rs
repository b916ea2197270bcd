//! The guard process, seen from the one that started it.
//!
//! 1. The parent starts the guard with a pipe as its stdin, which it never writes to and holds open. The guard's
//!    stderr, and its engine's, go to a log file.
//! 2. The guard says on stdout how far it is, one JSON [`Event`] a line; other lines are ignored.
//! 3. After [`Event::Ready`] the engine can be used. After [`Event::Failed`] the guard ends.
//! 4. When its stdin ends, because the parent asks for it or is gone, the guard stops its engine and ends.
//!
//! A guard is the leader of a process group of its own, so a Ctrl-C in the terminal reaches the parent only, which
//! may want its engines to the last.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::launcher::ARGUMENTS_VARIABLE;
use crate::{Error, Launcher, Result};

/// How much of a log an error quotes, in bytes.
const QUOTED: u64 = 4096;
/// How long a guard may take to stop before it is killed. PostgreSQL's own patience is shorter.
const PATIENCE: Duration = Duration::from_secs(40);

/// What a guard says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A package is not in the cache and is being downloaded, which can take minutes.
    Fetching {
        /// Name and version.
        package: String,
    },
    /// The engine answers.
    Ready {
        /// The engine's process.
        pid: i32,
        /// The TCP port on the loopback interface.
        port: u16,
    },
    /// It does not, and never will.
    Failed {
        /// Why, with causes.
        reason: String,
    },
}

impl Event {
    /// Says it, on a line of its own even if something else has begun one.
    pub(crate) fn say(&self) {
        let line = serde_json::to_string(self).unwrap_or_default();
        let mut stdout = std::io::stdout().lock();
        // A parent that is gone cannot be told; the guard finds out by its stdin.
        let _ = writeln!(stdout, "\n{line}").and_then(|()| stdout.flush());
    }
}

/// What to start, and where its log goes.
pub(crate) struct Plan {
    pub(crate) engine: &'static str,
    pub(crate) launcher: Launcher,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(&'static str, OsString)>,
    pub(crate) log: PathBuf,
}

/// A guard whose engine is ready. When it is dropped, the guard stops its engine by itself.
pub(crate) struct Guard {
    child: Child,
    stdin: Option<ChildStdin>,
    // Held open: a guard that writes to a closed pipe would fail.
    _stdout: Lines<BufReader<ChildStdout>>,
    pub(crate) pid: i32,
    pub(crate) port: u16,
    engine: &'static str,
    log: Log,
}

impl Guard {
    /// Starts the guard and waits until its engine is ready.
    pub(crate) async fn start(plan: &Plan) -> Result<Self> {
        let log = Log::open(&plan.log)?;
        let mut child = spawn(plan, &log)?;
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(piped(child.stdout.take(), plan)?).lines();
        let reason = loop {
            let line = match stdout.next_line().await {
                Ok(Some(line)) => line,
                Ok(None) => match child.wait().await {
                    Ok(status) => break format!("its process ended with {status}"),
                    Err(error) => break error.to_string(),
                },
                Err(error) => break error.to_string(),
            };
            match serde_json::from_str(&line) {
                Ok(Event::Fetching { package }) => tracing::info!(%package, "fetching {}", plan.engine),
                Ok(Event::Ready { pid, port }) => {
                    return Ok(Self { child, stdin, _stdout: stdout, pid, port, engine: plan.engine, log });
                }
                Ok(Event::Failed { reason }) => break reason,
                Err(_) => {}
            }
        };
        Err(Error::Start { engine: plan.engine, reason, log: log.tail(), log_path: log.path })
    }

    /// Asks the guard to stop and waits until it has.
    pub(crate) async fn stop(mut self) -> Result<()> {
        drop(self.stdin.take());
        let reason = match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => return Ok(()),
            Ok(Ok(status)) => format!("its process ended with {status}"),
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                let killed = self.child.kill().await;
                format!("it was still there after {PATIENCE:?}; killed: {killed:?}")
            }
        };
        Err(Error::Stop { engine: self.engine, reason, log: self.log.tail(), log_path: self.log.path })
    }

    /// Kills the engine as `kill -9` would and waits until its guard has ended too.
    pub(crate) async fn kill(mut self) -> Result<()> {
        signal(self.pid, Signal::SIGKILL)?;
        // How it ends says nothing: it was killed, or lost its engine.
        let _ = self.child.wait().await;
        Ok(())
    }
}

/// Sends a signal; a process that is gone already is no error.
pub(crate) fn signal(pid: i32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(source) => Err(Error::Signal { pid, source }),
    }
}

fn spawn(plan: &Plan, log: &Log) -> Result<Child> {
    let error = |source| Error::Spawn { program: plan.launcher.program.clone(), source };
    let mut command = Command::new(&plan.launcher.program);
    command.args(&plan.launcher.args);
    if plan.launcher.arguments_by_environment {
        command.env(ARGUMENTS_VARIABLE, join(&plan.arguments));
    } else {
        command.args(&plan.arguments);
    }
    command.envs(plan.launcher.environment.iter().map(|(name, value)| (name, value)));
    command.envs(plan.environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
    command.stderr(log.file.try_clone().map_err(error)?);
    command.spawn().map_err(error)
}

fn piped(stdout: Option<ChildStdout>, plan: &Plan) -> Result<ChildStdout> {
    let missing = || std::io::Error::other("its stdout was not piped");
    stdout.ok_or_else(|| Error::Spawn { program: plan.launcher.program.clone(), source: missing() })
}

/// Arguments as one environment value; a path cannot contain what separates them.
fn join(arguments: &[OsString]) -> OsString {
    arguments.join(std::ffi::OsStr::new("\u{1f}"))
}

/// The arguments that [`join`] made one value of.
pub(crate) fn split(value: &std::ffi::OsStr) -> Vec<OsString> {
    use std::os::unix::ffi::OsStrExt as _;
    value
        .as_bytes()
        .split(|byte| *byte == 0x1f)
        .map(|part| std::ffi::OsStr::from_bytes(part).into())
        .collect()
}

/// A log file, appended to by every run.
pub(crate) struct Log {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    start: u64,
}

impl Log {
    /// Opens the log; what is in it belongs to earlier runs.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Folder { path: path.to_path_buf(), source };
        let file = File::options().create(true).append(true).read(true).open(path).map_err(failed)?;
        let start = file.metadata().map_err(failed)?.len();
        Ok(Self { path: path.to_path_buf(), file, start })
    }

    /// The end of what this run wrote.
    pub(crate) fn tail(&self) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.start.max(end.saturating_sub(QUOTED))))?;
            let mut text = Vec::new();
            file.take(QUOTED).read_to_end(&mut text)?;
            Ok(text)
        };
        match read() {
            Ok(text) => String::from_utf8_lossy(&text).trim_end().to_owned(),
            Err(error) => format!("(cannot be read: {error})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_the_environment() {
        let arguments: Vec<OsString> = ["a b", "", "--x=1"].map(OsString::from).to_vec();
        assert_eq!(split(&join(&arguments)), arguments);
    }

    #[test]
    fn a_log_quotes_this_run_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        std::fs::write(&path, "before\n").unwrap();
        let mut log = Log::open(&path).unwrap();
        log.file.write_all(b"now\n").unwrap();
        assert_eq!(log.tail(), "now");
    }
}
