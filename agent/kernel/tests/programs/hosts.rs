//! Two hosts and two containers in network namespaces, wired as the agent would wire them.
//!
//! ```text
//! c1 eth0 -- ep [h1] eth0 ------ eth0 [h2] ep -- eth0 c2
//! 10.64.0.5      192.168.77.11   192.168.77.12    10.64.0.70
//! ```

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use mesh_ebpf_types::{
    Address, BlockKind, Config, Encapsulation, Endpoint, EndpointKey, HostRouteKey, Interface, Mac, MapEntry,
    Member, Network, ProgramKind, Reason, Vni,
};
use mesh_kernel::programs::{AttachMethod, Attachment, Datapath, Options, Programs};
use nix::sched::{CloneFlags, setns};

use crate::support::{PREFIX6, VNI, block, bpffs_dir, mac, v4, v6};

/// How the hosts are made.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) encapsulation: Encapsulation,
    pub(crate) method: AttachMethod,
    /// Segmentation and checksum offloads of every device.
    pub(crate) offloads: bool,
    pub(crate) underlay_mtu: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            encapsulation: Encapsulation::Direct,
            method: AttachMethod::of_kernel(),
            offloads: true,
            underlay_mtu: 1500,
        }
    }
}

/// A host, its datapath and its container.
pub(crate) struct Host {
    pub(crate) netns: String,
    pub(crate) container: String,
    pub(crate) datapath: Datapath,
    pub(crate) address: [u8; 4],
    pub(crate) last: u8,
}

/// Both hosts. Removed with all that is in them when dropped.
pub(crate) struct Hosts {
    pub(crate) hosts: [Host; 2],
}

impl Hosts {
    pub(crate) fn new(setup: Setup) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("mt{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let host = |number: u8, last| Host {
            netns: format!("{prefix}h{number}"),
            container: format!("{prefix}c{number}"),
            datapath: Datapath::new(Options { method: setup.method, ..Options::new(bpffs_dir()) }),
            address: [192, 168, 77, 10 + number],
            last,
        };
        let mut hosts = Self { hosts: [host(1, 5), host(2, 70)] };
        hosts.make(setup);
        hosts
    }

    fn make(&mut self, setup: Setup) {
        let [first, second] = &self.hosts;
        for name in [&first.netns, &second.netns, &first.container, &second.container] {
            ip(&["netns", "add", name]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        let (one, two) = (first.netns.clone(), second.netns.clone());
        ip(&["-n", &one, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &two]);
        for host in &mut self.hosts {
            host.make(setup);
        }
        let peers = self.hosts.each_ref().map(|host| (host.address, host.last));
        for (host, peer) in self.hosts.iter_mut().zip([peers[1], peers[0]]) {
            host.program(setup, peer);
        }
    }

    /// Asserts that no host has dropped a packet of the network, but for multicast.
    #[track_caller]
    pub(crate) fn have_dropped_nothing(&mut self) {
        for host in &mut self.hosts {
            let drops: Vec<_> = Reason::ALL
                .iter()
                .filter(|reason| reason.is_drop() && **reason != Reason::Multicast)
                .filter(|reason| host.counter(VNI, **reason) != 0)
                .collect();
            assert!(drops.is_empty(), "{drops:?}");
        }
    }

    /// Runs a command in the first container.
    #[track_caller]
    pub(crate) fn run(&self, command: &[&str]) -> String {
        succeed(&enter(&self.hosts[0].container, command))
    }
}

impl Host {
    fn make(&self, setup: Setup) {
        let Self { netns, container, address: [a, b, c, d], last, .. } = self;
        let mtu = (setup.underlay_mtu - 50).to_string();
        let own_mac = mac(*last).to_string();
        ip(&["-n", netns, "addr", "add", &format!("{a}.{b}.{c}.{d}/24"), "dev", "eth0"]);
        ip(&["-n", netns, "link", "set", "eth0", "mtu", &setup.underlay_mtu.to_string(), "up"]);
        let vxlan = "link add meshvx0 type vxlan external dstport 4789 nolearning udp6zerocsumrx";
        ip(&[&["-n", netns][..], &vxlan.split(' ').collect::<Vec<_>>()].concat());
        ip(&["-n", netns, "link", "set", "meshvx0", "up"]);
        ip(&["-n", netns, "link", "add", "mesh0p", "type", "veth", "peer", "name", "mesh0"]);
        ip(&["-n", netns, "link", "set", "mesh0", "mtu", &mtu, "arp", "off", "up"]);
        ip(&["-n", netns, "link", "set", "mesh0p", "mtu", &mtu, "up"]);
        ip(&["-n", netns, "addr", "add", "10.64.0.1/32", "dev", "mesh0"]);
        ip(&["-n", netns, "route", "add", "10.64.0.0/20", "dev", "mesh0", "src", "10.64.0.1"]);
        ip(&["-n", netns, "link", "add", "ep", "type", "veth", "peer", "name", "eth0", "netns", container]);
        ip(&["-n", netns, "link", "set", "ep", "mtu", &mtu, "up"]);
        ip(&["-n", container, "link", "set", "eth0", "address", &own_mac, "mtu", &mtu, "up"]);
        ip(&["-n", container, "addr", "add", &format!("10.64.0.{last}/20"), "dev", "eth0"]);
        ip(&["-n", container, "addr", "add", &format!("fd4d:0:0:1::{last:x}/64"), "dev", "eth0", "nodad"]);
        ip(&["-n", container, "route", "add", "default", "via", "10.64.0.1"]);
        if !setup.offloads {
            for (name, device) in [(netns, "eth0"), (netns, "ep"), (netns, "meshvx0"), (container, "eth0")] {
                let all = [
                    "ethtool", "-K", device, "tso", "off", "gso", "off", "gro", "off", "tx", "off", "rx",
                    "off",
                ];
                succeed(&enter(name, &all));
            }
        }
    }

    fn program(&mut self, setup: Setup, (peer, peer_last): ([u8; 4], u8)) {
        let index = |name| self.ifindex(name);
        let (underlay, vxlan, leg, ep) = (index("eth0"), index("meshvx0"), index("mesh0p"), index("ep"));
        let last = self.last;
        let remote = Address::from_v4(peer);
        let network6 = v6(0);
        let endpoint = |address| {
            MapEntry::Endpoint(
                EndpointKey { vni: VNI, address },
                Endpoint { ifindex: ep, mac: mac(last), flags: 0 },
            )
        };
        let entries = [
            MapEntry::Config(Config {
                local: Address::from_v4(self.address),
                underlay_ifindex: underlay,
                vxlan_ifindex: vxlan,
                host_ifindex: leg,
                underlay_mtu: setup.underlay_mtu,
                host_mac: self.mac_of("mesh0"),
                vxlan_port: 4789_u16.to_be_bytes(),
                encapsulation: setup.encapsulation as u8,
                ..Config::default()
            }),
            MapEntry::Network(
                VNI,
                Network { flags: mesh_ebpf_types::HOST_ALL, mtu: setup.underlay_mtu - 50, prefix6: PREFIX6 },
            ),
            MapEntry::Interface(
                ep,
                Interface { vni: VNI, ipv4: [10, 64, 0, last], ipv6: v6(last), mac: mac(last), flags: 0 },
            ),
            endpoint(v4(last)),
            endpoint(v6(last)),
            block(VNI, v4(0), 96 + 20, BlockKind::Unassigned, Address::NONE),
            block(VNI, v4(1), 128, BlockKind::Gateway, Address::NONE),
            block(VNI, v4(peer_last & 0xc0), 96 + 26, BlockKind::Remote, remote),
            block(VNI, network6, 64, BlockKind::Unassigned, Address::NONE),
            block(VNI, v6(peer_last & 0xc0), 122, BlockKind::Remote, remote),
            MapEntry::HostRoute(HostRouteKey { prefix_bits: 96 + 20, address: v4(0) }, VNI),
            MapEntry::Member(remote, Member::default()),
        ];
        let attachments = [
            (underlay, ProgramKind::Underlay),
            (vxlan, ProgramKind::Overlay),
            (leg, ProgramKind::Host),
            (ep, ProgramKind::Endpoint),
        ];
        self.inside(|datapath| {
            datapath.load().expect("programs load");
            for entry in &entries {
                datapath.put(entry).expect("an entry");
            }
            for (ifindex, kind) in attachments {
                datapath.attach(Attachment { ifindex, kind }).expect("attached");
            }
        });
    }

    /// Works on the datapath from within the host's network namespace.
    pub(crate) fn inside<T: Send>(&mut self, work: impl FnOnce(&mut Datapath) -> T + Send) -> T {
        let (netns, datapath) = (&self.netns, &mut self.datapath);
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let file = File::open(Path::new("/run/netns").join(netns)).expect("a network namespace");
                setns(file, CloneFlags::CLONE_NEWNET).expect("entered");
                work(datapath)
            });
            worker.join().expect("no panic inside the host")
        })
    }

    pub(crate) fn ifindex(&self, device: &str) -> u32 {
        let line = succeed(&enter(&self.netns, &["ip", "-o", "link", "show", device]));
        line.split(':').next().and_then(|index| index.parse().ok()).expect("an index")
    }

    fn mac_of(&self, device: &str) -> Mac {
        let line = succeed(&enter(&self.netns, &["ip", "-o", "link", "show", device]));
        let text = line.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("a MAC");
        let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
        Mac(bytes.try_into().expect("six bytes"))
    }

    pub(crate) fn counter(&mut self, vni: Vni, reason: Reason) -> u64 {
        self.datapath.counters().expect("counters").get(&(vni, reason)).map_or(0, |counter| counter.packets)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            host.inside(|datapath| datapath.unload().expect("pins are removed"));
            for name in [&host.container, &host.netns] {
                let _ = Command::new("ip").args(["netns", "del", name]).output();
            }
        }
    }
}

/// A command inside a network namespace.
pub(crate) fn enter(netns: &str, command: &[&str]) -> Output {
    Command::new("nsenter").arg(format!("--net=/run/netns/{netns}")).args(command).output().expect("nsenter")
}

#[track_caller]
fn ip(arguments: &[&str]) {
    succeed(&Command::new("ip").args(arguments).output().expect("ip"));
}

#[track_caller]
pub(crate) fn succeed(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}
