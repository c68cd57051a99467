//! Names: containers query the name server on their network's gateway address with dig and libc.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_e2e::service::{add_backend, change_backend, create_service, vip, vip6, web};
use mesh_e2e::{PATIENCE, create_network};
use mesh_harness::traffic::NameServer;
use mesh_harness::{Container, Lab, Result, eventually};

fn lab(hosts: u8, options: &[&str]) -> Result<Lab> {
    let lab = Lab::builder().hosts(hosts).start()?;
    create_network(&lab, "app", options)?;
    Ok(lab)
}

/// Returns the addresses or names that dig prints, in order.
fn dig(container: &Container, question: &[&str]) -> Result<BTreeSet<String>> {
    let argv = [&["dig", "+short", "+search", "+tries=2", "+time=5"], question].concat();
    let text = container.exec(argv)?.text()?;
    // A datagram that is lost on a busy machine is asked for again, as resolvers do.
    let answers = text.lines().filter(|line| !line.starts_with(";; communications error"));
    Ok(answers.map(str::to_owned).collect())
}

/// Returns the response code that dig shows, such as `NXDOMAIN`.
fn response_code(container: &Container, question: &[&str]) -> Result<String> {
    let text = container.exec([&["dig", "+search", "+tries=2", "+time=5"], question].concat())?.text()?;
    let code = text.split_once("status: ").and_then(|(_, rest)| rest.split_once(','));
    Ok(code.map_or_else(|| text.clone(), |(code, _)| code.to_owned()))
}

fn set<T: ToString>(items: impl IntoIterator<Item = T>) -> BTreeSet<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

#[test]
fn services_endpoints_and_aliases_are_resolved_in_their_network() -> Result<()> {
    let lab = lab(2, &["--ipv6"])?;
    let backends = web(&lab, &[1, 2], &[])?;
    let c1 = lab.container(1, "c1", ["--network", "app", "--alias", "first"])?;
    let c2 = lab.container(2, "c2", ["--network", "app"])?;
    let all = set([backends[0].container.ipv4()?, backends[1].container.ipv4()?]);
    for asking in [&c1, &c2] {
        assert_eq!(dig(asking, &["web"])?, set([vip(&lab, "web")?.ip()]));
        assert_eq!(dig(asking, &["web.app"])?, set([vip(&lab, "web")?.ip()]));
        assert_eq!(dig(asking, &["web", "AAAA"])?, set([vip6(&lab, "web")?.ip()]));
        assert_eq!(dig(asking, &["tasks.web"])?, all);
        assert_eq!(dig(asking, &["tasks.web.app"])?, all);
        for name in ["c1", "c1.app", "first", "first.app", "C1"] {
            assert_eq!(dig(asking, &[name])?, set([c1.ipv4()?]), "{name}");
        }
        assert_eq!(dig(asking, &["c2", "AAAA"])?, set([c2.ipv6()?]));
        assert_eq!(dig(asking, &["-x", &c1.ipv4()?.to_string()])?, set(["c1.app."]));
        assert_eq!(dig(asking, &["-x", &vip(&lab, "web")?.ip().to_string()])?, set(["web.app."]));
        assert_eq!(dig(asking, &["+tcp", "c2"])?, set([c2.ipv4()?]));
        // As programs do it.
        let found = asking.exec(["getent", "ahostsv4", "web"])?.text()?;
        assert!(found.starts_with(&vip(&lab, "web")?.ip().to_string()), "{found}");
        let found = asking.exec(["getent", "hosts", &c2.ipv4()?.to_string()])?.text()?;
        assert!(found.contains("c2.app"), "{found}");
    }
    let page = c1.exec(["curl", "-4", "-sS", "--max-time", "10", "http://web/"])?.text()?;
    assert!(page.starts_with('b') && page.contains(&c1.ipv4()?.to_string()), "{page}");
    Ok(())
}

#[test]
fn missing_names_and_missing_record_types_are_distinguished() -> Result<()> {
    let lab = lab(1, &[])?;
    let _public = NameServer::start(&lab.client(), &[])?;
    create_service(&lab, "web", &[])?;
    let c1 = lab.container(1, "c1", ["--network", "app"])?;
    assert_eq!(response_code(&c1, &["nobody.app"])?, "NXDOMAIN");
    assert_eq!(response_code(&c1, &["tasks.nobody.app"])?, "NXDOMAIN");
    for name in ["web.app", "c1.app"] {
        assert_eq!(response_code(&c1, &[name, "AAAA"])?, "NOERROR");
        assert!(dig(&c1, &[name, "AAAA"])?.is_empty());
        assert_eq!(response_code(&c1, &[name, "TXT"])?, "NOERROR");
    }
    assert!(!c1.exec(["getent", "hosts", "nobody"])?.success());
    Ok(())
}

#[test]
fn a_service_without_a_vip_resolves_to_all_its_backends_in_changing_order() -> Result<()> {
    let lab = lab(2, &[])?;
    create_service(&lab, "web", &["--endpoint-mode", "dnsrr"])?;
    let backends = (1..=4)
        .map(|number| add_backend(&lab, 1 + number % 2, &format!("b{number}"), "web"))
        .collect::<Result<Vec<_>>>()?;
    let c1 = lab.container(1, "c1", ["--network", "app"])?;
    let addresses = backends.iter().map(|backend| backend.container.ipv4()).collect::<Result<Vec<_>>>()?;
    assert_eq!(dig(&c1, &["web"])?, set(&addresses));
    let first = |_| {
        c1.exec(["dig", "+short", "+search", "web"])?
            .text()
            .map(|text| text.lines().next().unwrap_or_default().to_owned())
    };
    let firsts = (0..40).map(first).collect::<Result<BTreeSet<String>>>()?;
    assert!(firsts.len() > 1, "always in the same order: {firsts:?}");
    change_backend(&lab.host(1), "drain", "web", "b1")?.ok()?;
    change_backend(&lab.host(1), "rm", "web", "b2")?.ok()?;
    eventually("b1 and b2 are not named", PATIENCE, || {
        dig(&c1, &["web"]).is_ok_and(|all| all == set(&addresses[2..]))
    })
}

#[test]
fn names_are_removed_with_their_objects() -> Result<()> {
    let lab = lab(2, &[])?;
    let _public = NameServer::start(&lab.client(), &[])?;
    create_service(&lab, "web", &[])?;
    let c1 = lab.container(1, "c1", ["--network", "app"])?;
    let c2 = lab.container(2, "c2", ["--network", "app", "--alias", "second"])?;
    for name in ["c2", "second", "web"] {
        assert_eq!(dig(&c1, &[name])?.len(), 1, "{name}");
    }
    c2.detach()?.ok()?;
    lab.host(1).meshctl(["service", "rm", "web"])?.ok()?;
    for name in ["c2.app", "second.app", "web.app"] {
        eventually(&format!("{name} is gone"), PATIENCE, || {
            response_code(&c1, &[name]).is_ok_and(|code| code == "NXDOMAIN")
        })?;
    }
    Ok(())
}

#[test]
fn names_of_a_network_are_not_visible_from_other_networks_or_outside() -> Result<()> {
    let lab = lab(1, &[])?;
    create_network(&lab, "other", &["--subnet", "10.99.0.0/24"])?;
    let _backends = web(&lab, &[1], &[])?;
    let foreign = lab.container(1, "foreign", ["--network", "other"])?;
    for name in ["web", "web.app", "b1", "b1.app", "tasks.web.app"] {
        assert!(dig(&foreign, &[name])?.is_empty(), "{name}");
    }
    let gateway = "10.64.0.1";
    // The other network's server does not answer either, nor are machines outside answered.
    let asked = foreign.exec(["dig", &format!("@{gateway}"), "+tries=1", "+time=1", "web.app"])?;
    assert!(!asked.success() || !asked.stdout.contains("NOERROR"), "{asked:?}");
    lab.client().run(["ip", "route", "add", "10.64.0.0/10", "via", "192.168.77.11"])?.ok()?;
    let asked = lab.client().run(["dig", &format!("@{gateway}"), "+tries=1", "+time=1", "web.app"])?;
    assert!(!asked.success(), "{asked:?}");
    Ok(())
}

#[test]
fn a_large_answer_comes_over_tcp() -> Result<()> {
    let lab = lab(1, &[])?;
    create_service(&lab, "web", &["--endpoint-mode", "dnsrr"])?;
    let mut addresses = BTreeSet::new();
    for number in 0..60 {
        let name = format!("b{number}");
        let container = lab.container(1, &name, ["--network", "app", "--service", "web"])?;
        addresses.insert(container.ipv4()?.to_string());
    }
    let c1 = lab.container(1, "c1", ["--network", "app"])?;
    assert_eq!(dig(&c1, &["+noedns", "web"])?, addresses);
    let cut = c1.exec(["dig", "+noedns", "+ignore", "+search", "web"])?.text()?;
    assert!(cut.contains(" tc"), "truncated over UDP: {cut}");
    Ok(())
}

#[test]
fn queries_during_a_restart_of_the_agent_are_answered() -> Result<()> {
    let lab = lab(2, &[])?;
    let _backends = web(&lab, &[2], &[])?;
    let c1 = lab.container(1, "c1", ["--network", "app"])?;
    let wanted = set([vip(&lab, "web")?.ip()]);
    assert_eq!(dig(&c1, &["web"])?, wanted);
    lab.host(1).kill_meshd()?;
    let answers = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let argv = ["dig", "+short", "+search", "+tries=1", "+time=20", "web"];
            c1.cmd(argv).output()?.text()
        });
        lab.host(1).start_meshd()?;
        asking.join().expect("no panic")
    })?;
    assert_eq!(set(answers.lines()), wanted);
    // This also works without a manager.
    let c2 = lab.container(2, "c2", ["--network", "app"])?;
    let address = c1.ipv4()?;
    lab.host(1).kill_meshd()?;
    lab.host(2).restart_meshd()?;
    assert_eq!(dig(&c2, &["web"])?, wanted);
    assert_eq!(dig(&c2, &["c1"])?, set([address]));
    Ok(())
}

#[test]
fn an_endpoint_shows_the_dns_settings_for_its_container() -> Result<()> {
    let lab = lab(1, &[])?;
    let c1 = lab.container(1, "c1", ["--network", "app"])?;
    let dns = &c1.endpoint()?["dns"];
    assert_eq!(dns["nameserver"], serde_json::json!(["10.64.0.1"]));
    assert_eq!(dns["search"], serde_json::json!([]), "the server knows bare names");
    let seen = c1.exec(["cat", "/etc/resolv.conf"])?.text()?;
    assert_eq!(seen, "nameserver 10.64.0.1\noptions ndots:0");
    let target = SocketAddr::new([10, 64, 0, 1].into(), 53);
    assert!(c1.netns().enter(|| std::net::TcpStream::connect(target)).is_ok_and(|stream| stream.is_ok()));
    Ok(())
}

/// Returns the status in /proc of the name server process on the lab's only host.
fn server_process(lab: &Lab) -> Option<String> {
    let is_server = |pid: &mesh_harness::ProcessId| {
        std::fs::read(format!("/proc/{}/cmdline", pid.pid))
            .is_ok_and(|argv| argv.split(|byte| *byte == 0).any(|word| word == b"dns-server"))
    };
    let found = lab.host(1).netns().processes().into_iter().find(is_server)?;
    std::fs::read_to_string(format!("/proc/{}/status", found.pid)).ok()
}

/// Returns its process id.
fn server_pid(lab: &Lab) -> Option<String> {
    let status = server_process(lab)?;
    status.lines().find_map(|line| line.strip_prefix("Pid:")).map(|pid| pid.trim().to_owned())
}

#[test]
fn an_unprivileged_process_answers_names_while_the_agent_is_dead() -> Result<()> {
    let lab = lab(1, &[])?;
    let public = Ipv4Addr::new(203, 0, 113, 7);
    let _outside = NameServer::start(&lab.client(), &[("www.example.com", public)])?;
    let c1 = lab.container(1, "c1", ["--network", "app"])?;
    let answered = || -> Result<()> {
        assert_eq!(dig(&c1, &["c1"])?, set([c1.ipv4()?]));
        assert_eq!(dig(&c1, &["+tcp", "c1.app"])?, set([c1.ipv4()?]));
        assert_eq!(dig(&c1, &["www.example.com"])?, set([public]));
        Ok(())
    };
    answered()?;
    let status = server_process(&lab).expect("the process");
    for line in [
        "Uid:\t65534\t65534\t65534\t65534",
        "Gid:\t1886217587\t1886217587\t1886217587\t1886217587",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{set}: {status}");
    }
    let (address, pid) = (c1.ipv4()?, server_pid(&lab));
    lab.host(1).kill_meshd()?;
    let without = |name: &str| c1.cmd(["dig", "+short", "+tries=1", "+time=5", name]).output()?.text();
    for _ in 0..3 {
        assert_eq!(without("c1")?.trim(), address.to_string());
        assert_eq!(without("www.example.com")?.trim(), public.to_string());
    }
    lab.host(1).start_meshd()?;
    assert_eq!(server_pid(&lab), pid, "it is adopted");
    // Further changes reach it.
    let c2 = lab.container(1, "c2", ["--network", "app"])?;
    let new = set([c2.ipv4()?]);
    eventually("the new name", PATIENCE, || dig(&c1, &["c2"]).is_ok_and(|found| found == new))?;
    // If it is killed, it is replaced.
    lab.host(1).run(["kill", "-9", &pid.expect("its number")])?.ok()?;
    eventually("another process answers", PATIENCE, || answered().is_ok())?;
    lab.host(1).meshctl(["cluster", "leave", "--force"])?.ok()?;
    eventually("the process is gone", PATIENCE, || server_process(&lab).is_none())
}

#[test]
fn replacing_the_name_server_loses_no_query() -> Result<()> {
    let lab = lab(1, &[])?;
    let c1 = lab.container(1, "c1", ["--network", "app"])?;
    let wanted = set([c1.ipv4()?]);
    assert_eq!(dig(&c1, &["c1"])?, wanted);
    let before = server_pid(&lab);
    // As after an upgrade: the agent needs a process with another program or settings.
    lab.set_meshd_config("resolv_conf = \"/etc/hosts\"")?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut answers = 0;
            while !done.load(Ordering::Relaxed) || answers == 0 {
                let argv = ["dig", "+short", "+tries=1", "+time=10", "c1"];
                assert_eq!(set(c1.cmd(argv).output()?.text()?.lines()), wanted, "after {answers} answers");
                answers += 1;
            }
            Ok::<_, mesh_harness::Error>(())
        });
        let restarted = lab.host(1).restart_meshd().and_then(|()| {
            eventually("another process serves", PATIENCE, || {
                server_pid(&lab).is_some_and(|now| Some(now) != before)
            })
        });
        done.store(true, Ordering::Relaxed);
        asking.join().expect("no panic")?;
        restarted
    })
}
