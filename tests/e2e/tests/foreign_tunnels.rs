//! Who may send VXLAN and WireGuard to a node: only Mesh's own programs and devices on the members.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use mesh_e2e::service::{change_backend, create_service};
use mesh_e2e::tunnel::Tunnel;
use mesh_e2e::{ENCAPSULATIONS, PATIENCE, counted, create_network, json};
use mesh_harness::traffic::{UdpEcho, udp_request};
use mesh_harness::{Capture, Encapsulation, Lab, Netns, Result, eventually, ip_batch_in};

const CANARY: &[u8] = b"canary-xyz";
const TUNNELS: [u16; 2] = [4789, 51820];

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)
}

/// Returns a VXLAN packet into a network, for one of its addresses.
fn forged(lab: &Lab, network: &str, target: Ipv4Addr) -> Result<Vec<u8>> {
    let vni = json(&lab.host(1), &["network", "inspect", network])?["vni"].as_u64().expect("a number");
    let target = target.octets();
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(&vni.to_be_bytes()[5..]);
    packet.push(0);
    packet.extend([[2, 0x42].as_slice(), &target, &[2, 0x42, 10, 64, 0, 9, 8, 0]].concat());
    // An IPv4 packet of an unassigned protocol; the header's checksum is not checked on the path.
    packet.extend([0x45, 0, 0, 30, 0, 0, 0x40, 0, 64, 253, 0, 0, 10, 64, 0, 9]);
    packet.extend([target.as_slice(), CANARY].concat());
    Ok(packet)
}

fn send(from: &Netns, source: u16, packet: &[u8], to: SocketAddr) -> Result<()> {
    let sent = from.enter(|| UdpSocket::bind(any(source))?.send_to(packet, to))?;
    sent.expect("the sender's own kernel lets it");
    Ok(())
}

#[test]
fn neither_processes_nor_machines_behind_nat_can_send_tunnel_packets() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder().hosts(2).encapsulation(encapsulation).start()?;
        for (network, options) in [("red", &[][..]), ("blue", &[]), ("deep", &["--internal"])] {
            create_network(&lab, network, options)?;
        }
        let (h1, h2) = (lab.host(1), lab.host(2));
        let red = lab.container(1, "red", ["--network", "red"])?;
        let victims = [
            (lab.container(2, "blue", ["--network", "blue"])?, "blue"),
            (lab.container(2, "deep", ["--network", "deep"])?, "deep"),
        ];
        let docker = lab.docker_like(1)?;
        let captures =
            victims.iter().map(|(victim, _)| Capture::start(victim.netns())).collect::<Result<Vec<_>>>()?;
        let before = counted(&h1, "foreign_tunnel")?;
        let to = SocketAddr::new(h2.address().into(), 4789);
        for (victim, network) in &victims {
            let packet = forged(&lab, network, victim.ipv4()?)?;
            // As root, as nobody, and from a container behind another NAT than Mesh's; also in
            // fragments.
            send(h1.netns(), 0, &packet, to)?;
            let text = packet.iter().map(|byte| format!("\\x{byte:02x}")).collect::<Vec<_>>().concat();
            let script = format!("printf '{text}' > /dev/udp/{}/{}", to.ip(), to.port());
            h1.run(["setpriv", "--reuid=65534", "--clear-groups", "bash", "-c", &script])?.ok()?;
            for source in [0, 4789, 51820] {
                send(docker.netns(), source, &packet, to)?;
            }
            let mut long = packet.clone();
            long.resize(4000, 0);
            send(h1.netns(), 0, &long, to)?;
            send(docker.netns(), 0, &long, to)?;
        }
        eventually("the drops are counted", PATIENCE, || {
            counted(&h1, "foreign_tunnel").is_ok_and(|now| now >= before + 14)
        })?;
        // Probes continue, and so does other traffic.
        lab.wait_ready(PATIENCE)?;
        red.ping(h2.address())?.all_answered()?;
        for ((_, network), capture) in victims.iter().zip(captures) {
            assert_eq!(capture.stop()?.containing(CANARY).count(), 0, "{encapsulation:?}, {network}");
        }
    }
    Ok(())
}

#[test]
fn no_reply_of_a_published_port_becomes_a_tunnel_packet() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder().hosts(3).encapsulation(encapsulation).start()?;
        create_network(&lab, "app", &[])?;
        create_network(&lab, "blue", &[])?;
        let (h1, h2) = (lab.host(1), lab.host(2));
        let red = lab.container(1, "red", ["--network", "app"])?;
        let blue = lab.container(1, "blue", ["--network", "blue"])?;
        let docker = lab.docker_like(1)?;
        create_service(&lab, "echo", &["-p", "8080:80/udp"])?;
        // An attacker's server on the receiving node, and one on another node.
        let mut echoes = Vec::new();
        for (host, name) in [(2, "near"), (3, "far")] {
            let accomplice = lab.container(host, name, ["--network", "app"])?;
            echoes.push(UdpEcho::start(accomplice.netns(), any(80))?);
            change_backend(&lab.host(1), "add", "echo", name)?.ok()?;
        }
        let packet = forged(&lab, "blue", blue.ipv4()?)?;
        let capture = Capture::start(blue.netns())?;
        let target = SocketAddr::new(h2.address().into(), 8080);
        let before = counted(&h2, "foreign_tunnel")?;
        // A node may send a probe to another before that one knows it.
        let strangers = counted(&h1, "not_member")?;
        for source in TUNNELS {
            // Mesh's own NAT gives it another port.
            let answer = udp_request(red.netns(), any(source), target, &packet, PATIENCE)?;
            assert_eq!(answer.as_deref(), Some(packet.as_slice()), "a container is answered");
            // Another NAT does not.
            for _ in 0..4 {
                send(docker.netns(), source, &packet, target)?;
            }
        }
        eventually("the drops are counted", PATIENCE, || {
            counted(&h2, "foreign_tunnel").is_ok_and(|now| now >= before + 8)
        })?;
        let answer = udp_request(docker.netns(), any(0), target, b"plain", PATIENCE)?;
        assert_eq!(answer.as_deref(), Some(&b"plain"[..]));
        assert_eq!(capture.stop()?.containing(CANARY).count(), 0, "{encapsulation:?}");
        assert_eq!(counted(&h1, "not_member")?, strangers);
    }
    Ok(())
}

#[test]
fn nothing_behind_a_hosts_nat_receives_handshakes_of_other_hosts() -> Result<()> {
    let lab = Lab::builder().hosts(2).encapsulation(Encapsulation::Direct).start()?;
    create_network(&lab, "app", &[])?;
    create_network(&lab, "secret", &["--encrypted"])?;
    let (h1, h2) = (lab.host(1), lab.host(2));
    let red = lab.container(1, "red", ["--network", "app"])?;
    let docker = lab.docker_like(1)?;
    let here = lab.container(1, "here", ["--network", "secret"])?;
    let there = lab.container(2, "there", ["--network", "secret"])?;
    let to: IpAddr = h2.address().into();
    let before = counted(&h1, "foreign_tunnel")?;
    for from in [red.netns(), docker.netns()] {
        send(from, 51820, b"this NAT has the port now", SocketAddr::new(to, 51820))?;
    }
    eventually("the drops are counted", PATIENCE, || {
        counted(&h1, "foreign_tunnel").is_ok_and(|now| now >= before + 2)
    })?;
    // The other host sends first.
    eventually("the hosts speak", PATIENCE, || {
        there.ping(here.ipv4().expect("an address")).is_ok_and(|report| report.received > 0)
    })?;
    Ok(())
}

/// Sends from a namespace with a host's address, which its own kernel accepts as local.
fn pretend(netns: &Netns, as_host: Ipv4Addr, packet: &[u8], to: SocketAddr) -> Result<()> {
    let sent = netns.enter(|| UdpSocket::bind((as_host, 0))?.send_to(packet, to))?;
    sent.expect("the sender's own kernel lets it");
    Ok(())
}

#[test]
fn packets_with_a_forged_node_address_on_other_interfaces_are_dropped() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder().hosts(2).encapsulation(encapsulation).start()?;
        create_network(&lab, "blue", &[])?;
        let (h1, h2) = (lab.host(1), lab.host(2));
        let victim = lab.container(2, "blue", ["--network", "blue"])?;
        let friend = lab.container(1, "friend", ["--network", "blue"])?;
        let packet = forged(&lab, "blue", victim.ipv4()?)?;
        // A bridge of another runtime, and a device without Ethernet headers.
        let docker = lab.docker_like(2)?;
        let client = lab.client();
        let (here, there) = (Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2));
        let ends = [(h2.netns(), h2.address().into(), here), (&client, lab.client_address(), there)];
        let _tunnel = Tunnel::join(&lab, ends)?;
        for netns in [docker.netns(), &client] {
            ip_batch_in(netns, &[format!("addr add {}/32 dev lo", h1.address())])?;
        }
        h2.run(["sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=0"])?.ok()?;
        let capture = Capture::start(victim.netns())?;
        for config in ["", "publish_interfaces = [\"eth*\"]"] {
            lab.set_meshd_config(config)?;
            h2.restart_meshd()?;
            // New interfaces are covered soon after they appear.
            for (netns, address) in [(docker.netns(), Ipv4Addr::new(172, 17, 0, 1)), (&client, here)] {
                for port in TUNNELS {
                    let before = counted(&h2, "foreign_tunnel")?;
                    eventually("the packet is dropped and counted", PATIENCE, || {
                        pretend(netns, h1.address(), &[0; 64], SocketAddr::new(address.into(), port)).is_ok()
                            && counted(&h2, "foreign_tunnel").is_ok_and(|now| now > before)
                    })?;
                    pretend(netns, h1.address(), &packet, SocketAddr::new(address.into(), port))?;
                }
            }
            pretend(docker.netns(), h1.address(), &packet, SocketAddr::new(h2.address().into(), 4789))?;
        }
        friend.ping(victim.ipv4()?)?.all_answered()?;
        assert_eq!(capture.stop()?.containing(CANARY).count(), 0, "{encapsulation:?}");
    }
    Ok(())
}

#[test]
fn no_process_can_send_tunnel_packets_through_a_layer_3_device() -> Result<()> {
    let lab = Lab::builder().hosts(2).second_nic(true).start()?;
    create_network(&lab, "blue", &[])?;
    let (h1, h2) = (lab.host(1), lab.host(2));
    let victim = lab.container(2, "blue", ["--network", "blue"])?;
    let packet = forged(&lab, "blue", victim.ipv4()?)?;
    let (here, there) = (Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2));
    let ends =
        [(h1.netns(), h1.second_address().into(), here), (h2.netns(), h2.second_address().into(), there)];
    let tunnel = Tunnel::join(&lab, ends)?;
    // Both hosts have a route to each other through it.
    for (own, other, device) in [(&h1, &h2, &tunnel.devices[0]), (&h2, &h1, &tunnel.devices[1])] {
        ip_batch_in(own.netns(), &[format!("route add {} dev {device}", other.address())])?;
    }
    let capture = Capture::start(victim.netns())?;
    for port in TUNNELS {
        let before = counted(&h1, "foreign_tunnel")?;
        let to = SocketAddr::new(h2.address().into(), port);
        eventually("the packet is dropped and counted", PATIENCE, || {
            pretend(h1.netns(), h1.address(), &[0; 64], to).is_ok()
                && counted(&h1, "foreign_tunnel").is_ok_and(|now| now > before)
        })?;
        pretend(h1.netns(), h1.address(), &packet, to)?;
    }
    eventually("all else goes by the device", PATIENCE, || {
        h1.run(["ping", "-c", "1", "-W", "2", &there.to_string()]).is_ok_and(|output| output.success())
    })?;
    assert_eq!(capture.stop()?.containing(CANARY).count(), 0);
    Ok(())
}
