//! The peer: what Docker Swarm and flannel build, a bridge with a VXLAN device in it and static FDB
//! entries.

use std::net::Ipv4Addr;

use mesh_harness::{Lab, Result, ip_batch_in};

use crate::instruments::Ends;

/// Bytes that VXLAN adds on an IPv4 underlay.
const VXLAN_OVERHEAD: u32 = 50;

/// Joins one container on each of the lab's two hosts.
pub(crate) fn join(lab: &Lab, underlay_mtu: u32) -> Result<Ends> {
    let mtu = underlay_mtu - VXLAN_OVERHEAD;
    let containers = [lab.namespace(1, "bv1")?, lab.namespace(2, "bv2")?];
    for (own, peer) in [(1, 2), (2, 1)] {
        let (host, other, container) = (lab.host(own), lab.host(peer), &containers[own - 1]);
        let netns = container.netns().name();
        let host_side = [
            "link add br0 type bridge mcast_snooping 0".to_owned(),
            format!("link add vx0 type vxlan id 42 dstport 4789 local {} nolearning", host.address()),
            format!("link set vx0 mtu {mtu} master br0 up"),
            format!(
                "link add c0 mtu {mtu} type veth peer name eth0 mtu {mtu} address {} netns {netns}",
                mac(own)
            ),
            "link set c0 master br0 up".to_owned(),
            "link set br0 up".to_owned(),
        ];
        ip_batch_in(host.netns(), &host_side)?;
        host.run(["bridge", "fdb", "add", &mac(peer), "dev", "vx0", "dst", &other.address().to_string()])?
            .ok()?;
        let inside = [
            format!("addr add {}/24 dev eth0", address(own)),
            "link set eth0 up".to_owned(),
            format!("neigh add {} lladdr {} dev eth0", address(peer), mac(peer)),
        ];
        ip_batch_in(container.netns(), &inside)?;
    }
    let [client, server] = containers;
    Ok(Ends { client: client.netns().clone(), server: server.netns().clone(), server_address: address(2) })
}

fn address(number: usize) -> Ipv4Addr {
    // Two containers: 1 and 2.
    Ipv4Addr::new(10, 9, 0, u8::try_from(number).unwrap_or(u8::MAX))
}

fn mac(number: usize) -> String {
    format!("02:42:0a:09:00:{number:02x}")
}
