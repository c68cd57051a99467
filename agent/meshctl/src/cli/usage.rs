//! Usage errors, reported in the same format as all other errors.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Error};
use mesh_proto::{Problem, ProblemKind};

use super::{Cli, docker};
use crate::report::Report;

/// Prints clap's message and returns the exit code. Help and version are not errors.
pub(crate) fn report(error: &Error, args: &[OsString]) -> u8 {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            Report { text, ..Report::default() }.print(false)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // The whole help goes to standard error. If that fails, there is nowhere left to report
            // it.
            let _ = error.print();
            ProblemKind::Usage.exit_code()
        }
        _ => Report::from(problem(error, &text, args)).print(requests_json(args)),
    }
}

/// Condenses clap's paragraphs to one line and a hint.
fn problem(error: &Error, text: &str, args: &[OsString]) -> Problem {
    let mut paragraphs = text.split("\n\n");
    let what = paragraphs.next().unwrap_or_default();
    let what: Vec<_> = what.lines().map(str::trim).collect();
    let what = what.join(" ");
    let tip = paragraphs.find_map(|paragraph| paragraph.trim_start().strip_prefix("tip: "));
    let help = format!("see `{} --help`", command_path(args));
    let what = what.strip_prefix("error: ").unwrap_or(&what).to_owned();
    if let Some(hint) = of_docker(error, args) {
        return Problem::new(ProblemKind::Usage, what).hint(hint);
    }
    Problem::new(ProblemKind::Usage, what).hint(tip.map_or(help, |tip| tip.trim().to_owned()))
}

/// Returns the hint for a command or flag of Docker.
fn of_docker(error: &Error, args: &[OsString]) -> Option<&'static str> {
    let typed = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument => docker::instead_of_flag(typed(ContextKind::InvalidArg)?),
        ErrorKind::InvalidSubcommand => {
            let wrong = typed(ContextKind::InvalidSubcommand)?;
            let args = args.iter().skip(1).filter_map(|arg| arg.to_str());
            let words: Vec<&str> = args.skip_while(|arg| arg.starts_with('-')).collect();
            // Start at the first word of the command; options may precede it.
            let first = words.iter().position(|word| *word == wrong)?;
            let before = first.checked_sub(1).and_then(|index| words.get(index)).copied();
            let next = words.get(first + 1).copied();
            let known = |words: &[Option<&str>]| {
                let words: Vec<&str> = words.iter().copied().flatten().collect();
                docker::instead_of(&words)
            };
            known(&[before, Some(wrong)])
                .filter(|_| before.is_some_and(|word| Cli::command().find_subcommand(word).is_some()))
                .or_else(|| known(&[Some(wrong), next]))
        }
        _ => None,
    }
}

/// Returns the longest valid command path on the command line.
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

/// Whether the command line, which could not be parsed, requests errors as JSON.
fn requests_json(args: &[OsString]) -> bool {
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
        problem(&error, &error.render().to_string(), &args)
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
    fn words_of_docker_get_the_command_that_is_meant() {
        for (line, hint) in [
            ("meshctl network connect app web", "meshctl endpoint attach"),
            ("meshctl network disconnect app web", "meshctl endpoint detach"),
            ("meshctl stack deploy -c compose.yaml shop", "meshctl apply -f"),
            ("meshctl --format json stack ls", "meshctl apply -f"),
            ("meshctl node promote h2", "one manager"),
            ("meshctl service scale web=3", "meshctl endpoint attach --service"),
            ("meshctl swarm init", "meshctl cluster init"),
            ("meshctl swarm join --token T 192.0.2.1:2377", "meshctl cluster join --token"),
            ("meshctl swarm join-token worker", "meshctl cluster join-token"),
            ("meshctl ps", "meshctl endpoint ls"),
            ("meshctl run -d nginx", "meshctl endpoint attach"),
            (
                "meshctl service create --name web --network app --replicas 3",
                "meshctl endpoint attach --service",
            ),
        ] {
            let problem = problem_of(line);
            assert!(problem.hint.as_ref().is_some_and(|text| text.contains(hint)), "{line}: {problem:?}");
        }
        assert_eq!(problem_of("meshctl network xyz").hint.as_deref(), Some("see `meshctl network --help`"));
    }

    #[test]
    fn a_typing_mistake_gets_the_likely_word_as_hint() {
        let problem = problem_of("meshctl netwrok ls");
        assert_eq!(problem.message, "unrecognized subcommand 'netwrok'");
        assert_eq!(problem.hint.as_deref(), Some("a similar subcommand exists: 'network'"));
    }
}
