//! Placeholder.
#[allow(missing_docs)]
pub mod proto {
    pub mod pipe { tonic::include_proto!("millrace.pipe.v1"); }
}
