//! The request for a service, parsed and checked without other data.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_model::{Affinity, EndpointMode, HealthCheck, Name, Protocol, PublishedPort, WhenAllUnhealthy};
use mesh_proto::convert::{parse, parse_optional};
use mesh_proto::v1::{self, CreateServiceRequest};
use mesh_proto::{InvalidMessage, Problem, ProblemKind};

use crate::errors::usage;

/// The requested properties of a service.
#[derive(Debug, Clone)]
pub(super) struct RequestedService {
    pub(super) name: Name,
    pub(super) endpoint_mode: EndpointMode,
    pub(super) vip: Option<Ipv4Addr>,
    pub(super) vip6: Option<Ipv6Addr>,
    pub(super) ports: Vec<PublishedPort>,
    pub(super) affinity: Affinity,
    pub(super) health: Option<HealthCheck>,
    pub(super) when_all_unhealthy: WhenAllUnhealthy,
    pub(super) aliases: Vec<Name>,
    pub(super) labels: BTreeMap<String, String>,
}

impl RequestedService {
    pub(super) fn parse(request: CreateServiceRequest) -> Result<Self, Problem> {
        let wanted = Self::read(request).map_err(|error| usage(&error))?;
        if wanted.endpoint_mode == EndpointMode::Dnsrr
            && let Some(vip) =
                wanted.vip.map(|vip| vip.to_string()).or(wanted.vip6.map(|vip| vip.to_string()))
        {
            return Err(Problem::new(
                ProblemKind::Usage,
                format!(
                    "service {} with endpoint mode dnsrr has no virtual address such as {vip}",
                    wanted.name
                ),
            ));
        }
        check_distinct(&wanted.ports)?;
        Ok(wanted)
    }

    fn read(request: CreateServiceRequest) -> Result<Self, InvalidMessage> {
        let known = |field, problem: Option<()>| {
            problem.ok_or_else(|| InvalidMessage { field, reason: "is not known".into() })
        };
        known("endpoint_mode", v1::EndpointMode::try_from(request.endpoint_mode).ok().map(drop))?;
        known("affinity", v1::Affinity::try_from(request.affinity).ok().map(drop))?;
        let when = v1::WhenAllUnhealthy::try_from(request.when_all_unhealthy).ok();
        known("when_all_unhealthy", when.map(drop))?;
        Ok(Self {
            name: parse("name", &request.name)?,
            endpoint_mode: request.endpoint_mode().try_into()?,
            vip: parse_optional("vip", &request.vip)?,
            vip6: parse_optional("vip6", &request.vip6)?,
            affinity: request.affinity().try_into()?,
            when_all_unhealthy: request.when_all_unhealthy().try_into()?,
            ports: ports(request.ports)?,
            health: request.health.map(TryInto::try_into).transpose()?,
            aliases: aliases(&request.aliases)?,
            labels: request.labels.into_iter().collect(),
        })
    }
}

pub(super) fn ports(ports: Vec<v1::PublishedPort>) -> Result<Vec<PublishedPort>, InvalidMessage> {
    ports.into_iter().map(TryInto::try_into).collect()
}

/// Returns each name once, in the given order.
pub(super) fn aliases(texts: &[String]) -> Result<Vec<Name>, InvalidMessage> {
    let mut aliases: Vec<Name> = Vec::new();
    for text in texts {
        let alias: Name = parse("aliases", text)?;
        if !aliases.iter().any(|known| known.is_same(&alias)) {
            aliases.push(alias);
        }
    }
    Ok(aliases)
}

/// Checks that no two ports of one service match the same packets. Ports that are still to be
/// chosen will not.
pub(super) fn check_distinct(ports: &[PublishedPort]) -> Result<(), Problem> {
    let mut before = ByNumber::default();
    for port in ports.iter().filter(|port| port.published != 0) {
        if let Some(twin) = before.conflict(port) {
            return Err(Problem::new(ProblemKind::Usage, format!("{port} and {twin} are the same port")));
        }
        before.add(*port);
    }
    Ok(())
}

/// Published ports by number: a service may have thousands.
#[derive(Debug, Default)]
pub(super) struct ByNumber(BTreeMap<(Protocol, u16), Vec<PublishedPort>>);

impl ByNumber {
    pub(super) fn add(&mut self, port: PublishedPort) {
        self.0.entry((port.protocol, port.published)).or_default().push(port);
    }

    /// Returns the port that matches the same packets.
    pub(super) fn conflict(&self, port: &PublishedPort) -> Option<&PublishedPort> {
        let others = self.0.get(&(port.protocol, port.published)).into_iter().flatten();
        others.into_iter().find(|other| other.conflicts_with(port))
    }
}
