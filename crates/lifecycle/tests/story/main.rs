//! Pipes living through whole stories: reports and commands go in, the history and the wanted work come out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod addition;
mod edit;
mod failure;
mod harness;
mod initial;
mod pause;
mod removal;
mod restart;
mod resync;
mod verification;
