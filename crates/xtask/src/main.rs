//! Repository chores: `cargo xtask demo`, `cargo xtask test`, `cargo xtask bench`.

mod bench;
mod binary;
mod chaos;
mod demo;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show Millrace from nothing: PostgreSQL, ClickHouse, a coordinator, two workers, sample data, a pipe, live changes.
    Demo(demo::DemoArgs),
    /// Strike a real fleet with random faults, and compare both sides.
    Chaos(chaos::ChaosArgs),
    /// Run all tests, fetching whatever they need.
    Test(test::TestArgs),
    /// Measure, side by side with the alternatives. All cases with their defaults take 20 to 25 minutes on two cores, `--runs 5` about 50.
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Two providers come in through dependencies; without a choice the first TLS connection would panic.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match cli.command {
        Command::Test(arguments) => test::run(arguments),
        Command::Chaos(arguments) => binary::block_on(chaos::run(arguments)),
        Command::Demo(arguments) => binary::block_on(demo::run(arguments)),
        Command::Bench(arguments) => binary::block_on(bench::run(arguments)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
