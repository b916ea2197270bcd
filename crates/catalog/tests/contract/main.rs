//! What every catalog must do, shown on each, and what is particular to one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod dump;
mod postgres;
mod sqlite;
mod story;
mod suite;

/// Not a test: devstack's guard, when this binary is started as one.
#[test]
fn devstack_guard() {
    millrace_devstack::guard_test();
}
