//! Rings: modules each of which reaches all others of the ring through imports.

use std::collections::{BTreeMap, BTreeSet};

use crate::imports::Import;

type Path = Vec<String>;

/// Returns the rings among imports, each as the imports inside it.
pub fn rings(imports: &[Import]) -> Vec<Vec<Import>> {
    let mut next: BTreeMap<&Path, Vec<&Path>> = BTreeMap::new();
    for import in imports {
        next.entry(&import.from).or_default().push(&import.to);
    }
    let reached: BTreeMap<&Path, BTreeSet<&Path>> =
        next.keys().map(|from| (*from, reach(&next, from))).collect();
    let together = |one: &Path, other: &Path| {
        reached.get(one).is_some_and(|all| all.contains(other))
            && reached.get(other).is_some_and(|all| all.contains(one))
    };
    let mut rings: Vec<Vec<Import>> = Vec::new();
    for import in imports.iter().filter(|import| together(&import.from, &import.to)) {
        match rings.iter_mut().find(|ring| together(&ring[0].from, &import.from)) {
            Some(ring) => ring.push(import.clone()),
            None => rings.push(vec![import.clone()]),
        }
    }
    rings
}

fn reach<'a>(next: &BTreeMap<&'a Path, Vec<&'a Path>>, from: &'a Path) -> BTreeSet<&'a Path> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        for to in next.get(module).into_iter().flatten() {
            if seen.insert(*to) {
                open.push(to);
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::{Import, rings};

    fn import(from: &str, to: &str) -> Import {
        Import { from: vec![from.into()], to: vec![to.into()], path: to.into() }
    }

    #[test]
    fn imports_that_lead_back_are_a_ring_and_others_are_not() {
        let imports =
            [import("a", "b"), import("b", "c"), import("c", "b"), import("d", "d2"), import("d2", "d")];
        let found = rings(&imports);
        assert_eq!(
            found,
            [vec![import("b", "c"), import("c", "b")], vec![import("d", "d2"), import("d2", "d")]]
        );
    }
}
