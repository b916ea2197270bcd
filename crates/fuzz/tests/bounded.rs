//! Every target on every kept input, and on a bounded number of mutated ones.
//!
//! `MILLRACE_FUZZ_SEED` and `MILLRACE_FUZZ_INPUTS` (a target) choose others; a failure names its seed and shows its input.

use millrace_fuzz::run::{Limit, run};
use millrace_fuzz::{corpus, seeds, targets};

fn setting(name: &str, otherwise: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

fn bounded(name: &str, inputs: u64) {
    let target = targets::find(name).expect("a target of that name");
    let limit = Limit::Inputs(setting("MILLRACE_FUZZ_INPUTS", inputs));
    let outcome = run(target, setting("MILLRACE_FUZZ_SEED", 7), limit).expect("the kept inputs can be read");
    if let Some(crash) = outcome.crash {
        panic!("{crash}");
    }
}

#[test]
fn messages_of_pgoutput() {
    bounded("pgoutput", 12_000);
}

#[test]
fn tuples_of_a_copy() {
    bounded("copy", 1_500);
}

#[test]
fn values_of_every_type() {
    bounded("values", 2_500);
}

#[test]
fn text_forms() {
    bounded("text", 1_000);
}

#[test]
fn whole_sessions() {
    bounded("session", 6_000);
}

/// A generator that has gone its own way would be noticed too late, when somebody needs it.
#[test]
fn the_generated_inputs_are_the_kept_ones() {
    let all = seeds::all();
    for target in targets::ALL {
        let kept = corpus::load(target.name).expect("the kept inputs can be read");
        for seed in all.iter().filter(|seed| seed.target == target.name) {
            let same = kept.iter().any(|(name, input)| (name, input) == (&seed.name, &seed.input));
            assert!(same, "{}/{} differs; run millrace-fuzz --write-seeds", seed.target, seed.name);
        }
    }
}
