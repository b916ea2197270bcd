//! Nothing runs on when the process that started the engines is gone, however it went.

use std::process::Stdio;

use anyhow::{Context as _, Result};
use millrace_devstack::{ClickHouse, ClickHouseOptions, Launcher, Postgres, PostgresOptions, temporary_dir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::support::{runs, until};

/// Where the process that starts the engines keeps its data, and that it is that process.
const FOLDER: &str = "MILLRACE_TEST_PARENT";

/// Not a test by itself: the guard of the engines that [`the_parent`] starts.
#[test]
fn the_guard() {
    millrace_devstack::guard_test();
}

/// Not a test by itself: the process that starts engines and is then ended by the test that started it.
#[tokio::test]
async fn the_parent() -> Result<()> {
    let Some(folder) = std::env::var_os(FOLDER).map(std::path::PathBuf::from) else { return Ok(()) };
    let launcher = Launcher::this_test_binary("left_behind::the_guard")?;
    let clickhouse = ClickHouse::start(launcher.clone(), ClickHouseOptions::new(folder.join("ch"))).await?;
    let postgres = Postgres::start(launcher, PostgresOptions::new(17, folder.join("pg"))).await?;
    println!("\npids {} {}", clickhouse.pid(), postgres.pid());
    // Until it is ended, or told to panic.
    let mut line = String::new();
    BufReader::new(tokio::io::stdin()).read_line(&mut line).await?;
    panic!("as the test wants");
}

async fn nothing_is_left(end: impl FnOnce(&mut tokio::process::Child) -> Result<()>) -> Result<()> {
    let folder = temporary_dir()?;
    let mut parent = Command::new(std::env::current_exe()?)
        .args(["left_behind::the_parent", "--exact", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(parent.stdout.take().context("stdout")?).lines();
    let pids = loop {
        let line = lines.next_line().await?.context("the parent could not start the engines")?;
        if let Some(pids) = line.strip_prefix("pids ") {
            break pids.split(' ').map(str::parse).collect::<Result<Vec<i32>, _>>()?;
        }
    };
    assert!(pids.iter().all(|pid| runs(*pid)));
    end(&mut parent)?;
    parent.wait().await?;
    until("the engines have ended", || async { Ok(!pids.iter().any(|pid| runs(*pid))) }).await?;
    Ok(())
}

fn signal(parent: &tokio::process::Child, signal: Signal) -> Result<()> {
    let pid = i32::try_from(parent.id().context("it runs")?)?;
    Ok(kill(Pid::from_raw(pid), signal)?)
}

#[tokio::test]
async fn nothing_is_left_when_the_parent_is_killed() -> Result<()> {
    nothing_is_left(|parent| signal(parent, Signal::SIGKILL)).await
}

#[tokio::test]
async fn nothing_is_left_after_ctrl_c() -> Result<()> {
    nothing_is_left(|parent| signal(parent, Signal::SIGINT)).await
}

#[tokio::test]
async fn nothing_is_left_after_a_panic() -> Result<()> {
    nothing_is_left(|parent| {
        drop(parent.stdin.take());
        Ok(())
    })
    .await
}
