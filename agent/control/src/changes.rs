//! Checks a list of changes without making any, so that a file is applied completely or not at all.
//!
//! Each change is checked against the records as the changes before it would leave them. The checks
//! are those of the changes themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_model::{Name, PublishedPort, Service};
use mesh_proto::v1::proposed_change::Kind;
use mesh_proto::v1::{self, ChangeFault, CheckChangesRequest, CheckChangesResponse};
use mesh_proto::{Problem, ProblemKind};

use crate::core::Core;
use crate::networks::{self, Taken};
use crate::resolve::{network_in, service_in};
use crate::services::{self, check_host_ports};
use crate::view::View;

/// Returns the changes that cannot be made, with the reasons.
pub(crate) async fn check(
    core: &Core,
    request: CheckChangesRequest,
) -> Result<CheckChangesResponse, Problem> {
    core.first_reports().await;
    core.catch_up().await?;
    let taken = Taken::read(core).await?;
    let view = core.feed.view().clone();
    let mut rehearsal =
        DryRun { core, taken, view, missing: BTreeSet::new(), named: BTreeMap::new(), warnings: Vec::new() };
    let mut faults = Vec::new();
    for (index, change) in request.changes.into_iter().enumerate() {
        let kind = change.kind.ok_or_else(|| Problem::new(ProblemKind::Usage, "a change is empty"))?;
        if let Err(problem) = rehearsal.make(index, kind).await {
            faults.push(fault(index, problem));
        }
    }
    let ports: BTreeSet<PublishedPort> = rehearsal.named.values().flatten().copied().collect();
    let mut unchecked_nodes = Vec::new();
    if !ports.is_empty() {
        let ports: Vec<PublishedPort> = ports.into_iter().collect();
        let answers = check_host_ports(core, &ports).await?;
        for (index, named) in &rehearsal.named {
            let in_use = answers.in_use(core, |port| named.contains(port));
            faults.extend(in_use.map(|problem| fault(*index, problem)));
        }
        unchecked_nodes = answers.unchecked(core);
    }
    faults.sort_by_key(|fault| fault.change);
    Ok(CheckChangesResponse { faults, unchecked_nodes, warnings: rehearsal.warnings })
}

fn fault(index: usize, problem: Problem) -> ChangeFault {
    ChangeFault {
        change: u32::try_from(index).unwrap_or(u32::MAX),
        kind: problem.kind.as_str().to_owned(),
        message: problem.message,
        hint: problem.hint.unwrap_or_default(),
    }
}

/// The records as the changes so far would leave them.
struct DryRun<'a> {
    core: &'a Core,
    taken: Taken,
    view: View,
    /// Networks that cannot be created, by folded name: errors on objects in them are not reported
    /// as well.
    missing: BTreeSet<Name>,
    /// The ports that each change requests explicitly.
    named: BTreeMap<usize, BTreeSet<PublishedPort>>,
    warnings: Vec<String>,
}

impl DryRun<'_> {
    async fn make(&mut self, index: usize, change: Kind) -> Result<(), Problem> {
        match change {
            Kind::CreateNetwork(request) => self.create_network(request),
            Kind::UpdateNetwork(request) => {
                networks::check_update(network_in(&self.view, &request.network)?, &request).map(drop)
            }
            Kind::RemoveNetwork(request) => self.remove_network(&request.network).await,
            Kind::CreateService(request) => self.create_service(index, request),
            Kind::UpdateService(request) => self.update_service(index, &request),
            Kind::RemoveService(request) => {
                let service = service_in(&self.view, &request.service)?;
                self.view.services.remove_service(&service.id);
                Ok(())
            }
        }
    }

    fn create_network(&mut self, request: v1::CreateNetworkRequest) -> Result<(), Problem> {
        let name = request.name.parse::<Name>().ok();
        let network = networks::proposed(self.core, &self.taken, request).inspect_err(|_| {
            self.missing.extend(name.map(|name| name.folded()));
        })?;
        self.view.networks.insert(network.id.clone(), network.clone());
        self.taken.networks.push(network);
        Ok(())
    }

    async fn remove_network(&mut self, text: &str) -> Result<(), Problem> {
        let network = network_in(&self.view, text)?.clone();
        let services = self.view.services.in_network(&network.id);
        let services = services.filter_map(|id| self.view.services.get(id));
        let services = services.map(|service| service.name.to_string()).collect();
        networks::check_removal(self.core, &network, services).await?;
        self.view.networks.remove(&network.id);
        self.taken.networks.retain(|other| other.id != network.id);
        Ok(())
    }

    fn create_service(&mut self, index: usize, request: v1::CreateServiceRequest) -> Result<(), Problem> {
        let exists = |name: &Name| self.view.networks.values().any(|network| network.name.is_same(name));
        let is_missing = |name: Name| self.missing.contains(&name.folded()) && !exists(&name);
        if request.network.parse().is_ok_and(is_missing) {
            return Ok(());
        }
        let network = network_in(&self.view, &request.network)?.id.clone();
        let (service, named) = services::proposed_service(&self.view, &network, request)?;
        self.warnings.extend(services::shared_names(self.core, &self.view, &service));
        self.put(index, service, named);
        Ok(())
    }

    fn update_service(&mut self, index: usize, request: &v1::UpdateServiceRequest) -> Result<(), Problem> {
        let current = service_in(&self.view, &request.service)?;
        let (wanted, named) = services::proposed_update(&self.view, &current, request)?;
        if wanted.aliases != current.aliases {
            self.warnings.extend(services::shared_names(self.core, &self.view, &wanted));
        }
        self.put(index, wanted, named);
        Ok(())
    }

    fn put(&mut self, index: usize, service: Service, named: Vec<PublishedPort>) {
        self.view.services.put_service(Arc::new(service));
        self.named.insert(index, named.into_iter().collect());
    }
}
