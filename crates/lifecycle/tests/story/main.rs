//! Pipes living through whole stories: reports and commands go in, the history and the wanted work come out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod harness;
mod initial;
