use proptest::prelude::*;

use super::*;
use crate::fake;

fn id(n: u32) -> String {
    format!("{n:024x}")
}

fn node(n: u32) -> v1::Node {
    v1::Node {
        id: id(n),
        name: format!("h{n}"),
        role: v1::Role::Worker.into(),
        availability: v1::Availability::Active.into(),
        advertise_addr: format!("192.0.2.{n}:7377"),
        data_path_addr: format!("192.0.2.{n}"),
        data_path_mtu: 1500,
        version: "0.1.0".into(),
        created_at: "2026-01-01T00:00:00Z".into(),
        wireguard: None,
        host_addrs: Vec::new(),
    }
}

fn network(n: u32) -> v1::Network {
    v1::Network {
        id: id(n),
        name: format!("net{n}"),
        vni: 4096 + n,
        subnets: vec![v1::Subnet {
            subnet: format!("10.{n}.0.0/16"),
            gateway: format!("10.{n}.0.1"),
            ..v1::Subnet::default()
        }],
        attachable: true,
        created_at: "2026-01-01T00:00:00Z".into(),
        ..v1::Network::default()
    }
}

fn lease(network: u32, block: u32, node: u32) -> v1::Lease {
    v1::Lease {
        network: id(network),
        prefix: format!("10.{network}.{block}.0/24"),
        node: id(node),
        ..v1::Lease::default()
    }
}

fn snapshot() -> v1::Snapshot {
    v1::Snapshot {
        revision: 7,
        cluster: Some((&fake::cluster()).into()),
        nodes: vec![node(1), node(2)],
        networks: vec![network(1)],
        leases: vec![lease(1, 0, 1), lease(1, 1, 2)],
        managers: vec!["192.0.2.1:7377".into()],
        services: Vec::new(),
        backends: Vec::new(),
    }
}

fn delta(revision: u64, kinds: Vec<v1::change::Kind>) -> v1::Delta {
    v1::Delta { revision, changes: kinds.into_iter().map(|kind| v1::Change { kind: Some(kind) }).collect() }
}

#[test]
fn a_delta_changes_what_it_names_and_nothing_else() {
    use v1::change::Kind;
    let before = ClusterView::from_snapshot(snapshot()).unwrap();
    let after = before
        .with_delta(delta(
            9,
            vec![
                Kind::PutNode(node(3)),
                Kind::RemoveNode(id(2)),
                Kind::PutLease(lease(1, 2, 3)),
                Kind::RemoveLease(lease(1, 1, 2)),
            ],
        ))
        .unwrap();
    assert_eq!(after.revision, 9);
    assert_eq!(after.nodes.keys().map(NodeId::to_string).collect::<Vec<_>>(), [id(1), id(3)]);
    let blocks: Vec<String> = after.leases.values().map(|lease| lease.prefix.to_string()).collect();
    assert_eq!(blocks, ["10.1.0.0/24", "10.1.2.0/24"]);
    assert_eq!(after.networks, before.networks);
}

#[test]
fn a_network_that_is_removed_takes_its_leases_along() {
    let before = ClusterView::from_snapshot(snapshot()).unwrap();
    let after = before.with_delta(delta(8, vec![v1::change::Kind::RemoveNetwork(id(1))])).unwrap();
    assert!(after.networks.is_empty() && after.leases.is_empty());
}

#[test]
fn a_delta_that_leads_backwards_spoils_nothing() {
    let view = ClusterView::from_snapshot(snapshot()).unwrap();
    assert!(matches!(view.with_delta(delta(6, vec![])), Err(ViewError::Backwards { delta: 6, current: 7 })));
    assert_eq!(view, ClusterView::from_snapshot(snapshot()).unwrap());
}

#[test]
fn a_record_that_cannot_be_read_is_skipped_and_reported_and_all_others_are_taken() {
    use v1::change::Kind;
    let bad_network = || v1::Network { vni: 0, ..network(2) };
    let bad_node = || v1::Node { data_path_addr: "\x1b".into(), ..node(3) };
    // In a snapshot.
    let mut all = snapshot();
    all.networks.insert(0, bad_network());
    all.nodes.insert(0, bad_node());
    all.backends.push(v1::Backend { id: 1, name: "*".into(), ..v1::Backend::default() });
    let view = ClusterView::from_snapshot(all).unwrap();
    assert_eq!((view.nodes.len(), view.networks.len(), view.leases.len()), (2, 1, 2));
    assert_eq!(view.unreadable.lines().len(), 3, "{:?}", view.unreadable.lines());
    // In a delta: the changes around it are made.
    let before = ClusterView::from_snapshot(snapshot()).unwrap();
    let changes = vec![
        Kind::RemoveNode(id(1)),
        Kind::PutNetwork(bad_network()),
        Kind::PutBackend(v1::Backend { id: 1, service: id(9), ..v1::Backend::default() }),
        Kind::PutNode(node(4)),
    ];
    let mut bad = delta(8, changes);
    bad.changes.push(v1::Change { kind: None });
    let after = before.with_delta(bad).unwrap();
    assert_eq!(after.nodes.keys().map(NodeId::to_string).collect::<Vec<_>>(), [id(2), id(4)]);
    assert_eq!(after.unreadable.lines().len(), 3, "{:?}", after.unreadable.lines());
    // It is reported until it can be read, or is gone.
    let later =
        after.with_delta(delta(9, vec![Kind::PutNetwork(network(2)), Kind::RemoveBackend(1)])).unwrap();
    assert!(
        later.networks.len() == 2 && later.unreadable.lines().len() == 1,
        "{:?}",
        later.unreadable.lines()
    );
}

#[test]
fn a_view_survives_the_disk() {
    let view = ClusterView::from_snapshot(snapshot()).unwrap();
    let text = serde_json::to_string(&view).unwrap();
    assert_eq!(serde_json::from_str::<ClusterView>(&text).unwrap(), view);
}

#[derive(Debug, Clone)]
enum Step {
    Node(u32, bool),
    Lease(u32, u32, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u32..6, any::<bool>()).prop_map(|(n, put)| Step::Node(n, put)),
        (0u32..8, 1u32..6, any::<bool>()).prop_map(|(block, n, put)| Step::Lease(block, n, put)),
    ]
}

proptest! {
    /// However the changes are cut into deltas, they lead to the same view, and doing them again
    /// changes nothing.
    #[test]
    fn how_changes_are_cut_into_deltas_does_not_matter(
        steps in proptest::collection::vec(step(), 0..30),
        cut in 1usize..5,
    ) {
        use v1::change::Kind;
        let kinds: Vec<Kind> = steps
            .into_iter()
            .map(|step| match step {
                Step::Node(n, true) => Kind::PutNode(node(n)),
                Step::Node(n, false) => Kind::RemoveNode(id(n)),
                Step::Lease(block, n, true) => Kind::PutLease(lease(1, block, n)),
                Step::Lease(block, n, false) => Kind::RemoveLease(lease(1, block, n)),
            })
            .collect();
        let start = ClusterView::from_snapshot(snapshot()).unwrap();
        let at_once = start.with_delta(delta(100, kinds.clone())).unwrap();
        let mut in_pieces = start;
        for piece in kinds.chunks(cut) {
            in_pieces = in_pieces.with_delta(delta(100, piece.to_vec())).unwrap();
        }
        in_pieces.revision = 100;
        prop_assert_eq!(&in_pieces, &at_once);
        let last: Vec<Kind> = kinds.last().cloned().into_iter().collect();
        prop_assert_eq!(at_once.with_delta(delta(100, last)).unwrap(), at_once);
    }
}
