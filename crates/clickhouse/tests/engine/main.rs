//! The adapter against the real engine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod cluster;
mod inserts;
mod inspection;
mod lookup;
mod support;
mod tables;

/// Not a test of its own: the other tests start this binary anew with it, and that process becomes their engine.
#[test]
fn devstack_guard() {
    millrace_devstack::guard_test();
}
