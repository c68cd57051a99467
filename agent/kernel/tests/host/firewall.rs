//! The table `inet mesh`.

use mesh_kernel::{Depth, Kernel};
use mesh_model::Action;
use mesh_model::observed::{Firewall, FirewallState, MasqueradePorts};

use crate::support::{apply, become_host, kernel, observe, run};

fn firewall(subnets: &[&str]) -> Firewall {
    Firewall {
        masquerade: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
        ports: MasqueradePorts { low: 700..=1023, high: 40000..=50000 },
    }
}

#[test]
fn the_table_is_made_replaced_and_removed_beside_those_of_others() {
    become_host();
    run("nft add table inet theirs && nft add chain inet theirs c && nft add rule inet theirs c accept");
    let theirs = run("nft list table inet theirs");
    let mut kernel = kernel();
    assert_eq!(observe(&mut kernel).firewall, FirewallState::Absent);
    for subnets in [&[][..], &["10.64.0.0/20", "fd00:64::/64"], &["10.64.16.0/20"]] {
        apply(&mut kernel, &Action::SetFirewall(firewall(subnets)));
        assert_eq!(observe(&mut kernel).firewall, FirewallState::Intact(firewall(subnets)));
    }
    apply(&mut kernel, &Action::RemoveFirewall);
    apply(&mut kernel, &Action::RemoveFirewall);
    assert_eq!(observe(&mut kernel).firewall, FirewallState::Absent);
    assert_eq!(run("nft list table inet theirs"), theirs);
}

#[test]
fn a_flushed_or_changed_table_is_noticed_by_a_full_look() {
    become_host();
    let mut kernel = kernel();
    for (damage, seen) in [
        ("nft flush ruleset", FirewallState::Absent),
        ("nft flush table inet mesh", FirewallState::Altered),
        ("nft flush chain inet mesh forward", FirewallState::Altered),
        ("nft insert rule inet mesh forward accept", FirewallState::Altered),
        ("nft delete chain inet mesh forward", FirewallState::Altered),
        ("nft flush chain inet mesh postrouting", FirewallState::Intact(firewall(&[]))),
    ] {
        apply(&mut kernel, &Action::SetFirewall(firewall(&["10.64.0.0/20"])));
        run(damage);
        let quick = kernel.observe(None, Depth::Quick).unwrap().firewall;
        assert_eq!(quick, FirewallState::Intact(firewall(&["10.64.0.0/20"])), "as it was made");
        assert_eq!(observe(&mut kernel).firewall, seen, "{damage}");
    }
}
