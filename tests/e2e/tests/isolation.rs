//! Networks are isolated, source addresses are verified, and only members are accepted.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use mesh_e2e::{ENCAPSULATIONS, PATIENCE, counted, create_network, json, lab_with_app, underlay_capture};
use mesh_harness::{Capture, Container, Encapsulation, Lab, OUTSIDE_V4, Result, eventually};

#[test]
fn networks_are_isolated_whatever_addresses_and_routes_a_container_sets() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder().hosts(2).encapsulation(encapsulation).start()?;
        create_network(&lab, "red", &[])?;
        create_network(&lab, "blue", &[])?;
        let red = lab.container(1, "red", ["--network", "red"])?;
        let near = lab.container(1, "near", ["--network", "blue"])?;
        let far = lab.container(2, "far", ["--network", "blue"])?;
        for target in [near.ipv4()?, far.ipv4()?] {
            red.ping(target)?.none_answered()?;
        }
        // An address of the other network, and an on-link route to it: it is still another network.
        red.exec(["ip", "addr", "add", "10.64.16.200/20", "dev", "eth0"])?.ok()?;
        for target in [near.ipv4()?, far.ipv4()?] {
            red.ping(target)?.none_answered()?;
        }
        red.exec([
            "ip",
            "route",
            "replace",
            "default",
            "via",
            &near.ipv4()?.to_string(),
            "dev",
            "eth0",
            "onlink",
        ])?
        .ok()?;
        red.ping(far.ipv4()?)?.none_answered()?;
        near.ping(far.ipv4()?)?.all_answered()?;
    }
    Ok(())
}

#[test]
fn a_spoofed_address_or_mac_is_dropped_and_counted() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, c) = lab_with_app(2, encapsulation, &["--ipv6"])?;
        let host = lab.host(1);
        let target = c[1].ipv4()?;

        let before = counted(&host, "spoofed_ip")?;
        c[0].exec(["ip", "addr", "add", "10.64.15.77/20", "dev", "eth0"])?.ok()?;
        let capture = Capture::start(c[1].netns())?;
        c[0].exec(["ping", "-c", "2", "-i", "0.05", "-W", "0.3", "-I", "10.64.15.77", &target.to_string()])?;
        assert_eq!(capture.stop()?.frames.iter().filter(|f| f.ethertype() == Some(0x0800)).count(), 0);
        assert!(counted(&host, "spoofed_ip")? >= before + 2);
        c[0].ping(target)?.all_answered()?;

        let before = counted(&host, "spoofed_mac")?;
        c[0].exec(["ip", "link", "set", "eth0", "address", "02:de:ad:be:ef:01"])?.ok()?;
        c[0].ping(target)?.none_answered()?;
        assert!(counted(&host, "spoofed_mac")? > before);
    }
    Ok(())
}

#[test]
fn packets_to_a_network_without_local_endpoints_do_not_leave_the_host() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "red", &["--ipv6"])?;
    create_network(&lab, "blue", &["--ipv6"])?;
    let red = lab.container(1, "red", ["--network", "red"])?;
    let blue = lab.container(2, "blue", ["--network", "blue"])?;
    let far = lab.host(2);
    let addresses: [IpAddr; 2] = [red.ipv4()?.into(), red.ipv6()?.into()];
    // Creating a network does not wait until its record has arrived everywhere; its subnets are
    // blocked soon.
    for address in addresses {
        eventually("the host has closed its way out", PATIENCE, || {
            let route = far.run(["ip", "route", "get", &address.to_string()]);
            route.is_ok_and(|route| !route.success())
        })?;
    }
    let capture = underlay_capture(&lab)?;
    let before = counted(&far, "isolated")?;
    for address in addresses {
        blue.ping(address)?.none_answered()?;
        // Immediately, without a timeout.
        let begun = Instant::now();
        let said = far.run(["ping", "-c", "1", "-W", "5", &address.to_string()])?;
        assert!(!said.success() && begun.elapsed() < Duration::from_secs(4), "{said:?}");
    }
    assert!(counted(&far, "isolated")? >= before + 2);
    // Allowed traffic leaves and is visible.
    blue.ping(OUTSIDE_V4)?.all_answered()?;
    let frames = capture.stop()?.frames;
    let has = |ethertype, octets: &[u8]| {
        frames.iter().any(|frame| frame.ethertype() == Some(ethertype) && frame.contains(octets))
    };
    assert!(has(0x0800, &OUTSIDE_V4.octets()));
    assert!(!has(0x0800, &red.ipv4()?.octets()));
    assert!(!has(0x86dd, &red.ipv6()?.octets()));
    Ok(())
}

/// Returns a VXLAN packet with a ping from `source` to `target`'s container, as the datapath would
/// write it.
fn forged(vni: u32, source: Ipv4Addr, target: &Container) -> Result<Vec<u8>> {
    let endpoint = target.endpoint()?;
    let mac: Vec<u8> = endpoint["mac"]
        .as_str()
        .expect("a MAC")
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal"))
        .collect();
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(&vni.to_be_bytes()[1..]);
    packet.push(0);
    packet.extend(mac);
    packet.extend([2, 0x42]);
    packet.extend(source.octets());
    packet.extend([8, 0]);
    let mut ip = vec![0x45, 0, 0, 38, 0, 0, 0x40, 0, 64, 17, 0, 0];
    ip.extend(source.octets());
    ip.extend(target.ipv4()?.octets());
    let sum = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16));
    ip[10..12].copy_from_slice(&sum.to_be_bytes()[2..]);
    packet.extend(ip);
    packet.extend([0x30, 0x39, 0x30, 0x39, 0, 18, 0, 0]);
    packet.extend(b"canary-xyz");
    Ok(packet)
}

#[test]
fn vxlan_from_an_address_of_no_member_is_dropped_and_counted() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, c) = lab_with_app(2, encapsulation, &[])?;
        let vni = json(&lab.host(1), &["network", "inspect", "app"])?["vni"].as_u64().expect("a number");
        let packet = forged(u32::try_from(vni).expect("24 bits"), c[1].ipv4()?, &c[0])?;
        let target = SocketAddr::new(lab.host(1).address().into(), 4789);
        let send = |netns: &mesh_harness::Netns, from: Ipv4Addr| -> Result<()> {
            let sent = netns.enter(|| {
                let socket = UdpSocket::bind((from, 0))?;
                (0..5).try_for_each(|_| socket.send_to(&packet, target).map(drop))
            })?;
            sent.expect("the datagrams leave");
            Ok(())
        };
        let capture = Capture::start(c[0].netns())?;
        let before = counted(&lab.host(1), "not_member")?;
        send(&lab.client(), Ipv4Addr::UNSPECIFIED)?;
        eventually("five are counted", PATIENCE, || {
            counted(&lab.host(1), "not_member").is_ok_and(|now| now >= before + 5)
        })?;
        capture.with_frames(|frames| assert!(!frames.iter().any(|frame| frame.contains(b"canary-xyz"))));

        // The same bytes from a member's address arrive, so the sender was refused and not the
        // packet. A process of the member itself cannot send them.
        let member = lab.host(2).address();
        lab.client().run(["ip", "addr", "add", &format!("{member}/32"), "dev", "eth0"])?.ok()?;
        send(&lab.client(), member)?;
        let arrived = capture.wait_for(PATIENCE, |frames| {
            frames.iter().any(|frame| frame.contains(b"canary-xyz")).then_some(())
        });
        assert!(arrived.is_some());
    }
    Ok(())
}

#[test]
fn a_host_firewall_that_drops_everything_or_is_flushed_changes_nothing() -> Result<()> {
    let (lab, c) = lab_with_app(2, Encapsulation::Direct, &[])?;
    let rules = "table inet hostile {
        chain i { type filter hook input priority -300; policy drop; iif lo accept; tcp dport 7377 accept; tcp sport 7377 accept; }
        chain f { type filter hook forward priority -300; policy drop; }
    }";
    for host in lab.hosts() {
        host.netns().cmd(["nft", "-f", "-"]).stdin(rules).output()?.ok()?;
    }
    c[0].ping(c[1].ipv4()?)?.all_answered()?;
    mesh_harness::traffic::tcp_transfer(c[0].netns(), c[1].netns(), c[1].ipv4()?.into(), 1 << 24)?;
    let states = lab.host(1).node_states()?;
    assert!(states.values().all(|state| state == "ready"), "{states:?}");
    for host in lab.hosts() {
        host.run(["nft", "flush", "ruleset"])?.ok()?;
    }
    c[1].ping(c[0].ipv4()?)?.all_answered()?;
    Ok(())
}
