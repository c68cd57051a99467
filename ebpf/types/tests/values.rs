//! Addresses, derived MACs and reasons.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_ebpf_types::{Address, Mac, NextHop, Reason, Vni, derived_mac, next_hop};

const PREFIX6: [u8; 12] = [0xfd, 0x4d, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];

fn v6(text: &str) -> Address {
    text.parse::<Ipv6Addr>().expect("an address").into()
}

#[test]
fn an_address_converts_to_its_mapped_form_and_back() {
    for ip in ["10.64.0.5", "0.0.0.0", "255.255.255.255", "fd4d::1", "fe80::1"] {
        let ip: IpAddr = ip.parse().unwrap();
        assert_eq!(Address::from(ip).to_ip(), ip);
    }
    assert_eq!(Address::from(Ipv4Addr::new(10, 64, 0, 5)), Address::from_v4([10, 64, 0, 5]));
    assert!(Address::NONE.is_none());
    assert!(!Address::from_v4([0; 4]).is_none());
}

#[test]
fn prefixes_of_both_families_count_bits_of_the_mapped_form() {
    assert_eq!(Address::prefix_bits("10.0.0.0".parse().unwrap(), 8), 104);
    assert_eq!(Address::prefix_bits("10.0.0.1".parse().unwrap(), 32), 128);
    assert_eq!(Address::prefix_bits("fd00::".parse().unwrap(), 64), 64);
}

#[test]
fn a_derived_mac_names_its_next_hop() {
    for address in [Address::from_v4([10, 64, 0, 5]), v6("fd4d:0:0:1::7"), v6("fd4d:0:0:1::ffff:1")] {
        assert_eq!(next_hop(derived_mac(address, PREFIX6), PREFIX6), NextHop::Address(address));
    }
    assert_eq!(derived_mac(Address::from_v4([10, 64, 0, 5]), PREFIX6), Mac([2, 0x42, 10, 64, 0, 5]));
    assert_eq!(derived_mac(v6("fd4d:0:0:1::7"), PREFIX6), Mac([2, 0x46, 0, 0, 0, 7]));
}

#[test]
fn for_an_address_that_does_not_fit_the_packets_destination_is_the_next_hop() {
    let far = derived_mac(v6("fd4d:0:0:1:1::7"), PREFIX6);
    assert_eq!(far, Mac([2, 0x47, 0, 0, 0, 0]));
    assert_eq!(next_hop(far, PREFIX6), NextHop::Destination);
    assert_eq!(next_hop(Mac([2, 0x11, 1, 2, 3, 4]), PREFIX6), NextHop::Destination);
    // Without an IPv6 subnet there is no prefix, so no MAC can represent an IPv6 address.
    assert_eq!(next_hop(Mac([2, 0x46, 0, 0, 0, 7]), [0; 12]), NextHop::Destination);
}

#[test]
fn reasons_have_distinct_stable_names_and_numbers() {
    let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    for reason in Reason::ALL {
        assert_eq!(Reason::from_number(*reason as u32), Some(*reason));
        assert!(reason.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{reason:?}");
        assert_eq!(reason.is_drop(), *reason as u32 >= 16, "{reason:?}");
    }
    assert_eq!(Reason::from_number(15), None);
}

#[test]
fn a_vni_keeps_24_bits() {
    assert_eq!(Vni::new(0x0100_1000).number(), 0x1000);
    assert_eq!(Vni::new(0x00FF_FFFE).0, [0, 0xff, 0xff, 0xfe]);
}
