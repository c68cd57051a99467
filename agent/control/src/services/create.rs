//! Creating a service: checks that the requested values are free, and chooses the others.

use std::sync::Arc;

use jiff::Timestamp;
use mesh_model::{Network, NetworkId, PublishedPort, Service, ServiceId};
use mesh_proto::v1::{CreateServiceRequest, ServiceStatus};
use mesh_proto::{Problem, ProblemKind};
use mesh_store::{Compare, Op, Txn};
use tracing::info;

use super::desk::{Choices, Choosing, ServiceDesk};
use super::ports::{Checked, PortRecords};
use super::request::RequestedService;
use super::{contended, network_name, ports, shared_names, status, vips, wait_applied};
use crate::core::Core;
use crate::errors::check_stays;
use crate::keys;
use crate::records::{RecordError, Tries, Versioned, put};
use crate::resolve::resolve_network;
use crate::view::View;

/// Creates a service, and returns once every live agent concerned has applied it.
pub(crate) async fn create(core: &Core, request: CreateServiceRequest) -> Result<ServiceStatus, Problem> {
    let network = request.network.clone();
    let wanted = RequestedService::parse(request)?;
    let network = resolve_network(core, &network).await?.value.id;
    let mut checked = Checked::default();
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        core.catch_up().await?;
        let freed = core.services.freed();
        let planned = plan(&core.feed.view(), core.services.choose(), &network, &wanted, &checked)?;
        let Some((service, choices)) = planned else {
            freed.await;
            continue;
        };
        if !checked.check(core, &wanted.ports, &service.ports).await? {
            continue;
        }
        let Some(revision) = write(core, &service).await? else { continue };
        info!(service = %service.id, name = %service.name, "a service was created");
        core.feed.reached(revision).await;
        // The chosen values are in the view by now.
        drop(choices);
        let interested = {
            let view = core.feed.view();
            view.interested(&network, view.audience(&service.id))
        };
        wait_applied(core, &service, revision, interested).await;
        let unchecked_nodes = checked.unchecked(core);
        let warnings = shared_names(core, &core.feed.view(), &service);
        return Ok(ServiceStatus { unchecked_nodes, warnings, ..status(core, &Arc::new(service)) });
    }
}

/// Returns the service that a request would create on a network of the view, and which of its ports
/// were requested explicitly.
pub(crate) fn proposed(
    view: &View,
    network: &NetworkId,
    request: CreateServiceRequest,
) -> Result<(Service, Vec<PublishedPort>), Problem> {
    let wanted = RequestedService::parse(request)?;
    // Only this call uses this desk, so it never waits.
    let desk = ServiceDesk::default();
    let planned = plan(view, desk.choose(), network, &wanted, &Checked::default())?;
    let (service, _choices) = planned.ok_or_else(contended)?;
    let named = service.ports.iter().zip(&wanted.ports).filter(|(_, wanted)| wanted.published != 0);
    let named = named.map(|(port, _)| *port).collect();
    Ok((service, named))
}

/// Returns the service to create, or the conflict; `None` if the conflict is with other calls,
/// which may still fail.
fn plan<'a>(
    view: &View,
    mut choosing: Choosing<'a>,
    network: &NetworkId,
    wanted: &RequestedService,
    checked: &Checked,
) -> Result<Option<(Service, Choices<'a>)>, Problem> {
    let network = view.networks.get(network).ok_or_else(|| gone(network))?;
    check_stays(network)?;
    if let Some(other) = view.services.named(&wanted.name).find(|other| other.network == network.id) {
        return Err(Problem::new(
            ProblemKind::Conflict,
            format!(
                "service {} exists on network {} already: {}",
                other.name,
                network_name(view, &network.id),
                other.id
            ),
        ));
    }
    let chosen = vips::choose(view, network, wanted, &mut choosing)
        .and_then(|vips| Ok((vips, ports::choose(view, &wanted.ports, None, checked, &mut choosing)?)));
    let ((vip, vip6), ports) = match chosen {
        Err(problem) if problem.kind == ProblemKind::Exhausted && choosing.is_contended() => return Ok(None),
        chosen => chosen?,
    };
    let service = Service {
        id: ServiceId::random().map_err(RecordError::from)?,
        name: wanted.name.clone(),
        network: network.id.clone(),
        endpoint_mode: wanted.endpoint_mode,
        vip,
        vip6,
        ports,
        affinity: wanted.affinity,
        health: wanted.health.clone(),
        when_all_unhealthy: wanted.when_all_unhealthy,
        aliases: wanted.aliases.clone(),
        labels: wanted.labels.clone(),
        created_at: Timestamp::now(),
    };
    Ok(Some((service, choosing.done())))
}

/// Writes the service; returns `None` if another call was faster, and a new plan is needed.
async fn write(core: &Core, service: &Service) -> Result<Option<u64>, Problem> {
    let network_key = keys::network(&service.network);
    let reads = std::iter::once(Op::get(network_key.clone())).chain(PortRecords::reads(&service.ports));
    let mut read = core.records.read(reads).await?;
    let network: Versioned<Network> = read.one()?.ok_or_else(|| gone(&service.network))?;
    check_stays(&network.value)?;
    let mut records = PortRecords::of(&service.ports, &mut read)?;
    if !service.ports.iter().all(|port| records.add(port, &service.id)) {
        return Ok(None);
    }
    let (mut compares, mut ops) = records.write();
    compares.push(Compare::mod_revision(network_key, network.revision));
    // All spellings of a name have one key.
    let name = keys::service_name(&service.network, &service.name.folded());
    compares.push(Compare::absent(name.clone()));
    ops.extend([put(name, &service.id), put(keys::service(&service.id), service)]);
    for vip in service.vips() {
        let key = keys::vip(&service.network, vip);
        compares.push(Compare::absent(key.clone()));
        ops.push(put(key, &service.id));
    }
    Ok(core.records.commit(Txn::when(compares).then(ops)).await?.map(|revision| revision.0))
}

fn gone(network: &NetworkId) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("network {network} does not exist"))
}
