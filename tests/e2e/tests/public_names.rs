//! Names outside the mesh: only the host's resolvers are queried.

use std::net::{Ipv4Addr, TcpStream, UdpSocket};

use mesh_e2e::create_network;
use mesh_harness::traffic::NameServer;
use mesh_harness::{Container, Lab, Result};

const VERCEL: &str = "203.0.113.1";
const EXAMPLE: &str = "203.0.113.2";

/// Returns the first address that the C library finds.
fn getent(container: &Container, name: &str) -> Result<Option<String>> {
    let output = container.exec(["getent", "ahostsv4", name])?;
    Ok(output.success().then(|| output.stdout.split_whitespace().next().unwrap_or_default().to_owned()))
}

fn record((name, address): (&'static str, &str)) -> (&'static str, Ipv4Addr) {
    (name, address.parse().expect("an address"))
}

fn found(container: &Container, name: &str, address: &str) -> Result<()> {
    assert_eq!(getent(container, name)?, Some(address.to_owned()), "{name}");
    Ok(())
}

#[test]
fn a_networks_name_hides_no_public_domain_and_no_name_of_a_container_leaves_the_host() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    let public = [("vercel.app", VERCEL), ("www.example.com", EXAMPLE), ("example.com", EXAMPLE)];
    let public = NameServer::start(&lab.client(), &public.map(record))?;
    for (name, options) in [("app", &[][..]), ("back", &["--internal"]), ("example.com", &[])] {
        create_network(&lab, name, options)?;
    }
    let web = lab.container(1, "web", ["--network", "app"])?;
    let redis = lab.container(1, "redis", ["--network", "back"])?;
    let shop = lab.container(1, "shop", ["--network", "example.com", "--alias", "db"])?;
    let both = lab.container(1, "both", ["--network", "back", "--name", "both-back"])?;
    lab.container(1, "both", ["--network", "app", "--name", "both-app", "--ifname", "eth1"])?;

    let seen = both.exec(["cat", "/etc/resolv.conf"])?.text()?;
    assert_eq!(seen.matches("nameserver").count(), 1, "{seen}");
    for name in ["redis", "redis.back"] {
        found(&both, name, &redis.ipv4()?.to_string())?;
    }
    for name in ["web", "web.app"] {
        found(&both, name, &web.ipv4()?.to_string())?;
    }
    // Regardless of which server it queries.
    for server in ["10.64.0.1", "10.64.16.1"] {
        for (name, address) in [("redis.back", redis.ipv4()?), ("web", web.ipv4()?)] {
            let argv = ["dig", "+short", "+tries=2", &format!("@{server}"), name];
            assert_eq!(both.exec(argv)?.text()?.trim(), address.to_string(), "{name} at {server}");
        }
    }
    assert_eq!(getent(&both, "nobody")?, None);
    assert_eq!(public.asked(), Vec::<String>::new());

    // Through its network with outside access; a container only in the internal network gets no
    // answer.
    found(&both, "vercel.app", VERCEL)?;
    found(&web, "vercel.app", VERCEL)?;
    assert_eq!(getent(&redis, "vercel.app")?, None);
    for (name, address) in [("www.example.com", EXAMPLE), ("example.com", EXAMPLE)] {
        found(&shop, name, address)?;
    }
    found(&shop, "db.example.com", &shop.ipv4()?.to_string())?;
    assert_eq!(getent(&web, "nobody.app")?, None);
    let asked = public.asked();
    assert!(asked.iter().all(|name| name.contains('.')), "{asked:?}");
    assert!(!asked.iter().any(|name| name.contains("redis") || name.contains("db.")), "{asked:?}");
    Ok(())
}

#[test]
fn slow_and_broken_names_of_one_container_do_not_affect_others() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    let _public = NameServer::start(&lab.client(), &[record(("www.example.com", EXAMPLE))])?;
    create_network(&lab, "app", &[])?;
    let (busy, other) =
        (lab.container(1, "busy", ["--network", "app"])?, lab.container(1, "other", ["--network", "app"])?);
    assert_eq!(getent(&busy, "loop.example.com")?, None, "the answer is malformed");
    // Late, but still accepted.
    found(&busy, "slow.example.com", "203.0.113.53")?;
    // Enough concurrent queries to use all slots of the network.
    let flood = busy.netns().enter(|| UdpSocket::bind("0.0.0.0:0"))?.expect("a socket");
    for number in 0..600_u16 {
        flood.send_to(&question(number, &format!("slow{number}")), "10.64.0.1:53").expect("it is sent");
    }
    found(&other, "www.example.com", EXAMPLE)?;
    let mut connections = Vec::new();
    for _ in 0..500 {
        connections.push(busy.netns().enter(|| TcpStream::connect("10.64.0.1:53"))?.expect("a connection"));
    }
    let over_tcp =
        other.exec(["dig", "+tcp", "+short", "+tries=1", "+time=5", "@10.64.0.1", "busy"])?.text()?;
    assert_eq!(over_tcp.trim(), busy.ipv4()?.to_string());
    Ok(())
}

/// Returns a query for the address of LABEL.example.com.
fn question(id: u16, label: &str) -> Vec<u8> {
    let mut message = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in [label, "example", "com"] {
        message.push(u8::try_from(label.len()).expect("a short label"));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}
