//! Metrics of a host through `meshctl metrics` and HTTP; clients can do no harm.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_e2e::openmetrics::Exposition;
use mesh_e2e::service::{open_connections, vip, web};
use mesh_e2e::{PATIENCE, create_network, json, refused};
use mesh_harness::traffic::Ping;
use mesh_harness::{Host, Lab, LabBuilder, Result, eventually, poll_until};
use serde_json::Value;

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7380);

fn builder() -> LabBuilder {
    Lab::builder().meshd_config("metrics_addr = \"127.0.0.1:7380\"")
}

/// Starts a single host whose agent is no member.
fn lone_host() -> Result<Lab> {
    builder().hosts(1).without_cluster().start()
}

fn connect(host: &Host) -> Result<io::Result<TcpStream>> {
    host.netns().enter(|| {
        let stream = TcpStream::connect(ADDRESS)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// Connects as soon as the metrics are served.
fn connected(host: &Host) -> TcpStream {
    poll_until(PATIENCE, || connect(host).ok()?.ok()).expect("somebody listens")
}

/// Returns head and body of the response to a request, up to the end of the connection.
fn http(host: &Host, request: &str) -> (String, String) {
    let mut stream = connected(host);
    stream.write_all(format!("{request} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_ascii_lowercase(), body.to_owned())
}

fn scrape(host: &Host) -> Result<Exposition> {
    let (head, body) = http(host, "GET /metrics");
    assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.lines().any(|line| line == kind), "{head}");
    Ok(Exposition::parse(&body)?)
}

/// Returns the output of `meshctl metrics`.
fn metrics(host: &Host) -> Result<Exposition> {
    Ok(Exposition::parse(&host.meshctl(["metrics"])?.ok()?.stdout)?)
}

fn status(host: &Host) -> Result<Value> {
    json(host, &["status"])
}

fn list<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn number(of: &Value, key: &str) -> u64 {
    of[key].as_u64().unwrap_or_else(|| panic!("no {key}: {of}"))
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

/// Returns the lines of the status about metrics.
fn problems(host: &Host) -> Result<Vec<String>> {
    let status = status(host)?;
    let lines = list(&status, "problems").iter().filter_map(Value::as_str);
    Ok(lines.filter(|line| line.contains("metrics")).map(str::to_owned).collect())
}

/// Asserts that every number of a status is in the metrics read between it and `later`, under one
/// name.
fn agrees(earlier: &Value, read: &Exposition, later: &Value) {
    for counter in list(earlier, "counters") {
        let vni = number(counter, "vni").to_string();
        let labels = [
            ("network", text(counter, "network")),
            ("vni", vni.as_str()),
            ("reason", text(counter, "reason")),
        ];
        let mut after = list(later, "counters").iter();
        let after = after.find(|one| ["vni", "reason"].iter().all(|key| one[key] == counter[key]));
        let bounds = number(counter, "packets")..=number(after.expect("it stays"), "packets");
        let families = ["mesh_packets_total", "mesh_dropped_packets_total"];
        let found: Vec<u64> = families.iter().filter_map(|family| read.get(family, &labels)).collect();
        assert!(matches!(found[..], [packets] if bounds.contains(&packets)), "{found:?} for {counter}");
    }
    for server in list(earlier, "name_servers") {
        for (metric, key) in [
            ("mesh_dns_queries_total", "queries"),
            ("mesh_dns_forwarded_total", "forwarded"),
            ("mesh_dns_failed_total", "failed"),
            ("mesh_dns_malformed_total", "malformed"),
        ] {
            let told = read.get(metric, &[("network", text(server, "network"))]);
            assert_eq!(told, Some(number(server, key)), "{metric}");
        }
    }
    for (metric, key) in
        [("mesh_endpoints", "endpoints"), ("mesh_networks", "networks"), ("mesh_services", "services")]
    {
        assert_eq!(read.get(metric, &[]), Some(number(earlier, key)), "{metric}");
    }
    let problems = [earlier, later].map(|status| Some(list(status, "problems").len() as u64));
    assert!(problems.contains(&read.get("mesh_problems", &[])), "{problems:?}");
}

#[test]
fn counters_of_the_status_are_in_the_metrics_with_network_names() -> Result<()> {
    let lab = builder().hosts(2).start()?;
    let host = lab.host(1);
    create_network(&lab, "app", &[])?;
    create_network(&lab, "secret", &["--encrypted"])?;
    let _backends = web(&lab, &[2], &[])?;
    let c1 = lab.container(1, "c1", ["--network", "app"])?;
    let (s1, s2) =
        (lab.container(1, "s1", ["--network", "secret"])?, lab.container(2, "s2", ["--network", "secret"])?);

    // First, since flows are counted only every half minute. A flow that was used twice is
    // established.
    let mut open = open_connections(c1.netns(), vip(&lab, "web")?, 7)?;
    for (_, connection) in &mut open {
        connection.ask()?;
    }
    let told = status(&host)?;
    let connections = list(&told["connections"], "networks");
    let of_app = connections.iter().find(|one| one["network"] == "app").map(|one| number(one, "entries"));
    assert!(of_app.is_some_and(|entries| entries >= 7), "{connections:?}");
    for read in [metrics(&host)?, scrape(&host)?] {
        assert_eq!(read.get("mesh_connections", &[("network", "app")]), of_app);
        let capacity = number(&told["connections"], "capacity");
        assert_eq!(read.get("mesh_connections_capacity", &[]), Some(capacity));
    }

    // No packet has reached another network yet, and its first occurrence must be visible.
    let isolated = [("network", "app"), ("reason", "isolated")];
    let before = scrape(&host)?;
    assert_eq!(before.get("mesh_dropped_packets_total", &isolated), Some(0));
    c1.ping(s2.ipv4()?)?.none_answered()?;
    Ping::new(s2.ipv4()?.into()).count(20).size(1000).run(s1.netns())?.all_answered()?;
    c1.exec(["dig", "+short", "+search", "web"])?.ok()?;
    let peer = [("node", "h2")];
    let grown = |read: &Exposition, metric, labels: &[_], by| {
        read.sum(metric, labels) >= before.sum(metric, labels) + by
    };
    eventually("a scrape tells all of it", PATIENCE, || {
        scrape(&host).is_ok_and(|now| {
            grown(&now, "mesh_dropped_packets_total", &isolated, 3)
                && grown(&now, "mesh_dns_queries_total", &[("network", "app")], 1)
                && grown(&now, "mesh_packets_total", &[("network", "secret"), ("reason", "received")], 20)
                && grown(&now, "mesh_bytes_total", &[("network", "secret"), ("reason", "received")], 20_000)
                && grown(&now, "mesh_wireguard_peer_received_bytes_total", &peer, 20_000)
                && grown(&now, "mesh_wireguard_peer_sent_bytes_total", &peer, 20_000)
        })
    })?;

    let (earlier, read, later) = (status(&host)?, metrics(&host)?, status(&host)?);
    agrees(&earlier, &read, &later);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let handshake = read.get("mesh_wireguard_peer_last_handshake_seconds", &peer).expect("there was one");
    assert!((now - 300..=now + 1).contains(&handshake), "{handshake}, now {now}");
    let endpoint = [("node", "h2"), ("endpoint", "192.168.77.12:51820")];
    assert_eq!(read.get("mesh_wireguard_peer_info", &endpoint), Some(1));
    let engine = text(&later["wireguard"], "engine");
    assert_eq!(read.get("mesh_wireguard_info", &[("engine", engine)]), Some(1));
    let datapath =
        [("interface", "eth0"), ("xdp", "off"), ("encapsulation", text(&later["encapsulation"], "mode"))];
    assert_eq!(read.get("mesh_datapath_info", &datapath), Some(1));
    assert_eq!((read.get("mesh_member", &[]), read.get("mesh_session", &[])), (Some(1), Some(1)));

    // All of this without a manager, including names, and the missing session.
    let worker = lab.host(2);
    lab.host(1).kill_meshd()?;
    eventually("the worker has no session", PATIENCE, || {
        metrics(&worker).is_ok_and(|read| read.get("mesh_session", &[]) == Some(0))
    })?;
    let (earlier, read, later) = (status(&worker)?, metrics(&worker)?, status(&worker)?);
    agrees(&earlier, &read, &later);
    assert!(read.sum("mesh_packets_total", &[("network", "app")]) > 0);
    assert!(read.get("mesh_problems", &[]).is_some_and(|problems| problems > 0));
    refused(&lab.host(1).meshctl(["metrics"])?, 5);
    Ok(())
}

#[test]
fn a_host_without_a_cluster_has_metrics_of_its_agent() -> Result<()> {
    let lab = lone_host()?;
    let host = lab.host(1);
    for read in [metrics(&host)?, scrape(&host)?] {
        let version = status(&host)?["version"].as_str().unwrap_or_default().to_owned();
        assert_eq!(read.get("mesh_build_info", &[("version", version.as_str())]), Some(1));
        assert_eq!((read.get("mesh_member", &[]), read.get("mesh_problems", &[])), (Some(0), Some(0)));
        assert!(read.get("process_resident_memory_bytes", &[]).is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!((read.get("mesh_session", &[]), read.get("mesh_networks", &[])), (None, None));
    }
    host.meshctl(["cluster", "init", "--advertise-addr", "192.168.77.11"])?.ok()?;
    assert_eq!(metrics(&host)?.get("mesh_session", &[]), Some(1));
    eventually("a scrape tells it too", PATIENCE, || {
        scrape(&host).is_ok_and(|read| read.get("mesh_node_info", &[("node", "h1")]) == Some(1))
    })
}

#[test]
fn metrics_are_served_only_at_the_configured_address() -> Result<()> {
    let lab = Lab::builder().hosts(1).without_cluster().start()?;
    let host = lab.host(1);
    metrics(&host)?;
    let listening = host.run(["ss", "-Htln"])?.text()?;
    assert_eq!(listening, "");
    host.kill_meshd()?;
    let config = host.path().join("meshd.toml");
    let (path, right) = (config.display().to_string(), std::fs::read_to_string(&config).expect("a file"));
    for wrong in ["7380", "localhost:7380", "127.0.0.1:0", "127.0.0.1:65536"] {
        std::fs::write(&config, format!("metrics_addr = \"{wrong}\"\n{right}")).expect("a file");
        let said = refused(&host.run(["meshd", "--config", &path])?, 2);
        assert!(
            said.contains("meshd.toml, line 1: ") && said.contains(&format!("{wrong:?} is no address")),
            "{said}"
        );
        std::fs::write(&config, &right).expect("a file");
        let said = refused(&host.run(["meshd", "--config", &path, "--metrics-addr", wrong])?, 2);
        assert!(said.contains("--metrics-addr") && said.contains("is no address and port"), "{said}");
    }
    Ok(())
}

#[test]
fn an_unavailable_metrics_address_is_a_problem_until_it_is_available() -> Result<()> {
    let lab = builder().hosts(1).without_meshd().start()?;
    let host = lab.host(1);
    let taken = host.netns().enter(|| TcpListener::bind(ADDRESS))?.expect("a listener");
    host.start_meshd()?;
    eventually("it is told", PATIENCE, || problems(&host).is_ok_and(|lines| lines.len() == 1))?;
    let line = problems(&host)?.remove(0);
    assert!(line.starts_with("cannot serve metrics on 127.0.0.1:7380: Address already in use"), "{line}");
    assert!(line.ends_with("see who has the port with ss -ltnp 'sport = :7380'"), "{line}");
    // Everything else works meanwhile.
    host.meshctl(["cluster", "init", "--advertise-addr", "192.168.77.11"])?.ok()?;
    assert_eq!(metrics(&host)?.get("mesh_problems", &[]), Some(1));
    drop(taken);
    eventually("nothing is wrong any more", PATIENCE, || {
        problems(&host).is_ok_and(|lines| lines.is_empty())
    })?;
    assert_eq!(scrape(&host)?.get("mesh_problems", &[]), Some(0));

    // The same for an address that the host gets later.
    host.kill_meshd()?;
    let config = std::fs::read_to_string(host.path().join("meshd.toml")).expect("its configuration");
    let config = config.replace("127.0.0.1:7380", "192.168.77.99:7380");
    let elsewhere = host.path().join("elsewhere.toml");
    std::fs::write(&elsewhere, config).expect("a file");
    let argv = ["meshd", "--config", &elsewhere.display().to_string()];
    let _meshd = host.cmd(argv).spawn(&host.log_file())?;
    eventually("it is told", PATIENCE, || {
        problems(&host).is_ok_and(|lines| lines.iter().any(|line| line.contains("an address of this host")))
    })?;
    host.add_address([192, 168, 77, 99].into())?;
    eventually("nothing is wrong any more", PATIENCE, || problems(&host).is_ok_and(|lines| lines.is_empty()))
}

#[test]
fn other_paths_and_methods_are_refused_and_a_restart_serves_at_once() -> Result<()> {
    let lab = lone_host()?;
    let host = lab.host(1);
    for path in ["/", "/metrics/", "/Metrics", "/metrics.txt", "//metrics"] {
        let (head, _) = http(&host, &format!("GET {path}"));
        assert!(head.starts_with("http/1.1 404 "), "{path}: {head}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let (head, body) = http(&host, &format!("{method} /metrics"));
        assert!(
            head.starts_with("http/1.1 405 ") && head.contains("\r\nallow: get, head"),
            "{method}: {head}"
        );
        assert!(!body.contains("mesh_"), "{method}: {body}");
    }
    let (head, body) = http(&host, "HEAD /metrics?since=yesterday");
    assert!(
        head.starts_with("http/1.1 200 ") && head.contains("content-type: application/openmetrics-text"),
        "{head}"
    );
    assert!(head.contains("content-length: ") && body.is_empty(), "{head}");
    // An endless head is not read to its end.
    let mut endless = connected(&host);
    let filler = "x".repeat(8 << 20);
    let sent = endless.write_all(format!("GET /metrics HTTP/1.1\r\nfiller: {filler}\r\n\r\n").as_bytes());
    let mut answer = Vec::new();
    let _ = endless.read_to_end(&mut answer);
    assert!(sent.is_err() && !answer.starts_with(b"HTTP/1.1 200 "), "{sent:?}");
    let curl = host.run(["curl", "-sSf", "http://127.0.0.1:7380/metrics"])?.ok()?;
    Exposition::parse(&curl.stdout)?;

    // Connections that were open when it died do not block the port for the next one.
    let _open = [connected(&host), connected(&host)];
    host.restart_meshd()?;
    scrape(&host)?;
    assert_eq!(problems(&host)?, [""; 0]);
    Ok(())
}

#[test]
fn concurrent_scrapes_work_beside_idle_connections() -> Result<()> {
    let lab = lone_host()?;
    let host = lab.host(1);
    thread::scope(|scope| {
        let asking: Vec<_> = (0..16).map(|_| scope.spawn(|| scrape(&host))).collect();
        asking.into_iter().try_for_each(|one| one.join().expect("an answer").map(drop))
    })?;
    let mut waiting: Vec<TcpStream> = (0..200).map(|_| connected(&host)).collect();
    for stream in waiting.iter_mut().step_by(2) {
        // Half a head of a request that never ends. Some connections are closed already.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nx: ");
    }
    scrape(&host)?;
    metrics(&host)?;
    let open = host.run(["ss", "-Htn", "state", "established", "sport = :7380"])?.text()?;
    assert!(open.lines().count() <= 16, "{open}");
    // They do not last: the agent closes each of them, without another request.
    for stream in &mut waiting {
        match stream.read(&mut [0; 512]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("still open: {other:?}"),
        }
    }
    scrape(&host)?;
    Ok(())
}
