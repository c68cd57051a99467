//! Makes text safe to print: what comes from other hosts must not move the cursor, forge lines or
//! change the direction of writing.

use std::borrow::Cow;
use std::fmt::Write as _;

/// What the text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people.
    Text,
    /// JSON, which has escapes of its own.
    Json,
}

/// Control characters, and characters that change the direction of writing or are not seen (Unicode
/// TR 36, section 3).
fn is_unsafe(character: char) -> bool {
    let is_invisible = matches!(
        character,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}'
    );
    character.is_control() || is_invisible
}

/// The text without characters that are not for printing; lines stay lines.
pub(crate) fn safe(text: &str, form: Form) -> Cow<'_, str> {
    escaped(text, form, |character| character == '\n' || character == '\t')
}

/// One line without characters that are not for printing.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escaped(text, Form::Text, |_| false)
}

fn escaped(text: &str, form: Form, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_bad = |character: char| is_unsafe(character) && !is_kept(character);
    if !text.contains(is_bad) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        // Writing to a string cannot fail.
        let _ = match form {
            _ if !is_bad(character) => safe.write_char(character),
            // Inside a string, where alone such characters can stand; all are of the basic plane.
            Form::Json => write!(safe, "\\u{:04x}", u32::from(character)),
            Form::Text => write!(safe, "{}", character.escape_default()),
        };
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let hostile = "a\x1b[2J\x07\r\u{9b}31m\u{7f}\u{202e}\u{200b}z\tq\n";
        let text = safe(hostile, Form::Text);
        assert_eq!(text, "a\\u{1b}[2J\\u{7}\\r\\u{9b}31m\\u{7f}\\u{202e}\\u{200b}z\tq\n");
        assert_eq!(line("a\nerror: b"), "a\\nerror: b");
        assert_eq!(safe("plain – ü\n", Form::Text), "plain – ü\n");
    }

    #[test]
    fn escaped_json_is_the_same_json() {
        let value = serde_json::json!({ "name": "a\x1b\u{9b}\u{202e}z", "other": [1, "b\n"] });
        let text = serde_json::to_string_pretty(&value).unwrap();
        let safe = safe(&text, Form::Json);
        assert!(!safe.contains(|character| is_unsafe(character) && character != '\n'), "{safe:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }
}
