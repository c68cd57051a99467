//! Many services: whether one of ten thousand costs what one of ten does, and how long they all
//! take to load.
//!
//! Every service has the same ten endpoints as its backends: real containers, each a backend of
//! them all. The machine is not as fast in one minute as in another, so each number of services is
//! compared with an endpoint that is asked directly, in turn.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use mesh_harness::{Container, Lab, Netns, poll_until, traffic::UdpClient};
use serde::Serialize;

use super::{
    Options, kube_proxy,
    manager::Manager,
    path::{Path, Results},
    ports, routed_vxlan, site,
};
use crate::{
    report::{Table, plain, with_ratio},
    stats::Samples,
};

const NETWORK: &str = "bench";
/// Room for the virtual addresses: a sixteenth of it.
const SUBNET: &str = "10.96.0.0/13";
const BACKENDS: usize = 10;
/// Services that are asked to see whether all are there.
const PROBED: usize = 64;
/// How long a host may take to load everything.
const LOAD_LIMIT: Duration = Duration::from_mins(2);
/// Time for one answer while a service may not be there yet.
const PROBE: Duration = Duration::from_millis(100);
/// Changes whose time is measured.
const CHANGES: usize = 20;
/// Services that one container asks before its kernel forgets them as neighbours, of which it has
/// room for a thousand (`net.ipv4.neigh.default.gc_thresh3`, which counts all namespaces together).
const NEIGHBOURS: usize = 256;

/// What was measured with one number of services.
#[derive(Debug, Default, Serialize)]
pub(super) struct Level {
    services: usize,
    mesh: Calls,
    /// Through the manager, one call for each service and each backend, some at once.
    create_s: f64,
    /// From the start of an agent on a host without any state in its kernel until all virtual
    /// addresses answer there.
    load_s: Samples,
    /// One backend drained or activated: from the call until the kernel of every node has it.
    change_ms: Samples,
    /// Resident, in MB (10^6 bytes).
    manager_memory_mb: f64,
    worker_memory_mb: f64,
    nftables: Calls,
    nftables_load_s: Samples,
    nftables_change_ms: Samples,
}

/// What was measured of calls to one of the services, and to an endpoint that is no backend.
#[derive(Debug, Default, Serialize)]
struct Calls {
    vip: Results,
    direct: Results,
}

impl Calls {
    fn measure(options: &Options, lab: &Lab, mut paths: [Path; 2]) -> anyhow::Result<Self> {
        for round in 1..=options.turns.rounds {
            eprintln!("round {round} of {}", options.turns.rounds);
            for path in &mut paths {
                path.measure(lab, options.turns.seconds)?;
            }
        }
        let [vip, direct] = paths.map(|path| path.results);
        Ok(Self { vip, direct })
    }
}

/// Measures every number of services in ascending order, and prints a table.
pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Level>> {
    let mut numbers = options.services.clone();
    numbers.sort_unstable();
    let mut levels: Vec<Level> =
        numbers.into_iter().map(|services| Level { services, ..Level::default() }).collect();
    if options.turns.wants("Mesh") {
        mesh(options, &mut levels)?;
    }
    if options.turns.wants("nftables") {
        nftables(options, &mut levels)?;
    }
    print(&levels, options);
    Ok(levels)
}

fn mesh(options: &Options, levels: &mut [Level]) -> anyhow::Result<()> {
    eprintln!("preparing Mesh's hosts");
    let lab = Lab::builder().hosts(3).underlay_mtu(site::UNDERLAY_MTU).start()?;
    lab.host(1).meshctl(["network", "create", "-d", "overlay", "--subnet", SUBNET, NETWORK])?.ok()?;
    let containers = (0..=BACKENDS)
        .map(|number| lab.container(2, &format!("b{number}"), ["--network", NETWORK]))
        .collect::<Result<Vec<_>, _>>()?;
    let (other, backends) = containers.split_last().context("containers")?;
    let names: Vec<String> = backends.iter().map(|container| container.name().to_owned()).collect();
    let receivers = site::namespaces(&containers);
    let _servers = site::serve(&lab, &receivers)?;
    let client = lab.container(1, "caller", ["--network", NETWORK])?;
    let mut late = lab.container(3, "late", ["--network", NETWORK])?;
    let mut starts = 0;
    let manager = Manager::connect(&lab.host(1).socket())?;
    let mut vips = Vec::new();
    for level in levels {
        eprintln!("creating services up to {}", level.services);
        let begin = Instant::now();
        vips.extend(manager.create(NETWORK, vips.len()..level.services, &names)?);
        level.create_s = begin.elapsed().as_secs_f64();
        let first = *vips.first().context("at least one service")?;
        let paths = [("VIP, Mesh", first), ("direct, Mesh", other.ipv4()?)]
            .map(|(name, address)| Path::new(name, client.netns(), address, &receivers));
        level.mesh = Calls::measure(options, &lab, paths)?;
        for number in 0..CHANGES {
            let service = format!("s{}", number * level.services / CHANGES);
            level.change_ms.push(manager.drain_and_activate(&service, &names[0])?);
        }
        for _ in 0..options.turns.rounds {
            starts += 1;
            let (took, container) = load_time(&lab, &vips, starts)?;
            level.load_s.push(took);
            late = container;
        }
        all_answer(late.netns(), &vips)?;
        level.manager_memory_mb = crate::attach::resident(&lab.host(1))?;
        level.worker_memory_mb = crate::attach::resident(&lab.host(2))?;
    }
    Ok(())
}

/// Restarts host 3, so that its kernel has nothing, and measures until services all over the list
/// answer there, in a container that is called by the number of the start: what ended with the one
/// before may still have its name.
fn load_time(lab: &Lab, vips: &[Ipv4Addr], start: usize) -> anyhow::Result<(f64, Container)> {
    let host = lab.host(3);
    host.power_off()?;
    host.power_on()?;
    let begin = Instant::now();
    host.start_meshd()?;
    let container = lab.container(3, &format!("late{start}"), ["--network", NETWORK])?;
    let mut missing: Vec<Ipv4Addr> = (0..PROBED).map(|number| vips[number * vips.len() / PROBED]).collect();
    missing.dedup();
    let socket = UdpClient::bind(container.netns(), SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0))?;
    poll_until(LOAD_LIMIT, || {
        while let Some(vip) = missing.last() {
            socket.ask(SocketAddr::new((*vip).into(), ports::WEB), PROBE).ok()??;
            missing.pop();
        }
        Some(())
    })
    .with_context(|| format!("{} of {PROBED} services do not answer on h3", missing.len()))?;
    Ok((begin.elapsed().as_secs_f64(), container))
}

/// Every service answers in `netns`.
fn all_answer(netns: &Netns, vips: &[Ipv4Addr]) -> anyhow::Result<()> {
    let socket = UdpClient::bind(netns, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0))?;
    for some in vips.chunks(NEIGHBOURS) {
        netns.run(["ip", "neigh", "flush", "all"])?.ok()?;
        for vip in some {
            let target = SocketAddr::new((*vip).into(), ports::WEB);
            // Once more, for a datagram may be lost on a busy machine.
            let answered =
                (0..3).any(|_| socket.ask(target, PROBE * 10).is_ok_and(|answer| answer.is_some()));
            ensure!(answered, "the service at {vip} does not answer");
        }
    }
    Ok(())
}

fn nftables(options: &Options, levels: &mut [Level]) -> anyhow::Result<()> {
    eprintln!("preparing the peers' hosts");
    let lab = Lab::builder().hosts(2).underlay_mtu(site::UNDERLAY_MTU).without_meshd().start()?;
    let (client, containers) = routed_vxlan::join(&lab, site::UNDERLAY_MTU, BACKENDS + 1)?;
    let receivers = site::namespaces(&containers);
    let _servers = site::serve(&lab, &receivers)?;
    let backends: Vec<Ipv4Addr> = (0..BACKENDS).map(routed_vxlan::backend).collect();
    for level in levels {
        let services: Vec<kube_proxy::Service> = (0..level.services)
            .map(|number| kube_proxy::Service {
                // The first is what is measured; the others have one port, as most services have.
                ports: if number == 0 { &ports::ALL } else { &ports::ALL[2..] },
                vip: virtual_address(number),
                backends: backends.clone(),
                published: false,
            })
            .collect();
        let host = lab.host(1);
        for round in 1..=options.turns.rounds {
            eprintln!("{} services by nftables, loading {round} of {}", level.services, options.turns.rounds);
            host.run(["nft", "flush", "ruleset"])?.ok()?;
            let begin = Instant::now();
            kube_proxy::load(&host, &services)?;
            level.nftables_load_s.push(begin.elapsed().as_secs_f64());
            let last = level.services - 1;
            let begin = Instant::now();
            kube_proxy::remove_last_backend(&host, last, &services[last])?;
            level.nftables_change_ms.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let addresses = [
            ("VIP, nftables", virtual_address(0)),
            ("direct, kernel VXLAN", routed_vxlan::backend(BACKENDS)),
        ];
        let paths = addresses.map(|(name, address)| Path::new(name, client.netns(), address, &receivers));
        level.nftables = Calls::measure(options, &lab, paths)?;
    }
    Ok(())
}

fn virtual_address(number: usize) -> Ipv4Addr {
    let offset = u32::try_from(number).unwrap_or(u32::MAX);
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 1).to_bits() + offset)
}

/// Which of a level's results.
type Peer = fn(&Level) -> &Calls;

fn print(levels: &[Level], options: &Options) {
    println!(
        "\nMany services, {BACKENDS} backends each: medians of {} rounds of {} s; in parentheses the ratio to an endpoint \
         asked directly, in turn\n",
        options.turns.rounds, options.turns.seconds
    );
    let mut table =
        Table::new(["", "TCP ping-pong us", "connects/s", "UDP 64 B kpps sent", "download Gbit/s"]);
    let peers: [(&str, Peer); 2] = [("Mesh", |level| &level.mesh), ("nftables", |level| &level.nftables)];
    for (name, of) in peers {
        for level in levels.iter().filter(|level| of(level).vip.tcp_latency_us.median().is_some()) {
            let cell = |pick: fn(&Results) -> &Samples, decimals| {
                let [vip, direct] = [&of(level).vip, &of(level).direct].map(|results| pick(results).median());
                with_ratio(vip, direct, decimals)
            };
            table.row([
                format!("{name}, {} services", level.services),
                cell(|results| &results.tcp_latency_us, 2),
                cell(|results| &results.connects_per_s, 0),
                cell(|results| &results.udp_sent_kpps, 1),
                cell(|results| &results.download_gbit_s, 2),
            ]);
        }
    }
    print!("{}", table.render());
    println!();
    let mut table = Table::new([
        "services",
        "created s",
        "agent start to all s",
        "one change everywhere ms",
        "manager MB",
        "worker MB",
        "nft load s",
        "nft change ms",
    ]);
    for level in levels {
        table.row([
            level.services.to_string(),
            plain(Some(level.create_s), 2),
            plain(level.load_s.median(), 2),
            plain(level.change_ms.median(), 1),
            plain(Some(level.manager_memory_mb), 1),
            plain(Some(level.worker_memory_mb), 1),
            plain(level.nftables_load_s.median(), 2),
            plain(level.nftables_change_ms.median(), 1),
        ]);
    }
    print!("{}", table.render());
}
