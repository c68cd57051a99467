//! Direct server return: replies of published ports leave by the backend's node, if all nodes reach
//! the client.

use mesh_ebpf_types::{
    Address, Backend, Config, DIRECT_RETURN, EndpointKey, LOCAL, Mac, MapEntry, ProgramKind, Published,
    PublishedKey, RETURNS_MAC, Reason, TableEntry, published_vni,
};
use mesh_kernel::programs::Programs;

use crate::support::{
    IFINDEX, Instance, LOCAL as HERE, REDIRECT, REMOTE, VNI, config, frame, ipv4, mac, udp, vxlan,
};

const UDP: u8 = 17;
const CLIENT: [u8; 4] = [172, 17, 0, 2];
/// The backends' numbers: on the other node, and the endpoint that sends.
const THERE: u32 = 7;
const SENDER: u32 = 5;

/// A node with direct server return. Port 8080 leads to the other node, 8081 to an endpoint here.
fn node(config: Config) -> Instance {
    let mut node = Instance::configured();
    let mut entries = Vec::new();
    for (first, number, port, last, at, flags) in
        [(0, THERE, 8080, 70, REMOTE, 0), (16, SENDER, 8081, 5, HERE, LOCAL)]
    {
        let ipv4 = [10, 64, 0, last];
        let backend = Backend { vni: VNI, ipv4, node: Address::from_v4(at), flags, ..Backend::default() };
        let address = EndpointKey { vni: VNI, address: Address::from_v4(ipv4) };
        let key = PublishedKey { port: u16::to_be_bytes(port), protocol: UDP, ..PublishedKey::default() };
        let target = u16::to_be_bytes(80);
        let value = Published { first, size: 1, vni: VNI, target, ..Published::default() };
        entries.extend([
            TableEntry::Backend(number, backend),
            TableEntry::BackendAddress(address),
            TableEntry::Published(key, value),
        ]);
        node.datapath.write_backend_tables(first, &[number]).expect("written");
    }
    node.datapath.put_tables(&entries).expect("written");
    node.put(MapEntry::Config(Config { flags: DIRECT_RETURN, ..config }));
    node
}

fn from_client(port: u16) -> Vec<u8> {
    let packet = ipv4(CLIENT, HERE, UDP, &udp(5000, port, b"some data"));
    frame(Mac([0; 6]), Mac([2, 0, 0, 0, 0, 3]), 0x0800, &packet)
}

#[test]
fn a_node_marks_packets_of_clients_that_are_not_at_its_data_path_interface() {
    let elsewhere = Config { underlay_ifindex: IFINDEX + 1, ..config() };
    for (config, kind, mac) in
        [(config(), ProgramKind::Underlay, Mac([0; 6])), (elsewhere, ProgramKind::Published, RETURNS_MAC)]
    {
        let mut node = node(config);
        let outcome = node.run(kind, &from_client(8080));
        outcome.is(REDIRECT, VNI, Reason::Published);
        assert_eq!(outcome.frame[26..34], [HERE, REMOTE].concat(), "outer addresses");
        assert_eq!(outcome.frame[50..62], [[0; 6], mac.0].concat(), "inner MACs");
    }
}

#[test]
fn replies_to_marked_packets_return_through_the_clients_node() {
    let request = ipv4(CLIENT, REMOTE, UDP, &udp(5000, 8081, b"some data"));
    let reply = ipv4([10, 64, 0, 5], CLIENT, UDP, &udp(80, 5000, b"some data"));
    let [a, b, c, d] = CLIENT;
    let reply = frame(Mac([2, 0x42, a, b, c, d]), mac(5), 0x0800, &reply);
    for (mac, is_marked) in [(Mac([0; 6]), false), (RETURNS_MAC, true), (Mac([2, 0, 0, 0, 0, 3]), false)] {
        let mut node = node(config());
        let request = vxlan(REMOTE, published_vni(SENDER), &frame(Mac([0; 6]), mac, 0x0800, &request));
        node.run(ProgramKind::Underlay, &request).is(REDIRECT, VNI, Reason::Received);
        let outcome = node.run(ProgramKind::Endpoint, &reply);
        outcome.is(REDIRECT, VNI, Reason::PublishedReply);
        let addresses = if is_marked { [HERE, REMOTE] } else { [REMOTE, CLIENT] };
        assert_eq!(outcome.frame[26..34], addresses.concat(), "{mac:?}");
    }
}
