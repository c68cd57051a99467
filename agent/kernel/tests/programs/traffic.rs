//! Real traffic between two containers on two hosts.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mesh_ebpf_types::{Encapsulation, Reason};
use mesh_kernel::programs::AttachMethod;

use crate::hosts::{Hosts, Setup, enter, succeed};
use crate::support::VNI;

/// Receives connections or datagrams, sends back what it read (a hash of it for TCP).
const SERVER: &str = r"
import hashlib, socket, sys, threading
def tcp():
    s = socket.create_server(('::', 7000), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        c, _ = s.accept()
        h = hashlib.sha256()
        while b := c.recv(1 << 20): h.update(b)
        c.sendall(h.hexdigest().encode()); c.close()
def udp():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
    s.bind(('::', 7001))
    while True:
        b, a = s.recvfrom(70000); s.sendto(b, a)
threading.Thread(target=tcp, daemon=True).start()
udp()
";

/// Sends many bytes and compares the hash that comes back.
pub(crate) const TRANSFER: &str = r"
import hashlib, os, socket, sys
c = socket.create_connection((sys.argv[1], 7000), timeout=20)
b = os.urandom(1 << 20); h = hashlib.sha256()
for _ in range(int(sys.argv[2])): c.sendall(b); h.update(b)
c.shutdown(socket.SHUT_WR)
assert c.recv(64, socket.MSG_WAITALL).decode() == h.hexdigest()
";

/// Sends super-packets of UDP (`UDP_SEGMENT`) as QUIC does, and counts the segments that come back.
pub(crate) const SEGMENTS: &str = r"
import socket, struct, sys
v6 = ':' in sys.argv[1]
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.setsockopt(17, 103, 1200)
got = 0
for round in range(20):
    s.sendto(bytes([round]) * 12000, (sys.argv[1], 7001))
    for _ in range(10):
        b = s.recv(70000); assert b == bytes([round]) * 1200; got += 1
assert got == 200, got
";

/// Sends one datagram that the sender has to fragment.
pub(crate) const DATAGRAM: &str = r"
import socket, sys
v6 = ':' in sys.argv[1]
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.sendto(b'x' * 60000, (sys.argv[1], 7001))
assert s.recv(70000) == b'x' * 60000
";

pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn start(netns: &str) -> Self {
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{netns}"))
            .args(["python3", "-c", SERVER])
            .stdin(Stdio::null())
            .spawn()
            .expect("a server");
        let deadline = Instant::now() + Duration::from_secs(20);
        let listening = || {
            let sockets = enter(netns, &["ss", "-Hlnu", "sport", "=", ":7001"]);
            !sockets.stdout.is_empty()
        };
        while !listening() {
            assert!(Instant::now() < deadline, "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn all_kinds_of_traffic(setup: Setup) {
    carry_everything(&mut Hosts::new(setup), 100);
}

/// Ping, so many megabytes over TCP, super-packets of UDP and a datagram in fragments, over both
/// families.
pub(crate) fn carry_everything(hosts: &mut Hosts, megabytes: u32) {
    let _server = Server::start(&hosts.hosts[1].container);
    for address in ["10.64.0.70", "fd4d:0:0:1::46"] {
        // The first packet included.
        hosts.run(&["ping", "-c", "3", "-i", "0.05", "-W", "1", address]);
        hosts.run(&["python3", "-c", TRANSFER, address, &megabytes.to_string()]);
        hosts.run(&["python3", "-c", SEGMENTS, address]);
        hosts.run(&["python3", "-c", DATAGRAM, address]);
    }
    for host in &mut hosts.hosts {
        for reason in [Reason::ForwardedRemote, Reason::Received] {
            assert_ne!(host.counter(VNI, reason), 0, "{reason:?}");
        }
    }
    hosts.have_dropped_nothing();
}

#[test]
fn direct_encapsulation_carries_everything() {
    all_kinds_of_traffic(Setup::default());
}

#[test]
fn direct_encapsulation_carries_everything_without_offloads() {
    all_kinds_of_traffic(Setup { offloads: false, ..Setup::default() });
}

#[test]
fn the_vxlan_device_carries_everything() {
    all_kinds_of_traffic(Setup { encapsulation: Encapsulation::Device, ..Setup::default() });
}

#[test]
fn the_vxlan_device_carries_everything_without_offloads() {
    all_kinds_of_traffic(Setup { encapsulation: Encapsulation::Device, offloads: false, ..Setup::default() });
}

#[test]
fn programs_attached_by_clsact_carry_everything() {
    all_kinds_of_traffic(Setup { method: AttachMethod::Clsact, ..Setup::default() });
}

#[test]
fn the_host_and_its_containers_reach_each_other() {
    let hosts = Hosts::new(Setup::default());
    hosts.run(&["ping", "-c", "2", "-i", "0.05", "-W", "1", "10.64.0.1"]);
    let ping = enter(&hosts.hosts[0].netns, &["ping", "-c", "2", "-i", "0.05", "-W", "1", "10.64.0.5"]);
    assert!(ping.status.success());
}

#[test]
fn a_container_with_too_big_an_mtu_learns_the_right_one() {
    let mut hosts = Hosts::new(Setup::default());
    let _server = Server::start(&hosts.hosts[1].container);
    // As if the underlay's MTU had just been lowered: the pairs still have the old one.
    for host in &hosts.hosts {
        succeed(&enter(&host.container, &["ip", "link", "set", "eth0", "mtu", "1500"]));
        succeed(&enter(&host.netns, &["ip", "link", "set", "ep", "mtu", "1500"]));
    }
    for address in ["10.64.0.70", "fd4d:0:0:1::46"] {
        hosts.run(&["python3", "-c", TRANSFER, address, "20"]);
    }
    assert_ne!(hosts.hosts[0].counter(VNI, Reason::TooBigAnswered), 0);
    // Without DF the packet is fragmented on its way instead.
    hosts.run(&["ping", "-M", "dont", "-c", "2", "-i", "0.05", "-W", "1", "-s", "1472", "10.64.0.70"]);
}
