//! A second network beside the underlay, with an outside client of its own: what hosts with a
//! public network card and a private one have.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::state::{HostState, LabState};
use crate::{Netns, Result, ip_batch_in, netns};

/// The router of the second network, in the underlay namespace.
pub const SECOND_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);
/// Likewise, where the underlay has IPv6.
pub const SECOND_ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0x254);
/// An address behind that router. Hosts have no route of their own to it.
pub const BEHIND_SECOND_ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The machine outside on the second network.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 200);
pub(super) const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0x200);
/// Name of every machine's second device.
pub(super) const DEVICE: &str = "eth1";
const BRIDGE: &str = "br1";

/// Address of host `number` on the second network: 10.99.0.1 for host 1.
pub(super) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, number)
}

/// IPv6 address of host `number` on the second network: `fd99::1` for host 1, its number read as
/// hexadecimal digits.
pub(super) fn address6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, super::underlay::digits(number))
}

/// One machine on the bridge.
struct Machine {
    netns: Netns,
    port: String,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
}

impl Machine {
    fn host(state: &LabState, host: &HostState) -> Self {
        Self {
            netns: state.names().namespace(&host.name),
            port: port(&host.name),
            address: address(host.number),
            address6: state.underlay_ipv6.then(|| address6(host.number)),
        }
    }

    fn client(state: &LabState) -> Self {
        Self {
            netns: state.names().second_client(),
            port: "client2".to_owned(),
            address: CLIENT,
            address6: state.underlay_ipv6.then_some(CLIENT_V6),
        }
    }

    /// Makes its device, on the bridge, with its addresses.
    fn plug(&self, state: &LabState) -> Result<()> {
        let Self { netns, port, address, .. } = self;
        let (mtu, last) = (state.underlay_mtu, address.octets()[3]);
        ip_batch_in(
            &state.names().underlay(),
            &[
                format!(
                    "link add {port} mtu {mtu} type veth peer name {DEVICE} mtu {mtu} address 52:54:00:99:00:{last:02x} netns {}",
                    netns.name()
                ),
                format!("link set {port} master {BRIDGE} up"),
            ],
        )?;
        let mut lines = vec![format!("addr add {address}/24 dev {DEVICE}"), format!("link set {DEVICE} up")];
        lines.extend(self.address6.map(|address| format!("addr add {address}/64 dev {DEVICE} nodad")));
        ip_batch_in(netns, &lines)
    }
}

/// Name of a host's port on the bridge.
pub(super) fn port(host: &str) -> String {
    format!("{host}-2")
}

/// Makes the second network. The namespaces of the underlay's machines are there.
pub(super) fn create(state: &LabState) -> Result<()> {
    let client = Machine::client(state);
    netns::create_all([&client.netns])?;
    let mtu = state.underlay_mtu;
    let mut lines = vec![
        format!("link add {BRIDGE} address 52:54:00:99:00:fe mtu {mtu} type bridge mcast_snooping 0"),
        format!("addr add {SECOND_ROUTER}/24 dev {BRIDGE}"),
        format!("addr add {BEHIND_SECOND_ROUTER}/32 dev lo"),
        format!("link set {BRIDGE} up"),
    ];
    if state.underlay_ipv6 {
        lines.push(format!("addr add {SECOND_ROUTER_V6}/64 dev {BRIDGE} nodad"));
    }
    ip_batch_in(&state.names().underlay(), &lines)?;
    let hosts = state.hosts.iter().map(|host| Machine::host(state, host));
    hosts.chain([client]).try_for_each(|machine| machine.plug(state))
}

/// Makes the second device of a host whose namespace was made anew.
pub(super) fn plug_host(state: &LabState, host: &HostState) -> Result<()> {
    Machine::host(state, host).plug(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_numbered_from_one_in_both_families() {
        assert_eq!((address(1).to_string(), address6(1).to_string()), ("10.99.0.1".into(), "fd99::1".into()));
        assert_eq!(
            (address(12).to_string(), address6(12).to_string()),
            ("10.99.0.12".into(), "fd99::12".into())
        );
    }
}
