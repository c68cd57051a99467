//! Published ports and the hosts' own sockets: a port is published only if no socket uses it, and a
//! later conflict is reported on the host that has it.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use mesh_e2e::service::{add_backend, any_port};
use mesh_e2e::{PATIENCE, create_network, json, refused};
use mesh_harness::traffic::UdpClient;
use mesh_harness::{Encapsulation, Host, Lab, Output, Result, eventually};

fn lab(hosts: u8) -> Result<Lab> {
    let lab = Lab::builder().hosts(hosts).encapsulation(Encapsulation::Direct).start()?;
    create_network(&lab, "app", &[])?;
    Ok(lab)
}

fn problems(host: &Host) -> Vec<String> {
    let status = json(host, &["status"]).unwrap_or_default();
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    problems.iter().filter_map(|problem| problem.as_str().map(str::to_owned)).collect()
}

/// Returns whether a problem on this host names the port's conflict.
fn reports(host: &Host, port: &str) -> bool {
    let conflict = |problem: &String| problem.contains(&format!("port {port} of service"));
    problems(host).iter().any(conflict)
}

#[test]
fn ten_thousand_ports_are_checked_and_published_in_one_change() -> Result<()> {
    let lab = lab(2)?;
    let specs: Vec<String> = (20_000..30_000).map(|port| format!("{port}:80/udp")).collect();
    let ports: Vec<&str> = specs.iter().flat_map(|spec| ["-p", spec]).collect();
    let create = || {
        lab.host(1).meshctl([&["service", "create", "--name", "web", "--network", "app"], &*ports].concat())
    };
    let sessions = || lab.host(1).log().matches("a session ended").count();
    let before = sessions();
    let socket = lab.host(2).netns().enter(|| UdpSocket::bind(("0.0.0.0", 29_999)))?.expect("a free port");
    let error = refused(&create()?, 4);
    assert!(error.contains("port 29999/udp is in use on node h2"), "{error}");
    drop(socket);
    create()?.ok()?;
    assert_eq!(sessions(), before, "no session ends for it");
    let _backend = add_backend(&lab, 2, "b1", "web")?;
    let client = UdpClient::bind(&lab.client(), any_port())?;
    for port in [20_000, 29_999] {
        let target = SocketAddr::new(lab.host(1).address().into(), port);
        assert!(client.ask(target, PATIENCE)?.is_some(), "port {port} is answered");
    }
    Ok(())
}

#[test]
fn a_node_that_was_away_or_gets_a_later_socket_reports_port_conflicts() -> Result<()> {
    let lab = lab(3)?;
    let (h2, h3) = (lab.host(2), lab.host(3));
    let publish = |name: &str, port: &str| -> Result<Output> {
        lab.host(1).meshctl(["service", "create", "--name", name, "--network", "app", "-p", port])
    };
    h3.kill_meshd()?;
    let listener = h3.netns().enter(|| TcpListener::bind(("0.0.0.0", 8080)))?.expect("a free port");
    eventually("h3 is away", PATIENCE, || {
        lab.host(1).node_states().is_ok_and(|states| states.get("h3").is_some_and(|state| state != "ready"))
    })?;
    let published = publish("web", "8080:80")?.ok()?;
    assert!(published.stderr.contains("warning: node h3 is not connected"), "{published:?}");
    assert!(!published.stderr.contains("h2"), "{published:?}");
    h3.start_meshd()?;
    eventually("h3 reports the conflict", PATIENCE, || reports(&h3, "8080/tcp"))?;
    drop(listener);
    eventually("the conflict is over", PATIENCE, || !reports(&h3, "8080/tcp"))?;

    // With all nodes in session there is nothing to warn of; a socket that is opened later is
    // reported.
    let published = publish("dns", "8053:53/udp")?.ok()?;
    assert_eq!(published.stderr, "");
    let socket = h2.netns().enter(|| UdpSocket::bind((h2.address(), 8053)))?.expect("a free port");
    eventually("h2 reports the conflict", PATIENCE, || reports(&h2, "8053/udp"))?;
    assert!(!reports(&h3, "8053/udp"));
    drop(socket);
    eventually("the conflict is over", PATIENCE, || !reports(&h2, "8053/udp"))
}
