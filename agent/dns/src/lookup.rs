//! From a zone and a question to an answer. Pure: the same zone and question give the same answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use hickory_proto::rr::{Name, RecordType};
use ipnetwork::IpNetwork;

use crate::zone::{EndpointMode, Zone};

/// The prefix of the name that stands for all backends of a service.
const TASKS: &str = "tasks.";

/// What a zone says to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Addresses of the asked type, in ascending order, at least one.
    Addresses(Vec<IpAddr>),
    /// The name that has the asked address.
    Pointer(Name),
    /// The name exists, without a record of the asked type.
    NoData {
        /// The zone that the name is in.
        apex: Name,
    },
    /// The name would be ours and does not exist.
    NoName {
        /// The zone that the name would be in.
        apex: Name,
    },
    /// The name is not ours to answer for.
    Foreign,
}

/// A zone, made ready to be asked.
#[derive(Debug)]
pub struct Index {
    /// The network's name in lower case.
    suffix: String,
    /// The network's name; the root if it is none that DNS can say.
    apex: Name,
    subnets: Vec<IpNetwork>,
    /// Names in lower case, without the suffix.
    names: BTreeMap<String, Addresses>,
    pointers: BTreeMap<IpAddr, Name>,
}

/// Everything that a name stands for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Addresses {
    ipv4: BTreeSet<Ipv4Addr>,
    ipv6: BTreeSet<Ipv6Addr>,
}

/// One of those that share a name.
#[derive(Debug, Clone, Copy)]
struct Holder {
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    healthy: bool,
}

impl Index {
    /// Makes `zone`, of the network called `network`, ready to be asked.
    pub fn new(network: &str, zone: &Zone) -> Self {
        let suffix = fold(network);
        let mut names = BTreeMap::new();
        for holders in [service_names(zone), endpoint_names(zone), endpoint_aliases(zone)] {
            for (name, holders) in holders {
                // Of those who claim a name, the first kind has it.
                names.entry(name).or_insert_with(|| Addresses::of(&holders));
            }
        }
        Self {
            apex: absolute(&suffix).unwrap_or_else(Name::root),
            subnets: zone.subnets.clone(),
            names,
            pointers: pointers(&suffix, zone),
            suffix,
        }
    }

    /// Answers a question of class IN.
    pub fn lookup(&self, name: &Name, record_type: RecordType) -> Answer {
        if let Some(answer) = self.reverse(name, record_type) {
            return answer;
        }
        let asked = text(name);
        let is_single_label = name.iter().count() == 1;
        if let Some(addresses) = asked.as_ref().and_then(|asked| self.names.get(asked)) {
            // What a single label is in is the root; an alias such as db.example.com is a zone of its own.
            let apex = if is_single_label { Name::root() } else { name.clone() };
            return addresses.answer(record_type, apex);
        }
        if self.is_under_suffix(name) {
            let apex = self.apex.clone();
            let known = asked
                .as_deref()
                .and_then(|asked| asked.strip_suffix(&self.suffix)?.strip_suffix('.'))
                .and_then(|asked| self.names.get(asked));
            return match known {
                Some(addresses) => addresses.answer(record_type, apex),
                None if *name == self.apex => Answer::NoData { apex },
                None => Answer::NoName { apex },
            };
        }
        // What resolvers that look for delegations ask of top-level domains is not about hosts.
        let delegation =
            matches!(record_type, RecordType::NS | RecordType::SOA | RecordType::DS | RecordType::DNSKEY);
        if is_single_label && !delegation {
            return Answer::NoName { apex: Name::root() };
        }
        Answer::Foreign
    }

    /// Whether the name ends in the network's, label by label.
    fn is_under_suffix(&self, name: &Name) -> bool {
        !self.apex.is_root() && self.apex.zone_of(name)
    }

    /// The answer about a name that stands for an address, if that is ours.
    fn reverse(&self, name: &Name, record_type: RecordType) -> Option<Answer> {
        let asked = name.parse_arpa_name().ok()?;
        let (apex, whole) = match asked.addr() {
            IpAddr::V4(_) => ("in-addr.arpa", 32),
            IpAddr::V6(_) => ("ip6.arpa", 128),
        };
        let apex = absolute(apex).unwrap_or_else(Name::root);
        if asked.prefix_len() == whole
            && let Some(pointer) = self.pointers.get(&asked.addr())
        {
            return Some(match record_type {
                RecordType::PTR | RecordType::ANY => Answer::Pointer(pointer.clone()),
                _ => Answer::NoData { apex },
            });
        }
        let ours = self
            .subnets
            .iter()
            .any(|subnet| subnet.contains(asked.addr()) && subnet.prefix() <= asked.prefix_len());
        match (ours, asked.prefix_len() == whole) {
            (true, true) => Some(Answer::NoName { apex }),
            // A part of an address: there may be names below it.
            (true, false) => Some(Answer::NoData { apex }),
            (false, _) => Some(Answer::Foreign),
        }
    }
}

impl Addresses {
    /// The healthy ones, or all if none is.
    fn of(holders: &[Holder]) -> Self {
        let any_healthy = holders.iter().any(|holder| holder.healthy);
        let mut addresses = Self::default();
        for holder in holders.iter().filter(|holder| holder.healthy || !any_healthy) {
            addresses.ipv4.extend(holder.ipv4);
            addresses.ipv6.extend(holder.ipv6);
        }
        addresses
    }

    fn answer(&self, record_type: RecordType, apex: Name) -> Answer {
        let ipv4 = self.ipv4.iter().copied().map(IpAddr::from);
        let ipv6 = self.ipv6.iter().copied().map(IpAddr::from);
        let addresses: Vec<IpAddr> = match record_type {
            RecordType::A => ipv4.collect(),
            RecordType::AAAA => ipv6.collect(),
            RecordType::ANY => ipv4.chain(ipv6).collect(),
            _ => Vec::new(),
        };
        if addresses.is_empty() { Answer::NoData { apex } } else { Answer::Addresses(addresses) }
    }
}

fn service_names(zone: &Zone) -> BTreeMap<String, Vec<Holder>> {
    let mut names = BTreeMap::<String, Vec<Holder>>::new();
    for service in &zone.services {
        let backends: Vec<Holder> = service
            .backends
            .iter()
            .map(|backend| Holder { ipv4: backend.ipv4, ipv6: backend.ipv6, healthy: backend.healthy })
            .collect();
        names.entry(format!("{TASKS}{}", fold(&service.name))).or_default().extend(&backends);
        let holders = match service.mode {
            EndpointMode::Vip { ipv4, ipv6 } => vec![Holder { ipv4, ipv6, healthy: true }],
            EndpointMode::RoundRobin => backends,
        };
        for name in std::iter::once(&service.name).chain(&service.aliases) {
            names.entry(fold(name)).or_default().extend(&holders);
        }
    }
    names
}

fn endpoint_names(zone: &Zone) -> BTreeMap<String, Vec<Holder>> {
    let mut names = BTreeMap::<String, Vec<Holder>>::new();
    for endpoint in &zone.endpoints {
        let holder = Holder { ipv4: endpoint.ipv4, ipv6: endpoint.ipv6, healthy: true };
        names.entry(fold(&endpoint.name)).or_default().push(holder);
    }
    names
}

fn endpoint_aliases(zone: &Zone) -> BTreeMap<String, Vec<Holder>> {
    let mut names = BTreeMap::<String, Vec<Holder>>::new();
    for endpoint in &zone.endpoints {
        let holder = Holder { ipv4: endpoint.ipv4, ipv6: endpoint.ipv6, healthy: endpoint.healthy };
        for alias in &endpoint.aliases {
            names.entry(fold(alias)).or_default().push(holder);
        }
    }
    names
}

fn pointers(suffix: &str, zone: &Zone) -> BTreeMap<IpAddr, Name> {
    let mut pointers = BTreeMap::new();
    let mut point = |name: &str, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>| {
        if let Some(name) = absolute(&format!("{}.{suffix}", fold(name))) {
            for address in ipv4.map(IpAddr::from).into_iter().chain(ipv6.map(IpAddr::from)) {
                pointers.entry(address).or_insert_with(|| name.clone());
            }
        }
    };
    for service in &zone.services {
        if let EndpointMode::Vip { ipv4, ipv6 } = service.mode {
            point(&service.name, ipv4, ipv6);
        }
    }
    for endpoint in &zone.endpoints {
        point(&endpoint.name, endpoint.ipv4, endpoint.ipv6);
    }
    pointers
}

/// A configured name as it is looked up.
fn fold(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// The name from the root that `text` says; `None` if no such name can be written in a message (RFC 1035, section 2.3.4).
fn absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_labels(text.split('.').map(str::as_bytes)).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// An asked name as it is looked up; `None` if it has octets that no configured name has, such as a dot within a label.
fn text(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name {
        if !label.iter().all(|octet| octet.is_ascii_graphic() && *octet != b'.') {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|octet| char::from(octet.to_ascii_lowercase())));
    }
    Some(text)
}

#[cfg(test)]
mod tests;
