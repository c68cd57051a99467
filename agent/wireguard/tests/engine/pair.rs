//! Two hosts with an engine each.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use mesh_harness::{Netns, OwnedNetns, eventually, ip_batch, ip_batch_in};
use mesh_wireguard::{
    DropReason, EngineConfig, FrameTag, OwnKey, PeerConfig, PrivateKey, TunnelSources, Userspace,
    WireguardEngine, inner_mtu,
};

use crate::relay::Relay;

/// The network of the devices' traffic.
pub(crate) const VNI: u32 = 4096;
/// Index of the other side in either side's configuration.
pub(crate) const PEER: u16 = 7;
/// WireGuard's port.
pub(crate) const PORT: u16 = 51820;
/// Timeout for operations that take milliseconds on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A host.
pub(crate) struct Side {
    pub(crate) netns: OwnedNetns,
    pub(crate) engine: Userspace,
    pub(crate) config: EngineConfig,
}

/// Two hosts connected by a veth pair.
pub(crate) struct Pair {
    pub(crate) a: Side,
    pub(crate) b: Side,
    /// The relay between them, if there is one.
    pub(crate) relay: Option<Relay>,
}

/// The configuration of a pair.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent circumstance")]
pub(crate) struct Setup {
    /// Whether the underlay is of IPv6.
    pub(crate) v6: bool,
    /// Whether A's device has offloads.
    pub(crate) offload_a: bool,
    /// Whether B's device has offloads.
    pub(crate) offload_b: bool,
    /// Whether a relay is between them.
    pub(crate) relay: bool,
    /// Whether the underlay's devices have offloads.
    pub(crate) offload_underlay: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { v6: false, offload_a: true, offload_b: true, relay: false, offload_underlay: true }
    }
}

/// Returns a name that no other test uses.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("mwg{}-{}{what}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Formats a MAC.
pub(crate) fn mac(tag: FrameTag) -> String {
    tag.mac().map(|byte| format!("{byte:02x}")).join(":")
}

/// Returns the tag of a pair's devices.
pub(crate) fn tag() -> FrameTag {
    FrameTag { vni: VNI, peer: PEER }
}

/// Returns the inner address of side `side` (1 or 2).
pub(crate) fn inner(side: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 8, 0, side)
}

/// Returns the inner IPv6 address.
pub(crate) fn inner6(side: u8) -> IpAddr {
    format!("fd00:8::{side}").parse().unwrap()
}

fn tunnel(side: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, side)
}

/// Returns the source addresses of a side inside the tunnel.
pub(crate) fn sources(side: u8) -> TunnelSources {
    TunnelSources { even: Ipv4Addr::new(10, 9, 2, side), odd: Ipv4Addr::new(10, 9, 1, side) }
}

/// Configures MAC, addresses and the neighbour entries of a namespace's device.
pub(crate) fn address(netns: &Netns, side: u8) {
    let other = 3 - side;
    let mac = mac(tag());
    ip_batch_in(
        netns,
        &[
            format!("link set meshwg0 address {mac}"),
            format!("addr add {}/24 dev meshwg0", inner(side)),
            format!("addr add {}/64 dev meshwg0 nodad", inner6(side)),
            format!("neigh add {} lladdr {mac} dev meshwg0", inner(other)),
            format!("neigh add {} lladdr {mac} dev meshwg0", inner6(other)),
        ],
    )
    .unwrap();
}

impl Pair {
    /// Creates two hosts that know each other.
    pub(crate) fn new() -> Self {
        Self::with(Setup::default())
    }

    /// Creates two hosts with this setup.
    pub(crate) fn with(setup: Setup) -> Self {
        let pair = Self::without_engines(setup);
        pair.start()
    }

    /// Creates namespaces and configurations; the engines are not configured yet.
    pub(crate) fn without_engines(setup: Setup) -> Self {
        let (a, b) = (OwnedNetns::create(unique("a")).unwrap(), OwnedNetns::create(unique("b")).unwrap());
        let (endpoints, relay) = if setup.relay {
            let relay = Relay::new(&a, &b);
            let (to_b, to_a) = Relay::endpoints();
            ([to_b, to_a], Some(relay))
        } else {
            (cable(&a, &b, setup), None)
        };
        let keys = [PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap()];
        let config = |side: u8| {
            let (me, other) = (usize::from(side - 1), usize::from(2 - side));
            let peer = PeerConfig {
                endpoint: Some(endpoints[me]),
                tunnel_address: tunnel(3 - side),
                sources: sources(3 - side),
                keys: BTreeMap::from([(1, keys[other].public())]),
            };
            EngineConfig {
                device: "meshwg0".to_owned(),
                device_index: None,
                listen_port: PORT,
                vxlan_port: 4789,
                inner_mtu: inner_mtu(1500, setup.v6),
                tunnel_address: tunnel(side),
                sources: sources(side),
                keys: vec![OwnKey { generation: 1, private: keys[me].clone(), active: true }],
                peers: BTreeMap::from([(PEER, peer)]),
            }
        };
        let engine = |offload| if offload { Userspace::new() } else { Userspace::without_offloads() };
        Self {
            a: Side { netns: a, engine: engine(setup.offload_a), config: config(1) },
            b: Side { netns: b, engine: engine(setup.offload_b), config: config(2) },
            relay,
        }
    }

    /// Starts both engines.
    pub(crate) fn start(mut self) -> Self {
        for (side, number) in [(&mut self.a, 1), (&mut self.b, 2)] {
            side.apply();
            address(&side.netns, number);
        }
        self
    }
}

impl Side {
    /// Applies the engine's configuration.
    pub(crate) fn apply(&mut self) {
        self.try_apply().unwrap();
    }

    /// As [`Self::apply`], but may fail.
    pub(crate) fn try_apply(&mut self) -> mesh_wireguard::Result<()> {
        let (engine, config) = (&mut self.engine, &self.config);
        self.netns.enter(|| engine.apply(config)).unwrap()
    }

    /// Returns the peer in the configuration.
    pub(crate) fn peer(&mut self) -> &mut PeerConfig {
        self.config.peers.get_mut(&PEER).unwrap()
    }

    /// Returns how many packets were dropped for a reason.
    pub(crate) fn drops(&mut self, reason: DropReason) -> u64 {
        self.engine.status().unwrap().drops.get(&reason).copied().unwrap_or(0)
    }

    /// Waits until packets were dropped for a reason.
    pub(crate) fn wait_for_drop(&mut self, reason: DropReason) {
        eventually(&format!("{reason:?}"), SOON, || self.drops(reason) > 0).unwrap();
    }

    /// Returns the peer's current endpoint.
    pub(crate) fn endpoint(&mut self) -> Option<SocketAddr> {
        self.engine.status().unwrap().peers[&PEER].endpoint
    }
}

/// Creates a veth pair `u0`-`u0`; returns the endpoints of B (for A) and of A (for B).
fn cable(a: &Netns, b: &Netns, setup: Setup) -> [SocketAddr; 2] {
    ip_batch(&[format!("link add name u0 netns {} type veth peer name u0 netns {}", a.name(), b.name())])
        .unwrap();
    let address = |side: u8| -> IpAddr {
        let text = if setup.v6 { format!("2001:db8::{side}") } else { format!("192.0.2.{side}") };
        text.parse().unwrap()
    };
    let prefix = if setup.v6 { "64 nodad" } else { "24" };
    let (prefix, option) = prefix.split_once(' ').unwrap_or((prefix, ""));
    for (netns, side) in [(a, 1), (b, 2)] {
        ip_batch_in(
            netns,
            &[format!("addr add {}/{prefix} dev u0 {option}", address(side)), "link set u0 up".to_owned()],
        )
        .unwrap();
        if !setup.offload_underlay {
            let off = ["tx", "gso", "gro", "tso", "tx-udp-segmentation", "sg"].map(|what| [what, "off"]);
            netns
                .run(["ethtool", "-K", "u0"].into_iter().chain(off.into_iter().flatten()))
                .unwrap()
                .ok()
                .unwrap();
        }
    }
    [SocketAddr::new(address(2), PORT), SocketAddr::new(address(1), PORT)]
}

/// Sends an echo request to the other side; returns whether it was answered in time.
pub(crate) fn ask(from: &Netns, echo: SocketAddr, question: &[u8], patience: Duration) -> bool {
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let answer = mesh_harness::traffic::udp_request(from, any, echo, question, patience).unwrap();
    answer.is_some_and(|answer| answer == question)
}
