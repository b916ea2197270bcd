//! The wire and file forms of what the `model` crate holds, and nothing that acts on them.
//!
//! Owns: the generated code ([`proto`]), the checked conversions between it and the model ([`spec`], [`worker`], [`offer`],
//! [`problem`], [`time`]), errors as they travel in gRPC ([`status`]) and as a client reads them ([`ApiError`]), client
//! constructors ([`client`]), proto JSON ([`json`]) and the YAML form of a pipe ([`yaml`]).
//!
//! Never contains: handlers, decisions, I/O other than dialling and reading the files that a `pipe.yaml` refers to.
//!
//! What comes in is checked by `TryFrom`, which lists every violation with the path of its field in a [`ProtocolError`]; what
//! goes out is a `From`, which cannot fail. Start reading at [`spec`].

pub mod client;
pub mod edit;
pub mod error;
pub mod json;
pub mod offer;
pub mod problem;
pub mod spec;
pub mod status;
pub mod time;
pub mod violation;
pub mod worker;
pub mod yaml;

pub use client::{Clients, ConnectError, connect};
pub use error::ApiError;
pub use violation::{ProtocolError, Violation};

/// The generated code, for service traits, clients and the messages that only pass through.
///
/// Everything the model has a word for leaves this crate as the model's type.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::large_futures,
    clippy::large_enum_variant,
    clippy::doc_markdown
)]
pub mod proto {
    pub mod pipe {
        pub mod v1 {
            tonic::include_proto!("millrace.pipe.v1");
        }
    }
    pub mod worker {
        pub mod v1 {
            tonic::include_proto!("millrace.worker.v1");
        }
    }

    /// The encoded `FileDescriptorSet` of all services, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
