//! Which module of a crate takes names from which other one.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};
use syn::{Ident, ItemMod, ItemUse, UseName, UseRename, UseTree, Visibility};

use crate::modules::{self, Module, Modules};

/// A file that names something of another file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    /// The module that imports.
    pub from: Vec<String>,
    /// The module that it imports from.
    pub to: Vec<String>,
    /// The path that it writes.
    pub path: String,
}

/// Returns the imports between the files of a crate, one for each pair of files.
pub fn imports(root: &std::path::Path) -> Vec<Import> {
    let modules = modules::read(root);
    let uses: BTreeMap<_, _> =
        modules.iter().map(|(path, module)| (path.clone(), Paths::of(&modules, path, module))).collect();
    let mut found = BTreeMap::new();
    for (from, paths) in &uses {
        for path in paths.used() {
            let to = definer(&modules, &uses, path);
            if to != *from && !is_declaration(&to, from, path) {
                let import = Import { from: from.clone(), to, path: path.join("::") };
                found.entry((import.from.clone(), import.to.clone())).or_insert(import);
            }
        }
    }
    found.into_values().collect()
}

/// Returns the module that defines what a path names: re-exports are followed.
fn definer(modules: &Modules, uses: &BTreeMap<Vec<String>, Paths<'_>>, named: &[String]) -> Vec<String> {
    let mut named = named;
    loop {
        let file = file_of(modules, named);
        let Some(name) = named.get(file.len()) else { return file };
        match uses[&file].reexported.iter().find(|(reexported, _)| reexported == name) {
            Some((_, origin)) => named = origin,
            None => return file,
        }
    }
}

/// Whether a path names a module and nothing in it, as `use super::child;` does: that is no import
/// from the parent.
fn is_declaration(to: &[String], from: &[String], named: &[String]) -> bool {
    to == named && from.starts_with(to)
}

/// Returns the longest beginning of a path that is a file.
fn file_of(modules: &Modules, named: &[String]) -> Vec<String> {
    let mut path = named.to_vec();
    while !modules.contains_key(&path) {
        path.pop();
    }
    path
}

/// Collects the paths of a file that begin with `crate`, `self`, `super` or a module below the
/// file's own, made absolute.
struct Paths<'a> {
    modules: &'a Modules,
    inside: Vec<String>,
    found: Vec<Vec<String>>,
    /// The names that it makes part of its own interface, and where they come from.
    reexported: Vec<(String, Vec<String>)>,
    /// The identifiers outside `use` items.
    words: BTreeSet<String>,
}

impl<'a> Paths<'a> {
    fn of(modules: &'a Modules, inside: &[String], module: &Module) -> Self {
        let mut paths = Self {
            modules,
            inside: inside.to_vec(),
            found: Vec::new(),
            reexported: Vec::new(),
            words: BTreeSet::new(),
        };
        for item in &module.items {
            paths.visit_item(item);
        }
        paths
    }

    /// Returns what the file uses. A name that it only passes on to others by `pub use` is not
    /// used.
    fn used(&self) -> impl Iterator<Item = &Vec<String>> {
        let reexported = self.reexported.iter().filter(|(name, _)| self.words.contains(name));
        self.found.iter().chain(reexported.map(|(_, path)| path))
    }

    fn is_child(&self, name: &str) -> bool {
        let mut path = self.inside.clone();
        path.push(name.to_owned());
        self.modules.contains_key(&path)
    }

    /// Makes a path absolute; `None` for one into another crate.
    fn absolute(&self, segments: &[String]) -> Option<Vec<String>> {
        let mut path = match segments.first()?.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => self.inside.clone(),
            name if self.is_child(name) => self.inside.clone(),
            _ => return None,
        };
        for segment in segments {
            match segment.as_str() {
                "crate" | "self" => {}
                "super" => {
                    path.pop();
                }
                name => path.push(name.to_owned()),
            }
        }
        Some(path)
    }

    /// Adds what a `use` item names; `is_private` where it is for this file alone.
    fn add_tree(&mut self, tree: &UseTree, before: &mut Vec<String>, is_private: bool) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.add_tree(&path.tree, before, is_private);
                before.pop();
            }
            UseTree::Name(UseName { ident }) => self.add_name(ident, ident, before, is_private),
            UseTree::Rename(UseRename { ident, rename, .. }) => {
                self.add_name(ident, rename, before, is_private);
            }
            UseTree::Glob(_) => self.found.extend(self.absolute(before)),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(tree, before, is_private);
                }
            }
        }
    }

    fn add_name(&mut self, ident: &Ident, name: &Ident, before: &[String], is_private: bool) {
        let mut segments = before.to_vec();
        if ident != "self" {
            segments.push(ident.to_string());
        }
        let Some(path) = self.absolute(&segments) else { return };
        if is_private {
            self.found.push(path);
        } else {
            self.reexported.push((name.to_string(), path));
        }
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if !modules::is_for_tests(&item.attrs) {
            self.add_tree(&item.tree, &mut Vec::new(), matches!(item.vis, Visibility::Inherited));
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if modules::is_for_tests(&item.attrs) || item.content.is_none() {
            return;
        }
        self.inside.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.inside.pop();
    }

    fn visit_ident(&mut self, ident: &'ast Ident) {
        self.words.insert(ident.to_string());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        // `self` alone is a value, and `self::x` an import.
        if segments.len() > 1 {
            self.found.extend(self.absolute(&segments));
        }
        visit::visit_path(self, path);
    }
}
