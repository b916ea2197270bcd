//! PostgreSQL's data folder: made by `initdb`, configured by a file of its own.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal;
use tokio::process::Command;

use super::Authentication;
use super::account::Account;
use crate::foreign::signal_on_parent_death;
use crate::{Error, Result};

/// Our settings, read by `postgresql.conf` at its end and before `ALTER SYSTEM`'s.
const CONFIGURATION: &str = "millrace.conf";

/// The programs of one version and the data folder they work on.
pub(crate) struct Cluster {
    pub(crate) package: PathBuf,
    pub(crate) path: PathBuf,
    pub(crate) account: Option<Account>,
}

/// What `initdb` is told.
pub(crate) struct Superuser {
    pub(crate) name: String,
    pub(crate) password: String,
    pub(crate) authentication: Authentication,
}

impl Cluster {
    /// Checks that PostgreSQL will be able to reach its programs and its data.
    pub(crate) fn check_reach(&self) -> Result<()> {
        match self.account {
            Some(account) => {
                account.check_reach(&self.package.join("native/bin/postgres"))?;
                account.check_reach(&self.path)
            }
            None => Ok(()),
        }
    }

    /// Makes the folder unless it is there already. A half-made one, from a guard that was killed, is made again.
    pub(crate) async fn make(&self, superuser: &Superuser, durable: bool) -> Result<()> {
        if self.path.join("postgresql.conf").exists() && self.path.join(CONFIGURATION).exists() {
            return Ok(());
        }
        let failed = |source| Error::Folder { path: self.path.clone(), source };
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        fs::create_dir(&self.path).map_err(failed)?;
        fs::set_permissions(&self.path, Permissions::from_mode(0o700)).map_err(failed)?;
        let password = self.password_file(&superuser.password).map_err(failed)?;
        if let Some(account) = self.account {
            account.own(&self.path).and_then(|()| account.own(password.path())).map_err(failed)?;
        }
        let mut initdb = self.program("initdb");
        initdb.arg("--pgdata").arg(&self.path).arg("--username").arg(&superuser.name);
        initdb.args(["--encoding=UTF8", "--locale=C"]).arg("--pwfile").arg(password.path());
        initdb.arg(match superuser.authentication {
            Authentication::Scram => "--auth=scram-sha-256",
            Authentication::Trust => "--auth=trust",
        });
        if !durable {
            initdb.arg("--no-sync");
        }
        initdb.kill_on_drop(true);
        let program = self.package.join("native/bin/initdb");
        let output = initdb.output().await.map_err(|source| Error::Spawn { program, source })?;
        if !output.status.success() {
            let text = [output.stdout, output.stderr].concat();
            return Err(Error::Initdb { output: String::from_utf8_lossy(&text).trim().to_owned() });
        }
        fs::OpenOptions::new()
            .append(true)
            .open(self.path.join("postgresql.conf"))
            .and_then(|mut file| writeln!(file, "include_if_exists = '{CONFIGURATION}'"))
            .map_err(failed)
    }

    /// Writes our settings; later ones win.
    pub(crate) fn configure(&self, port: u16, durable: bool, settings: &[(String, String)]) -> Result<()> {
        let mut all = defaults(port, durable);
        all.extend(settings.iter().cloned());
        let path = self.path.join(CONFIGURATION);
        fs::write(&path, configuration(&all)).map_err(|source| Error::Folder { path, source })
    }

    /// One of the package's programs, with the right user, libraries and end.
    pub(crate) fn program(&self, name: &str) -> Command {
        let native = self.package.join("native");
        let mut command = Command::new(native.join("bin").join(name));
        // Only what it needs: the caller's PG variables and locale must not leak into a server for tests.
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C");
        let libraries = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
        command.env(libraries, native.join("lib")).stdin(Stdio::null()).current_dir(&self.path);
        if let Some(account) = self.account {
            account.apply(&mut command);
        }
        // SIGINT is PostgreSQL's fast shutdown. It must be asked for after the change of user, which forgets it.
        signal_on_parent_death(&mut command, Signal::SIGINT);
        command
    }

    fn password_file(&self, password: &str) -> io::Result<tempfile::NamedTempFile> {
        let beside = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(beside)?;
        writeln!(file, "{password}")?;
        Ok(file)
    }
}

/// What a source for tests needs; everything else stays as PostgreSQL has it.
fn defaults(port: u16, durable: bool) -> Vec<(String, String)> {
    let mut settings = vec![
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        ("unix_socket_directories", String::new()),
        ("wal_level", "logical".into()),
        ("max_connections", "200".into()),
        ("max_wal_senders", "64".into()),
        ("max_replication_slots", "64".into()),
        ("max_prepared_transactions", "50".into()),
        ("log_line_prefix", "%m [%p] %q%a ".into()),
    ];
    if !durable {
        // Commits still reach the kernel, so they survive the process being killed.
        settings.extend([("fsync", "off".to_owned()), ("full_page_writes", "off".into())]);
    }
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The text of a configuration file (PostgreSQL manual, 20.1.2).
fn configuration(settings: &[(String, String)]) -> String {
    settings
        .iter()
        .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted() {
        let settings = [("a".to_owned(), r"it's \x".to_owned())];
        assert_eq!(configuration(&settings), "a = 'it''s \\\\x'\n");
    }

    #[test]
    fn nothing_is_synced_unless_it_is_to_be_durable() {
        let synced = |durable| !defaults(1, durable).iter().any(|(name, _)| name == "fsync");
        assert!(synced(true));
        assert!(!synced(false));
    }
}
