//! The modules of a crate, each with its file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use syn::{Attribute, Item, ItemMod, Meta};

/// A module that is in a file of its own. A module written inside another's file belongs to that
/// file.
pub(crate) struct Module {
    /// What the file holds, without what is compiled for tests only.
    pub(crate) items: Vec<Item>,
}

/// All modules of one crate, by their path: `[]` is the crate's root.
pub(crate) type Modules = BTreeMap<Vec<String>, Module>;

/// Reads the modules that a crate's root file (`lib.rs`, `main.rs`) declares, and theirs.
pub(crate) fn read(root: &Path) -> Modules {
    let mut modules = Modules::new();
    let folder = root.parent().expect("a file lies in a folder");
    read_file(root, folder, Vec::new(), &mut modules);
    modules
}

fn read_file(file: &Path, children: &Path, path: Vec<String>, modules: &mut Modules) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let items: Vec<Item> = parsed.items.into_iter().filter(|item| !is_for_tests(attributes(item))).collect();
    for item in &items {
        let Item::Mod(ItemMod { ident, content: None, .. }) = item else { continue };
        let name = ident.to_string();
        let mut child = path.clone();
        child.push(name.clone());
        let (flat, nested) = (children.join(format!("{name}.rs")), children.join(&name).join("mod.rs"));
        let below = children.join(&name);
        // A module of generated code has neither.
        if flat.exists() {
            read_file(&flat, &below, child, modules);
        } else if nested.exists() {
            read_file(&nested, &below, child, modules);
        }
    }
    modules.insert(path, Module { items });
}

/// Whether something is compiled for tests only.
pub(crate) fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && matches!(&attribute.meta, Meta::List(list) if list.tokens.to_string() == "test")
    })
}

/// Returns the attributes of those items that can be for tests only.
fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
