//! Names and interface indexes of our devices, and by them: what is ours.

use crate::IfName;
use crate::fnv::fnv1a;

/// The VXLAN device.
pub const VXLAN: &str = "meshvx0";
/// The WireGuard device.
pub const WIREGUARD: &str = "meshwg0";
/// The host's own leg: gateway addresses and routes to the networks.
pub const HOST_LEG: &str = "mesh0";
/// The other end of the host's own leg, where the datapath takes over.
pub const HOST_LEG_PEER: &str = "mesh0p";
/// The firewall's table, of family `inet`.
pub const FIREWALL_TABLE: &str = "mesh";
/// What the names of endpoints' devices begin with; eight hexadecimal characters follow.
pub const ENDPOINT_PREFIX: &str = "mesh";

/// The protocol number of routes that are ours without a device of ours (rtnetlink(7),
/// `rtm_protocol`): none of those that have names.
pub const ROUTE_PROTOCOL: u8 = 77;

/// Interface index of `mesh0`.
///
/// Indexes are chosen here instead of by the kernel, so that a plan can name a device that does not
/// exist yet. The kernel counts its own up from 1 and does not come this far.
pub const HOST_LEG_INDEX: u32 = 0x3FFF_FF00;
/// Interface index of `mesh0p`.
pub const HOST_LEG_PEER_INDEX: u32 = 0x3FFF_FF01;
/// Interface index of `meshvx0`.
pub const VXLAN_INDEX: u32 = 0x3FFF_FF02;
/// Interface index of `meshwg0` of the engine in user space. No other device ever gets it: what is
/// sent there after the device is gone goes nowhere.
pub const WIREGUARD_USERSPACE_INDEX: u32 = mesh_ebpf_types::WIREGUARD_USERSPACE_IFINDEX;
/// Interface index of `meshwg0` of the kernel's WireGuard. No other device ever gets it either.
pub const WIREGUARD_KERNEL_INDEX: u32 = mesh_ebpf_types::WIREGUARD_KERNEL_IFINDEX;
/// The least interface index of an endpoint's device.
pub const FIRST_ENDPOINT_INDEX: u32 = 0x4000_0000;
/// The greatest interface index there is.
pub const LAST_INDEX: u32 = 0x7FFF_FFFF;

/// What a device is, as far as ownership is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One end of a veth pair.
    Veth,
    /// A VXLAN device.
    Vxlan,
    /// A kernel WireGuard device.
    Wireguard,
    /// A TUN device.
    Tun,
    /// Anything else.
    Other,
}

/// Whether a device is ours: its name is one of ours, and it is of the kind that we would have
/// made.
pub fn is_ours(name: &str, kind: Kind) -> bool {
    match kind {
        Kind::Veth => name == HOST_LEG || name == HOST_LEG_PEER || is_endpoint(name),
        Kind::Vxlan => name == VXLAN,
        Kind::Wireguard | Kind::Tun => name == WIREGUARD,
        Kind::Other => false,
    }
}

/// Whether a name is one that an endpoint's device may have.
pub fn is_endpoint(name: &str) -> bool {
    name.strip_prefix(ENDPOINT_PREFIX)
        .is_some_and(|id| id.len() == 8 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// Where the search for a free interface index begins for an endpoint's device of this name. The
/// same name always leads here, so that a device that was made anew is known by the same index.
pub fn preferred_index(name: &IfName) -> u32 {
    FIRST_ENDPOINT_INDEX | (fnv1a(name.as_str().as_bytes()) & (LAST_INDEX - FIRST_ENDPOINT_INDEX))
}

/// The name of our device that always has this interface index.
pub const fn name_of(index: u32) -> Option<&'static str> {
    match index {
        HOST_LEG_INDEX => Some(HOST_LEG),
        HOST_LEG_PEER_INDEX => Some(HOST_LEG_PEER),
        VXLAN_INDEX => Some(VXLAN),
        WIREGUARD_USERSPACE_INDEX | WIREGUARD_KERNEL_INDEX => Some(WIREGUARD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_fixed_index_have_their_names_in_messages() {
        assert_eq!(name_of(HOST_LEG_INDEX), Some("mesh0"));
        assert_eq!(name_of(VXLAN_INDEX), Some("meshvx0"));
        assert_eq!(name_of(WIREGUARD_KERNEL_INDEX), Some("meshwg0"));
        assert_eq!(name_of(1), None);
    }

    #[test]
    fn a_device_is_ours_by_name_and_kind_together() {
        assert!(
            is_ours("mesh0", Kind::Veth)
                && is_ours("mesh0p", Kind::Veth)
                && is_ours("mesh01ab9fff", Kind::Veth)
        );
        assert!(
            is_ours("meshvx0", Kind::Vxlan)
                && is_ours("meshwg0", Kind::Wireguard)
                && is_ours("meshwg0", Kind::Tun)
        );
        for (name, kind) in [
            ("mesh01ab9fff", Kind::Other),
            ("mesh0", Kind::Other),
            ("meshvx0", Kind::Veth),
            ("mesh0", Kind::Vxlan),
            ("flannel.1", Kind::Vxlan),
            ("meshtastic0", Kind::Veth),
            ("mesh01AB9FFF", Kind::Veth),
            ("mesh01ab9ff", Kind::Veth),
            ("mesh01ab9ffff", Kind::Veth),
            ("mesh-notours", Kind::Veth),
            ("mesh1", Kind::Veth),
        ] {
            assert!(!is_ours(name, kind), "{name} {kind:?}");
        }
    }

    #[test]
    fn preferred_indexes_lie_in_their_own_range() {
        for name in ["mesh00000000", "meshffffffff", "meshdeadbeef"] {
            let index = preferred_index(&name.parse().unwrap());
            assert!((FIRST_ENDPOINT_INDEX..=LAST_INDEX).contains(&index));
        }
    }
}
