//! Servers that say who asked, and their clients.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use mesh_harness::{
    Lab, Result, eventually,
    traffic::{Connection, Load, UdpClient, WebServer, ask, load},
};

const PATIENCE: Duration = Duration::from_secs(10);

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)
}

#[test]
fn a_server_says_its_name_and_who_asked_over_tcp_and_udp() -> Result<()> {
    let lab = Lab::builder().hosts(1).without_meshd().start()?;
    let server = WebServer::start(lab.host(1).netns(), "one", 80)?;
    let target = SocketAddr::new(lab.host(1).address().into(), server.port());
    let answer = ask(&lab.client(), target)?;
    assert_eq!((answer.backend.as_str(), answer.client.ip()), ("one", lab.client_address()));
    let client = UdpClient::bind(&lab.client(), any(5555))?;
    let answer = client.ask(target, PATIENCE)?.expect("an answer");
    assert_eq!(
        (answer.backend.as_str(), answer.client),
        ("one", SocketAddr::new(lab.client_address(), 5555))
    );
    assert_eq!(server.answered(), 2);
    let curl = lab.client().run(["curl", "-sS", &format!("http://{target}/")])?.text()?;
    assert!(curl.starts_with("one 192.168.77.200:"), "{curl}");
    drop(server);
    assert_eq!(client.ask(target, PATIENCE)?, None);
    assert!(ask(&lab.client(), target).is_err());
    Ok(())
}

#[test]
fn an_open_connection_is_asked_again_and_downloads_what_the_server_has() -> Result<()> {
    let lab = Lab::builder().hosts(1).without_meshd().start()?;
    let _server = WebServer::start(lab.host(1).netns(), "one", 80)?;
    let target = SocketAddr::new(lab.host(1).address().into(), 80);
    let source = SocketAddr::new(lab.client_address(), 6000);
    let mut connection = Connection::open_from(&lab.client(), Some(source), target)?;
    assert_eq!(connection.ask()?.client, source);
    assert_eq!(connection.download((64 << 20) + 7)?.bytes, (64 << 20) + 7);
    assert_eq!(connection.ask()?.client, source);
    drop(connection);
    // The same source port again, at once.
    assert_eq!(Connection::open_from(&lab.client(), Some(source), target)?.ask()?.client, source);
    Ok(())
}

#[test]
fn a_load_counts_answers_and_failures() -> Result<()> {
    let lab = Lab::builder().hosts(1).without_meshd().start()?;
    let server = WebServer::start(lab.host(1).netns(), "one", 80)?;
    let target = SocketAddr::new(lab.host(1).address().into(), 80);
    let report = load(&lab.client(), target, 3000, 4)?.all_answered()?;
    assert_eq!((report.answered, report.by_backend["one"]), (3000, 3000));
    assert_eq!(report.seen_clients.into_iter().collect::<Vec<IpAddr>>(), [lab.client_address()]);

    let load = Load::start(&lab.client(), target, 2);
    load.wait_for_more(100, PATIENCE)?;
    drop(server);
    eventually("requests fail", PATIENCE, || load.wait_for_more(10, PATIENCE).is_ok())?;
    let report = load.stop()?;
    assert!(report.failed > 0 && report.answered >= 100, "{report:?}");
    assert!(report.all_answered().is_err());
    Ok(())
}
