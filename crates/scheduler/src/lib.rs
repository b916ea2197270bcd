//! Who does what, decided purely.
//!
//! Owns: cutting a table into partitions ([`partition`]) and placing work on workers ([`plan`]).
//!
//! Never contains: a clock, persistence, RPC. A plan says why it does what it does, and its `Display` is what logs and tests show.
//!
//! Start reading at [`plan`].

mod fleet;
pub mod partition;
pub mod plan;
