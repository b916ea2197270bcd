//! A disk of its own for one server, so that it can be full: a file system in memory, for root on Linux.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// How large it is: what a run writes fits several times.
const SIZE: &str = "size=6g,mode=0755";

/// It is gone with its handle.
pub(crate) struct Disk {
    place: PathBuf,
}

impl Disk {
    /// Mounts one; the folder is made.
    pub(crate) async fn make(place: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&place)?;
        let text = place.display().to_string();
        run("mount", &["-t", "tmpfs", "-o", SIZE, "tmpfs", &text]).await?;
        Ok(Self { place })
    }

    /// Leaves no room on it.
    pub(crate) async fn fill(&self) -> anyhow::Result<()> {
        let text = self.place.display().to_string();
        let free = Command::new("df").args(["--output=avail", "-B1", &text]).output().await?;
        let free = String::from_utf8_lossy(&free.stdout);
        let free = free.lines().last().context("df says nothing")?.trim().to_owned();
        let filler = self.filler().display().to_string();
        // What a server writes meanwhile may be in the way of the last bytes.
        let _ = run("fallocate", &["-l", &free, &filler]).await;
        run("dd", &["if=/dev/zero", &format!("of={filler}.rest"), "bs=4096"])
            .await
            .map_or(Ok(()), |()| bail!("there is room left on {text}"))
    }

    /// Makes room again.
    pub(crate) fn empty(&self) -> anyhow::Result<()> {
        for path in [self.filler(), self.filler().with_extension("rest")] {
            remove(&path)?;
        }
        Ok(())
    }

    fn filler(&self) -> PathBuf {
        self.place.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server of a run that failed may still be ending.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.place).status();
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

async fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().await?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
