//! `meshctl apply`

mod requests;
mod source;

use std::collections::BTreeSet;

use mesh_model::Name;
use mesh_proto::{Problem, ProblemKind, v1};
use serde::Serialize;

use super::in_form;
use crate::apply::{self, Change, Conflict, Declared, Ignored, Listed, Plan, Step, Update, Warning, Why};
use crate::cli::Format;
use crate::cli::apply::Apply;
use crate::client::{Client, incomplete};
use crate::report::{self, Report};
use crate::view::unusable;

/// What `apply` did, or would do.
#[derive(Debug, Serialize)]
struct Applied {
    project: String,
    dry_run: bool,
    changes: Vec<Change>,
    ignored: Vec<Ignored>,
    warnings: Vec<Warning>,
}

pub(super) async fn run(client: &Client, asked: Apply, format: Option<Format>) -> Report {
    let declared = match source::declared(&asked) {
        Ok(declared) => declared,
        Err(problem) => return problem.into(),
    };
    let mut notes = notes(&declared, format);
    let mut unchecked = BTreeSet::new();
    let (changes, problems) = match planned(client, &asked, &declared).await {
        Err(problems) => return Report { notes, problems, ..Report::default() },
        Ok((plan, _)) if asked.dry_run => (plan.steps.iter().map(Step::change).collect(), Vec::new()),
        Ok((plan, listed)) => execute(client, plan, &listed, &mut unchecked).await,
    };
    let unchecked: Vec<String> = unchecked.into_iter().collect();
    notes.extend(super::service::unchecked(&unchecked, format));
    let Declared { project, ignored, warnings, .. } = declared;
    let applied = Applied { project, dry_run: asked.dry_run, changes, ignored, warnings };
    let untouched = problems.is_empty() && applied.changes.is_empty();
    let text = in_form(&applied, format, |applied| as_text(applied, untouched));
    let mut report = Report::from(text);
    report.notes = notes;
    report.problems.splice(0..0, problems);
    report
}

fn as_text(applied: &Applied, untouched: bool) -> String {
    if untouched {
        return "nothing changes\n".to_owned();
    }
    let line = |change: &Change| {
        let what = change.object();
        if applied.dry_run {
            format!("would {} {what}\n", change.action)
        } else {
            format!("{}d {what}\n", change.action)
        }
    };
    applied.changes.iter().map(line).collect()
}

/// What is said besides the result: mistakes, what is without effect, and in one line what concerns containers only.
fn notes(declared: &Declared, format: Option<Format>) -> Vec<String> {
    #[derive(Serialize)]
    #[serde(rename_all = "lowercase")]
    enum Note<'a> {
        Warning(&'a Warning),
        Ignored(&'a Ignored),
    }
    let said = |note: Note<'_>| match (format, &note) {
        (Some(Format::Json), note) => report::line(note),
        (_, Note::Warning(warning)) => format!("warning: {warning}\n"),
        (_, Note::Ignored(ignored)) => format!("ignored: {ignored}\n"),
    };
    let mut notes: Vec<String> =
        declared.warnings.iter().map(|warning| said(Note::Warning(warning))).collect();
    let each = declared.ignored.iter().filter(|key| matches!(key.why, Why::NoUse | Why::Inactive(_)));
    notes.extend(each.map(|key| said(Note::Ignored(key))));
    notes.extend(containers(&declared.ignored, format));
    notes
}

/// The keys that concern containers only, each once.
fn containers(ignored: &[Ignored], format: Option<Format>) -> Option<String> {
    #[derive(Serialize)]
    struct Keys<'a> {
        ignored_keys: &'a BTreeSet<&'a str>,
    }
    let key = |ignored: &'_ Ignored| match &ignored.why {
        Why::Container(key) => Some(key.clone()),
        _ => None,
    };
    let keys: BTreeSet<String> = ignored.iter().filter_map(key).collect();
    let keys: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
    if keys.is_empty() {
        return None;
    }
    Some(match format {
        Some(Format::Json) => report::line(&Keys { ignored_keys: &keys }),
        _ => format!("ignored: {}\n", keys.into_iter().collect::<Vec<_>>().join(", ")),
    })
}

async fn planned(
    client: &Client,
    asked: &Apply,
    declared: &Declared,
) -> Result<(Plan, Listed), Vec<Problem>> {
    let listed = listed(client).await.map_err(|problem| vec![problem])?;
    match apply::plan(declared, &listed, asked.prune) {
        Ok(plan) => Ok((plan, listed)),
        Err(conflicts) => Err(conflicts.iter().map(conflict).collect()),
    }
}

async fn listed(client: &Client) -> Result<Listed, Problem> {
    let mut control = client.control().await?;
    let networks = client.call(control.list_networks(v1::ListNetworksRequest {})).await?.networks;
    let request = v1::ListServicesRequest { network: String::new() };
    let services = client.call(control.list_services(request)).await?.services;
    let networks = networks.into_iter().map(TryInto::try_into).collect::<Result<_, _>>();
    let services = services
        .into_iter()
        .map(|status| {
            status.service.ok_or_else(|| incomplete("service"))?.try_into().map_err(|e| unusable(&e))
        })
        .collect::<Result<_, Problem>>()?;
    Ok(Listed { networks: networks.map_err(|e| unusable(&e))?, services })
}

fn conflict(conflict: &Conflict) -> Problem {
    let (kind, hint) = match conflict {
        Conflict::CannotChange { .. } => (
            ProblemKind::Conflict,
            "nothing was changed; remove it first to have it made anew, or undo this in the file",
        ),
        Conflict::Foreign { .. } => (
            ProblemKind::Conflict,
            "nothing was changed; write it as it is, or give yours another name; a network of others is `external: true`",
        ),
        Conflict::PortTaken { .. } => (
            ProblemKind::Conflict,
            "nothing was changed; publish another port, or take it from the other service",
        ),
        Conflict::NoSuchNetwork(_) => {
            (ProblemKind::NotFound, "nothing was changed; make it first: meshctl network create")
        }
    };
    Problem::new(kind, format!("apply, {conflict}")).hint(hint)
}

/// Makes the calls, as many as can be: after a failure only what depends on it is left out.
async fn execute(
    client: &Client,
    plan: Plan,
    listed: &Listed,
    unchecked: &mut BTreeSet<String>,
) -> (Vec<Change>, Vec<Problem>) {
    let (mut done, mut problems) = (Vec::new(), Vec::new());
    let mut missing: BTreeSet<Name> = BTreeSet::new();
    for step in plan.steps {
        if let Step::CreateService { service, .. } = &step
            && missing.contains(&service.network)
        {
            continue;
        }
        match one(client, &plan.project, &step, listed, unchecked).await {
            Ok(change) => done.push(change),
            Err(problem) => {
                if let Step::CreateNetwork(network) = step {
                    missing.insert(network.name);
                }
                problems.push(problem);
            }
        }
    }
    (done, problems)
}

/// Makes one call, and says what it did.
async fn one(
    client: &Client,
    project: &str,
    step: &Step,
    listed: &Listed,
    unchecked: &mut BTreeSet<String>,
) -> Result<Change, Problem> {
    let mut control = client.control().await?;
    match step {
        Step::RemoveService { id, .. } => {
            let request = v1::RemoveServiceRequest { service: id.to_string() };
            client.call(control.remove_service(request)).await?;
        }
        Step::RemoveNetwork { id, .. } => {
            let request = v1::RemoveNetworkRequest { network: id.to_string() };
            client.call(control.remove_network(request)).await?;
        }
        Step::CreateNetwork(network) => {
            client.call(control.create_network(requests::network(project, network))).await?;
        }
        Step::CreateService { service, ports } => {
            let answer =
                client.call(control.create_service(requests::service(project, service, ports))).await?;
            unchecked.extend(answer.unchecked_nodes.iter().cloned());
            let ports = ports_of(answer)?;
            return Ok(Step::CreateService { service: service.clone(), ports }.change());
        }
        Step::UpdateService(update) => {
            let answer = client.call(control.update_service(requests::update(update))).await?;
            unchecked.extend(answer.unchecked_nodes.iter().cloned());
            let before = listed.services.iter().find(|service| service.id == update.id);
            let before = before.map_or(&[][..], |service| &service.ports);
            let mut add_ports = ports_of(answer)?;
            add_ports.retain(|port| !before.contains(port));
            return Ok(Step::UpdateService(Update { add_ports, ..update.clone() }).change());
        }
    }
    Ok(step.change())
}

/// A service's ports, with those that the cluster chose.
fn ports_of(answer: v1::ServiceStatus) -> Result<Vec<mesh_model::PublishedPort>, Problem> {
    let ports = answer.service.ok_or_else(|| incomplete("service"))?.ports;
    ports.into_iter().map(|port| port.try_into().map_err(|e| unusable(&e))).collect()
}
