//! Keys and values of the service tables, and of the programs' records of balanced flows.

use core::ops::RangeInclusive;

use crate::{Address, EndpointKey, Mac, Vni};

/// [`Service::flags`] and [`Published::flags`]: all flows from one client address go to one
/// backend, whichever host address the client uses.
pub const AFFINITY_CLIENT_IP: u32 = 1;

/// [`Published::flags`]: only backends on the receiving node are used (`mode=host`). The port's
/// table contains only those.
pub const HOST_MODE: u32 = 2;

/// [`Published::flags`]: the port is about to be published. The `egress` program records flows that
/// leave from it; nothing else happens yet.
pub const WATCHED: u32 = 4;

/// [`Backend::flags`]: the endpoint is on this node.
pub const LOCAL: u16 = 1;

/// [`Backend::flags`]: it gets no new flows; existing flows continue.
pub const DRAINING: u16 = 2;

/// [`Backend::flags`]: the network is encrypted; [`Backend::peer`] is the node's number in
/// WireGuard.
pub const BACKEND_ENCRYPTED: u16 = 4;

/// [`Backend::flags`]: its check fails, or its node does not answer. A client that starts a new
/// connection gets another backend, even if this one has the client's former connection.
pub const FAILING: u16 = 8;

/// Entries in one element of `BACKEND_TABLES`: the kernel pads array elements to eight bytes.
pub const BACKEND_TABLES_ROW: usize = 16;

/// The greatest backend number. Numbers have 22 bits in VNIs ([`published_vni`]); those that would
/// give the VNIs of probes are excluded.
pub const MAX_BACKEND: u32 = 0x003E_FFFF;

/// Bit 23 of a VNI: the frame belongs to the routing mesh, not to a network.
pub const PUBLISHED_BIT: u32 = 0x0080_0000;

/// Bit 22, with [`PUBLISHED_BIT`]: a reply on its way to the node where the client's packets
/// arrive.
pub const REPLY_BIT: u32 = 0x0040_0000;

/// The source address that a container sees when it reaches itself through a VIP, if the VIP itself
/// is not possible. This is so if the flow has the same port on both ends: its replies would look
/// like its requests.
pub const HAIRPIN_IPV4: [u8; 4] = [169, 254, 42, 1];

/// As [`HAIRPIN_IPV4`], for IPv6.
pub const HAIRPIN_IPV6: Address = Address([0xfd, 0, 0x6d, 0x65, 0x73, 0x68, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// The address that the host itself uses for published ports: the socket programs redirect connects
/// to it. It is routed to `mesh0`, where the `host` program handles its packets.
pub const HOST_PUBLISHED_IPV4: [u8; 4] = [169, 254, 42, 2];

/// As [`HOST_PUBLISHED_IPV4`], for IPv6.
pub const HOST_PUBLISHED_IPV6: Address =
    Address([0xfd, 0, 0x6d, 0x65, 0x73, 0x68, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);

/// As [`HOST_PUBLISHED_IPV4`], for ports that are published only on the loopback address. Also the
/// address of their keys in `PUBLISHED`.
pub const LOOPBACK_PUBLISHED_IPV4: [u8; 4] = [169, 254, 42, 3];

/// As [`LOOPBACK_PUBLISHED_IPV4`], for IPv6.
pub const LOOPBACK_PUBLISHED_IPV6: Address =
    Address([0xfd, 0, 0x6d, 0x65, 0x73, 0x68, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);

/// The numbers of stand-in addresses, one for each host address on which a port is published
/// exclusively: the last byte of `169.254.42.N` and `fd00:6d65:7368::N`.
pub const STAND_INS: RangeInclusive<u8> = 4..=254;

/// Returns the address with this number that the host itself uses for published ports.
#[inline]
pub const fn host_published(number: u8, v4: bool) -> Address {
    let of = if v4 { Address::from_v4(HOST_PUBLISHED_IPV4) } else { HOST_PUBLISHED_IPV6 };
    let [a, b, c, d] = of.words();
    let [d0, d1, d2, _] = d.to_ne_bytes();
    Address::from_words([a, b, c, u32::from_ne_bytes([d0, d1, d2, number])])
}

/// Returns the number of an address that the host itself uses for published ports; `None` for
/// others.
#[inline]
pub fn host_published_number(address: Address) -> Option<u8> {
    let [.., number] = address.0;
    let is_one = address == host_published(number, true) || address == host_published(number, false);
    (is_one && number >= HOST_PUBLISHED_IPV4[3]).then_some(number)
}

/// Returns whether the host itself uses this address for published ports.
#[inline]
pub fn is_host_published(address: Address) -> bool {
    host_published_number(address).is_some()
}

/// Returns the VNI of an untranslated packet to a published port on its way to this backend.
pub const fn published_vni(backend: u32) -> Vni {
    Vni::new(PUBLISHED_BIT | (backend & (REPLY_BIT - 1)))
}

/// Key of `SERVICES`: a VIP within a network.
pub type ServiceKey = EndpointKey;

/// Value of `SERVICES`: the backends of a VIP.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// Index of the first entry of its table in `BACKEND_TABLES`, in entries (not elements).
    pub first: u32,
    /// Number of entries of the table; 0 if there is no backend.
    pub size: u32,
    /// Bits: [`AFFINITY_CLIENT_IP`].
    pub flags: u32,
}

/// Key of `PUBLISHED`: a port on host addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedKey {
    /// The host's address; [`Address::NONE`] for all of them. A specific address takes precedence.
    /// 127.0.0.1 and `::1` are replaced by [`LOOPBACK_PUBLISHED_IPV4`] and
    /// [`LOOPBACK_PUBLISHED_IPV6`].
    pub address: Address,
    /// The port, network order.
    pub port: [u8; 2],
    /// IP protocol: TCP, UDP or SCTP.
    pub protocol: u8,
    /// Zero.
    pub padding: u8,
}

/// Value of `PUBLISHED`: where packets to the port go. A backend without an address of a packet's
/// family drops the packet.
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
/// while their flows may continue; a backend that is not in it is gone.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's network.
    pub vni: Vni,
    /// The endpoint's IPv4 address; zero when it has none.
    pub ipv4: [u8; 4],
    /// The endpoint's IPv6 address; [`Address::NONE`] if it has none.
    pub ipv6: Address,
    /// Data-path address of the endpoint's node.
    pub node: Address,
    /// Bits: [`LOCAL`], [`DRAINING`], [`BACKEND_ENCRYPTED`], [`FAILING`].
    pub flags: u16,
    /// The node's number in WireGuard; 0 when it has none.
    pub peer: u16,
}

/// Key of `CONNECTIONS`: a packet's addresses and ports on arrival, before translation. A flow has
/// one entry for each direction that this node translates.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionKey {
    /// Source.
    pub source: Address,
    /// Destination.
    pub destination: Address,
    /// Source and destination port, network order. ICMP echo: (identifier, 0) in requests, (0,
    /// identifier) in replies.
    pub ports: [u8; 4],
    /// IP protocol.
    pub protocol: u8,
    /// The low three bytes of the network's [`Vni`]; zero for packets to published ports.
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
/// [`Connection::state`] of a reply entry: created for a SYN. So the first reply must be a SYN or a
/// reset.
pub const BEGINS: u8 = 16;
/// [`Connection::state`] of a reply entry: the client requested another connection between the same
/// ports. The backend decides, by sending a SYN, whether the new connection replaces the old one.
pub const CONTESTED: u8 = 32;
/// [`Connection::state`], published, back: replies return through the node that the client spoke
/// to, even with [`crate::DIRECT_RETURN`].
pub const RETURNS: u8 = 64;

/// The inner source MAC of a packet to a published port whose replies must return through the
/// sending node. Its client may be beyond the reach of other nodes. No device has this MAC.
pub const RETURNS_MAC: Mac = Mac([0x02, 0x4d, 0xff, 0xff, 0xff, 0xfe]);

/// The purpose of an entry of `CONNECTIONS`.
#[repr(u8)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnectionKind {
    /// Towards a backend.
    #[default]
    Forward = 0,
    /// Back to a client in the network: the source is rewritten to the VIP.
    Back = 1,
    /// Back to the backend itself, which is its own client.
    Hairpin = 2,
    /// Back to a client of a published port.
    Published = 3,
}

/// Value of `CONNECTIONS` (answered flows) and `PENDING` (unanswered and finished flows).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection {
    /// Reply entry: the new source address. Forward entry: in the first word, native order, the
    /// interface index of the device where packets of an outside client arrive; 0 if the client is
    /// not outside.
    pub address: Address,
    /// The backend's number.
    pub backend: u32,
    /// Reply entry of a published port: data-path address of the node where the client's packets
    /// arrive. Forward entry: the [`Vni`] of the service's network.
    pub node: [u8; 4],
    /// Reply entry: the new source port. Forward entry: the port that replaces the client's, if the
    /// client's own would make the flow equal to another one at the backend; else 0.
    pub port: [u8; 2],
    /// A [`ConnectionKind`], as its number.
    pub kind: u8,
    /// Bits: [`ANSWERED`], [`CLIENT_FINISHED`], [`BACKEND_FINISHED`], [`CLOSED`], [`BEGINS`],
    /// [`CONTESTED`], [`RETURNS`].
    pub state: u8,
    /// Reply entry: the client's own port, which replaces the destination port; 0 if it is
    /// unchanged.
    pub client_port: [u8; 2],
    /// When the entry was last used: `CLOCK_MONOTONIC` in units of 2^[`USED_SHIFT`] ns, modulo
    /// 2^16.
    pub used: u16,
}

/// See [`Connection::used`]: one unit is 8.6 s; the counter wraps after 6.5 days.
pub const USED_SHIFT: u32 = 33;

/// Value of `ALLOWANCES`, a hash by [`Vni`]: how many more flow entries of a network may become
/// established. The value of [`Vni::NONE`] is shared by all networks without one. Without either
/// there is no limit.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Allowance {
    /// Number of entries left.
    pub left: i64,
    /// How often none was left since the value was set.
    pub refused: u64,
}

/// Key of `SOCKET_PEERS`: a host socket that uses a published port. The value is the address that
/// it requested.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketPeer {
    /// The socket's cookie.
    pub cookie: u64,
    /// The published port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub padding: [u8; 6],
}

/// The key of an entry of a service table, and its table.
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

/// An entry of a service table. There may be a hundred thousand, so they are written and read in
/// batches. They are not part of the observed state of a reconciliation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableEntry {
    /// An entry of `SERVICES`.
    Service(ServiceKey, Service),
    /// An entry of `PUBLISHED`.
    Published(PublishedKey, Published),
    /// An entry of `BACKENDS`.
    Backend(u32, Backend),
    /// An entry of `BACKEND_ADDRESSES`: the address is, or was recently, a backend's (of any
    /// service). Packets from it may need reverse translation.
    BackendAddress(EndpointKey),
}

impl TableEntry {
    /// Returns the entry's key.
    pub const fn key(&self) -> TableKey {
        match self {
            Self::Service(key, _) => TableKey::Service(*key),
            Self::Published(key, _) => TableKey::Published(*key),
            Self::Backend(key, _) => TableKey::Backend(*key),
            Self::BackendAddress(key) => TableKey::BackendAddress(*key),
        }
    }
}
