//! A path between two live hosts is interrupted: it is reported, and traffic avoids it.

use std::time::Duration;

use mesh_e2e::service::{add_backend, any_port, create_service, vip};
use mesh_e2e::{PATIENCE, create_network, json};
use mesh_harness::traffic::{UdpClient, load};
use mesh_harness::{Encapsulation, Host, Lab, Result, eventually};

/// Timeout for detecting an interruption on a busy machine; it takes two seconds on an idle one.
const NOTICED: Duration = PATIENCE;

fn problems(host: &Host) -> String {
    json(host, &["status"]).map(|status| status["problems"].to_string()).unwrap_or_default()
}

/// Returns the names of the nodes that cannot reach a node, and whether through WireGuard.
fn unreachable_from(lab: &Lab, node: &str) -> Vec<(String, bool)> {
    let inspected = json(&lab.host(1), &["node", "inspect", node]).unwrap_or_default();
    let from = inspected["unreachable_from"].as_array().cloned().unwrap_or_default();
    let one = |from: &serde_json::Value| {
        (from["node"].as_str().unwrap_or_default().to_owned(), from["encrypted"] == true)
    };
    from.iter().map(one).collect()
}

fn metric(host: &Host, peer: &str, path: &str) -> Option<String> {
    let text = host.meshctl(["metrics"]).ok()?.text().ok()?;
    let line = text.lines().find(|line| {
        line.starts_with("mesh_path_reachable{")
            && line.contains(&format!("peer=\"{peer}\""))
            && line.contains(&format!("path=\"{path}\""))
    })?;
    line.rsplit(' ').next().map(str::to_owned)
}

#[test]
fn a_blocked_tunnel_port_is_reported_on_both_nodes_and_backends_beyond_it_are_avoided() -> Result<()> {
    for (encapsulation, options, port, path) in [
        (Encapsulation::Device, &[][..], 4789, "vxlan"),
        (Encapsulation::Direct, &["--encrypted"], 51820, "wireguard"),
    ] {
        let encrypted = path == "wireguard";
        let lab = Lab::builder().hosts(3).encapsulation(encapsulation).start()?;
        create_network(&lab, "app", options)?;
        create_service(&lab, "web", &["-p", "8080:80"])?;
        let backends = [add_backend(&lab, 2, "b2", "web")?, add_backend(&lab, 3, "b3", "web")?];
        let caller = lab.container(1, "caller", ["--network", "app"])?;
        let (h1, h2) = (lab.host(1), lab.host(2));
        let target = vip(&lab, "web")?;
        let both = load(caller.netns(), target, 200, 4)?.all_answered()?;
        assert_eq!(both.by_backend.len(), 2, "{both:?}");
        eventually("all is well", NOTICED, || problems(&h1) == "[]")?;

        lab.block_udp(port, &h1, &h2)?;
        lab.block_udp(port, &h2, &h1)?;
        eventually("both nodes report it", NOTICED, || {
            [(&h1, "node h2"), (&h2, "node h1")].iter().all(|(host, node)| {
                let problems = problems(host);
                problems.contains(node) && problems.contains(&format!("UDP port {port}"))
            })
        })?;
        eventually("host 3 reaches both", NOTICED, || problems(&lab.host(3)) == "[]")?;
        assert_eq!((metric(&h1, "h2", path), metric(&h1, "h3", path)), (Some("0".into()), Some("1".into())));
        eventually("the managers know it", NOTICED, || {
            unreachable_from(&lab, "h2") == [("h1".to_owned(), encrypted)]
                && unreachable_from(&lab, "h1") == [("h2".to_owned(), encrypted)]
        })?;
        let table = h1.meshctl(["node", "ls"])?.text()?;
        assert!(table.contains("UNREACHABLE FROM"), "{table}");
        assert!(lab.host(1).node_states()?.values().all(|state| state == "ready"));
        // From the network and from outside, through the host that cannot reach one of them.
        let published = std::net::SocketAddr::new(h1.address().into(), 8080);
        for (from, target) in [(caller.netns(), target), (&lab.client(), published)] {
            let report = load(from, target, 100, 4)?.all_answered()?;
            assert_eq!(report.by_backend.into_keys().collect::<Vec<_>>(), ["b3"], "{path} {target}");
        }

        lab.unblock()?;
        eventually("all is well again", NOTICED, || {
            lab.hosts().all(|host| problems(&host) == "[]") && unreachable_from(&lab, "h2").is_empty()
        })?;
        eventually("both backends answer again", NOTICED, || {
            load(caller.netns(), target, 100, 4)
                .and_then(mesh_harness::traffic::LoadReport::all_answered)
                .is_ok_and(|report| report.by_backend.len() == 2)
        })?;

        // One direction only: both nodes lack answers, and the one whose packets are lost can
        // detect it.
        lab.block_udp(port, &h1, &h2)?;
        eventually("the direction is told", NOTICED, || {
            problems(&h1).contains("packets from this node do not arrive at h2")
                && problems(&h2).contains("packets from h1, or in both directions")
        })?;
        // If there are no others, they are used: they may work.
        drop(backends);
        lab.unblock()?;
        eventually("the path works again", NOTICED, || problems(&h1) == "[]")?;
    }
    Ok(())
}

#[test]
fn a_backend_beyond_a_blocked_port_is_used_when_there_is_no_other() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &[])?;
    create_service(&lab, "web", &[])?;
    let _backend = add_backend(&lab, 2, "b2", "web")?;
    let caller = lab.container(1, "caller", ["--network", "app"])?;
    let target = vip(&lab, "web")?;
    lab.block_udp(4789, &lab.host(1), &lab.host(2))?;
    eventually("it is reported", NOTICED, || problems(&lab.host(1)).contains("node h2"))?;
    let client = UdpClient::bind(caller.netns(), any_port())?;
    assert!(client.ask(target, Duration::from_secs(1))?.is_none(), "it cannot arrive");
    lab.unblock()?;
    eventually("the path works again", NOTICED, || problems(&lab.host(1)) == "[]")?;
    let answer = client.ask(target, PATIENCE)?.expect("nothing was withdrawn");
    assert_eq!(answer.backend, "b2");
    Ok(())
}

/// Probes of the path pass the chain `INPUT` of the host, as WireGuard messages and packets to the
/// VXLAN device do.
#[test]
fn a_host_firewall_that_drops_tunnel_packets_is_reported_on_both_nodes() -> Result<()> {
    for (encapsulation, options, port) in
        [(Encapsulation::Direct, &["--encrypted"][..], "51820"), (Encapsulation::Device, &[], "4789")]
    {
        let lab = Lab::builder().hosts(2).encapsulation(encapsulation).start()?;
        create_network(&lab, "app", options)?;
        let (h1, h2) = (lab.host(1), lab.host(2));
        let [a, b] = [1, 2].map(|host| lab.container(host, &format!("c{host}"), ["--network", "app"]));
        let (a, b) = (a?, b?);
        a.ping(b.ipv4()?)?.all_answered()?;
        let rule = ["INPUT", "-p", "udp", "--dport", port, "-j", "DROP"];
        h2.run([&["iptables", "-A"], &rule[..]].concat())?.ok()?;
        eventually("both nodes report it", NOTICED, || {
            problems(&h1).contains("packets from this node do not arrive at h2")
                && problems(&h2).contains("a firewall of this host")
        })?;
        a.ping(b.ipv4()?)?.none_answered()?;
        h2.run([&["iptables", "-D"], &rule[..]].concat())?.ok()?;
        eventually("all is well again", NOTICED, || problems(&h1) == "[]" && problems(&h2) == "[]")?;
        a.ping(b.ipv4()?)?.all_answered()?;
    }
    Ok(())
}
