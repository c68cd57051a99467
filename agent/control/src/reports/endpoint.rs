//! A reported endpoint, parsed into the model's types and checked against the node's own leases.

use std::net::IpAddr;

use jiff::Timestamp;
use mesh_model::{EndpointId, IfName, Lease, LeaseState, MacAddr, Name, Network, NetworkId, NodeId, Owner};
use mesh_proto::convert::{InvalidMessage, parse, parse_optional};
use mesh_proto::v1;

use super::{names, shown};
use crate::layout::layout;
use crate::view::View;

/// Maximum number of aliases of one endpoint.
const MAX_ALIASES: usize = 64;
/// Maximum number of entries in each list of a resolver's settings, and of characters in an entry.
const MAX_DNS: usize = 16;
const MAX_DNS_LEN: usize = 253;

/// An endpoint that its node may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckedEndpoint {
    pub(crate) id: EndpointId,
    pub(crate) network: NetworkId,
    pub(crate) name: Name,
    pub(crate) addresses: Vec<IpAddr>,
    /// Its record for people, built only from the parsed fields.
    pub(crate) listed: v1::Endpoint,
    /// The record for other nodes, if no other endpoint has its name.
    pub(crate) visible: v1::Endpoint,
    /// Why other nodes do not resolve some of its names.
    pub(crate) withheld: Option<String>,
}

/// The reporting node, and the data for the checks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checker<'a> {
    pub(crate) view: &'a View,
    pub(crate) node: &'a NodeId,
    /// Managers may use any names.
    pub(crate) is_trusted: bool,
}

impl Checker<'_> {
    /// Parses an endpoint; fails with the reason if the node cannot have it.
    pub(crate) fn endpoint(&self, reported: &v1::Endpoint) -> Result<CheckedEndpoint, String> {
        let what = || format!("endpoint {} ({})", shown(&reported.name), shown(&reported.id));
        let read = self
            .read(reported)
            .map_err(|error| format!("{}: {} is not valid: {}", what(), error.field, shown(&error.reason)))?;
        let Some(network) = self.view.networks.get(&read.network) else {
            return Err(format!("{}: network {} does not exist", what(), read.network));
        };
        for address in &read.addresses {
            self.check_address(network, *address).map_err(|why| format!("{}: {why}", what()))?;
        }
        let mut checked = read;
        checked.listed.network_name = network.name.to_string();
        checked.visible.network_name = network.name.to_string();
        Ok(checked)
    }

    fn read(&self, reported: &v1::Endpoint) -> Result<CheckedEndpoint, InvalidMessage> {
        let id: EndpointId = parse("id", &reported.id)?;
        let name: Name = parse("name", &reported.name)?;
        let network: NetworkId = parse("network", &reported.network_id)?;
        let aliases: Vec<Name> =
            reported.aliases.iter().map(|alias| parse("alias", alias)).collect::<Result<_, _>>()?;
        if aliases.len() > MAX_ALIASES {
            let reason = format!("{} are too many: at most {MAX_ALIASES}", aliases.len());
            return Err(InvalidMessage { field: "aliases", reason });
        }
        let ipv4 = parse_optional::<std::net::Ipv4Addr>("ipv4", &reported.ipv4)?;
        let ipv6 = parse_optional::<std::net::Ipv6Addr>("ipv6", &reported.ipv6)?;
        let created_at = parse_optional::<Timestamp>("created_at", &reported.created_at)?;
        let listed = v1::Endpoint {
            id: id.to_string(),
            name: name.to_string(),
            network_id: network.to_string(),
            network_name: String::new(),
            node_id: self.node.to_string(),
            node_name: self.view.nodes.get(self.node).map(|node| node.name.to_string()).unwrap_or_default(),
            ipv4: text(ipv4),
            ipv6: text(ipv6),
            mac: text(parse_optional::<MacAddr>("mac", &reported.mac)?),
            ifname: text(parse_optional::<IfName>("ifname", &reported.ifname)?),
            service: text(parse_optional::<Name>("service", &reported.service)?),
            aliases: aliases.iter().map(ToString::to_string).collect(),
            health: health(&reported.health)?,
            created_at: text(created_at),
            dns: reported.dns.as_ref().map(dns).transpose()?,
            owner: reported.owner.as_ref().map(Owner::try_from).transpose()?.as_ref().map(Into::into),
            warnings: Vec::new(),
        };
        let (visible, withheld) = self.visible(&listed, &name, &aliases);
        let addresses = ipv4.map(IpAddr::V4).into_iter().chain(ipv6.map(IpAddr::V6)).collect();
        Ok(CheckedEndpoint { id, network, name, addresses, listed, visible, withheld })
    }

    /// Returns an endpoint without those of its names that would hide others.
    fn visible(
        &self,
        listed: &v1::Endpoint,
        name: &Name,
        aliases: &[Name],
    ) -> (v1::Endpoint, Option<String>) {
        // A runtime's key means nothing on other nodes.
        let mut visible = v1::Endpoint { owner: None, ..listed.clone() };
        if self.is_trusted {
            return (visible, None);
        }
        let mut reasons = Vec::new();
        let mut is_visible = |name: &Name| match names::withheld(name) {
            None => true,
            Some(why) => {
                reasons.push(format!("{name}: {why}"));
                false
            }
        };
        if !is_visible(name) {
            nameless(&mut visible);
        }
        visible.aliases = aliases.iter().filter(|alias| is_visible(alias)).map(ToString::to_string).collect();
        let reasons = (!reasons.is_empty()).then(|| {
            format!("endpoint {name}: only this node resolves some of its names: {}", reasons.join("; "))
        });
        (visible, reasons)
    }

    /// Checks that an endpoint's address is in a lease of its node.
    fn check_address(&self, network: &Network, address: IpAddr) -> Result<(), String> {
        let name = &network.name;
        let subnet = network.subnets.iter().find(|subnet| subnet.subnet.contains(address));
        let Some(layout) = subnet.and_then(layout) else {
            return Err(format!("address {address} is in no subnet of network {name}"));
        };
        if let Some(why) = layout.reserved(address) {
            return Err(format!("address {address} cannot be used in network {name}: it is {why}"));
        }
        let leases = self.view.leases.get(&network.id).into_iter().flat_map(|leases| leases.values());
        let deciding =
            leases.filter(|lease| lease.prefix.contains(address)).max_by_key(|lease| lease.prefix.len());
        match deciding {
            Some(lease) if self.may_use(lease) => Ok(()),
            _ => Err(format!("address {address} of network {name} is not in a lease of this node")),
        }
    }

    /// Until it agrees, the owner of a pending lease may use the address.
    fn may_use(&self, lease: &Lease) -> bool {
        match &lease.state {
            LeaseState::Active => lease.node == *self.node,
            LeaseState::Pending { from, .. } => from == self.node,
        }
    }
}

/// Replaces an endpoint's name by its id: the agents' messages require a name, and no one resolves
/// this one.
pub(crate) fn nameless(endpoint: &mut v1::Endpoint) {
    endpoint.name.clone_from(&endpoint.id);
}

fn text<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

fn invalid(field: &'static str, reason: &str) -> InvalidMessage {
    InvalidMessage { field, reason: reason.to_owned() }
}

fn health(text: &str) -> Result<String, InvalidMessage> {
    match text {
        "" | "healthy" | "unhealthy" | "unknown" | "none" => Ok(text.to_owned()),
        _ => Err(invalid("health", text)),
    }
}

/// Returns the settings of a resolver, each in the form of resolv.conf(5).
fn dns(reported: &v1::Dns) -> Result<v1::Dns, InvalidMessage> {
    let lists = [&reported.nameservers, &reported.search, &reported.options];
    if lists.iter().any(|list| list.len() > MAX_DNS) {
        return Err(invalid("dns", "a list is too long"));
    }
    for server in &reported.nameservers {
        parse::<IpAddr>("dns", server)?;
    }
    let is_word = |word: &&String| {
        word.len() <= MAX_DNS_LEN
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte))
    };
    match reported.search.iter().chain(&reported.options).find(|word| !is_word(word)) {
        Some(word) => Err(invalid("dns", word)),
        None => Ok(reported.clone()),
    }
}
