//! Settings that isolate the host from the WireGuard devices.

use std::io;

/// The Ethernet address of devices. It is not a frame tag, so that frames that the host itself
/// sends there are not mistaken for tagged ones.
const ADDRESS: [u8; 6] = [0x0a, b'm', b'e', b's', b'h', 0];

/// Keeps the host from sending its own packets on device `name`, which must not be up yet.
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

/// Keeps packets from the WireGuard device `name` out of the host if no program takes them. Also
/// disables GRO on it: a packet that was aggregated as part of a tunnel still counts as one of that
/// tunnel after decapsulation.
pub(crate) fn isolate(name: &str) -> io::Result<()> {
    // No route leads back there, so strict reverse-path filtering drops every source (RFC 3704). If
    // all devices are set to less, packets are at least not forwarded to other hosts.
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
