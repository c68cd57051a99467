//! The host's own addresses and their stand-ins, which the host itself uses for ports that are
//! published on one address only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_ebpf_types::{Address, MapEntry, MapKey, STAND_INS};

/// Returns the entries of these addresses. Each keeps its number in `observed` while it exists,
/// since connections depend on it. If there are more addresses than numbers, the last ones have no
/// stand-in.
pub(crate) fn entries(own: &BTreeSet<IpAddr>, observed: &BTreeMap<MapKey, MapEntry>) -> Vec<MapEntry> {
    let addresses: BTreeSet<Address> = own.iter().map(|address| (*address).into()).collect();
    let kept = observed.values().filter_map(|entry| match entry {
        MapEntry::StandIn(number, address) if addresses.contains(address) => Some((*address, *number)),
        _ => None,
    });
    let mut numbers: BTreeMap<Address, u32> = kept.collect();
    let taken: BTreeSet<u32> = numbers.values().copied().collect();
    let mut free = STAND_INS.map(u32::from).filter(|number| !taken.contains(number));
    for address in own.iter().filter(|address| !address.is_loopback()) {
        let address = Address::from(*address);
        if !numbers.contains_key(&address)
            && let Some(number) = free.next()
        {
            numbers.insert(address, number);
        }
    }
    let stand_ins = numbers.iter().map(|(address, number)| MapEntry::StandIn(*number, *address));
    let host_addresses = addresses
        .iter()
        .map(|address| MapEntry::HostAddress(*address, numbers.get(address).copied().unwrap_or(0)));
    stand_ins.chain(host_addresses).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(numbers: impl IntoIterator<Item = u16>) -> BTreeSet<IpAddr> {
        let address = |number: u16| {
            let [high, low] = number.to_be_bytes();
            IpAddr::from([10, 0, high, low])
        };
        numbers.into_iter().map(address).collect()
    }

    /// Returns the entries of these addresses, given the earlier entries `before`.
    fn after(before: &[MapEntry], own: &BTreeSet<IpAddr>) -> Vec<MapEntry> {
        entries(own, &before.iter().map(|entry| (entry.key(), *entry)).collect())
    }

    fn number_of(entries: &[MapEntry], address: &IpAddr) -> u32 {
        let number = entries.iter().find_map(|entry| match entry {
            MapEntry::HostAddress(own, number) if *own == (*address).into() => Some(*number),
            _ => None,
        });
        number.expect("every address has an entry")
    }

    #[test]
    fn each_address_has_a_unique_number_and_keeps_it() {
        let many = own(0..100);
        let before = after(&[], &many);
        let fewer = own(50..150);
        let after = after(&before, &fewer);
        let numbers: BTreeSet<u32> = fewer.iter().map(|address| number_of(&after, address)).collect();
        assert_eq!(numbers.len(), fewer.len());
        assert!(numbers.iter().all(|number| (4..=254).contains(number)));
        for address in many.intersection(&fewer) {
            assert_eq!(number_of(&after, address), number_of(&before, address));
        }
        for entry in &after {
            if let MapEntry::StandIn(number, address) = entry {
                assert_eq!(number_of(&after, &address.to_ip()), *number);
            }
        }
        assert_eq!(after.len(), 2 * fewer.len());
    }

    #[test]
    fn surplus_and_loopback_addresses_have_no_number() {
        let mut many = own(0..300);
        many.extend(["127.0.0.1", "::1"].map(|text| text.parse::<IpAddr>().unwrap()));
        let entries = after(&[], &many);
        let without = many.iter().filter(|address| number_of(&entries, address) == 0).count();
        assert_eq!(without, 300 - 251 + 2);
    }
}
