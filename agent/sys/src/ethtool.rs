//! Drivers and features of network devices (`linux/ethtool.h`), in the calling thread's network
//! namespace.
#![expect(unsafe_code, reason = "the ioctl of ethtool takes a pointer that depends on the command")]

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

use crate::device::{control, request};

/// `linux/sockios.h`
const SIOCETHTOOL: libc::c_int = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 3;
/// Generic receive offload on or off.
const ETHTOOL_SGRO: u32 = 0x2c;

mod ioctl {
    nix::ioctl_write_ptr_bad!(ethtool, super::SIOCETHTOOL, libc::ifreq);
}

/// A device's driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// Its name, such as `ice` or `veth`.
    pub name: String,
    /// The device's position on a bus, such as `0000:3b:00.0`; empty for virtual devices.
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

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    value: u32,
}

/// Returns the driver of a device.
pub fn driver(device: &str) -> io::Result<Driver> {
    let none = [0; 32];
    let mut information = Information {
        command: ETHTOOL_GDRVINFO,
        driver: none,
        version: none,
        firmware: none,
        bus: none,
        rest: [0; 64],
    };
    let mut request = request(device)?;
    request.ifr_ifru.ifru_data = (&raw mut information).cast();
    // SAFETY: the kernel reads an `ifreq` and writes a `struct ethtool_drvinfo`, which
    // `Information` is; both live past the call.
    unsafe { ioctl::ethtool(control()?.as_raw_fd(), &raw const request)? };
    Ok(Driver { name: text(&information.driver), bus: text(&information.bus) })
}

/// Switches generic receive offload of a device on or off.
pub fn set_gro(device: &str, on: bool) -> io::Result<()> {
    let mut value = Value { command: ETHTOOL_SGRO, value: u32::from(on) };
    let mut request = request(device)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the kernel reads an `ifreq`, and the value that it points to; both live past the
    // call.
    unsafe { ioctl::ethtool(control()?.as_raw_fd(), &raw const request)? };
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes).map_or_else(
        |_| String::from_utf8_lossy(bytes).into_owned(),
        |text| text.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_device_can_have_is_an_error() {
        assert_eq!(driver("").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(driver(&"x".repeat(16)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(driver("mesh-none").is_err());
    }
}
