//! Completion of names by the shell: asks the local agent, within a moment, and is silent when
//! there is none.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use mesh_proto::{Problem, v1};

use crate::cli::{Cli, DEFAULT_SOCKET};
use crate::client::Client;
use crate::report;

/// The variable by which a completion script asks for candidates.
const VARIABLE: &str = "MESHCTL_COMPLETE";
/// A person at a prompt does not wait for longer.
const LIMIT: Duration = Duration::from_millis(1500);
const PROGRAM: &str = "meshctl";

/// Answers a completion script, if it is one that calls. Returns whether it was.
pub(crate) fn answer(args: &[OsString]) -> bool {
    let current_dir = std::env::current_dir().ok();
    let answered = CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .bin(PROGRAM)
        .try_complete(args.iter().cloned(), current_dir.as_deref());
    // A shell in the middle of a line has no use for an error.
    answered.unwrap_or(true)
}

/// The script that a shell reads to complete `meshctl`.
pub(crate) fn script(shell: clap_complete::Shell) -> Result<String, Problem> {
    let failed =
        |why: &dyn ToString| report::failed(format!("completion script for {shell}: {}", why.to_string()));
    let shells = Shells::builtins();
    let completer =
        shells.completer(&shell.to_string()).ok_or_else(|| failed(&"there is none for this shell"))?;
    let mut script = Vec::new();
    completer
        .write_registration(VARIABLE, PROGRAM, PROGRAM, &program(), &mut script)
        .map_err(|error| failed(&error))?;
    String::from_utf8(script).map_err(|error| failed(&error))
}

/// How the script calls this program: as it was called, if by its name alone, so that it may move.
fn program() -> String {
    let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let by_path = called.components().count() > 1;
    let path = std::env::current_exe().ok().filter(|_| by_path);
    path.and_then(|path| path.into_os_string().into_string().ok()).unwrap_or_else(|| PROGRAM.to_owned())
}

/// Completes names of networks.
pub(crate) fn networks() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        candidates(current, async |client| {
            let request = v1::ListNetworksRequest {};
            let answer = client.call(client.control().await?.list_networks(request)).await?;
            Ok(answer.networks.into_iter().map(|network| network.name).collect())
        })
    })
}

/// Completes names of nodes.
pub(crate) fn nodes() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        candidates(current, async |client| {
            let answer = client.call(client.control().await?.list_nodes(v1::ListNodesRequest {})).await?;
            Ok(answer.nodes.into_iter().filter_map(|status| status.node).map(|node| node.name).collect())
        })
    })
}

/// Completes names of services.
pub(crate) fn services() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        candidates(current, async |client| {
            let request = v1::ListServicesRequest::default();
            let answer = client.call(client.control().await?.list_services(request)).await?;
            let named = answer
                .services
                .into_iter()
                .filter_map(|status| Some((status.network_name, status.service?.name)));
            Ok(telling(&named.collect::<Vec<_>>()))
        })
    })
}

/// Completes names of endpoints.
pub(crate) fn endpoints() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        candidates(current, async |client| {
            let request = v1::ListEndpointsRequest::default();
            let answer = client.call(client.control().await?.list_endpoints(request)).await?;
            let named = answer.endpoints.into_iter().map(|one| (one.network_name, one.name));
            Ok(telling(&named.collect::<Vec<_>>()))
        })
    })
}

/// Names, as `NETWORK/NAME` where several networks have the name.
fn telling(named: &[(String, String)]) -> Vec<String> {
    let is_shared =
        |name: &str| named.iter().filter(|(_, other)| other.eq_ignore_ascii_case(name)).count() > 1;
    named
        .iter()
        .map(|(network, name)| if is_shared(name) { format!("{network}/{name}") } else { name.clone() })
        .collect()
}

/// The names that begin as what is typed.
fn candidates(
    current: &OsStr,
    ask: impl AsyncFnOnce(&Client) -> Result<Vec<String>, Problem>,
) -> Vec<CompletionCandidate> {
    let typed = current.to_string_lossy();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let names = runtime.map(|runtime| {
        runtime.block_on(async { tokio::time::timeout(LIMIT, ask(&Client::new(socket()))).await })
    });
    let Ok(Ok(Ok(names))) = names else { return Vec::new() };
    let names: BTreeSet<String> = names.into_iter().filter(|name| name.starts_with(&*typed)).collect();
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// The agent's socket that the line so far names, or the environment.
fn socket() -> PathBuf {
    let words: Vec<String> = std::env::args().collect();
    let named = words.iter().enumerate().find_map(|(index, word)| match word.strip_prefix("--socket") {
        Some("") => words.get(index + 1).cloned(),
        Some(value) => value.strip_prefix('=').map(str::to_owned),
        None => None,
    });
    let named = named.filter(|path| !path.is_empty()).or_else(|| std::env::var("MESH_SOCKET").ok());
    named.map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_several_networks_are_completed_with_their_network() {
        let named = |network: &str, name: &str| (network.to_owned(), name.to_owned());
        let all = telling(&[named("app", "web"), named("app", "db"), named("back", "WEB")]);
        assert_eq!(all, ["app/web", "db", "back/WEB"]);
    }
}
