//! A real fleet under a random workload and random faults.
//!
//! Two coordinators on a catalog in PostgreSQL, three workers, a PostgreSQL and a ClickHouse, with proxies before both, are struck by what a [`schedule`] says. Clients change
//! the source meanwhile ([`workload`]); a [`watcher`] looks at the destination all the time and accepts only legal steps. At quiet moments and at the end everything must
//! be as at the source, row by row, and nobody may have panicked.
//!
//! The seed decides the schedule and what clients do; how both meet is up to the machine, so a seed that fails may need several tries to fail again.

mod clock;
mod disk;
mod fleet;
mod hosts;
mod memory;
mod run;
pub mod schedule;
mod watcher;
mod workload;

pub use run::{Options, Outcome, run};
