//! Engines for one test each, plain HTTP, and waiting for a state.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clickhouse::Client;
use millrace_devstack::{ClickHouse, ClickHouseOptions, Launcher, temporary_dir};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The guard as a program of its own.
pub(crate) fn launcher() -> Launcher {
    Launcher::new(env!("CARGO_BIN_EXE_millrace-devstack"), [] as [&str; 0])
}

/// A ClickHouse on an empty folder, which goes with it.
pub(crate) struct Fresh {
    pub(crate) server: ClickHouse,
    pub(crate) folder: TempDir,
}

impl Fresh {
    pub(crate) async fn start() -> Result<Self> {
        let folder = temporary_dir()?;
        let server = ClickHouse::start(launcher(), ClickHouseOptions::new(folder.path())).await?;
        Ok(Self { server, folder })
    }

    /// A client as the product has it: inserts are synchronous.
    pub(crate) fn client(&self) -> Client {
        Client::default().with_url(self.server.url()).with_setting("async_insert", "0")
    }

    /// Stops it well; a crash on the way down fails the test.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.server.stop().await?;
        self.folder.close()?;
        Ok(())
    }
}

/// One number.
pub(crate) async fn number(client: &Client, sql: &str) -> Result<u64> {
    client.query(sql).fetch_one::<u64>().await.with_context(|| sql.to_owned())
}

/// Sends bytes as they are and reads until the other side closes.
pub(crate) async fn raw(url: &str, request: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A POST with this target and body.
pub(crate) async fn post(url: &str, target: &str, body: &str) -> Result<String> {
    let length = body.len();
    let request = format!(
        "POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    raw(url, request.as_bytes()).await
}

/// A GET of this target.
pub(crate) async fn get(url: &str, target: &str) -> Result<String> {
    raw(url, format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await
}

/// Waits until a state is reached; looks at it again and again.
pub(crate) async fn until<F: Future<Output = Result<bool>>>(
    what: &str,
    mut state: impl FnMut() -> F,
) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !state().await? {
        if Instant::now() > deadline {
            bail!("not within 30 s: {what}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Whether a process runs; one that only waits to be collected does not.
pub(crate) fn runs(pid: i32) -> bool {
    let state = |text: String| text.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(state)
        .is_some_and(|state| state != 'Z')
}
