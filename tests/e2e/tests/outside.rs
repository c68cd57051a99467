//! The way out of an overlay: by masquerade on the container's own host, and not at all from internal networks.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_e2e::{ENCAPSULATIONS, create_network, lab_with_app};
use mesh_harness::traffic::{TcpSink, tcp_send};
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

#[test]
fn nobody_outside_reaches_a_container_by_routing_through_its_host() -> Result<()> {
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
