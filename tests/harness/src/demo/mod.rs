//! `./dev demo`: what Mesh does, shown in a lab of its own. Every step checks what it shows.

mod overlay;
mod services;
mod show;

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use self::show::{Show, line};
use crate::{Capture, Container, Error, Lab, Result, traffic::ServerProcess};

/// Prefix of the demo's lab, so that it runs beside others.
const PREFIX: &str = "demo";
const NETWORK: &str = "blue";
const SERVICE: &str = "web";
/// Port that the replicas listen on.
const TARGET: u16 = 80;
/// Port that every host answers on for them.
const PUBLISHED: u16 = 8080;
/// How long a change may take to be seen.
const SOON: Duration = Duration::from_secs(10);

/// A replica: a container with a web server, and its address.
struct Member {
    container: Container,
    address: Ipv4Addr,
    server: ServerProcess,
}

/// Runs the demo; the exit code is 0 when every step held.
pub(crate) fn run(keep: bool) -> Result<u8> {
    let begin = Instant::now();
    let show = Show::new(begin);

    show.step("Three hosts: network namespaces on one bridge, a meshd in each");
    let lab = Lab::builder().prefix(PREFIX).hosts(3).without_cluster().start()?;
    for host in lab.hosts() {
        let pid = host.meshd().map_or(0, |meshd| meshd.pid);
        line(&format!("{}  {}  meshd pid {pid}", host.name(), host.address()));
    }
    overlay::make_cluster(&show, &lab)?;
    // Everything that crosses the underlay from before the network is there.
    let wire = Capture::start(&lab.underlay())?;
    overlay::make_network(&show, &lab)?;
    let members = overlay::attach(&show, &lab)?;
    overlay::ping_all(&show, &members)?;
    overlay::show_the_wire(&show, &lab, &members, wire)?;
    overlay::transfer(&show, &members)?;
    services::publish(&show, &lab)?;
    services::call_by_name(&show, &lab)?;
    services::call_from_outside(&show, &lab)?;
    services::drain_under_load(&show, &lab)?;
    services::kill_an_agent(&show, &lab, &members)?;
    let members = services::kill_a_host(&show, &lab, members)?;

    if keep {
        stay(&show, lab, members)?;
    } else {
        clean_up(&show, lab, members)?;
    }
    println!("\n{}", show.bold(&format!("All steps held, in {:.1} s.", begin.elapsed().as_secs_f64())));
    Ok(0)
}

fn stay(show: &Show, lab: Lab, members: Vec<Member>) -> Result<()> {
    show.step("The lab stays up; use it like this");
    let manager = lab.host(1).address();
    lab.host(3).reboot()?;
    for member in members {
        member.server.detach();
    }
    drop(lab.keep());
    let dev = format!("./dev lab --prefix {PREFIX}");
    for usage in [
        format!("{dev} status"),
        format!("{dev} run h1 -- meshctl service ps {SERVICE}"),
        format!("{dev} exec client -- curl http://{manager}:{PUBLISHED}/"),
        format!("{dev} exec web1 -- curl http://{SERVICE}/"),
        format!("{dev} container h3 web4 --network {NETWORK} --service {SERVICE}"),
        format!("{dev} serve web4"),
        format!("{dev} down          # ends it"),
    ] {
        line(&usage);
    }
    Ok(())
}

fn clean_up(show: &Show, lab: Lab, members: Vec<Member>) -> Result<()> {
    show.step("Clean-up");
    let namespaces: Vec<_> = lab.hosts().map(|host| host.netns().path()).collect();
    let pins: Vec<_> = lab.hosts().map(|host| host.bpffs_dir()).collect();
    let agents: Vec<_> = lab.hosts().filter_map(|host| host.meshd()).collect();
    let directory = lab.path();
    drop(members);
    drop(lab);
    if let Some(left) = namespaces.iter().chain(&pins).chain([&directory]).find(|path| path.exists()) {
        return Err(Error::Traffic(format!("{} is still there", left.display())));
    }
    if let Some(left) = agents.iter().find(|agent| agent.is_alive()) {
        return Err(Error::Traffic(format!("meshd {} still runs", left.pid)));
    }
    show.good("no namespace, agent, pinned program or file of the lab is left");
    Ok(())
}
