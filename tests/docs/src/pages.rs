//! The Markdown files of the repository.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// A Markdown file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Path below the repository's root.
    pub path: PathBuf,
    /// The content.
    pub text: String,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All Markdown files of the repository, in order of their paths.
pub fn all() -> io::Result<Vec<Page>> {
    let root = root();
    let mut pages = Vec::new();
    collect(&root, Path::new(""), &mut pages)?;
    pages.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(pages)
}

fn collect(root: &Path, below: &Path, pages: &mut Vec<Page>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = entry.file_name();
        // Build output, and what git and other tools keep for themselves.
        if name.to_string_lossy().starts_with('.') || name == "target" || name == "corpus" {
            continue;
        }
        let path = below.join(&name);
        if entry.file_type()?.is_dir() {
            collect(root, &path, pages)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(Page { text: fs::read_to_string(root.join(&path))?, path });
        }
    }
    Ok(())
}
