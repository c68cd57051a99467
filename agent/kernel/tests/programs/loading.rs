//! Loading, pinning and adopting.

use mesh_ebpf_types::{Address, Config, MapEntry, MapKey, Member, ProgramKind};
use mesh_kernel::programs::{Datapath, MapSizes, ObservedPrograms, Options, Pins, Programs, ProgramsError};

use crate::support::{Instance, REMOTE, bpffs_dir, config, entries};

#[test]
fn what_is_put_is_observed_and_what_is_deleted_is_gone() {
    let mut node = Instance::configured();
    let mut expected: Vec<_> = entries();
    expected.sort();
    let observed = node.datapath.observe().expect("observed");
    assert_eq!(observed.pins, Pins::Current);
    let mut found: Vec<_> = observed.entries.into_values().collect();
    found.sort();
    assert_eq!(found, expected);
    for entry in &expected {
        node.datapath.delete(&entry.key()).expect("deleted");
        node.datapath.delete(&entry.key()).expect("what is not there is no error");
    }
    assert!(node.datapath.observe().expect("observed").entries.is_empty());
}

#[test]
fn the_next_process_adopts_the_maps_with_what_is_in_them() {
    let mut node = Instance::configured();
    let before = node.datapath.observe().expect("observed");
    let mut next = Datapath::new(Options::new(&node.dir));
    let found = next.observe().expect("observed before loading");
    assert_eq!((found.pins, &found.entries), (Pins::Earlier, &before.entries));
    assert!(matches!(next.put(&MapEntry::Config(config())), Err(ProgramsError::NotLoaded)));
    next.load().expect("loaded");
    assert_eq!(next.observe().expect("observed"), before);
    // One set of maps: what one writes the other reads.
    next.put(&MapEntry::Config(Config { underlay_mtu: 9000, ..config() })).expect("put");
    let MapEntry::Config(seen) = node.datapath.observe().expect("observed").entries[&MapKey::Config] else {
        panic!("not the configuration")
    };
    assert_eq!(seen.underlay_mtu, 9000);
}

#[test]
fn maps_of_another_layout_are_replaced_not_adopted() {
    let mut node = Instance::configured();
    let maps = node.dir.join(format!("v{}/maps", mesh_ebpf_types::SCHEMA));
    std::fs::remove_file(maps.join("MEMBERS")).expect("removed");
    std::fs::rename(maps.join("INTERFACES"), maps.join("MEMBERS")).expect("renamed");
    let other = node.dir.join("v99/maps");
    std::fs::create_dir_all(&other).expect("another schema");
    node.datapath.load().expect("loaded");
    assert!(!other.exists());
    assert!(node.datapath.observe().expect("observed").entries.is_empty());
    for entry in entries() {
        node.put(entry);
    }
}

#[test]
fn nothing_is_pinned_before_loading_nor_after_unloading() {
    let dir = bpffs_dir();
    let mut datapath = Datapath::new(Options::new(&dir));
    assert_eq!(datapath.observe().expect("observed"), ObservedPrograms::default());
    datapath.load().expect("loaded");
    assert!(dir.exists());
    datapath.unload().expect("unloaded");
    assert!(!dir.exists());
    datapath.unload().expect("nothing left to unload");
    assert_eq!(datapath.observe().expect("observed"), ObservedPrograms::default());
    assert!(datapath.program(ProgramKind::Host).is_none());
}

#[test]
fn pins_that_somebody_removed_are_seen_as_such_and_made_anew() {
    let mut node = Instance::load();
    std::fs::remove_dir_all(&node.dir).expect("removed");
    assert_eq!(node.datapath.observe().expect("observed").pins, Pins::Absent);
    node.datapath.load().expect("loaded again");
    assert_eq!(node.datapath.observe().expect("observed").pins, Pins::Current);
}

#[test]
fn instances_side_by_side_share_nothing() {
    let mut one = Instance::load();
    let mut other = Instance::load();
    one.put(MapEntry::Member(Address::from_v4(REMOTE), Member::default()));
    assert!(other.datapath.observe().expect("observed").entries.is_empty());
}

#[test]
fn a_full_map_says_which_entry_has_no_room() {
    let dir = bpffs_dir();
    let sizes = MapSizes { nodes: 2, ..MapSizes::default() };
    let mut datapath = Datapath::new(Options { sizes, ..Options::new(dir) });
    datapath.load().expect("loaded");
    let member = |last| MapEntry::Member(Address::from_v4([192, 168, 77, last]), Member::default());
    let results: Vec<_> = (0..=64).map(|last| datapath.put(&member(last))).collect();
    let full = results.iter().find_map(|result| result.as_ref().err());
    assert!(matches!(full, Some(ProgramsError::MapFull { map: "MEMBERS", .. })), "{full:?}");
    datapath.unload().expect("unloaded");
}

#[test]
fn a_folder_that_is_not_on_bpffs_is_refused() {
    let mut datapath = Datapath::new(Options::new("/tmp/mt-not-bpffs"));
    assert!(matches!(datapath.load(), Err(ProgramsError::Mount { .. })));
    assert!(!std::path::Path::new("/tmp/mt-not-bpffs").exists());
}
