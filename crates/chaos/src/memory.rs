//! Too little memory for a server of many processes: by `prlimit` of util-linux, on Linux.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// Where Linux has the program.
const PROGRAM: &str = "/usr/bin/prlimit";

/// Whether that can be had here.
pub(crate) fn can_be_limited() -> bool {
    Path::new(PROGRAM).exists()
}

/// The process and its children get no memory beyond what they have.
pub(crate) async fn exhaust(pid: i32) -> anyhow::Result<()> {
    limit(pid, "1").await
}

/// Ends that.
pub(crate) async fn give_back(pid: i32) -> anyhow::Result<()> {
    limit(pid, "unlimited").await
}

/// Sets the soft limit alone, which everybody may raise again; as the processes' own user, since root need not have the right in a container.
async fn limit(pid: i32, bytes: &str) -> anyhow::Result<()> {
    let owner = std::fs::metadata(format!("/proc/{pid}")).context("the server is not there")?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let bytes = format!("--as={bytes}:");
    let set = async |pid: &str| {
        let mut command = Command::new(PROGRAM);
        command.args(["--pid", pid, &bytes]).uid(owner.uid()).gid(owner.gid());
        command.output().await
    };
    let output = set(&pid.to_string()).await?;
    if !output.status.success() {
        bail!("{PROGRAM}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    for child in children.split_whitespace() {
        // One that has ended meanwhile needs none.
        set(child).await?;
    }
    Ok(())
}
