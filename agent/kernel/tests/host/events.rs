//! What happens to the host is told as it happens.

use std::time::Duration;

use mesh_kernel::{Event, Events};
use mesh_model::Action;
use mesh_model::observed::Firewall;
use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::support::{Container, apply, become_host, kernel, run};

/// Waits until an event of that kind comes.
async fn told(events: &mut Events, wanted: Event) -> bool {
    let told = async { while events.next().await.unwrap() != wanted {} };
    timeout(Duration::from_secs(5), told).await.is_ok()
}

/// Waits until nothing has happened for a moment.
async fn quiet(events: &mut Events) {
    while timeout(Duration::from_millis(300), events.next()).await.is_ok() {}
}

#[test]
fn vanished_devices_addresses_routes_and_rules_are_told() {
    become_host();
    let mut kernel = kernel();
    apply(&mut kernel, &Action::SetFirewall(Firewall::default()));
    let container = Container::new();
    run(&format!("ip link add mesh00000001 type veth peer name eth0 netns {}", container.name));
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut events = Events::subscribe().unwrap();
        for (change, event) in [
            ("ip address add 10.1.0.1/24 dev eth0", Event::Network),
            ("ip route add 10.2.0.0/24 dev eth0", Event::Network),
            ("ip link set eth0 mtu 1400", Event::Network),
            ("ip link add docker0 type bridge", Event::Network),
            ("ip link set docker0 name docker1", Event::Network),
            ("ip link delete docker1", Event::Network),
            ("nft flush ruleset", Event::Firewall),
            (&format!("ip netns delete {}", container.name), Event::Network),
        ] {
            quiet(&mut events).await;
            run(change);
            assert!(told(&mut events, event).await, "{change}");
        }
    });
}
