//! The engine and its sessions: one per request, because SET and USE outlive a statement.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::PROFILE;
use super::exception::Exception;
use super::request::Parameters;
use super::statement::{quote, quote_identifier};
use crate::foreign::{Connection, Library};
use crate::{Error, Result};

/// The id that a client gave a query, over the columns of `system.processes`. The engine makes ids of its own, so
/// ours travels in the first line of `log_comment`.
pub(crate) const QUERY_ID: &str = "splitByChar('\\n', Settings['log_comment'])[1]";

/// The cluster that the engine knows: this host alone, as a new server's `default` is.
pub(crate) const CLUSTER: &str = "default";

/// The library reads this file from the working folder. A host counts as this one by its port, which nobody listens on.
pub(crate) const CONFIGURATION: &str = "\
<clickhouse>
  <tcp_port>9000</tcp_port>
  <remote_servers>
    <default><shard><replica><host>127.0.0.1</host><port>9000</port></replica></shard></default>
  </remote_servers>
</clickhouse>
";

/// ClickHouse on one data folder. A process can have one, and one folder one process.
pub(crate) struct Engine {
    library: Library,
    data: String,
    // Never used after the start, but open as long as the engine: closing the last connection shuts it down.
    _first: Mutex<Connection>,
    running: Mutex<HashSet<String>>,
    pub(crate) version: String,
    pub(crate) timezone: String,
}

impl Engine {
    /// Loads the library and starts the engine on a folder.
    pub(crate) fn start(library: &Path, data: &Path) -> Result<Self> {
        let failed = |reason: String| Error::Engine { path: data.to_path_buf(), reason };
        let path = library;
        let library =
            Library::load(path).map_err(|source| Error::Library { path: path.to_path_buf(), source })?;
        let working = data.parent().unwrap_or(data);
        std::fs::write(working.join("config.xml"), CONFIGURATION)
            .and_then(|()| std::env::set_current_dir(working))
            .map_err(|source| Error::Folder { path: working.to_path_buf(), source })?;
        let text = data.to_str().ok_or_else(|| failed("its path is not UTF-8".into()))?.to_owned();
        // What the engine says about a refusal goes to stderr, which is the log.
        let refused = "the engine refused, for example because another process uses the same data";
        let mut first = library.connect(&text).ok_or_else(|| failed(refused.into()))?;
        make_default_atomic(&mut first, data).map_err(failed)?;
        let about = first.query(b"SELECT version(), timezone()", "TabSeparated", &[]).map_err(failed)?;
        let about = String::from_utf8_lossy(about.as_ref()).into_owned();
        let (version, timezone) = about.trim_end().split_once('\t').unwrap_or((about.trim_end(), "UTC"));
        Ok(Self {
            version: version.to_owned(),
            timezone: timezone.to_owned(),
            library,
            data: text,
            _first: Mutex::new(first),
            running: Mutex::default(),
        })
    }

    /// A session with a request's database and settings.
    pub(crate) fn session(&self, parameters: &Parameters) -> Result<Connection, Exception> {
        let mut session = self.connect()?;
        // The library's defaults, where a server's are others; inserts are never asynchronous here.
        let mut settings =
            String::from("implicit_select = 0, allow_introspection_functions = 0, async_insert = 0");
        // In the working folder, see `start`.
        if let Ok(profile) = std::fs::read_to_string(PROFILE)
            && !profile.is_empty()
        {
            settings.push_str(", ");
            settings.push_str(&profile);
        }
        let mut comment = parameters.query_id.clone();
        for (name, value) in &parameters.settings {
            if name == "log_comment" {
                comment = format!("{comment}\n{value}");
            } else if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                settings.push_str(&format!(", {name} = {}", quote(value)));
            } else {
                return Err(Exception::new(115, "UNKNOWN_SETTING", format!("Unknown setting '{name}'")));
            }
        }
        let mut run = |sql: String| match session.query(sql.as_bytes(), "Null", &[]) {
            Ok(_) => Ok(()),
            Err(error) => Err(Exception::from_engine(&error)),
        };
        run(format!("SET {settings}, log_comment = {}", quote(&comment)))?;
        if let Some(database) = parameters.database.as_deref().filter(|name| !name.is_empty()) {
            run(format!("USE {}", quote_identifier(database)))?;
        }
        Ok(session)
    }

    /// Notes that a query runs; its id is free again when the value is dropped.
    pub(crate) fn register<'e>(&'e self, query_id: &str) -> Result<Running<'e>, Exception> {
        if self.running().insert(query_id.to_owned()) {
            return Ok(Running { engine: self, query_id: query_id.to_owned() });
        }
        let message = format!("Query with id = {query_id} is already running");
        Err(Exception::new(216, "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING", message))
    }

    /// Ends a query that runs, if it does.
    pub(crate) fn cancel(&self, query_id: &str) {
        if !self.running().contains(query_id) {
            return;
        }
        let sql = format!("KILL QUERY WHERE {QUERY_ID} = {} ASYNC", quote(query_id));
        let result = self.connect().map(|mut session| session.query(sql.as_bytes(), "Null", &[]).map(drop));
        tracing::info!(query_id, ?result, "cancelled, its client is gone");
    }

    fn connect(&self) -> Result<Connection, Exception> {
        let refused = || Exception::new(210, "NETWORK_ERROR", "the engine accepts no connection");
        self.library.connect(&self.data).ok_or_else(refused)
    }

    fn running(&self) -> MutexGuard<'_, HashSet<String>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A query's claim on its id.
pub(crate) struct Running<'e> {
    engine: &'e Engine,
    query_id: String,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.engine.running().remove(&self.query_id);
    }
}

/// Gives the database `default` a server's engine.
///
/// The library starts with an Overlay under that name, which knows no EXCHANGE. On a new folder it is replaced by an
/// Atomic one; later the Overlay stands before the Atomic one's files, and is only taken away from before them. The folder
/// of a database appears with its first table, and without it ATTACH fails: one that never held a table is made anew.
fn make_default_atomic(connection: &mut Connection, data: &Path) -> Result<(), String> {
    let definition = data.join("metadata/default.sql");
    let held_tables = data.join("metadata/default").exists();
    if definition.exists() && !held_tables {
        std::fs::remove_file(&definition)
            .map_err(|error| format!("cannot remove {}: {error}", definition.display()))?;
    }
    let statements: &[&str] = if held_tables {
        &["DETACH DATABASE default", "ATTACH DATABASE default"]
    } else {
        &["DROP DATABASE default", "CREATE DATABASE default ENGINE = Atomic"]
    };
    statements.iter().try_for_each(|sql| connection.query(sql.as_bytes(), "Null", &[]).map(drop))
}
