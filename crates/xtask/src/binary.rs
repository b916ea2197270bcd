//! Building the product and starting its processes.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use millrace_devstack::Launcher;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Runs a future on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// The folder that holds what is built: `target`, unless cargo was told otherwise.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds `millrace` and says where it is.
pub(crate) fn build(release: bool) -> anyhow::Result<PathBuf> {
    build_packages(&["millrace"], release)?;
    Ok(target().join(if release { "release" } else { "debug" }).join("millrace"))
}

/// Builds packages.
pub(crate) fn build_packages(packages: &[&str], release: bool) -> anyhow::Result<()> {
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(["build", "--quiet"]);
    command.args(packages.iter().map(|package| format!("--package={package}")));
    if release {
        command.arg("--release");
    }
    // What `cargo run` says of this package; build scripts that look at the same variables would take it for a change and half of everything would be built
    // again, here and in the next build by hand.
    let ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        command.env_remove(name);
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("{} does not build", packages.join(", "));
    }
    Ok(())
}

/// How the servers of devstack are started.
pub(crate) fn launcher(millrace: &Path) -> Launcher {
    Launcher::new(millrace, ["devstack"])
}

/// A coordinator or worker that ends with this handle.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts `millrace` with arguments; its output goes to a file.
    pub(crate) fn start(millrace: &Path, arguments: &[&str], log: &Path) -> anyhow::Result<Self> {
        let file = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = Command::new(millrace)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start millrace")?;
        Ok(Self { child })
    }

    /// The process' id.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for the line that begins with `ready` and gives the rest of it.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<String> {
        let output = self.child.stdout.take().context("the output was taken already")?;
        let mut lines = BufReader::new(output).lines();
        while let Some(line) = lines.next_line().await? {
            if let Some(rest) = line.strip_prefix("ready ") {
                return Ok(rest.to_owned());
            }
        }
        bail!("it ended before it was ready")
    }

    /// Asks it to stop and waits until it has.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(id) = self.child.id() {
            // SIGTERM by the usual tool: a signal of our own would need unsafe code.
            Command::new("kill").args(["-TERM", &id.to_string()]).status().await?;
        }
        self.child.wait().await?;
        Ok(())
    }
}
