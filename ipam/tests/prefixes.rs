//! Arithmetic of prefixes, for both families.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_ipam::{Family, Pool, Prefix, find_overlap, next_subnet};
use proptest::prelude::*;

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    ]
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (address(), any::<u8>())
        .prop_map(|(address, len)| Prefix::new(address, len % (Family::of(address).width() + 1)).unwrap())
}

/// Two prefixes of one family that are likely to have to do with each other.
fn related() -> impl Strategy<Value = (Prefix, Prefix)> {
    (prefix(), prefix(), any::<u128>()).prop_map(|(a, other, index)| {
        let inside = a.nth(index % a.size()).unwrap();
        let len = other.len().min(a.family().width());
        (a, Prefix::new(inside, len).unwrap())
    })
}

proptest! {
    #[test]
    fn text_and_serde_read_back_what_they_wrote(prefix in prefix()) {
        prop_assert_eq!(prefix.to_string().parse::<Prefix>().unwrap(), prefix);
        let json = serde_json::to_string(&prefix).unwrap();
        prop_assert_eq!(&json, &format!("\"{prefix}\""));
        prop_assert_eq!(serde_json::from_str::<Prefix>(&json).unwrap(), prefix);
    }

    #[test]
    fn no_text_makes_the_parser_panic_or_give_host_bits(text in "[0-9a-f:./+ -]{0,40}") {
        if let Ok(prefix) = text.parse::<Prefix>() {
            prop_assert_eq!(Prefix::new(prefix.first(), prefix.len()).unwrap(), prefix);
        }
    }

    #[test]
    fn a_prefix_is_the_addresses_from_first_to_last(prefix in prefix(), probe in address()) {
        let inside = prefix.family() == Family::of(probe) && prefix.first() <= probe && probe <= prefix.last();
        prop_assert_eq!(prefix.contains(probe), inside);
        prop_assert_eq!(prefix.nth(0), Some(prefix.first()));
        prop_assert_eq!(prefix.nth(prefix.size() - 1).is_some(), true);
        if prefix.len() > 0 {
            prop_assert_eq!(prefix.nth(prefix.size() - 1), Some(prefix.last()));
            prop_assert_eq!(prefix.nth(prefix.size()), None);
        }
    }

    #[test]
    fn of_two_prefixes_that_overlap_one_covers_the_other((a, b) in related()) {
        prop_assert!(a.overlaps(&b) && b.overlaps(&a));
        prop_assert_eq!(a.covers(&b), a.contains(b.first()) && a.contains(b.last()));
        prop_assert_eq!(a.covers(&b) && b.covers(&a), a == b);
        if a.covers(&b) {
            prop_assert!(a <= b, "a covering prefix sorts first");
        }
    }

    #[test]
    fn the_halves_are_disjoint_and_make_the_whole(prefix in prefix()) {
        let Some((low, high)) = prefix.split() else {
            prop_assert!(prefix.is_single());
            return Ok(());
        };
        prop_assert!(!low.overlaps(&high) && low < high);
        prop_assert_eq!((low.first(), high.last()), (prefix.first(), prefix.last()));
        prop_assert_eq!((low.parent(), high.parent()), (Some(prefix), Some(prefix)));
        prop_assert_eq!(prefix.subnets(prefix.len() + 1).unwrap().collect::<Vec<_>>(), [low, high]);
    }

    #[test]
    fn subnets_follow_one_another_to_the_end(prefix in prefix(), more in 0u8..8) {
        let len = (prefix.len() + more).min(prefix.family().width());
        let subnets: Vec<Prefix> = prefix.subnets(len).unwrap().collect();
        prop_assert_eq!(subnets.len(), 1 << (len - prefix.len()));
        prop_assert!(subnets.iter().all(|subnet| subnet.len() == len && prefix.covers(subnet)));
        prop_assert!(subnets.windows(2).all(|pair| pair[0].last() < pair[1].first()));
        prop_assert_eq!(subnets.last().unwrap().last(), prefix.last());
    }

    #[test]
    fn a_pool_gives_the_first_subnet_that_overlaps_nothing(
        taken in prop::collection::vec((any::<u16>(), 16u8..=32), 0..24),
    ) {
        let pool = Pool::new("10.7.0.0/16".parse().unwrap(), 20).unwrap();
        let taken: Vec<(Prefix, ())> = taken
            .into_iter()
            .map(|(low, len)| (Prefix::new(Ipv4Addr::from_bits(0x0a07_0000 | u32::from(low)).into(), len).unwrap(), ()))
            .collect();
        let expected = pool.prefix().subnets(20).unwrap().find(|subnet| find_overlap(subnet, &taken).is_none());
        prop_assert_eq!(next_subnet(&[pool], Family::Ipv4, &taken).ok(), expected);
    }
}
