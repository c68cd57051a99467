//! Plans for an in-memory cluster with the managers' rules.

use mesh_model::{EndpointMode, HealthKind, Protocol, PublishMode, Vni};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::apply::{Port, Subnet};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn network(text: &str) -> Network {
    Network::named(name(text))
}

fn service(network: &str, text: &str, ports: &[Port]) -> Service {
    Service {
        name: name(text),
        network: name(network),
        endpoint_mode: EndpointMode::Vip,
        vip: None,
        vip6: None,
        ports: ports.to_vec(),
        affinity: Affinity::None,
        when_all_unhealthy: mesh_model::WhenAllUnhealthy::All,
        health: None,
        aliases: Vec::new(),
    }
}

fn port(first: u16, last: u16, target: u16) -> Port {
    let (protocol, mode) = (Protocol::Tcp, PublishMode::Ingress);
    Port { published: first..=last, target, protocol, mode, host_ip: None }
}

fn declared(networks: &[Network], services: &[Service]) -> Declared {
    Declared {
        project: "shop".into(),
        networks: networks.to_vec(),
        services: services.to_vec(),
        ..Declared::default()
    }
}

/// The current state, which steps change as the managers would.
#[derive(Debug, Clone, Default)]
struct Cluster {
    listed: Listed,
    made: u32,
}

impl Cluster {
    fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(&mut self) -> T {
        self.made += 1;
        format!("{:024x}", self.made).parse().unwrap()
    }

    /// Runs every step; returns the first violated rule.
    fn run(&mut self, plan: &Plan) -> Result<(), String> {
        plan.steps.iter().try_for_each(|step| self.step(&plan.project, step))
    }

    fn step(&mut self, project: &str, step: &Step) -> Result<(), String> {
        let labels = BTreeMap::from([(LABEL.to_owned(), project.to_owned())]);
        match step {
            Step::RemoveService { id, .. } => self.listed.services.retain(|service| service.id != *id),
            Step::RemoveNetwork { id, name } => {
                if self.listed.services.iter().any(|service| service.network == *id) {
                    return Err(format!("network {name} is in use"));
                }
                self.listed.networks.retain(|network| network.id != *id);
            }
            Step::CreateNetwork(declared) => {
                if self.listed.networks.iter().any(|network| network.name == declared.name) {
                    return Err(format!("network {} exists", declared.name));
                }
                let made = self.made(declared, labels);
                self.listed.networks.push(made);
            }
            Step::CreateService { service, ports } => {
                let network = self.listed.networks.iter().find(|network| network.name == service.network);
                let network = network.ok_or_else(|| format!("no network {}", service.network))?.id.clone();
                let ports = self.open(ports)?;
                let id = self.id();
                self.listed.services.push(mesh_model::Service {
                    id,
                    name: service.name.clone(),
                    network,
                    endpoint_mode: service.endpoint_mode,
                    vip: Some(service.vip.unwrap_or([10, 64, 15, 0].into())),
                    vip6: service.vip6,
                    ports,
                    affinity: service.affinity,
                    when_all_unhealthy: service.when_all_unhealthy,
                    health: service.health.clone(),
                    aliases: service.aliases.clone(),
                    labels,
                    created_at: jiff_epoch(),
                });
            }
            Step::UpdateNetwork { id, policy, .. } => {
                let network = self.listed.networks.iter_mut().find(|network| network.id == *id);
                network.ok_or_else(|| "no such network".to_owned())?.host_policy = *policy;
            }
            Step::UpdateService(update) => self.update(update)?,
        }
        Ok(())
    }

    fn made(&mut self, declared: &Network, mut labels: BTreeMap<String, String>) -> mesh_model::Network {
        labels.extend(declared.labels.clone());
        let subnet = |subnet: &Subnet| mesh_model::Subnet {
            subnet: subnet.subnet,
            gateway: subnet.gateway.unwrap_or(subnet.subnet.nth(1).unwrap()),
            ip_range: subnet.ip_range,
            aux: subnet.aux.clone(),
        };
        let mut subnets: Vec<_> = declared.subnets.iter().map(subnet).collect();
        for (is_wanted, is_v4, prefix) in
            [(true, true, "10.64.0.0/20"), (declared.ipv6, false, "fd00:1:2:3::/64")]
        {
            if is_wanted && !subnets.iter().any(|subnet| subnet.subnet.first().is_ipv4() == is_v4) {
                let chosen = mesh_model::Prefix::parse_strict(prefix).unwrap();
                let gateway = chosen.nth(1).unwrap();
                subnets.push(mesh_model::Subnet {
                    subnet: chosen,
                    gateway,
                    ip_range: None,
                    aux: BTreeMap::new(),
                });
            }
        }
        let id = self.id();
        mesh_model::Network {
            id,
            name: declared.name.clone(),
            vni: declared.vni.unwrap_or(Vni::FIRST_AUTOMATIC),
            subnets,
            mtu: declared.mtu,
            encrypted: declared.encrypted,
            internal: declared.internal,
            attachable: declared.attachable,
            host_policy: declared.host_policy,
            removing: false,
            labels,
            options: BTreeMap::new(),
            created_at: jiff_epoch(),
        }
    }

    fn update(&mut self, update: &Update) -> Result<(), String> {
        let found = |listed: &mut Listed| {
            listed.services.iter_mut().position(|service| service.id == update.id).ok_or("no service")
        };
        let index = found(&mut self.listed)?;
        let service = &mut self.listed.services[index];
        for gone in &update.remove_ports {
            let at = service.ports.iter().position(|port| port == gone).ok_or("no port to remove")?;
            service.ports.remove(at);
        }
        if let Some(choice) = update.when_all_unhealthy {
            service.when_all_unhealthy = choice;
        }
        if let Some(affinity) = update.affinity {
            service.affinity = affinity;
        }
        match &update.health {
            None => {}
            Some(NewHealth::Unchecked) => service.health = None,
            Some(NewHealth::Check(check)) => service.health = Some(check.clone()),
        }
        if let Some(aliases) = &update.aliases {
            service.aliases.clone_from(aliases);
        }
        let ports = self.open(&update.add_ports)?;
        self.listed.services[index].ports.extend(ports);
        Ok(())
    }

    fn open(&self, wanted: &[PublishedPort]) -> Result<Vec<PublishedPort>, String> {
        let mut taken: Vec<PublishedPort> =
            self.listed.services.iter().flat_map(|service| service.ports.clone()).collect();
        let mut opened = Vec::new();
        for port in wanted {
            let mut choices =
                if port.published == 0 { PublishedPort::AUTOMATIC } else { port.published..=port.published };
            let free = choices.find_map(|published| {
                let port = PublishedPort { published, ..*port };
                (!taken.iter().any(|taken| taken.conflicts_with(&port))).then_some(port)
            });
            let free = free.ok_or_else(|| format!("port {port} is taken"))?;
            taken.push(free);
            opened.push(free);
        }
        Ok(opened)
    }

    /// Applies a file, which must cause no conflict.
    fn apply(&mut self, declared: &Declared, prune: bool) -> Plan {
        let plan = plan(declared, &self.listed, prune).unwrap();
        self.run(&plan).unwrap();
        plan
    }
}

fn jiff_epoch<T: std::str::FromStr<Err: std::fmt::Debug>>() -> T {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn shown(plan: &Plan) -> Vec<String> {
    plan.steps
        .iter()
        .map(|step| {
            let change = step.change();
            format!("{} {}", change.action, change.object())
        })
        .collect()
}

#[test]
fn ports_that_two_services_swap_are_released_before_they_are_taken() {
    let file = |first: u16, second: u16| {
        let services = [
            service("app", "a", &[port(first, first, 80)]),
            service("app", "b", &[port(second, second, 80)]),
        ];
        declared(&[network("app")], &services)
    };
    let mut cluster = Cluster::default();
    cluster.apply(&file(8080, 8081), false);
    let plan = cluster.apply(&file(8081, 8080), false);
    assert_eq!(
        shown(&plan),
        [
            "update service app/a: -port 8080:80/tcp",
            "update service app/b: -port 8081:80/tcp",
            "update service app/a: +port 8081:80/tcp",
            "update service app/b: +port 8080:80/tcp",
        ]
    );
}

#[test]
fn a_new_target_of_a_published_port_is_one_update() {
    let file = |target| declared(&[network("app")], &[service("app", "a", &[port(8080, 8080, target)])]);
    let mut cluster = Cluster::default();
    cluster.apply(&file(80), false);
    let plan = cluster.apply(&file(81), false);
    assert_eq!(shown(&plan), ["update service app/a: -port 8080:80/tcp, +port 8080:81/tcp"]);
}

#[test]
fn a_port_of_a_service_that_keeps_it_is_a_conflict() {
    let mut cluster = Cluster::default();
    let web = service("app", "web", &[port(8080, 8080, 80)]);
    cluster.apply(&declared(&[network("app")], &[web]), false);
    let other = Declared {
        project: "other".into(),
        ..declared(&[network("app")], &[service("app", "x", &[port(8080, 8080, 90)])])
    };
    let conflicts = plan(&other, &cluster.listed, true).unwrap_err();
    assert_eq!(
        conflicts[0].to_string(),
        "service app/x, published port 8080:90/tcp, service app/web has 8080:80/tcp"
    );
}

#[test]
fn foreign_objects_are_unchanged_if_they_match_and_a_conflict_otherwise() {
    let mut cluster = Cluster::default();
    let by_hand = declared(&[network("app")], &[service("app", "web", &[])]);
    cluster.apply(&Declared { project: "other".into(), ..by_hand.clone() }, false);
    assert_eq!(cluster.apply(&by_hand, true).steps, []);

    let internal = Network { internal: true, ..network("app") };
    let sticky = Service { affinity: Affinity::ClientIp, ..service("app", "web", &[]) };
    let conflicts = plan(&declared(&[internal], &[sticky]), &cluster.listed, true).unwrap_err();
    let said: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "network app, exists, is not of project shop and differs from the file: internal is false, should be true",
            "service app/web, exists, is not of project shop and differs from the file: affinity client-ip",
        ]
    );
}

#[test]
fn every_setting_of_a_network_that_changed_is_named() {
    let subnet = Subnet {
        subnet: mesh_model::Prefix::parse_strict("10.80.0.0/16").unwrap(),
        gateway: Some("10.80.0.9".parse().unwrap()),
        ip_range: None,
        aux: BTreeMap::new(),
    };
    let before = Network { subnets: vec![subnet.clone()], ..network("app") };
    let mut cluster = Cluster::default();
    cluster.apply(&declared(std::slice::from_ref(&before), &[]), false);
    for (after, setting) in [
        (Network { internal: true, ..before.clone() }, "internal"),
        (Network { encrypted: true, ..before.clone() }, "encrypted"),
        (Network { attachable: false, ..before.clone() }, "attachable"),
        (
            Network { mtu: Some(1300.try_into().unwrap()), ..before.clone() },
            "mtu is None, should be Some(1300)",
        ),
        (Network { vni: Some(77.try_into().unwrap()), ..before.clone() }, "vni is 4096, should be 77"),
        (Network { labels: [("a".to_owned(), "b".to_owned())].into(), ..before.clone() }, "labels"),
        (Network { ipv6: true, ..before.clone() }, "it has 0 IPv6 subnets, should have 1"),
        (
            Network {
                subnets: vec![Subnet { gateway: Some("10.80.0.8".parse().unwrap()), ..subnet }],
                ..before.clone()
            },
            "gateway",
        ),
    ] {
        let conflicts = plan(&declared(&[after], &[]), &cluster.listed, false).unwrap_err();
        assert!(conflicts[0].to_string().contains(setting), "{setting}: {}", conflicts[0]);
    }
    let anything = Network { subnets: Vec::new(), ..before };
    assert_eq!(cluster.apply(&declared(&[anything], &[]), false).steps, [], "any subnet will do");
}

#[test]
fn a_change_of_a_services_fixed_property_is_a_conflict() {
    let mut cluster = Cluster::default();
    cluster.apply(&declared(&[network("app")], &[service("app", "web", &[])]), false);
    for after in [
        Service { endpoint_mode: EndpointMode::Dnsrr, ..service("app", "web", &[]) },
        Service { vip: Some([10, 64, 15, 9].into()), ..service("app", "web", &[]) },
    ] {
        let conflicts = plan(&declared(&[network("app")], &[after]), &cluster.listed, false).unwrap_err();
        assert!(matches!(conflicts[..], [Conflict::CannotChange { .. }]), "{conflicts:?}");
    }
}

fn any_port() -> impl Strategy<Value = Port> {
    let fixed = (8000..8006u16, 80..82u16).prop_map(|(published, target)| port(published, published, target));
    let range = (8000..8004u16, 0..4u16, 80..82u16)
        .prop_map(|(first, more, target)| port(first, first + more, target));
    let automatic =
        (80..82u16).prop_map(|target| Port { published: PublishedPort::AUTOMATIC, ..port(1, 1, target) });
    let any = prop_oneof![3 => fixed, 1 => range, 1 => automatic];
    (any, select(vec![Protocol::Tcp, Protocol::Udp])).prop_map(|(port, protocol)| Port { protocol, ..port })
}

fn any_service(network: &'static str, text: &'static str) -> impl Strategy<Value = Service> {
    let health = prop::option::of((1..3u16).prop_map(|port| {
        let kind = HealthKind::Tcp { port };
        HealthCheck::new(kind, HealthCheck::DEFAULT_INTERVAL, HealthCheck::DEFAULT_RETRIES).unwrap()
    }));
    let ports = prop::collection::vec(any_port(), 0..4);
    let affinity = select(vec![Affinity::None, Affinity::ClientIp]);
    let aliases = select(vec![Vec::new(), vec![name("www")], vec![name("www"), name("shop")]]);
    (ports, affinity, health, aliases).prop_map(move |(mut ports, affinity, health, aliases)| {
        // The parser ensures that each port occurs once.
        ports.dedup();
        Service { affinity, health, aliases, ..service(network, text, &ports) }
    })
}

fn any_file() -> impl Strategy<Value = Declared> {
    let services = [("app", "web"), ("app", "db"), ("back", "db"), ("back", "cache")];
    let services = services.map(|(network, name)| prop::option::of(any_service(network, name)));
    let spare = prop::option::of(Just(network("spare")));
    (services, spare).prop_map(|(services, spare)| {
        let services: Vec<_> = services.into_iter().flatten().collect();
        let used: BTreeSet<_> = services.iter().map(|service| service.network.clone()).collect();
        let networks: Vec<_> = used.into_iter().map(Network::named).chain(spare).collect();
        declared(&networks, &services)
    })
}

proptest! {
    #[test]
    fn any_sequence_of_files_respects_the_managers_rules_and_converges(
        files in prop::collection::vec((any_file(), any::<bool>()), 1..5),
        foreign in prop::collection::vec(any_port(), 0..3),
    ) {
        let mut cluster = Cluster::default();
        let theirs = Declared {
            project: "theirs".into(),
            ..declared(&[network("theirs")], &[service("theirs", "web", &foreign)])
        };
        if let Ok(plan) = plan(&theirs, &cluster.listed, false) {
            // The parser refuses a file that declares a port twice; here it violates a manager's
            // rule.
            let _ = cluster.run(&plan);
        }
        let foreign = cluster.listed.clone();
        for (file, prune) in files {
            let Ok(planned) = plan(&file, &cluster.listed, prune) else { continue };
            if !prune {
                let removes = planned.steps.iter().any(|step| step.change().action == "remove");
                prop_assert!(!removes, "{:?}", shown(&planned));
            }
            prop_assert_eq!(cluster.run(&planned), Ok(()), "{:?}", shown(&planned));
            let again = plan(&file, &cluster.listed, prune).expect("what was applied is no conflict");
            prop_assert_eq!(again.steps, Vec::<Step>::new());
            for network in &foreign.networks {
                prop_assert!(cluster.listed.networks.contains(network));
            }
            for service in &foreign.services {
                prop_assert!(cluster.listed.services.contains(service));
            }
            if prune {
                let ours = cluster.listed.services.len() - foreign.services.len();
                prop_assert_eq!(ours, file.services.len());
            }
        }
    }
}
