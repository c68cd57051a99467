//! `./dev demo`: what Mesh does, shown in a lab of its own. Every step checks what it shows.

use std::{
    io::IsTerminal,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use serde::Deserialize;

use crate::{
    Capture, Container, Error, Host, Lab, Result,
    capture::Captured,
    eventually,
    traffic::{LossMeter, Ping, tcp_transfer},
};

/// Prefix of the demo's lab, so that it runs beside others.
const PREFIX: &str = "demo";
const NETWORK: &str = "blue";
/// Size of the transfer, bytes.
const TRANSFER: u64 = 256 << 20;
/// Time between two datagrams while an agent is killed.
const INTERVAL: Duration = Duration::from_millis(1);

/// Runs the demo; the exit code is 0 when every step held.
pub(crate) fn run(keep: bool) -> Result<u8> {
    let begin = Instant::now();
    let show = Show { colour: std::io::stdout().is_terminal(), begin };

    show.step("Three hosts: network namespaces on one bridge, a meshd in each");
    let lab = Lab::builder().prefix(PREFIX).hosts(3).without_cluster().start()?;
    for host in lab.hosts() {
        line(&format!(
            "{}  {}  meshd pid {}",
            host.name(),
            host.address(),
            host.meshd().map_or(0, |p| p.pid)
        ));
    }
    make_cluster(&show, &lab)?;
    let network = make_network(&show, &lab)?;
    let containers = attach(&show, &lab)?;
    ping_all(&show, &containers)?;
    show_the_wire(&show, &lab, &containers, &network)?;
    transfer(&show, &containers)?;
    kill_an_agent(&show, &lab, &containers)?;

    if keep {
        let lab = lab.keep();
        show.step("The lab stays up; use it like this");
        let dev = format!("./dev lab --prefix {PREFIX}");
        for usage in [
            format!("{dev} status"),
            format!("{dev} run h1 -- meshctl network inspect {NETWORK}"),
            format!("{dev} exec a -- ping {}", containers[1].address),
            format!("{dev} container h2 d --network {NETWORK}"),
            format!("{dev} down          # ends it"),
        ] {
            line(&usage);
        }
        drop(lab);
    } else {
        clean_up(&show, lab)?;
    }
    println!("\n{}", show.bold(&format!("All steps held, in {:.1} s.", begin.elapsed().as_secs_f64())));
    Ok(0)
}

fn clean_up(show: &Show, lab: Lab) -> Result<()> {
    show.step("Clean-up");
    let namespaces: Vec<_> = lab.hosts().map(|host| host.netns().path()).collect();
    let pins: Vec<_> = lab.hosts().map(|host| host.bpffs_dir()).collect();
    let agents: Vec<_> = lab.hosts().filter_map(|host| host.meshd()).collect();
    let directory = lab.path();
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

/// A container and its address.
struct Member {
    container: Container,
    address: Ipv4Addr,
}

#[derive(Deserialize)]
struct Network {
    vni: u32,
    mtu: u32,
    subnets: Vec<Subnet>,
}

#[derive(Deserialize)]
struct Subnet {
    subnet: String,
}

fn make_cluster(show: &Show, lab: &Lab) -> Result<()> {
    show.step("A cluster: init on one host, join on the others with a token");
    let manager = lab.host(1);
    let address = manager.address().to_string();
    show.command(&manager, &format!("meshctl cluster init --advertise-addr {address}"));
    manager.meshctl(["cluster", "init", "--advertise-addr", &address])?.ok()?;
    let token = manager.join_token("worker")?;
    for host in lab.hosts().skip(1) {
        let own = host.address();
        show.command(
            &host,
            &format!("meshctl cluster join --token $TOKEN --advertise-addr {own} {address}:7377"),
        );
        host.join(&token, &format!("{address}:7377"))?.ok()?;
    }
    lab.wait_ready(Duration::from_secs(10))?;
    show.run(&manager, "meshctl node ls")
}

fn make_network(show: &Show, lab: &Lab) -> Result<Network> {
    show.step("An overlay network");
    let manager = lab.host(1);
    show.run(&manager, &format!("meshctl network create -d overlay {NETWORK}"))?;
    let mut networks: Vec<Network> =
        one_or_many(manager.meshctl(["network", "inspect", NETWORK, "--format", "json"])?.json()?)?;
    let network =
        networks.pop().ok_or_else(|| Error::Traffic(format!("network {NETWORK} is not to be found")))?;
    let subnets: Vec<&str> = network.subnets.iter().map(|subnet| subnet.subnet.as_str()).collect();
    show.good(&format!("VNI {}, subnet {}, MTU {}", network.vni, subnets.join(", "), network.mtu));
    Ok(network)
}

/// `inspect` of one name is an object, of several an array.
fn one_or_many(value: serde_json::Value) -> Result<Vec<Network>> {
    let values = match value {
        serde_json::Value::Array(values) => values,
        value => vec![value],
    };
    values
        .into_iter()
        .map(serde_json::from_value)
        .collect::<Result<_, _>>()
        .map_err(|source| Error::Json { command: "meshctl network inspect".to_owned(), source })
}

fn attach(show: &Show, lab: &Lab) -> Result<Vec<Member>> {
    show.step("A container on every host");
    let mut members = Vec::new();
    for (host, name) in lab.hosts().zip(["a", "b", "c"]) {
        show.command(
            &host,
            &format!("meshctl endpoint attach --network {NETWORK} --netns {PREFIX}-{name} --name {name}"),
        );
        let begin = Instant::now();
        let (container, output) = host.container(name, ["--network", NETWORK])?;
        output.ok()?;
        let took = begin.elapsed();
        let address = container.ipv4()?;
        show.good(&format!("{name} on {} is {address}, attached in {} ms", host.name(), took.as_millis()));
        members.push(Member { container, address });
    }
    Ok(members)
}

fn ping_all(show: &Show, members: &[Member]) -> Result<()> {
    show.step("Everyone reaches everyone, the first packet included");
    for from in members {
        for to in members.iter().filter(|to| to.address != from.address) {
            let report = Ping::new(to.address.into()).run(from.container.netns())?.all_answered()?;
            let round_trip =
                report.output.lines().find_map(|line| line.strip_prefix("rtt ")).unwrap_or_default();
            let (from, to) = (from.container.name(), to.container.name());
            show.good(&format!(
                "{from} -> {to}: {} of {} answered, {round_trip}",
                report.received, report.sent
            ));
        }
    }
    Ok(())
}

fn show_the_wire(show: &Show, lab: &Lab, members: &[Member], network: &Network) -> Result<()> {
    show.step("On the wire it is VXLAN");
    let (from, to) = (&members[0], &members[1]);
    let capture = Capture::start(&lab.underlay())?;
    // The pattern fills the data of every request and reply.
    let pattern = b"mesh-demo-canary";
    let hex: String = pattern.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let ping =
        ["ping", "-n", "-c", "3", "-i", "0.05", "-p", &hex, &to.address.to_string()].map(str::to_owned);
    from.container.exec(ping)?.ok()?;
    capture.wait_for(Duration::from_secs(2), |frames| {
        (frames.iter().filter(|frame| frame.contains(pattern)).count() >= 6).then_some(())
    });
    let captured = capture.stop()?;
    let (inside, outside) = count_canaries(&captured, pattern, network.vni);
    if inside < 6 || outside > 0 {
        return Err(Error::Traffic(format!(
            "of the 6 packets of a ping {inside} were seen inside VNI {}, {outside} outside it",
            network.vni
        )));
    }
    let hosts = [from.container.host().address(), to.container.host().address()];
    if let Some(packet) = captured.vxlan().find(|packet| packet.vni == network.vni) {
        let outer = packet.outer;
        line(&format!(
            "{}:{} -> {}:{}  VXLAN vni {}  [ {} -> {} ]",
            outer.src, outer.src_port, outer.dst, outer.dst_port, packet.vni, from.address, to.address
        ));
    }
    show.good(&format!(
        "{inside} of {inside} packets between {} and {} were VXLAN with VNI {}, none was in the clear",
        hosts[0], hosts[1], network.vni
    ));
    Ok(())
}

/// Frames with the canary: those inside VXLAN with this VNI, and all others.
fn count_canaries(captured: &Captured, canary: &[u8], vni: u32) -> (usize, usize) {
    let all = captured.containing(canary).count();
    let inside = captured
        .containing(canary)
        .filter(|frame| frame.vxlan().is_some_and(|packet| packet.vni == vni))
        .count();
    (inside, all - inside)
}

fn transfer(show: &Show, members: &[Member]) -> Result<()> {
    show.step("A transfer over TCP");
    let (from, to) = (&members[0], &members[2]);
    let report = tcp_transfer(from.container.netns(), to.container.netns(), to.address.into(), TRANSFER)?;
    let mebibytes = report.bytes >> 20;
    show.good(&format!(
        "{mebibytes} MiB from a to c in {:.2} s; SHA-256 {}... at both ends",
        report.elapsed.as_secs_f64(),
        &report.sha256[..16]
    ));
    if report.peer.ip() != from.address {
        return Err(Error::Traffic(format!("c saw {} where a is {}", report.peer.ip(), from.address)));
    }
    show.good(&format!("c saw a's own address, {}", report.peer.ip()));
    Ok(())
}

fn kill_an_agent(show: &Show, lab: &Lab, members: &[Member]) -> Result<()> {
    show.step("kill -9 of an agent under traffic");
    let (a, b) = (&members[0], &members[1]);
    let there = LossMeter::start(a.container.netns(), b.container.netns(), b.address.into(), INTERVAL)?;
    let back = LossMeter::start(b.container.netns(), a.container.netns(), a.address.into(), INTERVAL)?;
    let flow = |count| {
        there
            .wait_for_more(count, Duration::from_secs(5))
            .and_then(|()| back.wait_for_more(count, Duration::from_secs(5)))
    };
    flow(200)?;
    let (host, manager) = (b.container.host(), lab.host(1));
    let pid = host.meshd().map_or(0, |meshd| meshd.pid);
    show.command(host, &format!("kill -9 {pid}    # meshd"));
    host.kill_meshd()?;
    eventually("the node is unknown to the manager", Duration::from_secs(5), || {
        manager.node_states().is_ok_and(|states| states.values().any(|state| state == "unknown"))
    })?;
    show.run(&manager, "meshctl node ls")?;
    flow(300)?;
    show.command(host, "meshd    # again, with the same state directory");
    host.start_meshd()?;
    lab.wait_ready(Duration::from_secs(10))?;
    flow(300)?;
    let (there, back) = (there.stop()?.nothing_lost()?, back.stop()?.nothing_lost()?);
    show.good(&format!(
        "{} datagrams there and {} back while the agent died and came again: none lost",
        there.received, back.received
    ));
    Ok(())
}

fn line(text: &str) {
    println!("  {text}");
}

/// How the demo talks.
struct Show {
    colour: bool,
    begin: Instant,
}

impl Show {
    fn step(&self, title: &str) {
        println!("\n{}", self.bold(&format!("[{:5.1} s] {title}", self.begin.elapsed().as_secs_f64())));
    }

    fn command(&self, host: &Host, command: &str) {
        println!("  {}", self.paint("36", &format!("{}# {command}", host.name())));
    }

    fn good(&self, text: &str) {
        println!("  {} {text}", self.paint("32", "ok"));
    }

    /// Shows a command and what it prints.
    fn run(&self, host: &Host, command: &str) -> Result<()> {
        self.command(host, command);
        let output = host.run(command.split(' '))?.ok()?;
        output.stdout.lines().for_each(line);
        Ok(())
    }

    fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
