//! Compiles the messages with protox, a protobuf compiler in Rust: no `protoc` on the machine.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    // Messages that need no gRPC: no tonic in the tree of those who only speak the session's framing.
    compile("proto/session.proto", false)?;
    let federation = "proto/federation.proto";
    if std::env::var_os("CARGO_FEATURE_GRPC").is_some() && Path::new(federation).exists() {
        compile(federation, true)?;
    }
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}

fn compile(file: &str, services: bool) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_client(services)
        .build_server(services)
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
