//! Links between pages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, Parser, Tag, TagEnd};

use crate::pages::{self, Page};
use crate::prose::options;

/// The links of `all` pages that lead to no file, or to no heading of a page.
pub fn broken(all: &[Page]) -> Vec<String> {
    let anchors: BTreeMap<&Path, BTreeSet<String>> =
        all.iter().map(|page| (page.path.as_path(), anchors(&page.text))).collect();
    let mut broken = Vec::new();
    for page in all {
        for link in links(&page.text) {
            if let Some(why) = fault(page, &link, &anchors) {
                broken.push(format!("{}: {link}: {why}", page.path.display()));
            }
        }
    }
    broken
}

fn fault(page: &Page, link: &str, anchors: &BTreeMap<&Path, BTreeSet<String>>) -> Option<&'static str> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let target = if file.is_empty() {
        page.path.clone()
    } else {
        normal(&page.path.parent().unwrap_or(Path::new("")).join(file))
    };
    if !pages::root().join(&target).exists() && !anchors.contains_key(target.as_path()) {
        return Some("no such file");
    }
    match (anchor, anchors.get(target.as_path())) {
        (Some(anchor), Some(known)) if !known.contains(anchor) => Some("no such heading"),
        _ => None,
    }
}

/// The path without `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut normal, component| {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            other => normal.push(other),
        }
        normal
    })
}

/// The destinations of all links and images.
pub fn links(text: &str) -> Vec<String> {
    Parser::new_ext(text, options())
        .filter_map(|event| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                Some(dest_url.into_string())
            }
            _ => None,
        })
        .collect()
}

/// The anchors that mdbook and GitHub give to headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let (mut anchors, mut heading) = (BTreeSet::new(), None::<String>);
    for event in Parser::new_ext(text, options()) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                let slug = slug(&heading.take().unwrap_or_default());
                let numbered = (1..).map(|n| format!("{slug}-{n}"));
                let free = std::iter::once(slug.clone()).chain(numbered).find(|one| !anchors.contains(one));
                anchors.extend(free);
            }
            _ => {}
        }
    }
    anchors
}

fn slug(heading: &str) -> String {
    let kept = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| kept(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(path: &str, text: &str) -> Page {
        Page { path: path.into(), text: text.into() }
    }

    #[test]
    fn a_link_to_a_missing_file_or_heading_is_broken() {
        let pages = [
            page("a/one.md", "# First `x`: y\n\n[ok](../b/two.md#second) [bad](two.md) [own](#first-x-y)"),
            page("b/two.md", "# Second\n\n[bad](../a/one.md#second) [out](https://example.com/x#y)\n"),
        ];
        assert_eq!(
            broken(&pages),
            ["a/one.md: two.md: no such file", "b/two.md: ../a/one.md#second: no such heading"]
        );
    }

    #[test]
    fn links_in_code_are_none() {
        assert!(links("`[a](b.md)`\n\n```\n[a](b.md)\n```\n").is_empty());
    }
}
