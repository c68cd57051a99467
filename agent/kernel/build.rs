//! Builds the eBPF programs (crate `mesh-ebpf`) for `bpfel-unknown-none`; the loader embeds the
//! object.
//!
//! It takes a Rust compiler with a prebuilt `core` for that target (Debian: `rustc-web`,
//! `libstd-rust-web-dev-bpf`) and bpf-linker. `MESH_BPF_RUSTC` names another compiler; one that
//! lacks the prebuilt `core` needs its sources (rustup: the component `rust-src`), from which it is
//! then built.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";
const BINARY: &str = "mesh-datapath";
const DEFAULT_RUSTC: &str = "/usr/bin/rustc";
const HINT: &str = "run `./dev setup`, which installs the eBPF toolchain";

fn main() {
    println!("cargo::rerun-if-env-changed=MESH_BPF_RUSTC");
    for path in ["programs/src", "programs/Cargo.toml", "types/src", "types/Cargo.toml"] {
        println!("cargo::rerun-if-changed=../../ebpf/{path}");
    }
    if let Err(message) = build() {
        println!("cargo::error={message}");
    }
}

fn build() -> Result<(), String> {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let rustc = env::var_os("MESH_BPF_RUSTC").unwrap_or_else(|| DEFAULT_RUSTC.into());
    let core = has_core(&rustc)?;
    let target_dir = out.join("ebpf");

    let mut cargo = Command::new(variable("CARGO")?);
    // What cargo and clippy set for the host's own build has no place in this one.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let of_outer_build =
            name.starts_with("CARGO_") && !matches!(name.as_str(), "CARGO_HOME" | "CARGO_NET_OFFLINE");
        if of_outer_build
            || name.starts_with("RUSTC")
            || matches!(name.as_str(), "RUSTFLAGS" | "RUSTDOC" | "CLIPPY_ARGS")
        {
            cargo.env_remove(name);
        }
    }
    cargo
        .current_dir(manifest)
        .args([
            "build",
            "--quiet",
            "--package",
            "mesh-ebpf",
            "--bin",
            BINARY,
            "--profile",
            "bpf",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC", &rustc)
        // The target is tier 3: its options are unstable, in a released compiler too.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", rustflags(&bpf_linker()?)?);
    if !core {
        cargo.args(["-Z", "build-std=core"]);
    }
    let output =
        cargo.output().map_err(|error| format!("cannot run cargo for the eBPF programs: {error}"))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the eBPF programs do not build (hint: {HINT}): {}", log.replace('\n', " | ")));
    }
    let object = target_dir.join(TARGET).join("bpf").join(BINARY);
    std::fs::copy(&object, out.join(BINARY))
        .map_err(|error| format!("cannot copy {}: {error}", object.display()))?;
    Ok(())
}

/// Whether the compiler brings `core` for the target.
fn has_core(rustc: &OsStr) -> Result<bool, String> {
    let name = rustc.to_string_lossy();
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .env("RUSTC_BOOTSTRAP", "1")
        .output()
        .map_err(|error| format!("cannot run {name} to build the eBPF programs: {error} (hint: {HINT})"))?;
    if !output.status.success() {
        return Err(format!("{name} does not know the target {TARGET} (hint: {HINT})"));
    }
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let Ok(mut entries) = std::fs::read_dir(directory) else { return Ok(false) };
    Ok(entries
        .any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))))
}

/// Finds bpf-linker in `PATH`, or where `cargo install` puts it.
fn bpf_linker() -> Result<PathBuf, String> {
    let mut places: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    places.extend(env::var_os("CARGO_HOME").map(PathBuf::from).or(home).map(|cargo| cargo.join("bin")));
    places
        .into_iter()
        .map(|place| place.join("bpf-linker"))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("bpf-linker is not installed (hint: {HINT})"))
}

fn rustflags(linker: &Path) -> Result<OsString, String> {
    let linker = linker.to_str().ok_or("the path of bpf-linker is not UTF-8")?;
    // By default the linker makes memset and memcmp calls, which are loops over bytes.
    Ok(format!(
        "-Clinker={linker} -Clink-arg=--btf -Ctarget-cpu=v3 -Clink-arg=--disable-expand-memcpy-in-order"
    )
    .into())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
