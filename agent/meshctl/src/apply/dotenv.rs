//! The `.env` file beside a Compose file: `NAME=VALUE` lines.
//!
//! Source: Docker's page "Set, use, and manage variables in a Compose file with interpolation",
//! section "`.env` file syntax".

use std::collections::BTreeMap;

use super::variables::{InvalidVariable, Variables, fill_in};

/// Why a `.env` file cannot be parsed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidDotenv {
    /// A line that defines no variable.
    #[error("line {line}, expected NAME=VALUE")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// A quote without an end.
    #[error("line {line}, the quoted value has no end")]
    Quote {
        /// Counted from 1.
        line: usize,
    },
    /// A value with a variable that cannot be used.
    #[error("line {line}, {error}")]
    Variable {
        /// Counted from 1.
        line: usize,
        /// The reason.
        error: InvalidVariable,
    },
}

/// Adds the variables of a file to existing ones; a variable that has a value keeps it.
pub(crate) fn add(text: &str, variables: &mut Variables) -> Result<(), InvalidDotenv> {
    let outside: Variables = variables.clone();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut rest = text;
    while !rest.is_empty() {
        let line = text[..text.len() - rest.len()].lines().count() + 1;
        let (first, behind) = rest.split_once('\n').unwrap_or((rest, ""));
        let trimmed = first.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            rest = behind;
            continue;
        }
        let indent = rest.len() - rest.trim_start().len();
        let entry = &rest[indent..];
        let entry = entry.strip_prefix("export ").map_or(entry, str::trim_start);
        let end = entry.find(|c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c)));
        let (name, after) = entry.split_at(end.unwrap_or(entry.len()));
        if name.is_empty() {
            return Err(InvalidDotenv::Line { line });
        }
        let blank = |c: char| c == ' ' || c == '\t';
        let after = after.trim_start_matches(blank);
        let Some(value) = after.strip_prefix(['=', ':']) else {
            // A name alone takes its value from the environment.
            if !after.is_empty() && !after.starts_with(['\n', '\r', '#']) {
                return Err(InvalidDotenv::Line { line });
            }
            rest = behind;
            continue;
        };
        let (value, behind) = value_of(value.trim_start_matches(blank), line, variables)?;
        if !outside.contains_key(name) {
            variables.insert(name.to_owned(), value);
        }
        rest = behind;
    }
    Ok(())
}

/// Returns a value, and the text after its last line.
fn value_of<'a>(text: &'a str, line: usize, known: &Variables) -> Result<(String, &'a str), InvalidDotenv> {
    let filled = |value: &str| {
        let value = fill_in(value, known, &mut BTreeMap::new());
        value.map_err(|error| InvalidDotenv::Variable { line, error })
    };
    let next_line = |text: &'a str| text.split_once('\n').map_or("", |(_, behind)| behind);
    let unended = InvalidDotenv::Quote { line };
    if let Some(quoted) = text.strip_prefix('\'') {
        let (value, behind) = quoted.split_once('\'').ok_or(unended)?;
        return Ok((value.to_owned(), next_line(behind)));
    }
    if let Some(quoted) = text.strip_prefix('"') {
        let (value, behind) = unescaped(quoted).ok_or(unended)?;
        return Ok((filled(&value)?, next_line(behind)));
    }
    let (value, behind) = text.split_once('\n').unwrap_or((text, ""));
    let comment =
        if value.starts_with('#') { Some(0) } else { value.find(" #").or_else(|| value.find("\t#")) };
    Ok((filled(value[..comment.unwrap_or(value.len())].trim())?, behind))
}

/// Returns the text up to the closing double quote, and the text after it.
fn unescaped(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text.chars();
    loop {
        match rest.next()? {
            '"' => return Some((value, rest.as_str())),
            '\\' => match rest.next()? {
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                't' => value.push('\t'),
                '$' => value.push_str("$$"),
                c @ ('"' | '\\') => value.push(c),
                c => value.extend(['\\', c]),
            },
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BTreeMap<String, String>, InvalidDotenv> {
        let mut variables = Variables::from([("HOME".to_owned(), "/root".to_owned())]);
        add(text, &mut variables)?;
        variables.remove("HOME");
        Ok(variables.into_iter().collect())
    }

    #[test]
    fn every_form_of_a_line_is_parsed() {
        let text = "\u{feff}# comment\n\nPORT=8080\r\nexport A = 1 \nB=\"x\\n$PORT \\$HOME\" # c\nC='$PORT # x'\n\
                    D=a#b # c\nE=\nF: yaml\nG\nH=${PORT:-1}/$HOME\nI=\"two\nlines\"\nJ=#c\nHOME=/other\nK=end";
        let expected = [
            ("PORT", "8080"),
            ("A", "1"),
            ("B", "x\n8080 $HOME"),
            ("C", "$PORT # x"),
            ("D", "a#b"),
            ("E", ""),
            ("F", "yaml"),
            ("H", "8080//root"),
            ("I", "two\nlines"),
            ("J", ""),
            ("K", "end"),
        ];
        assert_eq!(read(text).unwrap(), expected.map(|(name, value)| (name.into(), value.into())).into());
    }

    #[test]
    fn the_environment_takes_precedence_over_the_file() {
        let mut variables = Variables::from([("PORT".to_owned(), "1".to_owned())]);
        add("PORT=2\nX=3\nX=4\n", &mut variables).unwrap();
        assert_eq!((variables["PORT"].as_str(), variables["X"].as_str()), ("1", "4"));
    }

    #[test]
    fn a_line_that_defines_no_variable_is_refused_with_its_number() {
        for (text, error) in [
            ("A=1\n=2\n", InvalidDotenv::Line { line: 2 }),
            ("\nA b\n", InvalidDotenv::Line { line: 2 }),
            ("A='x\nB=1\n", InvalidDotenv::Quote { line: 1 }),
        ] {
            assert_eq!(read(text), Err(error), "{text:?}");
        }
        assert!(matches!(read("A=1\nB=${\n"), Err(InvalidDotenv::Variable { line: 2, .. })));
    }
}
