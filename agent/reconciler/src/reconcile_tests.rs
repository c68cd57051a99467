use mesh_ebpf_types::{FROM_EVEN_KEY, FROM_ODD_KEY, MapEntry};
use mesh_host::fake::{TestHost, TestKernel};
use mesh_model::naming;
use mesh_model::observed::{Link, LinkKind};
use mesh_state::StatePaths;
use mesh_state::fake::{agent_with, view};

use super::*;
use crate::fake::TestEngines;
use crate::xdp::XdpPolicy;

#[tokio::test]
async fn the_datapath_is_ready_for_either_key_while_the_kernels_engine_goes_over() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = TestKernel::with_underlay();
    let device = Link {
        index: naming::WIREGUARD_KERNEL_INDEX,
        kind: LinkKind::Wireguard,
        mtu: 1440,
        mac: None,
        up: true,
        arp: false,
    };
    kernel.inner.lock().unwrap().state.links.insert(naming::WIREGUARD.parse().unwrap(), device);
    let mut view = view();
    view.networks.values_mut().for_each(|network| network.encrypted = true);
    let agent = Arc::new(agent_with(dir.path(), view));
    let keys = StatePaths::new(dir.path()).wireguard_keys();
    let shared = SharedKernel::new(Box::new(kernel.clone()));
    let engines = TestEngines { of_kernel: true, ..TestEngines::default() };
    let encryption = Arc::new(Encryption::new(Arc::new(engines.clone()), keys.clone()));
    let xdp = Arc::new(Xdp::new(XdpPolicy::Off, TestHost::new("h1", "192.0.2.1")));
    let reconciliation = async || {
        let reconciliation = reconcile_once(&agent, &shared, &encryption, &xdp, Depth::Full).await;
        assert_eq!(reconciliation.problems, Vec::<String>::new());
        let put = kernel.take_applied().into_iter().filter_map(|action| match action {
            Action::PutEntry(MapEntry::Config(config)) => Some(config.flags),
            _ => None,
        });
        let uses = engines.inner.lock().unwrap().config().unwrap().keys.last().unwrap().active;
        (put.collect::<Vec<_>>(), uses)
    };
    assert_eq!(reconciliation().await, (vec![FROM_ODD_KEY], true));
    encryption.announce_new(2).unwrap();
    assert_eq!(reconciliation().await, (vec![], false));
    assert!(encryption.activate_new().unwrap());
    assert_eq!(reconciliation().await, (vec![FROM_ODD_KEY | FROM_EVEN_KEY, FROM_EVEN_KEY], true));
    encryption.retire_old().unwrap();
    assert_eq!(reconciliation().await, (vec![], true));
    // An agent that cannot read the keys leaves the datapath to the device, which has them.
    std::fs::write(&keys, "garbage").unwrap();
    let started = Encryption::new(Arc::new(engines.clone()), keys.clone());
    let reconciliation = reconcile_once(&agent, &shared, &Arc::new(started), &xdp, Depth::Full).await;
    assert!(
        reconciliation.problems.iter().any(|problem| problem.contains("is damaged")),
        "{:?}",
        reconciliation.problems
    );
    assert_eq!(kernel.take_applied(), []);
}
