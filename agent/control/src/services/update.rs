//! Changing a service.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_model::{NodeId, PublishedPort, Service};
use mesh_proto::convert::parse_optional;
use mesh_proto::v1::{self, ServiceStatus, UpdateServiceRequest};
use mesh_proto::{InvalidMessage, Problem, ProblemKind};
use mesh_store::{Compare, Txn};
use tracing::info;

use super::desk::{Choices, Choosing, ServiceDesk};
use super::ports::{Checked, PortRecords};
use super::request::{ByNumber, aliases, check_distinct};
use super::{contended, ports, request, shared_names, status, wait_applied};
use crate::core::Core;
use crate::errors::usage;
use crate::keys;
use crate::records::{Tries, Versioned, put};
use crate::resolve::resolve_service;
use crate::view::View;

/// Changes a service, and returns once every live agent concerned has applied the change.
pub(crate) async fn update(core: &Core, request: UpdateServiceRequest) -> Result<ServiceStatus, Problem> {
    let add = request::ports(request.add_ports.clone()).map_err(|error| usage(&error))?;
    check_distinct(&add)?;
    let id = resolve_service(core, &request.service).await?.id.clone();
    let mut checked = Checked::default();
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        core.catch_up().await?;
        let current: Option<Versioned<Service>> = core.records.get(keys::service(&id)).await?;
        let Some(Versioned { value: current, revision }) = current else {
            return Err(Problem::new(
                ProblemKind::NotFound,
                format!("service {} no longer exists", request.service),
            ));
        };
        let freed = core.services.freed();
        let planned = plan(&core.feed.view(), core.services.choose(), &current, &request, &add, &checked)?;
        let Some((wanted, choices)) = planned else {
            freed.await;
            continue;
        };
        if wanted == current {
            return Ok(status(core, &Arc::new(current)));
        }
        let (had, has): (BTreeSet<_>, BTreeSet<_>) =
            (current.ports.iter().copied().collect(), wanted.ports.iter().copied().collect());
        let new: Vec<PublishedPort> =
            wanted.ports.iter().filter(|port| !had.contains(port)).copied().collect();
        if !checked.check(core, &add, &new).await? {
            continue;
        }
        let before = interested(core, &current);
        let both: Vec<PublishedPort> = current.ports.iter().chain(&wanted.ports).copied().collect();
        let mut read = core.records.read(PortRecords::reads(&both)).await?;
        let mut records = PortRecords::of(&both, &mut read)?;
        for port in had.difference(&has) {
            records.remove(port, &id);
        }
        if !new.iter().all(|port| records.add(port, &id)) {
            continue;
        }
        let (mut compares, mut ops) = records.write();
        compares.push(Compare::mod_revision(keys::service(&id), revision));
        ops.push(put(keys::service(&id), &wanted));
        let Some(revision) = core.records.commit(Txn::when(compares).then(ops)).await? else { continue };
        info!(service = %id, name = %wanted.name, "a service was changed");
        core.feed.reached(revision.0).await;
        drop(choices);
        let concerned = before.into_iter().chain(interested(core, &wanted)).collect::<BTreeSet<_>>();
        wait_applied(core, &wanted, revision.0, concerned.into_iter().collect()).await;
        let unchecked_nodes = checked.unchecked(core);
        let is_renamed = wanted.aliases != current.aliases;
        let warnings = if is_renamed { shared_names(core, &core.feed.view(), &wanted) } else { Vec::new() };
        return Ok(ServiceStatus { unchecked_nodes, warnings, ..status(core, &Arc::new(wanted)) });
    }
}

/// Returns the service after an update, and which new ports the request names explicitly.
pub(crate) fn proposed(
    view: &View,
    current: &Service,
    request: &UpdateServiceRequest,
) -> Result<(Service, Vec<PublishedPort>), Problem> {
    let add = request::ports(request.add_ports.clone()).map_err(|error| usage(&error))?;
    check_distinct(&add)?;
    // Only this call uses this desk, so it never waits.
    let desk = ServiceDesk::default();
    let planned = plan(view, desk.choose(), current, request, &add, &Checked::default())?;
    let (wanted, _choices) = planned.ok_or_else(contended)?;
    let is_named = |port: &&PublishedPort| add.contains(port) && !current.ports.contains(port);
    let named = wanted.ports.iter().filter(is_named).copied().collect();
    Ok((wanted, named))
}

/// Returns the nodes that receive the service, according to the view.
pub(super) fn interested(core: &Core, service: &Service) -> Vec<NodeId> {
    let view = core.feed.view();
    view.interested(&service.network, view.audience(&service.id))
}

/// Returns the service after the change; `None` if other calls, which may still fail, have chosen
/// all free ports.
fn plan<'a>(
    view: &View,
    mut choosing: Choosing<'a>,
    current: &Service,
    request: &UpdateServiceRequest,
    add: &[PublishedPort],
    checked: &Checked,
) -> Result<Option<(Service, Choices<'a>)>, Problem> {
    let mut wanted = change(current, request).map_err(|error| usage(&error))?;
    for remove in &request.remove_ports {
        remove_port(&mut wanted, remove)?;
    }
    let chosen = match ports::choose(view, add, Some(&current.id), checked, &mut choosing) {
        Err(problem) if problem.kind == ProblemKind::Exhausted && choosing.is_contended() => return Ok(None),
        chosen => chosen?,
    };
    let mut own = ByNumber::default();
    wanted.ports.iter().for_each(|port| own.add(*port));
    for port in chosen {
        if let Some(own) = own.conflict(&port) {
            return Err(Problem::new(
                ProblemKind::Conflict,
                format!("service {} publishes port {own} already", current.name),
            ));
        }
        own.add(port);
        wanted.ports.push(port);
    }
    Ok(Some((wanted, choosing.done())))
}

/// Applies all changes except those of ports.
fn change(current: &Service, request: &UpdateServiceRequest) -> Result<Service, InvalidMessage> {
    let mut wanted = current.clone();
    let unknown = |_| InvalidMessage { field: "affinity", reason: "is not known".into() };
    match v1::Affinity::try_from(request.affinity).map_err(unknown)? {
        v1::Affinity::Unspecified => {}
        affinity => wanted.affinity = affinity.try_into()?,
    }
    let unknown = |_| InvalidMessage { field: "when_all_unhealthy", reason: "is not known".into() };
    match v1::WhenAllUnhealthy::try_from(request.when_all_unhealthy).map_err(unknown)? {
        v1::WhenAllUnhealthy::Unspecified => {}
        choice => wanted.when_all_unhealthy = choice.try_into()?,
    }
    match (&request.health, request.clear_health) {
        (Some(_), true) => {
            return Err(InvalidMessage { field: "health", reason: "is both given and cleared".into() });
        }
        (Some(check), false) => wanted.health = Some(check.clone().try_into()?),
        (None, true) => wanted.health = None,
        (None, false) => {}
    }
    if request.replace_aliases {
        wanted.aliases = aliases(&request.aliases)?;
    }
    Ok(wanted)
}

/// Removes the matching ports: by the published port, or by the target if that is not given.
fn remove_port(service: &mut Service, meant: &v1::PublishedPort) -> Result<(), Problem> {
    let host_ip = parse_optional::<std::net::IpAddr>("host_ip", &meant.host_ip).map_err(|e| usage(&e))?;
    let protocol = meant.protocol().try_into().map_err(|e| usage(&e))?;
    let mode = (meant.mode() != v1::PublishMode::Unspecified).then(|| meant.mode());
    if meant.published == 0 && meant.target == 0 {
        return Err(Problem::new(ProblemKind::Usage, "specify the port to remove"));
    }
    let is_meant = |port: &PublishedPort| {
        port.protocol == protocol
            && (meant.published == 0 || u32::from(port.published) == meant.published)
            && (meant.target == 0 || u32::from(port.target) == meant.target)
            && mode.is_none_or(|mode| v1::PublishMode::from(port.mode) == mode)
            && (host_ip == port.host_ip || (host_ip.is_none() && meant.published == 0))
    };
    let before = service.ports.len();
    let published = ports::named(service);
    service.ports.retain(|port| !is_meant(port));
    if service.ports.len() < before {
        return Ok(());
    }
    let port = if meant.published == 0 { meant.target } else { meant.published };
    let problem = Problem::new(
        ProblemKind::NotFound,
        format!("service {} does not publish port {port}/{protocol}", service.name),
    );
    Err(if published.is_empty() { problem } else { problem.hint(format!("it publishes {published}")) })
}
