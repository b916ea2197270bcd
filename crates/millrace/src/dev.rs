//! `millrace dev`: coordinator, workers and an embedded ClickHouse, to try Millrace out with one command.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use millrace_coordinator::Coordinator;
use millrace_devstack::{ClickHouse, ClickHouseOptions, Launcher};
use millrace_model::Labels;
use millrace_worker::Worker;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::config::{ByteSize, catalog_file, check_listen};
use crate::serve::{flush, open_catalog, stop_signal};

/// What `millrace dev` is told.
#[derive(Args, Debug)]
pub(crate) struct DevArgs {
    /// Everything is kept here.
    #[arg(long, default_value = ".millrace")]
    data_dir: PathBuf,
    /// Address of the coordinator.
    #[arg(long, default_value = "127.0.0.1:7400")]
    listen: SocketAddr,
    /// Workers in this process.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Whether to start a ClickHouse.
    #[arg(long, value_enum, default_value_t = Engine::Embedded)]
    clickhouse: Engine,
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:8123")]
    clickhouse_listen: SocketAddr,
    /// Most copies of each worker at a time; streams are not counted.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    max_tasks: u32,
    /// Ceiling of the memory that data may take, for each worker.
    #[arg(long, default_value = "256MiB")]
    memory_budget: ByteSize,
    /// Serve beyond this machine although nothing is encrypted and nobody is asked who he is.
    #[arg(long)]
    insecure: bool,
    /// OTLP/gRPC endpoint of a collector.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// What is logged.
    #[arg(long, env = "MILLRACE_LOG", default_value = "warn")]
    log_filter: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// The real engine as a library, in a process of its own.
    Embedded,
    /// Pipes name a ClickHouse of their own.
    None,
}

/// Runs until SIGTERM or Ctrl-C.
pub(crate) async fn run(arguments: DevArgs) -> anyhow::Result<()> {
    check_listen(arguments.listen, arguments.insecure)?;
    check_listen(arguments.clickhouse_listen, arguments.insecure)?;
    let telemetry = millrace_telemetry::init(millrace_telemetry::Config {
        otlp_endpoint: arguments.otlp_endpoint.clone(),
        log_filter: arguments.log_filter.clone(),
        ..millrace_telemetry::Config::new("millrace-dev")
    })?;
    let stop = stop_signal()?;
    let catalog = open_catalog(&catalog_file(&arguments.data_dir)).await?;
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {}; pass another --listen", arguments.listen))?;
    let address = format!("http://{}", listener.local_addr()?);
    let clickhouse = match arguments.clickhouse {
        Engine::None => None,
        Engine::Embedded => Some(start_clickhouse(&arguments).await?),
    };

    let mut workers = JoinSet::new();
    // Workers leave first, so that the coordinator hears what they finish; then the coordinator; ClickHouse last.
    let (stop_coordinator, leave) = (tokio_util::sync::CancellationToken::new(), stop.clone());
    for number in 1..=arguments.workers {
        let config = millrace_worker::Config {
            coordinators: vec![address.clone()],
            id: format!("worker-{number}").parse()?,
            max_tasks: arguments.max_tasks,
            memory_budget: arguments.memory_budget.0,
            labels: Labels::default(),
        };
        workers.spawn(Worker::new(config).run(leave.clone()));
    }
    let coordinator = Coordinator::new(millrace_coordinator::Config::default(), catalog, listener);
    let serving = tokio::spawn(coordinator.run(stop_coordinator.clone()));
    let shown = clickhouse.as_ref().map_or("none".to_owned(), ClickHouse::url);
    println!("ready address={address} clickhouse={shown}");

    stop.cancelled().await;
    while workers.join_next().await.is_some() {}
    stop_coordinator.cancel();
    serving.await.context("the coordinator panicked")??;
    if let Some(mut clickhouse) = clickhouse {
        clickhouse.stop().await.context("ClickHouse did not stop")?;
    }
    flush(telemetry).await;
    Ok(())
}

async fn start_clickhouse(arguments: &DevArgs) -> anyhow::Result<ClickHouse> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let launcher = Launcher::new(program, ["devstack"]);
    let options = ClickHouseOptions {
        listen: arguments.clickhouse_listen,
        ..ClickHouseOptions::new(arguments.data_dir.join("clickhouse"))
    };
    ClickHouse::start(launcher, options).await.context("cannot start the embedded ClickHouse")
}
