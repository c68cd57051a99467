//! What is set on network devices by ioctl (netdevice(7)).
#![expect(unsafe_code, reason = "the ioctls of network devices")]

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFHWADDR, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_queue_len, libc::SIOCSIFTXQLEN, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
nix::ioctl_read_bad!(get_mtu, libc::SIOCGIFMTU, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_feature, SIOCETHTOOL, libc::ifreq);

/// `linux/sockios.h`
const SIOCETHTOOL: libc::c_int = 0x8946;
/// Generic receive offload on or off (`linux/ethtool.h`).
const ETHTOOL_SGRO: u32 = 0x2c;

/// Sets MTU and queue length of device `name` and brings it up, in the calling thread's network
/// namespace.
pub(crate) fn configure(name: &str, mtu: u16, queue_len: i32) -> io::Result<()> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let fd = any.as_raw_fd();
    let mut mtu_request = request(name)?;
    mtu_request.ifr_ifru.ifru_mtu = i32::from(mtu);
    let mut queue_request = request(name)?;
    queue_request.ifr_ifru.ifru_metric = queue_len;
    let mut up = request(name)?;
    // SAFETY: each of the four reads (or fills) an `ifreq` that lives past the call; SIOCGIFFLAGS
    // fills the union's `ifru_flags`, which is what is then read.
    unsafe {
        set_mtu(fd, &raw const mtu_request)?;
        set_queue_len(fd, &raw const queue_request)?;
        get_flags(fd, &raw mut up)?;
        let flag = libc::c_short::try_from(libc::IFF_UP).unwrap_or_default();
        up.ifr_ifru.ifru_flags |= flag;
        set_flags(fd, &raw const up)?;
    }
    Ok(())
}

/// Whether device `name` exists in the calling thread's network namespace, has that index if one is
/// given, is up and has that MTU.
pub(crate) fn is_configured(name: &str, index: Option<u32>, mtu: u16) -> bool {
    let found = nix::net::if_::if_nametoindex(name);
    if !found.is_ok_and(|found| index.is_none_or(|index| index == found)) {
        return false;
    }
    let read = || -> io::Result<(libc::c_short, i32)> {
        let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let (mut flags, mut size) = (request(name)?, request(name)?);
        // SAFETY: each fills an `ifreq` that lives past the call, and of its union the member that
        // is then read.
        unsafe {
            get_flags(any.as_raw_fd(), &raw mut flags)?;
            get_mtu(any.as_raw_fd(), &raw mut size)?;
            Ok((flags.ifr_ifru.ifru_flags, size.ifr_ifru.ifru_mtu))
        }
    };
    read().is_ok_and(|(flags, found)| i32::from(flags) & libc::IFF_UP != 0 && found == i32::from(mtu))
}

/// The Ethernet address of devices: no frame tag, so that nothing which the host itself sends there
/// is taken for one.
const ADDRESS: [u8; 6] = [0x0a, b'm', b'e', b's', b'h', 0];

/// Keeps the host from sending anything of its own on device `name`, which must not be up yet.
pub(crate) fn silence(name: &str) -> io::Result<()> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut address = request(name)?;
    let ethernet = libc::sa_family_t::try_from(libc::ARPHRD_ETHER).unwrap_or_default();
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().zip(ADDRESS) {
        *to = from.cast_signed();
    }
    address.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: ethernet, sa_data: data };
    // SAFETY: it reads an `ifreq` that lives past the call.
    unsafe { set_address(any.as_raw_fd(), &raw const address)? };
    // 1: no link-local address, and so no router solicitations (`addr_gen_mode`,
    // Documentation/networking/ip-sysctl.rst).
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1") {
        // A kernel without IPv6 sends none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

/// Keeps what comes out of the WireGuard device `name` from the host, should nobody else take it,
/// and from being joined to super-packets: a packet that was joined as part of a tunnel, and is
/// taken out of it, counts as one of that tunnel for ever.
pub(crate) fn isolate(name: &str) -> io::Result<()> {
    // No route leads back there, so no source is one that belongs there (RFC 3704, strict). Where
    // all devices are set to less than that: nothing is passed on to other hosts at least.
    for (key, value) in [("rp_filter", "1"), ("forwarding", "0")] {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/{key}"), value)?;
    }
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        written => written?,
    }
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut gro = EthtoolValue { command: ETHTOOL_SGRO, value: 0 };
    let mut ethtool = request(name)?;
    ethtool.ifr_ifru.ifru_data = (&raw mut gro).cast();
    // SAFETY: it reads an `ifreq`, and the value that this points to; both live past the call.
    unsafe { set_feature(any.as_raw_fd(), &raw const ethtool)? };
    Ok(())
}

/// `struct ethtool_value` of `linux/ethtool.h`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    value: u32,
}

/// An `ifreq` with nothing but a name.
pub(super) fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid `ifreq`: it holds integers and arrays of them only.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0, the end of the string.
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a device name"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}
