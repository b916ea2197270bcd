//! Replication sessions, built message by message, and the rows that they become.

mod convergence;
mod native;
mod out_of_line;
mod scenarios;
mod scene;
