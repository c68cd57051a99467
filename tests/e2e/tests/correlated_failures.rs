//! Several hosts fail at once, among them those that would notice it of each other.

use std::time::Duration;

use mesh_e2e::service::{add_backend, create_service, vip};
use mesh_e2e::{create_network, json};
use mesh_harness::traffic::load;
use mesh_harness::{Encapsulation, Lab, Result, eventually};

/// Some two seconds on a machine that has nothing else to do.
const NOTICED: Duration = Duration::from_mins(1);

/// The names of the nodes after the manager's, in the order in which they probe each other.
fn ring(lab: &Lab) -> Result<Vec<String>> {
    let nodes = json(&lab.host(1), &["node", "ls"])?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut nodes: Vec<(String, String)> =
        nodes.as_array().into_iter().flatten().map(|node| (text(&node["id"]), text(&node["name"]))).collect();
    nodes.sort();
    let manager = nodes.iter().position(|(_, name)| name == "h1").expect("the manager");
    nodes.rotate_left(manager);
    Ok(nodes.into_iter().skip(1).map(|(_, name)| name).collect())
}

fn number(name: &str) -> usize {
    name.trim_start_matches('h').parse().expect("a host's name")
}

#[test]
fn four_of_seven_hosts_that_fail_at_once_are_down_and_requests_go_to_the_others() -> Result<()> {
    let lab = Lab::builder().hosts(7).encapsulation(Encapsulation::Direct).start()?;
    create_network(&lab, "app", &[])?;
    create_service(&lab, "web", &["-p", "8080:80"])?;
    let ring = ring(&lab)?;
    let (gone, left) = (&ring[1..5], [&ring[0], &ring[5]]);
    let client = lab.container(1, "caller", ["--network", "app"])?;
    let mut backends = Vec::new();
    for name in gone.iter().chain(left) {
        backends.push(add_backend(&lab, number(name), &format!("b-{name}"), "web")?);
    }
    let target = vip(&lab, "web")?;
    let all = load(client.netns(), target, 100, 4)?.all_answered()?;
    assert!(all.by_backend.len() > left.len(), "{all:?}");
    for name in gone {
        lab.host_named(name)?.unplug()?;
    }
    let mut seen = String::new();
    eventually("all four are down", NOTICED, || {
        let states = lab.host(1).node_states();
        seen = format!("{gone:?} of {states:?}");
        states.is_ok_and(|states| {
            gone.iter().all(|name| states[name] == "down") && left.iter().all(|name| states[*name] == "ready")
        })
    })
    .inspect_err(|_| eprintln!("{seen}"))?;
    // What the manager says is at the clients' hosts within the same round.
    let answered =
        || load(client.netns(), target, 40, 4).and_then(mesh_harness::traffic::LoadReport::all_answered);
    let mut report = answered();
    eventually("living backends answer", NOTICED, || {
        report = answered();
        report.is_ok()
    })?;
    let names: Vec<String> = report?.by_backend.into_keys().collect();
    assert!(names.iter().all(|name| left.iter().any(|left| *name == format!("b-{left}"))), "{names:?}");
    let host = lab.host_named(left[1])?;
    let port = std::net::SocketAddr::new(host.address().into(), 8080);
    load(&lab.client(), port, 20, 2)?.all_answered()?;
    for name in gone {
        lab.host_named(name)?.plug()?;
    }
    lab.wait_ready(NOTICED)?;
    drop(backends);
    Ok(())
}
