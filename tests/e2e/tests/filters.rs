//! Other firewalls on the hosts: containers' packets pass them, or the status names the chain that
//! drops them.

use std::net::SocketAddr;

use mesh_e2e::service::web;
use mesh_e2e::{PATIENCE, create_network, json};
use mesh_harness::traffic::{UdpClient, ask, load};
use mesh_harness::{Container, Host, Lab, OUTSIDE_V4, OUTSIDE_V6, Result, eventually};

fn problems(host: &Host) -> String {
    json(host, &["status"]).map(|status| status["problems"].to_string()).unwrap_or_default()
}

fn reaches_outside(container: &Container, ipv6: bool) -> bool {
    let answered = |target: std::net::IpAddr| container.ping(target).is_ok_and(|report| report.received > 0);
    answered(OUTSIDE_V4.into()) && (!ipv6 || answered(OUTSIDE_V6.into()))
}

fn resolves(container: &Container, name: &str) -> bool {
    container.exec(["getent", "hosts", name]).is_ok_and(|output| output.ok().is_ok())
}

/// Simulates dockerd and ufw. Changes by legacy iptables are detected at once when its table
/// appears, and after half a minute later on, so they come last.
#[test]
fn containers_reach_the_outside_and_the_name_server_under_a_policy_of_drop() -> Result<()> {
    let lab = Lab::builder().hosts(2).underlay_ipv6(true).start()?;
    create_network(&lab, "app", &["--ipv6"])?;
    let backends = web(&lab, &[1, 2], &["-p", "8080:80", "-p", "8080:80/udp"])?;
    let c = &backends[0].container;
    let h1 = lab.host(1);
    assert!(reaches_outside(c, true));
    for variant in ["nft", "legacy"] {
        let run = |arguments: &[&str]| -> Result<()> {
            for program in ["iptables", "ip6tables"] {
                let command = format!("{program}-{variant}");
                h1.run([&[command.as_str()], arguments].concat())?.ok()?;
            }
            Ok(())
        };
        run(&["-P", "FORWARD", "DROP"])?;
        eventually("they reach the outside", PATIENCE * 4, || reaches_outside(c, true))?;
        for address in [h1.address().into(), std::net::IpAddr::from(h1.address6().expect("IPv6"))] {
            let target = SocketAddr::new(address, 8080);
            let report = load(&lab.client(), target, 40, 4)?.all_answered()?;
            assert_eq!(report.by_backend.len(), 2, "published ports answer: {report:?}");
            let any: std::net::IpAddr = if target.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
            let client = UdpClient::bind(&lab.client(), SocketAddr::new(any, 0))?;
            assert!(client.ask(target, PATIENCE)?.is_some(), "over UDP");
        }
        ask(h1.netns(), SocketAddr::new([127, 0, 0, 1].into(), 8080))?;
        if variant == "legacy" {
            break;
        }
        // Another program flushes the chain.
        run(&["-F", "FORWARD"])?;
        eventually("they reach the outside again", PATIENCE, || reaches_outside(c, true))?;
        run(&["-P", "FORWARD", "ACCEPT"])?;
        // A foreign chain to which another jumps, before any existing rule.
        run(&["-N", "DOCKER-USER"])?;
        run(&["-A", "DOCKER-USER", "-j", "DROP"])?;
        run(&["-I", "FORWARD", "1", "-j", "DOCKER-USER"])?;
        eventually("they reach the outside all the same", PATIENCE, || reaches_outside(c, true))?;
        run(&["-D", "FORWARD", "-j", "DOCKER-USER"])?;

        run(&["-P", "INPUT", "DROP"])?;
        run(&["-I", "INPUT", "-i", "eth0", "-j", "ACCEPT"])?;
        run(&["-I", "INPUT", "-i", "lo", "-j", "ACCEPT"])?;
        eventually("names are answered", PATIENCE, || resolves(c, "web"))?;
        run(&["-P", "INPUT", "ACCEPT"])?;
        run(&["-F", "INPUT"])?;
    }
    assert_eq!(problems(&h1), "[]");
    assert!(listing(&h1).contains("mesh-outside"));
    drop(backends);
    h1.run(["iptables-nft", "-P", "FORWARD", "DROP"])?.ok()?;
    lab.host(2).meshctl(["cluster", "leave", "--force"])?.ok()?;
    h1.meshctl(["cluster", "leave", "--force"])?.ok()?;
    assert!(!listing(&h1).contains("mesh-"), "nothing is left: {}", listing(&h1));
    Ok(())
}

fn listing(host: &Host) -> String {
    host.run(["iptables-legacy", "-S"]).and_then(mesh_harness::Output::text).unwrap_or_default()
}

#[test]
fn an_nftables_chain_that_drops_is_reported_with_the_missing_rules() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    create_network(&lab, "app", &[])?;
    let c = lab.container(1, "c1", ["--network", "app"])?;
    let h1 = lab.host(1);
    let nft = |rules: &str| h1.run(["nft", rules])?.ok().map(drop);
    nft(
        "add table inet corp; add chain inet corp through { type filter hook forward priority 10; policy drop; }",
    )?;
    nft("add chain inet corp incoming { type filter hook input priority 10; policy drop; }; \
         add rule inet corp incoming iifname eth0 accept; add rule inet corp incoming iifname lo accept")?;
    eventually("it is reported", PATIENCE, || {
        let problems = problems(&h1);
        problems.contains("nft insert rule inet corp through iifname mesh0 accept")
            && problems.contains("nft insert rule inet corp incoming iifname mesh0 meta l4proto { tcp, udp }")
    })?;
    assert!(!reaches_outside(&c, false));
    nft("insert rule inet corp through iifname mesh0 accept")?;
    nft("insert rule inet corp through oifname mesh0 ct state established,related accept")?;
    nft("insert rule inet corp incoming iifname mesh0 meta l4proto { tcp, udp } th dport 53 accept")?;
    eventually("the remedy helps", PATIENCE, || reaches_outside(&c, false) && problems(&h1) == "[]")?;
    // A chain that is the target of a jump, from a chain with policy accept.
    nft("add table inet site; add chain inet site user; add rule inet site user drop; \
         add chain inet site entry { type filter hook forward priority 20; }; \
         add rule inet site entry jump user")?;
    eventually("it is reported", PATIENCE, || {
        problems(&h1).contains("nft insert rule inet site entry iifname mesh0 accept")
    })?;
    assert!(!reaches_outside(&c, false));
    nft("insert rule inet site entry iifname mesh0 accept")?;
    nft("insert rule inet site entry oifname mesh0 ct state established,related accept")?;
    eventually("the remedy helps", PATIENCE, || reaches_outside(&c, false) && problems(&h1) == "[]")?;
    Ok(())
}
