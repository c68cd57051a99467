//! A thief of a worker's certificate sends reports that would hurt others. Users of the other hosts
//! notice nothing, and the managers show what they refuse.

mod attacker;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mesh_control::identity::NodeIdentity;
use mesh_e2e::service::{Backend, add_backend, create_service, who_answers};
use mesh_e2e::{PATIENCE, create_network, json};
use mesh_harness::traffic::NameServer;
use mesh_harness::{Container, Encapsulation, Host, Lab, Result, eventually};
use mesh_proto::v1::{
    AddBackendRequest, Endpoint, Hello, LeaseRequest, Probe, ProbeReport, SetAddressesRequest,
    agent_message::Kind as Say,
};

use crate::attacker::Attacker;

/// The node whose certificate is stolen.
const THIEF: &str = "h3";
/// The address of a public name.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);

/// The users of the honest hosts, and what they observed before the theft.
struct Users<'a> {
    lab: &'a Lab,
    client: Container,
    backend: Backend,
    endpoints: Vec<(String, String)>,
    sessions: [usize; 2],
    processes: [Option<i32>; 2],
    mtus: [String; 2],
    /// Names with their addresses. A container's own is looked up once: later its name may be in
    /// doubt for commands.
    names: Vec<(&'static str, IpAddr)>,
}

impl<'a> Users<'a> {
    fn new(lab: &'a Lab, client: Container, backend: Backend) -> Result<Self> {
        let mtus = [mtu(&client)?, mtu(&backend.container)?];
        let (endpoints, sessions, processes) = (Vec::new(), [0; 2], [None; 2]);
        let names = vec![
            ("c1", client.ipv4()?.into()),
            ("web", mesh_e2e::service::vip(lab, "web")?.ip()),
            ("tasks.web", backend.container.ipv4()?.into()),
            ("google.com", IpAddr::V4(PUBLIC)),
        ];
        let mut users = Self { lab, client, backend, endpoints, sessions, processes, mtus, names };
        users.endpoints = users.listed()?;
        users.sessions = users.sessions_so_far();
        users.processes = users.meshd();
        Ok(users)
    }

    fn honest(&self) -> [Host; 2] {
        [self.lab.host(1), self.lab.host(2)]
    }

    fn meshd(&self) -> [Option<i32>; 2] {
        self.honest().map(|host| host.meshd().map(|process| process.pid))
    }

    /// How many sessions the honest agents have begun.
    fn sessions_so_far(&self) -> [usize; 2] {
        self.honest().map(|host| host.log().matches("in session").count())
    }

    /// The honest nodes' endpoints: name and address.
    fn listed(&self) -> Result<Vec<(String, String)>> {
        let all = json(&self.lab.host(2), &["endpoint", "ls"])?;
        let all = all.as_array().cloned().unwrap_or_default().into_iter();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let honest = all.filter(|endpoint| endpoint["node"] != THIEF);
        Ok(honest.map(|endpoint| (text(&endpoint["name"]), text(&endpoint["ipv4"]))).collect())
    }

    fn dig(&self, name: &str) -> Result<String> {
        let answer = self.client.exec(["dig", "+short", "+tries=2", "+time=5", name])?;
        Ok(answer.stdout.trim().to_owned())
    }

    /// The number of the thief's endpoints that other hosts list.
    fn bait(&self) -> Result<usize> {
        let all = json(&self.lab.host(2), &["endpoint", "ls"])?;
        let of_thief = |endpoint: &&serde_json::Value| endpoint["node"] == THIEF;
        Ok(all.as_array().into_iter().flatten().filter(of_thief).count())
    }

    /// Asserts that nothing has changed for the users since the theft.
    fn see_no_difference(&self, after: &str) -> Result<()> {
        self.go_on(after)?;
        self.names_work(after)?;
        for host in self.honest() {
            assert_plain(&host, after)?;
        }
        assert_eq!(
            who_answers(&self.client, SocketAddr::new(self.address("web"), 80), 8)?,
            ["b1"],
            "{after}"
        );
        self.client.ping(self.address("tasks.web"))?.all_answered().map(drop)
    }

    /// Asserts that the honest agents go on as before.
    fn go_on(&self, after: &str) -> Result<()> {
        assert_eq!(self.meshd(), self.processes, "{after}: an agent ended");
        assert_eq!(self.sessions_so_far(), self.sessions, "{after}: an agent lost its session");
        assert_eq!(self.listed()?, self.endpoints, "{after}");
        for host in self.honest() {
            let status = json(&host, &["status"])?;
            assert!(
                status["manager"].as_str().is_some_and(|manager| !manager.is_empty()),
                "{after}: {status}"
            );
            assert!(!status["problems"].to_string().contains("cannot be read"), "{after}: {status}");
        }
        assert_eq!([mtu(&self.client)?, mtu(&self.backend.container)?], self.mtus, "{after}: the MTUs");
        let nodes = json(&self.lab.host(1), &["node", "ls"])?;
        for node in nodes.as_array().into_iter().flatten() {
            let (version, address) = (node["version"].to_string(), node["data_path_addr"].to_string());
            assert!(version.len() < 70 && address.contains("192.168.77."), "{after}: {node}");
        }
        let states = self.lab.host(1).node_states()?;
        assert!(states["h1"] == "ready" && states["h2"] == "ready", "{after}: {states:?}");
        Ok(())
    }

    fn names_work(&self, after: &str) -> Result<()> {
        for (name, address) in &self.names {
            assert_eq!(self.dig(name)?, address.to_string(), "{after}: {name}");
        }
        assert_eq!(self.dig("unknown")?, "", "{after}: a name that does not exist");
        Ok(())
    }

    fn address(&self, name: &str) -> IpAddr {
        self.names.iter().find(|(known, _)| *known == name).expect("a name from before").1
    }

    fn problems(&self) -> Result<String> {
        Ok(json(&self.lab.host(1), &["status"])?["problems"].to_string())
    }
}

fn mtu(container: &Container) -> Result<String> {
    container.exec(["cat", "/sys/class/net/eth0/mtu"])?.text()
}

/// Nothing that people read has control characters.
fn assert_plain(host: &Host, after: &str) -> Result<()> {
    for args in [&["status"][..], &["node", "ls"], &["endpoint", "ls"]] {
        let shown = host.meshctl(args.to_vec())?.ok()?.stdout;
        let control = shown.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(control, None, "{after}: {args:?} prints {shown:?}");
    }
    Ok(())
}

fn hello() -> Hello {
    Hello { version: "1.0".into(), data_path_mtu: 1500, ..Hello::default() }
}

/// An endpoint that the stolen node could have, apart from the changes that a case makes.
fn endpoint(network: &str, address: Ipv4Addr) -> Endpoint {
    Endpoint {
        id: "ab".repeat(12),
        name: "bait".into(),
        network_id: network.into(),
        ipv4: address.to_string(),
        mac: "02:42:0a:40:00:99".into(),
        ifname: "eth0".into(),
        created_at: "2026-01-01T00:00:00Z".into(),
        ..Endpoint::default()
    }
}

/// Endpoints that the manager refuses, each with a word of the reason.
fn refused_endpoints(good: &Endpoint, victim: IpAddr) -> Vec<(&'static str, Endpoint, &'static str)> {
    let with = |change: &dyn Fn(&mut Endpoint)| {
        let mut endpoint = good.clone();
        change(&mut endpoint);
        endpoint
    };
    let at = |address: &str| with(&|endpoint| endpoint.ipv4 = address.into());
    vec![
        ("alias *", with(&|endpoint| endpoint.aliases = vec!["*".into()]), "alias"),
        ("another's address", at(&victim.to_string()), "lease"),
        ("the gateway's address", at("10.64.0.1"), "gateway"),
        ("an address outside", at("8.8.8.8"), "in no subnet"),
        ("no address at all", at("*"), "ipv4"),
        ("an interface name with ESC", with(&|endpoint| endpoint.ifname = "e\x1b[2J".into()), "ifname"),
        ("a name with ESC", with(&|endpoint| endpoint.name = "e\x1b[2J".into()), "name"),
        ("a MAC with ESC", with(&|endpoint| endpoint.mac = "\x1b[2J".into()), "mac"),
        ("an unknown network", with(&|endpoint| endpoint.network_id = "f".repeat(24)), "does not exist"),
        ("an id with ESC", with(&|endpoint| endpoint.id = "\x1b".repeat(24)), "id"),
    ]
}

/// Reports all of them at once: when a session begins, and while it lasts.
fn lie_about_endpoints(users: &Users, attacker: &Attacker, good: &Endpoint) -> Result<()> {
    let mut lies = refused_endpoints(good, users.address("c1"));
    for (number, (_, lie, _)) in lies.iter_mut().enumerate() {
        if lie.id == good.id {
            lie.id = format!("{number:02x}").repeat(12);
        }
    }
    let endpoints: Vec<Endpoint> = lies.iter().map(|(_, lie, _)| lie.clone()).collect();
    for is_later in [false, true] {
        let first = if is_later { Vec::new() } else { endpoints.clone() };
        let session = attacker.session(Hello { endpoints: first, ..hello() }, false);
        session.begun();
        if is_later {
            session.report(endpoints.clone(), Vec::new());
        }
        let received = session.until("all are refused", |received| received.refused.len() == lies.len());
        for (what, lie, why) in &lies {
            // An id that is none is not repeated.
            let refused = received.refused.get(&lie.id).or_else(|| received.refused.get(""));
            assert!(refused.is_some_and(|refused| refused.contains(why)), "{what}: {:?}", received.refused);
        }
        assert_eq!(users.bait()?, 0, "none is listed");
        users.see_no_difference("endpoints that the node cannot have")?;
    }
    Ok(())
}

/// Endpoints that the node may have, with names that it should not have.
fn lie_about_names(users: &Users, attacker: &Attacker, good: &Endpoint) -> Result<()> {
    let inspected = json(&users.lab.host(2), &["endpoint", "inspect", "c1"])?;
    let twin = inspected["id"].as_str().expect("an id").to_owned();
    // One address is one endpoint's: each is reported by itself.
    let cases = [
        ("a twin id", Endpoint { id: twin, ..good.clone() }),
        ("another's name", Endpoint { name: "C1".into(), ..good.clone() }),
        ("a service's name", Endpoint { name: "web".into(), ..good.clone() }),
        ("a public name", Endpoint { name: "google.com".into(), ..good.clone() }),
        ("a public alias", Endpoint { aliases: vec!["google.com".into()], ..good.clone() }),
        ("tasks. as a name", Endpoint { name: "tasks.web".into(), ..good.clone() }),
    ];
    for (what, lie) in cases {
        let session = attacker.session(Hello { endpoints: vec![lie], ..hello() }, false);
        session.begun();
        users.go_on(what)?;
        users.names_work(what)?;
    }
    users.see_no_difference("names of others")
}

fn lie_about_the_host(users: &Users, attacker: &Attacker) -> Result<()> {
    let routes =
        |routes: &[&str]| Hello { routes: routes.iter().map(ToString::to_string).collect(), ..hello() };
    let cases = [
        ("an MTU of 68", Hello { data_path_mtu: 68, ..hello() }),
        ("an MTU of 600", Hello { data_path_mtu: 600, ..hello() }),
        ("an MTU of 70000", Hello { data_path_mtu: 70_000, ..hello() }),
        ("a version of 4 MB", Hello { version: "x".repeat(4 << 20), ..hello() }),
        ("a version with ESC", Hello { version: "1\x1b[31m\x07".into(), ..hello() }),
        ("half of all routes", routes(&["0.0.0.0/1", "128.0.0.0/1", "::/1"])),
        ("a route to the default pool", routes(&["10.64.0.0/10"])),
        ("a thousand routes", routes(&vec!["10.64.0.0/16"; 1000])),
    ];
    for (number, (what, lie)) in cases.into_iter().enumerate() {
        let session = attacker.session(lie, false);
        session.begun();
        users.go_on(what)?;
        let network = format!("n{number}");
        create_network(users.lab, &network, &[])?;
        users.lab.host(1).meshctl(["network", "rm", &network])?.ok()?;
    }
    for address in
        ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.1.1", "192.168.77.11", "10.64.0.9"]
    {
        let request =
            SetAddressesRequest { data_path_addr: address.into(), ..SetAddressesRequest::default() };
        let answer = attacker.call(|mut control| async move { control.set_addresses(request).await });
        assert!(answer.is_err(), "data-path address {address}: {answer:?}");
    }
    users.see_no_difference("lies about the host")
}

/// Takes as much as possible of shared resources.
fn take_much(users: &Users, attacker: &Attacker) -> Result<()> {
    let (leased, last) = attacker.call(|mut control| async move {
        for count in 0..64 {
            let request = LeaseRequest { network: "app".into(), address: String::new(), family: 4 };
            if let Err(status) = control.lease(request).await {
                return (count, Some(status.message().to_owned()));
            }
        }
        (64, None)
    });
    assert!(leased < 16 && last.is_some(), "{leased} leases, {last:?}");
    users.see_no_difference("a burst of leases")?;
    let sessions: Vec<_> = (0..150).map(|_| attacker.session(hello(), false)).collect();
    let (newest, older) = sessions.split_last().expect("150");
    newest.begun();
    eventually("only the newest session stays", PATIENCE, || {
        older.iter().all(attacker::LyingSession::has_ended)
    })?;
    users.see_no_difference("150 sessions")?;
    let container = users.lab.container(2, "late", ["--network", "app"])?;
    container.ping(users.address("c1"))?.all_answered()?;
    container.detach()?.ok()?;
    Ok(())
}

fn lie_about_others(users: &Users, attacker: &Attacker, good: &Endpoint) -> Result<()> {
    // The thief claims that every port is taken and that no node answers.
    let session = attacker.session(hello(), true);
    session.begun();
    let ids = json(&users.lab.host(1), &["node", "ls"])?;
    let ids = ids.as_array().into_iter().flatten().filter_map(|node| node["id"].as_str());
    let probes = ids.map(|id| Probe { node: id.into(), answering: false }).collect();
    session.say(Say::Probes(ProbeReport { probes, unreachable: Vec::new() }));
    let publish = ["service", "update", "web", "--publish-add", "8080:80", "--publish-add", "8081:80"];
    users.lab.host(1).meshctl(publish)?.ok()?;
    let port = SocketAddr::new(IpAddr::V4(users.lab.host(1).address()), 8080);
    let answered = mesh_harness::traffic::ask(&users.lab.client(), port)?;
    assert_eq!(answered.backend, "b1");
    users.see_no_difference("every port is taken, and every other node is down")?;
    assert!(users.problems()?.contains(THIEF), "the claim is shown: {}", users.problems()?);
    drop(session);
    // A backend for a service of a network in which the node has no lease, and another's endpoint.
    let session = attacker.session(Hello { endpoints: vec![good.clone()], ..hello() }, false);
    session.begun();
    for (service, endpoint) in [("ledger", "bait"), ("ledger", &good.id), ("web", "c1"), ("web", "b1")] {
        let request = AddBackendRequest { service: service.into(), endpoint: endpoint.into() };
        let answer = attacker.call(|mut control| async move { control.add_backend(request).await });
        assert!(answer.is_err(), "{endpoint} became a backend of {service}: {answer:?}");
    }
    users.see_no_difference("backends that the node cannot have")
}

#[test]
fn a_stolen_worker_certificate_hurts_no_other_nodes_traffic_names_or_sessions() -> Result<()> {
    let lab = Lab::builder().hosts(3).encapsulation(Encapsulation::Direct).start()?;
    let _world = NameServer::start(&lab.client(), &[("google.com", PUBLIC)])?;
    create_network(&lab, "app", &[])?;
    create_network(&lab, "bank", &[])?;
    lab.host(1).meshctl(["service", "create", "--name", "ledger", "--network", "bank"])?.ok()?;
    let client = lab.container(1, "c1", ["--network", "app"])?;
    create_service(&lab, "web", &[])?;
    let backend = add_backend(&lab, 2, "b1", "web")?;
    // The victim has a lease, so that the thief may have addresses, too.
    let own = lab.container(3, "c3", ["--network", "app"])?;
    let good = {
        let inspected = json(&lab.host(1), &["network", "inspect", "app"])?;
        endpoint(inspected["id"].as_str().expect("an id"), own.ipv4()?)
    };
    let stolen = lab.path().join("stolen");
    std::fs::create_dir(&stolen).expect("a directory");
    NodeIdentity::load(&lab.host(3).state_dir().join("identity.pem"))
        .and_then(|identity| identity.save(&stolen.join("identity.pem")))
        .expect("the theft");
    lab.host(3).kill_meshd()?;
    let manager = format!("{}:7377", lab.host(1).address());
    let attacker = Attacker::new(&lab.client(), &stolen, &manager);
    let users = Users::new(&lab, client, backend)?;
    users.see_no_difference("the theft")?;
    lie_about_endpoints(&users, &attacker, &good)?;
    assert!(users.problems()?.contains(THIEF), "{}", users.problems()?);
    lie_about_names(&users, &attacker, &good)?;
    lie_about_the_host(&users, &attacker)?;
    take_much(&users, &attacker)?;
    lie_about_others(&users, &attacker, &good)
}
