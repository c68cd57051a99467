//! Checks of every document of the repository.

#![expect(clippy::unwrap_used, reason = "test code, also outside of the test functions themselves")]

use std::collections::BTreeSet;
use std::path::Path;

use mesh_docs::pages::{self, Page};
use mesh_docs::{generated, links, man, prose};
use mesh_structure::{Member, members};

/// The longest sentence, in words.
const MAX_WORDS: usize = 40;
/// The largest median of a page's sentences, in words.
const MAX_MEDIAN: usize = 18;

fn all() -> Vec<Page> {
    let all = pages::all().unwrap();
    assert!(all.iter().any(|page| page.path == Path::new("README.md")), "{all:?}");
    all
}

#[test]
fn the_generated_reference_is_current() {
    for part in generated::parts() {
        let page = std::fs::read_to_string(pages::root().join(part.page)).unwrap();
        assert!(
            generated::updated(&page, &part).unwrap() == page,
            "{} in {} is not current: run cargo run -p mesh-docs -- write",
            part.name,
            part.page
        );
    }
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let broken = links::broken(&all());
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn prose_has_at_most_100_columns() {
    let long: Vec<String> = all()
        .iter()
        .flat_map(|page| {
            let path = page.path.display().to_string();
            prose::long_lines(&page.text).into_iter().map(move |line| format!("{path}:{line}"))
        })
        .collect();
    assert!(long.is_empty(), "too long:\n{}", long.join("\n"));
}

#[test]
fn sentences_are_short() {
    let mut faults = Vec::new();
    for page in all() {
        let path = page.path.display();
        let sentences = prose::sentences(&page.text);
        let median = prose::median(&sentences);
        if median > MAX_MEDIAN {
            faults.push(format!("{path}: median of {median} words"));
        }
        let long = sentences.iter().filter(|sentence| prose::words(sentence) > MAX_WORDS);
        faults.extend(long.map(|sentence| format!("{path}: {} words: {sentence}", prose::words(sentence))));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_table_of_contents_names_every_page_of_the_book() {
    let all = all();
    let is_of_book = |page: &&Page| page.path.starts_with("docs") && !page.path.ends_with("SUMMARY.md");
    let pages: BTreeSet<_> = all.iter().filter(is_of_book).map(|page| page.path.clone()).collect();
    let summary = all.iter().find(|page| page.path.ends_with("SUMMARY.md")).unwrap();
    let named: BTreeSet<_> =
        links::links(&summary.text).into_iter().map(|link| Path::new("docs").join(link)).collect();
    assert_eq!(named, pages);
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let directory = tempfile::tempdir().unwrap();
    man::write(directory.path()).unwrap();
    for (name, content) in [
        ("meshctl.1", "meshctl\\-network(1)"),
        ("meshctl-network-create.1", "\\-\\-subnet"),
        ("meshctl-service-backend-drain.1", "ENDPOINT"),
        ("meshd.8", "\\-\\-state\\-dir"),
    ] {
        let page = std::fs::read_to_string(directory.path().join(name)).unwrap_or_default();
        assert!(page.contains(content), "{name}: {page}");
    }
}

#[test]
fn alerts_use_metrics_that_exist_and_are_described() {
    let read = |path: &str| std::fs::read_to_string(pages::root().join(path)).unwrap();
    let rules = read("docs/operations/alerts.yml");
    let metrics = read("docs/reference/metrics.md");
    let used: BTreeSet<&str> = rules
        .lines()
        .filter(|line| !line.contains("description:"))
        .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .filter(|word| word.starts_with("mesh_"))
        .collect();
    assert!(used.len() > 10, "{used:?}");
    for metric in used {
        assert!(metrics.contains(&format!("| `{metric}` |")), "{metric} is no metric");
    }
    let monitoring = read("docs/operations/monitoring.md");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(!alerts.is_empty());
    for alert in alerts {
        assert!(monitoring.contains(&format!("| `{alert}` |")), "{alert} is not described");
    }
}

/// The names of the crates of Mesh on lines of a file.
fn crates_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(|w| w.starts_with("mesh-")).collect()
}

#[test]
fn every_crate_has_a_short_readme_that_names_what_it_imports() {
    for Member { folder, dependencies, .. } in members() {
        let name = folder.display();
        let readme = std::fs::read_to_string(folder.join("README.md")).unwrap_or_default();
        assert!((5..=15).contains(&readme.lines().count()), "{name}/README.md has 5 to 15 lines");
        let (_, imports) = readme.split_once("**May import:**").unwrap_or_default();
        let allowed = crates_in(imports.split("\n\n").next().unwrap());
        for import in dependencies.iter().filter(|name| name.starts_with("mesh-")) {
            assert!(
                allowed.contains(import.as_str()),
                "{name} imports {import}, and its README does not say so"
            );
        }
    }
}

#[test]
fn the_architecture_names_the_folder_of_every_crate() {
    let root = pages::root().canonicalize().unwrap();
    for page in ["ARCHITECTURE.md", "docs/internals/crates.md"] {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        for Member { folder, .. } in members() {
            let folder = folder.strip_prefix(&root).unwrap().display().to_string();
            let is_named =
                [format!("`{folder}`"), format!("`{folder}/`")].iter().any(|name| text.contains(name));
            assert!(is_named, "{page} does not name {folder}");
        }
    }
}
