//! Records of a manager that this agent cannot read. It skips and reports them, and uses all
//! others.

use std::collections::BTreeMap;
use std::fmt::Display;

/// Most records that are remembered; of more, only the number matters.
const MAX: usize = 32;
/// Most characters of one reason: it may repeat foreign text.
const MAX_REASON: usize = 200;

/// The skipped records, each with the reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unreadable {
    records: BTreeMap<String, String>,
    /// Those past the limit.
    more: usize,
}

impl Unreadable {
    /// The record, if it can be read. Else it is remembered, under its kind and its id.
    pub fn read<T, E: Display>(&mut self, kind: &str, id: &str, record: Result<T, E>) -> Option<T> {
        let key = shown(&format!("{kind} {id}"));
        match record {
            Ok(record) => {
                if !self.records.is_empty() {
                    self.records.remove(&key);
                }
                Some(record)
            }
            Err(error) => {
                let reason = shown(&error.to_string());
                if self.records.get(&key) != Some(&reason) {
                    tracing::warn!(
                        record = key,
                        reason,
                        "a record from the manager cannot be read and is skipped"
                    );
                    if self.records.len() < MAX || self.records.contains_key(&key) {
                        self.records.insert(key, reason);
                    } else {
                        self.more += 1;
                    }
                }
                None
            }
        }
    }

    /// A record is gone.
    pub fn forget(&mut self, kind: &str, id: &str) {
        if !self.records.is_empty() {
            self.records.remove(&shown(&format!("{kind} {id}")));
        }
    }

    /// What people see, a line each.
    pub fn lines(&self) -> Vec<String> {
        let each = self.records.iter();
        let mut lines: Vec<String> = each
            .map(|(record, reason)| format!("{record} from the manager cannot be read: {reason}"))
            .collect();
        if self.more > 0 {
            lines.push(format!("{} more records from the manager cannot be read", self.more));
        }
        lines
    }
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_REASON).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_cannot_be_read_is_reported_until_it_can_be_or_is_gone() {
        let mut unreadable = Unreadable::default();
        assert_eq!(unreadable.read("endpoint", "a", Err::<(), _>("field name: \"\x1b\" is no name")), None);
        assert_eq!(unreadable.lines().len(), 1);
        assert!(!unreadable.lines()[0].contains('\x1b'), "{:?}", unreadable.lines());
        assert_eq!(unreadable.read("endpoint", "a", Ok::<_, &str>(1)), Some(1));
        assert!(unreadable.lines().is_empty());
        unreadable.read("endpoint", "b", Err::<(), _>("x"));
        unreadable.forget("endpoint", "b");
        assert!(unreadable.lines().is_empty());
    }

    #[test]
    fn a_flood_of_records_that_cannot_be_read_is_bounded() {
        let mut unreadable = Unreadable::default();
        for n in 0..10_000 {
            unreadable.read("endpoint", &n.to_string(), Err::<(), _>("x".repeat(1 << 10)));
        }
        assert_eq!(unreadable.lines().len(), MAX + 1);
    }
}
