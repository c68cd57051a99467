//! Rules about the sources that no compiler checks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use mesh_structure::{imports, members, rings, root};
use proc_macro2::{TokenStream, TokenTree};

/// Lines of a source file at most.
const FILE_LINES: usize = 600;
/// Columns of a line of a comment at most.
const COMMENT_COLUMNS: usize = 100;

/// Crates whose rings are yet to be opened.
const WITH_RINGS: [&str; 2] = ["tests/bench", "tests/harness"];

#[test]
fn no_crate_has_a_ring_of_imports() {
    let mut found = Vec::new();
    let mut left: BTreeSet<_> = WITH_RINGS.into();
    for member in members() {
        for file in ["src/lib.rs", "src/main.rs"] {
            let file = member.folder.join(file);
            if !file.exists() {
                continue;
            }
            let found_here = rings(&imports(&file));
            if !found_here.is_empty() && WITH_RINGS.contains(&&*short(&member.folder)) {
                left.remove(&*short(&member.folder));
                continue;
            }
            for ring in found_here {
                found.push(format!("{}:", short(&file)));
                let name = |path: &[String]| if path.is_empty() { "(root)".into() } else { path.join("::") };
                found.extend(ring.iter().map(|import| {
                    format!("  {} -> {}: {}", name(&import.from), name(&import.to), import.path)
                }));
            }
        }
    }
    assert!(found.is_empty(), "rings of imports:\n{}", found.join("\n"));
    assert!(left.is_empty(), "without rings now, so take them off the list: {left:?}");
}

#[test]
fn no_file_has_more_than_600_lines() {
    let long: Vec<_> = sources(&["rs", "proto", "sh"])
        .into_iter()
        .filter_map(|file| {
            let lines = text(&file).lines().count();
            (lines > FILE_LINES).then(|| format!("{lines} {}", short(&file)))
        })
        .collect();
    assert!(long.is_empty(), "files past {FILE_LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn no_line_of_a_comment_has_more_than_100_columns() {
    let mut long = Vec::new();
    for file in sources(&["rs", "proto", "toml", "sh"]) {
        for (number, line) in text(&file).lines().enumerate() {
            let line = line.trim_start();
            let is_comment =
                line.starts_with("//") || line.starts_with('#') && !has_extension(&file, &["rs"]);
            // A link cannot be broken.
            if is_comment && line.chars().count() > COMMENT_COLUMNS && !line.contains("://") {
                long.push(format!("{}:{}", short(&file), number + 1));
            }
        }
    }
    assert!(long.is_empty(), "comments past {COMMENT_COLUMNS} columns:\n{}", long.join("\n"));
}

#[test]
fn every_declared_dependency_is_used() {
    let mut unused = Vec::new();
    for member in members() {
        let product = words(&[member.folder.join("src")]);
        let build = words(&[member.folder.join("build.rs")]);
        let tests = words(&["src", "tests", "benches", "examples"].map(|folder| member.folder.join(folder)));
        let kinds = [
            (&member.dependencies, &product),
            (&member.dev_dependencies, &tests),
            (&member.build_dependencies, &build),
        ];
        for (declared, used) in kinds {
            let missing = declared
                .iter()
                .filter(|name| !used.contains(&name.replace('-', "_")) && !member.generated.contains(*name));
            unused.extend(missing.map(|name| format!("{}: {name}", short(&member.folder))));
        }
    }
    let everywhere: BTreeSet<_> = members()
        .into_iter()
        .flat_map(|member| [member.dependencies, member.dev_dependencies, member.build_dependencies])
        .flatten()
        .collect();
    let workspace: toml::Table = text(&root().join("Cargo.toml")).parse().expect("a manifest");
    let declared = workspace["workspace"]["dependencies"].as_table().expect("a table");
    let fuzz = text(&root().join("tests/fuzz/Cargo.toml"));
    unused.extend(
        declared
            .keys()
            .filter(|name| !everywhere.contains(*name) && !fuzz.contains(*name))
            .map(|name| format!("workspace: {name}")),
    );
    assert!(unused.is_empty(), "dependencies that nothing uses:\n{}", unused.join("\n"));
}

/// Returns the identifiers of the Rust sources in folders, those of attributes included.
fn words(places: &[PathBuf]) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for file in places.iter().flat_map(|place| files(place)).filter(|file| has_extension(file, &["rs"])) {
        let tokens: TokenStream =
            text(&file).parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        collect(tokens, &mut words);
    }
    words
}

fn collect(tokens: TokenStream, words: &mut BTreeSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => collect(group.stream(), words),
            TokenTree::Ident(ident) => drop(words.insert(ident.to_string())),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

/// Returns the files of the workspace's packages with one of these extensions, and those of the
/// fuzz targets.
fn sources(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = members().iter().flat_map(|member| files(&member.folder)).collect();
    found.extend(files(&root().join("tests/fuzz/targets")));
    found.push(root().join("Cargo.toml"));
    found.push(root().join("dev"));
    found.retain(|file| has_extension(file, extensions) || file.ends_with("dev"));
    found.sort();
    found.dedup();
    found
}

fn has_extension(file: &Path, extensions: &[&str]) -> bool {
    file.extension().is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted))
}

/// Returns the files in a folder and in those below it, or the file itself.
fn files(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let Ok(entries) = fs::read_dir(place) else { return Vec::new() };
    entries.flat_map(|entry| files(&entry.expect("an entry").path())).collect()
}

fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn short(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}
