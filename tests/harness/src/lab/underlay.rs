//! The network between the hosts: a bridge in a namespace of its own.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    frames, second_nic,
    state::{HostState, LabState},
};
use crate::{Netns, Result, ip_batch_in, netns};

/// The hosts' default gateway, in the underlay namespace.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// The machine outside.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 200);
/// An address of the outside world, reached through the default gateway. The world has no route to
/// overlay networks.
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Likewise, where the underlay has IPv6.
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// Name of every machine's device on the underlay.
pub(super) const DEVICE: &str = "eth0";
const BRIDGE: &str = "br0";

/// Underlay address of host `number`: 192.168.77.11 for host 1.
pub(super) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, 10 + number)
}

/// IPv6 underlay address of host `number`: written as the IPv4 one ends, `fd77::11` for host 1.
pub(super) fn address6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, digits(10 + number))
}

/// A number's decimal digits read as hexadecimal ones.
pub(super) fn digits(number: u8) -> u16 {
    let number = u16::from(number);
    ((number / 100) << 8) | ((number / 10 % 10) << 4) | (number % 10)
}

/// One machine on the bridge.
struct Machine {
    /// Name of its port on the bridge.
    port: String,
    netns: Netns,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
}

impl Machine {
    fn host(state: &LabState, host: &HostState) -> Self {
        Self {
            port: host.name.clone(),
            netns: state.names().namespace(&host.name),
            address: host.address,
            address6: host.address6,
        }
    }

    fn client(state: &LabState) -> Self {
        let address6 = state.underlay_ipv6.then_some(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x200));
        Self { port: "client".to_owned(), netns: state.names().client(), address: CLIENT, address6 }
    }

    /// A fixed MAC: a machine that restarts keeps its network card.
    fn mac(&self) -> String {
        format!("52:54:00:77:00:{:02x}", self.address.octets()[3])
    }

    /// Lines for the bridge's side, which make the machine's device too.
    fn plug(&self, mtu: u32) -> [String; 2] {
        let Self { port, netns, .. } = self;
        [
            format!(
                "link add {port} mtu {mtu} type veth peer name {DEVICE} mtu {mtu} address {} netns {}",
                self.mac(),
                netns.name()
            ),
            format!("link set {port} master {BRIDGE} up"),
        ]
    }

    /// Addresses and default routes inside the machine.
    fn configure(&self) -> Result<()> {
        let mut lines = vec![
            format!("addr add {}/24 dev {DEVICE}", self.address),
            format!("link set {DEVICE} up"),
            format!("route add default via {GATEWAY}"),
        ];
        if let Some(address6) = self.address6 {
            lines.push(format!("addr add {address6}/64 dev {DEVICE} nodad"));
            lines.push("route add default via fd77::1".to_owned());
        }
        ip_batch_in(&self.netns, &lines)?;
        // The kernel sends one destination six ICMP errors at once and then one a second. Tests ask
        // more often.
        self.netns.sysctl("net.ipv4.icmp_ratelimit", "0")?;
        self.netns.sysctl("net.ipv6.icmp.ratelimit", "0")
    }
}

/// Makes the bridge and everything on it.
pub(super) fn create(state: &LabState) -> Result<()> {
    let underlay = state.names().underlay();
    let machines: Vec<Machine> =
        state.hosts.iter().map(|host| Machine::host(state, host)).chain([Machine::client(state)]).collect();
    netns::create_all(machines.iter().map(|machine| &machine.netns).chain([&underlay]))?;

    let mtu = state.underlay_mtu;
    let mut lines = vec![
        // A MAC of its own: one taken from the ports would change with them.
        format!("link add {BRIDGE} address 52:54:00:77:00:01 mtu {mtu} type bridge mcast_snooping 0"),
        format!("addr add {GATEWAY}/24 dev {BRIDGE}"),
        format!("addr add {OUTSIDE_V4}/32 dev lo"),
        format!("link set {BRIDGE} up"),
    ];
    if state.underlay_ipv6 {
        lines.push(format!("addr add fd77::1/64 dev {BRIDGE} nodad"));
        lines.push(format!("addr add {OUTSIDE_V6}/128 dev lo nodad"));
    }
    let plugged = if let (true, [one, two, rest @ ..]) = (state.cabled, &machines[..]) {
        ip_batch_in(&one.netns, &[cable(one, two, mtu)])?;
        rest
    } else {
        &machines[..]
    };
    lines.extend(plugged.iter().flat_map(|machine| machine.plug(mtu)));
    ip_batch_in(&underlay, &lines)?;
    plugged.iter().try_for_each(|machine| silence_port(&underlay, &machine.port))?;
    machines.iter().try_for_each(Machine::configure)?;
    if state.second_nic { second_nic::create(state) } else { Ok(()) }
}

/// Line that makes the one veth pair between two machines, inside the first.
fn cable(one: &Machine, two: &Machine, mtu: u32) -> String {
    format!(
        "link add {DEVICE} mtu {mtu} address {} type veth peer name {DEVICE} mtu {mtu} address {} netns {}",
        one.mac(),
        two.mac(),
        two.netns.name()
    )
}

/// Makes one host's namespace anew, as a restart of the machine does.
pub(super) fn recreate_host(state: &LabState, host: &HostState) -> Result<()> {
    let machine = Machine::host(state, host);
    let underlay = state.names().underlay();
    // The old device goes with its namespace, which the kernel takes apart when it sees fit: it may
    // be doing so.
    if device_exists(&underlay, &machine.port)?
        && let Err(error) = ip_batch_in(&underlay, &[format!("link del {}", machine.port)])
        && device_exists(&underlay, &machine.port)?
    {
        return Err(error);
    }
    netns::delete(&machine.netns)?;
    netns::create_all([&machine.netns])?;
    ip_batch_in(&underlay, &machine.plug(state.underlay_mtu))?;
    silence_port(&underlay, &machine.port)?;
    machine.configure()?;
    if state.second_nic {
        let port = second_nic::port(&host.name);
        if device_exists(&underlay, &port)? {
            // Like the first, it may be going already.
            let _gone = ip_batch_in(&underlay, &[format!("link del {port}")]);
        }
        second_nic::plug_host(state, host)?;
    }
    Ok(())
}

/// Cuts a host off, or connects it again. Its own device keeps its carrier, as behind a switch that
/// has failed.
pub(super) fn set_plugged(underlay: &Netns, host: &str, plugged: bool) -> Result<()> {
    // A bridge port's state would do as well, but the kernel enables the port again with the next
    // carrier event.
    let master = if plugged { format!("master {BRIDGE}") } else { "nomaster".to_owned() };
    ip_batch_in(underlay, &[format!("link set {host} {master}")])
}

/// The table with the rules of [`block_udp`].
const BLOCKS: &str = "bridge blocks";

/// Drops UDP packets to `port` that one host sends to another, as a firewall between them does.
pub(super) fn block_udp(underlay: &Netns, port: u16, from: Ipv4Addr, to: Ipv4Addr) -> Result<()> {
    let rules = format!(
        "add table {BLOCKS}; add chain {BLOCKS} forward {{ type filter hook forward priority 0; }}; \
         add rule {BLOCKS} forward ip saddr {from} ip daddr {to} udp dport {port} drop"
    );
    underlay.run(["nft", &rules])?.ok().map(drop)
}

/// Ends what [`block_udp`] began.
pub(super) fn unblock(underlay: &Netns) -> Result<()> {
    underlay.run(["nft", &format!("delete table {BLOCKS}")])?.ok().map(drop)
}

/// Has every machine forget where `address` was, as the announcement of its new owner does.
pub(super) fn forget_neighbour(state: &LabState, address: Ipv4Addr) -> Result<()> {
    let names = state.names();
    let hosts = state.hosts.iter().map(|host| (names.namespace(&host.name), DEVICE));
    for (netns, device) in hosts.chain([(names.client(), DEVICE), (names.underlay(), BRIDGE)]) {
        netns.run(["ip", "neigh", "flush", "to", &address.to_string(), "dev", device])?.ok()?;
    }
    Ok(())
}

/// A port that is off the bridge hears what its host sends; without these it would answer in the
/// gateway's place.
fn silence_port(underlay: &Netns, port: &str) -> Result<()> {
    underlay.sysctl(&format!("net.ipv4.conf.{port}.arp_ignore"), "8")?;
    underlay.sysctl(&format!("net.ipv6.conf.{port}.disable_ipv6"), "1")
}

/// Sets the MTU of the bridge, its ports and the machines' devices.
pub(super) fn set_mtu(state: &LabState, mtu: u32) -> Result<()> {
    let bridge = (state.names().underlay(), BRIDGE.to_owned());
    for (netns, device) in devices(state).into_iter().chain([bridge]) {
        ip_batch_in(&netns, &[format!("link set {device} mtu {mtu}")])?;
    }
    Ok(())
}

/// Turns the offloads of every underlay device on or off.
pub(super) fn set_offloads(state: &LabState, on: bool) -> Result<()> {
    let value = if on { "on" } else { "off" };
    for (netns, device) in devices(state) {
        let features = ["tx", "sg", "tso", "gso", "gro"].into_iter().flat_map(|feature| [feature, value]);
        netns.run(["ethtool", "-K", &device].into_iter().chain(features))?.ok()?;
    }
    Ok(())
}

/// Has the bridge's ports take frames that the other ends' drivers send.
pub(super) fn take_frames(state: &LabState) -> Result<()> {
    let ports: Vec<&str> = state.hosts.iter().map(|host| host.name.as_str()).chain(["client"]).collect();
    frames::attach(&state.names().underlay(), &ports, &state.names().bpffs("pass"))
}

/// Every veth device of the underlay: the bridge's ports, called as their machines, and the
/// machines' own; then those of the hosts' second network.
fn devices(state: &LabState) -> Vec<(Netns, String)> {
    let names = state.names();
    let hosts = state.hosts.iter().map(|host| host.name.as_str());
    let on_bridge = hosts.clone().filter(|_| !state.cabled).chain(["client"]);
    let ports = on_bridge.map(|port| (names.underlay(), port.to_owned()));
    let ends = hosts.clone().chain(["client"]).map(|name| (names.namespace(name), DEVICE.to_owned()));
    let second = hosts.filter(|_| state.second_nic).flat_map(|host| {
        let own = (names.namespace(host), second_nic::DEVICE.to_owned());
        [(names.underlay(), second_nic::port(host)), own]
    });
    ports.chain(ends).chain(second).collect()
}

fn device_exists(netns: &Netns, device: &str) -> Result<bool> {
    Ok(netns.run(["ip", "link", "show", "dev", device])?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_numbered_from_eleven_in_both_families() {
        assert_eq!(
            (address(1).to_string(), address6(1).to_string()),
            ("192.168.77.11".into(), "fd77::11".into())
        );
        assert_eq!(
            (address(95).to_string(), address6(95).to_string()),
            ("192.168.77.105".into(), "fd77::105".into())
        );
    }
}
