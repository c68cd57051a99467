//! The flows that the kernel tracks (conntrack), read by netlink.

use std::io;
use std::net::IpAddr;

use mesh_ebpf_types::{Address, ConnectionKey};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`.
const GET: u16 = 1 << 8 | 1;
/// Lengths of `struct nlmsghdr`, and of that with `struct nfgenmsg` after it.
const HEADER: usize = 16;
const HEADERS: usize = 20;
const RECEIVE_BUFFER: usize = 64 * 1024;
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

/// What replies look like to the flows that the kernel tracks in the calling thread's network
/// namespace. None where it tracks none, or does not tell.
pub(crate) fn replies() -> Vec<ConnectionKey> {
    dump().unwrap_or_default()
}

fn dump() -> io::Result<Vec<ConnectionKey>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = [0; HEADERS];
    request[..4].copy_from_slice(&20_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&GET.to_ne_bytes());
    request[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    socket.send(&request, 0)?;
    let mut flows = Vec::new();
    let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while let Some(length) = field(rest, 0).map(u32::from_ne_bytes) {
            let message = rest.get(..length as usize).filter(|message| message.len() >= HEADER);
            let message = message.ok_or(io::ErrorKind::InvalidData)?;
            match field(message, 4).map(u16::from_ne_bytes) {
                Some(NLMSG_DONE) => return Ok(flows),
                Some(NLMSG_ERROR) => return Err(io::ErrorKind::Unsupported.into()),
                _ => flows.extend(message.get(HEADERS..).and_then(reply)),
            }
            rest = rest.get(message.len().next_multiple_of(4)..).unwrap_or_default();
        }
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

/// The value of an attribute.
fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const FLAGS: u16 = 0xc000;
    let mut rest = attributes;
    loop {
        let length = usize::from(u16::from_ne_bytes(field(rest, 0)?));
        let kind = u16::from_ne_bytes(field(rest, 2)?) & !FLAGS;
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}
