//! `millrace`: coordinator, worker, both in one (`dev`), and the commands that talk to them. No logic of its own.

mod catalog;
mod config;
#[cfg(feature = "dev")]
mod dev;
mod serve;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use millrace_cli::{ClientCommand, Globals, PipeCommand, SourceCommand, TopOptions, WorkerCommand};

/// Copies PostgreSQL tables into ClickHouse and keeps them in step.
#[derive(Parser)]
#[command(name = "millrace", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything in one process, with an embedded ClickHouse, to try Millrace out.
    #[cfg(feature = "dev")]
    Dev(dev::DevArgs),
    /// Run a coordinator.
    Coordinator(config::CoordinatorArgs),
    /// Run a worker, or see the workers of a coordinator.
    #[command(args_conflicts_with_subcommands = true)]
    Worker(WorkerEntry),
    /// Make, see and steer pipes.
    Pipe {
        #[command(flatten)]
        globals: Globals,
        #[command(subcommand)]
        command: PipeCommand,
    },
    /// Follow all pipes at a glance.
    Top {
        #[command(flatten)]
        globals: Globals,
        #[command(flatten)]
        options: TopOptions,
    },
    /// Look at a source.
    Source {
        #[command(flatten)]
        globals: Globals,
        #[command(subcommand)]
        command: SourceCommand,
    },
    /// Look after a catalog: bring it up to date, move it to another place.
    Catalog {
        #[command(subcommand)]
        command: catalog::CatalogCommand,
    },
    /// What the servers of `dev` run as; not for people.
    #[cfg(feature = "dev")]
    #[command(hide = true)]
    Devstack {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

#[derive(Args)]
struct WorkerEntry {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Option<WorkerCommand>,
    #[command(flatten)]
    run: config::WorkerArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Servers of `dev` must not start a runtime: they hold libraries that want the process for themselves.
    #[cfg(feature = "dev")]
    if let Command::Devstack { arguments } = cli.command {
        return millrace_devstack::guard_main(arguments);
    }
    // Two providers come in through dependencies; without a choice the first TLS connection would panic.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(run(cli.command))
}

async fn run(command: Command) -> ExitCode {
    let served = match command {
        Command::Pipe { globals, command } => return client(ClientCommand::Pipe(command), &globals).await,
        Command::Top { globals, options } => return client(ClientCommand::Top(options), &globals).await,
        Command::Source { globals, command } => {
            return client(ClientCommand::Source(command), &globals).await;
        }
        Command::Worker(WorkerEntry { command: Some(command), globals, .. }) => {
            return client(ClientCommand::Worker(command), &globals).await;
        }
        Command::Worker(WorkerEntry { command: None, run, .. }) => serve::worker(run).await,
        Command::Catalog { command } => catalog::run(command).await,
        Command::Coordinator(arguments) => serve::coordinator(arguments).await,
        #[cfg(feature = "dev")]
        Command::Dev(arguments) => dev::run(arguments).await,
        #[cfg(feature = "dev")]
        Command::Devstack { .. } => Ok(()),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn client(command: ClientCommand, globals: &Globals) -> ExitCode {
    millrace_cli::run(command, globals, millrace_telemetry::trace_interceptor).await
}
