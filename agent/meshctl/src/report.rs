//! The result of a command, and its output.

use std::io::{self, Write};

use mesh_proto::{Problem, ProblemKind};
use serde::Serialize;

use crate::format::Format;
use crate::terminal;

/// A command's result: its output and its errors, in order.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// For standard output; lines end in a newline.
    pub(crate) text: String,
    /// Notes for standard error; lines end in a newline.
    pub(crate) notes: Vec<String>,
    /// For standard error; the first decides the exit code.
    pub(crate) problems: Vec<Problem>,
}

impl From<Result<String, Problem>> for Report {
    fn from(result: Result<String, Problem>) -> Self {
        match result {
            Ok(text) => Self { text, ..Self::default() },
            Err(problem) => problem.into(),
        }
    }
}

impl From<Result<Report, Problem>> for Report {
    fn from(result: Result<Report, Problem>) -> Self {
        result.unwrap_or_else(Self::from)
    }
}

impl From<Problem> for Report {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem], ..Self::default() }
    }
}

impl Report {
    /// Prints everything, errors as JSON where asked for, and returns the exit code.
    pub(crate) fn print(mut self, json: bool) -> u8 {
        // JSON has been made safe where it was made.
        if let Err(error) = write(&mut io::stdout().lock(), &safe(&self.text)) {
            self.problems.push(failed(format!("standard output, cannot write: {error}")));
        }
        for note in &self.notes {
            let _ = write(&mut io::stderr().lock(), &safe(note));
        }
        for problem in &self.problems {
            let text = if json { as_json(problem) } else { as_text(problem) };
            // If standard error is closed, the exit code still reports the failure.
            let _ = write(&mut io::stderr().lock(), &safe(&text));
        }
        self.problems.first().map_or(0, |problem| problem.kind.exit_code())
    }
}

/// Text without what must not reach a terminal.
fn safe(text: &str) -> std::borrow::Cow<'_, str> {
    terminal::safe(text, terminal::Form::Text)
}

/// Writes all of `text`; a reader that closes the pipe early (`| head`) is not an error.
fn write(to: &mut impl Write, text: &str) -> io::Result<()> {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Formats an error as text: a line, and one with the hint.
fn as_text(problem: &Problem) -> String {
    let message = terminal::line(&problem.message);
    match &problem.hint {
        None => format!("error: {message}\n"),
        Some(hint) => format!("error: {message}\nhint: {}\n", terminal::line(hint)),
    }
}

/// Formats an error as JSON: one line, `{"error":{"kind":..,"message":..,"hint":..|null}}`.
fn as_json(problem: &Problem) -> String {
    #[derive(Serialize)]
    struct Envelope<'a> {
        error: Error<'a>,
    }
    #[derive(Serialize)]
    struct Error<'a> {
        kind: ProblemKind,
        message: &'a str,
        hint: Option<&'a str>,
    }
    let error = Error { kind: problem.kind, message: &problem.message, hint: problem.hint.as_deref() };
    line(&Envelope { error })
}

/// Formats a warning: the command succeeded, but something may not be as expected.
pub(crate) fn warning(text: &str, format: Option<Format>) -> String {
    #[derive(Serialize)]
    struct Envelope<'a> {
        warning: &'a str,
    }
    if format == Some(Format::Json) {
        line(&Envelope { warning: text })
    } else {
        format!("warning: {text}\n")
    }
}

/// A value as indented JSON.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, Problem> {
    serde_json::to_string_pretty(value)
        .map(|text| terminal::safe(&text, terminal::Form::Json).into_owned() + "\n")
        .map_err(|error| failed(format!("the answer, cannot write it as JSON: {error}")))
}

/// A value as one line of JSON.
pub(crate) fn line<T: Serialize>(value: &T) -> String {
    let text = serde_json::to_string(value).unwrap_or_default();
    terminal::safe(&text, terminal::Form::Json).into_owned() + "\n"
}

/// A failure of kind `failed`.
pub(crate) fn failed(message: String) -> Problem {
    Problem::new(ProblemKind::Failed, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed(io::ErrorKind);

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_error_for_people_is_one_line_and_a_hint() {
        let problem = Problem::new(ProblemKind::NotFound, "network app, not found");
        assert_eq!(as_text(&problem), "error: network app, not found\n");
        assert_eq!(as_text(&problem.hint("look")), "error: network app, not found\nhint: look\n");
    }

    #[test]
    fn an_error_for_scripts_always_has_all_three_fields() {
        let problem = Problem::new(ProblemKind::NotFound, "network app, not found");
        assert_eq!(
            as_json(&problem),
            "{\"error\":{\"kind\":\"not_found\",\"message\":\"network app, not found\",\"hint\":null}}\n"
        );
    }

    #[test]
    fn only_a_reader_that_left_is_no_error() {
        assert!(write(&mut Closed(io::ErrorKind::BrokenPipe), "x").is_ok());
        assert!(write(&mut Closed(io::ErrorKind::StorageFull), "x").is_err());
    }
}
