//! Makes the calls of a plan. After a failure, what this run created and changed is undone.

use std::collections::BTreeSet;

use mesh_proto::{Problem, v1};

use super::requests;
use crate::apply::{Change, Listed, Plan, Step, Update};
use crate::client::{Client, incomplete};
use crate::view::unusable;

/// What takes a step back.
#[derive(Debug)]
enum Undo {
    RemoveNetwork(String),
    UpdateNetwork(v1::UpdateNetworkRequest),
    RemoveService(String),
    Update(Box<v1::UpdateServiceRequest>),
    /// What was removed had connections and backends: they do not come back.
    Never,
}

/// Makes one call after the other. The managers have checked all of them: one that fails was
/// overtaken by another change, or the managers are away. Returns what is done and stays so.
pub(super) async fn all(
    client: &Client,
    plan: Plan,
    listed: &Listed,
    unchecked: &mut BTreeSet<String>,
) -> (Vec<Change>, Vec<Problem>) {
    let mut done: Vec<(Change, Undo)> = Vec::new();
    let mut problems = Vec::new();
    for step in &plan.steps {
        match one(client, &plan.project, step, listed, unchecked).await {
            Ok(made) => done.push(made),
            Err(problem) => {
                problems.push(problem);
                break;
            }
        }
    }
    if problems.is_empty() {
        return (done.into_iter().map(|(change, _)| change).collect(), problems);
    }
    let mut stays = Vec::new();
    for (change, undo) in done.into_iter().rev() {
        match take_back(client, undo).await {
            Ok(true) => {}
            Ok(false) => stays.push(change),
            Err(problem) => {
                let message = format!("apply, {}, cannot be undone: {}", change.path(), problem.message);
                problems.push(Problem { message, ..problem });
                stays.push(change);
            }
        }
    }
    stays.reverse();
    if let Some(first) = problems.first_mut() {
        let state = if stays.is_empty() { "nothing was changed" } else { "only what is listed was changed" };
        let hint = first.hint.take().map_or_else(String::new, |hint| format!("; {hint}"));
        first.hint = Some(format!("{state}; apply it again{hint}"));
    }
    (stays, problems)
}

/// Makes one call, and returns what it did.
async fn one(
    client: &Client,
    project: &str,
    step: &Step,
    listed: &Listed,
    unchecked: &mut BTreeSet<String>,
) -> Result<(Change, Undo), Problem> {
    let mut control = client.control().await?;
    let undo = match step {
        Step::RemoveService { id, .. } => {
            client.call(control.remove_service(requests::remove_service(id))).await?;
            Undo::Never
        }
        Step::RemoveNetwork { id, .. } => {
            client.call(control.remove_network(requests::remove_network(id))).await?;
            Undo::Never
        }
        Step::CreateNetwork(network) => {
            let made = client.call(control.create_network(requests::network(project, network))).await?;
            Undo::RemoveNetwork(made.id)
        }
        Step::UpdateNetwork { id, policy, before, .. } => {
            client.call(control.update_network(requests::host_policy(id, *policy))).await?;
            Undo::UpdateNetwork(requests::host_policy(id, *before))
        }
        Step::CreateService { service, ports } => {
            let answer =
                client.call(control.create_service(requests::service(project, service, ports))).await?;
            unchecked.extend(answer.unchecked_nodes.iter().cloned());
            let id = answer.service.as_ref().map(|service| service.id.clone()).unwrap_or_default();
            let change = Step::CreateService { service: service.clone(), ports: ports_of(answer)? }.change();
            return Ok((change, Undo::RemoveService(id)));
        }
        Step::UpdateService(update) => {
            let answer = client.call(control.update_service(requests::update(update))).await?;
            unchecked.extend(answer.unchecked_nodes.iter().cloned());
            let before = listed.services.iter().find(|service| service.id == update.id);
            let mut add_ports = ports_of(answer)?;
            add_ports.retain(|port| before.is_none_or(|before| !before.ports.contains(port)));
            let made = Update { add_ports, ..update.clone() };
            let undo = before
                .map_or(Undo::Never, |before| Undo::Update(Box::new(requests::undo_update(&made, before))));
            return Ok((Step::UpdateService(made).change(), undo));
        }
    };
    Ok((step.change(), undo))
}

/// False: it cannot be.
async fn take_back(client: &Client, undo: Undo) -> Result<bool, Problem> {
    let mut control = client.control().await?;
    match undo {
        Undo::RemoveNetwork(network) => {
            client.call(control.remove_network(v1::RemoveNetworkRequest { network })).await?;
        }
        Undo::UpdateNetwork(request) => {
            client.call(control.update_network(request)).await?;
        }
        Undo::RemoveService(service) => {
            client.call(control.remove_service(v1::RemoveServiceRequest { service })).await?;
        }
        Undo::Update(request) => {
            client.call(control.update_service(*request)).await?;
        }
        Undo::Never => return Ok(false),
    }
    Ok(true)
}

/// A service's ports, with those that the cluster chose.
fn ports_of(answer: v1::ServiceStatus) -> Result<Vec<mesh_model::PublishedPort>, Problem> {
    let ports = answer.service.ok_or_else(|| incomplete("service"))?.ports;
    ports.into_iter().map(|port| port.try_into().map_err(|e| unusable(&e))).collect()
}
