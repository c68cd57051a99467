//! Settings of network devices by ioctl (netdevice(7)), in the calling thread's network namespace.
#![expect(unsafe_code, reason = "the ioctls of network devices")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFHWADDR, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_queue_len, libc::SIOCSIFTXQLEN, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_read_bad!(get_mtu, libc::SIOCGIFMTU, libc::ifreq);
}

/// A socket to call ioctl with.
pub(crate) fn control() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// Sets MTU and queue length of device `name` and brings it up.
pub fn configure(name: &str, mtu: u16, queue_len: i32) -> io::Result<()> {
    let control = control()?;
    let fd = control.as_raw_fd();
    let mut mtu_request = request(name)?;
    mtu_request.ifr_ifru.ifru_mtu = i32::from(mtu);
    let mut queue_request = request(name)?;
    queue_request.ifr_ifru.ifru_metric = queue_len;
    let mut up = request(name)?;
    // SAFETY: each of the four reads (or fills) an `ifreq` that lives past the call; SIOCGIFFLAGS
    // fills the union's `ifru_flags`, which is what is then read.
    unsafe {
        ioctl::set_mtu(fd, &raw const mtu_request)?;
        ioctl::set_queue_len(fd, &raw const queue_request)?;
        ioctl::get_flags(fd, &raw mut up)?;
        let flag = libc::c_short::try_from(libc::IFF_UP).unwrap_or_default();
        up.ifr_ifru.ifru_flags |= flag;
        ioctl::set_flags(fd, &raw const up)?;
    }
    Ok(())
}

/// Whether device `name` exists, has that index if one is given, is up and has that MTU.
pub fn is_configured(name: &str, index: Option<u32>, mtu: u16) -> bool {
    let found = nix::net::if_::if_nametoindex(name);
    if !found.is_ok_and(|found| index.is_none_or(|index| index == found)) {
        return false;
    }
    let read = || -> io::Result<(libc::c_short, i32)> {
        let control = control()?;
        let (mut flags, mut size) = (request(name)?, request(name)?);
        // SAFETY: each fills an `ifreq` that lives past the call, and of its union the member that
        // is then read.
        unsafe {
            ioctl::get_flags(control.as_raw_fd(), &raw mut flags)?;
            ioctl::get_mtu(control.as_raw_fd(), &raw mut size)?;
            Ok((flags.ifr_ifru.ifru_flags, size.ifr_ifru.ifru_mtu))
        }
    };
    read().is_ok_and(|(flags, found)| i32::from(flags) & libc::IFF_UP != 0 && found == i32::from(mtu))
}

/// Sets the Ethernet address of device `name`.
pub fn set_ethernet_address(name: &str, address: [u8; 6]) -> io::Result<()> {
    let mut address_request = request(name)?;
    let ethernet = libc::sa_family_t::try_from(libc::ARPHRD_ETHER).unwrap_or_default();
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().zip(address) {
        *to = from.cast_signed();
    }
    address_request.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: ethernet, sa_data: data };
    // SAFETY: it reads an `ifreq` that lives past the call.
    unsafe { ioctl::set_address(control()?.as_raw_fd(), &raw const address_request)? };
    Ok(())
}

/// Returns an `ifreq` with nothing but a device's name.
pub(crate) fn request(name: &str) -> io::Result<libc::ifreq> {
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
