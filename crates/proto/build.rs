//! Compiles `/proto` with protox, so that no protoc is needed.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = [
        "timberline/v1/common.proto",
        "timberline/v1/producer.proto",
        "timberline/v1/consumer.proto",
        "timberline/v1/metadata.proto",
        "timberline/v1/admin.proto",
        "timberline/v1/group.proto",
        "timberline/internal/v1/group.proto",
        "timberline/internal/v1/metadata.proto",
        "timberline/internal/v1/peer.proto",
    ];
    let descriptors = protox::compile(files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // What brokers say to each other is no client's business.
    let mut of_clients = descriptors.clone();
    of_clients
        .file
        .retain(|file| file.package() != "timberline.internal.v1");
    std::fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&of_clients),
    )?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::SizedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
