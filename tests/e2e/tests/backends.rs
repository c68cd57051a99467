//! Backends are checked where they are, and used by that everywhere; with or without a manager.

use mesh_e2e::service::{add_backend, create_service, vip, wait_for_health, web, who_answers};
use mesh_e2e::{PATIENCE, create_network};
use mesh_harness::{Lab, Result, eventually};

fn lab(hosts: u8) -> Result<Lab> {
    let lab = Lab::builder().hosts(hosts).start()?;
    create_network(&lab, "app", &[])?;
    Ok(lab)
}

#[test]
fn an_unhealthy_backend_gets_no_new_connections_until_it_is_well_again() -> Result<()> {
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
