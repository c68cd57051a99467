//! Wrong command lines, reported in the form of every other error.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory, Error};
use mesh_proto::{Problem, ProblemKind};

use super::Cli;
use crate::report::Report;

/// Prints what clap has to say (help and versions are no errors) and returns the exit code.
pub(crate) fn report(error: &Error, args: &[OsString]) -> u8 {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            Report { text, ..Report::default() }.print(false)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // The whole help is the best answer; it goes where errors go. Nobody is left to tell if that fails.
            let _ = error.print();
            ProblemKind::Usage.exit_code()
        }
        _ => Report::from(problem(&text, args)).print(wants_json(args)),
    }
}

/// clap's several paragraphs in one line and a hint.
fn problem(text: &str, args: &[OsString]) -> Problem {
    let mut paragraphs = text.split("\n\n");
    let what = paragraphs.next().unwrap_or_default();
    let what: Vec<_> = what.lines().map(str::trim).collect();
    let what = what.join(" ");
    let tip = paragraphs.find_map(|paragraph| paragraph.trim_start().strip_prefix("tip: "));
    let help = format!("see `{} --help`", command_path(args));
    Problem::new(ProblemKind::Usage, what.strip_prefix("error: ").unwrap_or(&what))
        .hint(tip.map_or(help, |tip| tip.trim().to_owned()))
}

/// The command that was meant, as far as it can be followed.
fn command_path(args: &[OsString]) -> String {
    let root = Cli::command();
    let mut command = &root;
    let mut path = root.get_name().to_owned();
    for word in args.iter().skip(1).filter_map(|word| word.to_str()) {
        if let Some(sub) = command.find_subcommand(word) {
            command = sub;
            path = format!("{path} {}", sub.get_name());
        }
    }
    path
}

/// Whether errors are to be JSON, read from a line that could not be parsed.
fn wants_json(args: &[OsString]) -> bool {
    args.iter().any(|word| word == "--format=json")
        || args.windows(2).any(|pair| pair[0] == "--format" && pair[1] == "json")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn problem_of(line: &str) -> Problem {
        let args: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        let error = Cli::try_parse_from(&args).unwrap_err();
        problem(&error.render().to_string(), &args)
    }

    #[test]
    fn a_missing_argument_is_named_in_one_line() {
        let problem = problem_of("meshctl network create");
        assert_eq!(problem.message, "the following required arguments were not provided: <NAME>");
        assert_eq!(problem.hint.as_deref(), Some("see `meshctl network create --help`"));
    }

    #[test]
    fn a_wrong_value_is_named_with_the_reason() {
        let problem = problem_of("meshctl network create --mtu 20 app");
        assert_eq!(
            problem.message,
            "invalid value '20' for '--mtu <BYTES>': MTU 20 is out of range: 68 to 65535"
        );
    }

    #[test]
    fn a_typing_mistake_gets_the_likely_word_as_hint() {
        let problem = problem_of("meshctl netwrok ls");
        assert_eq!(problem.message, "unrecognized subcommand 'netwrok'");
        assert_eq!(problem.hint.as_deref(), Some("a similar subcommand exists: 'network'"));
    }
}
