//! `meshctl service ...`

use std::collections::BTreeMap;

use mesh_model::port_list::{ranges, shortened};
use mesh_model::{HealthCheck, HealthKind, PublishedPort};
use mesh_proto::{Problem, ProblemKind, v1};

use super::results::{each, ids, in_form, inspect, list_of};
use crate::cli::service::{Backend as BackendCommand, Command, Create, Health, Ls, Ps, Update};
use crate::client::Client;
use crate::filter::{BackendKey, Filter, ServiceKey, matches_all};
use crate::format::Format;
use crate::report::{self, Report};
use crate::table::{columns, details, list, or_none, short, yes_no};
use crate::view::service::{Backend, Service};
use crate::view::{self, Named};

pub(super) async fn run(client: &Client, command: Command, format: Option<Format>) -> Report {
    match command {
        Command::Create(create) => self::create(client, *create, format).await.into(),
        Command::Ls(ls) => self::ls(client, ls, format).await.into(),
        Command::Ps(ps) => self::ps(client, ps, format).await,
        Command::Inspect(names) => {
            inspect(names.services, format, async |name| one(client, name).await, as_details).await
        }
        Command::Update(update) => self::update(client, *update, format).await.into(),
        Command::Rm(names) => {
            let removed = each(names.services, async |service| {
                let request = v1::RemoveServiceRequest { service };
                let gone = client.call(client.control().await?.remove_service(request)).await?;
                let gone = Service::try_from(gone)?;
                Ok(Named { id: gone.id, name: gone.name })
            });
            list_of(removed.await, format, |service| service.name.clone())
        }
        Command::Backend { command } => backend(client, command, format).await.into(),
    }
}

/// Asks for everything of a service.
pub(super) async fn one(client: &Client, service: String) -> Result<Service, Problem> {
    let request = v1::InspectServiceRequest { service };
    client.call(client.control().await?.inspect_service(request)).await?.try_into()
}

async fn create(client: &Client, create: Create, format: Option<Format>) -> Result<Report, Problem> {
    let asked = create.publish.clone();
    let request = create_request(create)?;
    let answer = client.call(client.control().await?.create_service(request)).await?;
    let notes = notes(&answer, format);
    let service = Service::try_from(answer)?;
    let text = in_form(&service, format, |service| {
        format!("{}\n{}", service.id, chosen(&asked, &[], &service.ports))
    })?;
    Ok(Report { text, notes, ..Report::default() })
}

/// What a person should know of a service that was created or changed.
fn notes(answer: &v1::ServiceStatus, format: Option<Format>) -> Vec<String> {
    let mut notes = unchecked(&answer.unchecked_nodes, format);
    notes.extend(answer.warnings.iter().map(|warning| report::warning(warning, format)));
    notes
}

/// Warns of nodes that were away when ports were published, a line each.
pub(super) fn unchecked(nodes: &[String], format: Option<Format>) -> Vec<String> {
    let warn = |node: &String| {
        let text = format!(
            "node {node} is not connected: if a socket of its host uses a published port, `meshctl status` on that node reports it once it is back"
        );
        report::warning(&text, format)
    };
    nodes.iter().map(warn).collect()
}

fn create_request(create: Create) -> Result<v1::CreateServiceRequest, Problem> {
    let health = match kind(&create.health) {
        Some(kind) => Some(check("service create", kind, &create.health, None)?),
        None if create.health.interval.is_some() || create.health.retries.is_some() => {
            let message = "service create, --health-interval and --health-retries, no check is given";
            return Err(Problem::new(ProblemKind::Usage, message)
                .hint("specify the check: --health-tcp or --health-http"));
        }
        None => None,
    };
    Ok(v1::CreateServiceRequest {
        name: create.name.into(),
        network: create.network,
        endpoint_mode: v1::EndpointMode::from(mesh_model::EndpointMode::from(create.endpoint_mode)).into(),
        vip: create.vip.map(|vip| vip.to_string()).unwrap_or_default(),
        vip6: create.vip6.map(|vip| vip.to_string()).unwrap_or_default(),
        ports: create.publish.iter().map(Into::into).collect(),
        affinity: v1::Affinity::from(mesh_model::Affinity::from(create.affinity)).into(),
        health: health.as_ref().map(Into::into),
        aliases: create.alias.into_iter().map(Into::into).collect(),
        when_all_unhealthy: v1::WhenAllUnhealthy::from(mesh_model::WhenAllUnhealthy::from(
            create.when_all_unhealthy,
        ))
        .into(),
        labels: create.label.into_iter().map(|label| (label.key, label.value)).collect(),
    })
}

/// What is to be tried.
fn kind(flags: &Health) -> Option<HealthKind> {
    flags.tcp.clone().or_else(|| flags.http.clone())
}

/// The check that flags ask for; what they do not say is as it was, or as usual.
fn check(
    command: &str,
    kind: HealthKind,
    flags: &Health,
    was: Option<&HealthCheck>,
) -> Result<HealthCheck, Problem> {
    let interval = flags.interval.or(was.map(|was| was.interval)).unwrap_or(HealthCheck::DEFAULT_INTERVAL);
    let retries = flags.retries.or(was.map(|was| was.retries)).unwrap_or(HealthCheck::DEFAULT_RETRIES);
    let made = HealthCheck::new(kind, interval, retries).map(|made| match was {
        // What has no flag stays with the check that it belongs to.
        Some(was) if was.kind == made.kind => {
            HealthCheck { interval: made.interval, retries: made.retries, ..was.clone() }
        }
        _ => made,
    });
    made.map_err(|error| {
        Problem::new(ProblemKind::Usage, format!("{command}, health check, {error}"))
            .hint(format!("see `meshctl {command} --help`"))
    })
}

/// The ports that the cluster chose for those that were asked for without a number, a line each.
fn chosen(asked: &[PublishedPort], before: &[PublishedPort], ports: &[PublishedPort]) -> String {
    let open = |port: &&PublishedPort| {
        !before.contains(port) && asked.contains(&PublishedPort { published: 0, ..**port })
    };
    ports.iter().filter(open).flat_map(|port| [port.to_string(), "\n".to_owned()]).collect()
}

async fn update(client: &Client, update: Update, format: Option<Format>) -> Result<Report, Problem> {
    let opens = update.publish_add.iter().any(|port| port.published == 0);
    let flags = &update.health;
    let checks = kind(flags).is_some() || flags.interval.is_some() || flags.retries.is_some();
    // Only what has to be told from what was, or added to it, is worth a call.
    let before = if opens || checks {
        let request = v1::InspectServiceRequest { service: update.service.clone() };
        let answer = client.call(client.control().await?.inspect_service(request)).await?;
        let service = answer.service.ok_or_else(|| crate::client::incomplete("service"))?;
        Some(mesh_model::Service::try_from(service).map_err(|e| view::unusable(&e))?)
    } else {
        None
    };
    let was = before.as_ref().and_then(|before| before.health.as_ref());
    let health = match kind(flags).or_else(|| was.map(|was| was.kind.clone())) {
        _ if !checks => None,
        Some(kind) => Some(check("service update", kind, flags, was)?),
        None => {
            let message = format!("service update, {}, its endpoints are not checked", update.service);
            return Err(Problem::new(ProblemKind::Conflict, message)
                .hint("specify the check: --health-tcp or --health-http"));
        }
    };
    let affinity = update
        .affinity
        .map_or(v1::Affinity::Unspecified, |affinity| mesh_model::Affinity::from(affinity).into());
    let when_all_unhealthy = update.when_all_unhealthy.map_or(v1::WhenAllUnhealthy::Unspecified, |choice| {
        mesh_model::WhenAllUnhealthy::from(choice).into()
    });
    let request = v1::UpdateServiceRequest {
        service: update.service,
        add_ports: update.publish_add.iter().map(Into::into).collect(),
        remove_ports: update.publish_rm.iter().map(Into::into).collect(),
        affinity: affinity.into(),
        health: health.as_ref().map(Into::into),
        clear_health: update.no_health,
        replace_aliases: false,
        aliases: Vec::new(),
        when_all_unhealthy: when_all_unhealthy.into(),
    };
    let answer = client.call(client.control().await?.update_service(request)).await?;
    let notes = notes(&answer, format);
    let service = Service::try_from(answer)?;
    let before = before.map(|before| before.ports).unwrap_or_default();
    let text = in_form(&service, format, |service| {
        format!("{}\n{}", service.name, chosen(&update.publish_add, &before, &service.ports))
    })?;
    Ok(Report { text, notes, ..Report::default() })
}

async fn ls(client: &Client, ls: Ls, format: Option<Format>) -> Result<String, Problem> {
    let request = v1::ListServicesRequest { network: ls.network.unwrap_or_default() };
    let answer = client.call(client.control().await?.list_services(request)).await?;
    let mut services: Vec<Service> =
        answer.services.into_iter().map(Service::try_from).collect::<Result<_, _>>()?;
    services.retain(|service| matches(&ls.filter, service));
    services.sort_by(|a, b| (&a.network, &a.name, &a.id).cmp(&(&b.network, &b.name, &b.id)));
    if ls.quiet {
        return ids(services.iter().map(|service| service.id.as_str()), format);
    }
    in_form(&services, format, |services| {
        let headers = ["SERVICE ID", "NAME", "NETWORK", "MODE", "VIP", "BACKENDS", "PORTS", "NOT IN USE"];
        columns(headers, services.iter().map(row))
    })
}

fn row(service: &Service) -> [String; 8] {
    [
        short(&service.id),
        service.name.clone(),
        service.network.clone(),
        service.endpoint_mode.as_str().to_owned(),
        list(service.vip.iter().chain(&service.vip6)),
        in_use(&service.endpoints),
        list(shortened(ranges(&service.ports))),
        reasons(&service.endpoints),
    ]
}

/// `2/3`: so many of them get new connections.
fn in_use(backends: &[Backend]) -> String {
    let count = backends.iter().filter(|backend| backend.receives_traffic).count();
    format!("{count}/{}", backends.len())
}

/// Why backends get no new connections, as in `1 draining, 2 unhealthy`; or that all are used
/// although none passes.
fn reasons(backends: &[Backend]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for backend in backends.iter().filter(|backend| !backend.receives_traffic) {
        *counts.entry(backend.traffic_reason.as_deref().unwrap_or("unknown")).or_default() += 1;
    }
    let counted = counts.into_iter().map(|(reason, count)| format!("{count} {reason}"));
    let fallback = backends.iter().filter(|backend| backend.receives_traffic);
    let fallback = fallback.filter_map(|backend| backend.traffic_reason.clone()).take(1);
    list(counted.chain(fallback))
}

fn matches(filters: &[Filter<ServiceKey>], service: &Service) -> bool {
    matches_all(filters, |key, value| match key {
        ServiceKey::Id => service.id.starts_with(value),
        ServiceKey::Label => match value.split_once('=') {
            None => service.labels.contains_key(value),
            Some((label, value)) => service.labels.get(label).is_some_and(|have| have == value),
        },
        ServiceKey::Mode => service.endpoint_mode.as_str() == value,
        ServiceKey::Name => service.name.contains(value),
        ServiceKey::Network => service.network.eq_ignore_ascii_case(value),
    })
}

async fn ps(client: &Client, ps: Ps, format: Option<Format>) -> Report {
    let (services, mut problems) = each(ps.services, async |name| one(client, name).await).await;
    if services.is_empty() && !problems.is_empty() {
        return Report { problems, ..Report::default() };
    }
    let several = services.len() > 1;
    let mut backends: Vec<Backend> = services.into_iter().flat_map(|service| service.endpoints).collect();
    backends.retain(|backend| matches_backend(&ps.filter, backend));
    let text = if ps.quiet {
        ids(backends.iter().map(|backend| backend.id.as_str()), format)
    } else {
        in_form(&backends, format, |backends| backend_columns(backends, several))
    };
    let text = text.unwrap_or_else(|problem| {
        problems.push(problem);
        String::new()
    });
    Report { text, problems, ..Report::default() }
}

fn matches_backend(filters: &[Filter<BackendKey>], backend: &Backend) -> bool {
    matches_all(filters, |key, value| match key {
        BackendKey::Health => backend.health == value,
        BackendKey::Id => backend.id.starts_with(value),
        BackendKey::Name => backend.name.contains(value),
        BackendKey::Node => backend.node.eq_ignore_ascii_case(value),
        BackendKey::State => backend.state.as_str() == value,
        BackendKey::Traffic => yes_no(backend.receives_traffic) == value,
    })
}

/// One line for each backend; with the service's name where there are several.
fn backend_columns(backends: &[Backend], several: bool) -> String {
    let row = |backend: &Backend| {
        let traffic = match &backend.traffic_reason {
            None => yes_no(backend.receives_traffic),
            Some(reason) => format!("{}: {reason}", yes_no(backend.receives_traffic)),
        };
        [
            short(&backend.id),
            backend.name.clone(),
            backend.node.clone(),
            view::state(backend.node_state).to_owned(),
            list(backend.ipv4.iter().chain(&backend.ipv6)),
            backend.state.as_str().to_owned(),
            backend.health.clone(),
            backend.node_availability.map_or("removed", view::availability).to_owned(),
            traffic,
            or_none(backend.health_error.as_ref()),
        ]
    };
    if !several {
        return columns(BACKEND_HEADERS, backends.iter().map(row));
    }
    let mut headers = ["SERVICE"; BACKEND_HEADERS.len() + 1];
    headers[1..].copy_from_slice(&BACKEND_HEADERS);
    let with_service = |backend: &Backend| {
        let mut cells = [const { String::new() }; BACKEND_HEADERS.len() + 1];
        cells[0] = format!("{}/{}", backend.network, backend.service);
        cells[1..].clone_from_slice(&row(backend));
        cells
    };
    columns(headers, backends.iter().map(with_service))
}

const BACKEND_HEADERS: [&str; 10] = [
    "ENDPOINT ID",
    "NAME",
    "NODE",
    "NODE STATE",
    "ADDRESSES",
    "STATE",
    "HEALTH",
    "AVAILABILITY",
    "TRAFFIC",
    "LAST CHECK ERROR",
];

fn as_details(service: &Service) -> String {
    let health = service.health.as_ref().map(|health| {
        let start = match (health.start_period_ms, health.start_interval_ms) {
            (0, _) => String::new(),
            (period, None) => format!(", start period {period} ms"),
            (period, Some(interval)) => format!(", start period {period} ms with a try every {interval} ms"),
        };
        format!("{} every {} ms, {} retries{start}", health.check, health.interval_ms, health.retries)
    });
    let pair = |(key, value): (&String, &String)| format!("{}={}", key.escape_debug(), value.escape_debug());
    let mut text = details([
        ("ID", service.id.clone()),
        ("Name", service.name.clone()),
        ("Network", service.network.clone()),
        ("Endpoint mode", service.endpoint_mode.as_str().to_owned()),
        ("VIP", list(service.vip.iter().chain(&service.vip6))),
        ("Ports", list(ranges(&service.ports))),
        ("Affinity", service.affinity.as_str().to_owned()),
        ("Health check", or_none(health)),
        ("When all are unhealthy", service.when_all_unhealthy.as_str().to_owned()),
        ("Aliases", list(&service.aliases)),
        ("Labels", list(service.labels.iter().map(pair))),
        ("Created", service.created_at.clone()),
    ]);
    if !service.endpoints.is_empty() {
        text += "\n";
        text += &backend_columns(&service.endpoints, false);
    }
    text
}

async fn backend(
    client: &Client,
    command: BackendCommand,
    format: Option<Format>,
) -> Result<String, Problem> {
    let mut control = client.control().await?;
    let answer = match command {
        BackendCommand::Add(member) => {
            let (service, endpoint) = (member.service, member.endpoint);
            client.call(control.add_backend(v1::AddBackendRequest { service, endpoint })).await
        }
        BackendCommand::Rm(member) => {
            let (service, endpoint) = (member.service, member.endpoint);
            client.call(control.remove_backend(v1::RemoveBackendRequest { service, endpoint })).await
        }
        BackendCommand::Drain(member) => {
            let (service, endpoint) = (member.service, member.endpoint);
            client.call(control.drain_backend(v1::DrainBackendRequest { service, endpoint })).await
        }
        BackendCommand::Activate(member) => {
            let (service, endpoint) = (member.service, member.endpoint);
            client.call(control.activate_backend(v1::ActivateBackendRequest { service, endpoint })).await
        }
    };
    in_form(&Backend::try_from(answer?)?, format, |backend| format!("{}\n", backend.name))
}
