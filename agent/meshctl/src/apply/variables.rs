//! Variables in a Compose file: `$NAME`, `${NAME}` and the forms with a default, an error or an
//! alternative.
//!
//! <https://docs.docker.com/reference/compose-file/interpolation/>

use std::collections::{BTreeMap, HashMap};

/// The values of variables by their names.
pub(crate) type Variables = HashMap<String, String>;

/// Maximum nesting of braces.
const DEEPEST: usize = 32;

/// Why a text with variables is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidVariable {
    /// `${NAME?text}` and the variable is not set.
    #[error("variable {name} is not set{}", because(message))]
    Required {
        /// The variable.
        name: String,
        /// The message in the file.
        message: String,
    },
    /// `${NAME:?text}` and the variable is empty.
    #[error("variable {name} is empty{}", because(message))]
    Empty {
        /// The variable.
        name: String,
        /// The message in the file.
        message: String,
    },
    /// A `$` that does not start a variable.
    #[error("{0:?} is not a variable: write $$ for a literal dollar sign")]
    Syntax(String),
    /// Braces are nested too deeply.
    #[error("variables are nested too deeply")]
    TooDeep,
}

fn because(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// A variable without a value that was used without a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blank {
    Unset,
    Empty,
}

/// Replaces the variables of a text. Variables without a value and a default become empty and are
/// recorded in `blank`.
pub(super) fn fill_in(
    text: &str,
    variables: &Variables,
    blank: &mut BTreeMap<String, Blank>,
) -> Result<String, InvalidVariable> {
    Filling { variables, blank }.text(text, DEEPEST)
}

struct Filling<'a> {
    variables: &'a Variables,
    blank: &'a mut BTreeMap<String, Blank>,
}

impl Filling<'_> {
    fn text(&mut self, text: &str, depth: usize) -> Result<String, InvalidVariable> {
        let depth = depth.checked_sub(1).ok_or(InvalidVariable::TooDeep)?;
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('$') {
            filled.push_str(before);
            if let Some(behind) = behind.strip_prefix('$') {
                filled.push('$');
                rest = behind;
            } else if let Some(inside) = behind.strip_prefix('{') {
                let end = closing(inside).ok_or_else(|| syntax(behind))?;
                filled.push_str(&self.braced(&inside[..end], depth)?);
                rest = &inside[end + 1..];
            } else {
                let (name, behind) = name(behind).ok_or_else(|| syntax(behind))?;
                filled.push_str(&self.plain(name));
                rest = behind;
            }
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn plain(&mut self, name: &str) -> String {
        let value = self.variables.get(name);
        match value.map(String::as_str) {
            None => drop(self.blank.insert(name.to_owned(), Blank::Unset)),
            Some("") => drop(self.blank.entry(name.to_owned()).or_insert(Blank::Empty)),
            Some(_) => {}
        }
        value.cloned().unwrap_or_default()
    }

    /// Expands the text between braces: a name, optionally with an operator and a word.
    fn braced(&mut self, inside: &str, depth: usize) -> Result<String, InvalidVariable> {
        let invalid = || InvalidVariable::Syntax(format!("${{{inside}}}"));
        let (name, operation) = name(inside).ok_or_else(invalid)?;
        if operation.is_empty() {
            return Ok(self.plain(name));
        }
        let value = self.variables.get(name).cloned();
        // With a colon, an empty value counts as unset.
        let (counts_empty, operation) = match operation.strip_prefix(':') {
            Some(operation) => (true, operation),
            None => (false, operation),
        };
        let present = value.clone().filter(|value| !(counts_empty && value.is_empty()));
        let mut operation = operation.chars();
        let operator = operation.next();
        let word = operation.as_str();
        match (operator, present) {
            (Some('-' | '?'), Some(present)) => Ok(present),
            (Some('-'), None) | (Some('+'), Some(_)) => self.text(word, depth),
            (Some('+'), None) => Ok(String::new()),
            (Some('?'), None) => {
                let (name, message) = (name.to_owned(), self.text(word, depth)?);
                Err(match value {
                    None => InvalidVariable::Required { name, message },
                    Some(_) => InvalidVariable::Empty { name, message },
                })
            }
            _ => Err(invalid()),
        }
    }
}

/// Returns the text after a `$` that does not start a variable.
fn syntax(behind: &str) -> InvalidVariable {
    InvalidVariable::Syntax(format!("${}", behind.chars().take(20).collect::<String>()))
}

/// Returns a name, and the text after it.
fn name(text: &str) -> Option<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    let begins_well = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    begins_well.then(|| text.split_at(end))
}

/// Returns the position of the brace that closes the one before the text.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1_usize;
    let mut rest = text.char_indices().peekable();
    while let Some((at, c)) = rest.next() {
        match c {
            '$' if rest.next_if(|(_, next)| *next == '{').is_some() => open += 1,
            '$' => drop(rest.next_if(|(_, next)| *next == '$')),
            '}' if open == 1 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, InvalidVariable> {
        let variables = [("PORT", "8080"), ("EMPTY", ""), ("A_1", "a")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        fill_in(text, &variables, &mut BTreeMap::new())
    }

    #[test]
    fn every_form_of_a_variable_works_as_in_compose() {
        for (text, expected) in [
            ("no variable", "no variable"),
            ("$PORT:80", "8080:80"),
            ("${PORT}:80", "8080:80"),
            ("$A_1-x", "a-x"),
            ("$$PORT $$$PORT", "$PORT $8080"),
            ("<$NONE|${NONE}|$EMPTY>", "<||>"),
            ("${NONE:-1}${NONE-2}${EMPTY:-3}${EMPTY-4}${PORT:-5}", "1238080"),
            ("${NONE:+1}${NONE+2}${EMPTY:+3}${EMPTY+4}${PORT:+5}", "45"),
            ("${PORT:?no}${PORT?no}${EMPTY?no}", "80808080"),
            ("${NONE:-${PORT}}${NONE:-${NONE:-$A_1}}x", "8080ax"),
            ("${NONE:-a:b-c?d}", "a:b-c?d"),
            ("${NONE:-$$}", "$"),
            ("${PORT:+${NONE:-}}", ""),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_missing_required_variable_is_an_error_with_the_files_message() {
        for (text, message) in [
            ("${NONE:?set it}", "variable NONE is not set: set it"),
            ("${NONE?}", "variable NONE is not set"),
            ("${EMPTY:?set $PORT}", "variable EMPTY is empty: set 8080"),
        ] {
            assert_eq!(filled(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn a_dollar_sign_without_a_variable_is_refused() {
        for text in ["$", "$1", "${", "${}", "${1}", "${PORT", "${PORT!x}", "${PORT:x}", "a $(b)", "${PO RT}"]
        {
            assert!(matches!(filled(text), Err(InvalidVariable::Syntax(_))), "{text}: {:?}", filled(text));
        }
        let deep = format!("{}x{}", "${N:-".repeat(100), "}".repeat(100));
        assert_eq!(filled(&deep), Err(InvalidVariable::TooDeep));
    }

    #[test]
    fn variables_without_a_value_and_a_default_are_reported() {
        let mut blank = BTreeMap::new();
        let variables = [("EMPTY".to_owned(), String::new())].into();
        fill_in("$A ${A} ${B:-x} ${EMPTY} ${EMPTY:-} ${C:-}", &variables, &mut blank).unwrap();
        assert_eq!(blank, [("A".to_owned(), Blank::Unset), ("EMPTY".to_owned(), Blank::Empty)].into());
    }
}
