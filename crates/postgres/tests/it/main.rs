//! The source adapter against a real PostgreSQL.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod connecting;
mod copying;
mod discovery;
mod inspection;
mod replication;
mod support;
mod versions;

/// Not a test: devstack's guard, when this binary is started as one.
#[test]
fn devstack_guard() {
    millrace_devstack::guard_test();
}
