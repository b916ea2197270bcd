//! End to end: real processes of coordinator and workers between a real PostgreSQL and the real ClickHouse engine.
//!
//! Every test has servers of its own, so that it may kill them. Nothing here sleeps for a time: tests wait for states, and compare both sides once the pipe says
//! that it has carried everything.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod backlog;
mod chaos;
mod cluster;
mod commands;
mod coordinators;
mod crash;
mod engines;
mod evolution;
mod exhaustion;
mod failover;
mod in_progress;
mod isolation;
mod life;
mod load;
mod losses;
mod modes;
mod partitions;
mod refusal;
mod resync;
mod selection;
mod shared;
mod stack;
mod surface;
mod tables;
mod toast;
mod transactions;
mod types;
mod values;
mod verify;
mod versions;
mod workload;
