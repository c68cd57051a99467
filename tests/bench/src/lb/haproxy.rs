//! The peer: HAProxy in TCP mode on the client's host, or on the host that a published port is
//! called on.

use std::{fmt::Write as _, fs, net::Ipv4Addr};

use anyhow::Context;
use mesh_harness::{Host, Process};

use super::ports;
use crate::instruments::listen;

/// Starts it on `host`, at `address` (unspecified: all of the host's), for `backends`. It ends when
/// the value is dropped.
pub(super) fn start(host: &Host, address: Ipv4Addr, backends: &[Ipv4Addr]) -> anyhow::Result<Process> {
    let mut config =
        "global\n  maxconn 4000\ndefaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  \
                      timeout client 1h\n  timeout server 1h\n"
            .to_owned();
    let offset = if address.is_unspecified() { ports::HAPROXY } else { 0 };
    for (_, port) in ports::ALL.into_iter().filter(|(protocol, _)| *protocol == "tcp") {
        // Writing to a String does not fail.
        let _ = writeln!(config, "listen p{port}\n  bind {address}:{}", port + offset);
        for (index, backend) in backends.iter().enumerate() {
            let _ = writeln!(config, "  server s{index} {backend}:{port}");
        }
    }
    let (path, log) = (host.path().join("haproxy.cfg"), host.path().join("haproxy.log"));
    fs::create_dir_all(host.path()).context("make a directory for haproxy")?;
    fs::write(&path, config).context("write haproxy's configuration")?;
    let argv = ["haproxy", "-db", "-f", &path.to_string_lossy()];
    listen(host.netns(), &argv, &(ports::WEB + offset).to_string(), "tcp", &log)
}
