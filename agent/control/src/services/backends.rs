//! A service's backends.

use std::sync::Arc;

use jiff::Timestamp;
use mesh_model::{Backend, BackendState, EndpointId, NodeId, Role, Service};
use mesh_proto::convert::{parse, parse_optional};
use mesh_proto::v1::{self, BackendStatus};
use mesh_proto::{InvalidMessage, Problem, ProblemKind};
use mesh_store::{Compare, Op, Txn};
use tracing::info;

use super::update::interested;
use super::{backend_status, wait_applied};
use crate::access::Caller;
use crate::core::Core;
use crate::errors::usage;
use crate::keys;
use crate::records::{Tries, Versioned, put};
use crate::resolve::{resolve_endpoint, resolve_network, resolve_service, within};

/// Makes an endpoint a backend; changes nothing if it already is one.
pub(crate) async fn add(
    core: &Core,
    caller: &Caller,
    service: &str,
    endpoint: &str,
) -> Result<BackendStatus, Problem> {
    let service = resolve_service(core, service).await?;
    let network = resolve_network(core, service.network.as_str()).await?.value;
    let endpoint = match resolve_endpoint(core, &network, endpoint, caller.id()) {
        Err(problem) if problem.kind == ProblemKind::NotFound => {
            core.first_reports().await;
            resolve_endpoint(core, &network, endpoint, caller.id())?
        }
        found => found?,
    };
    let backend = record(core, &service, &endpoint).await?;
    check_own(caller, &backend.node, &backend)?;
    let key = keys::backend(&service.id, &backend.endpoint);
    let compares = [
        Compare::absent(key.clone()),
        Compare::present(keys::service(&service.id)),
        Compare::present(keys::node(&backend.node)),
    ];
    let Some(revision) = core.records.commit(Txn::when(compares).then([put(key, &backend)])).await? else {
        core.catch_up().await?;
        return existing(core, &service, &backend);
    };
    info!(service = %service.name, backend = %backend.name, id = %backend.id, "a backend was added");
    core.feed.reached(revision.0).await;
    // A concurrently reported removal did not see the new backend.
    if !core.endpoints.has(&backend.node, &backend.endpoint) {
        super::removals::remove_all(core, vec![Arc::new(backend.clone())]).await?;
        return Err(Problem::new(
            ProblemKind::NotFound,
            format!("endpoint {} no longer exists", backend.name),
        ));
    }
    wait_applied(core, &service, revision.0, interested(core, &service)).await;
    Ok(backend_status(core, &service, &backend))
}

/// Explains why a backend could not be written: it exists, or an object that it needs is gone.
fn existing(core: &Core, service: &Service, wanted: &Backend) -> Result<BackendStatus, Problem> {
    let gone = |what: String| Problem::new(ProblemKind::NotFound, format!("{what} no longer exists"));
    let found = core.feed.view().services.backend(&service.id, &wanted.endpoint).cloned();
    if let Some(backend) = found {
        return Ok(backend_status(core, service, &backend));
    }
    let is_member = core.feed.view().nodes.contains_key(&wanted.node);
    Err(gone(if is_member { format!("service {}", service.name) } else { format!("node {}", wanted.node) }))
}

/// Returns the record of a new backend.
async fn record(core: &Core, service: &Service, endpoint: &v1::Endpoint) -> Result<Backend, Problem> {
    let id = core.services.number(&core.records, &core.feed).await?;
    let read = || {
        Ok(Backend {
            id,
            service: service.id.clone(),
            network: service.network.clone(),
            endpoint: parse("id", &endpoint.id)?,
            name: parse("name", &endpoint.name)?,
            node: parse("node_id", &endpoint.node_id)?,
            ipv4: parse_optional("ipv4", &endpoint.ipv4)?,
            ipv6: parse_optional("ipv6", &endpoint.ipv6)?,
            state: BackendState::Active,
            created_at: Timestamp::now(),
        })
    };
    read().map_err(|error: InvalidMessage| usage(&error))
}

/// Removes a backend from its service, and returns once every live agent concerned has applied
/// that.
pub(crate) async fn remove(
    core: &Core,
    caller: &Caller,
    service: &str,
    endpoint: &str,
) -> Result<BackendStatus, Problem> {
    let service = resolve_service(core, service).await?;
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let Versioned { value: backend, revision } = find(core, caller, &service, endpoint).await?;
        check_own(caller, &backend.node, &backend)?;
        let key = keys::backend(&service.id, &backend.endpoint);
        let txn = Txn::when([Compare::mod_revision(key.clone(), revision)]).then([Op::delete(key)]);
        let Some(revision) = core.records.commit(txn).await? else { continue };
        info!(service = %service.name, backend = %backend.name, id = %backend.id, "a backend was removed");
        let status = backend_status(core, &service, &backend);
        core.health.forget([(backend.node.clone(), backend.id)]);
        wait_applied(core, &service, revision.0, interested(core, &service)).await;
        return Ok(status);
    }
}

/// Drains or activates a backend.
pub(crate) async fn set_state(
    core: &Core,
    caller: &Caller,
    service: &str,
    endpoint: &str,
    state: BackendState,
) -> Result<BackendStatus, Problem> {
    let service = resolve_service(core, service).await?;
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let Versioned { value, revision } = find(core, caller, &service, endpoint).await?;
        if value.state == state {
            return Ok(backend_status(core, &service, &value));
        }
        let backend = Backend { state, ..value };
        let key = keys::backend(&service.id, &backend.endpoint);
        let txn = Txn::when([Compare::mod_revision(key.clone(), revision)]).then([put(key, &backend)]);
        let Some(revision) = core.records.commit(txn).await? else { continue };
        info!(service = %service.name, backend = %backend.name, %state, "a backend's state was changed");
        wait_applied(core, &service, revision.0, interested(core, &service)).await;
        return Ok(backend_status(core, &service, &backend));
    }
}

/// Returns the backend of a service whose endpoint `text` names: by id, name or id prefix. The
/// endpoint itself may be unknown, for example after a restart of the manager while its node is
/// away.
async fn find(
    core: &Core,
    caller: &Caller,
    service: &Service,
    text: &str,
) -> Result<Versioned<Backend>, Problem> {
    core.catch_up().await?;
    let (text, backends) = {
        let view = core.feed.view();
        let text = match view.networks.get(&service.network) {
            Some(network) => within(&view, network, text)?,
            None => text,
        };
        (text, view.services.backends_of(&service.id))
    };
    let by_id = backends.iter().filter(|backend| backend.endpoint.as_str() == text);
    let mut found: Vec<&Arc<Backend>> = by_id.collect();
    if found.is_empty() {
        found = backends.iter().filter(|backend| backend.name.as_str() == text).collect();
    }
    if found.is_empty() {
        found = backends.iter().filter(|backend| backend.name.as_str().eq_ignore_ascii_case(text)).collect();
    }
    if found.is_empty() && !text.is_empty() {
        found = backends.iter().filter(|backend| backend.endpoint.as_str().starts_with(text)).collect();
    }
    if found.len() > 1 && found.iter().any(|backend| backend.node == *caller.id()) {
        found.retain(|backend| backend.node == *caller.id());
    }
    let endpoint: EndpointId = match found.as_slice() {
        [] => {
            return Err(Problem::new(
                ProblemKind::NotFound,
                format!("endpoint {text} is not a backend of service {}", service.name),
            )
            .hint(format!("list its backends with: meshctl service ps {}", service.name)));
        }
        [backend] => backend.endpoint.clone(),
        several => {
            let ids: Vec<&str> = several.iter().map(|backend| backend.endpoint.as_str()).collect();
            return Err(Problem::new(
                ProblemKind::Usage,
                format!("backend {text} of service {} is ambiguous: {}", service.name, ids.join(", ")),
            )
            .hint("use its endpoint's id"));
        }
    };
    let found = core.records.get(keys::backend(&service.id, &endpoint)).await?;
    found.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("backend {text} no longer exists")))
}

/// Checks that a worker changes only its own endpoints.
fn check_own(caller: &Caller, node: &NodeId, backend: &Backend) -> Result<(), Problem> {
    if caller.role() == Role::Manager || node == caller.id() {
        return Ok(());
    }
    Err(Problem::new(
        ProblemKind::Denied,
        format!("endpoint {} is on another node, and node {} is a worker", backend.name, caller.node().name),
    )
    .hint("run it on a manager, or on the endpoint's own node"))
}
