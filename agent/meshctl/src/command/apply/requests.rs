//! What is asked of the managers for what a file declares.

use std::collections::{BTreeMap, HashMap};

use mesh_model::{HostPolicy, NetworkId, ServiceId};
use mesh_proto::v1;

use crate::apply::{LABEL, Network, NewHealth, Plan, Service, Step, Update};

/// To check all changes of a plan.
pub(super) fn check(plan: &Plan) -> v1::CheckChangesRequest {
    use v1::proposed_change::Kind;
    let project = &plan.project;
    let kind = |step: &Step| match step {
        Step::RemoveService { id, .. } => Kind::RemoveService(remove_service(id)),
        Step::RemoveNetwork { id, .. } => Kind::RemoveNetwork(remove_network(id)),
        Step::CreateNetwork(declared) => Kind::CreateNetwork(network(project, declared)),
        Step::CreateService { service: declared, ports } => {
            Kind::CreateService(service(project, declared, ports))
        }
        Step::UpdateNetwork { id, policy, .. } => Kind::UpdateNetwork(host_policy(id, *policy)),
        Step::UpdateService(changes) => Kind::UpdateService(update(changes)),
    };
    let changes = plan.steps.iter().map(|step| v1::ProposedChange { kind: Some(kind(step)) });
    v1::CheckChangesRequest { changes: changes.collect() }
}

/// To remove a service.
pub(super) fn remove_service(id: &ServiceId) -> v1::RemoveServiceRequest {
    v1::RemoveServiceRequest { service: id.to_string() }
}

/// To remove a network.
pub(super) fn remove_network(id: &NetworkId) -> v1::RemoveNetworkRequest {
    v1::RemoveNetworkRequest { network: id.to_string() }
}

/// To create a network.
pub(super) fn network(project: &str, network: &Network) -> v1::CreateNetworkRequest {
    let mut labels: HashMap<_, _> = network.labels.clone().into_iter().collect();
    labels.insert(LABEL.to_owned(), project.to_owned());
    let subnets = &network.subnets;
    let aux: BTreeMap<_, _> = subnets.iter().flat_map(|subnet| &subnet.aux).collect();
    v1::CreateNetworkRequest {
        name: network.name.to_string(),
        driver: crate::view::DRIVER.to_owned(),
        subnets: subnets.iter().map(|subnet| subnet.subnet.to_string()).collect(),
        gateways: subnets.iter().filter_map(|subnet| subnet.gateway).map(|ip| ip.to_string()).collect(),
        ip_ranges: subnets.iter().filter_map(|subnet| subnet.ip_range).map(|ip| ip.to_string()).collect(),
        aux: aux.into_iter().map(|(name, ip)| (name.clone(), ip.to_string())).collect(),
        ipv6: network.ipv6,
        internal: network.internal,
        attachable: network.attachable,
        host_access: v1::HostAccess::from(network.host_policy.access).into(),
        metadata: v1::MetadataAccess::from(network.host_policy.metadata).into(),
        encrypted: network.encrypted,
        mtu: network.mtu.map(Into::into),
        vni: network.vni.map(Into::into),
        labels,
        options: HashMap::new(),
    }
}

/// To change what a network's containers may reach of the hosts.
pub(super) fn host_policy(id: &NetworkId, policy: HostPolicy) -> v1::UpdateNetworkRequest {
    v1::UpdateNetworkRequest {
        network: id.to_string(),
        host_access: v1::HostAccess::from(policy.access).into(),
        metadata: v1::MetadataAccess::from(policy.metadata).into(),
    }
}

/// To make a service with these ports.
pub(super) fn service(
    project: &str,
    service: &Service,
    ports: &[mesh_model::PublishedPort],
) -> v1::CreateServiceRequest {
    v1::CreateServiceRequest {
        name: service.name.to_string(),
        network: service.network.to_string(),
        endpoint_mode: v1::EndpointMode::from(service.endpoint_mode).into(),
        vip: service.vip.map(|vip| vip.to_string()).unwrap_or_default(),
        vip6: service.vip6.map(|vip| vip.to_string()).unwrap_or_default(),
        ports: ports.iter().map(Into::into).collect(),
        affinity: v1::Affinity::from(service.affinity).into(),
        health: service.health.as_ref().map(Into::into),
        aliases: service.aliases.iter().map(ToString::to_string).collect(),
        labels: HashMap::from([(LABEL.to_owned(), project.to_owned())]),
        when_all_unhealthy: v1::WhenAllUnhealthy::from(service.when_all_unhealthy).into(),
    }
}

/// To change a service.
pub(super) fn update(update: &Update) -> v1::UpdateServiceRequest {
    let affinity = update.affinity.map_or(v1::Affinity::Unspecified, Into::into);
    let health = match &update.health {
        Some(NewHealth::Check(check)) => Some(check.into()),
        Some(NewHealth::Unchecked) | None => None,
    };
    v1::UpdateServiceRequest {
        service: update.id.to_string(),
        add_ports: update.add_ports.iter().map(Into::into).collect(),
        remove_ports: update.remove_ports.iter().map(Into::into).collect(),
        affinity: affinity.into(),
        health,
        clear_health: update.health == Some(NewHealth::Unchecked),
        replace_aliases: update.aliases.is_some(),
        when_all_unhealthy: update
            .when_all_unhealthy
            .map_or(v1::WhenAllUnhealthy::Unspecified, Into::into)
            .into(),
        aliases: update.aliases.iter().flatten().map(ToString::to_string).collect(),
    }
}

/// To change a service back to what it was before an update.
pub(super) fn undo_update(made: &Update, before: &mesh_model::Service) -> v1::UpdateServiceRequest {
    update(&Update {
        id: made.id.clone(),
        network: made.network.clone(),
        name: made.name.clone(),
        add_ports: made.remove_ports.clone(),
        remove_ports: made.add_ports.clone(),
        affinity: made.affinity.map(|_| before.affinity),
        health: made
            .health
            .as_ref()
            .map(|_| before.health.clone().map_or(NewHealth::Unchecked, NewHealth::Check)),
        when_all_unhealthy: made.when_all_unhealthy.map(|_| before.when_all_unhealthy),
        aliases: made.aliases.as_ref().map(|_| before.aliases.clone()),
    })
}
