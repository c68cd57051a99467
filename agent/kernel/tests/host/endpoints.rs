//! Endpoints' devices, on the host and inside their containers.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mesh_kernel::{Kernel, KernelError, netns};
use mesh_model::endpoint::NetnsRef;
use mesh_model::observed::{InterfaceAddress, LinkKind};
use mesh_model::plan::{EndpointDevice, outer_mtu};
use mesh_model::{Action, naming};

use crate::support::{Container, apply, become_host, kernel, observe, run};

const INDEX: u32 = naming::FIRST_ENDPOINT_INDEX + 5;

fn device(container: &Container) -> EndpointDevice {
    let address =
        |address: &str, prefix_len| InterfaceAddress { address: address.parse().unwrap(), prefix_len };
    EndpointDevice {
        name: "mesh01ab23cd".parse().unwrap(),
        index: INDEX,
        netns: container.netns(),
        ifname: "eth0".parse().unwrap(),
        mac: "02:42:0a:40:00:05".parse().unwrap(),
        mtu: 1450,
        burst: Some(60_000),
        addresses: vec![address("10.64.0.5", 20), address("fd00:64::5", 64)],
        on_link: vec!["10.65.0.0/24".parse().unwrap()],
        gateways: vec!["10.64.0.1".parse().unwrap(), "fd00:64::1".parse().unwrap()],
        internal: false,
    }
}

#[test]
fn an_endpoint_is_ready_inside_and_down_outside() {
    become_host();
    let container = Container::new();
    let mut kernel = kernel();
    apply(&mut kernel, &Action::CreateEndpoint(device(&container)));

    let observed = observe(&mut kernel);
    let link = &observed.links[&device(&container).name];
    let LinkKind::Veth { peer, peer_is_here: false } = link.kind else { panic!("{link:?}") };
    assert_eq!((link.index, link.mtu, link.up), (INDEX, outer_mtu(1450), false));
    let inside = container.ip("-o link show eth0");
    assert!(inside.contains(&format!("{peer}: eth0@")) && inside.contains("mtu 1450"), "{inside}");
    assert!(inside.contains("02:42:0a:40:00:05") && inside.contains(",UP"), "{inside}");
    let addresses = container.ip("-o address show dev eth0");
    assert!(addresses.contains("10.64.0.5/20") && addresses.contains("fd00:64::5/64"), "{addresses}");
    assert!(!addresses.contains("tentative fd00") && !addresses.contains("dadfailed"), "{addresses}");
    let routes = container.ip("route") + &container.ip("-6 route");
    for route in
        ["default via 10.64.0.1 dev eth0", "10.65.0.0/24 dev eth0", "default via fd00:64::1 dev eth0"]
    {
        assert!(routes.contains(route), "{route} in {routes}");
    }
    assert!(netns::find(&container.netns().path).unwrap().1.contains(&device(&container).ifname));
}

#[test]
fn once_an_endpoint_is_up_what_it_sends_arrives() {
    become_host();
    let container = Container::new();
    let mut kernel = kernel();
    apply(&mut kernel, &Action::CreateEndpoint(device(&container)));
    run("ip address add 10.64.0.1/20 dev mesh01ab23cd");
    apply(&mut kernel, &Action::SetUp { index: INDEX });
    // One ping, and no second chance: the carrier must be there.
    run(&format!("nsenter --net=/run/netns/{} ping -c 1 -W 1 10.64.0.1", container.name));
    // On the host's end nothing speaks by itself.
    assert!(!run("ip address show dev mesh01ab23cd").contains("fe80"));
}

#[test]
fn the_mtu_changes_at_both_ends() {
    become_host();
    let container = Container::new();
    let mut kernel = kernel();
    apply(&mut kernel, &Action::CreateEndpoint(device(&container)));
    let LinkKind::Veth { peer, .. } = observe(&mut kernel).links[&device(&container).name].kind else {
        panic!()
    };
    assert!(container.ip("-d link show eth0").contains("gso_max_size 60000"));
    let netns = container.netns();
    apply(&mut kernel, &Action::SetEndpointMtu { index: INDEX, peer, netns, mtu: 1350, burst: Some(50_000) });
    assert_eq!(observe(&mut kernel).links[&device(&container).name].mtu, outer_mtu(1350));
    let shown = container.ip("-d link show eth0");
    assert!(shown.contains("mtu 1350") && shown.contains("gso_max_size 50000"), "{shown}");
}

#[test]
fn ipv6_is_turned_on_in_a_container_that_had_it_off() {
    become_host();
    let container = Container::new();
    run(&format!(
        "nsenter --net=/run/netns/{} sh -c 'echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6'",
        container.name
    ));
    let mut kernel = kernel();
    apply(&mut kernel, &Action::CreateEndpoint(device(&container)));
    assert!(container.ip("-6 address show dev eth0").contains("fd00:64::5/64"));
}

#[test]
fn a_containers_first_default_route_leads_until_it_goes_and_then_the_next_does() {
    become_host();
    let container = Container::new();
    container.ip("link add own0 type veth peer name own1");
    container.ip("link set own0 up");
    container.ip("address add 172.20.0.2/24 dev own0");
    container.ip("route add default via 172.20.0.1");
    let mut kernel = kernel();
    apply(&mut kernel, &Action::CreateEndpoint(device(&container)));
    let second = EndpointDevice {
        name: "mesh0000002a".parse().unwrap(),
        index: INDEX + 1,
        ifname: "eth1".parse().unwrap(),
        addresses: vec![InterfaceAddress { address: "10.66.0.5".parse().unwrap(), prefix_len: 24 }],
        on_link: vec![],
        gateways: vec!["10.66.0.1".parse().unwrap()],
        ..device(&container)
    };
    let internal = EndpointDevice {
        name: "mesh0000002b".parse().unwrap(),
        index: INDEX + 2,
        ifname: "eth2".parse().unwrap(),
        addresses: vec![InterfaceAddress { address: "10.67.0.5".parse().unwrap(), prefix_len: 24 }],
        on_link: vec![],
        gateways: vec!["10.67.0.1".parse().unwrap()],
        internal: true,
        ..device(&container)
    };
    apply(&mut kernel, &Action::CreateEndpoint(internal));
    apply(&mut kernel, &Action::CreateEndpoint(second));
    let way_out = || container.ip("route get 192.0.2.1");
    assert!(way_out().contains("via 172.20.0.1 dev own0"), "{}", way_out());
    container.ip("route delete default via 172.20.0.1");
    assert!(way_out().contains("via 10.64.0.1 dev eth0"), "{}", way_out());
    apply(&mut kernel, &Action::DeleteLink { name: device(&container).name, index: INDEX });
    assert!(way_out().contains("via 10.66.0.1 dev eth1"), "{}", way_out());
    container.ip("link delete eth1");
    assert!(way_out().contains("via 10.67.0.1 dev eth2"), "{}", way_out());
}

#[test]
fn a_taken_name_inside_is_told_and_a_free_one_is_found() {
    become_host();
    let container = Container::new();
    container.ip("link add eth0 type bridge");
    let mut kernel = kernel();
    let error = kernel.apply(&Action::CreateEndpoint(device(&container))).unwrap_err();
    assert!(
        matches!(&error, KernelError::IfnameTaken { ifname, .. } if ifname.as_str() == "eth0"),
        "{error:?}"
    );
    assert!(error.hint().unwrap().contains("--ifname"));
    assert!(observe(&mut kernel).links.is_empty());

    let free = netns::free_ifname(&netns::find(&container.netns().path).unwrap().1);
    assert_eq!(free.as_str(), "eth1");
    apply(&mut kernel, &Action::CreateEndpoint(EndpointDevice { ifname: free, ..device(&container) }));
    assert!(container.ip("address show dev eth1").contains("10.64.0.5/20"));
}

#[test]
fn a_failure_midway_leaves_nothing_on_either_side() {
    become_host();
    let container = Container::new();
    let mut kernel = kernel();
    let gateways = vec!["172.16.0.1".parse().unwrap()];
    let error =
        kernel.apply(&Action::CreateEndpoint(EndpointDevice { gateways, ..device(&container) })).unwrap_err();
    assert!(error.to_string().contains("172.16.0.1"), "{error}");
    assert!(observe(&mut kernel).links.is_empty());
    assert!(!container.ip("link").contains("eth0"));
    // And so the same endpoint can be made right after.
    apply(&mut kernel, &Action::CreateEndpoint(device(&container)));
}

#[test]
fn a_namespace_that_is_gone_or_replaced_is_told() {
    become_host();
    let container = Container::new();
    let mut kernel = kernel();
    let netns = NetnsRef { inode: container.netns().inode + 1, ..container.netns() };
    let error =
        kernel.apply(&Action::CreateEndpoint(EndpointDevice { netns, ..device(&container) })).unwrap_err();
    assert!(matches!(&error, KernelError::NamespaceGone { source: None, .. }), "{error:?}");
    // The number of a namespace's inode may be that of an earlier one; its cookie may not.
    let netns = NetnsRef { cookie: container.netns().cookie + 1, ..container.netns() };
    let error =
        kernel.apply(&Action::CreateEndpoint(EndpointDevice { netns, ..device(&container) })).unwrap_err();
    assert!(matches!(&error, KernelError::NamespaceGone { source: None, .. }), "{error:?}");
    let netns = NetnsRef { path: PathBuf::from("/run/netns/mt-nowhere"), inode: 1, cookie: 1 };
    let error =
        kernel.apply(&Action::CreateEndpoint(EndpointDevice { netns, ..device(&container) })).unwrap_err();
    assert!(matches!(&error, KernelError::NamespaceGone { source: Some(_), .. }), "{error:?}");
    assert!(observe(&mut kernel).links.is_empty());
}

#[test]
fn only_network_namespaces_are_identified() {
    let container = Container::new();
    let inode = std::fs::metadata(container.netns().path).unwrap().ino();
    assert_eq!(netns::find(&container.netns().path).unwrap().0.inode, inode);
    assert!(matches!(
        netns::find(Path::new("/run/netns/mt-nowhere")),
        Err(KernelError::NamespaceGone { .. })
    ));
    assert!(matches!(netns::find(Path::new("/etc/passwd")), Err(KernelError::NoNamespace { .. })));
    assert!(matches!(netns::find(Path::new("/proc/self/ns/mnt")), Err(KernelError::NoNamespace { .. })));
    // A container that shares the host's namespace would have the host rewired.
    let own = format!("/proc/{}/ns/net", std::process::id());
    assert!(matches!(netns::find(Path::new(&own)), Err(KernelError::OwnNamespace { .. })));
    assert_eq!(netns::find(&container.netns().path).unwrap().0, container.netns());
}
