//! What can go wrong around the engines. What goes wrong inside them is in their own words.

use std::io;
use std::path::PathBuf;

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One variant per step that can fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No package holds this engine for this machine.
    #[error("there is no package of {engine} for {platform}")]
    Platform {
        /// The engine.
        engine: &'static str,
        /// Operating system and architecture.
        platform: String,
    },
    /// Not one of the supported versions of PostgreSQL.
    #[error("PostgreSQL {0} is not supported, only 14 to 18")]
    Major(u16),
    /// A folder could not be made, read or changed.
    #[error("the folder {path} cannot be used")]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The user that PostgreSQL runs as cannot reach a folder.
    #[error(
        "PostgreSQL refuses to run as root, so it runs as uid {uid}, which may not enter {blocked}; \
         choose a folder all of whose parents may be entered by everybody instead of {path}, or run `chmod o+x {blocked}`"
    )]
    NotTraversable {
        /// The folder that was given.
        path: PathBuf,
        /// The parent that bars the way.
        blocked: PathBuf,
        /// Who may not pass.
        uid: u32,
    },
    /// A program that fetching needs is missing or cannot be run.
    #[error("`{program}` cannot be run; it is needed to fetch {package}")]
    Program {
        /// The program.
        program: &'static str,
        /// The package that was wanted.
        package: String,
        /// Why.
        source: io::Error,
    },
    /// A package could not be downloaded.
    #[error("`npm pack {package}` failed: {output}")]
    Download {
        /// Name and version.
        package: String,
        /// What npm said.
        output: String,
    },
    /// A package could not be unpacked.
    #[error("{package} could not be unpacked: {reason}")]
    Unpack {
        /// Name and version.
        package: String,
        /// Why.
        reason: String,
    },
    /// The library with the engine cannot be loaded.
    #[error("{path} cannot be loaded")]
    Library {
        /// The library.
        path: PathBuf,
        /// Why.
        source: libloading::Error,
    },
    /// The engine could be loaded but not started.
    #[error("ClickHouse could not be started on {path}: {reason}")]
    Engine {
        /// The data folder.
        path: PathBuf,
        /// What the engine said.
        reason: String,
    },
    /// The address cannot be listened on.
    #[error("{address} cannot be listened on")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// `initdb` failed.
    #[error("initdb failed: {output}")]
    Initdb {
        /// What it printed.
        output: String,
    },
    /// PostgreSQL ended before it was ready.
    #[error("PostgreSQL did not start: {reason}\n{log}")]
    PostgresStart {
        /// What was seen.
        reason: String,
        /// The end of its log.
        log: String,
    },
    /// A process could not be started or asked.
    #[error("{program} cannot be run")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The guard ended, or said that it failed, before the engine was ready.
    #[error("{engine} did not start: {reason}\nEnd of {log_path}:\n{log}")]
    Start {
        /// The engine.
        engine: &'static str,
        /// What the guard said, or how it ended.
        reason: String,
        /// The log file.
        log_path: PathBuf,
        /// Its end.
        log: String,
    },
    /// The engine did not stop in time and was killed, or ended badly.
    #[error("{engine} did not stop well: {reason}\nEnd of {log_path}:\n{log}")]
    Stop {
        /// The engine.
        engine: &'static str,
        /// What was seen.
        reason: String,
        /// The log file.
        log_path: PathBuf,
        /// Its end.
        log: String,
    },
    /// A signal could not be sent.
    #[error("process {pid} cannot be signalled")]
    Signal {
        /// The process.
        pid: i32,
        /// Why.
        source: nix::Error,
    },
}
