//! Socket addresses as the kernel has them.

use std::{
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    ptr,
};

/// An address as the kernel wants it, on a socket of both families as IPv4-mapped IPv6.
pub(super) fn encode(address: SocketAddr, v6: bool) -> (libc::sockaddr_in6, libc::socklen_t) {
    // SAFETY: all zeroes is a valid `sockaddr_in6`: it holds integers only.
    let mut out: libc::sockaddr_in6 = unsafe { mem::zeroed() };
    let size = |bytes: usize| libc::socklen_t::try_from(bytes).unwrap_or_default();
    if let (SocketAddr::V4(v4), false) = (address, v6) {
        let v4 = libc::sockaddr_in {
            sin_family: family(libc::AF_INET),
            sin_port: v4.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: `sockaddr_in6` is larger than `sockaddr_in` and at least as aligned.
        unsafe { ptr::write((&raw mut out).cast(), v4) };
        return (out, size(mem::size_of::<libc::sockaddr_in>()));
    }
    let (ip, scope) = match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
        SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
    };
    out.sin6_family = family(libc::AF_INET6);
    out.sin6_port = address.port().to_be();
    out.sin6_addr.s6_addr = ip.octets();
    out.sin6_scope_id = scope;
    (out, size(mem::size_of::<libc::sockaddr_in6>()))
}

fn family(family: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or_default()
}

/// The reverse of [`encode`].
pub(super) fn decode(address: &libc::sockaddr_in6) -> Option<SocketAddr> {
    let port = u16::from_be(address.sin6_port);
    if address.sin6_family == family(libc::AF_INET) {
        // SAFETY: the family says that the kernel wrote a `sockaddr_in`, which is smaller and no
        // more aligned.
        let v4: libc::sockaddr_in = unsafe { ptr::read(ptr::from_ref(address).cast()) };
        return Some(SocketAddr::new(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes()).into(), port));
    }
    if address.sin6_family != family(libc::AF_INET6) {
        return None;
    }
    let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
    Some(match ip.to_ipv4_mapped() {
        Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
        None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, address.sin6_scope_id)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_survive_both_kinds_of_socket() {
        let v4: SocketAddr = "192.0.2.1:51820".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:51820".parse().unwrap();
        assert_eq!(decode(&encode(v4, true).0), Some(v4));
        assert_eq!(decode(&encode(v4, false).0), Some(v4));
        assert_eq!(decode(&encode(v6, true).0), Some(v6));
    }
}
