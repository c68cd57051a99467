//! `meshctl apply`

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};
use std::path::Path;

use mesh_model::Name;
use mesh_proto::{Problem, ProblemKind, v1};
use serde::Serialize;

use super::in_form;
use crate::apply::{
    self, Change, Conflict, Declared, Ignored, Invalid, LABEL, Listed, Network, NewHealth, Plan, Step, Update,
};
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
}

pub(super) async fn run(client: &Client, asked: Apply, format: Option<Format>) -> Report {
    let declared = match declared(&asked.file) {
        Ok(declared) => declared,
        Err(problem) => return problem.into(),
    };
    let notes = declared.ignored.iter().map(|ignored| note(ignored, format)).collect();
    let (changes, problems) = match planned(client, &asked, &declared).await {
        Err(problems) => return Report { notes, problems, ..Report::default() },
        Ok((plan, _)) if asked.dry_run => (plan.steps.iter().map(Step::change).collect(), Vec::new()),
        Ok((plan, listed)) => execute(client, plan, &listed).await,
    };
    let applied =
        Applied { project: declared.project, dry_run: asked.dry_run, changes, ignored: declared.ignored };
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

fn note(ignored: &Ignored, format: Option<Format>) -> String {
    #[derive(Serialize)]
    struct Envelope<'a> {
        ignored: &'a Ignored,
    }
    if format == Some(Format::Json) {
        report::line(&Envelope { ignored })
    } else {
        format!("ignored: {ignored}\n")
    }
}

fn usage(file: &Path, why: impl std::fmt::Display) -> Problem {
    Problem::new(ProblemKind::Usage, format!("apply, {}, {why}", file.display()))
}

/// Reads and understands the file.
fn declared(file: &Path) -> Result<Declared, Problem> {
    let from_stdin = file == Path::new("-");
    let unreadable = |error: &io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ProblemKind::NotFound,
            io::ErrorKind::InvalidData => ProblemKind::Usage,
            _ => ProblemKind::Failed,
        };
        Problem::new(kind, format!("apply, {}, cannot read: {error}", file.display()))
            .hint("name the file with -f; - is standard input")
    };
    let text = if from_stdin {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(|error| unreadable(&error))?;
    let folder = if from_stdin {
        std::env::current_dir()
    } else {
        std::path::absolute(file).map(|path| path.parent().map(Path::to_path_buf).unwrap_or_default())
    };
    let folder = folder.and_then(|folder| folder.canonicalize()).map_err(|error| unreadable(&error))?;
    let project = project(&folder);
    let variables: HashMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let declared = apply::read(&text, &project, variables).map_err(|error| invalid(file, &error))?;
    if declared.project.is_empty() {
        return Err(usage(file, "has no project name, nor has its folder").hint("write `name: NAME` into it"));
    }
    Ok(declared)
}

/// The project's name that a folder gives, made of it as Compose does.
fn project(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let name: String = name.chars().filter(allowed).collect();
    name.trim_start_matches(['-', '_']).to_owned()
}

fn invalid(file: &Path, error: &Invalid) -> Problem {
    // Parsers of YAML speak in several lines; a problem is one.
    let why = error.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let problem = match error.line {
        0 => usage(file, why),
        line => Problem::new(ProblemKind::Usage, format!("apply, {} line {line}, {why}", file.display())),
    };
    problem.hint("see `meshctl apply --help`")
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
async fn execute(client: &Client, plan: Plan, listed: &Listed) -> (Vec<Change>, Vec<Problem>) {
    let (mut done, mut problems) = (Vec::new(), Vec::new());
    let mut missing: BTreeSet<Name> = BTreeSet::new();
    for step in plan.steps {
        if let Step::CreateService { service, .. } = &step
            && missing.contains(&service.network)
        {
            continue;
        }
        match one(client, &plan.project, &step, listed).await {
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
async fn one(client: &Client, project: &str, step: &Step, listed: &Listed) -> Result<Change, Problem> {
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
            client.call(control.create_network(network_request(project, network))).await?;
        }
        Step::CreateService { service, ports } => {
            let answer =
                client.call(control.create_service(service_request(project, service, ports))).await?;
            let ports = ports_of(answer)?;
            return Ok(Step::CreateService { service: service.clone(), ports }.change());
        }
        Step::UpdateService(update) => {
            let answer = client.call(control.update_service(update_request(update))).await?;
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

fn network_request(project: &str, network: &Network) -> v1::CreateNetworkRequest {
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
        encrypted: network.encrypted,
        mtu: network.mtu.map(Into::into),
        vni: network.vni.map(Into::into),
        labels,
        options: HashMap::new(),
    }
}

fn service_request(
    project: &str,
    service: &apply::Service,
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
    }
}

fn update_request(update: &Update) -> v1::UpdateServiceRequest {
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
        aliases: update.aliases.iter().flatten().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_called_as_compose_would_call_it() {
        for (folder, name) in [("/srv/My Shop", "myshop"), ("/srv/_a.b-c", "ab-c"), ("/", ""), ("/srv/ü", "")]
        {
            assert_eq!(project(Path::new(folder)), name, "{folder}");
        }
    }
}
