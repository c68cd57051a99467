//! Generates the gRPC code with Debian's `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["types", "control", "session", "local"].map(|f| format!("proto/mesh/v1/{f}.proto"));
    tonic_prost_build::configure().compile_protos(&files, &["proto".into()])?;
    Ok(())
}
