//! A WireGuard tunnel of the hosts' own, as an example of an interface without Ethernet headers.

use std::net::{IpAddr, Ipv4Addr};

use mesh_harness::{Cmd, Lab, Netns, Process, Result, eventually, ip_batch_in};

use crate::PATIENCE;

/// UDP port of the tunnel, different from Mesh's own.
const PORT: u16 = 51999;

/// One end: its namespace, its address on the underlay, and its address inside the tunnel.
type End<'a> = (&'a Netns, IpAddr, Ipv4Addr);

/// A tunnel between two machines of a lab; it exists as long as this value.
#[derive(Debug)]
pub struct Tunnel {
    _processes: Vec<Process>,
    /// The devices' names, in the order of the ends.
    pub devices: [String; 2],
}

impl Tunnel {
    /// Connects two machines.
    pub fn join(lab: &Lab, ends: [End<'_>; 2]) -> Result<Self> {
        let private =
            [Cmd::new(["wg", "genkey"]).output()?.text()?, Cmd::new(["wg", "genkey"]).output()?.text()?];
        // All namespaces share one directory of control sockets, so the names must be unique on the
        // machine.
        let devices = ["a", "b"].map(|end| format!("wg{}{end}", std::process::id() % 1_000_000));
        let mut processes = Vec::new();
        for (own, other) in [(0, 1), (1, 0)] {
            let (netns, _, inside) = ends[own];
            let (_, other_address, _) = ends[other];
            let device = devices[own].as_str();
            let log = lab.path().join(format!("{device}.log"));
            processes.push(netns.cmd(["wireguard-go", "-f", device]).env("LOG_LEVEL", "error").spawn(&log)?);
            let key = lab.path().join(format!("{device}.key"));
            std::fs::write(&key, &private[own]).expect("the lab's directory is writable");
            let public = Cmd::new(["wg", "pubkey"]).stdin(&private[other]).output()?.text()?;
            let (port, endpoint) = (PORT.to_string(), format!("{other_address}:{PORT}"));
            let key = key.to_string_lossy();
            let set = ["wg", "set", device, "listen-port", &port, "private-key", &key, "peer", &public];
            let set = [&set[..], &["endpoint", &endpoint, "allowed-ips", "0.0.0.0/0"]].concat();
            eventually("the tunnel's end takes its keys", PATIENCE, || {
                netns.run(set.iter().copied()).is_ok_and(|output| output.success())
            })?;
            ip_batch_in(
                netns,
                &[format!("addr add {inside}/24 dev {device}"), format!("link set {device} mtu 1420 up")],
            )?;
        }
        Ok(Self { _processes: processes, devices })
    }
}
