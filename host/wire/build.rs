//! Compiles the messages with protox, a protobuf compiler in Rust: no `protoc` on the machine.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    // Messages that need no gRPC: no tonic in the tree of those who only speak the session's framing.
    compile("proto/session.proto", false)?;
    if std::env::var_os("CARGO_FEATURE_GRPC").is_some() {
        compile("proto/federation.proto", true)?;
        compile("proto/manager.proto", true)?;
        compile("proto/export.proto", true)?;
    }
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}

fn compile(file: &str, services: bool) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        // It would show the secret: src/lib.rs writes one that does not.
        .skip_debug(["cloister.manager.v1.PutSecretRequest"])
        .build_client(services)
        .build_server(services)
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
