//! Published ports answer on every interface of a host, and replies leave through the interface of
//! the request.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mesh_e2e::service::{add_backend, both, create_service, web};
use mesh_e2e::tunnel::Tunnel;
use mesh_e2e::{ENCAPSULATIONS, PATIENCE, create_network};
use mesh_harness::traffic::{Connection, ask, ask_from};
use mesh_harness::{
    BEHIND_SECOND_ROUTER, Container, Encapsulation, Host, Lab, Result, SECOND_ROUTER, eventually, ip_batch_in,
};

const PORTS: [&str; 4] = ["-p", "8080:80", "-p", "8080:80/udp"];

fn lab(hosts: u8, encapsulation: Encapsulation) -> Result<Lab> {
    let lab = Lab::builder()
        .hosts(hosts)
        .encapsulation(encapsulation)
        .underlay_ipv6(true)
        .second_nic(true)
        .start()?;
    create_network(&lab, "app", &["--ipv6"])?;
    Ok(lab)
}

/// Returns the published port on an address.
fn at(address: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(address.into(), 8080)
}

/// Creates a container of another runtime: on a bridge of the host, 172.30.0.1/24, with the host as
/// gateway.
fn foreign_container(lab: &Lab, host: &Host, bridge: &str) -> Result<Container> {
    let container = lab.namespace(1, "foreign")?;
    ip_batch_in(
        host.netns(),
        &[
            format!("link add {bridge} type bridge"),
            format!("addr add 172.30.0.1/24 dev {bridge}"),
            format!("link set {bridge} up"),
            format!("link add vforeign type veth peer name eth0 netns {}", container.netns().name()),
            format!("link set vforeign master {bridge} up"),
        ],
    )?;
    ip_batch_in(
        container.netns(),
        &[
            "addr add 172.30.0.2/24 dev eth0".to_owned(),
            "link set eth0 up".to_owned(),
            "route add default via 172.30.0.1".to_owned(),
        ],
    )?;
    Ok(container)
}

fn is_answered(netns: &mesh_harness::Netns, target: SocketAddr) -> Result<()> {
    eventually(&format!("{target} answers {}", netns.name()), PATIENCE, || ask(netns, target).is_ok())
}

#[test]
fn published_ports_answer_on_a_second_network_card_wherever_the_backend_is() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(2, encapsulation)?;
        let _backend = web(&lab, &[2], &PORTS)?;
        let client = lab.second_client();
        for host in lab.hosts() {
            for target in [at(host.second_address()), at(host.second_address6())] {
                for answer in both(&client, target)? {
                    let expected = if target.is_ipv4() { "10.99.0.200" } else { "fd99::200" };
                    assert_eq!(answer.client.ip().to_string(), expected, "through {target}");
                }
            }
            // From the other host, and from this one.
            for caller in lab.hosts() {
                both(caller.netns(), at(host.second_address()))?;
            }
            for offloads in [false, true] {
                lab.set_underlay_offloads(offloads)?;
                Connection::open(&client, at(host.second_address()))?.download(64 << 20)?;
            }
            // A client behind a router: with a specific route, then with a route that only
            // source-based routing selects.
            let device = "dev eth1";
            for routes in [
                vec![format!("route add 198.51.100.0/24 via {SECOND_ROUTER} {device}")],
                vec![
                    "route del 198.51.100.0/24".to_owned(),
                    format!("route add default via {SECOND_ROUTER} {device} table 99"),
                    format!("rule add from {} lookup 99", host.second_address()),
                ],
            ] {
                ip_batch_in(host.netns(), &routes)?;
                let source = SocketAddr::new(BEHIND_SECOND_ROUTER.into(), 0);
                let answer = ask_from(&lab.underlay(), source, at(host.second_address()))?;
                assert_eq!(answer.client.ip(), IpAddr::from(BEHIND_SECOND_ROUTER), "{routes:?}");
            }
            ip_batch_in(host.netns(), &[format!("rule del from {} lookup 99", host.second_address())])?;
        }
        let spec = ["-p", "10.99.0.1:8444:80", "-p", "10.99.0.1:8444:80/udp"];
        create_service(&lab, "one", &spec)?;
        let _backend = add_backend(&lab, 2, "only", "one")?;
        let target = SocketAddr::new(lab.host(1).second_address().into(), 8444);
        for caller in [&client, lab.host(1).netns(), lab.host(2).netns()] {
            assert_eq!(both(caller, target)?.map(|answer| answer.backend), ["only", "only"]);
        }
        assert!(ask(&client, SocketAddr::new(lab.host(2).second_address().into(), 8444)).is_err());
    }
    Ok(())
}

#[test]
fn a_container_on_a_foreign_bridge_reaches_published_ports_of_its_own_host() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(2, encapsulation)?;
        let host = lab.host(1);
        // The bridge exists before the service, and is renamed after it.
        let foreign = foreign_container(&lab, &host, "docker0")?;
        let _backends = web(&lab, &[1, 2], &PORTS)?;
        let addresses = [Ipv4Addr::new(172, 30, 0, 1), host.address(), host.second_address()];
        for address in addresses {
            is_answered(foreign.netns(), at(address))?;
            let answers = (0..8).map(|_| both(foreign.netns(), at(address))).collect::<Result<Vec<_>>>()?;
            let mut answers: Vec<_> = answers.into_iter().flatten().collect();
            assert!(
                answers.iter().all(|answer| answer.client.ip().to_string() == "172.30.0.2"),
                "{answers:?}"
            );
            answers.sort_by(|one, other| one.backend.cmp(&other.backend));
            answers.dedup_by(|one, other| one.backend == other.backend);
            assert_eq!(answers.len(), 2, "backends on either host answer at {address}: {answers:?}");
        }
        Connection::open(foreign.netns(), at(host.address()))?.download(64 << 20)?;
    }
    Ok(())
}

/// With direct return, the backend's host answers only clients that all hosts reach.
#[test]
fn with_direct_return_a_client_of_one_host_only_is_answered_by_that_host() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder()
            .hosts(2)
            .encapsulation(encapsulation)
            .second_nic(true)
            .init_args(["--dsr"])
            .start()?;
        create_network(&lab, "app", &[])?;
        let host = lab.host(1);
        let foreign = foreign_container(&lab, &host, "docker0")?;
        let _backend = web(&lab, &[2], &PORTS)?;
        let (here, there) = (Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2));
        let client = lab.client();
        let ends = [(host.netns(), host.address().into(), here), (&client, lab.client_address(), there)];
        let _tunnel = Tunnel::join(&lab, ends)?;
        for (netns, address, seen) in [
            (foreign.netns(), Ipv4Addr::new(172, 30, 0, 1), "172.30.0.2".to_owned()),
            (foreign.netns(), host.address(), "172.30.0.2".to_owned()),
            (&client, here, there.to_string()),
            (&lab.second_client(), host.second_address(), lab.second_client_address().to_string()),
        ] {
            is_answered(netns, at(address))?;
            for answer in both(netns, at(address))? {
                assert_eq!(answer.client.ip().to_string(), seen, "{encapsulation:?}, {address}");
            }
            Connection::open(netns, at(address))?.download(16 << 20)?;
        }
    }
    Ok(())
}

#[test]
fn added_removed_and_renamed_interfaces_are_followed() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct)?;
    let host = lab.host(1);
    let _backend = web(&lab, &[2], &PORTS)?;
    let foreign = foreign_container(&lab, &host, "br-late")?;
    is_answered(foreign.netns(), at(host.address()))?;
    let mut kept = Connection::open(foreign.netns(), at(host.address()))?;
    kept.ask()?;
    host.run(["ip", "link", "set", "br-late", "name", "br-later"])?.ok()?;
    kept.ask()?;
    is_answered(foreign.netns(), at(host.address()))?;
    // An interface that only some of the configured patterns match.
    lab.set_meshd_config("publish_interfaces = [\"eth*\", \"!eth1\"]")?;
    host.restart_meshd()?;
    let (client, second) = (lab.client(), lab.second_client());
    let refused = |netns: &mesh_harness::Netns, address| {
        eventually("it is refused", PATIENCE, || ask(netns, at(address)).is_err())
    };
    refused(foreign.netns(), host.address())?;
    refused(&second, host.second_address())?;
    ask(&lab.client(), at(host.address()))?;
    host.run(["ip", "link", "set", "br-later", "name", "ethbr"])?.ok()?;
    is_answered(foreign.netns(), at(host.address()))?;
    // The data-path interface itself may be excluded.
    lab.set_meshd_config("publish_interfaces = [\"!eth0\"]")?;
    host.restart_meshd()?;
    is_answered(&lab.second_client(), at(host.second_address()))?;
    refused(&client, host.address())?;
    ask(&lab.client(), at(lab.host(2).address()))?;
    // A network card is replaced.
    lab.set_meshd_config("")?;
    host.restart_meshd()?;
    ip_batch_in(host.netns(), &["link del eth1".to_owned()])?;
    assert!(ask(&lab.second_client(), at(host.second_address())).is_err());
    host.reboot()?;
    is_answered(&lab.second_client(), at(host.second_address()))?;
    Ok(())
}

#[test]
fn published_ports_answer_through_a_tunnel_without_ethernet_headers() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(2, encapsulation)?;
        let host = lab.host(1);
        let _backends = web(&lab, &[1, 2], &PORTS)?;
        let (here, there) = (Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2));
        let client = lab.client();
        let ends = [(host.netns(), host.address().into(), here), (&client, lab.client_address(), there)];
        let _tunnel = Tunnel::join(&lab, ends)?;
        is_answered(&client, at(here))?;
        let mut answers = Vec::new();
        for _ in 0..8 {
            answers.extend(both(&client, at(here))?);
        }
        assert!(answers.iter().all(|answer| answer.client.ip() == IpAddr::from(there)), "{answers:?}");
        for name in ["b1", "b2"] {
            assert!(answers.iter().any(|answer| answer.backend == name), "{name}: {answers:?}");
        }
        for _ in 0..4 {
            Connection::open(&client, at(here))?.download(16 << 20)?;
        }
        // No listener, and no published port.
        let error = ask(&client, SocketAddr::new(here.into(), 8079)).expect_err("a closed port").to_string();
        assert!(error.contains("refused"), "{error}");
    }
    Ok(())
}

#[test]
fn an_encrypted_networks_published_port_answers_on_a_second_network_card() -> Result<()> {
    let lab = Lab::builder().hosts(2).second_nic(true).start()?;
    create_network(&lab, "app", &["--encrypted"])?;
    let _backends = web(&lab, &[1, 2], &PORTS)?;
    for host in lab.hosts() {
        for _ in 0..6 {
            for answer in both(&lab.second_client(), at(host.second_address()))? {
                assert_eq!(answer.client.ip(), lab.second_client_address());
            }
        }
    }
    Ok(())
}
