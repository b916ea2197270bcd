//! `cargo xtask chaos`: a real fleet under random faults, for as long as one likes.

use std::time::Duration;

use anyhow::bail;
use clap::Args;

use crate::binary;

/// What to run.
#[derive(Args, Debug, Clone)]
pub(crate) struct ChaosArgs {
    /// Decides the schedule of faults and what clients do.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// About how long faults come, in minutes.
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Put each worker on a host of its own, played by network namespaces: for root on Linux.
    #[arg(long)]
    hosts: bool,
    /// Use an optimised build.
    #[arg(long)]
    release: bool,
}

pub(crate) async fn run(arguments: ChaosArgs) -> anyhow::Result<()> {
    let release = arguments.release;
    let program = tokio::task::spawn_blocking(move || binary::build(release)).await??;
    let folder = binary::target().join("chaos").join(arguments.seed.to_string());
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    println!("logs and data are in {}", folder.display());
    let options = millrace_chaos::Options {
        program,
        folder,
        seed: arguments.seed,
        length: Duration::from_secs(60 * arguments.minutes),
        tells: true,
        hosts: arguments.hosts,
    };
    let outcome = millrace_chaos::run(&options).await?;
    println!("\n{outcome}");
    if !outcome.wrong.is_empty() {
        bail!("seed {} found something", arguments.seed);
    }
    Ok(())
}
