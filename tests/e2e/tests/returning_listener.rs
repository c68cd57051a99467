//! A port is published while a node is away, and the node returns with a listener of its own on
//! that port: the listener keeps its port on its host, and the conflict is reported.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mesh_e2e::service::{add_backend, any_port};
use mesh_e2e::{PATIENCE, create_network, json};
use mesh_harness::traffic::{UdpClient, WebServer, ask};
use mesh_harness::{Encapsulation, Host, Lab, Netns, Result, eventually};

const PORT: u16 = 8080;

fn reports_conflict(host: &Host, transport: &str) -> bool {
    let conflict = format!("port {PORT}/{transport} of service");
    json(host, &["status"]).is_ok_and(|status| status["problems"].to_string().contains(&conflict))
}

fn state_of(lab: &Lab, node: &str) -> Option<String> {
    lab.host(1).node_states().ok()?.remove(node)
}

/// The names of those that answer several connections and datagrams to an address.
fn answers(from: &Netns, address: Ipv4Addr) -> Result<Vec<String>> {
    let target = SocketAddr::new(IpAddr::V4(address), PORT);
    let mut names = Vec::new();
    for _ in 0..5 {
        names.push(ask(from, target)?.backend);
        let answer = UdpClient::bind(from, any_port())?.ask(target, PATIENCE)?;
        names.push(answer.map_or_else(|| "nobody".to_owned(), |answer| answer.backend));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// What is done to a host.
type Change = fn(&Host) -> Result<()>;

#[test]
fn a_listener_of_a_node_that_was_away_keeps_a_port_that_was_published_meanwhile() -> Result<()> {
    let lab = Lab::builder().hosts(3).encapsulation(Encapsulation::Direct).start()?;
    create_network(&lab, "app", &[])?;
    let (h1, h2, h3) = (lab.host(1), lab.host(2), lab.host(3));
    let away: [(&str, Change, Change); 2] =
        [("unplugged", Host::unplug, Host::plug), ("without agent", Host::kill_meshd, Host::start_meshd)];
    for (what, leave, return_) in away {
        leave(&h3)?;
        eventually("h3 is away", PATIENCE, || state_of(&lab, "h3").is_some_and(|state| state != "ready"))?;
        let publish = ["-p", "8080:80", "-p", "8080:80/udp"];
        let create = ["service", "create", "--name", "web", "--network", "app"];
        let created = h1.meshctl([&create[..], &publish].concat())?.ok()?;
        assert!(created.stderr.contains("h3"), "{what}: {created:?}");
        let backend = add_backend(&lab, 2, "b2", "web")?;
        let listener = WebServer::start(h3.netns(), "own", PORT)?;
        return_(&h3)?;
        eventually("h3 is back", PATIENCE, || state_of(&lab, "h3").is_some_and(|state| state == "ready"))?;
        for transport in ["tcp", "udp"] {
            eventually("the conflict is reported", PATIENCE, || reports_conflict(&h3, transport))?;
        }
        for (from, netns) in [("outside", lab.client()), ("its host", h3.netns().clone())] {
            assert_eq!(answers(&netns, h3.address())?, ["own"], "{what}: from {from}");
        }
        assert_eq!(answers(h3.netns(), Ipv4Addr::LOCALHOST)?, ["own"], "{what}");
        for host in [&h1, &h2] {
            assert_eq!(answers(&lab.client(), host.address())?, ["b2"], "{what}: {}", host.name());
        }
        assert!(!reports_conflict(&h2, "tcp"));
        // Once it ends, the port is the service's.
        drop(listener);
        eventually("the conflict is over", PATIENCE, || !reports_conflict(&h3, "tcp"))?;
        eventually("the service answers on h3", PATIENCE, || {
            answers(&lab.client(), h3.address()).is_ok_and(|names| names == ["b2"])
        })?;
        backend.container.detach()?.ok()?;
        backend.container.remove()?;
        h1.meshctl(["service", "rm", "web"])?.ok()?;
    }
    Ok(())
}
