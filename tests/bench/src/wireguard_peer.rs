//! The peers: WireGuard programs in user space, used as flannel's WireGuard backend uses it. Each
//! host routes the other's containers into the tunnel.

use std::{fs, net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use mesh_harness::{Cmd, Host, Lab, Process, ip_batch_in, poll_until};

use crate::instruments::Ends;

/// How long a program may take to make its device.
const START: Duration = Duration::from_secs(5);
const PORT: u16 = 51_820;
/// The underlay's 1500 less IPv6, UDP and WireGuard, as `wg-quick` has it.
const MTU: u32 = 1420;

/// Which program.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Program {
    WireguardGo,
    Boringtun,
}

impl Program {
    /// The command, if it is installed: `./dev bench` puts boringtun's into the directory that
    /// `MESH_BENCH_TOOLS` names.
    fn command(self, device: &str) -> Vec<String> {
        match self {
            Self::WireguardGo => ["wireguard-go", "-f", device].map(str::to_owned).to_vec(),
            Self::Boringtun => {
                let directory = std::env::var_os("MESH_BENCH_TOOLS").map(PathBuf::from).unwrap_or_default();
                let program = directory.join("boringtun-cli").to_string_lossy().into_owned();
                vec![program, "-f".to_owned(), "--disable-drop-privileges".to_owned(), device.to_owned()]
            }
        }
    }
}

/// Joins one container on each of the lab's two hosts; the tunnel lives as long as the processes.
pub(crate) fn join(lab: &Lab, program: Program) -> anyhow::Result<(Ends, [Process; 2])> {
    let keys = [private_key()?, private_key()?];
    let containers = [lab.namespace(1, "wg1")?, lab.namespace(2, "wg2")?];
    let mut processes = Vec::new();
    for (own, peer) in [(1, 2), (2, 1)] {
        let host = lab.host(own);
        processes.push(tunnel(&host, program, own, peer, &keys[own - 1], &keys[peer - 1], lab)?);
        let netns = containers[own - 1].netns();
        ip_batch_in(
            host.netns(),
            &[
                format!("link add c0 mtu {MTU} type veth peer name eth0 mtu {MTU} netns {}", netns.name()),
                format!("addr add {}/24 dev c0", address(own, 1)),
                "link set c0 up".to_owned(),
            ],
        )?;
        ip_batch_in(
            netns,
            &[
                format!("addr add {}/24 dev eth0", address(own, 2)),
                "link set eth0 up".to_owned(),
                format!("route add default via {}", address(own, 1)),
            ],
        )?;
        host.netns().sysctl("net.ipv4.ip_forward", "1")?;
    }
    let [client, server] = containers;
    let ends = Ends {
        client: client.netns().clone(),
        server: server.netns().clone(),
        server_address: address(2, 2),
    };
    let processes = processes.try_into().ok().context("two processes")?;
    Ok((ends, processes))
}

fn tunnel(
    host: &Host,
    program: Program,
    own: usize,
    peer: usize,
    key: &str,
    peer_key: &str,
    lab: &Lab,
) -> anyhow::Result<Process> {
    // Control sockets are in one directory for all namespaces: the device's name must be unique on
    // the machine.
    let device = format!("wg{}{}{own}", std::process::id() % 1_000_000, program.letter());
    let log = lab.path().join(format!("{device}.log"));
    let process = host.netns().cmd(program.command(&device)).env("LOG_LEVEL", "error").spawn(&log)?;
    let key_file = lab.path().join(format!("{device}.key"));
    fs::write(&key_file, key).context("write a key")?;
    let subnet = format!("{}/24", address(peer, 0));
    let set = [
        "wg",
        "set",
        &device,
        "listen-port",
        &PORT.to_string(),
        "private-key",
        &key_file.to_string_lossy(),
        "peer",
        &public_key(peer_key)?,
        "endpoint",
        &format!("{}:{PORT}", lab.host(peer).address()),
        "allowed-ips",
        &subnet,
    ]
    .map(str::to_owned);
    let mut last = String::new();
    let ready = poll_until(START, || {
        let output = host.netns().run(set.clone()).ok()?;
        last.clone_from(&output.stderr);
        output.success().then_some(())
    });
    ready.with_context(|| format!("`{}` does not start: {last} {}", process.command(), process.log()))?;
    ip_batch_in(
        host.netns(),
        &[format!("link set {device} mtu {MTU} up"), format!("route add {subnet} dev {device}")],
    )?;
    Ok(process)
}

impl Program {
    fn letter(self) -> char {
        match self {
            Self::WireguardGo => 'g',
            Self::Boringtun => 'b',
        }
    }
}

fn private_key() -> anyhow::Result<String> {
    Ok(Cmd::new(["wg", "genkey"]).output()?.text()?)
}

fn public_key(private: &str) -> anyhow::Result<String> {
    let key = Cmd::new(["wg", "pubkey"]).stdin(private).output()?.text()?;
    ensure!(!key.is_empty(), "`wg pubkey` printed nothing");
    Ok(key)
}

fn address(host: usize, number: u8) -> Ipv4Addr {
    // Two hosts: 1 and 2.
    Ipv4Addr::new(10, 9, u8::try_from(host).unwrap_or(u8::MAX), number)
}
