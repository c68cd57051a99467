//! The array of the services' tables grows while programs use it.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use mesh_ebpf_types::{EndpointKey, ProgramKind, Service, TableEntry};
use mesh_kernel::programs::{AttachedProgram, Attachment, Datapath, Options, Programs};

use crate::hosts::{Setup, succeed};
use crate::services::{SECOND, VIP_SECOND, hosts};
use crate::support::{Instance, VNI, v4};
use crate::traffic::{Server, TRANSFER};

/// Entries of the array as it is made, and of a larger one.
const SIZE: u32 = 1 << 21;
const LARGER: u32 = 1 << 22;

#[test]
fn a_larger_array_holds_what_the_smaller_one_did_and_all_programs_use_it() {
    let mut node = Instance::load();
    let device = ["link", "add", "a0", "type", "veth", "peer", "name", "a1"];
    succeed(&Command::new("ip").args(device).output().expect("ip"));
    let ifindex = nix::net::if_::if_nametoindex("a0").expect("an index");
    let attachments = [ProgramKind::Endpoint, ProgramKind::Host].map(|kind| Attachment { ifindex, kind });
    for attachment in attachments {
        node.datapath.attach(attachment).expect("attached");
    }
    node.datapath.attach_xdp(ifindex).expect("attached");
    node.datapath.attach_sockets().expect("attached");
    let content: Vec<u32> = (0..SIZE).collect();
    node.datapath.write_backend_tables(0, &content).expect("written");

    node.datapath.reserve_backend_tables(LARGER).expect("made larger");
    assert_eq!(node.datapath.backend_tables_size().expect("a size"), LARGER);
    assert!(node.datapath.read_backend_tables(0, SIZE).expect("read") == content);
    node.datapath.write_backend_tables(LARGER - 1, &[7]).expect("written");
    let current = attachments.map(|attachment| (attachment, AttachedProgram::Current));
    assert_eq!(node.datapath.observe().expect("observed").attachments, current.into());
    let current = AttachedProgram::Current;
    assert_eq!(node.datapath.sockets().expect("asked"), Some(current));
    assert_eq!(node.datapath.xdp().expect("asked"), BTreeMap::from([(ifindex, current)]));

    node.datapath.reserve_backend_tables(SIZE).expect("there is room");
    let mut next = Datapath::new(Options::new(&node.dir));
    next.reserve_backend_tables(LARGER * 2).expect("remembered until programs are loaded");
    next.load().expect("loaded");
    assert_eq!(next.backend_tables_size().expect("a size"), LARGER, "what is there is adopted");
    assert_eq!(next.read_backend_tables(LARGER - 1, 1).expect("read"), [7]);
    next.reserve_backend_tables(0).expect("made larger");
    assert_eq!(next.backend_tables_size().expect("a size"), LARGER * 2, "as was asked before");
}

#[test]
fn the_array_grows_under_traffic_and_tables_in_its_new_part_are_used() {
    let mut hosts = hosts(Setup::default());
    let _server = Server::start(&hosts.hosts[1].container);
    let ping = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", hosts.hosts[0].container))
        .args(["ping", "-q", "-i", "0.002", "-c", "1000", "-W", "1", VIP_SECOND])
        .stdout(Stdio::piped())
        .spawn()
        .expect("ping");
    let moved = Service { first: LARGER - 16, size: 1, flags: 0 };
    let key = EndpointKey { vni: VNI, address: v4(41) };
    for host in &mut hosts.hosts {
        host.inside(|datapath| {
            datapath.reserve_backend_tables(LARGER).expect("made larger");
            datapath.write_backend_tables(LARGER - 16, &[SECOND]).expect("written");
            datapath.put_tables(&[TableEntry::Service(key, moved)]).expect("written");
        });
    }
    hosts.run(&["python3", "-c", TRANSFER, VIP_SECOND, "50"]);
    let report = succeed(&ping.wait_with_output().expect("the end of ping"));
    assert!(report.contains(" 1000 received"), "{report}");
    hosts.have_dropped_nothing();
}
