//! Hints for users who type Docker's commands and flags.

/// Docker's commands and the hint for each. Longer ones come first.
const WORDS: &[(&[&str], &str)] = &[
    (&["network", "connect"], "attach a container: meshctl endpoint attach --network NETWORK --netns NAME"),
    (&["network", "disconnect"], "detach a container: meshctl endpoint detach ENDPOINT"),
    (&["stack", "deploy"], "apply the file: meshctl apply -f compose.yaml"),
    (&["stack", "up"], "apply the file: meshctl apply -f compose.yaml"),
    (
        &["stack", "rm"],
        "remove what the file declares: meshctl service rm NAME..., then meshctl network rm NAME...",
    ),
    (&["stack"], "apply the file: meshctl apply -f compose.yaml; list its services: meshctl service ls"),
    (&["compose"], "apply the file: meshctl apply -f compose.yaml; containers are started by your runtime"),
    (&["node", "promote"], "a cluster supports one manager for now"),
    (&["node", "demote"], "a cluster supports one manager for now"),
    (&["node", "ps"], "list the endpoints of a node: meshctl endpoint ls --node NODE"),
    (&["service", "scale"], SCALE),
    (&["service", "logs"], RUNTIME),
    (&["service", "rollback"], "apply the earlier file: meshctl apply -f compose.yaml"),
    (&["swarm", "init"], "create a cluster: meshctl cluster init"),
    (&["swarm", "join-token"], "print a token: meshctl cluster join-token worker"),
    (&["swarm", "join"], "join a cluster: meshctl cluster join --token TOKEN HOST:PORT"),
    (&["swarm", "leave"], "leave the cluster: meshctl cluster leave"),
    (&["swarm"], "use meshctl cluster ..."),
    (&["deploy"], "apply the file: meshctl apply -f compose.yaml"),
    (&["up"], "apply the file: meshctl apply -f compose.yaml"),
    (&["down"], "remove what the file declares: meshctl service rm NAME..., then meshctl network rm NAME..."),
    (&["ps"], "list endpoints: meshctl endpoint ls; the backends of a service: meshctl service ps SERVICE"),
    (&["ls"], "list networks, services, endpoints or nodes: meshctl network ls"),
    (
        &["inspect"],
        "name the kind of object: meshctl network inspect NETWORK, meshctl service inspect SERVICE",
    ),
    (&["info"], "show this host's state: meshctl status; the cluster's: meshctl cluster status"),
    (&["system"], "show this host's state: meshctl status"),
    (&["stats"], "print this host's metrics: meshctl metrics"),
    (&["port"], "list published ports: meshctl service ls"),
    (&["version"], "meshctl --version"),
    (&["run"], RUN),
    (&["create"], RUN),
    (&["start"], RUNTIME),
    (&["stop"], RUNTIME),
    (&["restart"], RUNTIME),
    (&["kill"], RUNTIME),
    (&["exec"], RUNTIME),
    (&["logs"], RUNTIME),
    (&["attach"], "attach a container: meshctl endpoint attach --network NETWORK --netns NAME"),
    (&["container"], RUN),
    (&["image"], RUNTIME),
    (&["volume"], RUNTIME),
    (&["secret"], RUNTIME),
    (&["config"], RUNTIME),
];

/// Docker's flags that Mesh does not have, with a hint for each.
const FLAGS: &[(&str, &str)] = &[
    ("--replicas", SCALE),
    ("--image", RUNTIME),
    ("--mount", RUNTIME),
    ("--env", RUNTIME),
    ("--health-cmd", "check with --health-http PORT/PATH or --health-tcp PORT"),
    ("--listen-addr", "use --advertise-addr"),
    ("--autolock", RUNTIME_NONE),
];

const RUNTIME: &str =
    "use your container runtime; Mesh only connects containers: meshctl endpoint attach --help";
const RUN: &str = "start the container with your runtime, then attach it: meshctl endpoint attach --network NETWORK --pid PID";
const SCALE: &str = "start containers with your runtime and attach each: meshctl endpoint attach --service SERVICE --network NETWORK ...";
const RUNTIME_NONE: &str = "the manager's store is not encrypted";

/// Returns the hint for a command that does not exist. `words` is the command line without flags.
pub(super) fn instead_of(words: &[&str]) -> Option<&'static str> {
    WORDS.iter().find(|(known, _)| words.starts_with(known)).map(|(_, hint)| *hint)
}

/// Returns the hint for a flag that does not exist.
pub(super) fn instead_of_flag(flag: &str) -> Option<&'static str> {
    let flag = flag.split('=').next().unwrap_or(flag);
    FLAGS.iter().find(|(known, _)| *known == flag).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn no_hint_is_about_a_command_that_exists() {
        for (words, _) in WORDS {
            let line = std::iter::once("meshctl").chain(words.iter().copied());
            let error = Cli::try_parse_from(line).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::InvalidSubcommand, "{words:?}: {error}");
        }
    }

    #[test]
    fn every_command_that_a_hint_names_exists() {
        let root = Cli::command();
        for hint in WORDS.iter().map(|(_, hint)| hint).chain(FLAGS.iter().map(|(_, hint)| hint)) {
            for named in hint.split("meshctl ").skip(1) {
                let mut command = &root;
                for word in named
                    .split([' ', ',', ';'])
                    .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
                {
                    if word.starts_with('-') || command.get_subcommands().next().is_none() {
                        break;
                    }
                    command = command.find_subcommand(word).unwrap_or_else(|| panic!("{hint}: {word}"));
                }
            }
        }
    }
}
