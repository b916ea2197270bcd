//! The worker: does what a coordinator assigns, and forgets it.
//!
//! Owns: its session with the coordinator ([`session`]), the assignments it holds ([`desk`]), the memory that data may take ([`budget`]), and how each kind
//! of work is done ([`task`]).
//!
//! Never contains: scheduling, durable state of its own. What it reports again after a reconnect is in memory; what dies with it is done again by somebody
//! else.
//!
//! Data flows one way: PostgreSQL's bytes are decoded in place into column buffers, the buffers become blocks, blocks become inserts; what comes back is one number,
//! the position up to which ClickHouse has answered.
//!
//! Start reading at [`session`] for the control side and at [`task::copy`] and [`task::stream`] for the data path.

mod budget;
mod delivery;
mod desk;
mod fence;
mod session;
mod spool;
mod task;

pub use session::{Config, Worker};
