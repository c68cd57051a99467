//! Settings that keep the host away from the WireGuard devices.

use std::io;

/// The Ethernet address of devices: no frame tag, so that nothing which the host itself sends there
/// is taken for one.
const ADDRESS: [u8; 6] = [0x0a, b'm', b'e', b's', b'h', 0];

/// Keeps the host from sending anything of its own on device `name`, which must not be up yet.
pub(crate) fn silence(name: &str) -> io::Result<()> {
    mesh_sys::device::set_ethernet_address(name, ADDRESS)?;
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
    mesh_sys::ethtool::set_gro(name, false)
}
