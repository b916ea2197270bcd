//! Fetching packages: what is missing is said, and processes that want the same package wait for one another.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use millrace_devstack::{ClickHouse, ClickHouseOptions, Launcher, temporary_dir};

/// A guard with this PATH and an empty cache.
fn launcher(path: &str, cache: &Path) -> Launcher {
    let variables = [format!("PATH={path}"), format!("MILLRACE_CACHE_DIR={}", cache.display())];
    let program = env!("CARGO_BIN_EXE_millrace-devstack").to_owned();
    Launcher::new("/usr/bin/env", variables.into_iter().chain([program]))
}

async fn failure(launcher: Launcher, data: &Path) -> Result<String> {
    let server = ClickHouse::start(launcher, ClickHouseOptions::new(data)).await;
    Ok(server.err().context("it must not start")?.to_string())
}

/// A program `npm` in a folder of its own.
fn npm(folder: &Path, script: &str) -> Result<String> {
    let bin = folder.join("bin");
    fs::create_dir_all(&bin)?;
    fs::write(bin.join("npm"), format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(bin.join("npm"), fs::Permissions::from_mode(0o755))?;
    Ok(format!("{}:/usr/bin:/bin", bin.display()))
}

#[tokio::test]
async fn a_missing_npm_is_named() -> Result<()> {
    let folder = temporary_dir()?;
    let error =
        failure(launcher("/nowhere", &folder.path().join("cache")), &folder.path().join("data")).await?;
    assert!(error.contains("`npm` cannot be run") && error.contains("26.7.3"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_failed_download_is_reported_in_npms_words_and_leaves_nothing() -> Result<()> {
    let folder = temporary_dir()?;
    let path = npm(folder.path(), "echo 'npm error 404 gone' >&2; exit 1")?;
    let cache = folder.path().join("cache");
    let error = failure(launcher(&path, &cache), &folder.path().join("data")).await?;
    assert!(error.contains("npm error 404 gone"), "{error}");
    let left: Vec<_> = fs::read_dir(&cache)?.filter_map(|entry| entry.ok().map(|e| e.file_name())).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".lock")), "{left:?}");
    Ok(())
}

#[tokio::test]
async fn two_processes_fetch_a_package_once() -> Result<()> {
    let folder = temporary_dir()?;
    // The last argument is where the tarball is to go. What is in it is no library.
    let script = "echo fetched >> \"$(dirname \"$0\")/count\"; for to; do :; done; cd \"$to\" || exit 1
mkdir package && echo text > package/libchdb.so && tar -czf x.tgz package && rm -r package && sleep 0.3";
    let path = npm(folder.path(), script)?;
    let cache = folder.path().join("cache");
    let [one, two] = ["one", "two"].map(|data| folder.path().join(data));
    let (first, second) =
        tokio::join!(failure(launcher(&path, &cache), &one), failure(launcher(&path, &cache), &two));
    for error in [first?, second?] {
        assert!(error.contains("libchdb.so cannot be loaded"), "{error}");
    }
    assert_eq!(fs::read_to_string(folder.path().join("bin/count"))?, "fetched\n");
    Ok(())
}
