//! What every catalog must do, shown on each, and what is particular to one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod sqlite;
mod story;
mod suite;
