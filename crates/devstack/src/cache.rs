//! The folder of fetched packages, shared by every process of this machine.
//!
//! A package is unpacked beside its final place and then renamed, so a folder that exists is complete. Processes
//! that want the same package wait for one another on a lock file.

use std::env;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde::Deserialize;
use tokio::process::Command;

use crate::packages::Package;
use crate::{Error, Result};

/// Where packages are kept: `MILLRACE_CACHE_DIR`, else a folder that another user can read when the caller is root
/// (PostgreSQL then runs under another user), else the user's own cache.
pub(crate) fn directory() -> PathBuf {
    if let Some(chosen) = env::var_os("MILLRACE_CACHE_DIR").filter(|value| !value.is_empty()) {
        return chosen.into();
    }
    if nix::unistd::geteuid().is_root() {
        return "/var/cache/millrace".into();
    }
    let base = env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache");
    base.unwrap_or_else(home).join("millrace")
}

/// The unpacked package, fetched if it is not in the cache yet. `announce` is called before a download starts.
pub(crate) async fn fetch(package: Package, announce: impl FnOnce(&Package)) -> Result<PathBuf> {
    let cache = directory();
    let place = cache.join(package.folder());
    if place.is_dir() {
        return Ok(place);
    }
    make_shared_dir(&cache)?;
    let _lock = lock(cache.join(format!("{}.lock", package.folder()))).await?;
    if place.is_dir() {
        return Ok(place);
    }
    announce(&package);
    let scratch = tempfile::Builder::new()
        .prefix("unpacking-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in(&cache)
        .map_err(folder_error(&cache))?;
    let tarball = download(&package, scratch.path()).await?;
    unpack(&package, &tarball, scratch.path()).await?;
    let unpacked = scratch.path().join("package");
    restore_links(&unpacked)
        .and_then(|()| make_readable(&unpacked))
        .map_err(|error| Error::Unpack { package: package.to_string(), reason: error.to_string() })?;
    fs::rename(&unpacked, &place).map_err(folder_error(&place))?;
    Ok(place)
}

/// Makes a folder and its parents; the folder itself may be read by everybody.
fn make_shared_dir(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)))
        .map_err(folder_error(path))
}

/// Waits for the lock; it is held as long as the file is open.
async fn lock(path: PathBuf) -> Result<File> {
    let file = File::create(&path).map_err(folder_error(&path))?;
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    locked.map_err(io::Error::other).and_then(|result| result).map_err(folder_error(&path))
}

async fn download(package: &Package, scratch: &Path) -> Result<PathBuf> {
    let name = package.to_string();
    let mut npm = Command::new("npm");
    npm.args(["pack", "--silent", &name, "--pack-destination"]).arg(scratch).current_dir(scratch);
    let output = run(npm, "npm", &name).await?;
    let failed = |reason: String| Error::Download { package: name.clone(), output: reason };
    if !output.status.success() {
        return Err(failed(said(&output)));
    }
    let mut entries = fs::read_dir(scratch).map_err(folder_error(scratch))?;
    entries
        .find_map(|entry| entry.ok().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "tgz")))
        .ok_or_else(|| failed(format!("no tarball was written; {}", said(&output))))
}

async fn unpack(package: &Package, tarball: &Path, scratch: &Path) -> Result<()> {
    let name = package.to_string();
    let mut tar = Command::new("tar");
    tar.args(["-x", "-z", "--no-same-owner", "-f"]).arg(tarball).arg("-C").arg(scratch);
    let output = run(tar, "tar", &name).await?;
    if !output.status.success() {
        return Err(Error::Unpack { package: name, reason: said(&output) });
    }
    Ok(())
}

async fn run(mut command: Command, program: &'static str, package: &str) -> Result<Output> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.map_err(|source| Error::Program { program, package: package.into(), source })
}

fn said(output: &Output) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stderr).trim(),
        String::from_utf8_lossy(&output.stdout).trim()
    );
    if text.is_empty() { output.status.to_string() } else { text }
}

/// A link that the package format cannot carry and lists in a file instead. Both paths are relative to the package.
#[derive(Deserialize)]
struct Link {
    source: PathBuf,
    target: PathBuf,
}

/// Makes the links that PostgreSQL's packages list; a package without such a list has none.
fn restore_links(package: &Path) -> io::Result<()> {
    let list = match fs::read(package.join("native/pg-symlinks.json")) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for link in serde_json::from_slice::<Vec<Link>>(&list)? {
        let (Some(name), Some(parent)) = (link.source.file_name(), link.target.parent()) else { continue };
        // Every link points to a file of its own folder; anything else would leave the package.
        if link.source.parent() != Some(parent) || !is_inside(&link.target) {
            return Err(io::Error::other(format!("link {} leads elsewhere", link.target.display())));
        }
        match symlink(name, package.join(&link.target)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
    }
    Ok(())
}

fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

/// Lets everybody read what the owner can read: the engine may run under another user than the one that fetched it.
fn make_readable(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let mode = metadata.permissions().mode();
    let opened = mode | 0o444 | if mode & 0o100 != 0 { 0o111 } else { 0 };
    if opened != mode {
        fs::set_permissions(path, Permissions::from_mode(opened))?;
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            make_readable(&entry?.path())?;
        }
    }
    Ok(())
}

fn folder_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Folder { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_links_are_made_relative_to_their_own_folder() {
        let package = tempfile::tempdir().unwrap();
        let native = package.path().join("native");
        fs::create_dir_all(native.join("lib")).unwrap();
        fs::write(native.join("lib/a.so.1.2"), "code").unwrap();
        let list = r#"[{"source":"native/lib/a.so.1.2","target":"native/lib/a.so"}]"#;
        fs::write(native.join("pg-symlinks.json"), list).unwrap();
        restore_links(package.path()).unwrap();
        assert_eq!(fs::read_link(native.join("lib/a.so")).unwrap(), Path::new("a.so.1.2"));
    }

    #[test]
    fn a_link_that_leaves_the_package_is_refused() {
        let package = tempfile::tempdir().unwrap();
        fs::create_dir_all(package.path().join("native")).unwrap();
        for list in
            [r#"[{"source":"../../passwd","target":"native/x"}]"#, r#"[{"source":"../x","target":"../y"}]"#]
        {
            fs::write(package.path().join("native/pg-symlinks.json"), list).unwrap();
            assert!(restore_links(package.path()).is_err(), "{list}");
        }
    }
}
