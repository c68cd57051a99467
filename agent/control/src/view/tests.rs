use mesh_model::{
    Affinity, Availability, BackendId, BackendState, EndpointMode, LeaseState, Mtu, Protocol, PublishedPort,
    Role, Subnet, Vni,
};
use mesh_proto::v1::{self, change::Kind};
use mesh_store::{Event, Revision, Value};
use proptest::prelude::*;

use super::*;
use crate::records::encode;

const NODES: usize = 3;
const NETWORKS: usize = 3;
const BLOCKS: usize = 4;
/// Services in each network.
const SERVICES: usize = 2;
const ENDPOINTS: usize = 2;

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(n: usize) -> T {
    format!("{n:024x}").parse().unwrap()
}

fn node(n: usize, mtu: u32) -> Node {
    Node {
        id: id(n),
        name: format!("h{n}").parse().unwrap(),
        role: Role::Worker,
        availability: Availability::Active,
        advertise_addr: "192.168.77.11:7377".parse().unwrap(),
        data_path_addr: "192.168.77.11".parse().unwrap(),
        data_path_mtu: Mtu::try_from(mtu).unwrap(),
        version: String::new(),
        wireguard: None,
        host_addrs: std::collections::BTreeSet::new(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn network(n: usize, internal: bool) -> Network {
    Network {
        id: id(n),
        name: format!("n{n}").parse().unwrap(),
        vni: Vni::FIRST_AUTOMATIC,
        subnets: Vec::<Subnet>::new(),
        mtu: None,
        encrypted: false,
        internal,
        attachable: true,
        host_policy: mesh_model::HostPolicy::default(),
        removing: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn lease(network: usize, block: usize, node: usize) -> Lease {
    let prefix = format!("10.{network}.0.{}/30", block * 4).parse().unwrap();
    Lease { network: id(network), prefix, node: id(node), state: LeaseState::Active, revision: 0 }
}

/// Returns a service of a network that its number determines, with or without a published port.
fn service(n: usize, is_published: bool, affinity: Affinity) -> Service {
    let port = PublishedPort::ingress(8000 + u16::try_from(n).unwrap(), 80, Protocol::Tcp);
    Service {
        id: id(n),
        name: format!("s{}", n % SERVICES).parse().unwrap(),
        network: id(n / SERVICES),
        endpoint_mode: EndpointMode::Vip,
        vip: Some(std::net::Ipv4Addr::from_bits(0x0A00_F000 + u32::try_from(n).unwrap())),
        vip6: None,
        ports: is_published.then_some(port).into_iter().collect(),
        affinity,
        health: None,
        when_all_unhealthy: mesh_model::WhenAllUnhealthy::All,
        aliases: Vec::new(),
        labels: BTreeMap::new(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn backend(n: usize, endpoint: usize, node: usize, state: BackendState) -> Backend {
    Backend {
        id: BackendId::try_from(u32::try_from(1 + n * ENDPOINTS + endpoint).unwrap()).unwrap(),
        service: id(n),
        network: id(n / SERVICES),
        endpoint: id(endpoint),
        name: format!("c{endpoint}").parse().unwrap(),
        node: id(node),
        ipv4: None,
        ipv6: None,
        state,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// Generates a transaction's operation on one key: a put or a deletion.
fn write() -> impl Strategy<Value = (Key, Option<Value>)> {
    prop_oneof![
        (0..NODES, prop::option::of(1000u32..1010))
            .prop_map(|(n, mtu)| { (keys::node(&id(n)), mtu.map(|mtu| encode(&node(n, mtu)))) }),
        (0..NETWORKS, prop::option::of(any::<bool>())).prop_map(|(n, internal)| {
            (keys::network(&id(n)), internal.map(|internal| encode(&network(n, internal))))
        }),
        (0..NETWORKS, 0..BLOCKS, prop::option::of(0..NODES)).prop_map(|(network, block, node)| {
            let key = keys::lease(&id(network), &lease(network, block, 0).prefix);
            (key, node.map(|node| encode(&lease(network, block, node))))
        }),
        (0..NETWORKS * SERVICES, prop::option::of((any::<bool>(), any::<bool>()))).prop_map(|(n, wanted)| {
            let affinity = |sticks| if sticks { Affinity::ClientIp } else { Affinity::None };
            let record = |(is_published, sticks)| encode(&service(n, is_published, affinity(sticks)));
            (keys::service(&id(n)), wanted.map(record))
        }),
        (0..NETWORKS * SERVICES, 0..ENDPOINTS, prop::option::of((0..NODES, any::<bool>()))).prop_map(
            |(n, endpoint, wanted)| {
                let state = |drains| if drains { BackendState::Draining } else { BackendState::Active };
                let record = |(node, drains)| encode(&backend(n, endpoint, node, state(drains)));
                (keys::backend(&id(n), &id(endpoint)), wanted.map(record))
            },
        ),
    ]
}

/// The state of a node according to its messages.
#[derive(Debug, Default, PartialEq)]
struct Agent {
    nodes: BTreeMap<String, v1::Node>,
    networks: BTreeMap<String, v1::Network>,
    leases: BTreeMap<(String, String), v1::Lease>,
    services: BTreeMap<String, v1::Service>,
    backends: BTreeMap<u32, v1::Backend>,
}

impl Agent {
    fn snapshot(view: &View, node: &NodeId) -> Self {
        let mut agent = Self::default();
        for node in view.nodes.values() {
            agent.receive(Kind::PutNode(node.into()));
        }
        for (level, records) in view.networks_of(node) {
            agent.receive(Kind::PutNetwork((&records.network).into()));
            for lease in &records.leases {
                agent.receive(Kind::PutLease(lease.into()));
            }
            for ServiceRecords { service, backends } in &records.services {
                assert!(level == Level::Full || !service.ports.is_empty(), "a service of no concern");
                agent.receive(Kind::PutService((&**service).into()));
                for backend in backends {
                    agent.receive(Kind::PutBackend((&**backend).into()));
                }
            }
        }
        agent
    }

    fn receive(&mut self, kind: Kind) {
        match kind {
            Kind::PutNode(node) => {
                self.nodes.insert(node.id.clone(), node);
            }
            Kind::RemoveNode(id) => {
                self.nodes.remove(&id).expect("a node that was known");
            }
            Kind::PutNetwork(network) => {
                self.networks.insert(network.id.clone(), network);
            }
            Kind::RemoveNetwork(id) => {
                self.networks.remove(&id).expect("a network that was known");
                self.leases.retain(|(network, _), _| *network != id);
                self.services.retain(|_, service| service.network != id);
                self.backends.retain(|_, backend| backend.network != id);
            }
            Kind::PutLease(lease) => {
                assert!(self.networks.contains_key(&lease.network), "a lease of a known network");
                self.leases.insert((lease.network.clone(), lease.prefix.clone()), lease);
            }
            Kind::RemoveLease(lease) => {
                self.leases.remove(&(lease.network, lease.prefix)).expect("a lease that was known");
            }
            Kind::PutService(service) => {
                assert!(self.networks.contains_key(&service.network), "a service of a known network");
                self.services.insert(service.id.clone(), service);
            }
            Kind::RemoveService(id) => {
                self.services.remove(&id).expect("a service that was known");
                self.backends.retain(|_, backend| backend.service != id);
            }
            Kind::PutBackend(backend) => {
                assert!(self.services.contains_key(&backend.service), "a backend of a known service");
                self.backends.insert(backend.id, backend);
            }
            Kind::RemoveBackend(id) => {
                self.backends.remove(&id).expect("a backend that was known");
            }
        }
    }
}

proptest! {
    /// Records are created and deleted in any combination, including ones that no transaction of a
    /// manager makes.
    #[test]
    fn deltas_lead_to_the_same_state_as_a_snapshot(
        batches in prop::collection::vec(prop::collection::vec(write(), 1..6), 1..40),
    ) {
        let mut store: BTreeMap<Key, KeyValue> = BTreeMap::new();
        let mut view = View::default();
        let me: NodeId = id(0);
        let (mut agent, mut visible) = (Agent::default(), BTreeMap::new());
        for (index, batch) in batches.into_iter().enumerate() {
            let revision = index as u64 + 2;
            let mut events = BTreeMap::new();
            for (key, value) in batch {
                match value {
                    Some(value) => {
                        let mod_revision = Revision(revision);
                        let kv = KeyValue { key: key.clone(), value, create_revision: mod_revision, mod_revision, version: 1 };
                        store.insert(key.clone(), kv.clone());
                        events.insert(key, Event::Put(kv));
                    }
                    None if store.remove(&key).is_some() => {
                        events.insert(key.clone(), Event::Delete { key, revision: Revision(revision) });
                    }
                    None => {}
                }
            }
            let events: Vec<Event> = events.into_values().collect();
            let batch = view.apply(revision, &events);
            for change in batch.changes_for(&me, &mut visible) {
                agent.receive(change.kind.expect("a change has a kind"));
            }
            let kvs: Vec<KeyValue> = store.values().cloned().collect();
            prop_assert_eq!(&view, &View::new(revision, &kvs));
            prop_assert_eq!(&agent, &Agent::snapshot(&view, &me));
        }
    }
}

#[test]
fn an_unreadable_record_does_not_hide_others() {
    let kv = |key: Key, value: Value| {
        let at = Revision(2);
        KeyValue { key, value, create_revision: at, mod_revision: at, version: 1 }
    };
    let good = kv(keys::node(&id(1)), encode(&node(1, 1500)));
    let view = View::new(2, &[kv(keys::node(&id(0)), "{".into()), good]);
    assert_eq!(view.nodes.keys().cloned().collect::<Vec<_>>(), [id(1)]);
}
