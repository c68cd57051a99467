//! Two nodes, the programs of both on real maps: what one sends to the other, the other receives.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::process::Command;

use aya::maps::{HashMap, Map, MapData};
use aya::programs::{TestRun, TestRunOptions};
use mesh_ebpf_types::{
    Address, Backend, BlockKind, Config, Connection, ConnectionKey, Endpoint, EndpointKey, HostRouteKey,
    Interface, LOCAL, Mac, MapEntry, MapKey, Member, Network, ProgramKind, Published, PublishedKey, SCHEMA,
    Service as ServiceValue, TableEntry, TableKey, Vni, derived_mac,
};
use mesh_kernel::programs::Programs;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::model::{Model, Outcome, Service};
use super::packet::Packet;
use crate::support::{
    DROP, HOST_MAC, IFINDEX, Instance, LOCAL as FIRST, REDIRECT, REMOTE as SECOND, block, config,
};
use crate::support::{frame, vxlan};

/// The last byte of each endpoint's address; the first half is on the first node. The first of each
/// half is no backend.
pub(super) const ENDPOINTS: [u8; 6] = [5, 6, 7, 70, 71, 72];
/// Those that may be backends.
pub(super) const BACKENDS: [usize; 4] = [1, 2, 4, 5];
/// The last bytes of the services' addresses.
const VIPS: [u8; 2] = [200, 201];
/// The port published for the first service, and its backends' own.
pub(super) const PUBLISHED: (u16, u16) = (8080, 80);
/// The hosts' addresses. The first node has two.
pub(super) const HOSTS: [(usize, [u8; 4]); 3] = [(0, FIRST), (0, [192, 168, 77, 111]), (1, SECOND)];
/// Each table of backends has a place of this many entries, and each new one another place.
const PLACE: u32 = 64;
const PLACES: u32 = 1024;

/// What a backend may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Absent,
    Active,
    Draining,
    Failing,
}

/// Addresses of one case: other flows, other backends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses(pub(super) u16);

impl Addresses {
    pub(super) fn v4(self, last: u8) -> Address {
        let [high, low] = self.0.to_be_bytes();
        Address::from_v4([10, 64 + high % 64, low, last])
    }

    pub(super) fn v6(self, last: u8) -> Address {
        let mut bytes = [0; 16];
        bytes[..12].copy_from_slice(&self.prefix6());
        bytes[15] = last;
        Address(bytes)
    }

    pub(super) fn pair(self, last: u8) -> [Address; 2] {
        [self.v4(last), self.v6(last)]
    }

    /// A client outside.
    pub(super) fn outside(self, v6: bool, last: u8) -> Address {
        let [high, low] = self.0.to_be_bytes();
        if v6 {
            Address([0x20, 1, 0xd, 0xb8, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
        } else {
            Address::from_v4([172, 16 + high % 16, low, last])
        }
    }

    fn prefix6(self) -> [u8; 12] {
        let [high, low] = self.0.to_be_bytes();
        [0xfd, 0x4d, 0, 0, 0, 0, high, low, 0, 0, 0, 0]
    }

    const fn vni(self) -> Vni {
        Vni::new(5000 + self.0 as u32)
    }
}

/// One of the hosts' addresses, of either family.
pub(super) fn host_address(index: usize, v6: bool) -> Address {
    let [a, b, c, d] = HOSTS[index].1;
    if v6 {
        Address([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d])
    } else {
        Address::from_v4([a, b, c, d])
    }
}

pub(super) const fn node_of(endpoint: usize) -> usize {
    if endpoint < ENDPOINTS.len() / 2 { 0 } else { 1 }
}

fn ifindex(endpoint: usize) -> u32 {
    101 + u32::try_from(endpoint).expect("few endpoints")
}

const fn mac(endpoint: usize) -> Mac {
    Mac([2, 0x4d, 0, 0, 1, ENDPOINTS[endpoint]])
}

pub(super) struct World {
    nodes: [Instance; 2],
    cpus: Vec<CpuSet>,
    /// What the case before wrote.
    written: [Vec<MapKey>; 2],
    tables: Vec<TableKey>,
    last_backend: u32,
    place: Cell<u32>,
}

impl World {
    pub(super) fn new() -> Self {
        // Both in the namespace of the later one.
        let nodes = [Instance::load(), Instance::load()];
        for endpoint in 0..ENDPOINTS.len() {
            let (name, index) = (format!("ep{endpoint}"), ifindex(endpoint).to_string());
            let added = Command::new("ip")
                .args([
                    "link",
                    "add",
                    &name,
                    "index",
                    &index,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    &format!("{name}p"),
                ])
                .status()
                .expect("ip");
            assert!(added.success(), "a device");
        }
        let allowed = sched_getaffinity(Pid::from_raw(0)).expect("asked");
        let only = |cpu| {
            let mut set = CpuSet::new();
            set.set(cpu).map(|()| set).expect("a CPU")
        };
        let cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).map(only).collect();
        let mut world = Self {
            nodes,
            cpus,
            written: [Vec::new(), Vec::new()],
            tables: Vec::new(),
            last_backend: 0,
            place: Cell::new(0),
        };
        for (node, local) in [FIRST, SECOND].into_iter().enumerate() {
            world.nodes[node].put(MapEntry::Config(Config { local: Address::from_v4(local), ..config() }));
            let other = [SECOND, FIRST][node];
            world.nodes[node].put(MapEntry::Member(Address::from_v4(other), Member::default()));
        }
        for (index, (node, _)) in HOSTS.into_iter().enumerate() {
            for v6 in [false, true] {
                world.nodes[node].put(MapEntry::HostAddress(host_address(index, v6), 0));
            }
        }
        world
    }

    /// Makes both nodes new, with two services without backends, and returns the model of that.
    pub(super) fn begin(&mut self, addresses: Addresses) -> Model {
        let tables = std::mem::take(&mut self.tables);
        for (node, instance) in self.nodes.iter_mut().enumerate() {
            forget(instance);
            instance.datapath.delete_tables(&tables).expect("removed");
            for key in std::mem::take(&mut self.written[node]) {
                instance.datapath.delete(&key).expect("removed");
            }
            for entry in entries(addresses, node) {
                instance.put(entry);
                if !matches!(entry, MapEntry::Interface(..)) {
                    self.written[node].push(entry.key());
                }
            }
        }
        let mut model = Model::default();
        for (endpoint, last) in ENDPOINTS.into_iter().enumerate() {
            model.endpoints.extend(addresses.pair(last).map(|address| (address, node_of(endpoint))));
        }
        for (index, (node, _)) in HOSTS.into_iter().enumerate() {
            model.hosts[node].extend([false, true].map(|v6| host_address(index, v6)));
        }
        for endpoint in BACKENDS {
            for address in addresses.pair(ENDPOINTS[endpoint]) {
                model.backend_addresses.insert(address);
                self.write(&[TableEntry::BackendAddress(EndpointKey { vni: addresses.vni(), address })]);
            }
        }
        let service = |vip| Service { vips: addresses.pair(vip), ..Service::default() };
        model.services = vec![
            Service { published: Some(PUBLISHED), ..service(VIPS[0]) },
            Service { affinity: true, ..service(VIPS[1]) },
        ];
        model
    }

    /// Makes the backends of a service, of which `states` has one each of [`BACKENDS`], what they
    /// are to be. Numbers of those that stay are kept.
    pub(super) fn apply(
        &mut self,
        addresses: Addresses,
        model: &mut Model,
        service: usize,
        states: [State; BACKENDS.len()],
        numbers: &mut [Option<u32>; BACKENDS.len()],
    ) {
        let mut gone = Vec::new();
        let mut active = Vec::new();
        for ((state, endpoint), number) in states.into_iter().zip(BACKENDS).zip(numbers) {
            if state == State::Absent {
                gone.extend(number.take());
                continue;
            }
            let number = *number.get_or_insert_with(|| {
                self.last_backend += 1;
                self.last_backend
            });
            let pair = addresses.pair(ENDPOINTS[endpoint]);
            model.backends.insert(number, pair);
            model.failing.remove(&number);
            if state == State::Failing {
                model.failing.insert(number);
            }
            for (node, instance) in self.nodes.iter_mut().enumerate() {
                let local = if node_of(endpoint) == node { LOCAL } else { 0 };
                let state = match state {
                    State::Absent | State::Active => 0,
                    State::Draining => mesh_ebpf_types::DRAINING,
                    State::Failing => mesh_ebpf_types::FAILING,
                };
                let backend = Backend {
                    vni: addresses.vni(),
                    ipv4: pair[0].to_v4().expect("IPv4"),
                    ipv6: pair[1],
                    node: Address::from_v4([FIRST, SECOND][node_of(endpoint)]),
                    flags: local | state,
                    peer: 0,
                };
                instance.datapath.put_tables(&[TableEntry::Backend(number, backend)]).expect("written");
            }
            self.tables.push(TableKey::Backend(number));
            if state == State::Active {
                active.push(number);
            }
        }
        let table: Vec<u32> = (0..active.len() * 7).map(|entry| active[entry % active.len()]).collect();
        model.services[service].table.clone_from(&table);
        self.write_service(addresses, &model.services[service], &table);
        let keys: Vec<_> = gone.iter().map(|number| TableKey::Backend(*number)).collect();
        for instance in &mut self.nodes {
            instance.datapath.delete_tables(&keys).expect("removed");
        }
        for number in gone {
            model.backends.remove(&number);
            model.failing.remove(&number);
        }
    }

    fn write_service(&mut self, addresses: Addresses, service: &Service, table: &[u32]) {
        let first = self.place.get() * PLACE;
        self.place.set((self.place.get() + 1) % PLACES);
        for instance in &mut self.nodes {
            instance.datapath.write_backend_tables(first, table).expect("written");
        }
        let size = u32::try_from(table.len()).expect("small");
        let flags = if service.affinity { mesh_ebpf_types::AFFINITY_CLIENT_IP } else { 0 };
        let vni = addresses.vni();
        let mut entries: Vec<_> = service
            .vips
            .iter()
            .map(|vip| {
                let key = EndpointKey { vni, address: *vip };
                TableEntry::Service(key, ServiceValue { first, size, flags })
            })
            .collect();
        if let Some((published, target)) = service.published {
            for protocol in [6, 17] {
                let key = PublishedKey { port: published.to_be_bytes(), protocol, ..PublishedKey::default() };
                let target = target.to_be_bytes();
                let value = Published { first, size, flags, vni, target, ..Published::default() };
                entries.push(TableEntry::Published(key, value));
            }
        }
        self.write(&entries);
    }

    fn write(&mut self, entries: &[TableEntry]) {
        for instance in &mut self.nodes {
            instance.datapath.put_tables(entries).expect("written");
        }
        self.tables.extend(entries.iter().map(TableEntry::key));
    }

    /// How many directions of flows are established on a node: of the network, and towards
    /// published ports.
    pub(super) fn established(&mut self, addresses: Addresses, node: usize) -> [usize; 2] {
        let counts = self.nodes[node].datapath.connections().expect("counted");
        let count = |vni| counts.get(&vni).map_or(0, |count| usize::try_from(*count).expect("few"));
        [count(addresses.vni()), count(Vni::NONE)]
    }

    /// Sets how many more entries the case's network may establish on each node.
    pub(super) fn allow(&mut self, addresses: Addresses, left: u64) {
        for instance in &mut self.nodes {
            let allowances = BTreeMap::from([(addresses.vni(), left)]);
            instance.datapath.set_allowances(&allowances).expect("written");
        }
    }

    /// What becomes of what an endpoint sends, on one of the CPUs.
    pub(super) fn send(
        &mut self,
        addresses: Addresses,
        endpoint: usize,
        packet: &Packet,
        cpu: usize,
    ) -> Outcome {
        let is_neighbour = |last| addresses.pair(last).contains(&packet.destination);
        let hop = if ENDPOINTS.into_iter().chain(VIPS).any(is_neighbour) {
            packet.destination
        } else if packet.destination.to_v4().is_some() {
            addresses.v4(1)
        } else {
            addresses.v6(1)
        };
        let frame = ethernet(derived_mac(hop, addresses.prefix6()), mac(endpoint), packet);
        self.follow(addresses, node_of(endpoint), ProgramKind::Endpoint, ifindex(endpoint), frame, cpu)
    }

    /// What becomes of what arrives at a node from outside.
    pub(super) fn receive(
        &mut self,
        addresses: Addresses,
        node: usize,
        packet: &Packet,
        cpu: usize,
    ) -> Outcome {
        let frame = ethernet(Mac([0; 6]), Mac([2, 0, 0, 0, 0, 9]), packet);
        self.follow(addresses, node, ProgramKind::Underlay, IFINDEX, frame, cpu)
    }

    fn follow(
        &mut self,
        addresses: Addresses,
        mut node: usize,
        mut kind: ProgramKind,
        mut ifindex: u32,
        mut frame: Vec<u8>,
        cpu: usize,
    ) -> Outcome {
        let cpu = self.cpus[cpu % self.cpus.len()];
        sched_setaffinity(Pid::from_raw(0), &cpu).expect("the thread moves");
        loop {
            let (verdict, out) = self.run(node, kind, ifindex, &frame);
            match verdict {
                DROP => return Outcome::Dropped,
                REDIRECT => {}
                _ => {
                    assert_eq!(out, frame, "what is left alone is not changed");
                    return Outcome::Elsewhere;
                }
            }
            let Some(inner) = tunnelled(node, &out) else { return outcome(addresses, node, &out) };
            (node, kind, ifindex) = (1 - node, ProgramKind::Underlay, IFINDEX);
            let sender = [SECOND, FIRST][node];
            frame = addressed(vxlan(sender, inner.0, &inner.1), [FIRST, SECOND][node]);
        }
    }

    fn run(&mut self, node: usize, kind: ProgramKind, ifindex: u32, packet: &[u8]) -> (i32, Vec<u8>) {
        let mut out = vec![0; packet.len() + 512];
        let mut context = [0_u8; 192];
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let program = self.nodes[node].datapath.program(kind).expect("a loaded program");
        let result = program.test_run(options).expect("a test run");
        out.truncate(result.data_size_out as usize);
        (result.return_value.cast_signed(), out)
    }
}

/// Empties what the programs remember of flows.
fn forget(instance: &Instance) {
    for name in ["CONNECTIONS", "PENDING"] {
        let path = instance.dir.join(format!("v{SCHEMA}/maps/{name}"));
        let map = Map::LruHashMap(MapData::from_pin(path).expect("a pinned map"));
        let mut map = HashMap::<_, ConnectionKey, Connection>::try_from(map).expect("connections");
        let keys: Vec<_> = map.keys().collect::<Result<_, _>>().expect("read");
        for key in keys {
            map.remove(&key).expect("removed");
        }
    }
}

/// The VNI and the frame inside what a node sends to the other one.
fn tunnelled(node: usize, frame: &[u8]) -> Option<(Vni, Vec<u8>)> {
    let is_vxlan = frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == 4789_u16.to_be_bytes();
    if !is_vxlan {
        return None;
    }
    assert_eq!(crate::support::checksum(&frame[14..34]), 0, "the outer header's checksum");
    assert_eq!(frame[26..34], [[FIRST, SECOND][node], [SECOND, FIRST][node]].concat(), "between the nodes");
    Some((Vni([0, frame[46], frame[47], frame[48]]), frame[50..].to_vec()))
}

/// A frame from outside with another destination.
fn addressed(mut frame: Vec<u8>, to: [u8; 4]) -> Vec<u8> {
    frame[30..34].copy_from_slice(&to);
    frame[24..26].fill(0);
    let sum = crate::support::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn ethernet(destination: Mac, source: Mac, packet: &Packet) -> Vec<u8> {
    let ethertype = if packet.source.to_v4().is_some() { 0x0800 } else { 0x86dd };
    frame(destination, source, ethertype, &packet.bytes())
}

fn outcome(addresses: Addresses, node: usize, frame: &[u8]) -> Outcome {
    if frame[..6] == HOST_MAC.0 {
        return Outcome::Elsewhere;
    }
    let packet = Packet::read(&frame[14..]);
    let ours = |endpoint: &usize| addresses.pair(ENDPOINTS[*endpoint]).contains(&packet.destination);
    let Some(endpoint) = (0..ENDPOINTS.len()).find(ours) else { return Outcome::Outside { node, packet } };
    assert_eq!((node, &frame[..6]), (node_of(endpoint), &mac(endpoint).0[..]), "{packet:?}");
    Outcome::Endpoint { address: packet.destination, packet }
}

/// What a node knows of the case's network.
fn entries(addresses: Addresses, node: usize) -> Vec<MapEntry> {
    let vni = addresses.vni();
    let route = |address, prefix_bits| MapEntry::HostRoute(HostRouteKey { prefix_bits, address }, vni);
    let mut entries = vec![
        MapEntry::Network(
            vni,
            Network { flags: mesh_ebpf_types::HOST_ALL, mtu: 1450, prefix6: addresses.prefix6() },
        ),
        route(addresses.v4(0), 96 + 24),
        route(addresses.v6(0), 96),
    ];
    let other = Address::from_v4([SECOND, FIRST][node]);
    let remote = [64, 0][node];
    for (family, subnet, lease) in [(0, 96 + 24, 96 + 26), (1, 96, 122)] {
        let base = |last| addresses.pair(last)[family];
        entries.extend([
            block(vni, base(0), subnet, BlockKind::Unassigned, Address::NONE),
            block(vni, base(1), 128, BlockKind::Gateway, Address::NONE),
            block(vni, base(64 - remote), lease, BlockKind::Local, Address::NONE),
            block(vni, base(remote), lease, BlockKind::Remote, other),
        ]);
    }
    for endpoint in (0..ENDPOINTS.len()).filter(|endpoint| node_of(*endpoint) == node) {
        let [v4, v6] = addresses.pair(ENDPOINTS[endpoint]);
        let (ifindex, mac) = (ifindex(endpoint), mac(endpoint));
        let ipv4 = v4.to_v4().expect("IPv4");
        entries.push(MapEntry::Interface(ifindex, Interface { vni, ipv4, ipv6: v6, mac, flags: 0 }));
        for address in [v4, v6] {
            let value = Endpoint { ifindex, mac, flags: 0 };
            entries.push(MapEntry::Endpoint(EndpointKey { vni, address }, value));
        }
    }
    entries
}
