//! A datagram in fragments, sent in any order.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::socket::{AddressFamily, SockProtocol};

use super::raw::open_family;
use crate::{Error, Netns, Result};

/// Bytes of the datagram in each fragment but the last; a multiple of eight.
const SIZE: usize = 1024;
const UDP: u8 = 17;
/// Identification of the next datagram. Two of one pair of hosts never share one, as with senders
/// that count: whoever keeps state for fragments may confuse them (RFC 4963).
static NEXT_ID: AtomicU16 = AtomicU16::new(1);

/// Sends a datagram in fragments of 1024 bytes from `netns`, in the order that `order` puts their
/// numbers in.
pub fn send_fragments(
    netns: &Netns,
    source: SocketAddr,
    target: SocketAddr,
    payload: &[u8],
    order: impl FnOnce(&mut Vec<usize>),
) -> Result<()> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = open_family(netns, family, SockProtocol::Raw)?;
    let datagram = datagram(source, target, payload);
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let mut numbers: Vec<usize> = (0..datagram.len().div_ceil(SIZE)).collect();
    order(&mut numbers);
    for number in numbers {
        let packet = fragment(source.ip(), target.ip(), id, &datagram, number);
        let sent = socket.send_to(&packet, SocketAddr::new(target.ip(), 0));
        sent.map_err(Error::system(format!("send a fragment to {target}")))?;
    }
    Ok(())
}

fn datagram(source: SocketAddr, target: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let ports = [source.port().to_be_bytes(), target.port().to_be_bytes()].concat();
    let mut datagram = [&ports[..], &length, &[0, 0], payload].concat();
    let pseudo = [&octets(source.ip())[..], &octets(target.ip()), &[0, UDP], &length, &datagram].concat();
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = pseudo.chunks(2).map(word).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum += sum >> 16;
    let [.., high, low] = (!sum).to_be_bytes();
    datagram[6..8].copy_from_slice(&[high, low]);
    datagram
}

/// The IP packet with one of the fragments. The kernel fills in an IPv4 header's length and
/// checksum.
fn fragment(source: IpAddr, target: IpAddr, id: [u8; 2], datagram: &[u8], number: usize) -> Vec<u8> {
    let part = &datagram[number * SIZE..datagram.len().min((number + 1) * SIZE)];
    let more = (number + 1) * SIZE < datagram.len();
    let units = u16::try_from(number * SIZE / 8).unwrap_or(0);
    let addresses = [octets(source), octets(target)].concat();
    if source.is_ipv4() {
        let offset = (units | u16::from(more) << 13).to_be_bytes();
        let start = [0x45, 0, 0, 0, id[0], id[1], offset[0], offset[1], 64, UDP, 0, 0];
        return [&start[..], &addresses, part].concat();
    }
    let length = u16::try_from(8 + part.len()).unwrap_or(0).to_be_bytes();
    let offset = (units << 3 | u16::from(more)).to_be_bytes();
    let start = [0x60, 0, 0, 0, length[0], length[1], 44, 64];
    let header = [UDP, 0, offset[0], offset[1], 0, 1, id[0], id[1]];
    [&start[..], &addresses, &header, part].concat()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
