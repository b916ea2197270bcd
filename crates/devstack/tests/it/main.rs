//! The engines behind this crate's handles, used as the product uses them.

mod clickhouse_inserts;
mod clickhouse_lifetime;
mod clickhouse_queries;
mod fetching;
mod left_behind;
mod postgres;
mod support;
