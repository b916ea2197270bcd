//! Mutated bytes against everything of the product that reads a server's bytes.
//!
//! Owns: the targets ([`targets::ALL`]), each a plain function that panics where a promise is broken; a small mutator that
//! is deterministic in its seed ([`mutate`]); the kept inputs under `corpus/<target>/` that it starts from ([`corpus`]), and
//! the generator of the first of them ([`seeds`]). A found crash is kept there too, so that it is run again for ever.
//!
//! Never contains: I/O with servers, instrumented coverage (stable Rust has none), assertions about what a value means
//! beyond "both forms of a value give the same block".
//!
//! The ordinary tests run every target for a bounded number of inputs; `cargo run -p millrace-fuzz -- pgoutput --seed 7
//! --seconds 60` goes on for longer. Start reading at [`targets`].

pub mod corpus;
pub mod frames;
pub mod mutate;
pub mod run;
pub mod seeds;
pub mod targets;
