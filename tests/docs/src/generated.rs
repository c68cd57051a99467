//! The parts of pages that are generated. Each stands between two comments:
//! `<!-- generated: NAME -->` and `<!-- end of NAME -->`.

use std::fs;

use anyhow::{Context, bail};

use crate::{commands, drops, exit_codes, pages};

/// A generated part of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The page, below the repository's root.
    pub page: &'static str,
    /// Its name, unique on the page.
    pub name: &'static str,
    /// What the page must contain.
    pub text: String,
}

/// All generated parts, as the code is now.
pub fn parts() -> Vec<Part> {
    let part = |page, name, text| Part { page, name, text };
    vec![
        part("docs/reference/meshctl.md", "meshctl", commands::tree(mesh_meshctl::command())),
        part("docs/reference/meshd.md", "meshd", commands::single(meshd())),
        part("docs/reference/drop-reasons.md", "drop reasons", drops::explained()),
        part("docs/reference/counters.md", "counters", drops::carried()),
        part("docs/reference/exit-codes.md", "exit codes", exit_codes::table()),
    ]
}

/// The agent's command line.
pub(crate) fn meshd() -> clap::Command {
    <mesh_meshd::config::Flags as clap::CommandFactory>::command()
}

/// What `page` would be with the current part in it.
pub fn updated(page: &str, part: &Part) -> anyhow::Result<String> {
    let (begin, end) =
        (format!("<!-- generated: {} -->\n", part.name), format!("<!-- end of {} -->", part.name));
    let Some((before, rest)) = page.split_once(&begin) else {
        bail!("{}: no line {}", part.page, begin.trim());
    };
    let Some((_, after)) = rest.split_once(&end) else { bail!("{}: no line {end}", part.page) };
    Ok(format!("{before}{begin}\n{}\n\n{end}{after}", part.text.trim()))
}

/// Brings every generated part up to date.
pub fn write() -> anyhow::Result<()> {
    for part in parts() {
        let path = pages::root().join(part.page);
        let page = fs::read_to_string(&path).with_context(|| format!("cannot read {}", part.page))?;
        let new = updated(&page, &part)?;
        if new != page {
            fs::write(&path, new).with_context(|| format!("cannot write {}", part.page))?;
            println!("updated {} in {}", part.name, part.page);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_replaces_what_stands_between_its_comments_only() {
        let part = Part { page: "p.md", name: "x", text: "new\n".into() };
        let page = "before\n<!-- generated: x -->\nold\n<!-- end of x -->\nafter\n";
        let new = updated(page, &part).unwrap();
        assert_eq!(new, "before\n<!-- generated: x -->\n\nnew\n\n<!-- end of x -->\nafter\n");
        assert_eq!(updated(&new, &part).unwrap(), new);
        assert!(updated("nothing\n", &part).is_err());
    }
}
