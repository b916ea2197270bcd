//! `millrace-fuzz TARGET --seed 7 --seconds 60`: runs a target for longer than the tests do and keeps what makes it panic.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use millrace_fuzz::run::{Limit, any_seed, minimise, run};
use millrace_fuzz::{corpus, seeds, targets};

#[derive(Parser)]
#[command(about = "Mutated bytes against everything that reads bytes of a server.")]
struct Arguments {
    /// pgoutput, copy, values, text or session; all of them one after another where none is named
    target: Option<String>,
    /// Where the mutations begin; a random one unless given
    #[arg(long)]
    seed: Option<u64>,
    /// How long each target is run
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Writes the generated inputs into the corpus instead
    #[arg(long)]
    write_seeds: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.write_seeds {
        for seed in seeds::all() {
            corpus::keep(seed.target, &seed.name, &seed.input)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let seed = arguments.seed.unwrap_or_else(any_seed);
    let named = |name: &String| targets::find(name).with_context(|| format!("there is no target {name}"));
    let chosen = match &arguments.target {
        Some(name) => vec![named(name)?],
        None => targets::ALL.iter().collect(),
    };
    for target in chosen {
        let outcome = run(target, seed, Limit::Time(Duration::from_secs(arguments.seconds)))?;
        let Some(crash) = outcome.crash else {
            println!("{}: {} inputs from seed {seed}, no crash", target.name, outcome.inputs);
            continue;
        };
        println!("{crash}");
        std::panic::set_hook(Box::new(|_| {}));
        let smallest = minimise(target, &crash);
        let path = corpus::keep(target.name, &format!("crash-{seed}-{}", outcome.inputs), &smallest)?;
        println!("kept, made smaller, as {}", path.display());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
