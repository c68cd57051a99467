//! From a zone and a question to an answer. Pure: the same zone and question give the same answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use hickory_proto::rr::{Name, RecordType};
use ipnetwork::IpNetwork;

use crate::zone::{Endpoint, EndpointMode, List, Service, Zone};

/// The prefix of the name that resolves to all backends of a service.
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
    /// The name is a network's own, of several labels. It is public, too; but it exists, whatever
    /// others answer.
    Apex(Name),
}

/// A zone, made ready to be asked.
#[derive(Debug)]
pub struct Index {
    /// The network's name in lower case.
    suffix: String,
    /// The network's name; the root if it is none that DNS can say.
    apex: Name,
    subnets: Vec<IpNetwork>,
    services: Vec<Arc<Part<Service>>>,
    endpoints: Vec<Arc<Part<Endpoint>>>,
}

/// One part of a list, made ready.
#[derive(Debug)]
struct Part<T> {
    list: Arc<Vec<T>>,
    /// Names in lower case, without the suffix.
    names: Holders,
    /// Names that names hide.
    aliases: Holders,
    pointers: BTreeMap<IpAddr, Name>,
}

/// Who has a name.
type Holders = BTreeMap<String, Vec<Holder>>;

/// Everything that a name resolves to.
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
        Self::following(None, network, zone)
    }

    /// The same, with what is still right of the index that `former` is of the same network: that
    /// of the parts which are the same `Arc`.
    pub fn following(former: Option<&Self>, network: &str, zone: &Zone) -> Self {
        let suffix = fold(network);
        let former = former.filter(|former| former.suffix == suffix);
        let services = former.map(|former| former.services.as_slice());
        let endpoints = former.map(|former| former.endpoints.as_slice());
        Self {
            apex: absolute(&suffix).unwrap_or_else(Name::root),
            subnets: zone.subnets.clone(),
            services: parts(&zone.services, services, |list| Part::of_services(&suffix, list)),
            endpoints: parts(&zone.endpoints, endpoints, |list| Part::of_endpoints(&suffix, list)),
            suffix,
        }
    }

    /// Answers a question of class IN from this network alone.
    pub fn lookup(&self, name: &Name, record_type: RecordType) -> Answer {
        lookup(&[self], name, record_type)
    }

    /// What a name stands for, in lower case and without the suffix. Of those who claim it, the
    /// first kind has it.
    fn known(&self, name: &str) -> Option<Addresses> {
        let services = || holders(self.services.iter().map(|part| &part.names), name);
        let endpoints = || holders(self.endpoints.iter().map(|part| &part.names), name);
        let aliases = || holders(self.endpoints.iter().map(|part| &part.aliases), name);
        services().or_else(endpoints).or_else(aliases).map(|holders| Addresses::of(&holders))
    }

    /// The name that has an address of the network's subnets.
    fn pointer(&self, address: &IpAddr) -> Option<&Name> {
        if !self.subnets.iter().any(|subnet| subnet.contains(*address)) {
            return None;
        }
        let service = self.services.iter().find_map(|part| part.pointers.get(address));
        service.or_else(|| self.endpoints.iter().find_map(|part| part.pointers.get(address)))
    }

    /// What stands before the network's own name.
    fn below<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_suffix(&self.suffix)?.strip_suffix('.')
    }
}

/// Answers a question of class IN from several networks. A name under a network's own name goes
/// before a bare one, so that nobody in one network takes the names of another; of bare names the
/// first network's goes first.
///
/// What is not known is public. Only names of one label, and addresses of the networks' subnets,
/// are ours alone.
pub(crate) fn lookup(indexes: &[&Index], name: &Name, record_type: RecordType) -> Answer {
    if let Some(answer) = reverse(indexes, name, record_type) {
        return answer;
    }
    let is_single_label = name.iter().count() == 1;
    if let Some(asked) = text(name) {
        let below = indexes.iter().filter_map(|index| Some((*index, index.below(&asked)?)));
        let mut below: Vec<(&Index, &str)> = below.collect();
        // The longest of the networks' names first.
        below.sort_by_key(|(_, rest)| rest.len());
        for (index, rest) in below {
            if let Some(addresses) = index.known(rest) {
                return addresses.answer(record_type, index.apex.clone());
            }
        }
        if let Some(addresses) = indexes.iter().find_map(|index| index.known(&asked)) {
            // What a single label is in is the root; an alias such as db.example.com is a zone of
            // its own.
            let apex = if is_single_label { Name::root() } else { name.clone() };
            return addresses.answer(record_type, apex);
        }
    }
    let is_apex = |index: &&&Index| !index.apex.is_root() && index.apex == *name;
    let apex = indexes.iter().find(is_apex).map(|index| index.apex.clone());
    // What resolvers that look for delegations ask of top-level domains is not about hosts.
    let delegation =
        matches!(record_type, RecordType::NS | RecordType::SOA | RecordType::DS | RecordType::DNSKEY);
    match apex {
        _ if is_single_label && delegation => Answer::Foreign,
        Some(apex) if is_single_label => Answer::NoData { apex },
        Some(apex) => Answer::Apex(apex),
        None if is_single_label => Answer::NoName { apex: Name::root() },
        None => Answer::Foreign,
    }
}

/// The answer for a reverse lookup name; `None` for other names.
fn reverse(indexes: &[&Index], name: &Name, record_type: RecordType) -> Option<Answer> {
    let asked = name.parse_arpa_name().ok()?;
    let (address, len) = (asked.addr(), asked.prefix_len());
    let is_whole = len == if address.is_ipv4() { 32 } else { 128 };
    let subnets = indexes.iter().flat_map(|index| &index.subnets);
    let subnet = subnets.into_iter().find(|subnet| subnet.contains(address) && subnet.prefix() <= len);
    let Some(subnet) = subnet else { return Some(Answer::Foreign) };
    let apex = arpa(address, subnet.prefix());
    let pointer = indexes.iter().find_map(|index| index.pointer(&address)).filter(|_| is_whole);
    Some(match (pointer, record_type) {
        (Some(pointer), RecordType::PTR | RecordType::ANY) => Answer::Pointer(pointer.clone()),
        (None, _) if is_whole => Answer::NoName { apex },
        // Also of a part of an address: there may be names below it.
        _ => Answer::NoData { apex },
    })
}

/// The name of the largest part of the address space that is wholly of a subnet and has a name.
fn arpa(address: IpAddr, prefix: u8) -> Name {
    let labels = if address.is_ipv4() { prefix.div_ceil(8) } else { prefix.div_ceil(4) };
    // Behind them are `in-addr.arpa` or `ip6.arpa`.
    let mut apex = Name::from(address).trim_to(usize::from(labels) + 2);
    apex.set_fqdn(true);
    apex
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

impl<T> Part<T> {
    fn new(list: &Arc<Vec<T>>) -> Self {
        let (names, aliases) = (Holders::new(), Holders::new());
        Self { list: Arc::clone(list), names, aliases, pointers: BTreeMap::new() }
    }

    /// The first who has an address has its pointer.
    fn point(&mut self, suffix: &str, name: &str, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) {
        if let Some(name) = absolute(&format!("{}.{suffix}", fold(name))) {
            for address in ipv4.map(IpAddr::from).into_iter().chain(ipv6.map(IpAddr::from)) {
                self.pointers.entry(address).or_insert_with(|| name.clone());
            }
        }
    }
}

impl Part<Service> {
    fn of_services(suffix: &str, list: &Arc<Vec<Service>>) -> Self {
        let mut part = Self::new(list);
        for service in &**list {
            let backends: Vec<Holder> = service
                .backends
                .iter()
                .map(|backend| Holder { ipv4: backend.ipv4, ipv6: backend.ipv6, healthy: backend.healthy })
                .collect();
            part.names.entry(format!("{TASKS}{}", fold(&service.name))).or_default().extend(&backends);
            let holders = match service.mode {
                EndpointMode::Vip { ipv4, ipv6 } => {
                    part.point(suffix, &service.name, ipv4, ipv6);
                    vec![Holder { ipv4, ipv6, healthy: true }]
                }
                EndpointMode::RoundRobin => backends,
            };
            for name in std::iter::once(&service.name).chain(&service.aliases) {
                part.names.entry(fold(name)).or_default().extend(&holders);
            }
        }
        part
    }
}

impl Part<Endpoint> {
    fn of_endpoints(suffix: &str, list: &Arc<Vec<Endpoint>>) -> Self {
        let mut part = Self::new(list);
        for endpoint in &**list {
            let Endpoint { ipv4, ipv6, healthy, .. } = *endpoint;
            part.point(suffix, &endpoint.name, ipv4, ipv6);
            let holder = Holder { ipv4, ipv6, healthy: true };
            part.names.entry(fold(&endpoint.name)).or_default().push(holder);
            for alias in &endpoint.aliases {
                part.aliases.entry(fold(alias)).or_default().push(Holder { healthy, ..holder });
            }
        }
        part
    }
}

/// The index of each part of a list: the former one where the part is the same. Empty parts are
/// left out.
fn parts<T>(
    list: &List<T>,
    former: Option<&[Arc<Part<T>>]>,
    make: impl Fn(&Arc<Vec<T>>) -> Part<T>,
) -> Vec<Arc<Part<T>>> {
    // What is compared by its place in memory is still in use by the former index.
    let former = former.unwrap_or_default().iter();
    let former: BTreeMap<*const Vec<T>, &Arc<Part<T>>> =
        former.map(|part| (Arc::as_ptr(&part.list), part)).collect();
    let lists = list.parts().iter().filter(|list| !list.is_empty());
    lists
        .map(|list| match former.get(&Arc::as_ptr(list)) {
            Some(part) => Arc::clone(part),
            None => Arc::new(make(list)),
        })
        .collect()
}

/// All that have a name, in whichever part.
fn holders<'a>(parts: impl Iterator<Item = &'a Holders>, name: &str) -> Option<Vec<Holder>> {
    let mut found = parts.filter_map(|names| names.get(name)).peekable();
    found.peek()?;
    Some(found.flatten().copied().collect())
}

/// A configured name as it is looked up.
fn fold(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// The name from the root that `text` says; `None` if no such name can be written in a message (RFC
/// 1035, section 2.3.4).
fn absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_labels(text.split('.').map(str::as_bytes)).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// An asked name as it is looked up; `None` if it has octets that no configured name has, such as a
/// dot within a label.
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
