//! The request for a new network, checked as far as possible without other data.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_ipam::{Family, SubnetLayout, SubnetSpec};
use mesh_model::{HostPolicy, Mtu, Name, Prefix, Subnet, Vni};
use mesh_proto::convert::host_policy::read as read_host_policy;
use mesh_proto::v1::CreateNetworkRequest;
use mesh_proto::{Problem, ProblemKind};

/// Maximum number of subnets of one network: each is a route and an address on every host.
const MAX_SUBNETS: usize = 16;

/// A valid request.
#[derive(Debug)]
pub(super) struct RequestedNetwork {
    pub(super) name: Name,
    /// The requested subnets.
    pub(super) subnets: Vec<SubnetSpec>,
    /// The families for which a subnet must be chosen.
    pub(super) automatic: Vec<Family>,
    pub(super) mtu: Option<Mtu>,
    pub(super) vni: Option<Vni>,
    pub(super) encrypted: bool,
    pub(super) internal: bool,
    pub(super) attachable: bool,
    pub(super) host_policy: HostPolicy,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) options: BTreeMap<String, String>,
}

fn usage(message: &impl ToString) -> Problem {
    Problem::new(ProblemKind::Usage, message.to_string())
}

impl RequestedNetwork {
    /// Checks a request.
    pub(super) fn parse(request: CreateNetworkRequest) -> Result<Self, Problem> {
        let name: Name = request.name.parse().map_err(|e| usage(&e))?;
        if !matches!(request.driver.as_str(), "" | "overlay") {
            return Err(usage(&format!("network driver {:?} does not exist", request.driver))
                .hint("the only driver is overlay, which is the default"));
        }
        // Docker accepts `-o encrypted` with any value as a request to encrypt; ignoring it would
        // be dangerous.
        let encrypted = request.encrypted || request.options.contains_key(ENCRYPTED);
        let subnets = subnets(&request)?;
        let has = |family| subnets.iter().any(|spec: &SubnetSpec| spec.subnet.family() == family);
        let mut automatic = Vec::new();
        if !has(Family::Ipv4) {
            automatic.push(Family::Ipv4);
        }
        if request.ipv6 && !has(Family::Ipv6) {
            automatic.push(Family::Ipv6);
        }
        let mtu: Option<Mtu> = request.mtu.map(TryInto::try_into).transpose().map_err(|e| usage(&e))?;
        let mtu = with_options(mtu, &request)?;
        if let Some(mtu) = mtu.filter(|mtu| mtu.get() < Mtu::MIN_IPV6)
            && (request.ipv6 || has(Family::Ipv6))
        {
            return Err(usage(&format!(
                "MTU {mtu} is too small for a network with IPv6: at least {}",
                Mtu::MIN_IPV6
            )));
        }
        let host_policy = read_host_policy(request.host_access, request.metadata).map_err(|e| usage(&e))?;
        let vni = request.vni.map(TryInto::try_into).transpose().map_err(|e| usage(&e))?;
        if let Some(what) = [("label", &request.labels), ("option", &request.options)]
            .into_iter()
            .find_map(|(what, map)| map.keys().any(|key| key.trim().is_empty()).then_some(what))
        {
            return Err(usage(&format!("a {what} must have a name before =")));
        }
        Ok(Self {
            name,
            subnets,
            automatic,
            mtu,
            vni,
            encrypted,
            internal: request.internal,
            attachable: request.attachable,
            host_policy,
            labels: request.labels.into_iter().collect(),
            options: request.options.into_iter().collect(),
        })
    }
}

/// The Docker options that are supported.
const OPTIONS: [&str; 3] = [ENCRYPTED, MTU_OPTIONS[0], MTU_OPTIONS[1]];
const ENCRYPTED: &str = "encrypted";
const MTU_OPTIONS: [&str; 2] = ["mtu", "com.docker.network.driver.mtu"];

/// Returns the MTU, including its option. Refuses unknown options, since they would have no effect.
fn with_options(mut mtu: Option<Mtu>, request: &CreateNetworkRequest) -> Result<Option<Mtu>, Problem> {
    for (key, value) in request.options.iter().collect::<BTreeMap<_, _>>() {
        if !OPTIONS.contains(&key.as_str()) && !key.trim().is_empty() {
            return Err(usage(&format!("network option {key:?} does not exist"))
                .hint(format!("the options are {}", OPTIONS.join(", "))));
        }
        if !MTU_OPTIONS.contains(&key.as_str()) {
            continue;
        }
        let invalid = |why: String| usage(&format!("option {key}={value}: {why}"));
        let bytes = value.parse::<u32>().map_err(|error| invalid(error.to_string()))?;
        let given = Mtu::try_from(bytes).map_err(|error| invalid(error.to_string()))?;
        if let Some(other) = mtu.filter(|other| *other != given) {
            return Err(invalid(format!("the MTU is also given as {other}")));
        }
        mtu = Some(given);
    }
    Ok(mtu)
}

/// Returns the subnets with their gateways, ranges and auxiliary addresses.
fn subnets(request: &CreateNetworkRequest) -> Result<Vec<SubnetSpec>, Problem> {
    let mut specs: Vec<SubnetSpec> = Vec::new();
    for text in &request.subnets {
        let subnet = Prefix::parse_strict(text).map_err(|e| usage(&format!("subnet {e}")))?;
        if let Some(other) = specs.iter().find(|other| other.subnet.overlaps(&subnet)) {
            return Err(usage(&format!(
                "subnet {subnet} overlaps subnet {} of the same network",
                other.subnet
            )));
        }
        specs.push(SubnetSpec::new(subnet));
    }
    if specs.len() > MAX_SUBNETS {
        return Err(usage(&format!("{} subnets are too many: at most {MAX_SUBNETS}", specs.len())));
    }
    for text in &request.gateways {
        let gateway: IpAddr =
            text.parse().map_err(|_| usage(&format!("gateway {text:?} is not an IP address")))?;
        let spec = around(&mut specs, &format!("gateway {gateway}"), |subnet| subnet.contains(gateway))?;
        if let Some(other) = spec.gateway.replace(gateway) {
            return Err(usage(&format!("subnet {} has two gateways: {other} and {gateway}", spec.subnet)));
        }
    }
    for text in &request.ip_ranges {
        let range = Prefix::parse_strict(text).map_err(|e| usage(&format!("IP range {e}")))?;
        let spec = around(&mut specs, &format!("IP range {range}"), |subnet| subnet.covers(&range))?;
        if let Some(other) = spec.ip_range.replace(range) {
            return Err(usage(&format!("subnet {} has two IP ranges: {other} and {range}", spec.subnet)));
        }
    }
    // Sorted, so that of several mistakes the same one is always reported.
    for (name, text) in request.aux.iter().collect::<BTreeMap<_, _>>() {
        if name.is_empty() {
            return Err(usage(&format!("auxiliary address {text} has no name: use NAME=IP")));
        }
        let what = format!("auxiliary address {name}={text}");
        let address: IpAddr =
            text.parse().map_err(|_| usage(&format!("{what}: {text:?} is not an IP address")))?;
        let spec = around(&mut specs, &what, |subnet| subnet.contains(address))?;
        spec.aux.insert(name.clone(), address);
    }
    for spec in &specs {
        SubnetLayout::new(spec.clone()).map_err(|e| usage(&e))?;
    }
    Ok(specs)
}

fn around<'a>(
    specs: &'a mut [SubnetSpec],
    what: &str,
    fits: impl Fn(&Prefix) -> bool,
) -> Result<&'a mut SubnetSpec, Problem> {
    let given: Vec<String> = specs.iter().map(|spec| spec.subnet.to_string()).collect();
    specs.iter_mut().find(|spec| fits(&spec.subnet)).ok_or_else(|| {
        if given.is_empty() {
            usage(&format!("{what} requires a subnet that contains it")).hint("specify one with --subnet")
        } else {
            usage(&format!("{what} is not in any of the subnets {}", given.join(", ")))
        }
    })
}

/// Returns a subnet's record.
pub(super) fn record(spec: &SubnetSpec) -> Result<Subnet, Problem> {
    let layout = SubnetLayout::new(spec.clone()).map_err(|e| usage(&e))?;
    Ok(Subnet {
        subnet: spec.subnet,
        gateway: layout.gateway(),
        ip_range: spec.ip_range,
        aux: spec.aux.clone(),
    })
}
