//! `meshctl endpoint ...`

use mesh_proto::{Problem, ProblemKind, v1};

use super::results::{each, ids, in_form, inspect, list_of};
use crate::cli::endpoint::{Attach, Command, Ls};
use crate::client::Client;
use crate::filter::{EndpointKey, Filter, matches_all};
use crate::format::Format;
use crate::report::{self, Report};
use crate::table::{columns, details, list, or_none, short};
use crate::view::{Dns, Endpoint, Named};

pub(super) async fn run(client: &Client, command: Command, format: Option<Format>) -> Report {
    match command {
        Command::Attach(attach) => self::attach(client, *attach, format).await.into(),
        Command::Ls(ls) => self::ls(client, ls, format).await.into(),
        Command::Inspect(names) => {
            let v1::ListEndpointsResponse { endpoints, unheard } =
                match all(client, String::new(), String::new()).await {
                    Ok(answer) => answer,
                    Err(problem) => return problem.into(),
                };
            let call = async |name: String| match find(&endpoints, &name) {
                Ok(endpoint) => Ok(Endpoint::from(endpoint.clone())),
                Err(problem) if problem.kind == ProblemKind::NotFound => {
                    // Without a manager only this node's own endpoints are listed: what is not
                    // among them may be elsewhere.
                    client.call(client.control().await?.get_cluster(v1::GetClusterRequest {})).await?;
                    Err(perhaps_elsewhere(problem, &unheard))
                }
                Err(problem) => Err(problem),
            };
            inspect(names.endpoints, format, call, as_details).await
        }
        Command::Detach(names) => {
            let detached = each(names.endpoints, async |endpoint| {
                let request = v1::DetachRequest { endpoint };
                let endpoint = client.call(client.local().await?.detach(request)).await?;
                Ok(Named { id: endpoint.id, name: endpoint.name })
            });
            list_of(detached.await, format, |endpoint| endpoint.id.clone())
        }
    }
}

async fn attach(client: &Client, attach: Attach, format: Option<Format>) -> Result<Report, Problem> {
    let request = v1::AttachRequest {
        network: attach.network,
        netns: attach.netns.unwrap_or_default(),
        pid: attach.pid.unwrap_or_default(),
        name: text(attach.name),
        ip: text(attach.ip),
        ip6: text(attach.ip6),
        mac: text(attach.mac),
        ifname: text(attach.ifname),
        aliases: attach.alias.into_iter().map(Into::into).collect(),
        service: text(attach.service),
        allow_forwarding: attach.allow_forwarding,
        owner: None,
        name_may_change: false,
    };
    let attached = client.call(client.local().await?.attach(request)).await?;
    let notes = attached.warnings.iter().map(|warning| report::warning(warning, format)).collect();
    let endpoint = Endpoint::from(attached);
    let text = in_form(&endpoint, format, |endpoint| {
        let words = [Some(&endpoint.id), endpoint.ipv4.as_ref(), endpoint.ipv6.as_ref()];
        let line = words.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ");
        format!("{line}\n{}", endpoint.dns.as_ref().map(resolv_conf).unwrap_or_default())
    })?;
    Ok(Report { text, notes, ..Report::default() })
}

/// What goes to the container's resolv.conf(5).
fn resolv_conf(dns: &Dns) -> String {
    let mut lines: Vec<String> =
        dns.nameserver.iter().map(|address| format!("nameserver {address}\n")).collect();
    for (word, values) in [("search", &dns.search), ("options", &dns.options)] {
        if !values.is_empty() {
            lines.push(format!("{word} {}\n", values.join(" ")));
        }
    }
    lines.concat()
}

fn text<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

async fn ls(client: &Client, ls: Ls, format: Option<Format>) -> Result<String, Problem> {
    let found = all(client, ls.network.unwrap_or_default(), ls.node.unwrap_or_default()).await?;
    let mut found: Vec<Endpoint> = found.endpoints.into_iter().map(Into::into).collect();
    found.retain(|endpoint| matches(&ls.filter, endpoint));
    found.sort_by(|a, b| (&a.network, &a.name, &a.id).cmp(&(&b.network, &b.name, &b.id)));
    if ls.quiet {
        return ids(found.iter().map(|endpoint| endpoint.id.as_str()), format);
    }
    in_form(&found, format, |found| as_columns(found))
}

async fn all(client: &Client, network: String, node: String) -> Result<v1::ListEndpointsResponse, Problem> {
    let request = v1::ListEndpointsRequest { network, node };
    client.call(client.control().await?.list_endpoints(request)).await
}

/// An endpoint that is not found may be on a node that has not reported since the manager started.
fn perhaps_elsewhere(problem: Problem, unheard: &[String]) -> Problem {
    if unheard.is_empty() {
        return problem;
    }
    problem.hint(format!(
        "the manager has restarted and has no report yet of the endpoints on {}",
        unheard.join(", ")
    ))
}

/// The endpoint meant by an id, a name, or the beginning of an id, in this order; each may be
/// preceded by `NETWORK/`.
fn find<'a>(endpoints: &'a [v1::Endpoint], asked: &str) -> Result<&'a v1::Endpoint, Problem> {
    let (within, wanted) = asked.split_once('/').map_or((None, asked), |(within, name)| (Some(within), name));
    let is_within = |endpoint: &&v1::Endpoint| {
        within.is_none_or(|network| {
            endpoint.network_name.eq_ignore_ascii_case(network) || endpoint.network_id == network
        })
    };
    let endpoints: Vec<&'a v1::Endpoint> = endpoints.iter().filter(is_within).collect();
    if let Some(endpoint) = endpoints.iter().copied().find(|endpoint| endpoint.id == wanted) {
        return Ok(endpoint);
    }
    let by_name: Vec<_> =
        endpoints.iter().copied().filter(|endpoint| endpoint.name.eq_ignore_ascii_case(wanted)).collect();
    let found = if by_name.is_empty() {
        endpoints.iter().copied().filter(|endpoint| endpoint.id.starts_with(wanted)).collect()
    } else {
        by_name
    };
    match found.as_slice() {
        [one] => Ok(one),
        [] => {
            let message = format!("endpoint inspect, {asked}, no endpoint has this name or id");
            Err(Problem::new(ProblemKind::NotFound, message).hint("list them with `meshctl endpoint ls`"))
        }
        several => {
            let which = several.iter().map(|e| format!("{} on network {}", e.id, e.network_name));
            let message = format!("endpoint inspect, {asked}, matches {} endpoints", several.len());
            let hint = format!("use NETWORK/NAME, or the id: {}", which.collect::<Vec<_>>().join(", "));
            Err(Problem::new(ProblemKind::Usage, message).hint(hint))
        }
    }
}

fn matches(filters: &[Filter<EndpointKey>], endpoint: &Endpoint) -> bool {
    matches_all(filters, |key, value| match key {
        EndpointKey::Id => endpoint.id.starts_with(value),
        EndpointKey::Name => endpoint.name.contains(value),
        EndpointKey::Network => endpoint.network.eq_ignore_ascii_case(value),
        EndpointKey::Node => endpoint.node.eq_ignore_ascii_case(value),
        EndpointKey::Service => serves(endpoint, value),
    })
}

/// Whether it is a backend of the service, called by its name or as `NETWORK/NAME`.
fn serves(endpoint: &Endpoint, wanted: &str) -> bool {
    let (network, name) = wanted.split_once('/').unwrap_or((&endpoint.network, wanted));
    let services = endpoint.service.as_deref().unwrap_or_default();
    endpoint.network.eq_ignore_ascii_case(network)
        && services.split(',').any(|service| !service.is_empty() && service.eq_ignore_ascii_case(name))
}

/// Endpoints as a table.
pub(super) fn as_columns(endpoints: &[Endpoint]) -> String {
    let rows = endpoints.iter().map(|endpoint| {
        [
            short(&endpoint.id),
            endpoint.name.clone(),
            endpoint.network.clone(),
            endpoint.node.clone(),
            or_none(endpoint.ipv4.as_ref()),
            or_none(endpoint.ipv6.as_ref()),
            endpoint.ifname.clone(),
        ]
    });
    columns(["ENDPOINT ID", "NAME", "NETWORK", "NODE", "IPV4", "IPV6", "INTERFACE"], rows)
}

fn as_details(endpoint: &Endpoint) -> String {
    details([
        ("ID", endpoint.id.clone()),
        ("Name", endpoint.name.clone()),
        ("Network", endpoint.network.clone()),
        ("Node", endpoint.node.clone()),
        ("IPv4", or_none(endpoint.ipv4.as_ref())),
        ("IPv6", or_none(endpoint.ipv6.as_ref())),
        ("MAC", endpoint.mac.clone()),
        ("Interface", endpoint.ifname.clone()),
        ("Service", or_none(endpoint.service.as_ref())),
        ("Aliases", list(&endpoint.aliases)),
        ("Health", or_none(endpoint.health.as_ref())),
        ("Name server", list(endpoint.dns.iter().flat_map(|dns| &dns.nameserver))),
        ("Search domain", list(endpoint.dns.iter().flat_map(|dns| &dns.search))),
        ("Resolver options", list(endpoint.dns.iter().flat_map(|dns| &dns.options))),
        ("Owner", or_none(endpoint.owner.as_ref())),
        ("Created", endpoint.created_at.clone()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(id: &str, name: &str) -> v1::Endpoint {
        v1::Endpoint { id: id.into(), name: name.into(), ..Default::default() }
    }

    #[test]
    fn an_endpoint_is_found_by_id_name_or_the_beginning_of_its_id() {
        let endpoints = [endpoint("aa11", "web"), endpoint("ab22", "db"), endpoint("cc33", "aa")];
        for (wanted, id) in [("aa11", "aa11"), ("web", "aa11"), ("ab", "ab22"), ("aa", "cc33")] {
            assert_eq!(find(&endpoints, wanted).unwrap().id, id, "{wanted}");
        }
        assert_eq!(find(&endpoints, "zz").unwrap_err().kind, ProblemKind::NotFound);
        assert_eq!(find(&endpoints, "a").unwrap_err().kind, ProblemKind::Usage);
    }

    #[test]
    fn a_name_on_two_networks_is_ambiguous() {
        let endpoints = [endpoint("aa11", "web"), endpoint("ab22", "web")];
        let problem = find(&endpoints, "web").unwrap_err();
        assert_eq!(problem.kind, ProblemKind::Usage);
        assert!(problem.hint.unwrap().contains("aa11"));
    }
}
