//! Compose's `services:`.

use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_model::{Affinity, EndpointMode, HealthCheck, Name, WhenAllUnhealthy};

use super::network::{DEFAULT_NETWORK, Networks};
use super::notes::Ignored;
use super::schema::OWN;
use super::yaml::{Invalid, Item, Reason, Section};
use super::{Port, Service, health, port};

/// A service of the file: in Mesh it becomes one service on each of its networks.
#[derive(Debug)]
pub(super) struct Read<'a> {
    name: Name,
    endpoint_mode: EndpointMode,
    vip: Option<Ipv4Addr>,
    vip6: Option<Ipv6Addr>,
    ports: Vec<Port>,
    affinity: Affinity,
    health: Option<HealthCheck>,
    when_all_unhealthy: WhenAllUnhealthy,
    /// Empty: the default network.
    networks: Vec<Membership<'a>>,
    /// Empty: always active.
    profiles: Vec<String>,
}

/// The membership of a service in a network.
#[derive(Debug)]
pub(super) struct Membership<'a> {
    /// The network's key in the file.
    network: &'a str,
    /// Its place in the file.
    at: Item<'a>,
    aliases: Vec<Name>,
}

/// Reads one service; returns `None` for one without its own network (`network_mode`).
pub(super) fn read<'a>(
    key: &str,
    item: Item<'a>,
    ignored: &mut Vec<Ignored>,
) -> Result<Option<Read<'a>>, Invalid> {
    let whole = item.clone();
    let mut section = item.section()?;
    if section.take("network_mode").is_some() {
        ignored.push(whole.ignored());
        return Ok(None);
    }
    let mut read = Read {
        name: key.parse::<Name>().map_err(|error| whole.invalid_key(key, error))?,
        endpoint_mode: EndpointMode::Vip,
        vip: None,
        vip6: None,
        ports: Vec::new(),
        affinity: Affinity::None,
        health: None,
        when_all_unhealthy: WhenAllUnhealthy::All,
        networks: Vec::new(),
        profiles: Vec::new(),
    };
    if let Some(profiles) = section.take("profiles") {
        let texts = profiles.list()?.into_iter().map(|profile| profile.text().map(str::to_owned));
        read.profiles = texts.collect::<Result<_, _>>()?;
    }
    if let Some(networks) = section.take("networks") {
        read.networks = memberships(&networks, ignored)?;
    }
    if let Some(ports) = section.take("ports") {
        for item in ports.list()? {
            for port in port::read(&item, ignored)? {
                // The same host port twice counts once; two ports that the cluster chooses are two.
                if port.is_automatic() || !read.ports.contains(&port) {
                    read.ports.push(port);
                }
            }
        }
    }
    if let Some(deploy) = section.take("deploy") {
        let mut deploy = deploy.section()?;
        if let Some(mode) = deploy.take("endpoint_mode") {
            read.endpoint_mode = mode.parse()?;
        }
        deploy.finish(ignored);
    }
    let check = section.take("healthcheck");
    let mut own = section.take(OWN).map(Item::section).transpose()?;
    if let Some(own) = &mut own {
        own.check_values()?;
        read.own(own)?;
    }
    read.health = health::read(check, own.as_mut(), ignored)?;
    if let Some(own) = own {
        own.finish_own()?;
    }
    section.finish(ignored);
    Ok(Some(read))
}

/// Reads a list of names, or a map of names with aliases.
fn memberships<'a>(networks: &Item<'a>, ignored: &mut Vec<Ignored>) -> Result<Vec<Membership<'a>>, Invalid> {
    if networks.is_list() {
        return networks
            .list()?
            .into_iter()
            .map(|at| Ok(Membership { network: at.text()?, at, aliases: Vec::new() }))
            .collect();
    }
    let mut read = Vec::new();
    for (network, at) in networks.entries()? {
        let mut section = at.clone().section()?;
        let aliases = section.take("aliases").map_or_else(|| Ok(Vec::new()), |aliases| aliases.list())?;
        let aliases = aliases.iter().map(Item::parse).collect::<Result<_, _>>()?;
        section.finish(ignored);
        read.push(Membership { network, at, aliases });
    }
    Ok(read)
}

impl Read<'_> {
    /// Returns whether it is in the network with this key in the file.
    pub(super) fn is_on(&self, network: &str) -> bool {
        let mut named = self.networks.iter().map(|membership| membership.network);
        if self.networks.is_empty() { network == DEFAULT_NETWORK } else { named.any(|name| name == network) }
    }

    /// Returns whether it has no profile, or an active one.
    pub(super) fn is_active(&self, active: &[String]) -> bool {
        let is_active = |profile: &String| active.iter().any(|active| active == profile || active == "*");
        self.profiles.is_empty() || self.profiles.iter().any(is_active)
    }

    /// Returns its profiles.
    pub(super) fn profiles(&self) -> &[String] {
        &self.profiles
    }

    fn own(&mut self, own: &mut Section<'_>) -> Result<(), Invalid> {
        if let Some(affinity) = own.take("affinity") {
            self.affinity = affinity.parse()?;
        }
        if let Some(choice) = own.take("when-all-unhealthy") {
            self.when_all_unhealthy = choice.parse()?;
        }
        if let Some(vip) = own.take("vip") {
            self.vip = Some(vip.parse()?);
        }
        if let Some(vip) = own.take("vip6") {
            self.vip6 = Some(vip.parse()?);
        }
        Ok(())
    }

    /// Returns the services of Mesh for it. Properties that only one can have, the published ports
    /// and a requested VIP, belong to the service on the first network.
    pub(super) fn on(&mut self, item: &Item<'_>, names: &Networks<'_>) -> Result<Vec<Service>, Invalid> {
        let unnamed = [Membership { network: DEFAULT_NETWORK, at: item.clone(), aliases: Vec::new() }];
        let memberships = if self.networks.is_empty() { &unnamed[..] } else { &self.networks };
        let mut services: Vec<Service> = Vec::new();
        for membership in memberships {
            let network = names
                .get(membership.network)
                .ok_or_else(|| membership.at.invalid(Reason::NoSuchNetwork(membership.network.to_owned())))?;
            if services.iter().any(|service| service.network == *network) {
                return Err(membership.at.invalid(Reason::Contradiction("the network is given twice")));
            }
            services.push(Service {
                name: self.name.clone(),
                network: network.clone(),
                endpoint_mode: self.endpoint_mode,
                vip: self.vip.take(),
                vip6: self.vip6.take(),
                ports: std::mem::take(&mut self.ports),
                affinity: self.affinity,
                health: self.health.clone(),
                when_all_unhealthy: self.when_all_unhealthy,
                aliases: membership.aliases.clone(),
            });
        }
        Ok(services)
    }
}
