use std::sync::LazyLock;

use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{select, subsequence},
};

use super::*;
use crate::zone::{Backend, Endpoint, Service};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

fn endpoint(name: &str, aliases: &[&str], ipv4: &str, healthy: bool) -> Endpoint {
    Endpoint {
        name: name.into(),
        aliases: aliases.iter().map(ToString::to_string).collect(),
        ipv4: Some(ipv4.parse().unwrap()),
        ipv6: None,
        healthy,
    }
}

fn backend(ipv4: &str, healthy: bool) -> Backend {
    Backend { ipv4: Some(ipv4.parse().unwrap()), ipv6: None, healthy }
}

/// A network `app` with one of everything.
static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let zone = Zone {
        gateways: vec![ip("10.64.0.1")],
        subnets: vec!["10.64.0.0/20".parse().unwrap(), "fd00:64::/64".parse().unwrap()],
        internal: false,
        endpoints: vec![
            Endpoint { ipv6: Some("fd00:64::5".parse().unwrap()), ..endpoint("Db", &[], "10.64.0.5", false) },
            endpoint("web.1", &["www", "db"], "10.64.0.6", true),
            endpoint("web.2", &["www", "shop.example.com"], "10.64.0.7", false),
            endpoint("web", &["old"], "10.64.0.8", false),
            endpoint("web.4", &["old"], "10.64.0.9", false),
        ]
        .into(),
        services: vec![
            Service {
                name: "web".into(),
                aliases: vec!["front".into()],
                mode: EndpointMode::Vip { ipv4: Some("10.64.15.1".parse().unwrap()), ipv6: None },
                backends: vec![backend("10.64.0.6", true), backend("10.64.0.7", false)],
            },
            Service {
                name: "queue".into(),
                aliases: vec![],
                mode: EndpointMode::RoundRobin,
                backends: vec![backend("10.64.0.9", false), backend("10.64.0.8", false)],
            },
            Service { name: "empty".into(), mode: EndpointMode::RoundRobin, ..Service::default() },
        ]
        .into(),
    };
    Index::new("App", &zone)
});

fn ask(text: &str, record_type: RecordType) -> Answer {
    INDEX.lookup(&name(text), record_type)
}

fn addresses(texts: &[&str]) -> Answer {
    Answer::Addresses(texts.iter().map(|text| ip(text)).collect())
}

#[test]
fn a_name_is_known_alone_and_under_the_network_in_any_case() {
    for asked in ["db", "DB", "db.app", "dB.ApP"] {
        assert_eq!(ask(asked, RecordType::A), addresses(&["10.64.0.5"]), "{asked}");
        assert_eq!(ask(asked, RecordType::AAAA), addresses(&["fd00:64::5"]), "{asked}");
    }
    assert_eq!(ask("db", RecordType::ANY), addresses(&["10.64.0.5", "fd00:64::5"]));
    assert_eq!(ask("web.1", RecordType::A), addresses(&["10.64.0.6"]), "a name may have dots");
    assert_eq!(ask("web.1.app", RecordType::A), addresses(&["10.64.0.6"]));
}

#[test]
fn a_service_is_its_virtual_ip_or_its_backends_and_tasks_are_its_backends() {
    assert_eq!(ask("web", RecordType::A), addresses(&["10.64.15.1"]), "not the endpoint of that name");
    assert_eq!(ask("front.app", RecordType::A), addresses(&["10.64.15.1"]));
    assert_eq!(ask("tasks.web", RecordType::A), addresses(&["10.64.0.6"]), "the healthy one");
    assert_eq!(ask("tasks.web.app", RecordType::A), addresses(&["10.64.0.6"]));
    let all = addresses(&["10.64.0.8", "10.64.0.9"]);
    assert_eq!(ask("queue", RecordType::A), all, "all, as none is healthy");
    assert_eq!(ask("tasks.queue", RecordType::A), all);
    assert_eq!(ask("empty", RecordType::A), Answer::NoData { apex: Name::root() });
}

#[test]
fn an_alias_is_all_healthy_endpoints_that_have_it_and_hides_no_name() {
    assert_eq!(ask("www", RecordType::A), addresses(&["10.64.0.6"]));
    assert_eq!(ask("old", RecordType::A), addresses(&["10.64.0.8", "10.64.0.9"]), "fail open");
    assert_eq!(ask("db", RecordType::A), addresses(&["10.64.0.5"]), "the endpoint, not the alias");
    assert_eq!(ask("shop.example.com", RecordType::A), addresses(&["10.64.0.7"]));
}

#[test]
fn a_known_name_has_no_data_of_other_types_rather_than_not_existing() {
    for record_type in [RecordType::AAAA, RecordType::TXT, RecordType::HTTPS, RecordType::Unknown(4711)] {
        assert_eq!(ask("web", record_type), Answer::NoData { apex: Name::root() });
        assert_eq!(ask("web.app", record_type), Answer::NoData { apex: name("app") });
    }
    assert_eq!(ask("shop.example.com", RecordType::AAAA), Answer::NoData { apex: name("shop.example.com") });
    assert_eq!(ask("app", RecordType::A), Answer::NoData { apex: name("app") });
}

#[test]
fn unknown_names_that_would_be_ours_do_not_exist_and_all_others_are_foreign() {
    assert_eq!(ask("nobody", RecordType::A), Answer::NoName { apex: Name::root() });
    assert_eq!(ask("*", RecordType::A), Answer::NoName { apex: Name::root() });
    for asked in ["nobody.app", "*.app", "example.com.app", "tasks.nobody.app", "db.app.app", "vercel.app"] {
        assert_eq!(ask(asked, RecordType::A), Answer::Foreign, "{asked}: public, as it does not exist here");
    }
    for asked in ["example.com", "app.example.com", "tasks.nobody", "db.other", "."] {
        assert_eq!(ask(asked, RecordType::A), Answer::Foreign, "{asked}");
    }
    assert_eq!(ask("com", RecordType::NS), Answer::Foreign, "delegations are the root's");
    for delegation in [RecordType::NS, RecordType::DS] {
        assert_eq!(ask("app", delegation), Answer::Foreign, "also that of the network's own name");
    }
}

#[test]
fn a_dot_within_a_label_is_no_separator() {
    let asked = Name::from_labels([&b"db.app"[..]]).unwrap();
    assert_eq!(INDEX.lookup(&asked, RecordType::A), Answer::NoName { apex: Name::root() });
    let asked = Name::from_labels([&b"web.1"[..], b"app"]).unwrap();
    assert_eq!(INDEX.lookup(&asked, RecordType::A), Answer::Foreign);
}

#[test]
fn a_network_that_is_called_like_a_public_domain_hides_none_of_it() {
    let zone = Zone { endpoints: vec![endpoint("db", &[], "10.64.0.5", true)].into(), ..Zone::default() };
    let index = Index::new("example.com", &zone);
    let ask = |asked| index.lookup(&name(asked), RecordType::A);
    assert_eq!(ask("db.example.com"), addresses(&["10.64.0.5"]));
    assert_eq!(ask("www.example.com"), Answer::Foreign);
    assert_eq!(ask("example.com"), Answer::Apex(name("example.com")));
    assert_eq!(ask("com"), Answer::NoName { apex: Name::root() });
}

#[test]
fn of_several_networks_a_name_under_a_networks_own_goes_first_and_then_the_first_networks() {
    let zone = |endpoints: Vec<Endpoint>, subnet: &str| Zone {
        subnets: vec![subnet.parse().unwrap()],
        endpoints: endpoints.into(),
        ..Zone::default()
    };
    let front = vec![endpoint("web", &["redis.back"], "10.64.0.5", true)];
    let back = vec![endpoint("web", &[], "10.65.0.5", true), endpoint("redis", &[], "10.65.0.6", true)];
    let front = Index::new("front", &zone(front, "10.64.0.0/20"));
    let back = Index::new("back", &zone(back, "10.65.0.0/20"));
    let ask = |asked| lookup(&[&front, &back], &name(asked), RecordType::A);
    assert_eq!(ask("web"), addresses(&["10.64.0.5"]));
    assert_eq!(ask("web.back"), addresses(&["10.65.0.5"]));
    assert_eq!(ask("redis"), addresses(&["10.65.0.6"]));
    assert_eq!(ask("redis.back"), addresses(&["10.65.0.6"]), "not the alias in the other network");
    let reverse = lookup(&[&front, &back], &Name::from(ip("10.65.0.6")), RecordType::PTR);
    assert_eq!(reverse, Answer::Pointer(name("redis.back")));
    assert_eq!(lookup(&[&back, &front], &name("web"), RecordType::A), addresses(&["10.65.0.5"]));
}

#[test]
fn an_address_outside_of_the_networks_subnets_has_no_name_of_ours() {
    let zone = Zone {
        subnets: vec!["10.64.0.0/20".parse().unwrap()],
        endpoints: vec![endpoint("liar", &[], "8.8.8.8", true)].into(),
        ..Zone::default()
    };
    let index = Index::new("app", &zone);
    assert_eq!(index.lookup(&Name::from(ip("8.8.8.8")), RecordType::PTR), Answer::Foreign);
    let unknown = index.lookup(&Name::from(ip("10.64.3.4")), RecordType::PTR);
    assert_eq!(unknown, Answer::NoName { apex: name("3.64.10.in-addr.arpa") }, "no more than is ours");
}

#[test]
fn addresses_point_to_the_names_that_have_them() {
    let reverse = |address: &str| INDEX.lookup(&Name::from(ip(address)), RecordType::PTR);
    let pointed = |text| Answer::Pointer(name(text));
    assert_eq!(reverse("10.64.0.5"), pointed("db.app"));
    assert_eq!(reverse("fd00:64::5"), pointed("db.app"));
    assert_eq!(reverse("10.64.0.6"), pointed("web.1.app"));
    assert_eq!(reverse("10.64.15.1"), pointed("web.app"));
    assert!(matches!(reverse("10.64.0.77"), Answer::NoName { .. }), "of our subnet, so not asked elsewhere");
    assert!(matches!(reverse("fd00:64::77"), Answer::NoName { .. }));
    assert_eq!(reverse("192.0.2.1"), Answer::Foreign);
    assert_eq!(reverse("fd00:65::5"), Answer::Foreign);
    assert!(matches!(ask("5.0.64.10.in-addr.arpa", RecordType::A), Answer::NoData { .. }));
    assert!(matches!(ask("0.64.10.in-addr.arpa", RecordType::NS), Answer::NoData { .. }));
    assert_eq!(ask("10.in-addr.arpa", RecordType::NS), Answer::Foreign, "only a part of it is ours");
}

#[test]
fn a_network_whose_name_no_message_can_hold_owns_no_suffix() {
    let index = Index::new(&"x".repeat(64), &Zone::default());
    assert_eq!(index.lookup(&name("example.com"), RecordType::A), Answer::Foreign);
}

const NAMES: [&str; 6] = ["a", "b", "A", "c.d", "tasks.a", "e"];

fn arbitrary_zone() -> impl Strategy<Value = Zone> {
    let v4 = || option::of((0..20_u32).prop_map(|n| Ipv4Addr::from(0x0a40_0000 + n)));
    let v6 = || option::of((0..20_u128).prop_map(|n| Ipv6Addr::from((0xfd00 << 112) + n)));
    let aliases = || subsequence(NAMES.map(String::from).to_vec(), 0..3);
    let endpoint = (select(&NAMES[..]), aliases(), v4(), v6(), any::<bool>()).prop_map(
        |(name, aliases, ipv4, ipv6, healthy)| Endpoint { name: name.into(), aliases, ipv4, ipv6, healthy },
    );
    let backend =
        (v4(), v6(), any::<bool>()).prop_map(|(ipv4, ipv6, healthy)| Backend { ipv4, ipv6, healthy });
    let mode = prop_oneof![
        Just(EndpointMode::RoundRobin),
        (v4(), v6()).prop_map(|(ipv4, ipv6)| EndpointMode::Vip { ipv4, ipv6 }),
    ];
    let service = (select(&NAMES[..]), aliases(), mode, vec(backend, 0..4))
        .prop_map(|(name, aliases, mode, backends)| Service { name: name.into(), aliases, mode, backends });
    (vec(endpoint, 0..5), vec(service, 0..3)).prop_map(|(endpoints, services)| Zone {
        endpoints: endpoints.into(),
        services: services.into(),
        subnets: vec!["10.64.0.0/20".parse().unwrap()],
        ..Zone::default()
    })
}

/// Two zones of which the second has some parts of the first, and others.
fn two_zones() -> impl Strategy<Value = (Zone, Zone)> {
    fn mixed<T: Clone>(first: &[List<T>], second: &[List<T>], kept: &[bool]) -> List<T> {
        let both = first.iter().zip(second).zip(kept);
        List::of_parts(both.flat_map(|((a, b), kept)| if *kept { a } else { b }.parts().to_vec()))
    }
    (vec(arbitrary_zone(), 4), vec(arbitrary_zone(), 4), vec(any::<bool>(), 4)).prop_map(|(a, b, kept)| {
        let services = |zones: &[Zone]| zones.iter().map(|zone| zone.services.clone()).collect::<Vec<_>>();
        let endpoints = |zones: &[Zone]| zones.iter().map(|zone| zone.endpoints.clone()).collect::<Vec<_>>();
        let zone = |kept: &[bool]| Zone {
            services: mixed(&services(&a), &services(&b), kept),
            endpoints: mixed(&endpoints(&a), &endpoints(&b), kept),
            ..a[0].clone()
        };
        (zone(&[true; 4]), zone(&kept))
    })
}

/// All addresses that the zone has anywhere.
fn all_addresses(zone: &Zone) -> BTreeSet<IpAddr> {
    let endpoints = zone.endpoints.iter().map(|endpoint| (endpoint.ipv4, endpoint.ipv6));
    let services = zone.services.iter().flat_map(|service| {
        let vip = match service.mode {
            EndpointMode::Vip { ipv4, ipv6 } => (ipv4, ipv6),
            EndpointMode::RoundRobin => (None, None),
        };
        service.backends.iter().map(|backend| (backend.ipv4, backend.ipv6)).chain([vip])
    });
    endpoints
        .chain(services)
        .flat_map(|(v4, v6)| v4.map(IpAddr::from).into_iter().chain(v6.map(IpAddr::from)))
        .collect()
}

proptest! {
    #[test]
    fn an_index_that_follows_another_answers_as_a_new_one(
        (before, zone) in two_zones(),
        asked in select(&NAMES[..]),
    ) {
        let following = Index::following(Some(&Index::new("net", &before)), "net", &zone);
        let new = Index::new("net", &zone);
        for record_type in [RecordType::A, RecordType::AAAA] {
            for asked in [asked.to_owned(), format!("tasks.{asked}")] {
                let asked = name(&asked);
                prop_assert_eq!(following.lookup(&asked, record_type), new.lookup(&asked, record_type));
            }
        }
        for address in all_addresses(&before).into_iter().chain(all_addresses(&zone)) {
            let asked = Name::from(address);
            prop_assert_eq!(following.lookup(&asked, RecordType::PTR), new.lookup(&asked, RecordType::PTR));
        }
    }

    #[test]
    fn in_how_many_parts_a_list_is_makes_no_difference(zone in arbitrary_zone(), asked in select(&NAMES[..])) {
        fn singly<T: Clone>(list: &List<T>) -> List<T> {
            List::of_parts(list.iter().map(|item| Arc::new(vec![item.clone()])))
        }
        let parted =
            Zone { services: singly(&zone.services), endpoints: singly(&zone.endpoints), ..zone.clone() };
        let (parted, whole) = (Index::new("net", &parted), Index::new("net", &zone));
        for record_type in [RecordType::A, RecordType::AAAA] {
            prop_assert_eq!(parted.lookup(&name(asked), record_type), whole.lookup(&name(asked), record_type));
        }
    }

    #[test]
    fn every_answer_is_of_the_zone_and_of_the_asked_type(zone in arbitrary_zone(), asked in select(&NAMES[..])) {
        let index = Index::new("net", &zone);
        let known = all_addresses(&zone);
        for record_type in [RecordType::A, RecordType::AAAA] {
            let alone = index.lookup(&name(asked), record_type);
            let below = index.lookup(&name(&format!("{asked}.net")), record_type);
            if let Answer::Addresses(addresses) = &alone {
                prop_assert_eq!(&alone, &below, "with and without the network's name it is the same");
                prop_assert!(!addresses.is_empty());
                for address in addresses {
                    prop_assert!(known.contains(address));
                    prop_assert_eq!(address.is_ipv4(), record_type == RecordType::A);
                }
            } else {
                prop_assert!(!matches!(below, Answer::Addresses(_)));
            }
        }
    }

    #[test]
    fn an_endpoint_that_shares_its_name_with_nothing_is_found_by_it_and_by_its_address(
        zone in arbitrary_zone(),
        last in 100..200_u8,
    ) {
        let mut zone = zone;
        let address = Ipv4Addr::new(10, 64, 1, last);
        let new = endpoint("Only-Me", &[], &address.to_string(), false);
        zone.endpoints = zone.endpoints.iter().cloned().chain([new]).collect();
        let index = Index::new("net", &zone);
        prop_assert_eq!(
            index.lookup(&name("only-me"), RecordType::A),
            Answer::Addresses(vec![address.into()])
        );
        prop_assert_eq!(
            index.lookup(&Name::from(address), RecordType::PTR),
            Answer::Pointer(name("only-me.net"))
        );
    }

    #[test]
    fn an_unhealthy_backend_is_given_only_when_all_are(
        backends in vec((1..250_u8, any::<bool>()), 1..8),
    ) {
        let service = Service {
            name: "s".into(),
            mode: EndpointMode::RoundRobin,
            backends: backends.iter().map(|(n, healthy)| backend(&format!("10.64.0.{n}"), *healthy)).collect(),
            ..Service::default()
        };
        let index = Index::new("net", &Zone { services: vec![service].into(), ..Zone::default() });
        let any_healthy = backends.iter().any(|(_, healthy)| *healthy);
        let expected: BTreeSet<IpAddr> = backends
            .iter()
            .filter(|(_, healthy)| *healthy || !any_healthy)
            .map(|(n, _)| Ipv4Addr::new(10, 64, 0, *n).into())
            .collect();
        let answer = index.lookup(&name("tasks.s"), RecordType::A);
        prop_assert_eq!(answer, Answer::Addresses(expected.into_iter().collect()));
    }

    #[test]
    fn any_labels_at_all_have_an_answer(labels in vec(vec(any::<u8>(), 1..20), 0..6), code in any::<u16>()) {
        if let Ok(asked) = Name::from_labels(labels.iter().map(Vec::as_slice)) {
            let answer = INDEX.lookup(&asked, RecordType::from(code));
            let no_name = matches!(answer, Answer::NoName { .. });
            prop_assert!(labels.len() == 1 || !no_name, "nothing public is denied");
        }
    }
}
