//! A service on the network: its name, its published port, and what its callers notice when
//! replicas go.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Member, NETWORK, PUBLISHED, SERVICE, SOON, TARGET,
    show::{Show, line},
};
use crate::{
    Error, Host, Lab, Result, eventually,
    traffic::{Load, LossMeter, load},
};

/// Time between two datagrams while an agent is killed.
const INTERVAL: Duration = Duration::from_millis(1);
/// Requests that tell who is used.
const SAMPLE: u64 = 300;

pub(super) fn publish(show: &Show, lab: &Lab) -> Result<()> {
    show.step("A service: three replicas behind one name, and a port that every host answers");
    let manager = lab.host(1);
    let (network, ports) = (NETWORK, format!("{PUBLISHED}:{TARGET}"));
    show.run(&manager, &format!("meshctl service create --name {SERVICE} --network {network} -p {ports}"))?;
    for name in ["web1", "web2", "web3"] {
        show.command("h1", &format!("meshctl service backend add {SERVICE} {name}"));
        manager.meshctl(["service", "backend", "add", SERVICE, name])?.ok()?;
    }
    show.run(&manager, &format!("meshctl service ps {SERVICE}"))
}

pub(super) fn call_by_name(show: &Show, lab: &Lab) -> Result<()> {
    show.step("Inside the network it is called by its name");
    let caller = lab.container(2, "caller", ["--network", NETWORK])?;
    let own = caller.ipv4()?.to_string();
    let url = format!("http://{SERVICE}/");
    let mut seen = BTreeSet::new();
    for number in 0..30 {
        let page = caller.exec(["curl", "-sS", "--max-time", "5", &url])?.text()?;
        if number < 3 {
            show.command("caller", &format!("curl {url}"));
            line(&page);
        }
        let (replica, client) = page.split_once(' ').unwrap_or_default();
        if !client.starts_with(&format!("{own}:")) {
            return Err(Error::Traffic(format!("{replica} saw {client} where the caller is {own}")));
        }
        seen.insert(replica.to_owned());
    }
    show.good(&format!(
        "30 calls went to {}; each saw the caller's own address, {own}",
        seen.into_iter().collect::<Vec<_>>().join(", ")
    ));
    Ok(())
}

pub(super) fn call_from_outside(show: &Show, lab: &Lab) -> Result<()> {
    show.step("From outside it is called on any host, and sees who calls");
    let client = lab.client();
    for host in lab.hosts() {
        let url = format!("http://{}:{PUBLISHED}/", host.address());
        show.command("client", &format!("curl {url}"));
        let page = client.run(["curl", "-sS", "--max-time", "5", &url])?.text()?;
        line(&page);
        if !page.contains(&format!(" {}:", lab.client_address())) {
            return Err(Error::Traffic(format!("{page}: the client is {}", lab.client_address())));
        }
    }
    let local = format!("http://127.0.0.1:{PUBLISHED}/");
    show.run(&lab.host(1), &format!("curl -sS --max-time 5 {local}"))?;
    let report = load(&client, published(&lab.host(1)), SAMPLE, 4)?.all_answered()?;
    show.good(&format!("{} calls through h1: {}", report.answered, shares(&report.by_backend)));
    show.good(&format!("every replica saw the client's own address, {}", lab.client_address()));
    Ok(())
}

pub(super) fn drain_under_load(show: &Show, lab: &Lab) -> Result<()> {
    show.step("A replica is drained under load");
    let manager = lab.host(1);
    let running = Load::start(&lab.client(), published(&lab.host(2)), 4);
    running.wait_for_more(SAMPLE, SOON)?;
    show.run(&manager, &format!("meshctl service backend drain {SERVICE} web2"))?;
    running.wait_for_more(SAMPLE, SOON)?;
    let meanwhile = load(&lab.client(), published(&manager), SAMPLE, 2)?.all_answered()?;
    if meanwhile.by_backend.contains_key("web2") {
        return Err(Error::Traffic("web2 got new connections while it was drained".to_owned()));
    }
    show.good(&format!("{} new calls: {}", meanwhile.answered, shares(&meanwhile.by_backend)));
    show.run(&manager, &format!("meshctl service backend activate {SERVICE} web2"))?;
    running.wait_for_more(SAMPLE, SOON)?;
    let report = running.stop()?.all_answered()?;
    show.good(&format!(
        "{} requests all the while, {} failed, the slowest took {:.1} ms",
        report.answered,
        report.failed,
        report.slowest().as_secs_f64() * 1e3
    ));
    Ok(())
}

pub(super) fn kill_an_agent(show: &Show, lab: &Lab, members: &[Member]) -> Result<()> {
    show.step("kill -9 of an agent under traffic");
    let (a, b) = (&members[0], &members[1]);
    let there = LossMeter::start(a.container.netns(), b.container.netns(), b.address.into(), INTERVAL)?;
    let back = LossMeter::start(b.container.netns(), a.container.netns(), a.address.into(), INTERVAL)?;
    let requests = Load::start(&lab.client(), published(&lab.host(2)), 1);
    let flow = |count| {
        there.wait_for_more(count, SOON)?;
        back.wait_for_more(count, SOON)?;
        requests.wait_for_more(count, SOON)
    };
    flow(200)?;
    let (host, manager) = (b.container.host(), lab.host(1));
    let pid = host.meshd().map_or(0, |meshd| meshd.pid);
    show.command(host.name(), &format!("kill -9 {pid}    # meshd"));
    host.kill_meshd()?;
    eventually("the node is unknown to the manager", SOON, || {
        manager.node_states().is_ok_and(|states| states.values().any(|state| state == "unknown"))
    })?;
    show.run(&manager, "meshctl node ls")?;
    flow(200)?;
    show.command(host.name(), "meshd    # again, with the same state directory");
    host.start_meshd()?;
    lab.wait_ready(SOON)?;
    flow(200)?;
    let (there, back) = (there.stop()?.nothing_lost()?, back.stop()?.nothing_lost()?);
    let requests = requests.stop()?.all_answered()?;
    show.good(&format!(
        "{} datagrams there and {} back while the agent died and came again: none lost",
        there.received, back.received
    ));
    show.good(&format!("{} requests through that host: none failed", requests.answered));
    Ok(())
}

/// Hands back the members that are left.
pub(super) fn kill_a_host(show: &Show, lab: &Lab, mut members: Vec<Member>) -> Result<Vec<Member>> {
    show.step("A host dies, with the replica on it");
    let (host, manager) = (lab.host(3), lab.host(1));
    show.command("h3", "power off, without a word to anyone");
    let begin = Instant::now();
    // Its replica's server dies with it.
    members.truncate(2);
    host.power_off()?;
    eventually("the dead host's replica is out", SOON, || {
        manager.node_states().is_ok_and(|states| states.get("h3").is_some_and(|state| state == "down"))
    })?;
    let took = begin.elapsed();
    let report = load(&lab.client(), published(&manager), SAMPLE, 4)?.all_answered()?;
    show.run(&manager, "meshctl node ls")?;
    show.good(&format!("noticed after {:.1} s", took.as_secs_f64()));
    show.good(&format!(
        "{} calls from then on, none failed: {}",
        report.answered,
        shares(&report.by_backend)
    ));
    Ok(members)
}

fn published(host: &Host) -> SocketAddr {
    SocketAddr::new(host.address().into(), PUBLISHED)
}

/// `web1 101, web2 99, web3 100`
fn shares(by_backend: &std::collections::BTreeMap<String, u64>) -> String {
    by_backend.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}
