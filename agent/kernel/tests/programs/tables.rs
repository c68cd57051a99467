//! The service tables.

use std::collections::BTreeMap;

use mesh_ebpf_types::{
    Address, Backend, EndpointKey, LOCAL, Published, PublishedKey, SCHEMA, Service, TableEntry, TableKey,
};
use mesh_kernel::programs::{Datapath, MapSizes, Options, Programs, ProgramsError};

use crate::support::{Instance, VNI, bpffs_dir, entries, v4};

fn tables(count: u32) -> BTreeMap<TableKey, TableEntry> {
    let address = |number: u32| Address::from_v4((0x0A40_0000 | number).to_be_bytes());
    let of_number = |number| {
        let key = EndpointKey { vni: VNI, address: address(number) };
        let port = u16::try_from(number).expect("small").to_be_bytes();
        let published = PublishedKey { port, protocol: 6, ..PublishedKey::default() };
        let backend =
            Backend { vni: VNI, node: v4(9), flags: LOCAL, ipv4: [10, 64, 0, 5], ..Backend::default() };
        [
            TableEntry::Service(key, Service { first: number, size: 1, flags: 0 }),
            TableEntry::Published(published, Published { first: number, size: 1, ..Published::default() }),
            TableEntry::Backend(number, backend),
            TableEntry::BackendAddress(key),
        ]
    };
    (1..=count).flat_map(of_number).map(|entry| (entry.key(), entry)).collect()
}

#[test]
fn thousands_of_entries_are_written_found_by_the_next_process_and_removed() {
    let mut node = Instance::load();
    let wanted = tables(5000);
    let all: Vec<_> = wanted.values().copied().collect();
    node.datapath.put_tables(&all).expect("written");
    assert_eq!(node.datapath.tables().expect("read"), wanted);
    let mut next = Datapath::new(Options::new(&node.dir));
    assert_eq!(next.tables().expect("read before loading"), wanted);
    assert!(matches!(next.put_tables(&all), Err(ProgramsError::NotLoaded)));

    let (gone, left): (BTreeMap<_, _>, BTreeMap<_, _>) =
        wanted.into_iter().partition(|(key, _)| matches!(key, TableKey::Backend(_)));
    let gone: Vec<_> = gone.into_keys().collect();
    node.datapath.delete_tables(&gone).expect("removed");
    node.datapath.delete_tables(&gone).expect("what is not there is no error");
    assert_eq!(node.datapath.tables().expect("read"), left);
}

#[test]
fn ordinary_passes_do_not_read_the_service_tables() {
    let mut node = Instance::configured();
    let all: Vec<_> = tables(3).into_values().collect();
    node.datapath.put_tables(&all).expect("written");
    assert_eq!(node.datapath.observe().expect("observed").entries.len(), entries().len());
}

#[test]
fn tables_of_backends_are_written_through_memory() {
    let mut node = Instance::load();
    assert_eq!(node.datapath.backend_tables_size().expect("a size"), 1 << 21);
    let backends: Vec<u32> = (1..=251).collect();
    node.datapath.write_backend_tables(1000, &backends).expect("written");
    assert_eq!(node.datapath.read_backend_tables(1000, 251).expect("read"), backends);
    assert_eq!(node.datapath.read_backend_tables(999, 2).expect("read"), [0, 1]);
    let mut options = Options::new(&node.dir);
    (options.sizes.backend_tables, options.sizes.connections) = (4096, 1024);
    let mut next = Datapath::new(options);
    next.load().expect("loaded");
    let kept = (next.backend_tables_size().expect("a size"), next.connections_size().expect("a size"));
    assert_eq!(kept, (1 << 21, 131_072));
    assert_eq!(next.read_backend_tables(1000, 251).expect("read"), backends);
    let past = node.datapath.write_backend_tables((1 << 21) - 1, &[1, 2]);
    assert!(matches!(past, Err(ProgramsError::TableFull { map: "BACKEND_TABLES" })), "{past:?}");
    assert!(node.datapath.read_backend_tables(1 << 21, 1).is_err());
}

#[test]
fn a_map_that_was_pinned_under_its_former_name_is_adopted() {
    let mut node = Instance::load();
    node.datapath.write_backend_tables(1000, &[7, 8]).expect("written");
    let all = tables(3);
    node.datapath.put_tables(&all.values().copied().collect::<Vec<_>>()).expect("written");
    let maps = node.dir.join(format!("v{SCHEMA}/maps"));
    std::fs::rename(maps.join("BACKEND_TABLES"), maps.join("MAGLEV")).expect("renamed");

    let mut next = Datapath::new(Options::new(&node.dir));
    next.observe().expect("observed");
    assert_eq!(next.tables().expect("read before programs are loaded"), all);
    next.load().expect("loaded");
    assert_eq!(next.read_backend_tables(1000, 2).expect("read"), [7, 8]);
    assert!(!maps.join("MAGLEV").exists());
}

#[test]
fn tables_of_backends_may_begin_and_end_anywhere() {
    let mut node = Instance::load();
    let last = (1 << 21) - 1;
    for (first, backends) in [(0, vec![1]), (1023, vec![2, 3]), (2048, vec![4; 1024]), (last, vec![5])] {
        let size = u32::try_from(backends.len()).expect("small");
        node.datapath.write_backend_tables(first, &backends).expect("written");
        assert_eq!(node.datapath.read_backend_tables(first, size).expect("read"), backends, "from {first}");
    }
    assert_eq!(node.datapath.read_backend_tables(2046, 3).expect("read"), [0, 0, 4]);
    assert_eq!(node.datapath.read_backend_tables(3071, 2).expect("read"), [4, 0]);
}

#[test]
fn tables_of_backends_do_not_stay_in_the_memory_of_this_process() {
    let mut node = Instance::load();
    let backends = vec![1; 1 << 20];
    node.datapath.write_backend_tables(0, &backends).expect("written");
    assert_eq!(node.datapath.read_backend_tables(0, 1 << 20).expect("read"), backends);
    let maps = std::fs::read_to_string("/proc/self/maps").expect("this process's mappings");
    let size = |line: &str| {
        let (begin, end) = line.split_once(' ')?.0.split_once('-')?;
        Some(u64::from_str_radix(end, 16).ok()? - u64::from_str_radix(begin, 16).ok()?)
    };
    let sizes = maps.lines().filter(|line| line.contains("bpf-map")).map(|line| size(line).expect("a range"));
    // Tests beside this one, in the same process, may be at smaller tables.
    assert_eq!(sizes.filter(|size| *size >= 1 << 20).collect::<Vec<_>>(), Vec::<u64>::new());
}

#[test]
fn a_full_table_is_an_error() {
    let dir = bpffs_dir();
    let sizes = MapSizes { backends: 4, ..MapSizes::default() };
    let mut datapath = Datapath::new(Options { sizes, ..Options::new(dir) });
    datapath.load().expect("loaded");
    let all: Vec<_> = tables(40).into_values().collect();
    let full = datapath.put_tables(&all);
    assert!(matches!(full, Err(ProgramsError::TableFull { .. })), "{full:?}");
    datapath.unload().expect("unloaded");
}
