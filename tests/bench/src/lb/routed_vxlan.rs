//! The peers' network: what flannel builds, a bridge on each host and routes over a VXLAN device
//! between them, so that the host's own firewall sees every packet and can translate it.

use std::net::Ipv4Addr;

use mesh_harness::{Container, Lab, Result, ip_batch_in};

/// Bytes that VXLAN adds on an IPv4 underlay.
const OVERHEAD: u32 = 50;

/// Joins the lab's first two hosts; one client container on the first, `backends` containers on the
/// second.
pub(super) fn join(lab: &Lab, underlay_mtu: u32, backends: usize) -> Result<(Container, Vec<Container>)> {
    let mtu = underlay_mtu - OVERHEAD;
    for (own, other) in [(1, 2), (2, 1)] {
        let (host, peer) = (lab.host(own), lab.host(other));
        ip_batch_in(
            host.netns(),
            &[
                "link add cni0 type bridge mcast_snooping 0".to_owned(),
                format!("addr add {}/24 dev cni0", address(own, 1)),
                format!("link set cni0 mtu {mtu} up"),
                format!(
                    "link add flannel.1 address {} type vxlan id 1 dstport 8472 local {} nolearning",
                    mac(own),
                    host.address()
                ),
                format!("addr add {}/32 dev flannel.1", address(own, 0)),
                format!("link set flannel.1 mtu {mtu} up"),
                format!("route add {}/24 via {} dev flannel.1 onlink", address(other, 0), address(other, 0)),
                format!("neigh add {} lladdr {} dev flannel.1", address(other, 0), mac(other)),
            ],
        )?;
        let peer = peer.address().to_string();
        host.run(["bridge", "fdb", "add", &mac(other), "dev", "flannel.1", "dst", &peer])?.ok()?;
        host.netns().sysctl("net.ipv4.ip_forward", "1")?;
    }
    let client = attach(lab, 1, 2, "kc", mtu)?;
    let backends = (0..backends).map(|number| attach(lab, 2, number + 2, &format!("kb{number}"), mtu));
    Ok((client, backends.collect::<Result<_>>()?))
}

/// Address of backend `number`, from 0.
pub(super) fn backend(number: usize) -> Ipv4Addr {
    address(2, number + 2)
}

fn attach(lab: &Lab, host: usize, number: usize, name: &str, mtu: u32) -> Result<Container> {
    let container = lab.namespace(host, name)?;
    let host_side = [
        format!(
            "link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            container.netns().name()
        ),
        format!("link set {name} master cni0 up"),
    ];
    ip_batch_in(lab.host(host).netns(), &host_side)?;
    let inside = [
        format!("addr add {}/24 dev eth0", address(host, number)),
        "link set eth0 up".to_owned(),
        format!("route add default via {}", address(host, 1)),
    ];
    ip_batch_in(container.netns(), &inside)?;
    Ok(container)
}

/// Address `number` of the host's subnet: 0 its VXLAN device, 1 its bridge.
fn address(host: usize, number: usize) -> Ipv4Addr {
    // Two hosts and a handful of containers.
    let octet = |number| u8::try_from(number).unwrap_or(u8::MAX);
    Ipv4Addr::new(10, 9, octet(host), octet(number))
}

fn mac(host: usize) -> String {
    format!("02:42:0a:09:{host:02x}:00")
}
