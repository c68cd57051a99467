use std::fmt::Debug;

use super::*;

fn comes_back<R, M>(record: &R)
where
    R: TryFrom<M, Error = InvalidMessage> + Clone + PartialEq + Debug,
    M: for<'a> From<&'a R>,
{
    assert_eq!(&R::try_from(M::from(record)).unwrap(), record);
}

fn port(published: u16) -> model::PublishedPort {
    model::PublishedPort {
        published,
        target: 80,
        protocol: model::Protocol::Sctp,
        mode: model::PublishMode::Host,
        host_ip: Some("fd00::7".parse().unwrap()),
    }
}

fn check() -> model::HealthCheck {
    let kind = model::HealthKind::Http { port: 8080, path: "/healthz".into() };
    model::HealthCheck::new(kind, Duration::from_millis(1500), 5)
        .and_then(|check| check.with_timeout(Duration::from_secs(30)))
        .and_then(|check| check.with_start_period(Duration::from_secs(40)))
        .and_then(|check| check.with_start_interval(Duration::from_millis(700)))
        .and_then(|check| check.with_host("localhost:8080".into()))
        .unwrap()
        .with_loopback(model::Loopback::Localhost)
}

fn service() -> model::Service {
    model::Service {
        id: format!("{:024x}", 1).parse().unwrap(),
        name: "web".parse().unwrap(),
        network: format!("{:024x}", 2).parse().unwrap(),
        endpoint_mode: model::EndpointMode::Vip,
        vip: Some("10.64.15.0".parse().unwrap()),
        vip6: Some("fd00::f000".parse().unwrap()),
        ports: vec![port(8080), model::PublishedPort::ingress(53, 5353, model::Protocol::Udp)],
        affinity: model::Affinity::ClientIp,
        when_all_unhealthy: model::WhenAllUnhealthy::None,
        health: Some(check()),
        aliases: vec!["www".parse().unwrap()],
        labels: [("tier".to_owned(), "web".to_owned())].into(),
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
    }
}

fn backend() -> model::Backend {
    model::Backend {
        id: 7.try_into().unwrap(),
        service: format!("{:024x}", 1).parse().unwrap(),
        network: format!("{:024x}", 2).parse().unwrap(),
        endpoint: format!("{:024x}", 3).parse().unwrap(),
        name: "web1".parse().unwrap(),
        node: format!("{:024x}", 4).parse().unwrap(),
        ipv4: Some("10.64.0.2".parse().unwrap()),
        ipv6: None,
        state: model::BackendState::Draining,
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
    }
}

#[test]
fn services_and_backends_survive_the_wire() {
    comes_back::<_, v1::Service>(&service());
    let tcp = model::HealthCheck::new(model::HealthKind::Tcp { port: 1 }, Duration::from_secs(1), 1).unwrap();
    comes_back::<_, v1::Service>(&model::Service {
        endpoint_mode: model::EndpointMode::Dnsrr,
        vip: None,
        vip6: None,
        ports: Vec::new(),
        affinity: model::Affinity::None,
        when_all_unhealthy: model::WhenAllUnhealthy::All,
        health: Some(tcp),
        ..service()
    });
    comes_back::<_, v1::Backend>(&backend());
    let keys = [(1, "a".to_owned()), (2, "b".to_owned())].into();
    comes_back::<_, v1::Wireguard>(&model::Wireguard { port: 51820, keys });
}

#[test]
fn a_request_that_leaves_things_open_gets_their_defaults() {
    let port = v1::PublishedPort { target: 80, ..Default::default() };
    let expected = model::PublishedPort::ingress(0, 80, model::Protocol::Tcp);
    assert_eq!(model::PublishedPort::try_from(port).unwrap(), expected);
    let kind = v1::health_check::Kind::Tcp(v1::TcpCheck { port: 80 });
    let check = model::HealthCheck::try_from(v1::HealthCheck {
        kind: Some(kind),
        interval_ms: 0,
        retries: 0,
        ..Default::default()
    });
    let check = check.unwrap();
    assert_eq!((check.interval, check.retries), (Duration::from_secs(2), 3));
}

#[test]
fn a_message_with_an_impossible_value_is_refused_by_the_name_of_its_field() {
    let port = |change: fn(&mut v1::PublishedPort)| {
        let mut message = v1::PublishedPort::from(&port(8080));
        change(&mut message);
        model::PublishedPort::try_from(message).unwrap_err().field
    };
    assert_eq!(port(|port| port.published = 65536), "published");
    assert_eq!(port(|port| port.target = 0), "target");
    assert_eq!(port(|port| port.protocol = 99), "protocol");
    assert_eq!(port(|port| port.mode = 99), "mode");
    assert_eq!(port(|port| port.host_ip = "224.0.0.1".into()), "host_ip");

    let http = |path: &str| v1::HealthCheck {
        kind: Some(v1::health_check::Kind::Http(v1::HttpCheck { port: 80, path: path.into() })),
        interval_ms: 0,
        retries: 0,
        ..Default::default()
    };
    assert!(model::HealthCheck::try_from(http("/")).is_ok());
    let error = model::HealthCheck::try_from(http("healthz")).unwrap_err();
    assert!(error.to_string().contains("slash"), "{error}");
    assert!(model::HealthCheck::try_from(v1::HealthCheck::default()).is_err());

    for id in [0, model::BackendId::MAX + 1] {
        let message = v1::Backend { id, ..v1::Backend::from(&backend()) };
        assert_eq!(model::Backend::try_from(message).unwrap_err().field, "id");
    }
    let message = v1::Backend { state: 0, ..v1::Backend::from(&backend()) };
    assert_eq!(model::Backend::try_from(message).unwrap_err().field, "state");
    let message = v1::Wireguard { port: 0, ..v1::Wireguard::default() };
    assert_eq!(model::Wireguard::try_from(message).unwrap_err().field, "port");
}
