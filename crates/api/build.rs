//! Compiles the protos without protoc and keeps their descriptors for reflection and JSON.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const PROTOS: [&str; 3] = [
    "millrace/pipe/v1/pipe_service.proto",
    "millrace/pipe/v1/fleet_service.proto",
    "millrace/worker/v1/worker_service.proto",
];

/// Messages that hold a secret: their `Debug` is written by hand.
const SECRET: [&str; 2] = [".millrace.pipe.v1.PostgresSource", ".millrace.pipe.v1.ClickHouseDestination"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let descriptors = protox::compile(PROTOS, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        // Clients are made in `client`; a generated `connect` would clash with the RPC of that name.
        .build_transport(false)
        .btree_map(".")
        .skip_debug(SECRET)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
