//! Hosts, containers and servers of the variants.

use std::net::Ipv4Addr;

use anyhow::Context;
use mesh_harness::{Container, Lab, LabBuilder, Netns, Process, traffic::ServerProcess};
use serde_json::Value;

use super::{Options, haproxy, kube_proxy, path::Path, ports, routed_vxlan};
use crate::instruments::listen;

pub(super) const UNDERLAY_MTU: u32 = 1500;
const NETWORK: &str = "bench";
const SERVICE: &str = "web";
/// What the peers' services are called at, outside their containers' and hosts' subnets.
const NFT_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const HAPROXY_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);

const MESH_INSIDE: [&str; 2] = ["direct, Mesh", "VIP, Mesh"];
const PEERS_INSIDE: [&str; 3] = ["direct, kernel VXLAN", "VIP, nftables", "VIP, HAProxy"];
const PEERS_OUTSIDE: [&str; 3] = ["underlay, no service", "nftables DNAT + masquerade", "HAProxy"];
const MESH_OUTSIDE: &str = "Mesh";

/// Two hosts with everything on them, as long as this value lives.
pub(super) struct Site {
    // Before the lab: processes end before their namespaces go.
    _processes: Vec<Process>,
    _servers: Vec<ServerProcess>,
    pub(super) paths: Vec<Path>,
    pub(super) lab: Lab,
}

/// Where a service is called from, and what its peers are called at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    Container,
    Outside,
}

impl Caller {
    /// Containers on the second host that serve and are no backends: who is called directly. Were
    /// it a backend, a connection through the service would meet what a direct one between the same
    /// ports left there, and wait for it.
    fn others(self) -> usize {
        usize::from(self == Self::Container)
    }
}

/// The variants inside a network: hosts joined by a cable.
pub(super) fn inside(options: &Options) -> anyhow::Result<Vec<Site>> {
    sites(options, Caller::Container, || Lab::builder().underlay_mtu(UNDERLAY_MTU).cabled())
}

/// The variants with a client outside: hosts on a bridge.
pub(super) fn published(options: &Options) -> anyhow::Result<Vec<Site>> {
    sites(options, Caller::Outside, || Lab::builder().hosts(2).underlay_mtu(UNDERLAY_MTU))
}

fn sites(options: &Options, caller: Caller, builder: fn() -> LabBuilder) -> anyhow::Result<Vec<Site>> {
    type Make = fn(LabBuilder, Caller, usize) -> anyhow::Result<Site>;
    let makers: [(&[&str], Make); 2] = match caller {
        // What the others are compared with comes first.
        Caller::Container => [(&MESH_INSIDE, mesh), (&PEERS_INSIDE, kernel)],
        Caller::Outside => [(&PEERS_OUTSIDE, kernel), (&[MESH_OUTSIDE], mesh)],
    };
    let mut sites = Vec::new();
    for (names, make) in makers {
        if !names.iter().any(|name| options.turns.wants(name)) {
            continue;
        }
        let mut site = make(builder(), caller, options.backends)?;
        site.paths.retain(|path| options.turns.wants(path.name));
        sites.push(site);
    }
    Ok(sites)
}

/// The peers' two hosts.
fn kernel(builder: LabBuilder, caller: Caller, backends: usize) -> anyhow::Result<Site> {
    eprintln!("preparing the peers' hosts");
    let lab = builder.without_meshd().start()?;
    let (client, containers) = routed_vxlan::join(&lab, UNDERLAY_MTU, backends + caller.others())?;
    let addresses: Vec<Ipv4Addr> = (0..backends).map(routed_vxlan::backend).collect();
    let host = lab.host(1);
    let service = kube_proxy::Service {
        vip: NFT_VIP,
        backends: addresses.clone(),
        ports: &ports::ALL,
        published: caller == Caller::Outside,
    };
    kube_proxy::load(&host, &[service])?;

    let receivers = namespaces(&containers);
    let (mut processes, mut servers) = serve(&lab, &receivers)?;
    let paths = match caller {
        Caller::Container => {
            host.run(["ip", "addr", "add", &HAPROXY_VIP.to_string(), "dev", "lo"])?.ok()?;
            processes.push(haproxy::start(&host, HAPROXY_VIP, &addresses)?);
            let client = client.netns();
            vec![
                Path::new(PEERS_INSIDE[0], client, routed_vxlan::backend(backends), &receivers),
                Path::new(PEERS_INSIDE[1], client, NFT_VIP, &receivers),
                Path::new(PEERS_INSIDE[2], client, HAPROXY_VIP, &receivers).by_tcp_proxy(0),
            ]
        }
        Caller::Outside => {
            processes.push(haproxy::start(&host, Ipv4Addr::UNSPECIFIED, &addresses)?);
            let (on_host, more) = serve(&lab, &[lab.host(2).netns().clone()])?;
            processes.extend(on_host);
            servers.extend(more);
            let (client, own) = (lab.client(), [lab.host(2).netns().clone()]);
            let underlay = Path::new(PEERS_OUTSIDE[0], &client, lab.host(2).address(), &own);
            vec![
                underlay,
                Path::new(PEERS_OUTSIDE[1], &client, host.address(), &receivers),
                Path::new(PEERS_OUTSIDE[2], &client, host.address(), &receivers).by_tcp_proxy(ports::HAPROXY),
            ]
        }
    };
    Ok(Site { _processes: processes, _servers: servers, paths, lab })
}

/// Mesh's two hosts.
fn mesh(builder: LabBuilder, caller: Caller, backends: usize) -> anyhow::Result<Site> {
    eprintln!("preparing Mesh's hosts");
    let lab = builder.start()?;
    let manager = lab.host(1);
    manager.meshctl(["network", "create", "-d", "overlay", NETWORK])?.ok()?;
    let mut create = vec!["service", "create", "--name", SERVICE, "--network", NETWORK];
    let specs = ports::ALL.map(|(protocol, port)| format!("{port}:{port}/{protocol}"));
    if caller == Caller::Outside {
        create.extend(specs.iter().flat_map(|spec| ["-p", spec]));
    }
    manager.meshctl(create)?.ok()?;
    let as_backend = ["--network", NETWORK, "--service", SERVICE];
    let containers = (0..backends + caller.others())
        .map(|number| {
            let options = if number < backends { &as_backend[..] } else { &as_backend[..2] };
            lab.container(2, &format!("mb{number}"), options.iter().copied())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let receivers = namespaces(&containers);
    let (processes, servers) = serve(&lab, &receivers)?;
    let paths = match caller {
        Caller::Container => {
            let client = lab.container(1, "mc", ["--network", NETWORK])?;
            let service: Value =
                manager.meshctl(["service", "inspect", SERVICE, "--format", "json"])?.json()?;
            let vip = service["vip"].as_str().and_then(|vip| vip.parse().ok());
            let vip: Ipv4Addr = vip.with_context(|| format!("the service has no VIP: {service}"))?;
            vec![
                Path::new(MESH_INSIDE[0], client.netns(), containers[backends].ipv4()?, &receivers),
                Path::new(MESH_INSIDE[1], client.netns(), vip, &receivers),
            ]
        }
        Caller::Outside => {
            vec![Path::new(MESH_OUTSIDE, &lab.client(), manager.address(), &receivers)]
        }
    };
    Ok(Site { _processes: processes, _servers: servers, paths, lab })
}

pub(super) fn namespaces(containers: &[Container]) -> Vec<Netns> {
    containers.iter().map(|container| container.netns().clone()).collect()
}

/// The three servers in each of the namespaces. What is measured on one CPU has its servers there
/// too.
pub(super) fn serve(lab: &Lab, namespaces: &[Netns]) -> anyhow::Result<(Vec<Process>, Vec<ServerProcess>)> {
    let directory = lab.path();
    let log = directory.join("bench.log");
    let (mut processes, mut servers) = (Vec::new(), Vec::new());
    for netns in namespaces {
        let (tcp, udp) = (ports::PING_PONG.to_string(), ports::DATAGRAMS.to_string());
        let argv = ["taskset", "-c", "0", "sockperf", "server", "--tcp", "-p", &tcp];
        processes.push(listen(netns, &argv, &tcp, "tcp", &log)?);
        processes.push(listen(netns, &["sockperf", "server", "-p", &udp], &udp, "udp", &log)?);
        servers.push(ServerProcess::start_on_cpu(netns, 0, netns.name(), ports::WEB, &directory)?);
    }
    Ok((processes, servers))
}
