//! Candidates for names on the command line: requests them from the local agent, and offers none if
//! it does not answer in time.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use mesh_proto::{Problem, v1};

use crate::client::{Client, DEFAULT_SOCKET};

/// A person at a prompt does not wait for longer.
const LIMIT: Duration = Duration::from_millis(1500);

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
            Ok(qualified(&named.collect::<Vec<_>>()))
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
            Ok(qualified(&named.collect::<Vec<_>>()))
        })
    })
}

/// Names, as `NETWORK/NAME` where several networks have the name.
fn qualified(named: &[(String, String)]) -> Vec<String> {
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
        let all = qualified(&[named("app", "web"), named("app", "db"), named("back", "WEB")]);
        assert_eq!(all, ["app/web", "db", "back/WEB"]);
    }
}
