//! The devices of the host itself.

use std::collections::BTreeSet;
use std::net::UdpSocket;

use mesh_kernel::{Kernel, KernelError};
use mesh_model::observed::{HostRoute, InterfaceAddress, LinkKind, Sysctl};
use mesh_model::plan::{HostLeg, VxlanDevice};
use mesh_model::{Action, Prefix, naming};

use crate::support::{apply, become_host, kernel, observe, run};

fn vxlan() -> VxlanDevice {
    VxlanDevice { name: "meshvx0".parse().unwrap(), index: naming::VXLAN_INDEX, port: 4789, mtu: 65465 }
}

fn host_leg() -> HostLeg {
    HostLeg {
        name: "mesh0".parse().unwrap(),
        index: naming::HOST_LEG_INDEX,
        mac: "02:4d:65:73:68:00".parse().unwrap(),
        peer_name: "mesh0p".parse().unwrap(),
        peer_index: naming::HOST_LEG_PEER_INDEX,
        mtu: 1450,
    }
}

#[test]
fn the_vxlan_device_is_made_seen_and_removed() {
    become_host();
    let mut kernel = kernel();
    apply(&mut kernel, &Action::CreateVxlan(vxlan()));
    let observed = observe(&mut kernel);
    let link = &observed.links[&vxlan().name];
    assert_eq!(link.kind, LinkKind::Vxlan { port: 4789, external: true });
    assert_eq!((link.index, link.mtu, link.up), (naming::VXLAN_INDEX, 65465, true));
    assert!(run("ip -d link show meshvx0").contains("nolearning"));

    apply(&mut kernel, &Action::SetMtu { index: naming::VXLAN_INDEX, mtu: 9000 });
    assert_eq!(observe(&mut kernel).links[&vxlan().name].mtu, 9000);
    let delete = Action::DeleteLink { name: vxlan().name, index: naming::VXLAN_INDEX };
    apply(&mut kernel, &delete);
    assert!(observe(&mut kernel).links.is_empty());
    // What is gone already is no error.
    apply(&mut kernel, &delete);
}

#[test]
fn a_taken_vxlan_port_is_told_and_leaves_nothing_behind() {
    become_host();
    let mut kernel = kernel();
    let _taken = UdpSocket::bind("0.0.0.0:4789").unwrap();
    let error = kernel.apply(&Action::CreateVxlan(vxlan())).unwrap_err();
    assert!(matches!(error, KernelError::PortTaken { port: 4789, .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("4789"));
    assert!(observe(&mut kernel).links.is_empty());
}

#[test]
fn a_vxlan_device_of_others_on_the_same_port_is_told() {
    become_host();
    let mut kernel = kernel();
    run("ip link add vxlan9 type vxlan external dstport 4789 && ip link set vxlan9 up");
    let error = kernel.apply(&Action::CreateVxlan(vxlan())).unwrap_err();
    assert!(matches!(error, KernelError::PortTaken { port: 4789, .. }), "{error:?}");
    run("ip link delete vxlan9 && ip link add vxlan9 type vxlan id 7 dstport 4789 && ip link set vxlan9 up");
    let error = kernel.apply(&Action::CreateVxlan(vxlan())).unwrap_err();
    assert!(matches!(error, KernelError::PortTaken { port: 4789, .. }), "{error:?}");
    assert!(observe(&mut kernel).links.is_empty());
    run("ip link show vxlan9");
}

#[test]
fn a_name_that_others_have_is_told() {
    become_host();
    let mut kernel = kernel();
    run("ip link add meshvx0 type bridge && ip link add mesh0p type bridge");
    let error = kernel.apply(&Action::CreateVxlan(vxlan())).unwrap_err();
    assert_eq!(error.to_string(), "a device named meshvx0 exists and is not Mesh's");
    let error = kernel.apply(&Action::CreateHostLeg(host_leg())).unwrap_err();
    assert_eq!(error.to_string(), "a device named mesh0p exists and is not Mesh's");
    assert!(observe(&mut kernel).links.is_empty());
}

#[test]
fn the_host_leg_has_addresses_and_routes() {
    become_host();
    let mut kernel = kernel();
    apply(&mut kernel, &Action::CreateHostLeg(host_leg()));
    let observed = observe(&mut kernel);
    let leg = &observed.links[&host_leg().name];
    assert_eq!(leg.kind, LinkKind::Veth { peer: naming::HOST_LEG_PEER_INDEX, peer_is_here: true });
    assert_eq!((leg.mac, leg.up, leg.arp, leg.mtu), (Some(host_leg().mac), true, false, 1450));
    assert!(observed.links[&host_leg().peer_name].up);
    assert!(observed.host_addresses.is_empty() && observed.host_routes.is_empty());

    let index = naming::HOST_LEG_INDEX;
    let addresses = [("10.64.0.1", 32), ("fd00:64::1", 128)]
        .map(|(address, prefix_len)| InterfaceAddress { address: address.parse().unwrap(), prefix_len });
    let routes = ["10.64.0.0/20", "fd00:64::/64"].into_iter().zip(addresses).map(|(subnet, source)| {
        HostRoute { subnet: subnet.parse().unwrap(), source: Some(source.address), mtu: Some(1400) }
    });
    let routes: Vec<HostRoute> = routes.collect();
    for address in addresses {
        apply(&mut kernel, &Action::AddAddress { index, address });
    }
    for route in &routes {
        apply(&mut kernel, &Action::PutRoute { index, route: *route });
    }
    let observed = observe(&mut kernel);
    assert_eq!(observed.host_addresses, addresses.into());
    assert_eq!(observed.host_routes, routes.iter().copied().collect());
    assert!(run("ip route get 10.64.3.4").contains("dev mesh0 src 10.64.0.1"));
    assert!(run("ip -6 route get fd00:64::7").contains("dev mesh0"));

    // Another MTU takes the place of the one before.
    for route in &routes {
        apply(&mut kernel, &Action::PutRoute { index, route: HostRoute { mtu: Some(1300), ..*route } });
    }
    let observed = observe(&mut kernel);
    assert_eq!(
        observed.host_routes,
        routes.iter().map(|route| HostRoute { mtu: Some(1300), ..*route }).collect()
    );
    for route in observed.host_routes {
        apply(&mut kernel, &Action::RemoveRoute { index, route });
        apply(&mut kernel, &Action::RemoveRoute { index, route });
    }
    for address in addresses {
        apply(&mut kernel, &Action::RemoveAddress { index, address });
        apply(&mut kernel, &Action::RemoveAddress { index, address });
    }
    let observed = observe(&mut kernel);
    assert!(observed.host_addresses.is_empty() && observed.host_routes.is_empty());
    apply(&mut kernel, &Action::DeleteLink { name: host_leg().name, index });
    assert!(observe(&mut kernel).links.is_empty());
}

#[test]
fn switches_are_seen_and_turned_on() {
    become_host();
    let mut kernel = kernel();
    run("echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding");
    // A namespace has no limits of neighbours: they are the machine's.
    let neighbours = BTreeSet::from([Sysctl::Ipv4Neighbours, Sysctl::Ipv6Neighbours]);
    assert_eq!(observe(&mut kernel).sysctls, neighbours);
    for sysctl in [Sysctl::Ipv4Forwarding, Sysctl::Ipv6Forwarding] {
        apply(&mut kernel, &Action::SetSysctl(sysctl));
        assert!(observe(&mut kernel).sysctls.contains(&sysctl));
    }
    assert_eq!(run("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"), "1\n1\n");
}

#[test]
fn a_subnet_is_unreachable_until_a_route_of_anybodys_leads_there() {
    become_host();
    run("ip route add default via 192.168.77.1 && ip -6 route add default dev eth0");
    let mut kernel = kernel();
    let subnets = ["10.64.0.0/20", "fd00:64::/64"].map(|subnet| subnet.parse::<Prefix>().unwrap());
    for subnet in subnets {
        apply(&mut kernel, &Action::PutUnreachable { subnet });
        apply(&mut kernel, &Action::PutUnreachable { subnet });
    }
    assert_eq!(observe(&mut kernel).unreachable, subnets.into());
    let way = |to: &str| run(&format!("ip route get {to} 2>&1 || true"));
    assert!(way("10.64.0.5").contains("No route to host"), "{}", way("10.64.0.5"));
    assert!(way("fd00:64::5").contains("No route to host"), "{}", way("fd00:64::5"));
    assert!(way("10.64.16.5").contains("dev eth0"), "{}", way("10.64.16.5"));
    run("ip route add 10.64.0.0/20 dev wire");
    assert!(way("10.64.0.5").contains("dev wire"), "{}", way("10.64.0.5"));
    for subnet in subnets {
        apply(&mut kernel, &Action::RemoveUnreachable { subnet });
        apply(&mut kernel, &Action::RemoveUnreachable { subnet });
    }
    assert!(observe(&mut kernel).unreachable.is_empty());
    assert!(way("10.64.0.5").contains("dev wire"), "others' routes stay");
}
