//! Keys and values of the service tables, and of what the programs remember of balanced flows.

use core::ops::RangeInclusive;

use crate::{Address, EndpointKey, Mac, Vni};

/// [`Service::flags`] and [`Published::flags`]: all flows of a client's address go to one backend,
/// whichever of the hosts' addresses it speaks to.
pub const AFFINITY_CLIENT_IP: u32 = 1;

/// [`Published::flags`]: only backends of the node that receives a packet take it (`mode=host`).
/// Its table holds those only.
pub const HOST_MODE: u32 = 2;

/// [`Published::flags`]: the port is about to be published. The `egress` program records flows that
/// leave from it, and nothing else happens yet.
pub const WATCHED: u32 = 4;

/// [`Backend::flags`]: its endpoint is on this node.
pub const LOCAL: u16 = 1;

/// [`Backend::flags`]: new flows do not begin with it; those that it has go on.
pub const DRAINING: u16 = 2;

/// [`Backend::flags`]: its network is encrypted; [`Backend::peer`] is its node's number in
/// WireGuard.
pub const BACKEND_ENCRYPTED: u16 = 4;

/// [`Backend::flags`]: it fails its check, or its node does not answer. A client that begins a
/// connection anew gets another backend, even if this one has its former connection.
pub const FAILING: u16 = 8;

/// How many entries one element of `MAGLEV` holds: the kernel pads elements of arrays to eight
/// bytes.
pub const MAGLEV_ROW: usize = 16;

/// The greatest number of a backend. Numbers are 22 bits in VNIs ([`published_vni`]), less those of
/// probes.
pub const MAX_BACKEND: u32 = 0x003E_FFFF;

/// Bit 23 of a VNI: the frame is of the routing mesh, not of a network.
pub const PUBLISHED_BIT: u32 = 0x0080_0000;

/// Bit 22 beside [`PUBLISHED_BIT`]: a reply on its way out through the node that its client spoke
/// to.
pub const REPLY_BIT: u32 = 0x0040_0000;

/// What a container that reaches itself through a VIP sees as the source, where the VIP itself
/// cannot be it: the flow has the same port on both ends, so that its replies would look like its
/// requests.
pub const HAIRPIN_IPV4: [u8; 4] = [169, 254, 42, 1];

/// As [`HAIRPIN_IPV4`], for IPv6.
pub const HAIRPIN_IPV6: Address = Address([0xfd, 0, 0x6d, 0x65, 0x73, 0x68, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// The address by which the host itself speaks to published ports: its sockets' connects are turned
/// to it, it is routed to `mesh0`, and the `host` program takes what is sent to it.
pub const HOST_PUBLISHED_IPV4: [u8; 4] = [169, 254, 42, 2];

/// As [`HOST_PUBLISHED_IPV4`], for IPv6.
pub const HOST_PUBLISHED_IPV6: Address =
    Address([0xfd, 0, 0x6d, 0x65, 0x73, 0x68, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);

/// As [`HOST_PUBLISHED_IPV4`], for ports that are published on the loopback address alone: their
/// key in `PUBLISHED` too.
pub const LOOPBACK_PUBLISHED_IPV4: [u8; 4] = [169, 254, 42, 3];

/// As [`LOOPBACK_PUBLISHED_IPV4`], for IPv6.
pub const LOOPBACK_PUBLISHED_IPV6: Address =
    Address([0xfd, 0, 0x6d, 0x65, 0x73, 0x68, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);

/// The numbers of the addresses that stand for the host's own, one each, where a port is published
/// on that address alone: the last byte of `169.254.42.N` and `fd00:6d65:7368::N`.
pub const STAND_INS: RangeInclusive<u8> = 4..=254;

/// The address of that number by which a host itself speaks to published ports.
#[inline]
pub const fn host_published(number: u8, v4: bool) -> Address {
    let of = if v4 { Address::from_v4(HOST_PUBLISHED_IPV4) } else { HOST_PUBLISHED_IPV6 };
    let [a, b, c, d] = of.words();
    let [d0, d1, d2, _] = d.to_ne_bytes();
    Address::from_words([a, b, c, u32::from_ne_bytes([d0, d1, d2, number])])
}

/// The number of an address by which a host itself speaks to published ports; `None` for others.
#[inline]
pub fn host_published_number(address: Address) -> Option<u8> {
    let [.., number] = address.0;
    let is_one = address == host_published(number, true) || address == host_published(number, false);
    (is_one && number >= HOST_PUBLISHED_IPV4[3]).then_some(number)
}

/// Whether an address is one by which a host itself speaks to published ports.
#[inline]
pub fn is_host_published(address: Address) -> bool {
    host_published_number(address).is_some()
}

/// The VNI of a packet to a published port on its way to the backend of that number: untranslated.
pub const fn published_vni(backend: u32) -> Vni {
    Vni::new(PUBLISHED_BIT | (backend & (REPLY_BIT - 1)))
}

/// Key of `SERVICES`: a VIP within a network.
pub type ServiceKey = EndpointKey;

/// Value of `SERVICES`: the backends of a VIP.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// Where its table begins in `MAGLEV`, counted in entries (not elements).
    pub first: u32,
    /// How many entries the table has; 0 when there is no backend.
    pub size: u32,
    /// Bits: [`AFFINITY_CLIENT_IP`].
    pub flags: u32,
}

/// Key of `PUBLISHED`: a port on the hosts' addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedKey {
    /// The host's address; none for any of its addresses. An address goes before any. For 127.0.0.1
    /// and `::1`, what stands for them: [`LOOPBACK_PUBLISHED_IPV4`], [`LOOPBACK_PUBLISHED_IPV6`].
    pub address: Address,
    /// The port, network order.
    pub port: [u8; 2],
    /// IP protocol: TCP, UDP or SCTP.
    pub protocol: u8,
    /// Zero.
    pub padding: u8,
}

/// Value of `PUBLISHED`: where packets to the port go. Backends that lack an address of a packet's
/// family drop it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Published {
    /// As in [`Service`].
    pub first: u32,
    /// As in [`Service`].
    pub size: u32,
    /// Bits: [`AFFINITY_CLIENT_IP`], [`HOST_MODE`].
    pub flags: u32,
    /// The network, for counters.
    pub vni: Vni,
    /// The backends' port, network order. SCTP cannot change it: its checksum covers the port.
    pub target: [u8; 2],
    /// Zero.
    pub padding: [u8; 2],
}

/// Value of `BACKENDS`, a hash by the backend's number. Draining and unhealthy backends stay in it
/// as long as their flows are to go on; a backend that is not in it is gone.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's network.
    pub vni: Vni,
    /// The endpoint's IPv4 address; zero when it has none.
    pub ipv4: [u8; 4],
    /// The endpoint's IPv6 address; none when it has none.
    pub ipv6: Address,
    /// Data-path address of the endpoint's node.
    pub node: Address,
    /// Bits: [`LOCAL`], [`DRAINING`], [`BACKEND_ENCRYPTED`], [`FAILING`].
    pub flags: u16,
    /// The node's number in WireGuard; 0 when it has none.
    pub peer: u16,
}

/// Key of `CONNECTIONS`: a packet's addresses and ports as they arrive, before translation. A flow
/// has one entry for each direction that is translated here.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionKey {
    /// Source.
    pub source: Address,
    /// Destination.
    pub destination: Address,
    /// Source and destination port, network order. ICMP echo: the identifier and 0 in requests, 0
    /// and it in replies.
    pub ports: [u8; 4],
    /// IP protocol.
    pub protocol: u8,
    /// The low three bytes of the network's [`Vni`]; zero towards published ports.
    pub vni: [u8; 3],
}

/// [`Connection::state`]: this direction has been answered.
pub const ANSWERED: u8 = 1;
/// [`Connection::state`]: the client closed its direction (FIN).
pub const CLIENT_FINISHED: u8 = 2;
/// [`Connection::state`]: the flow is over (both directions closed, or reset).
pub const CLOSED: u8 = 4;
/// [`Connection::state`]: the backend closed its direction (FIN).
pub const BACKEND_FINISHED: u8 = 8;
/// [`Connection::state`], back: made for a SYN, so that a SYN comes back before anything else does,
/// unless it is refused.
pub const BEGINS: u8 = 16;
/// [`Connection::state`], back: the client wants another connection between the same ports. Whether
/// it has one is the backend's to say, by a SYN.
pub const CONTESTED: u8 = 32;
/// [`Connection::state`], published, back: replies return through the node that the client spoke
/// to, even with [`crate::DIRECT_RETURN`].
pub const RETURNS: u8 = 64;

/// The inner source MAC of a packet to a published port whose replies must return through the
/// sending node. Its client may be beyond the reach of other nodes. No device has this MAC.
pub const RETURNS_MAC: Mac = Mac([0x02, 0x4d, 0xff, 0xff, 0xff, 0xfe]);

/// What an entry of `CONNECTIONS` does.
#[repr(u8)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnectionKind {
    /// Towards a backend.
    #[default]
    Forward = 0,
    /// Back to a client in the network: the source becomes the VIP.
    Back = 1,
    /// Back to the backend itself, which was its own client.
    Hairpin = 2,
    /// Back to a client of a published port.
    Published = 3,
}

/// Value of `CONNECTIONS` (flows that have been answered) and `PENDING` (others, and what is over).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection {
    /// Back: what becomes of the source address. Forward: in the first word, native order, the
    /// interface index of the device that the packets of a client outside arrive at; 0 where there
    /// is no such client.
    pub address: Address,
    /// The backend's number.
    pub backend: u32,
    /// Published, back: data-path address of the node that the client spoke to. Forward: the
    /// [`Vni`] of the service's network.
    pub node: [u8; 4],
    /// Back: what becomes of the source port. Forward: what becomes of it if the client's own would
    /// make the flow the same as another one at the backend; else 0.
    pub port: [u8; 2],
    /// A [`ConnectionKind`], as its number.
    pub kind: u8,
    /// Bits: [`ANSWERED`], [`CLIENT_FINISHED`], [`BACKEND_FINISHED`], [`CLOSED`], [`BEGINS`],
    /// [`CONTESTED`], [`RETURNS`].
    pub state: u8,
    /// Back: what becomes of the destination port, the client's own one; 0 where it is that.
    pub client_port: [u8; 2],
    /// When the entry was last used: `CLOCK_MONOTONIC` in units of 2^[`USED_SHIFT`] ns, modulo
    /// 2^16.
    pub used: u16,
}

/// See [`Connection::used`]: 8.6 s, and round after 6.5 days.
pub const USED_SHIFT: u32 = 33;

/// Value of `ALLOWANCES`, a hash by [`Vni`]: how many more entries of a network's flows may become
/// established. That of [`Vni::NONE`] is for all networks without a value. Without either there is
/// no limit.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Allowance {
    /// So many.
    pub left: i64,
    /// How often there was nothing left since it was set.
    pub refused: u64,
}

/// Key of `SOCKET_PEERS`: a socket of the host that speaks to a published port. The value is the
/// address that it asked for.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketPeer {
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// The published port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub padding: [u8; 6],
}

/// Which entry of which service table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableKey {
    /// An entry of `SERVICES`.
    Service(ServiceKey),
    /// An entry of `PUBLISHED`.
    Published(PublishedKey),
    /// An entry of `BACKENDS`.
    Backend(u32),
    /// An entry of `BACKEND_ADDRESSES`.
    BackendAddress(EndpointKey),
}

/// An entry of a service table. There may be a hundred thousand: they are written and read in
/// batches, and no part of what a pass observes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableEntry {
    /// An entry of `SERVICES`.
    Service(ServiceKey, Service),
    /// An entry of `PUBLISHED`.
    Published(PublishedKey, Published),
    /// An entry of `BACKENDS`.
    Backend(u32, Backend),
    /// An entry of `BACKEND_ADDRESSES`: the address is, or lately was, a backend's (of any
    /// service), so that what comes from it may have to be translated back.
    BackendAddress(EndpointKey),
}

impl TableEntry {
    /// The entry's key.
    pub const fn key(&self) -> TableKey {
        match self {
            Self::Service(key, _) => TableKey::Service(*key),
            Self::Published(key, _) => TableKey::Published(*key),
            Self::Backend(key, _) => TableKey::Backend(*key),
            Self::BackendAddress(key) => TableKey::BackendAddress(*key),
        }
    }
}
