//! The layouts that kernel and user space share. A failure here means that `SCHEMA` must change.

use std::mem::{offset_of, size_of};

use mesh_ebpf_types::{
    Address, Allowance, Backend, Block, Config, Connection, ConnectionKey, Counter, CounterKey, Endpoint,
    EndpointKey, Event, Interface, Mac, Member, Network, PathKey, Published, PublishedKey, Service,
    ServiceKey, SocketPeer, Vni,
};

#[test]
fn sizes_are_those_of_the_schema() {
    let sizes = [
        size_of::<Address>(),
        size_of::<Mac>(),
        size_of::<Vni>(),
        size_of::<Config>(),
        size_of::<Network>(),
        size_of::<Interface>(),
        size_of::<EndpointKey>(),
        size_of::<Endpoint>(),
        size_of::<Block>(),
        size_of::<Member>(),
        size_of::<CounterKey>(),
        size_of::<Counter>(),
        size_of::<Event>(),
        size_of::<ServiceKey>(),
        size_of::<Service>(),
        size_of::<PublishedKey>(),
        size_of::<Published>(),
        size_of::<Backend>(),
        size_of::<ConnectionKey>(),
        size_of::<Connection>(),
        size_of::<SocketPeer>(),
        size_of::<PathKey>(),
    ];
    assert_eq!(sizes, [16, 6, 4, 52, 20, 32, 20, 12, 24, 4, 8, 16, 88, 20, 12, 20, 20, 44, 40, 32, 16, 20]);
}

#[test]
fn no_type_has_a_gap_between_its_fields() {
    assert_eq!(offset_of!(Config, underlay_ifindex), 16);
    assert_eq!(offset_of!(Config, underlay_mtu), 28);
    assert_eq!(offset_of!(Config, host_mac), 32);
    assert_eq!(offset_of!(Config, vxlan_port), 38);
    assert_eq!(offset_of!(Config, encapsulation), 40);
    assert_eq!(offset_of!(Config, flags), 41);
    assert_eq!(offset_of!(Config, wireguard_peer), 42);
    assert_eq!(offset_of!(Config, wireguard_ifindex), 44);
    assert_eq!(offset_of!(Config, padding), 50);
    assert_eq!(offset_of!(PathKey, kind), 16);
    assert_eq!(offset_of!(Network, mtu), 4);
    assert_eq!(offset_of!(Network, prefix6), 8);
    assert_eq!(offset_of!(Interface, ipv4), 4);
    assert_eq!(offset_of!(Interface, ipv6), 8);
    assert_eq!(offset_of!(Interface, mac), 24);
    assert_eq!(offset_of!(Interface, flags), 30);
    assert_eq!(offset_of!(EndpointKey, address), 4);
    assert_eq!(offset_of!(Endpoint, mac), 4);
    assert_eq!(offset_of!(Endpoint, flags), 10);
    assert_eq!(offset_of!(Block, kind), 16);
    assert_eq!(offset_of!(Block, peer), 20);
    assert_eq!(offset_of!(Block, padding), 22);
    assert_eq!(offset_of!(CounterKey, reason), 4);
    assert_eq!(offset_of!(Counter, bytes), 8);
    assert_eq!(offset_of!(Event, vni), 8);
    assert_eq!(offset_of!(Event, reason), 12);
    assert_eq!(offset_of!(Event, ifindex), 16);
    assert_eq!(offset_of!(Event, length), 20);
    assert_eq!(offset_of!(Event, header), 24);
    assert_eq!(offset_of!(Service, flags), 8);
    assert_eq!(offset_of!(PublishedKey, port), 16);
    assert_eq!(offset_of!(PublishedKey, padding), 19);
    assert_eq!(offset_of!(Published, target), 16);
    assert_eq!(offset_of!(Published, padding), 18);
    assert_eq!(offset_of!(Backend, ipv6), 8);
    assert_eq!(offset_of!(Backend, node), 24);
    assert_eq!(offset_of!(Backend, flags), 40);
    assert_eq!(offset_of!(Backend, peer), 42);
    assert_eq!(offset_of!(ConnectionKey, ports), 32);
    assert_eq!(offset_of!(ConnectionKey, vni), 37);
    assert_eq!(offset_of!(Connection, backend), 16);
    assert_eq!(offset_of!(Connection, node), 20);
    assert_eq!(offset_of!(Connection, port), 24);
    assert_eq!(offset_of!(Connection, state), 27);
    assert_eq!(offset_of!(Connection, client_port), 28);
    assert_eq!(offset_of!(Connection, used), 30);
    assert_eq!((offset_of!(Allowance, refused), size_of::<Allowance>()), (8, 16));
}
