//! The coordinator: it owns the life cycle of every pipe and gives work to the fleet.
//!
//! Owns: the election of the coordinator that leads ([`leadership`]), the reconciler ([`reconciler`]), the sessions of connected workers ([`session`]), what is remembered but not stored ([`memory`]), and the
//! gRPC services in front of them ([`pipe_service`], [`fleet_service`], [`worker_service`]).
//!
//! Never contains: a connection to a user's database, or a row of a user's data. Decisions are made in `millrace-lifecycle` and `millrace-scheduler`;
//! here they are stored, then told.
//!
//! One task, the reconciler, owns all state. Services send it [`input::Input`]s and read what it publishes in the [`directory`]. Every turn of its loop takes what
//! has come in, plans, commits everything in one transaction, and only then answers callers and tells workers. So a crash, a lost message and a first
//! start are one code path: load, plan, commit, tell.
//!
//! Start reading at [`reconciler`].

mod directory;
mod facts;
mod fleet_service;
mod forward;
mod input;
mod inspection;
mod leadership;
mod memory;
mod metrics;
mod pipe_service;
mod reconciler;
mod refused;
mod release;
mod server;
mod session;
mod view;
mod worker_service;

pub use server::{Config, Coordinator, Error};
