//! Running the two services until somebody asks them to stop.

use anyhow::Context;
use millrace_catalog::{AnyCatalog, Location};
use millrace_coordinator::Coordinator;
use millrace_worker::Worker;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{CoordinatorArgs, WorkerArgs};

/// Serves until SIGTERM or Ctrl-C.
pub(crate) async fn coordinator(arguments: CoordinatorArgs) -> anyhow::Result<()> {
    let config = arguments.resolve()?;
    let telemetry = millrace_telemetry::init(config.telemetry)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let catalog = open_catalog(&config.catalog).await?;
    let address = listener.local_addr()?;
    tracing::info!(%address, catalog = %config.catalog, "coordinator serves");
    println!("ready address=http://{address}");
    let stop = stop_signal()?;
    let coordinator = millrace_coordinator::Config { advertise: config.advertise, ..Default::default() };
    let served = Coordinator::new(coordinator, catalog, listener).run(stop).await;
    flush(telemetry).await;
    Ok(served?)
}

/// Works until SIGTERM or Ctrl-C, then hands back what it holds.
pub(crate) async fn worker(arguments: WorkerArgs) -> anyhow::Result<()> {
    let config = arguments.resolve()?;
    let telemetry = millrace_telemetry::init(config.telemetry)?;
    tracing::info!(worker.id = %config.worker.id, coordinators = ?config.worker.coordinators, "worker starts");
    Worker::new(config.worker).run(stop_signal()?).await;
    flush(telemetry).await;
    Ok(())
}

/// Sends what is still to be exported; a collector that is away must not turn a good end into a bad one.
pub(crate) async fn flush(telemetry: millrace_telemetry::Guard) {
    if let Err(error) = telemetry.shutdown().await {
        tracing::warn!(%error, "the last spans or metrics were not exported");
    }
}

/// Opens a catalog, or makes it.
pub(crate) async fn open_catalog(location: &Location) -> anyhow::Result<AnyCatalog> {
    Ok(location.open().await?)
}

/// Cancelled by the first SIGTERM or Ctrl-C. A second one ends the process at once.
pub(crate) fn stop_signal() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let stop = token.clone();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    // Lives as long as the process: there is nobody to hand it to.
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(token)
}
