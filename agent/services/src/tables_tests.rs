//! Many services, in an in-memory kernel.

use mesh_kernel::FakeKernel;
use mesh_kernel::programs::{TableEntry, TableKey};
use mesh_planner::services::Unreachable;
use mesh_state::fake::{backend, network, node, numbered_node, service};

use super::*;

const SERVICES: u32 = 2000;

/// Returns this many services, with this many backends each, at revision 3.
fn seen(services: u32, backends: u32) -> Inputs {
    let all: Vec<_> = (0..services).map(service).collect();
    let of = |(n, service)| (1..=backends).map(move |b| backend(service, n * backends + b));
    let backends = (0..).zip(&all).flat_map(of).collect();
    Inputs {
        revision: 3,
        loads: 1,
        services: ServiceRecords::new(all.clone(), backends),
        nodes: (1..4).map(|n| (numbered_node(n).id, numbered_node(n))).collect(),
        networks: BTreeMap::from([(network().id, network())]),
        down: BTreeSet::new(),
        healthy: Arc::default(),
        peers: BTreeMap::new(),
        unreachable: Unreachable::default(),
    }
}

fn kernel() -> SharedKernel {
    kernel_with_room(None)
}

/// Creates a kernel whose array of tables has at most this many entries.
fn kernel_with_room(limit: Option<u32>) -> SharedKernel {
    let mut kernel = FakeKernel::default();
    kernel.programs.backend_tables_limit = limit;
    kernel.programs().load().unwrap();
    SharedKernel::new(Box::new(kernel))
}

/// Returns the contents of the maps.
fn held(kernel: &SharedKernel) -> (BTreeMap<TableKey, TableEntry>, Vec<u32>) {
    kernel.call_here(|kernel| {
        // Room for all tables, and for one replacement.
        let (programs, tables) = (kernel.programs(), (SERVICES + 1) * 512);
        (programs.tables().unwrap(), programs.read_backend_tables(0, tables).unwrap())
    })
}

fn now(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Returns the backends that the VIP of a service picks.
fn picked((entries, backend_tables): &(BTreeMap<TableKey, TableEntry>, Vec<u32>), id: u32) -> BTreeSet<u32> {
    let vip = service(id).vip.unwrap();
    let mut named = entries.values().filter_map(|entry| match entry {
        TableEntry::Service(key, service) if key.address == vip.into() => Some((service.first, service.size)),
        _ => None,
    });
    let (first, size) = named.next().expect("the VIP's entry");
    (first..first + size).map(|index| backend_tables[usize::try_from(index).unwrap()]).collect()
}

fn count(kernel: &SharedKernel, is: fn(&TableKey) -> bool) -> usize {
    let tables = kernel.call_here(|kernel| kernel.programs().tables()).unwrap();
    tables.keys().filter(|key| is(key)).count()
}

#[test]
fn thousands_of_services_are_in_the_maps_and_the_next_process_keeps_them() {
    let (kernel, seen, node) = (kernel(), seen(SERVICES, 2), node().id);
    let (known, problems) = bring_up_to_date(&kernel, None, None, seen.clone(), &node, now(0)).unwrap();
    assert_eq!(problems, Vec::<String>::new());
    let services = usize::try_from(SERVICES).unwrap();
    assert_eq!(count(&kernel, |key| matches!(key, TableKey::Service(_))), services);
    assert_eq!(count(&kernel, |key| matches!(key, TableKey::Backend(_))), 2 * services);
    assert_eq!(count(&kernel, |key| matches!(key, TableKey::BackendAddress(_))), 2 * services);
    let written = held(&kernel);
    for id in 0..SERVICES {
        assert_eq!(picked(&written, id), [id * 2 + 1, id * 2 + 2].into());
    }
    // Neither a resync nor another process changes anything.
    for former in [Some(known.tables), None] {
        bring_up_to_date(&kernel, None, former, seen.clone(), &node, now(1)).unwrap();
        assert!(held(&kernel) == written);
    }
    // Both detect changes by others.
    for same in [true, false] {
        let (known, _) = bring_up_to_date(&kernel, None, None, seen.clone(), &node, now(2)).unwrap();
        kernel.call_here(|kernel| {
            let (programs, other) = (kernel.programs(), [7]);
            programs.write_backend_tables(40, &other).unwrap();
            programs.delete_tables(&[TableKey::Backend(2)]).unwrap();
        });
        let former = same.then_some(known.tables);
        bring_up_to_date(&kernel, None, former, seen.clone(), &node, now(3)).unwrap();
        let now = held(&kernel);
        assert!(now.0.keys().eq(written.0.keys()));
        for id in 0..SERVICES {
            assert_eq!(picked(&now, id), [id * 2 + 1, id * 2 + 2].into());
        }
    }
}

#[test]
fn services_without_room_are_reported_and_get_room_when_others_are_deleted() {
    let (kernel, mut seen, node) = (kernel_with_room(Some(1 << 21)), seen(1040, 3), node().id);
    // Each takes 2048 entries.
    let capacity = kernel.call_here(|kernel| kernel.programs().backend_tables_size()).unwrap();
    let fit = usize::try_from(capacity / 2048).unwrap();
    let more = |services: usize| format!("{} more services could not be updated", services - fit - PROBLEMS);
    let refused = "the tables of services need an array of 4194304 entries, which could not be allocated: \
                   cannot enlarge the eBPF map BACKEND_TABLES: out of memory";
    let (known, problems) = bring_up_to_date(&kernel, None, None, seen.clone(), &node, now(0)).unwrap();
    assert_eq!(count(&kernel, |key| matches!(key, TableKey::Service(_))), fit);
    assert_eq!(problems.len(), PROBLEMS + 2, "{problems:?}");
    assert!(problems[0].contains("does not fit into the array"), "{problems:?}");
    assert_eq!(problems[PROBLEMS + 1], refused);
    assert_eq!(problems[PROBLEMS], more(1040));
    // Services get room in the order of their ids.
    let first = seen.services.iter().next().map(|(id, _)| id.clone()).unwrap();
    seen.services.remove_service(&first);
    let (known, _) = bring_up_to_date(&kernel, Some(known), None, seen.clone(), &node, now(10)).unwrap();
    assert_eq!(count(&kernel, |key| matches!(key, TableKey::Service(_))), fit - 1);
    let due = known.tables.due().expect("room that rests");
    let (known, problems) = bring_up_to_date(&kernel, Some(known), None, seen.clone(), &node, due).unwrap();
    assert_eq!(count(&kernel, |key| matches!(key, TableKey::Service(_))), fit);
    assert_eq!(problems[PROBLEMS], more(1039));
    // No problem is reported once all have room.
    let gone: Vec<_> = seen.services.iter().map(|(id, _)| id.clone()).take(100).collect();
    for id in gone {
        seen.services.remove_service(&id);
    }
    let (known, _) = bring_up_to_date(&kernel, Some(known), None, seen.clone(), &node, now(1000)).unwrap();
    let due = known.tables.due().expect("room that rests");
    let (_, problems) = bring_up_to_date(&kernel, Some(known), None, seen, &node, due).unwrap();
    assert_eq!(problems, Vec::<String>::new());
}

#[test]
fn the_array_of_tables_grows_with_the_services() {
    let (kernel, node) = (kernel(), node().id);
    let size = || kernel.call_here(|kernel| kernel.programs().backend_tables_size()).unwrap();
    let before = size();
    let (known, _) = bring_up_to_date(&kernel, None, None, seen(10, 3), &node, now(0)).unwrap();
    assert_eq!(size(), before, "there is room for ten");
    // Each takes 2048 entries. They are created among others, and adopted by another process.
    let (_, problems) = bring_up_to_date(&kernel, Some(known), None, seen(1040, 3), &node, now(1)).unwrap();
    assert_eq!(problems, Vec::<String>::new());
    assert!(size() > 1040 * 2048);
    let (_, problems) = bring_up_to_date(&kernel, None, None, seen(2000, 3), &node, now(2)).unwrap();
    assert_eq!(problems, Vec::<String>::new());
    assert!(size() > 2000 * 2048);
    let services = count(&kernel, |key| matches!(key, TableKey::Service(_)));
    assert_eq!(services, 2000);
}
