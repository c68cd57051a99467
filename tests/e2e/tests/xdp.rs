//! Published ports with XDP: the data-path device's driver forwards packets that only pass through.

use std::net::{IpAddr, SocketAddr};

use mesh_e2e::service::web;
use mesh_e2e::{PATIENCE, counted, create_network, json};
use mesh_harness::traffic::{Connection, TcpSink, UdpClient, ask, tcp_send};
use mesh_harness::{Host, Lab, Result, eventually};

const MIB: u64 = 1 << 20;
const PORTS: [&str; 6] = ["-p", "8080:80", "-p", "8080:80/udp", "-p", "9000:9000"];

/// Starts two hosts whose drivers run the program, and a network.
fn lab() -> Result<Lab> {
    let lab = Lab::builder().hosts(2).meshd_config("xdp = \"native\"").start()?;
    lab.behave_like_cards()?;
    create_network(&lab, "app", &[])?;
    eventually("drivers run it", PATIENCE, || lab.hosts().all(|host| runs(&host).unwrap_or_default()))?;
    Ok(lab)
}

fn at(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::new(host.address().into(), port)
}

/// Returns mode and reason from `meshctl status`.
fn told(host: &Host) -> Result<(String, String)> {
    let status = json(host, &["status"])?;
    let text = |field: &str| status["xdp"][field].as_str().unwrap_or_default().to_owned();
    Ok((text("mode"), text("reason")))
}

/// Returns whether the data-path device runs an XDP program.
fn runs(host: &Host) -> Result<bool> {
    Ok(host.run(["ip", "link", "show", "dev", "eth0"])?.text()?.contains("xdp"))
}

/// Returns how many packets the driver forwards during an operation.
fn sent_early(host: &Host, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = counted(host, "sent_early")?;
    work()?;
    Ok(counted(host, "sent_early")? - before)
}

#[test]
fn a_published_port_is_reached_through_the_driver_of_a_host_without_a_backend() -> Result<()> {
    let lab = lab()?;
    let backends = web(&lab, &[2], &PORTS)?;
    let (client, through) = (lab.client(), lab.host(1));
    let native = ("native".to_owned(), "set by option".to_owned());
    eventually("it is told", PATIENCE, || told(&through).is_ok_and(|told| told == native))?;
    let caller: IpAddr = lab.client_address();

    // 64 MiB in packets of 1500 bytes, and at least a few acknowledgements.
    let download = || Connection::open(&client, at(&through, 8080))?.download(64 * MIB).map(drop);
    let (back, there) = (sent_early(&through, download)?, 64 * MIB / 1500);
    assert!(back > there, "{back} of more than {there} packets");

    let sink = TcpSink::listen(backends[0].container.netns(), SocketAddr::new([0; 4].into(), 9000))?;
    let sent = sent_early(&through, || {
        assert_eq!(tcp_send(&client, at(&through, 9000), 64 * MIB, 1)?, sink.finish()?.sha256);
        Ok(())
    })?;
    assert!(sent > there, "{sent} of more than {there} packets");

    let socket = UdpClient::bind(&client, SocketAddr::new([0; 4].into(), 0))?;
    let datagrams = sent_early(&through, || {
        for _ in 0..200 {
            let answer = socket.ask(at(&through, 8080), PATIENCE)?.expect("an answer");
            assert_eq!(answer.client.ip(), caller);
        }
        Ok(())
    })?;
    assert!(datagrams > 100, "{datagrams} of 400 packets");
    assert_eq!(ask(&client, at(&through, 8080))?.client.ip(), caller);

    // On the backend's host, nothing passes through.
    let here = sent_early(&lab.host(2), || {
        Connection::open(&client, at(&lab.host(2), 8080))?.download(MIB).map(drop)
    })?;
    assert_eq!(here, 0);
    Ok(())
}

#[test]
fn the_xdp_program_outlives_meshd_until_it_is_disabled_or_the_host_leaves() -> Result<()> {
    let lab = lab()?;
    let _backends = web(&lab, &[2], &PORTS)?;
    let (client, through) = (lab.client(), lab.host(1));
    let mut open = Connection::open(&client, at(&through, 8080))?;
    open.download(MIB)?;
    through.kill_meshd()?;
    assert!(runs(&through)?);
    open.download(4 * MIB)?;
    through.start_meshd()?;
    eventually("the new agent has the program", PATIENCE, || {
        told(&through).is_ok_and(|(mode, _)| mode == "native")
    })?;
    let sent = sent_early(&through, || open.download(16 * MIB).map(drop))?;
    assert!(sent > 1000, "{sent} packets, by the new program");

    lab.set_meshd_config("xdp = \"off\"")?;
    through.restart_meshd()?;
    eventually("it is gone", PATIENCE, || runs(&through).is_ok_and(|runs| !runs))?;
    assert_eq!(told(&through)?, ("off".to_owned(), "not switched on by option".to_owned()));
    let sent = sent_early(&through, || open.download(4 * MIB).map(drop))?;
    assert_eq!(sent, 0);

    assert!(runs(&lab.host(2))?);
    lab.host(2).meshctl(["cluster", "leave", "--force"])?.ok()?;
    assert!(!runs(&lab.host(2))?);
    Ok(())
}

#[test]
fn a_virtual_device_gets_no_xdp_program_unless_forced() -> Result<()> {
    let lab = Lab::builder().hosts(1).meshd_config("xdp = \"auto\"").start()?;
    eventually("it is told", PATIENCE, || told(&lab.host(1)).is_ok_and(|(mode, _)| !mode.is_empty()))?;
    let (mode, reason) = told(&lab.host(1))?;
    assert!(mode == "off" && reason.contains("veth"), "{mode}: {reason}");
    assert!(!runs(&lab.host(1))?);
    let text = lab.host(1).meshctl(["status"])?.text()?;
    assert!(text.contains("XDP:") && text.contains(&reason), "{text}");
    Ok(())
}

#[test]
fn a_foreign_xdp_program_is_kept_and_reported() -> Result<()> {
    let lab = lab()?;
    let host = lab.host(1);
    lab.set_meshd_config("xdp = \"off\"")?;
    host.restart_meshd()?;
    eventually("ours is gone", PATIENCE, || runs(&host).is_ok_and(|runs| !runs))?;
    // Any program works: use the one that the other host has loaded.
    let pins = std::fs::read_dir(lab.host(2).bpffs_dir()).expect("pins").flatten();
    let pin = pins.map(|entry| entry.path().join("programs/early")).find(|path| path.exists());
    let pin = pin.expect("a program").to_string_lossy().into_owned();
    host.run(["ip", "link", "set", "dev", "eth0", "xdpgeneric", "pinned", &pin])?.ok()?;

    lab.set_meshd_config("xdp = \"native\"")?;
    host.restart_meshd()?;
    let foreign = "another XDP program is attached to eth0";
    eventually("it is told", PATIENCE, || {
        told(&host).is_ok_and(|told| told == ("off".into(), foreign.into()))
    })?;
    let problems = json(&host, &["status"])?["problems"].to_string();
    assert!(problems.contains(foreign), "{problems}");
    assert!(runs(&host)?);
    host.run(["ip", "link", "set", "dev", "eth0", "xdpgeneric", "off"])?.ok()?;
    eventually("ours takes its place", PATIENCE, || told(&host).is_ok_and(|(mode, _)| mode == "native"))?;
    Ok(())
}
