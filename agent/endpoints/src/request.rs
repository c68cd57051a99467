//! What an attach is asked for, checked.

use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_host::NetnsName;
use mesh_model::{EndpointId, IfName, MacAddr, Name, Owner};
use mesh_proto::{Problem, ProblemKind, v1};

/// An attach request whose fields are valid.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) network: String,
    pub(super) netns: NetnsName,
    pub(super) name: Option<Name>,
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
    pub(super) mac: Option<MacAddr>,
    pub(super) ifname: Option<IfName>,
    pub(super) aliases: Vec<Name>,
    pub(super) service: Option<Name>,
    pub(super) allow_forwarding: bool,
    pub(super) owner: Option<Owner>,
    /// What to do if the name is taken.
    pub(super) taken_name: TakenName,
}

/// What an attach does if the endpoint's name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TakenName {
    /// It fails.
    Refuse,
    /// It adds part of the endpoint's id to the name, if another endpoint of this node has it.
    Extend,
    /// It adds part of the endpoint's id to the name, since an endpoint of another node has it.
    Extended,
}

/// Characters of an endpoint's id that are added to a name that is taken.
const ADDED: usize = 8;

/// A name and part of an endpoint's id, within the length of a name.
pub(super) fn extended(name: &Name, id: &EndpointId) -> Option<Name> {
    const MAX_LEN: usize = 63;
    let kept: String = name.as_str().chars().take(MAX_LEN - 1 - ADDED).collect();
    format!("{kept}-{}", id.short(ADDED)).parse().ok()
}

impl Request {
    /// What the endpoint is to be called: as asked for, else as its namespace; `None` where that
    /// has no name.
    pub(super) fn endpoint_name(&self) -> Option<Name> {
        let of_netns = || match &self.netns {
            NetnsName::Text(text) => text.rsplit('/').next().and_then(|name| name.parse().ok()),
            NetnsName::Pid(_) => None,
        };
        self.name.clone().or_else(of_netns)
    }
}

impl TryFrom<v1::AttachRequest> for Request {
    type Error = Problem;

    fn try_from(request: v1::AttachRequest) -> Result<Self, Problem> {
        let usage = |message: &str| Problem::new(ProblemKind::Usage, message);
        if request.network.is_empty() {
            return Err(usage("no network is given").hint("name one with --network"));
        }
        let netns = match (request.netns.is_empty(), request.pid) {
            (false, 0) => NetnsName::Text(request.netns),
            (true, 1..) => NetnsName::Pid(request.pid),
            (true, 0) => {
                return Err(usage("no container is given")
                    .hint("name its namespace with --netns, or a process in it with --pid"));
            }
            (false, _) => {
                return Err(usage("both a namespace and a process are given").hint("use --netns or --pid"));
            }
        };
        let owner = request.owner.as_ref().map(Owner::try_from).transpose();
        let owner = owner.map_err(|error| usage(&error.to_string()))?;
        let taken_name = if request.name_may_change { TakenName::Extend } else { TakenName::Refuse };
        let service = optional("service", name_in(&request.network, &request.service)?)?;
        Ok(Self {
            network: request.network,
            netns,
            name: optional("name", &request.name)?,
            ipv4: optional("IPv4 address", &request.ip)?,
            ipv6: optional("IPv6 address", &request.ip6)?,
            mac: optional("MAC address", &request.mac)?,
            ifname: optional("interface name", &request.ifname)?,
            aliases: request
                .aliases
                .iter()
                .map(|alias| required("alias", alias))
                .collect::<Result<_, Problem>>()?,
            service,
            allow_forwarding: request.allow_forwarding,
            owner,
            taken_name,
        })
    }
}

/// A service's name, with the network as an optional prefix.
fn name_in<'a>(network: &str, service: &'a str) -> Result<&'a str, Problem> {
    match service.split_once('/') {
        None => Ok(service),
        Some((named, name)) if named.eq_ignore_ascii_case(network) => Ok(name),
        Some(_) => {
            Err(Problem::new(ProblemKind::Usage, format!("service {service} is not on network {network}"))
                .hint("an endpoint answers for services of its own network"))
        }
    }
}

fn required<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|e| Problem::new(ProblemKind::Usage, format!("{what} {text:?}: {e}")))
}

fn optional<T: std::str::FromStr<Err: std::fmt::Display>>(
    what: &str,
    text: &str,
) -> Result<Option<T>, Problem> {
    if text.is_empty() { Ok(None) } else { required(what, text).map(Some) }
}
