//! Runs of a target: kept inputs first, then mutated ones until a limit.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::corpus;
use crate::mutate::mutate;
use crate::targets::Target;

/// When a run ends, should nothing be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// After so many mutated inputs.
    Inputs(u64),
    /// After so long.
    Time(Duration),
}

/// An input on which a target panicked; the panic's own message went to standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// The target's name.
    pub target: &'static str,
    /// How to come by it: the name of a kept input, or seed and number of a mutated one.
    pub origin: String,
    /// The input.
    pub input: Vec<u8>,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target {} panics with {}: ", self.target, self.origin)?;
        self.input.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Inputs that were run, kept ones included.
    pub inputs: u64,
    /// The first crash, which ends the run.
    pub crash: Option<Crash>,
}

/// Runs a target on every kept input and then on mutated ones. Each mutated input depends on the seed, its number and the
/// kept inputs alone.
///
/// # Errors
/// The kept inputs cannot be read, or there are none.
pub fn run(target: &Target, seed: u64, limit: Limit) -> io::Result<Outcome> {
    let kept = corpus::load(target.name)?;
    let mut inputs = 0;
    let crash = |origin: String, input: &[u8]| Crash { target: target.name, origin, input: input.to_vec() };
    for (name, input) in &kept {
        inputs += 1;
        if panics(target, input) {
            return Ok(Outcome { inputs, crash: Some(crash(format!("the kept input {name}"), input)) });
        }
    }
    let kept: Vec<Vec<u8>> = kept.into_iter().map(|(_, input)| input).collect();
    let began = Instant::now();
    for number in 0u64.. {
        let ended = match limit {
            Limit::Inputs(most) => number >= most,
            Limit::Time(longest) => began.elapsed() >= longest,
        };
        if ended {
            break;
        }
        let mut rng = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let base = kept.choose(&mut rng).ok_or_else(|| io::Error::other("there are no kept inputs"))?;
        let input = mutate(base, &kept, target.shape, &mut rng);
        inputs += 1;
        if panics(target, &input) {
            return Ok(Outcome {
                inputs,
                crash: Some(crash(format!("seed {seed}, input {number}"), &input)),
            });
        }
    }
    Ok(Outcome { inputs, crash: None })
}

/// Makes a crashing input smaller for as long as it still crashes.
pub fn minimise(target: &Target, crash: &Crash) -> Vec<u8> {
    let mut smallest = crash.input.clone();
    let mut step = smallest.len().div_ceil(2);
    while step > 0 {
        let mut at = 0;
        while at < smallest.len() {
            let mut shorter = smallest.clone();
            shorter.drain(at..(at + step).min(smallest.len()));
            if panics(target, &shorter) {
                smallest = shorter;
            } else {
                at += step;
            }
        }
        step /= 2;
    }
    // Zeros are easier to read than chance.
    for at in 0..smallest.len() {
        let mut plainer = smallest.clone();
        plainer[at] = 0;
        if panics(target, &plainer) {
            smallest = plainer;
        }
    }
    smallest
}

fn panics(target: &Target, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err()
}

/// A seed that nobody chose.
pub fn any_seed() -> u64 {
    rand::rng().random()
}
