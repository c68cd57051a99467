//! Traffic from an overlay to the outside: masqueraded on the container's own host, and blocked for
//! internal networks.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use mesh_e2e::service::{Backend, web};
use mesh_e2e::{ENCAPSULATIONS, PATIENCE, counted, create_network, lab_with_app};
use mesh_harness::traffic::{TcpSink, UdpClient, UdpEcho, ask, tcp_send, udp_request};
use mesh_harness::{Encapsulation, Lab, OUTSIDE_V4, Result, eventually};

#[test]
fn the_outside_is_reached_by_masquerade_and_sees_the_hosts_address() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, c) = lab_with_app(2, encapsulation, &[])?;
        for (container, host) in [(&c[0], lab.host(1)), (&c[1], lab.host(2))] {
            let sink = TcpSink::listen(
                &lab.client(),
                SocketAddr::new("192.168.77.200".parse().expect("an address"), 0),
            )?;
            tcp_send(container.netns(), sink.address(), 1 << 22, 1)?;
            let received = sink.finish()?;
            assert_eq!(received.bytes, 1 << 22);
            assert_eq!(received.peer.ip(), host.address());
            container.ping(OUTSIDE_V4)?.all_answered()?;
        }
    }
    Ok(())
}

#[test]
fn an_internal_network_reaches_its_members_and_nothing_else() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, c) = lab_with_app(2, encapsulation, &["--internal"])?;
        c[0].ping(c[1].ipv4()?)?.all_answered()?;
        c[0].exec(["ip", "route", "replace", "default", "via", "10.64.0.1"])?.ok()?;
        for target in [OUTSIDE_V4, lab.host(1).address(), lab.host(2).address()] {
            c[0].ping(target)?.none_answered()?;
        }
    }
    Ok(())
}

/// The backend has a default route, for its replies. Its own connections fail as without one.
#[test]
fn a_published_port_of_an_internal_network_answers_and_the_network_reaches_nothing_outside() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder().hosts(2).underlay_ipv6(true).encapsulation(encapsulation).start()?;
        create_network(&lab, "app", &["--internal", "--ipv6"])?;
        let backends = web(&lab, &[1, 2], &["-p", "8080:80", "-p", "8080:80/udp"])?;
        let addresses = lab.hosts().flat_map(|host| {
            let own6 = host.address6().expect("an IPv6 underlay");
            [IpAddr::from(host.address()), own6.into()]
        });
        let published: Vec<_> = addresses.map(|address| SocketAddr::new(address, 8080)).collect();
        let client = lab.client();
        for target in &published {
            let any: IpAddr = if target.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
            let datagrams = UdpClient::bind(&client, SocketAddr::new(any, 0))?;
            for backend in ["b1", "b2"] {
                eventually("each backend answers", PATIENCE, || {
                    ask(&client, *target).is_ok_and(|answer| answer.backend == backend)
                })?;
            }
            assert!(datagrams.ask(*target, PATIENCE)?.is_some(), "over UDP, {target}");
        }
        for host in lab.hosts() {
            ask(host.netns(), SocketAddr::new([127, 0, 0, 1].into(), 8080))?;
        }
        let outside = SocketAddr::new(lab.client_address(), 9990);
        let sink = UdpEcho::start(&client, outside)?;
        for Backend { container, .. } in &backends {
            for target in published.iter().chain([&sink.address()]) {
                let refused = container.netns().enter(|| TcpStream::connect_timeout(target, PATIENCE))?;
                let kind = refused.expect_err("nothing is reached").kind();
                assert_eq!(kind, ErrorKind::NetworkUnreachable, "{target}");
            }
            let any = SocketAddr::new([0u8; 4].into(), 0);
            let answer = udp_request(container.netns(), any, outside, b"?", Duration::from_millis(200))?;
            assert_eq!(answer, None);
            container.ping(OUTSIDE_V4)?.none_answered()?;
        }
        assert!(counted(&lab.host(1), "internal")? > 0);
    }
    Ok(())
}

#[test]
fn no_outside_machine_reaches_a_container_by_routing_through_its_host() -> Result<()> {
    let (lab, c) = lab_with_app(1, Encapsulation::Direct, &[])?;
    lab.client().run(["ip", "route", "add", "10.64.0.0/10", "via", "192.168.77.11"])?.ok()?;
    let ping = mesh_harness::traffic::Ping::new(c[0].ipv4()?.into()).run(&lab.client())?;
    ping.none_answered()?;
    // The host itself may.
    mesh_harness::traffic::Ping::new(c[0].ipv4()?.into()).run(lab.host(1).netns())?.all_answered()?;
    Ok(())
}

#[test]
fn masquerading_is_repaired_when_the_hosts_firewall_was_flushed() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    create_network(&lab, "app", &[])?;
    let c = lab.container(1, "c1", ["--network", "app"])?;
    c.ping(OUTSIDE_V4)?.all_answered()?;
    lab.host(1).run(["nft", "flush", "ruleset"])?.ok()?;
    eventually("the way out works again", Duration::from_secs(45), || {
        c.ping(OUTSIDE_V4).is_ok_and(|report| report.received > 0)
    })
}
