//! How subnets are divided: named cases, and what holds for all.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_ipam::{
    Decision, Lease, Leases, Prefix, Reports, Reserved, SubnetLayout, SubnetSpec, VipError, next_block, vip,
};
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn spec(subnet: &str) -> SubnetSpec {
    SubnetSpec::new(subnet.parse().unwrap())
}

fn layout(subnet: &str) -> SubnetLayout {
    SubnetLayout::new(spec(subnet)).unwrap()
}

fn refusal(spec: SubnetSpec) -> String {
    SubnetLayout::new(spec).unwrap_err().to_string()
}

#[test]
fn subnets_of_all_sizes_are_divided_as_documented() {
    // subnet, gateway, VIP block, block length, addresses for containers
    let cases: [(&str, &str, Option<&str>, u8, u128); 12] = [
        ("10.64.0.0/20", "10.64.0.1", Some("10.64.15.0/24"), 26, 4096 - 256 - 2),
        ("10.0.0.0/24", "10.0.0.1", Some("10.0.0.240/28"), 28, 256 - 16 - 2),
        ("10.0.0.0/28", "10.0.0.1", Some("10.0.0.12/30"), 30, 10),
        ("10.0.0.0/29", "10.0.0.1", Some("10.0.0.6/31"), 31, 4),
        ("10.0.0.0/30", "10.0.0.1", None, 31, 1),
        ("10.0.0.0/31", "10.0.0.0", None, 32, 1),
        ("10.0.0.0/8", "10.0.0.1", Some("10.255.0.0/16"), 24, (1 << 24) - (1 << 16) - 2),
        ("fd00::/64", "fd00::1", Some("fd00::ffff:0/112"), 120, (1 << 64) - (1 << 16) - 2),
        ("fd00::/120", "fd00::1", Some("fd00::f0/124"), 124, 256 - 16 - 2),
        ("fd00::/124", "fd00::1", Some("fd00::c/126"), 126, 10),
        ("fd00::/126", "fd00::1", None, 127, 2),
        ("fd00::/127", "fd00::", None, 128, 1),
    ];
    for (subnet, gateway, vips, block_len, count) in cases {
        let layout = layout(subnet);
        assert_eq!(layout.gateway(), ip(gateway), "{subnet}");
        assert_eq!(layout.vip_block(), vips.map(|block| block.parse().unwrap()), "{subnet}");
        assert_eq!(layout.block_len(), block_len, "{subnet}");
        assert_eq!(layout.assignable_count(), count, "{subnet}");
    }
}

#[test]
fn a_single_address_is_too_small() {
    for subnet in ["10.0.0.1/32", "fd00::1/128"] {
        let message = refusal(spec(subnet));
        assert!(message.starts_with(&format!("subnet {subnet} is too small")), "{message}");
    }
}

#[test]
fn blocks_that_no_container_can_use_are_refused_by_name() {
    let message = refusal(spec("224.1.0.0/16"));
    assert_eq!(message, "subnet 224.1.0.0/16 overlaps 224.0.0.0/4, which is multicast");
    for subnet in
        ["0.0.0.0/0", "127.0.0.0/24", "169.254.1.0/24", "255.0.0.0/8", "::/0", "fe80::/64", "ff02::/64"]
    {
        assert!(refusal(spec(subnet)).contains(", which is "), "{subnet}");
    }
}

#[test]
fn an_impossible_gateway_is_refused_with_the_reason() {
    let cases = [
        ("10.0.0.0/24", "10.0.1.1", "gateway 10.0.1.1 cannot be used: it is outside subnet 10.0.0.0/24"),
        ("10.0.0.0/24", "fd00::1", "gateway fd00::1 cannot be used: it is outside subnet 10.0.0.0/24"),
        (
            "10.0.0.0/24",
            "10.0.0.0",
            "gateway 10.0.0.0 cannot be used: it is the network address of 10.0.0.0/24",
        ),
        (
            "10.0.0.0/24",
            "10.0.0.255",
            "gateway 10.0.0.255 cannot be used: it is the broadcast address of 10.0.0.0/24",
        ),
        (
            "fd00::/64",
            "fd00::",
            "gateway fd00:: cannot be used: it is the subnet-router anycast address of fd00::/64",
        ),
    ];
    for (subnet, gateway, message) in cases {
        assert_eq!(refusal(SubnetSpec { gateway: Some(ip(gateway)), ..spec(subnet) }), message);
    }
}

#[test]
fn impossible_auxiliary_addresses_are_refused_with_the_other_side() {
    let with = |aux: &[(&str, &str)]| SubnetSpec {
        aux: aux.iter().map(|(name, address)| ((*name).to_owned(), ip(address))).collect(),
        ..spec("10.0.0.0/24")
    };
    assert_eq!(
        refusal(with(&[("router", "10.1.0.5")])),
        "auxiliary address router=10.1.0.5 cannot be used: it is outside subnet 10.0.0.0/24"
    );
    assert_eq!(
        refusal(with(&[("router", "10.0.0.1")])),
        "auxiliary address router=10.0.0.1 cannot be used: it is the gateway of 10.0.0.0/24"
    );
    assert_eq!(
        refusal(with(&[("router", "10.0.0.255")])),
        "auxiliary address router=10.0.0.255 cannot be used: it is the broadcast address of 10.0.0.0/24"
    );
    assert_eq!(
        refusal(with(&[("a", "10.0.0.9"), ("b", "10.0.0.9")])),
        "auxiliary address b=10.0.0.9 is the same as a=10.0.0.9"
    );
}

#[test]
fn an_impossible_range_is_refused() {
    let with =
        |ip_range: &str| SubnetSpec { ip_range: Some(ip_range.parse().unwrap()), ..spec("10.0.0.0/24") };
    assert_eq!(refusal(with("10.0.1.0/25")), "IP range 10.0.1.0/25 is outside subnet 10.0.0.0/24");
    assert_eq!(refusal(with("10.0.0.0/16")), "IP range 10.0.0.0/16 is outside subnet 10.0.0.0/24");
    assert_eq!(
        refusal(with("10.0.0.0/31")),
        "IP range 10.0.0.0/31 of subnet 10.0.0.0/24 has no address for a container: all of it is reserved"
    );
}

#[test]
fn a_range_holds_all_dynamic_addresses_and_the_vips() {
    let layout = SubnetLayout::new(SubnetSpec {
        ip_range: Some("10.0.0.128/26".parse().unwrap()),
        ..spec("10.0.0.0/24")
    });
    let layout = layout.unwrap();
    assert_eq!(layout.vip_block(), Some("10.0.0.188/30".parse().unwrap()));
    assert_eq!(layout.assignable_count(), 60);
    assert_eq!(layout.reserved(ip("10.0.0.250")), None, "an address outside the range may be asked for");
    assert!(!layout.is_assignable(ip("10.0.0.250")));
}

#[test]
fn a_range_too_small_for_vips_leaves_them_to_the_rest_of_the_subnet() {
    let layout = SubnetLayout::new(SubnetSpec {
        ip_range: Some("10.0.0.252/30".parse().unwrap()),
        ..spec("10.0.0.0/24")
    });
    let layout = layout.unwrap();
    assert_eq!(layout.vip_block(), Some("10.0.0.224/28".parse().unwrap()));
    assert_eq!(layout.assignable_count(), 3);
}

#[test]
fn the_vip_block_makes_room_for_the_gateway_and_auxiliary_addresses() {
    let mut spec = SubnetSpec { gateway: Some(ip("10.0.0.254")), ..spec("10.0.0.0/24") };
    spec.aux.insert("printer".to_owned(), ip("10.0.0.230"));
    let layout = SubnetLayout::new(spec).unwrap();
    assert_eq!(layout.vip_block(), Some("10.0.0.208/28".parse().unwrap()));
    assert_eq!(layout.reserved(ip("10.0.0.230")), Some(Reserved::Aux { name: "printer".to_owned() }));
}

#[test]
fn the_last_addresses_of_a_small_subnet_go_to_containers_rather_than_vips() {
    let mut spec = spec("10.0.0.0/29");
    for (name, address) in [("a", "10.0.0.2"), ("b", "10.0.0.3"), ("c", "10.0.0.4"), ("d", "10.0.0.5")] {
        spec.aux.insert(name.to_owned(), ip(address));
    }
    let layout = SubnetLayout::new(spec).unwrap();
    assert_eq!((layout.vip_block(), layout.assignable_count()), (None, 1));
}

#[test]
fn vips_are_given_in_order_and_never_the_broadcast_address() {
    let layout = layout("10.0.0.0/28");
    let (mut used, none) = (BTreeSet::new(), BTreeSet::new());
    for expected in ["10.0.0.12", "10.0.0.13", "10.0.0.14"] {
        let next = vip(&layout, &used, &none, None).unwrap();
        assert_eq!(next, ip(expected));
        used.insert(next);
    }
    assert_eq!(
        vip(&layout, &used, &none, None).unwrap_err().to_string(),
        "all virtual addresses of subnet 10.0.0.0/28, from 10.0.0.12 to 10.0.0.14, are in use"
    );
    assert!(matches!(vip(&layout, &used, &none, Some(ip("10.0.0.15"))), Err(VipError::Outside { .. })));
    assert!(matches!(vip(&layout, &used, &none, Some(ip("10.0.0.13"))), Err(VipError::InUse { .. })));
    used.remove(&ip("10.0.0.13"));
    assert_eq!(vip(&layout, &used, &none, Some(ip("10.0.0.13"))), Ok(ip("10.0.0.13")));
    assert_eq!(vip(&layout, &used, &none, None), Ok(ip("10.0.0.13")));
    let chosen = [ip("10.0.0.13")].into();
    assert!(matches!(vip(&layout, &used, &chosen, None), Err(VipError::Exhausted { .. })));
    used.remove(&ip("10.0.0.14"));
    assert_eq!(vip(&layout, &used, &chosen, None), Ok(ip("10.0.0.14")));
}

#[test]
fn a_vip_outside_the_block_is_refused_with_the_block() {
    let error =
        vip(&layout("10.0.0.0/24"), &BTreeSet::new(), &BTreeSet::new(), Some(ip("10.0.0.7"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "10.0.0.7 is no virtual address of subnet 10.0.0.0/24: those are from 10.0.0.240 to 10.0.0.254"
    );
    let error = vip(&layout("10.0.0.0/30"), &BTreeSet::new(), &BTreeSet::new(), None).unwrap_err();
    assert_eq!(error.to_string(), "subnet 10.0.0.0/30 is too small to have virtual addresses");
}

/// Any subnet, with any gateway, range and auxiliary addresses in it.
fn any_spec() -> impl Strategy<Value = SubnetSpec> {
    let subnet = prop_oneof![
        (any::<u32>(), 16u8..=32).prop_map(|(low, len)| {
            Prefix::new(Ipv4Addr::from_bits(0x0a00_0000 | (low >> 8)).into(), len).unwrap()
        }),
        (any::<u128>(), 48u8..=128).prop_map(|(low, len)| {
            Prefix::new(Ipv6Addr::from_bits((0xfd << 120) | (low >> 8)).into(), len).unwrap()
        }),
    ];
    let pick = any::<u128>();
    (subnet, prop::option::of(pick), prop::option::of((pick, 0u8..10)), prop::collection::vec(pick, 0..4))
        .prop_map(|(subnet, gateway, ip_range, aux)| {
            let at = |index: u128| subnet.nth(index % subnet.size()).unwrap();
            SubnetSpec {
                subnet,
                gateway: gateway.map(at),
                ip_range: ip_range.map(|(index, more)| {
                    Prefix::new(at(index), (subnet.len() + more).min(subnet.family().width())).unwrap()
                }),
                aux: aux.into_iter().enumerate().map(|(n, index)| (format!("a{n}"), at(index))).collect(),
            }
        })
}

proptest! {
    #[test]
    fn what_is_assignable_is_in_the_range_and_not_reserved(
        spec in any_spec(),
        probes in prop::collection::vec(any::<u128>(), 64),
    ) {
        let Ok(layout) = SubnetLayout::new(spec.clone()) else { return Ok(()) };
        let subnet = layout.subnet();
        let special = [Some(subnet.first()), Some(subnet.last()), Some(layout.gateway())];
        let vips = layout.vip_block().map(|block| [block.first(), block.last()]);
        let at = |index: u128| subnet.nth(index % subnet.size());
        let probes = probes.into_iter().map(at).chain(special).flatten();
        for address in probes.chain(spec.aux.values().copied()).chain(vips.into_iter().flatten()) {
            let expected = layout.dynamic_range().contains(address) && layout.reserved(address).is_none();
            prop_assert_eq!(layout.is_assignable(address), expected, "{}", address);
        }
        prop_assert!(layout.assignable_count() > 0);
        prop_assert_eq!(layout.assignable_in(&subnet), layout.assignable_count());
    }

    #[test]
    fn the_vip_block_holds_nothing_else_and_is_a_small_part(spec in any_spec()) {
        let Ok(layout) = SubnetLayout::new(spec.clone()) else { return Ok(()) };
        let Some(block) = layout.vip_block() else { return Ok(()) };
        prop_assert!(layout.subnet().covers(&block));
        prop_assert!(!block.contains(layout.gateway()) && !block.contains(layout.subnet().first()));
        prop_assert!(!spec.aux.values().any(|&address| block.contains(address)));
        prop_assert!(block.size() * 4 <= layout.subnet().size());
        prop_assert!(vip(&layout, &BTreeSet::new(), &BTreeSet::new(), None).is_ok());
    }

    #[test]
    fn blocks_are_disjoint_and_cover_all_that_is_assignable(spec in any_spec()) {
        let Ok(layout) = SubnetLayout::new(spec) else { return Ok(()) };
        // Large subnets have more blocks than can be tried; every lease shrinks what is left, so
        // the start shows it.
        let mut leases: Leases<u8> = Leases::default();
        let mut covered = 0;
        for _ in 0..96 {
            match next_block(&layout, &leases, &0, &Reports::default()) {
                Decision::Lease(prefix) => {
                    prop_assert!(layout.dynamic_range().covers(&prefix));
                    prop_assert!(layout.vip_block().is_none_or(|block| !block.overlaps(&prefix)));
                    prop_assert!(leases.iter().all(|lease| !lease.prefix.overlaps(&prefix)));
                    prop_assert!(prefix.len() >= layout.block_len() && layout.assignable_in(&prefix) > 0);
                    covered += layout.assignable_in(&prefix);
                    leases.insert(Lease::active(prefix, 0));
                }
                Decision::Exhausted { .. } => {
                    prop_assert_eq!(covered, layout.assignable_count());
                    return Ok(());
                }
                Decision::Borrow { .. } => prop_assert!(false, "a node does not borrow from itself"),
            }
        }
        prop_assert!(covered < layout.assignable_count() || layout.assignable_count() > 1);
    }
}
