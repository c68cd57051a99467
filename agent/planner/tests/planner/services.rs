use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use mesh_ebpf_types::{
    AFFINITY_CLIENT_IP, Address, BACKEND_ENCRYPTED, DRAINING, HOST_MODE, LOCAL, TableEntry, TableKey,
};
use mesh_model::{
    Affinity, Availability, Backend, BackendId, BackendState, EndpointMode, HealthCheck, HealthKind,
    HostPolicy, Network, NetworkId, Node, NodeId, Protocol, PublishMode, PublishedPort, Role, Service,
    ServiceId, Subnet, WhenAllUnhealthy,
};
use mesh_planner::services::{
    Digest, Dump, Facts, Records, Tables, Unreachable, Update, capacity_for, named_table, named_tables,
};
use proptest::prelude::*;

const CAPACITY: u32 = 1 << 16;

fn text(n: u32) -> String {
    format!("{n:024x}")
}

/// A cluster of three nodes and a network, as seen by the first node.
#[derive(Clone)]
struct World {
    node: NodeId,
    nodes: BTreeMap<NodeId, Node>,
    networks: BTreeMap<NetworkId, Network>,
    down: BTreeSet<NodeId>,
    healthy: BTreeSet<BackendId>,
    peers: BTreeMap<NodeId, u16>,
    unreachable: Unreachable,
    services: BTreeMap<ServiceId, Records>,
}

fn node_id(n: u32) -> NodeId {
    text(n).parse().unwrap()
}

fn service_id(n: u32) -> ServiceId {
    text(n).parse().unwrap()
}

fn node(n: u32) -> Node {
    Node {
        id: node_id(n),
        name: format!("h{n}").parse().unwrap(),
        role: Role::Worker,
        availability: Availability::Active,
        advertise_addr: format!("192.0.2.{n}:7377").parse().unwrap(),
        data_path_addr: format!("192.0.2.{n}").parse().unwrap(),
        data_path_mtu: 1500.try_into().unwrap(),
        version: "test".into(),
        wireguard: None,
        host_addrs: std::collections::BTreeSet::new(),
        created_at: Timestamp::UNIX_EPOCH,
    }
}

fn check() -> HealthCheck {
    HealthCheck::new(HealthKind::Tcp { port: 80 }, Duration::from_secs(2), 3).unwrap()
}

fn network() -> Network {
    let (subnet, gateway) = ("10.0.0.0/8".parse().unwrap(), "10.0.0.1".parse().unwrap());
    Network {
        id: text(1).parse().unwrap(),
        name: "app".parse().unwrap(),
        vni: 4096.try_into().unwrap(),
        subnets: vec![Subnet { subnet, gateway, ip_range: None, aux: BTreeMap::new() }],
        mtu: None,
        encrypted: false,
        internal: false,
        attachable: true,
        host_policy: HostPolicy::default(),
        removing: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        created_at: Timestamp::UNIX_EPOCH,
    }
}

impl World {
    fn new() -> Self {
        Self {
            node: node_id(1),
            nodes: (1..=3).map(|n| (node_id(n), node(n))).collect(),
            networks: BTreeMap::from([(network().id, network())]),
            down: BTreeSet::new(),
            healthy: BTreeSet::new(),
            peers: BTreeMap::from([(node_id(2), 7)]),
            unreachable: Unreachable::default(),
            services: BTreeMap::new(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            node: &self.node,
            nodes: &self.nodes,
            down: &self.down,
            networks: &self.networks,
            healthy: &self.healthy,
            peers: &self.peers,
            unreachable: &self.unreachable,
        }
    }

    /// Makes exactly these backends fail their checks.
    fn fail(&mut self, backends: impl IntoIterator<Item = BackendId>) {
        self.healthy = self.services.values().flat_map(|records| records.backends.keys().copied()).collect();
        for id in backends {
            self.healthy.remove(&id);
        }
    }

    /// Adds service `n` with a VIP, a published port, and backends with these numbers, each on the
    /// node of its number modulo 3. All of them pass their checks.
    fn serve(&mut self, n: u32, backends: impl IntoIterator<Item = u32>) {
        let [_, _, high, low] = n.to_be_bytes();
        let service = Service {
            id: service_id(n),
            name: format!("s{n}").parse().unwrap(),
            network: network().id,
            endpoint_mode: EndpointMode::Vip,
            vip: Some([10, 255, high, low].into()),
            vip6: None,
            ports: vec![PublishedPort::ingress(
                30_000 + u16::try_from(n % 30_000).unwrap(),
                80,
                Protocol::Tcp,
            )],
            affinity: Affinity::None,
            health: Some(check()),
            when_all_unhealthy: WhenAllUnhealthy::All,
            aliases: Vec::new(),
            labels: BTreeMap::new(),
            created_at: Timestamp::UNIX_EPOCH,
        };
        let backend = |id: u32| {
            let [_, a, b, c] = id.to_be_bytes();
            let backend = Backend {
                id: id.try_into().unwrap(),
                service: service_id(n),
                network: network().id,
                endpoint: text(id).parse().unwrap(),
                name: format!("b{id}").parse().unwrap(),
                node: node_id(id % 3 + 1),
                ipv4: Some([10, a, b, c].into()),
                ipv6: None,
                state: BackendState::Active,
                created_at: Timestamp::UNIX_EPOCH,
            };
            (backend.id, backend)
        };
        let backends: BTreeMap<_, _> = backends.into_iter().map(backend).collect();
        self.healthy.extend(backends.keys());
        self.services.insert(service_id(n), Records { service, backends });
    }

    fn usable(&self, n: u32) -> Vec<u32> {
        self.services[&service_id(n)].usable(&self.facts()).into_iter().map(BackendId::get).collect()
    }
}

fn id(n: u32) -> BackendId {
    n.try_into().unwrap()
}

/// A model of the maps that checks at each step that no entry refers to a missing one.
#[derive(Debug, Default)]
struct Maps {
    entries: BTreeMap<TableKey, TableEntry>,
    backend_tables: BTreeMap<u32, u32>,
    writes: usize,
}

impl Maps {
    fn apply(&mut self, update: &Update) {
        self.writes += update.backends.len() + update.entries.len() + update.gone.len() + update.tables.len();
        self.entries.extend(update.backends.iter().map(|entry| (entry.key(), *entry)));
        for table in &update.tables {
            assert_eq!(table.first % 16, 0);
            self.backend_tables.extend((table.first..).zip(table.backends.iter().copied()));
        }
        self.check();
        for entry in &update.entries {
            self.entries.insert(entry.key(), *entry);
            self.check();
        }
        for key in &update.gone {
            self.entries.remove(key);
            self.check();
        }
    }

    fn check(&self) {
        for entry in self.entries.values() {
            for backend in self.table(entry) {
                assert!(self.entries.contains_key(&TableKey::Backend(backend)), "{entry:?} names {backend}");
            }
        }
    }

    fn table(&self, entry: &TableEntry) -> Vec<u32> {
        let (first, size) = named_table(entry).unwrap_or_default();
        (first..first + size).map(|index| self.backend_tables[&index]).collect()
    }

    /// Returns the backends that the VIP of a service, or its published port, picks.
    fn picked(&self, key: &TableKey) -> BTreeSet<u32> {
        self.table(&self.entries[key]).into_iter().collect()
    }

    fn dump(&self) -> Dump {
        let named = named_tables(self.entries.values()).into_iter();
        let table = |(first, size): (u32, u32)| {
            let entries =
                (first..first + size).map(|index| self.backend_tables.get(&index).copied().unwrap_or(0));
            (first, Digest::of(&entries.collect::<Vec<u32>>()))
        };
        Dump { entries: self.entries.clone(), tables: named.map(table).collect() }
    }
}

fn vip(n: u32) -> TableKey {
    let [_, _, high, low] = n.to_be_bytes();
    let address = Address::from_v4([10, 255, high, low]);
    TableKey::Service(mesh_ebpf_types::ServiceKey { vni: mesh_ebpf_types::Vni::new(4096), address })
}

fn published(n: u16) -> TableKey {
    TableKey::Published(mesh_ebpf_types::PublishedKey {
        address: Address::NONE,
        port: (30_000 + n).to_be_bytes(),
        protocol: 6,
        padding: 0,
    })
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn an_unchecked_backend_is_used_only_while_no_backend_passes() {
    let mut world = World::new();
    world.serve(1, 1..=3);
    world.healthy = BTreeSet::new();
    assert_eq!(world.usable(1), [1, 2, 3], "fail open");
    world.healthy = [id(2)].into();
    assert_eq!(world.usable(1), [2]);
    world.services.get_mut(&service_id(1)).unwrap().service.health = None;
    assert_eq!(world.usable(1), [1, 2, 3], "without a check at once");
}

#[test]
fn only_healthy_active_backends_are_usable_and_the_service_decides_if_none_is() {
    let mut world = World::new();
    world.serve(1, 1..=6);
    assert_eq!(world.usable(1), [1, 2, 3, 4, 5, 6]);
    world.fail([id(1), id(2)]);
    assert_eq!(world.usable(1), [3, 4, 5, 6]);
    // Backends 2 and 5 are on node 3.
    world.down = [node_id(3)].into();
    assert_eq!(world.usable(1), [3, 4, 6]);
    world.services.get_mut(&service_id(1)).unwrap().backends.get_mut(&id(3)).unwrap().state =
        BackendState::Draining;
    assert_eq!(world.usable(1), [4, 6]);
    world.fail((1..=6).map(id));
    // The service decides whether all or no backends are used when none is healthy.
    world.services.get_mut(&service_id(1)).unwrap().service.when_all_unhealthy = WhenAllUnhealthy::None;
    assert_eq!(world.usable(1), [0; 0]);
    world.services.get_mut(&service_id(1)).unwrap().service.when_all_unhealthy = WhenAllUnhealthy::All;
    assert_eq!(world.usable(1), [1, 4, 6]);
    world.nodes.get_mut(&node_id(2)).unwrap().availability = Availability::Drain;
    assert_eq!(world.usable(1), [6]);
    world.down = [node_id(1), node_id(3)].into();
    assert_eq!(world.usable(1), [0; 0]);
}

#[test]
fn backends_that_this_node_cannot_reach_are_left_out_while_it_reaches_others() {
    let mut world = World::new();
    world.serve(1, 1..=6);
    let beyond = |nodes: &[u32]| nodes.iter().map(|n| node_id(*n)).collect::<BTreeSet<_>>();
    world.unreachable.encrypted = beyond(&[2]);
    assert_eq!(world.usable(1), [1, 2, 3, 4, 5, 6], "the network is not encrypted");
    world.unreachable.clear = beyond(&[2]);
    assert_eq!(world.usable(1), [2, 3, 5, 6]);
    world.unreachable.clear = beyond(&[1, 2, 3]);
    assert_eq!(world.usable(1), [1, 2, 3, 4, 5, 6], "none is left");
    world.networks.values_mut().for_each(|network| network.encrypted = true);
    assert_eq!(world.usable(1), [2, 3, 5, 6]);
}

#[test]
fn a_service_is_in_the_maps_with_its_vip_its_ports_and_its_backends() {
    let mut world = World::new();
    world.serve(1, 1..=3);
    world.networks.values_mut().for_each(|network| network.encrypted = true);
    let records = world.services.get_mut(&service_id(1)).unwrap();
    records.backends.get_mut(&id(1)).unwrap().state = BackendState::Draining;
    records.service.ports.push(PublishedPort {
        mode: PublishMode::Host,
        host_ip: Some("192.0.2.1".parse().unwrap()),
        ..PublishedPort::ingress(53, 5353, Protocol::Udp)
    });
    let (mut maps, mut tables) = (Maps::default(), Tables::new(CAPACITY));
    maps.apply(&tables.update_all(&world.services, &world.facts(), ms(0)));
    let backend = |n| match maps.entries[&TableKey::Backend(n)] {
        TableEntry::Backend(_, backend) => backend,
        _ => unreachable!(),
    };
    assert_eq!((backend(1).flags, backend(1).peer), (DRAINING | BACKEND_ENCRYPTED, 7));
    assert_eq!((backend(3).flags, backend(3).ipv4), (LOCAL | BACKEND_ENCRYPTED, [10, 0, 0, 3]));
    assert_eq!(backend(2).node, Address::from_v4([192, 0, 2, 3]));
    assert_eq!(maps.picked(&vip(1)), [2, 3].into());
    assert_eq!(maps.picked(&published(1)), [2, 3].into());
    let TableEntry::Published(_, host) = maps.entries[&TableKey::Published(mesh_ebpf_types::PublishedKey {
        address: Address::from_v4([192, 0, 2, 1]),
        port: [0, 53],
        protocol: 17,
        padding: 0,
    })] else {
        unreachable!()
    };
    assert_eq!((host.flags, host.target, host.size), (HOST_MODE, 5353u16.to_be_bytes(), 1));
    assert_eq!(maps.backend_tables[&host.first], 3);
}

#[test]
fn client_affinity_holds_for_the_vip_and_for_the_ports() {
    let mut world = World::new();
    world.serve(1, 1..=3);
    world.services.get_mut(&service_id(1)).unwrap().service.affinity = Affinity::ClientIp;
    let (mut maps, mut tables) = (Maps::default(), Tables::new(CAPACITY));
    maps.apply(&tables.update_all(&world.services, &world.facts(), ms(0)));
    let (TableEntry::Service(_, service), TableEntry::Published(_, published)) =
        (maps.entries[&vip(1)], maps.entries[&published(1)])
    else {
        unreachable!()
    };
    assert_eq!((service.flags, published.flags), (AFFINITY_CLIENT_IP, AFFINITY_CLIENT_IP));
}

#[test]
fn a_change_of_one_service_changes_no_other_entries() {
    let mut world = World::new();
    for n in 1..=20 {
        world.serve(n, n * 10..n * 10 + 5);
    }
    let (mut maps, mut tables) = (Maps::default(), Tables::new(CAPACITY));
    maps.apply(&tables.update_all(&world.services, &world.facts(), ms(0)));
    assert!(tables.update_all(&world.services, &world.facts(), ms(1)).is_empty());
    world.fail([id(50)]);
    let service = service_id(5);
    let update = tables.update([(&service, world.services.get(&service))], &world.facts(), ms(2));
    assert_eq!(
        (update.tables.len(), update.entries.len(), update.backends.len(), update.gone.len()),
        (1, 2, 1, 0)
    );
    maps.apply(&update);
    assert_eq!(maps.picked(&vip(5)), [51, 52, 53, 54].into());
    world.services.remove(&service);
    maps.apply(&tables.update([(&service, None)], &world.facts(), ms(3)));
    assert!(!maps.entries.contains_key(&vip(5)) && !maps.entries.contains_key(&TableKey::Backend(50)));
    assert!(tables.update_all(&world.services, &world.facts(), ms(4)).is_empty());
}

/// Returns a world whose only service, with one backend, was deleted 10 ms after its creation.
fn service_that_went() -> (World, Maps, Tables) {
    let mut world = World::new();
    world.serve(1, [1]);
    let (mut maps, mut tables) = (Maps::default(), Tables::new(CAPACITY));
    maps.apply(&tables.update_all(&world.services, &world.facts(), ms(0)));
    world.services.clear();
    maps.apply(&tables.update_all(&world.services, &world.facts(), ms(10)));
    (world, maps, tables)
}

#[test]
fn an_address_is_looked_up_for_a_while_after_its_last_backend_is_removed() {
    let (world, mut maps, mut tables) = service_that_went();
    assert_eq!((addresses(&maps), maps.entries.len()), (1, 1));
    let due = tables.due().unwrap();
    maps.apply(&tables.update_all(&world.services, &world.facts(), due));
    assert_eq!((addresses(&maps), tables.due()), (0, None));
}

#[test]
fn an_address_that_gets_a_backend_again_in_time_stays() {
    let (mut world, mut maps, mut tables) = service_that_went();
    world.serve(1, [1]);
    maps.apply(&tables.update_all(&world.services, &world.facts(), ms(20)));
    while let Some(due) = tables.due() {
        maps.apply(&tables.update_all(&world.services, &world.facts(), due));
    }
    assert_eq!(addresses(&maps), 1);
}

/// Returns the number of addresses that are looked up.
fn addresses(maps: &Maps) -> usize {
    maps.entries.keys().filter(|key| matches!(key, TableKey::BackendAddress(_))).count()
}

#[test]
fn a_port_that_moves_between_services_is_never_removed() {
    let mut world = World::new();
    world.serve(1, [1]);
    world.serve(2, [2]);
    let (mut maps, mut tables) = (Maps::default(), Tables::new(CAPACITY));
    maps.apply(&tables.update_all(&world.services, &world.facts(), ms(0)));
    for (from, to) in [(1, 2), (2, 1)] {
        let ports = std::mem::take(&mut world.services.get_mut(&service_id(from)).unwrap().service.ports);
        world.services.get_mut(&service_id(to)).unwrap().service.ports.extend(ports);
        let update = tables.update_all(&world.services, &world.facts(), ms(1));
        assert!(!update.gone.contains(&published(1)), "{update:?}");
        maps.apply(&update);
        assert_eq!(maps.picked(&published(1)), [to].into());
    }
}

#[test]
fn a_service_without_room_gets_some_once_the_array_is_enlarged() {
    let mut world = World::new();
    world.serve(1, 1..=5);
    world.serve(2, 11..=15);
    let (mut maps, mut tables) = (Maps::default(), Tables::new(2048 + 32));
    let update = tables.update_all(&world.services, &world.facts(), ms(0));
    assert_eq!(update.problems.len(), 1);
    maps.apply(&update);
    assert_eq!(tables.may_have_room(ms(1)), []);
    tables.widen(CAPACITY);
    let waiting = tables.may_have_room(ms(1));
    assert_eq!((waiting.len(), tables.capacity()), (1, CAPACITY));
    let changes = waiting.iter().map(|id| (id, world.services.get(id)));
    let update = tables.update(changes, &world.facts(), ms(1));
    assert!(update.problems.is_empty());
    maps.apply(&update);
    assert_eq!(maps.picked(&vip(1)), (1..=5).collect());
    assert_eq!(maps.picked(&vip(2)), (11..=15).collect());
}

#[test]
fn the_array_is_enlarged_seldom_and_never_shrunk() {
    let present = 1 << 21;
    assert_eq!(capacity_for(0, present), present);
    assert_eq!(capacity_for(present.into(), present), 2 * present);
    assert!(capacity_for(u64::from(present) * 3, present) >= 3 * present);
    assert_eq!(capacity_for(u64::MAX / 2, present), 1 << 28);
    assert_eq!(capacity_for(1 << 28, 1 << 28), 1 << 28);
}

#[test]
fn a_service_without_room_stays_unchanged_is_reported_and_retried() {
    let mut world = World::new();
    world.serve(1, 1..=5);
    world.serve(2, [11]);
    let (mut maps, mut tables) = (Maps::default(), Tables::new(2048 + 32));
    maps.apply(&tables.update_all(&world.services, &world.facts(), ms(0)));
    world.serve(2, 11..=12);
    let update = tables.update_all(&world.services, &world.facts(), ms(1));
    maps.apply(&update);
    let problem = update.problems.first().unwrap().to_string();
    assert!(problem.contains("s2") && problem.contains("does not fit into the array"), "{problem}");
    assert_eq!(maps.picked(&vip(2)), [11].into());
    // A failed host is still removed from the table.
    world.fail([id(5)]);
    maps.apply(&tables.update_all(&world.services, &world.facts(), ms(2)));
    assert_eq!(maps.picked(&vip(1)), [1, 2, 3, 4].into());
    world.services.remove(&service_id(1));
    maps.apply(&tables.update_all(&world.services, &world.facts(), ms(3)));
    // Space that the other service released is not free at once.
    assert_eq!(tables.may_have_room(ms(3)), []);
    let due = tables.due().unwrap();
    let waiting = tables.may_have_room(due);
    assert_eq!(waiting, [service_id(2)]);
    let update = tables.update(waiting.iter().map(|id| (id, world.services.get(id))), &world.facts(), due);
    maps.apply(&update);
    assert!(update.problems.is_empty());
    assert_eq!(maps.picked(&vip(2)), [11, 12].into());
}

#[test]
fn entries_of_an_earlier_process_are_kept_if_right_and_replaced_if_wrong() {
    let mut world = World::new();
    for n in 1..=10 {
        world.serve(n, n * 10..n * 10 + 4);
    }
    let (mut maps, mut tables) = (Maps::default(), Tables::new(CAPACITY));
    maps.apply(&tables.update_all(&world.services, &world.facts(), ms(0)));
    let mut adopted = Tables::adopt(CAPACITY, maps.dump(), None, ms(0));
    let update = adopted.update_all(&world.services, &world.facts(), ms(0));
    assert!(update.is_empty(), "{update:?}");
    // An overwritten table, and a service and a backend that were deleted since.
    let (first, _) = named_table(&maps.entries[&vip(3)]).unwrap();
    maps.backend_tables.insert(first + 5, 10);
    world.services.remove(&service_id(7));
    let records = world.services.get_mut(&service_id(8)).unwrap();
    records.backends.remove(&id(80));
    let mut adopted = Tables::adopt(CAPACITY, maps.dump(), Some(adopted), ms(1));
    let update = adopted.update_all(&world.services, &world.facts(), ms(1));
    assert_eq!((update.tables.len(), update.entries.len()), (2, 4));
    maps.apply(&update);
    assert_eq!(maps.picked(&vip(3)), (30..34).collect());
    assert_eq!(maps.picked(&vip(8)), (81..84).collect());
    assert!(!maps.entries.contains_key(&vip(7)) && !maps.entries.contains_key(&TableKey::Backend(80)));
    assert!(adopted.update_all(&world.services, &world.facts(), ms(2)).is_empty());
}

#[test]
fn a_change_among_ten_thousand_services_takes_as_many_steps_as_alone() {
    let steps_of_a_change = |services: u32| {
        let mut world = World::new();
        for n in 1..=services {
            world.serve(n, n * 10..n * 10 + 10);
        }
        let mut tables = Tables::new(1 << 25);
        let update = tables.update_all(&world.services, &world.facts(), ms(0));
        let services = world.services.len();
        // For each service: a table, a VIP and a port that refer to it, and ten backends with an
        // address each.
        let all = [update.tables.len(), update.entries.len(), update.backends.len(), update.gone.len()];
        assert_eq!(all, [services, 2 * services, 20 * services, 0]);
        assert_eq!(update.problems, BTreeSet::new());
        world.fail([id(17)]);
        let service = service_id(1);
        let update = tables.update([(&service, world.services.get(&service))], &world.facts(), ms(1));
        [update.tables.len(), update.entries.len(), update.backends.len(), update.gone.len()]
    };
    assert_eq!(steps_of_a_change(1), [1, 2, 1, 0]);
    assert_eq!(steps_of_a_change(10_000), [1, 2, 1, 0]);
}

#[derive(Debug, Clone)]
enum Change {
    Serve(u32, BTreeSet<u32>),
    Remove(u32),
    Health(u32),
    Down(u32),
    Pass(u64),
    /// A restart of the process, or a resync by the same one.
    Restart {
        same: bool,
    },
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (1..6u32, prop::collection::btree_set(0..8u32, 0..6)).prop_map(|(n, b)| Change::Serve(n, b)),
        1 => (1..6u32).prop_map(Change::Remove),
        2 => (10..70u32).prop_map(Change::Health),
        1 => (1..4u32).prop_map(Change::Down),
        2 => (0..4000u64).prop_map(Change::Pass),
        1 => any::<bool>().prop_map(|same| Change::Restart { same }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// After any sequence of changes, the maps match the records; and at each step no entry refers
    /// to a missing one.
    #[test]
    fn the_maps_match_the_records_after_any_sequence_of_changes(changes in prop::collection::vec(change(), 1..40)) {
        let mut world = World::new();
        let (mut maps, mut tables, mut now) = (Maps::default(), Tables::new(CAPACITY), 0);
        for change in changes {
            match change {
                Change::Serve(n, backends) => world.serve(n, backends.into_iter().map(|b| n * 10 + b)),
                Change::Remove(n) => drop(world.services.remove(&service_id(n))),
                Change::Health(n) => if !world.healthy.remove(&id(n)) { world.healthy.insert(id(n)); },
                Change::Down(n) => if !world.down.remove(&node_id(n)) { world.down.insert(node_id(n)); },
                Change::Pass(time) => now += time,
                Change::Restart { same } => {
                    let former = std::mem::replace(&mut tables, Tables::new(CAPACITY));
                    tables = Tables::adopt(CAPACITY, maps.dump(), same.then_some(former), ms(now));
                    for (service, records) in &world.services {
                        maps.apply(&tables.update([(service, Some(records))], &world.facts(), ms(now)));
                    }
                    maps.apply(&tables.adopted(ms(now)));
                    prop_assert!(tables.update_all(&world.services, &world.facts(), ms(now)).is_empty());
                }
            }
            let update = tables.update_all(&world.services, &world.facts(), ms(now));
            prop_assert!(update.problems.is_empty());
            maps.apply(&update);
            let services = maps.entries.keys().filter(|key| matches!(key, TableKey::Service(_))).count();
            prop_assert_eq!(services, world.services.len());
            for n in (1..6).filter(|n| world.services.contains_key(&service_id(*n))) {
                prop_assert_eq!(maps.picked(&vip(n)), world.usable(n).into_iter().collect());
            }
            let backends: BTreeSet<u32> = world.services.values().flat_map(|r| r.backends.keys().map(|b| b.get())).collect();
            let held: BTreeSet<u32> = maps.entries.keys().filter_map(|key| match key { TableKey::Backend(id) => Some(*id), _ => None }).collect();
            prop_assert_eq!(held, backends);
        }
    }
}
