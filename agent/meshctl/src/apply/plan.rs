//! The steps from the current state to the declared one.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::port_list::{ranges, shortened};
use mesh_model::{
    Affinity, HealthCheck, HostPolicy, Name, NetworkId, PublishedPort, ServiceId, WhenAllUnhealthy,
};
use serde::Serialize;

use super::compare::{self, Conflict};
use super::ports::{self, Taken};
use super::{Declared, LABEL, Network, Service};

/// The current state.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Listed {
    pub(crate) networks: Vec<mesh_model::Network>,
    pub(crate) services: Vec<mesh_model::Service>,
}

/// The steps, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// The project of created objects.
    pub(crate) project: String,
    pub(crate) steps: Vec<Step>,
    /// Whether all services or all networks of the project are removed.
    pub(crate) removes_all: bool,
    /// Warnings of the managers.
    pub(crate) warnings: Vec<String>,
}

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    RemoveService {
        id: ServiceId,
        network: Name,
        name: Name,
    },
    RemoveNetwork {
        id: NetworkId,
        name: Name,
    },
    CreateNetwork(Network),
    UpdateNetwork {
        id: NetworkId,
        name: Name,
        /// The new and the current policy.
        policy: HostPolicy,
        before: HostPolicy,
    },
    CreateService {
        service: Service,
        /// Its ports, with those of ranges chosen; 0: chosen by the cluster.
        ports: Vec<PublishedPort>,
    },
    UpdateService(Update),
}

/// Changes of a service; absent fields stay.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Update {
    pub(crate) id: ServiceId,
    pub(crate) network: Name,
    pub(crate) name: Name,
    pub(crate) add_ports: Vec<PublishedPort>,
    pub(crate) remove_ports: Vec<PublishedPort>,
    pub(crate) affinity: Option<Affinity>,
    pub(crate) health: Option<NewHealth>,
    pub(crate) when_all_unhealthy: Option<WhenAllUnhealthy>,
    pub(crate) aliases: Option<Vec<Name>>,
}

/// The change of a service's health check.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum NewHealth {
    /// No check.
    Unchecked,
    /// This check.
    Check(HealthCheck),
}

/// A step for people and scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    /// `create`, `update` or `remove`.
    pub(crate) action: &'static str,
    /// `network` or `service`.
    pub(crate) kind: &'static str,
    pub(crate) name: Name,
    /// A service's network.
    pub(crate) network: Option<Name>,
    /// Its properties, or the changes.
    pub(crate) details: Vec<String>,
}

/// Compares a file with the current state. Returns no steps if there is any conflict.
///
/// With `prune`, objects that an earlier file of the project created and this one does not declare
/// are removed.
pub(crate) fn plan(declared: &Declared, listed: &Listed, prune: bool) -> Result<Plan, Vec<Conflict>> {
    Planning::new(declared, listed).plan(prune)
}

struct Planning<'a> {
    declared: &'a Declared,
    listed: &'a Listed,
    network_names: BTreeMap<&'a NetworkId, &'a Name>,
    /// `NETWORK/NAME` of each listed service, in the same order.
    paths: Vec<String>,
    conflicts: Vec<Conflict>,
}

impl<'a> Planning<'a> {
    fn new(declared: &'a Declared, listed: &'a Listed) -> Self {
        let network_names: BTreeMap<_, _> =
            listed.networks.iter().map(|network| (&network.id, &network.name)).collect();
        let path = |service: &mesh_model::Service| {
            let network = network_names.get(&service.network).map_or("?", |name| name.as_str());
            format!("{network}/{}", service.name)
        };
        let paths = listed.services.iter().map(path).collect();
        Self { declared, listed, network_names, paths, conflicts: Vec::new() }
    }

    fn plan(mut self, prune: bool) -> Result<Plan, Vec<Conflict>> {
        let networks = self.networks();
        let (gone_services, gone_networks) = if prune { self.surplus() } else { (Vec::new(), Vec::new()) };
        let services = self.services(&gone_services);
        if !self.conflicts.is_empty() {
            return Err(self.conflicts);
        }
        let removes_all = self.removes_all(gone_services.len(), gone_networks.len());
        let mut steps = Vec::new();
        for service in gone_services {
            let Some(network) = self.network_names.get(&service.network) else { continue };
            steps.push(Step::RemoveService {
                id: service.id.clone(),
                network: (*network).clone(),
                name: service.name.clone(),
            });
        }
        // Remove before creating: new networks may have the same subnets.
        steps.extend(
            gone_networks
                .into_iter()
                .map(|network| Step::RemoveNetwork { id: network.id.clone(), name: network.name.clone() }),
        );
        let (released, services) = release_first(services);
        steps.extend(released);
        steps.extend(networks);
        steps.extend(services);
        Ok(Plan { project: self.declared.project.clone(), steps, removes_all, warnings: Vec::new() })
    }

    /// Returns whether these removals leave the project without its services or without its
    /// networks.
    fn removes_all(&self, services: usize, networks: usize) -> bool {
        let had_services =
            self.listed.services.iter().filter(|service| self.is_ours(&service.labels)).count();
        let had_networks =
            self.listed.networks.iter().filter(|network| self.is_ours(&network.labels)).count();
        (services > 0 && services == had_services) || (networks > 0 && networks == had_networks)
    }

    fn is_ours(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.get(LABEL) == Some(&self.declared.project)
    }

    /// Records that an object exists and cannot be changed to match its declaration.
    fn differs(&mut self, object: String, settings: &[String], is_ours: bool) {
        if settings.is_empty() {
            return;
        }
        let settings = settings.join(", ");
        self.conflicts.push(if is_ours {
            Conflict::CannotChange { object, settings }
        } else {
            Conflict::Foreign { object, project: self.declared.project.clone(), settings }
        });
    }

    fn networks(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for declared in &self.declared.networks {
            let there = self.listed.networks.iter().find(|network| network.name.is_same(&declared.name));
            match there {
                Some(_) if declared.external => {}
                None if declared.external => {
                    self.conflicts.push(Conflict::NoSuchNetwork(declared.name.clone()));
                }
                None => steps.push(Step::CreateNetwork(declared.clone())),
                Some(there) => {
                    let is_ours = self.is_ours(&there.labels);
                    let mut settings = compare::network(declared, there, is_ours);
                    let (policy, before) = (declared.host_policy, there.host_policy);
                    if policy != before && is_ours {
                        steps.push(Step::UpdateNetwork {
                            id: there.id.clone(),
                            name: there.name.clone(),
                            policy,
                            before,
                        });
                    } else {
                        settings.extend(policy_details(policy, before));
                    }
                    self.differs(format!("network {}", declared.name), &settings, is_ours);
                }
            }
        }
        steps
    }

    /// Returns the objects that an earlier file of the project created and this one does not have.
    fn surplus(&self) -> (Vec<&'a mesh_model::Service>, Vec<&'a mesh_model::Network>) {
        let networks: BTreeSet<_> =
            self.declared.networks.iter().map(|network| network.name.folded()).collect();
        let services = self.declared.services.iter().chain(&self.declared.inactive);
        let services: BTreeSet<_> =
            services.map(|service| (service.network.folded(), service.name.folded())).collect();
        let is_declared = |service: &mesh_model::Service| {
            let network = self.network_names.get(&service.network);
            network.is_some_and(|network| services.contains(&(network.folded(), service.name.folded())))
        };
        let gone_services = self.listed.services.iter();
        let gone_services =
            gone_services.filter(|service| self.is_ours(&service.labels) && !is_declared(service));
        let gone_networks = self.listed.networks.iter();
        let gone_networks = gone_networks
            .filter(|network| self.is_ours(&network.labels) && !networks.contains(&network.name.folded()));
        (gone_services.collect(), gone_networks.collect())
    }

    fn services(&mut self, gone: &[&mesh_model::Service]) -> Vec<Step> {
        // Names that differ only in case are the same name.
        let by_path: BTreeMap<String, &'a mesh_model::Service> =
            self.paths.iter().map(|path| path.to_ascii_lowercase()).zip(&self.listed.services).collect();
        let gone: BTreeSet<_> = gone.iter().map(|service| &service.id).collect();
        let paths = self.paths.clone();
        let mut taken = Taken::default();
        for (service, path) in self.listed.services.iter().zip(&paths) {
            if !gone.contains(&service.id) {
                service.ports.iter().for_each(|port| taken.insert(*port, path));
            }
        }
        let declared = &self.declared.services;
        let declared_paths: Vec<String> =
            declared.iter().map(|service| format!("{}/{}", service.network, service.name)).collect();
        let there: Vec<_> =
            declared_paths.iter().map(|path| by_path.get(&path.to_ascii_lowercase()).copied()).collect();
        let differences: Vec<_> = declared
            .iter()
            .zip(&there)
            .map(|(service, there)| {
                ports::difference(&service.ports, there.map_or(&[][..], |there| &there.ports))
            })
            .collect();
        // Ports that one service releases are free for every other.
        differences.iter().flat_map(|difference| &difference.surplus).for_each(|port| taken.remove(port));
        let mut chosen: Vec<Vec<PublishedPort>> = vec![Vec::new(); declared.len()];
        // Assign single ports first: ranges can choose among the rest.
        for only_one in [true, false] {
            for ((difference, path), chosen) in differences.iter().zip(&declared_paths).zip(&mut chosen) {
                let one = |port: &&&super::Port| (port.published.len() == 1) == only_one;
                for port in difference.missing.iter().filter(one) {
                    match ports::choose(port, &taken) {
                        Ok(port) => {
                            if port.published != 0 {
                                taken.insert(port, path);
                            }
                            chosen.push(port);
                        }
                        Err(none) => self.conflicts.push(Conflict::PortTaken {
                            service: path.clone(),
                            port: port.to_string(),
                            owner: none.owner.to_owned(),
                            taken: none.port,
                        }),
                    }
                }
            }
        }
        let mut steps = Vec::new();
        for (((service, there), difference), ports) in declared.iter().zip(there).zip(differences).zip(chosen)
        {
            match there {
                None => steps.push(Step::CreateService { service: service.clone(), ports }),
                Some(there) => steps.extend(self.update(service, there, ports, difference.surplus)),
            }
        }
        steps
    }

    fn update(
        &mut self,
        declared: &Service,
        there: &mesh_model::Service,
        add_ports: Vec<PublishedPort>,
        remove_ports: Vec<PublishedPort>,
    ) -> Option<Step> {
        let is_ours = self.is_ours(&there.labels);
        let object = format!("service {}/{}", declared.network, declared.name);
        let sorted = |names: &[Name]| names.iter().cloned().collect::<BTreeSet<_>>();
        let same_aliases = sorted(&declared.aliases) == sorted(&there.aliases);
        let update = Update {
            id: there.id.clone(),
            network: declared.network.clone(),
            name: declared.name.clone(),
            add_ports,
            remove_ports,
            affinity: (declared.affinity != there.affinity).then_some(declared.affinity),
            health: (declared.health != there.health)
                .then(|| declared.health.clone().map_or(NewHealth::Unchecked, NewHealth::Check)),
            when_all_unhealthy: (declared.when_all_unhealthy != there.when_all_unhealthy)
                .then_some(declared.when_all_unhealthy),
            aliases: (!same_aliases).then(|| declared.aliases.clone()),
        };
        let mut settings = compare::fixed(declared, there);
        if !is_ours {
            settings.extend(update.details());
        }
        self.differs(object, &settings, is_ours);
        (!update.is_empty()).then_some(Step::UpdateService(update))
    }
}

/// If ports move between services, all are released before any is taken.
fn release_first(steps: Vec<Step>) -> (Vec<Step>, Vec<Step>) {
    let mut wanted: Vec<(usize, PublishedPort)> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let ports = match step {
            Step::CreateService { ports, .. } => ports,
            Step::UpdateService(update) => &update.add_ports,
            _ => continue,
        };
        wanted.extend(ports.iter().map(|port| (index, *port)));
    }
    let (mut released, mut rest) = (Vec::new(), Vec::new());
    for (index, step) in steps.into_iter().enumerate() {
        let moves = |port: &PublishedPort| {
            wanted.iter().any(|(other, wanted)| *other != index && wanted.conflicts_with(port))
        };
        match step {
            Step::UpdateService(mut update) if update.remove_ports.iter().any(moves) => {
                let remove_ports = std::mem::take(&mut update.remove_ports);
                released.push(Step::UpdateService(Update {
                    add_ports: Vec::new(),
                    remove_ports,
                    affinity: None,
                    health: None,
                    when_all_unhealthy: None,
                    aliases: None,
                    ..update.clone()
                }));
                if !update.is_empty() {
                    rest.push(Step::UpdateService(update));
                }
            }
            other => rest.push(other),
        }
    }
    (released, rest)
}

impl Update {
    fn is_empty(&self) -> bool {
        self.add_ports.is_empty()
            && self.remove_ports.is_empty()
            && self.affinity.is_none()
            && self.health.is_none()
            && self.when_all_unhealthy.is_none()
            && self.aliases.is_none()
    }

    fn details(&self) -> Vec<String> {
        let ports = |sign, ports: &[PublishedPort]| {
            ranges(ports).into_iter().map(move |port| format!("{sign}port {port}"))
        };
        let mut details: Vec<_> = ports("-", &self.remove_ports).collect();
        details.extend(ports("+", &self.add_ports));
        details.extend(self.affinity.map(|affinity| format!("affinity {}", affinity.as_str())));
        details.extend(self.health.as_ref().map(|health| match health {
            NewHealth::Unchecked => "no health check".to_owned(),
            NewHealth::Check(check) => shown_check(check),
        }));
        details.extend(self.when_all_unhealthy.map(|choice| format!("when all unhealthy {choice}")));
        details
            .extend(self.aliases.as_ref().map(|aliases| format!("aliases {}", crate::table::list(aliases))));
        details
    }
}

fn shown_check(check: &HealthCheck) -> String {
    format!("health {check} every {:?} with {} retries", check.interval, check.retries)
}

impl Step {
    /// Returns the step for people and scripts.
    pub(crate) fn change(&self) -> Change {
        let network = |action, name: &Name, details| Change {
            action,
            kind: "network",
            name: name.clone(),
            network: None,
            details,
        };
        let service = |action, network: &Name, name: &Name, details| Change {
            action,
            kind: "service",
            name: name.clone(),
            network: Some(network.clone()),
            details,
        };
        match self {
            Self::RemoveService { network, name, .. } => service("remove", network, name, Vec::new()),
            Self::RemoveNetwork { name, .. } => network("remove", name, Vec::new()),
            Self::CreateNetwork(declared) => network("create", &declared.name, network_details(declared)),
            Self::UpdateNetwork { name, policy, before, .. } => {
                network("update", name, policy_details(*policy, *before))
            }
            Self::CreateService { service: declared, ports } => {
                service("create", &declared.network, &declared.name, service_details(declared, ports))
            }
            Self::UpdateService(update) => service("update", &update.network, &update.name, update.details()),
        }
    }
}

fn network_details(network: &Network) -> Vec<String> {
    let mut details: Vec<_> =
        network.subnets.iter().map(|subnet| format!("subnet {}", subnet.subnet)).collect();
    let flags = [
        (network.ipv6, "ipv6"),
        (network.encrypted, "encrypted"),
        (network.internal, "internal"),
        (!network.attachable, "not attachable"),
    ];
    details.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned()));
    details.extend(policy_details(network.host_policy, HostPolicy::default()));
    details.extend(network.mtu.map(|mtu| format!("mtu {mtu}")));
    details.extend(network.vni.map(|vni| format!("vni {vni}")));
    details
}

/// Returns the differences of two policies.
fn policy_details(policy: HostPolicy, other: HostPolicy) -> Vec<String> {
    let mut details = Vec::new();
    if policy.access != other.access {
        details.push(format!("host access {}", policy.access));
    }
    if policy.metadata != other.metadata {
        details.push(format!("metadata {}", policy.metadata));
    }
    details
}

fn service_details(service: &Service, ports: &[PublishedPort]) -> Vec<String> {
    let mut details: Vec<_> = ranges(ports).into_iter().map(|port| format!("port {port}")).collect();
    if service.endpoint_mode != mesh_model::EndpointMode::Vip {
        details.push(format!("endpoint mode {}", service.endpoint_mode.as_str()));
    }
    details.extend(service.vip.map(|vip| format!("vip {vip}")));
    details.extend(service.vip6.map(|vip| format!("vip {vip}")));
    if service.affinity != Affinity::None {
        details.push(format!("affinity {}", service.affinity.as_str()));
    }
    details.extend(service.health.as_ref().map(shown_check));
    if service.when_all_unhealthy != WhenAllUnhealthy::All {
        details.push(format!("when all unhealthy {}", service.when_all_unhealthy));
    }
    if !service.aliases.is_empty() {
        details.push(format!("aliases {}", crate::table::list(&service.aliases)));
    }
    details
}

impl Change {
    /// Formats the object: `network NAME: DETAIL, ...` or `service NETWORK/NAME: DETAIL, ...`.
    pub(crate) fn object(&self) -> String {
        let details = shortened(self.details.clone());
        let end = if details.is_empty() { String::new() } else { format!(": {}", details.join(", ")) };
        format!("{}{end}", self.path())
    }

    /// Formats the path: `network NAME` or `service NETWORK/NAME`.
    pub(crate) fn path(&self) -> String {
        let Self { kind, name, .. } = self;
        match &self.network {
            None => format!("{kind} {name}"),
            Some(network) => format!("{kind} {network}/{name}"),
        }
    }
}

#[cfg(test)]
mod tests;
