//! Containers of one network reach each other, with any kind of traffic.

use std::net::SocketAddr;

use mesh_e2e::{ENCAPSULATIONS, PATIENCE, create_network, lab_with_app, underlay_capture};
use mesh_harness::traffic::{GsoTransfer, TcpSink, UdpEcho, tcp_send, tcp_transfer, udp_request};
use mesh_harness::{Lab, Result};

const GIB: u64 = 1 << 30;

#[test]
fn containers_on_three_hosts_reach_each_other_with_the_first_packet_over_both_families() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder().hosts(3).encapsulation(encapsulation).start()?;
        create_network(&lab, "app", &["--ipv6"])?;
        let mut containers = Vec::new();
        for (host, name) in [(1, "a"), (2, "b"), (3, "c"), (1, "d")] {
            let new = lab.container(host, name, ["--network", "app"])?;
            // Immediately, from every existing container: nothing has to converge.
            for old in &containers {
                let old: &mesh_harness::Container = old;
                old.ping(new.ipv4()?)?.all_answered()?;
                new.ping(old.ipv6()?)?.all_answered()?;
            }
            containers.push(new);
        }
    }
    Ok(())
}

#[test]
fn what_crosses_the_underlay_is_vxlan_of_the_network_between_data_path_addresses() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, c) = lab_with_app(2, encapsulation, &["--vni", "4242"])?;
        let capture = underlay_capture(&lab)?;
        c[0].ping(c[1].ipv4()?)?.all_answered()?;
        let captured = capture.stop()?;
        let ours: Vec<_> = captured.vxlan().filter(|packet| packet.vni == 4242).collect();
        assert_eq!(ours.len(), 6, "three requests, three replies");
        let hosts = [lab.host(1).address().into(), lab.host(2).address().into()];
        for packet in ours {
            assert!(hosts.contains(&packet.outer.src) && hosts.contains(&packet.outer.dst));
        }
    }
    Ok(())
}

#[test]
fn a_gibibyte_arrives_undamaged_on_every_path_with_offloads_on_and_off() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, c) = lab_with_app(2, encapsulation, &["--ipv6"])?;
        let local = lab.container(1, "local", ["--network", "app"])?;
        tcp_transfer(c[0].netns(), local.netns(), local.ipv4()?.into(), GIB)?;
        tcp_transfer(c[0].netns(), c[1].netns(), c[1].ipv4()?.into(), GIB)?;
        tcp_transfer(c[1].netns(), c[0].netns(), c[0].ipv6()?.into(), GIB / 8)?;
        lab.set_underlay_offloads(false)?;
        tcp_transfer(c[0].netns(), c[1].netns(), c[1].ipv4()?.into(), GIB)?;
        tcp_transfer(c[1].netns(), c[0].netns(), c[0].ipv6()?.into(), GIB / 8)?;
    }
    Ok(())
}

#[test]
fn bursts_of_a_udp_gso_sender_arrive_whole() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, c) = lab_with_app(2, encapsulation, &["--ipv6"])?;
        let local = lab.container(1, "local", ["--network", "app"])?;
        for offloads in [true, false] {
            lab.set_underlay_offloads(offloads)?;
            let sender = GsoTransfer::new(1200, 20).bursts(20);
            sender.run(c[0].netns(), c[1].netns(), c[1].ipv4()?.into())?.all_arrived()?;
            sender.run(c[0].netns(), c[1].netns(), c[1].ipv6()?.into())?.all_arrived()?;
            sender.run(c[0].netns(), local.netns(), local.ipv4()?.into())?.all_arrived()?;
            let coalescing = GsoTransfer::new(1200, 20).bursts(20).receive_coalesced();
            coalescing.run(c[0].netns(), c[1].netns(), c[1].ipv4()?.into())?.all_arrived()?;
        }
    }
    Ok(())
}

#[test]
fn datagrams_of_64_kilobytes_arrive_in_inner_fragments() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (_lab, c) = lab_with_app(2, encapsulation, &["--ipv6"])?;
        let anywhere = SocketAddr::new(c[0].ipv4()?.into(), 0);
        let echo = UdpEcho::start(c[1].netns(), SocketAddr::new(c[1].ipv4()?.into(), 0))?;
        let payload: Vec<u8> = (0..65_507u32).map(|n| (n * 7 % 251) as u8).collect();
        let answer = udp_request(c[0].netns(), anywhere, echo.address(), &payload, PATIENCE)?;
        assert!(answer.is_some_and(|answer| answer == payload));
        let anywhere = SocketAddr::new(c[0].ipv6()?.into(), 0);
        let echo = UdpEcho::start(c[1].netns(), SocketAddr::new(c[1].ipv6()?.into(), 0))?;
        let answer = udp_request(c[0].netns(), anywhere, echo.address(), &payload, PATIENCE)?;
        assert!(answer.is_some_and(|answer| answer == payload));
    }
    Ok(())
}

/// `a` and `b` have no common network; `router` is in both networks and forwards for them, which
/// `--allow-forwarding` permits.
#[test]
fn a_container_routes_for_others() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder().hosts(3).encapsulation(encapsulation).start()?;
        create_network(&lab, "left", &[])?;
        create_network(&lab, "right", &[])?;
        let a = lab.container(1, "a", ["--network", "left"])?;
        let b = lab.container(3, "b", ["--network", "right"])?;
        let router = lab.container(2, "router", ["--network", "left", "--allow-forwarding"])?;
        let left = router.ipv4()?;
        lab.container(2, "router", ["--network", "right", "--name", "router-right", "--allow-forwarding"])?;
        let right = mesh_e2e::json(&lab.host(2), &["endpoint", "inspect", "router-right"])?;
        let right = right["ipv4"].as_str().expect("an address").to_owned();
        router.netns().sysctl("net.ipv4.ip_forward", "1")?;
        let (to_b, to_a) = (b.ipv4()?.to_string(), a.ipv4()?.to_string());
        a.ping(b.ipv4()?)?.none_answered()?;
        a.exec(["ip", "route", "add", &to_b, "via", &left.to_string()])?.ok()?;
        b.exec(["ip", "route", "add", &to_a, "via", &right])?.ok()?;
        a.ping(b.ipv4()?)?.all_answered()?;
        for offloads in [true, false] {
            lab.set_underlay_offloads(offloads)?;
            tcp_transfer(a.netns(), b.netns(), b.ipv4()?.into(), GIB / 16)?;
            GsoTransfer::new(1200, 20)
                .bursts(10)
                .run(a.netns(), b.netns(), b.ipv4()?.into())?
                .all_arrived()?;
        }
    }
    Ok(())
}

/// A proxy in the kernel: both directions leave with its own address, so it needs no permission. It
/// forwards packets that were already decapsulated once, including super-packets.
#[test]
fn a_container_that_translates_both_addresses_needs_no_permission() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, c) = lab_with_app(3, encapsulation, &[])?;
        let (client, proxy, server) = (&c[0], &c[1], &c[2]);
        proxy.netns().sysctl("net.ipv4.ip_forward", "1")?;
        let rules = format!(
            "table ip proxy {{
                chain pre {{ type nat hook prerouting priority dstnat; ip daddr {} dnat to {}; }}
                chain post {{ type nat hook postrouting priority srcnat; masquerade; }}
            }}",
            proxy.ipv4()?,
            server.ipv4()?
        );
        proxy.netns().cmd(["nft", "-f", "-"]).stdin(rules).output()?.ok()?;
        for offloads in [true, false] {
            lab.set_underlay_offloads(offloads)?;
            let sink = TcpSink::listen(server.netns(), SocketAddr::new(server.ipv4()?.into(), 0))?;
            let target = SocketAddr::new(proxy.ipv4()?.into(), sink.address().port());
            let sent = tcp_send(client.netns(), target, GIB / 16, 1)?;
            let received = sink.finish()?;
            assert_eq!((received.sha256, received.peer.ip()), (sent, proxy.ipv4()?.into()));
        }
    }
    Ok(())
}
