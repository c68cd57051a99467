//! What drives a network device (ethtool's `GDRVINFO`).

#![expect(unsafe_code, reason = "ioctl(2) takes a pointer that depends on the request")]

use std::ffi::CStr;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use mesh_model::IfName;
use nix::libc;

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 3;

/// A device's driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// Its name, such as `ice` or `veth`.
    pub name: String,
    /// Where the device is on a bus, such as `0000:3b:00.0`; empty where there is no such device.
    pub bus: String,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct Information {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rest: [u8; 64],
}

/// The driver of a device in the calling thread's network namespace.
pub fn driver(interface: &IfName) -> io::Result<Driver> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| UdpSocket::bind(("0.0.0.0", 0)))?;
    let none = [0; 32];
    let mut information = Information {
        command: ETHTOOL_GDRVINFO,
        driver: none,
        version: none,
        firmware: none,
        bus: none,
        rest: [0; 64],
    };
    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(interface.as_str().bytes()) {
        *to = from.cast_signed();
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut information).cast() },
    };
    // SAFETY: the kernel reads a name that ends with a zero (an interface's has 15 bytes at most),
    // and writes a `struct ethtool_drvinfo`, which `Information` is.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Driver { name: text(&information.driver), bus: text(&information.bus) })
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes).map_or_else(
        |_| String::from_utf8_lossy(bytes).into_owned(),
        |text| text.to_string_lossy().into_owned(),
    )
}
