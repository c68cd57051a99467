//! Attaching, replacing and detaching.

use std::collections::BTreeMap;
use std::process::Stdio;

use aya::programs::links::PinnedLink;
use mesh_ebpf_types::{EARLY, ProgramKind, Reason, SCHEMA};
use mesh_kernel::programs::{
    AttachMethod, AttachedProgram, Attachment, Datapath, Options, Programs, ProgramsError,
};

use crate::hosts::{Hosts, Setup, succeed};
use crate::support::{Instance, VNI};

/// A device of the calling thread's namespace; returns its index.
fn device(name: &str, peer: &str) -> u32 {
    let arguments = ["link", "add", name, "type", "veth", "peer", "name", peer];
    succeed(&std::process::Command::new("ip").args(arguments).output().expect("ip"));
    nix::net::if_::if_nametoindex(name).expect("an index")
}

fn methods() -> [AttachMethod; 2] {
    [AttachMethod::Tcx, AttachMethod::Clsact]
}

fn instance(method: AttachMethod) -> Instance {
    let mut node = Instance::load();
    node.datapath = Datapath::new(Options { method, ..Options::new(&node.dir) });
    node.datapath.load().expect("loaded");
    node
}

#[test]
fn an_attachment_survives_the_process_and_is_replaced_by_the_next() {
    for method in methods() {
        let mut node = instance(method);
        let attachment = Attachment { ifindex: device("a0", "a1"), kind: ProgramKind::Endpoint };
        node.datapath.attach(attachment).expect("attached");
        let current = BTreeMap::from([(attachment, AttachedProgram::Current)]);
        let earlier = BTreeMap::from([(attachment, AttachedProgram::Earlier)]);
        assert_eq!(node.datapath.observe().expect("observed").attachments, current, "{method:?}");

        node.datapath = Datapath::new(Options { method, ..Options::new(&node.dir) });
        assert_eq!(node.datapath.observe().expect("observed").attachments, earlier, "{method:?}");
        node.datapath.load().expect("loaded");
        assert_eq!(node.datapath.observe().expect("observed").attachments, earlier, "{method:?}");
        node.datapath.attach(attachment).expect("replaced");
        assert_eq!(node.datapath.observe().expect("observed").attachments, current, "{method:?}");

        node.datapath.detach(attachment).expect("detached");
        node.datapath.detach(attachment).expect("what is not attached is no error");
        assert!(node.datapath.observe().expect("observed").attachments.is_empty(), "{method:?}");
    }
}

#[test]
fn the_pin_of_a_vanished_device_is_removed() {
    for method in methods() {
        let mut node = instance(method);
        let attachment = Attachment { ifindex: device("a0", "a1"), kind: ProgramKind::Endpoint };
        node.datapath.attach(attachment).expect("attached");
        succeed(&std::process::Command::new("ip").args(["link", "del", "a0"]).output().expect("ip"));
        assert!(node.datapath.observe().expect("observed").attachments.is_empty(), "{method:?}");
        assert_eq!(std::fs::read_dir(node.dir.join("links")).expect("links").count(), 0, "{method:?}");
        let refused = node.datapath.attach(attachment);
        assert!(matches!(refused, Err(ProgramsError::Attach { .. })), "{method:?}: {refused:?}");
    }
}

#[test]
fn a_filter_that_somebody_removed_is_seen_to_be_missing() {
    let mut node = instance(AttachMethod::of_kernel());
    let attachment = Attachment { ifindex: device("a0", "a1"), kind: ProgramKind::Endpoint };
    node.datapath.attach(attachment).expect("attached");
    let tc = std::process::Command::new("tc").args(["qdisc", "del", "dev", "a0", "clsact"]).output();
    succeed(&tc.expect("tc"));
    assert!(node.datapath.observe().expect("observed").attachments.is_empty());
    node.datapath.attach(attachment).expect("attached again");
    assert_eq!(node.datapath.observe().expect("observed").attachments.len(), 1);
}

#[test]
fn many_attachments_are_seen_with_their_programs() {
    let mut node = instance(AttachMethod::of_kernel());
    let attachments: Vec<Attachment> = (0..40)
        .map(|n| device(&format!("a{n}"), &format!("b{n}")))
        .map(|ifindex| Attachment { ifindex, kind: ProgramKind::Endpoint })
        .collect();
    for attachment in &attachments {
        node.datapath.attach(*attachment).expect("attached");
    }
    succeed(&std::process::Command::new("ip").args(["link", "del", "a7"]).output().expect("ip"));
    let observed = node.datapath.observe().expect("observed").attachments;
    let left: BTreeMap<Attachment, AttachedProgram> =
        attachments.iter().map(|attachment| (*attachment, AttachedProgram::Current)).collect();
    let left = left.into_iter().filter(|(attachment, _)| *attachment != attachments[7]).collect();
    assert_eq!(observed, left);
}

#[test]
fn unloading_detaches() {
    for method in methods() {
        let mut node = instance(method);
        let ifindex = device("a0", "a1");
        node.datapath.attach(Attachment { ifindex, kind: ProgramKind::Endpoint }).expect("attached");
        node.datapath.attach(Attachment { ifindex, kind: ProgramKind::Host }).expect("attached");
        node.datapath.unload().expect("unloaded");
        let shown = shown_programs("a0");
        assert!(!shown.contains("endpoint") && !shown.contains("host"), "{method:?}: {shown}");
    }
}

#[test]
fn replacing_the_programs_under_traffic_loses_no_packet() {
    for method in methods() {
        let mut hosts = Hosts::new(Setup { method, ..Setup::default() });
        let ping = std::process::Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", hosts.hosts[0].container))
            .args(["ping", "-q", "-i", "0.002", "-c", "1000", "-W", "1", "10.64.0.70"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("ping");
        for host in &mut hosts.hosts {
            host.inside(|datapath| {
                let attachments = datapath.observe().expect("observed").attachments;
                assert_eq!(attachments.len(), 4);
                datapath.load().expect("loaded anew");
                for attachment in attachments.into_keys() {
                    datapath.attach(attachment).expect("replaced");
                }
                let observed = datapath.observe().expect("observed").attachments;
                assert!(observed.values().all(|program| *program == AttachedProgram::Current));
            });
        }
        let report = succeed(&ping.wait_with_output().expect("the end of ping"));
        assert!(report.contains(" 1000 received"), "{method:?}: {report}");
        assert!(hosts.hosts[1].counter(VNI, Reason::Received) >= 1000, "{method:?}");
    }
}

#[test]
fn the_xdp_program_survives_the_process_and_is_replaced_by_the_next() {
    let mut node = Instance::load();
    let ifindex = device("a0", "a1");
    node.datapath.attach_xdp(ifindex).expect("attached");
    let attached = |state| BTreeMap::from([(ifindex, state)]);
    assert_eq!(node.datapath.xdp().expect("asked"), attached(AttachedProgram::Current));

    node.datapath = Datapath::new(Options::new(&node.dir));
    assert_eq!(node.datapath.xdp().expect("asked").len(), 1);
    assert!(matches!(node.datapath.attach_xdp(ifindex), Err(ProgramsError::NotLoaded)));
    node.datapath.load().expect("loaded");
    assert_eq!(node.datapath.xdp().expect("asked"), attached(AttachedProgram::Earlier));
    node.datapath.attach_xdp(ifindex).expect("replaced");
    assert_eq!(node.datapath.xdp().expect("asked"), attached(AttachedProgram::Current));
    assert!(runs_xdp("a0"));

    node.datapath.detach_xdp(ifindex).expect("detached");
    node.datapath.detach_xdp(ifindex).expect("what is not attached is no error");
    assert!(node.datapath.xdp().expect("asked").is_empty() && !runs_xdp("a0"));
    node.datapath.attach_xdp(ifindex).expect("attached again");
    node.datapath.unload().expect("unloaded");
    assert!(!runs_xdp("a0"));
}

#[test]
fn what_is_detached_runs_no_more_though_somebody_holds_its_link() {
    let mut node = instance(AttachMethod::Tcx);
    let ifindex = device("a0", "a1");
    let attachment = Attachment { ifindex, kind: ProgramKind::Endpoint };
    node.datapath.attach(attachment).expect("attached");
    node.datapath.attach_xdp(ifindex).expect("attached");
    let link = |pin: &str| PinnedLink::from_pin(node.dir.join(pin)).expect("held");
    let held = [link(&format!("links/endpoint-{ifindex}")), link(&format!("xdp/{ifindex}"))];
    assert!(shown_programs("a0").contains("endpoint") && runs_xdp("a0"));

    node.datapath.detach(attachment).expect("detached");
    node.datapath.detach_xdp(ifindex).expect("detached");
    assert!(!shown_programs("a0").contains("endpoint") && !runs_xdp("a0"));
    node.datapath.attach_xdp(ifindex).expect("the driver is free");
    drop(held);
}

#[test]
fn the_xdp_program_of_a_vanished_device_is_forgotten() {
    let mut node = Instance::load();
    let ifindex = device("a0", "a1");
    node.datapath.attach_xdp(ifindex).expect("attached");
    ip(&["link", "del", "a0"]);
    assert!(node.datapath.xdp().expect("asked").is_empty());
    assert_eq!(std::fs::read_dir(node.dir.join("xdp")).expect("links").count(), 0);
    assert!(matches!(node.datapath.attach_xdp(ifindex), Err(ProgramsError::Xdp { .. })));
}

#[test]
fn another_xdp_program_and_a_driver_without_any_are_refused_in_ways_that_tell_them_apart() {
    let mut node = Instance::load();
    let mut other = Instance::load();
    let ifindex = device("a0", "a1");
    let refusal = |result| match result {
        Err(ProgramsError::Xdp { source, .. }) => source.kind(),
        result => panic!("{result:?}"),
    };
    node.datapath.attach_xdp(ifindex).expect("attached");
    assert_eq!(refusal(other.datapath.attach_xdp(ifindex)), std::io::ErrorKind::ResourceBusy);
    node.datapath.detach_xdp(ifindex).expect("detached");
    let pin = node.dir.join(format!("v{SCHEMA}/programs/{EARLY}"));
    for mode in ["xdpgeneric", "xdpdrv"] {
        ip(&["link", "set", "dev", "a0", mode, "pinned", pin.to_str().expect("text")]);
        let kind = refusal(other.datapath.attach_xdp(ifindex));
        assert!(
            matches!(kind, std::io::ErrorKind::ResourceBusy | std::io::ErrorKind::AlreadyExists),
            "{mode}: {kind:?}"
        );
        assert!(runs_xdp("a0"), "the other one's stays");
        ip(&["link", "set", "dev", "a0", mode, "off"]);
    }
    assert_eq!(refusal(other.datapath.attach_xdp(1)), std::io::ErrorKind::Unsupported, "the loopback");
}

fn ip(arguments: &[&str]) -> String {
    succeed(&std::process::Command::new("ip").args(arguments).output().expect("ip"))
}

fn shown_programs(device: &str) -> String {
    let shown = std::process::Command::new("bpftool").args(["-j", "net", "show", "dev", device]).output();
    succeed(&shown.expect("bpftool"))
}

fn runs_xdp(device: &str) -> bool {
    ip(&["link", "show", "dev", device]).contains("xdp")
}
