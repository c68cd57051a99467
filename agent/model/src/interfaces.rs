//! Which interfaces of a host something applies to.

use serde::Deserialize;

use crate::IfName;

/// Characters of an interface's name, at most (`IFNAMSIZ` less one).
const LONGEST: usize = 15;

/// Patterns of interfaces' names, in which `*` stands for any characters and `?` for one. Those
/// that begin with `!` exclude.
///
/// Without a pattern, or with excluding ones only, every other interface is included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct InterfacePatterns {
    included: Vec<String>,
    excluded: Vec<String>,
}

/// A list that no interface can be chosen by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPatterns {
    /// Whether that means all or none is for the reader to say.
    #[error("the list is empty: name at least one pattern, such as \"*\" or \"!docker0\"")]
    Empty,
    /// No interface can have this name.
    #[error("{0:?} matches no interface: a pattern has 1 to 15 characters, none of them a space, '/' or ':'")]
    Pattern(String),
}

impl InterfacePatterns {
    /// Reads patterns.
    pub fn new(patterns: impl IntoIterator<Item = String>) -> Result<Self, InvalidPatterns> {
        let mut list = Self::default();
        for pattern in patterns {
            let name = pattern.strip_prefix('!').unwrap_or(&pattern);
            let wrong = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '!');
            if name.is_empty() || name.len() > LONGEST || name.contains(wrong) {
                return Err(InvalidPatterns::Pattern(pattern));
            }
            let part = if pattern.starts_with('!') { &mut list.excluded } else { &mut list.included };
            part.push(name.to_owned());
        }
        if list == Self::default() { Err(InvalidPatterns::Empty) } else { Ok(list) }
    }

    /// Whether an interface is included.
    pub fn include(&self, name: &IfName) -> bool {
        let any = |patterns: &[String]| {
            patterns.iter().any(|pattern| matches(pattern.as_bytes(), name.as_str().as_bytes()))
        };
        (self.included.is_empty() || any(&self.included)) && !any(&self.excluded)
    }
}

impl TryFrom<Vec<String>> for InterfacePatterns {
    type Error = InvalidPatterns;

    fn try_from(patterns: Vec<String>) -> Result<Self, InvalidPatterns> {
        Self::new(patterns)
    }
}

/// Whether a name matches a pattern. Both are short: every way to match is tried.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            matches(rest, name) || name.split_first().is_some_and(|(_, shorter)| matches(pattern, shorter))
        }
        ([b'?', rest @ ..], [_, shorter @ ..]) => matches(rest, shorter),
        ([one, rest @ ..], [other, shorter @ ..]) => one == other && matches(rest, shorter),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn included(patterns: &[&str], names: &[&str]) -> Vec<bool> {
        let patterns = InterfacePatterns::new(patterns.iter().map(ToString::to_string)).unwrap();
        names.iter().map(|name| patterns.include(&name.parse().unwrap())).collect()
    }

    #[test]
    fn an_interface_is_included_by_a_pattern_and_not_excluded_by_another() {
        let names = ["eth0", "eth1", "docker0", "br-12ab", "wg0"];
        assert!(names.iter().all(|name| InterfacePatterns::default().include(&name.parse().unwrap())));
        assert_eq!(included(&["*"], &names), [true; 5]);
        assert_eq!(included(&["eth?"], &names), [true, true, false, false, false]);
        assert_eq!(included(&["!docker*", "!br-*"], &names), [true, true, false, false, true]);
        assert_eq!(included(&["eth*", "wg0", "!eth1"], &names), [true, false, false, false, true]);
        assert_eq!(included(&["*0"], &names), [true, false, true, false, true]);
    }

    #[test]
    fn a_list_without_patterns_and_a_name_that_no_interface_has_are_refused() {
        assert_eq!(InterfacePatterns::new([]), Err(InvalidPatterns::Empty));
        for wrong in ["", "!", "!!eth0", "eth 0", "a/b", "eth0:1", "sixteen-letters-"] {
            let refused = InterfacePatterns::new([wrong.to_owned()]);
            assert_eq!(refused, Err(InvalidPatterns::Pattern(wrong.to_owned())));
        }
    }
}
