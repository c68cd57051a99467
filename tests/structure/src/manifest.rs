//! The packages of the workspace and what they declare.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use toml::Table;

/// A package of the workspace.
#[derive(Debug)]
pub struct Member {
    /// The package's folder.
    pub folder: PathBuf,
    /// The names of its dependencies for the product, as `Cargo.toml` writes them.
    pub dependencies: BTreeSet<String>,
    /// Likewise for its tests, benchmarks and examples.
    pub dev_dependencies: BTreeSet<String>,
    /// Likewise for its build script.
    pub build_dependencies: BTreeSet<String>,
    /// Those that only generated code uses, as `cargo machete` reads them.
    pub generated: BTreeSet<String>,
}

/// Returns the root folder of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace's root exists")
}

/// Returns the packages of the workspace.
pub fn members() -> Vec<Member> {
    let root = root();
    let workspace = table(&root.join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().expect("a list of members");
    members.iter().map(|member| read(&root.join(member.as_str().expect("a folder")))).collect()
}

fn read(folder: &Path) -> Member {
    let manifest = table(&folder.join("Cargo.toml"));
    let names = |section: &str| {
        manifest
            .get(section)
            .and_then(|table| table.as_table())
            .into_iter()
            .flat_map(Table::keys)
            .cloned()
            .collect()
    };
    let generated = manifest
        .get("package")
        .and_then(|package| package.get("metadata")?.get("cargo-machete")?.get("ignored")?.as_array())
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    Member {
        folder: folder.to_owned(),
        dependencies: names("dependencies"),
        dev_dependencies: names("dev-dependencies"),
        build_dependencies: names("build-dependencies"),
        generated,
    }
}

fn table(file: &Path) -> Table {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}
