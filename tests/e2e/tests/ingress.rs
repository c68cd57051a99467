//! Published ports: every host answers any client, and the backend sees the client's real address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use mesh_e2e::service::{add_backend, any_port, both, change_backend, create_service, open_connections, web};
use mesh_e2e::{ENCAPSULATIONS, PATIENCE, create_network, json, refused};
use mesh_harness::traffic::{Connection, TcpSink, UdpClient, ask, tcp_send};
use mesh_harness::{Encapsulation, Host, Lab, Result, eventually};

const GIB: u64 = 1 << 30;
const PORTS: [&str; 4] = ["-p", "8080:80", "-p", "8080:80/udp"];

fn lab(hosts: u8, encapsulation: Encapsulation) -> Result<Lab> {
    let lab = Lab::builder().hosts(hosts).encapsulation(encapsulation).start()?;
    create_network(&lab, "app", &[])?;
    Ok(lab)
}

fn published(host: &Host) -> SocketAddr {
    SocketAddr::new(host.address().into(), 8080)
}

#[test]
fn every_host_answers_a_published_port_and_the_backend_sees_the_real_caller() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(3, encapsulation)?;
        // Backends on two hosts; the third has none, and not even the network.
        let _backends = web(&lab, &[1, 2], &PORTS)?;
        for host in lab.hosts() {
            let own: IpAddr = host.address().into();
            for answer in both(&lab.client(), published(&host))? {
                assert_eq!(answer.client.ip(), lab.client_address(), "from outside, through {}", host.name());
            }
            for target in [published(&host), SocketAddr::new([127, 0, 0, 1].into(), 8080)] {
                for answer in both(host.netns(), target)? {
                    assert_eq!(answer.client.ip(), own, "from {} itself, by {target}", host.name());
                }
            }
        }
        // From one host through another.
        for answer in both(lab.host(3).netns(), published(&lab.host(1)))? {
            assert_eq!(answer.client.ip(), IpAddr::V4(lab.host(3).address()));
        }
    }
    Ok(())
}

#[test]
fn containers_reach_published_ports_like_other_clients() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(3, encapsulation)?;
        create_network(&lab, "other", &[])?;
        let _backends = web(&lab, &[1, 2], &PORTS)?;
        for (name, network) in [("mine", "app"), ("foreign", "other")] {
            let container = lab.container(1, name, ["--network", network])?;
            for answer in both(container.netns(), published(&lab.host(1)))? {
                assert_eq!(answer.client.ip(), IpAddr::V4(container.ipv4()?), "{name} by its own host");
            }
            for number in [2, 3] {
                for answer in both(container.netns(), published(&lab.host(number)))? {
                    assert_eq!(
                        answer.client.ip(),
                        IpAddr::V4(lab.host(1).address()),
                        "{name} by host {number}"
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_published_port_is_answered_over_ipv6() -> Result<()> {
    let lab = Lab::builder().hosts(3).underlay_ipv6(true).start()?;
    create_network(&lab, "app", &["--ipv6"])?;
    let _backends = web(&lab, &[1, 2], &PORTS)?;
    for host in lab.hosts() {
        let address = host.address6().expect("an IPv6 underlay");
        for answer in both(&lab.client(), SocketAddr::new(address.into(), 8080))? {
            assert_eq!(answer.client.ip().to_string(), "fd77::200", "through {}", host.name());
        }
        for target in [address.into(), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])] {
            for answer in both(host.netns(), SocketAddr::new(target, 8080))? {
                assert_eq!(
                    answer.client.ip(),
                    IpAddr::V6(address),
                    "from {} itself, by {target}",
                    host.name()
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_gibibyte_through_a_published_port_arrives_undamaged_with_offloads_on_and_off() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(2, encapsulation)?;
        // A second port for uploads to the backend.
        let backends = web(&lab, &[2], &["-p", "8080:80", "-p", "9000:9000"])?;
        for offloads in [true, false] {
            lab.set_underlay_offloads(offloads)?;
            for host in lab.hosts() {
                Connection::open(&lab.client(), published(&host))?.download(GIB / 2)?;
                let sink =
                    TcpSink::listen(backends[0].container.netns(), SocketAddr::new([0; 4].into(), 9000))?;
                let sent = tcp_send(&lab.client(), SocketAddr::new(host.address().into(), 9000), GIB / 4, 1)?;
                assert_eq!(sink.finish()?.sha256, sent);
            }
            let host = lab.host(1);
            Connection::open(host.netns(), SocketAddr::new([127, 0, 0, 1].into(), 8080))?
                .download(GIB / 8)?;
        }
    }
    Ok(())
}

#[test]
fn a_port_published_on_loopback_is_reachable_only_from_the_same_host() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(2, encapsulation)?;
        let _backends = web(&lab, &[2], &["-p", "127.0.0.1:8080:80", "-p", "127.0.0.1:8080:80/udp"])?;
        for host in lab.hosts() {
            let own: IpAddr = host.address().into();
            for answer in both(host.netns(), SocketAddr::new([127, 0, 0, 1].into(), 8080))? {
                assert_eq!(answer.client.ip(), own, "from {} itself", host.name());
            }
            assert!(ask(host.netns(), published(&host)).is_err(), "by another address of {}", host.name());
            assert!(ask(&lab.client(), published(&host)).is_err(), "from outside, through {}", host.name());
        }
    }
    Ok(())
}

#[test]
fn a_port_published_on_one_address_is_answered_only_there() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(2, encapsulation)?;
        let (host, other, client) = (lab.host(1), lab.host(2), lab.client());
        let second = Ipv4Addr::new(192, 168, 77, 50);
        host.add_address(second)?;
        // The same port on two addresses of one host, each of another service.
        let published = [(host.address(), "first", 1), (second, "second", 2)];
        let mut backends = Vec::new();
        for (address, name, number) in published {
            let [tcp, udp] = ["tcp", "udp"].map(|protocol| format!("{address}:8080:80/{protocol}"));
            create_service(&lab, name, &["-p", &tcp, "-p", &udp])?;
            backends.push(add_backend(&lab, number, &format!("b{number}"), name)?);
        }
        let target = SocketAddr::new(second.into(), 8080);
        eventually("the address is known", PATIENCE, || ask(&client, target).is_ok())?;
        for (address, _, number) in published {
            let target = SocketAddr::new(address.into(), 8080);
            let callers = [
                (host.netns(), host.address().into()),
                (other.netns(), other.address().into()),
                (&client, lab.client_address()),
            ];
            for (caller, its_address) in callers {
                for answer in both(caller, target)? {
                    assert_eq!(answer.backend, format!("b{number}"), "by {address} from {}", caller.name());
                    assert_eq!(answer.client.ip(), its_address, "by {address} from {}", caller.name());
                }
            }
            Connection::open(host.netns(), target)?.download(GIB / 64)?;
        }
        for elsewhere in [Ipv4Addr::LOCALHOST, other.address()] {
            let target = SocketAddr::new(elsewhere.into(), 8080);
            let error = ask(host.netns(), target).expect_err("not published there").to_string();
            assert!(error.contains("refused"), "{elsewhere}: {error}");
        }
    }
    Ok(())
}

#[test]
fn published_ports_work_with_any_host_firewall() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct)?;
    let _backends = web(&lab, &[2], &PORTS)?;
    for host in lab.hosts() {
        host.run(["nft", "flush", "ruleset"])?.ok()?;
        host.run(["iptables", "-P", "FORWARD", "DROP"])?.ok()?;
    }
    for host in lab.hosts() {
        for answer in both(&lab.client(), published(&host))? {
            assert_eq!(answer.client.ip(), lab.client_address());
        }
        both(host.netns(), SocketAddr::new([127, 0, 0, 1].into(), 8080))?;
    }
    Ok(())
}

#[test]
fn a_connection_survives_its_address_moving_to_another_host() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = lab(3, encapsulation)?;
        let _backends = web(&lab, &[1, 2, 3], &PORTS)?;
        let floating = Ipv4Addr::new(192, 168, 77, 250);
        let target = SocketAddr::new(floating.into(), 8080);
        lab.host(1).add_address(floating)?;
        eventually("the address is published too", PATIENCE, || ask(&lab.client(), target).is_ok())?;
        let mut open = open_connections(&lab.client(), target, 30)?;
        for (from, to) in [(1, 2), (2, 3), (3, 1)] {
            lab.move_address(floating, &lab.host(from), &lab.host(to))?;
            for (backend, connection) in &mut open {
                assert_eq!(connection.ask()?.backend, *backend, "moved from h{from} to h{to}");
            }
            Connection::open(&lab.client(), target)?.download(1 << 20)?;
        }
    }
    Ok(())
}

#[test]
fn an_outside_udp_flow_continues_at_once_after_its_backend_was_removed() -> Result<()> {
    let lab = lab(3, Encapsulation::Direct)?;
    let _backends = web(&lab, &[1, 2, 2], &PORTS)?;
    let socket = UdpClient::bind(&lab.client(), SocketAddr::new(lab.client_address(), 5353))?;
    let target = published(&lab.host(3));
    for _ in 0..2 {
        let first = socket.ask(target, PATIENCE)?.expect("an answer");
        change_backend(&lab.host(1), "rm", "web", &first.backend)?.ok()?;
        let next = socket.ask(target, PATIENCE)?.expect("an answer to the very next datagram");
        assert_ne!(next.backend, first.backend);
    }
    Ok(())
}

#[test]
fn a_port_in_use_is_refused_and_the_error_names_the_user() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct)?;
    let create = |name: &str, spec: &str| {
        lab.host(1).meshctl(["service", "create", "--name", name, "--network", "app", "-p", spec])
    };
    create("web", "8080:80")?.ok()?;
    assert!(refused(&create("twin", "8080:81")?, 4).contains("web"));
    assert!(refused(&create("twin", "192.168.77.11:8080:81")?, 4).contains("web"));
    // Another protocol is another port, and so is another address.
    create("datagrams", "8080:80/udp")?.ok()?;
    create("one", "192.168.77.11:8081:80")?.ok()?;
    create("two", "192.168.77.12:8081:80")?.ok()?;
    refused(&create("three", "8081:80")?, 4);

    let host = lab.host(2);
    let listener = host.netns().enter(|| TcpListener::bind(("0.0.0.0", 9090)))?.expect("a free port");
    let error = refused(&create("late", "9090:80")?, 4);
    assert!(error.contains("h2") && error.contains("9090"), "{error}");
    drop(listener);
    create("late", "9090:80")?.ok()?;
    // A socket on one address conflicts with a port on that address, or on all.
    let listener = host.netns().enter(|| TcpListener::bind((host.address(), 9091)))?.expect("a free port");
    create("elsewhere", "192.168.77.11:9091:80")?.ok()?;
    for spec in ["192.168.77.12:9091:80", "9091:80"] {
        refused(&create("there", spec)?, 4);
    }
    drop(listener);
    create("there", "192.168.77.12:9091:80")?.ok()?;
    // A refused request leaves nothing behind.
    let names = lab.host(1).meshctl(["service", "ls", "--format", "json"])?.text()?;
    assert!(!names.contains("twin") && !names.contains("three"), "{names}");
    Ok(())
}

#[test]
fn five_hundred_ports_are_published_and_unpublished_at_once() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct)?;
    let specs: Vec<String> = (0..500).map(|number| format!("{}:80/udp", 20_000 + number)).collect();
    let options: Vec<&str> = specs.iter().flat_map(|spec| ["-p", spec]).collect();
    create_service(&lab, "web", &options)?;
    let _backend = add_backend(&lab, 2, "b1", "web")?;
    let service = json(&lab.host(1), &["service", "inspect", "web"])?;
    assert_eq!(service["ports"].as_array().map(Vec::len), Some(500));
    let socket = UdpClient::bind(&lab.client(), any_port())?;
    for port in [20_000, 20_128, 20_129, 20_499] {
        let target = SocketAddr::new(lab.host(1).address().into(), port);
        assert_eq!(socket.ask(target, PATIENCE)?.expect("an answer").client.ip(), lab.client_address());
    }
    lab.host(1).meshctl(["service", "update", "web", "--publish-rm", "20499:80/udp"])?.ok()?;
    let closed = SocketAddr::new(lab.host(1).address().into(), 20_499);
    assert_eq!(socket.ask(closed, Duration::from_millis(500))?, None);
    lab.host(1).meshctl(["service", "rm", "web"])?.ok()?;
    let closed = SocketAddr::new(lab.host(1).address().into(), 20_000);
    assert_eq!(socket.ask(closed, Duration::from_millis(500))?, None);
    Ok(())
}

#[test]
fn a_port_published_in_host_mode_is_answered_where_a_backend_is() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct)?;
    let _backends = web(&lab, &[1], &["-p", "published=8080,target=80,mode=host"])?;
    let answer = ask(&lab.client(), published(&lab.host(1)))?;
    assert_eq!((answer.backend.as_str(), answer.client.ip()), ("b1", lab.client_address()));
    assert!(ask(&lab.client(), published(&lab.host(2))).is_err());
    let _second = add_backend(&lab, 2, "b2", "web")?;
    assert_eq!(ask(&lab.client(), published(&lab.host(2)))?.backend, "b2");
    assert_eq!(ask(&lab.client(), published(&lab.host(1)))?.backend, "b1");
    Ok(())
}

#[test]
fn a_port_without_a_number_gets_a_free_one_and_an_address_limits_where_it_is_answered() -> Result<()> {
    let lab = lab(2, Encapsulation::Direct)?;
    create_service(&lab, "web", &["-p", ":80", "-p", "192.168.77.12:8080:80"])?;
    let _backend = add_backend(&lab, 1, "b1", "web")?;
    let service = json(&lab.host(1), &["service", "inspect", "web"])?;
    let ports: Vec<u64> =
        service["ports"].as_array().into_iter().flatten().filter_map(|p| p["published"].as_u64()).collect();
    let chosen = ports.iter().copied().find(|port| (30_000..=32_767).contains(port)).expect("a chosen port");
    let chosen = u16::try_from(chosen).expect("a port");
    for host in lab.hosts() {
        assert_eq!(ask(&lab.client(), SocketAddr::new(host.address().into(), chosen))?.backend, "b1");
    }
    assert_eq!(ask(&lab.client(), published(&lab.host(2)))?.backend, "b1");
    assert!(ask(&lab.client(), published(&lab.host(1))).is_err());
    Ok(())
}

#[test]
fn the_same_flow_gets_the_same_backend_on_every_host() -> Result<()> {
    let lab = lab(3, Encapsulation::Direct)?;
    let _backends = web(&lab, &[1, 2, 3], &PORTS)?;
    let floating = std::net::Ipv4Addr::new(192, 168, 77, 250);
    let target = SocketAddr::new(floating.into(), 8080);
    let ask_from = |port| -> Result<String> {
        let source = SocketAddr::new(lab.client_address(), port);
        Ok(Connection::open_from(&lab.client(), Some(source), target)?.ask()?.backend)
    };
    lab.host(1).add_address(floating)?;
    eventually("the address is published too", PATIENCE, || ask(&lab.client(), target).is_ok())?;
    let mut before = Vec::new();
    for port in 20_000..20_050 {
        before.push(ask_from(port)?);
    }
    lab.move_address(floating, &lab.host(1), &lab.host(2))?;
    eventually("the address is published there", PATIENCE, || ask(&lab.client(), target).is_ok())?;
    for (port, backend) in (20_000..20_050).zip(before) {
        assert_eq!(ask_from(port)?, backend);
    }
    Ok(())
}

/// Returns the bytes that a host has sent through its underlay.
fn sent_bytes(host: &Host) -> Result<u64> {
    let links = host.run(["ip", "-j", "-s", "link", "show", "dev", "eth0"])?.text()?;
    let links: serde_json::Value = serde_json::from_str(&links).expect("JSON of ip");
    Ok(links[0]["stats64"]["tx"]["bytes"].as_u64().expect("a counter"))
}

#[test]
fn with_direct_return_the_backends_host_answers_and_flows_stay() -> Result<()> {
    const DOWNLOAD: u64 = 64 << 20;
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder().hosts(2).encapsulation(encapsulation).init_args(["--dsr"]).start()?;
        create_network(&lab, "app", &[])?;
        assert_eq!(json(&lab.host(1), &["cluster", "status"])?["dsr"], true);
        let on_one = ["-p", "192.168.77.11:8081:80", "-p", "192.168.77.11:8081:80/udp"];
        let _backend = web(&lab, &[2], &[PORTS, on_one].concat())?;
        for answer in both(&lab.client(), published(&lab.host(1)))? {
            assert_eq!(answer.client.ip(), lab.client_address());
        }
        let mut connection = Connection::open(&lab.client(), published(&lab.host(1)))?;
        connection.ask()?;
        let before = sent_bytes(&lab.host(1))?;
        Connection::open(&lab.client(), published(&lab.host(1)))?.download(DOWNLOAD)?;
        let passed = sent_bytes(&lab.host(1))? - before;
        assert!(passed < DOWNLOAD / 4, "{passed} bytes of {DOWNLOAD} went by the host that was asked");
        // Clients inside the cluster are answered by the receiving host.
        let container = lab.container(1, "c1", ["--network", "app"])?;
        for (netns, target) in [
            (container.netns(), published(&lab.host(1))),
            (lab.host(1).netns(), SocketAddr::new([127, 0, 0, 1].into(), 8080)),
            (lab.host(1).netns(), SocketAddr::new(lab.host(1).address().into(), 8081)),
            (lab.host(2).netns(), published(&lab.host(1))),
        ] {
            both(netns, target)?;
        }
        // The receiving host sees no reply, but still remembers the flow.
        let _others = [add_backend(&lab, 1, "b2", "web")?, add_backend(&lab, 2, "b3", "web")?];
        lab.host(1).meshctl(["service", "backend", "drain", "web", "b1"])?.ok()?;
        assert_eq!(connection.ask()?.backend, "b1");
        assert_ne!(ask(&lab.client(), published(&lab.host(1)))?.backend, "b1");
    }
    Ok(())
}
