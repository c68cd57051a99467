//! Backends are checked on their nodes, and every node uses the results, with or without a manager.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use mesh_e2e::service::{
    TARGET, add_backend, backends, change_backend, create_service, vip, wait_for_health, web, who_answers,
};
use mesh_e2e::{PATIENCE, create_network, json, refused};
use mesh_harness::{Lab, Result, eventually};

fn lab(hosts: u8) -> Result<Lab> {
    let lab = Lab::builder().hosts(hosts).start()?;
    create_network(&lab, "app", &[])?;
    Ok(lab)
}

#[test]
fn an_unhealthy_backend_gets_no_new_connections_until_it_recovers() -> Result<()> {
    let lab = lab(2)?;
    let checks = ["--health-http", "80/health", "--health-interval", "200ms", "--health-retries", "2"];
    let backends = web(&lab, &[1, 2], &checks)?;
    let client = lab.container(1, "caller", ["--network", "app"])?;
    let target = vip(&lab, "web")?;
    for backend in ["b1", "b2"] {
        wait_for_health(&lab.host(1), "web", backend, "healthy")?;
    }
    backends[1].server.set_healthy(false);
    wait_for_health(&lab.host(1), "web", "b2", "unhealthy")?;
    let only = |names: &'static [&'static str]| {
        let (client, lab) = (&client, &lab);
        move || {
            let target = vip(lab, "web");
            target.and_then(|target| who_answers(client, target, 60)).is_ok_and(|who| who == names)
        }
    };
    eventually("only b1 answers", PATIENCE, only(&["b1"]))?;
    // When all fail, all are used: some answer is better than none.
    backends[0].server.set_healthy(false);
    wait_for_health(&lab.host(1), "web", "b1", "unhealthy")?;
    eventually("both answer", PATIENCE, only(&["b1", "b2"]))?;
    backends[1].server.set_healthy(true);
    wait_for_health(&lab.host(1), "web", "b2", "healthy")?;
    eventually("only b2 answers", PATIENCE, only(&["b2"]))?;
    backends[0].server.set_healthy(true);
    eventually("both answer again", PATIENCE, only(&["b1", "b2"]))?;
    assert_eq!(who_answers(&client, target, 60)?, ["b1", "b2"]);
    Ok(())
}

#[test]
fn a_new_backend_gets_no_connection_before_its_first_success() -> Result<()> {
    let lab = lab(2)?;
    // It never fails often enough to be unhealthy.
    let checks = ["--health-http", "80/health", "--health-interval", "200ms", "--health-retries", "100"];
    let _backends = web(&lab, &[1], &checks)?;
    wait_for_health(&lab.host(1), "web", "b1", "healthy")?;
    let client = lab.container(2, "caller", ["--network", "app"])?;
    let target = vip(&lab, "web")?;
    let container = lab.container(2, "b2", ["--network", "app"])?;
    let server = container.serve(TARGET)?;
    server.set_healthy(false);
    change_backend(&lab.host(1), "add", "web", "b2")?.ok()?;
    for _ in 0..5 {
        assert_eq!(who_answers(&client, target, 60)?, ["b1"]);
    }
    wait_for_health(&lab.host(1), "web", "b2", "unknown")?;
    server.set_healthy(true);
    wait_for_health(&lab.host(1), "web", "b2", "healthy")?;
    let both = || who_answers(&client, target, 60).is_ok_and(|who| who == ["b1", "b2"]);
    eventually("b2 answers too", PATIENCE, both)?;
    // A restart of its agent, or of the others', does not remove it.
    lab.host(2).restart_meshd()?;
    assert_eq!(who_answers(&client, target, 60)?, ["b1", "b2"]);
    Ok(())
}

#[test]
fn a_check_from_a_compose_file_runs_in_the_container_unchanged() -> Result<()> {
    let lab = lab(1)?;
    let file = std::env::temp_dir().join(format!("mesh-check-{}.yaml", std::process::id()));
    let text = "name: shop\nnetworks:\n  app: {external: true}\nservices:\n  web:\n    networks: [app]\n    \
                healthcheck: {test: [CMD, curl, -f, 'http://localhost:8000/'], interval: 200ms}\n";
    std::fs::write(&file, text).expect("it is written");
    let applied = lab.host(1).meshctl(["apply", "-f", file.to_str().expect("a path in UTF-8")])?;
    std::fs::remove_file(&file).expect("it is removed");
    applied.ok()?;
    let container = lab.container(1, "b1", ["--network", "app"])?;
    // Like applications that check the `Host` header: requests from outside, or with another name,
    // fail.
    let listener = container.netns().enter(|| TcpListener::bind("127.0.0.1:8000"))?.expect("a listener");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(std::result::Result::ok) {
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap_or_default();
            let known = String::from_utf8_lossy(&request[..length]).contains("\r\nHost: localhost:8000\r\n");
            let answer = if known { "HTTP/1.1 200 OK\r\n\r\n" } else { "HTTP/1.1 400 Bad Request\r\n\r\n" };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    change_backend(&lab.host(1), "add", "web", "b1")?.ok()?;
    wait_for_health(&lab.host(1), "web", "b1", "healthy")
}

#[test]
fn a_backend_whose_port_is_closed_fails_its_tcp_check() -> Result<()> {
    let lab = lab(2)?;
    create_service(&lab, "web", &["--health-tcp", "80", "--health-interval", "200ms"])?;
    let _good = add_backend(&lab, 1, "good", "web")?;
    let bad = add_backend(&lab, 2, "bad", "web")?;
    wait_for_health(&lab.host(2), "web", "bad", "healthy")?;
    drop(bad.server);
    wait_for_health(&lab.host(2), "web", "bad", "unhealthy")?;
    wait_for_health(&lab.host(1), "web", "good", "healthy")?;
    let client = lab.container(1, "caller", ["--network", "app"])?;
    let target = vip(&lab, "web")?;
    eventually("only the good one answers", PATIENCE, || {
        who_answers(&client, target, 60).is_ok_and(|who| who == ["good"])
    })
}

#[test]
fn services_and_their_traffic_survive_a_manager_restart() -> Result<()> {
    let lab = lab(2)?;
    let _backends = web(&lab, &[1, 2], &["-p", "8080:80"])?;
    let before = json(&lab.host(1), &["service", "ls"])?;
    let client = lab.container(2, "caller", ["--network", "app"])?;
    let (target, published) = (vip(&lab, "web")?, SocketAddr::new(lab.host(2).address().into(), 8080));
    lab.host(1).kill_meshd()?;
    lab.host(2).restart_meshd()?;
    assert_eq!(who_answers(&client, target, 100)?, ["b1", "b2"]);
    assert!(mesh_harness::traffic::ask(&lab.client(), published).is_ok());
    refused(&lab.host(2).meshctl(["service", "ls"])?, 5);
    lab.host(1).restart_meshd()?;
    lab.wait_ready(PATIENCE)?;
    assert_eq!(json(&lab.host(1), &["service", "ls"])?, before);
    assert_eq!(who_answers(&client, target, 100)?, ["b1", "b2"]);
    change_backend(&lab.host(1), "rm", "web", "b1")?.ok()?;
    assert_eq!(backends(&lab.host(1), "web")?.len(), 1);
    // The other host may have no session: then the manager does not wait for it.
    eventually("b1 gets no new connections", PATIENCE, || {
        who_answers(&client, target, 50).is_ok_and(|answering| answering == ["b2"])
    })?;
    Ok(())
}
