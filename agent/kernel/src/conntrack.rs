//! The flows that the kernel tracks (conntrack), read by netlink.

use std::net::IpAddr;

use mesh_ebpf_types::{Address, ConnectionKey};
use mesh_sys::netlink::{HEADER, Netlink, RequestError, attribute};
use netlink_packet_core::NetlinkSerializable;
use netlink_sys::protocols::NETLINK_NETFILTER;

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`.
const GET: u16 = 1 << 8 | 1;
/// Bytes of the netlink header and of `struct nfgenmsg` after it.
const HEADERS: usize = HEADER + 4;
/// `CTA_TUPLE_REPLY`, `CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`.
const REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
/// Of `CTA_TUPLE_IP`: sources and destinations of both families.
const SOURCES: [u16; 2] = [1, 3];
const DESTINATIONS: [u16; 2] = [2, 4];
/// Of `CTA_TUPLE_PROTO`: `CTA_PROTO_NUM`, `CTA_PROTO_SRC_PORT`, `CTA_PROTO_DST_PORT`.
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

/// Returns the reply tuples of the flows that the kernel tracks in the calling thread's network
/// namespace; none if it tracks none or cannot list them.
pub(crate) fn replies() -> Vec<ConnectionKey> {
    dump().unwrap_or_default()
}

fn dump() -> Result<Vec<ConnectionKey>, RequestError> {
    let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
    netlink.dump(&GetFlows, |message| Ok(message.get(HEADERS..).and_then(reply)))
}

/// The request for all flows: a `struct nfgenmsg` of zeroes, for all address families.
#[derive(Clone)]
struct GetFlows;

impl NetlinkSerializable for GetFlows {
    fn message_type(&self) -> u16 {
        GET
    }

    fn buffer_len(&self) -> usize {
        HEADERS - HEADER
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

/// The reply's tuple among a flow's attributes; `None` for protocols without ports.
fn reply(attributes: &[u8]) -> Option<ConnectionKey> {
    let tuple = attribute(attributes, REPLY)?;
    let (addresses, protocol) = (attribute(tuple, TUPLE_IP)?, attribute(tuple, TUPLE_PROTO)?);
    let address = |kinds: [u16; 2]| -> Option<Address> {
        let value = kinds.iter().find_map(|kind| attribute(addresses, *kind))?;
        let address: IpAddr = match *value {
            [a, b, c, d] => [a, b, c, d].into(),
            _ => <[u8; 16]>::try_from(value).ok()?.into(),
        };
        Some(address.into())
    };
    let port = |kind| attribute(protocol, kind).and_then(|value| value.first_chunk::<2>().copied());
    let ([s0, s1], [d0, d1]) = (port(SOURCE_PORT)?, port(DESTINATION_PORT)?);
    Some(ConnectionKey {
        source: address(SOURCES)?,
        destination: address(DESTINATIONS)?,
        ports: [s0, s1, d0, d1],
        protocol: *attribute(protocol, NUMBER)?.first()?,
        vni: [0; 3],
    })
}
