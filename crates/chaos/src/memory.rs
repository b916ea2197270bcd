//! Too little memory for a server of many processes: by `prlimit` of util-linux, on Linux.

use std::path::Path;

use anyhow::Context as _;
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

/// Sets the soft limit alone, which everybody may raise again.
async fn limit(pid: i32, bytes: &str) -> anyhow::Result<()> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let bytes = format!("--as={bytes}:");
    for pid in std::iter::once(pid.to_string()).chain(children.split_whitespace().map(str::to_owned)) {
        // One that has ended meanwhile needs none.
        let output = Command::new(PROGRAM).args(["--pid", &pid, &bytes]).output().await;
        output.with_context(|| PROGRAM.to_owned())?;
    }
    Ok(())
}
