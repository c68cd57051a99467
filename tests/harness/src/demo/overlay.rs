//! Cluster, network, containers, and what is seen of them on the wire.

use std::{net::IpAddr, time::Instant};

use serde::Deserialize;

use super::{
    Member, NETWORK, PREFIX, SOON, TARGET,
    show::{Show, line},
};
use crate::{
    Capture, Error, Lab, Result,
    capture::Frame,
    traffic::{Ping, ServerProcess, tcp_transfer},
};

/// Size of the transfer, bytes.
const TRANSFER: u64 = 256 << 20;
/// What a ping inside the network carries, and must not be seen.
const CANARY: &[u8] = b"mesh-demo-canary";
/// What a ping between the hosts carries, and must be seen.
const IN_CLEAR: &[u8] = b"mesh-demo-clear!";
/// Port that every node's WireGuard listens on.
const WIREGUARD: u16 = 51_820;
/// VNIs of the datapaths' liveness probes.
const PROBES: [u32; 2] = [0x00FF_FFFE, 0x00FF_FFFF];

#[derive(Deserialize)]
struct Network {
    vni: u32,
    mtu: u32,
    subnets: Vec<Subnet>,
}

#[derive(Deserialize)]
struct Subnet {
    subnet: String,
}

pub(super) fn make_cluster(show: &Show, lab: &Lab) -> Result<()> {
    show.step("A cluster: init on one host, join on the others with a token");
    let manager = lab.host(1);
    let address = manager.address().to_string();
    show.command(manager.name(), &format!("meshctl cluster init --advertise-addr {address}"));
    manager.meshctl(["cluster", "init", "--advertise-addr", &address])?.ok()?;
    let token = manager.join_token("worker")?;
    for host in lab.hosts().skip(1) {
        let own = host.address();
        show.command(
            host.name(),
            &format!("meshctl cluster join --token $TOKEN --advertise-addr {own} {address}:7377"),
        );
        host.join(&token, &format!("{address}:7377"))?.ok()?;
    }
    lab.wait_ready(SOON)?;
    show.run(&manager, "meshctl node ls")
}

pub(super) fn make_network(show: &Show, lab: &Lab) -> Result<()> {
    show.step("An encrypted network");
    let manager = lab.host(1);
    show.run(&manager, &format!("meshctl network create -d overlay --encrypted {NETWORK}"))?;
    let network: Network = manager.meshctl(["network", "inspect", NETWORK, "--format", "json"])?.json()?;
    let subnets: Vec<&str> = network.subnets.iter().map(|subnet| subnet.subnet.as_str()).collect();
    show.good(&format!("VNI {}, subnet {}, MTU {}", network.vni, subnets.join(", "), network.mtu));
    Ok(())
}

pub(super) fn attach(show: &Show, lab: &Lab) -> Result<Vec<Member>> {
    show.step("A container on every host, with a web server in it");
    let mut members = Vec::new();
    for (host, name) in lab.hosts().zip(["web1", "web2", "web3"]) {
        show.command(
            host.name(),
            &format!("meshctl endpoint attach --network {NETWORK} --netns {PREFIX}-{name} --name {name}"),
        );
        let begin = Instant::now();
        let (container, output) = host.container(name, ["--network", NETWORK])?;
        output.ok()?;
        let took = begin.elapsed();
        let address = container.ipv4()?;
        show.good(&format!("{name} on {} is {address}, attached in {} ms", host.name(), took.as_millis()));
        let server = ServerProcess::start(container.netns(), name, TARGET, &lab.path())?;
        members.push(Member { container, address, server });
    }
    Ok(members)
}

pub(super) fn ping_all(show: &Show, members: &[Member]) -> Result<()> {
    show.step("Everyone reaches everyone, the first packet included");
    for from in members {
        for to in members.iter().filter(|to| to.address != from.address) {
            let report = Ping::new(to.address.into()).run(from.container.netns())?.all_answered()?;
            let round_trip =
                report.output.lines().find_map(|line| line.strip_prefix("rtt ")).unwrap_or_default();
            let (from, to) = (from.container.name(), to.container.name());
            show.good(&format!(
                "{from} -> {to}: {} of {} answered, {round_trip}",
                report.received, report.sent
            ));
        }
    }
    Ok(())
}

/// `wire` has seen everything since before the network was made.
pub(super) fn show_the_wire(show: &Show, lab: &Lab, members: &[Member], wire: Capture) -> Result<()> {
    show.step("On the wire it is WireGuard, and was from the first packet on");
    let (from, to) = (&members[0], &members[1]);
    // The patterns fill the data of every request and reply; one ping is between the hosts
    // themselves, so that the capture is seen to see.
    let ping = |pattern: &[u8], address: IpAddr| {
        let hex: String = pattern.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        ["ping", "-n", "-c", "3", "-i", "0.05", "-p", &hex, &address.to_string()].map(str::to_owned)
    };
    from.container.exec(ping(CANARY, to.address.into()))?.ok()?;
    let (here, there) = (lab.host(1), lab.host(2));
    here.run(ping(IN_CLEAR, there.address().into()))?.ok()?;
    let seen = |frames: &[Frame]| frames.iter().filter(|frame| frame.contains(IN_CLEAR)).count();
    wire.wait_for(SOON, |frames| (seen(frames) >= 6).then_some(()));
    let captured = wire.stop()?;
    let wireguard: Vec<_> =
        captured.frames.iter().filter_map(Frame::udp).filter(|udp| udp.dst_port == WIREGUARD).collect();
    let canaries = captured.containing(CANARY).count();
    // VXLAN with one of these is a liveness probe, which is no network's.
    let clear = captured.vxlan().filter(|packet| !PROBES.contains(&packet.vni)).count();
    let control = seen(&captured.frames);
    if canaries + clear > 0 || wireguard.is_empty() || control < 6 || captured.lost > 0 {
        return Err(Error::Traffic(format!(
            "{canaries} frames with the canary, {clear} of VXLAN in clear, {} of WireGuard; {control} of 6 in clear \
             between hosts, {} not looked at",
            wireguard.len(),
            captured.lost
        )));
    }
    if let Some(udp) = wireguard.first() {
        line(&format!("{}:{} -> {}:{}  WireGuard", udp.src, udp.src_port, udp.dst, udp.dst_port));
    }
    show.good(&format!(
        "{} packets between the hosts were WireGuard; none of {} frames had the canary of web1's ping to web2",
        wireguard.len(),
        captured.frames.len()
    ));
    show.good(&format!("the same capture saw all {control} packets of a ping from h1 to h2 in clear"));
    Ok(())
}

pub(super) fn transfer(show: &Show, members: &[Member]) -> Result<()> {
    show.step("A transfer over TCP");
    let (from, to) = (&members[0], &members[2]);
    let report = tcp_transfer(from.container.netns(), to.container.netns(), to.address.into(), TRANSFER)?;
    let mebibytes = report.bytes >> 20;
    show.good(&format!(
        "{mebibytes} MiB from web1 to web3 in {:.2} s; SHA-256 {}... at both ends",
        report.elapsed.as_secs_f64(),
        &report.sha256[..16]
    ));
    if report.peer.ip() != from.address {
        return Err(Error::Traffic(format!("web3 saw {} where web1 is {}", report.peer.ip(), from.address)));
    }
    show.good(&format!("web3 saw web1's own address, {}", report.peer.ip()));
    Ok(())
}
