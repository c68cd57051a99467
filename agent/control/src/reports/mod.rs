//! The nodes' reports, checked against what each node may report.
//!
//! Every field of a session's messages is checked here before other parts of the manager read it. A
//! worker's certificate may be stolen: no report with it may change another node's traffic, names
//! or session. Refused reports are logged, and shown to the node as a problem.

mod endpoint;
mod faults;
mod host;
mod names;
mod routes;

use std::fmt::Write as _;

pub(crate) use endpoint::{CheckedEndpoint, Checker, nameless};
pub(crate) use faults::Faults;
pub(crate) use host::{addresses, data_path_mtu, underlay_address, version};
pub(crate) use routes::{Routes, routes};

/// Maximum number of endpoints of one node. A node cannot have more network namespaces in practice.
pub(crate) const MAX_ENDPOINTS: usize = 8192;
/// Maximum number of characters of foreign text in a message.
const SHOWN: usize = 64;

/// Makes untrusted text safe for a log, a terminal and one line: escapes control characters and
/// truncates the text.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::from("\"");
    for (index, character) in text.chars().enumerate() {
        if index == SHOWN {
            // Writing to a string cannot fail.
            let _ = write!(shown, "…\" ({} bytes)", text.len());
            return shown;
        }
        if character.is_ascii_graphic() && character != '"' || character == ' ' {
            shown.push(character);
        } else {
            shown.extend(character.escape_default());
        }
    }
    shown.push('"');
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_shown_short_and_without_control_characters() {
        assert_eq!(shown("eth0"), "\"eth0\"");
        assert_eq!(shown("a\x1b[2J\n\u{9b}\u{202e}\""), r#""a\u{1b}[2J\n\u{9b}\u{202e}\"""#);
        let long = shown(&"x".repeat(4 << 20));
        assert!(long.len() < 100 && long.ends_with("(4194304 bytes)"), "{long}");
    }
}
