//! Services, their published ports and health checks, and backends.

use std::time::Duration;

use mesh_model as model;
use mesh_model::health::InvalidHealthCheck;

use super::field::{InvalidMessage, checked, enumeration, known, parse, parse_optional, port};
use crate::v1;

enumeration!(EndpointMode { Vip, Dnsrr }, unspecified: Ok(Self::Vip));
enumeration!(Affinity { None, ClientIp }, unspecified: Ok(Self::None));
enumeration!(WhenAllUnhealthy { All, None }, unspecified: Ok(Self::All));
enumeration!(Protocol { Tcp, Udp, Sctp }, unspecified: Ok(Self::Tcp));
enumeration!(PublishMode { Ingress, Host }, unspecified: Ok(Self::Ingress));
enumeration!(
    BackendState { Active, Draining },
    unspecified: Err(InvalidMessage { field: "state", reason: "is missing".into() })
);

fn text<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

impl From<&model::PublishedPort> for v1::PublishedPort {
    fn from(port: &model::PublishedPort) -> Self {
        Self {
            published: port.published.into(),
            target: port.target.into(),
            protocol: v1::Protocol::from(port.protocol).into(),
            mode: v1::PublishMode::from(port.mode).into(),
            host_ip: text(port.host_ip),
        }
    }
}

impl TryFrom<v1::PublishedPort> for model::PublishedPort {
    type Error = InvalidMessage;

    fn try_from(message: v1::PublishedPort) -> Result<Self, InvalidMessage> {
        let host_ip = parse_optional("host_ip", &message.host_ip)?;
        if let Some(address) = host_ip.filter(|address| !model::published::is_host_address(*address)) {
            return Err(InvalidMessage {
                field: "host_ip",
                reason: format!("{address} is no address of a host"),
            });
        }
        Ok(Self {
            published: checked("published", message.published)?,
            target: port("target", message.target)?,
            protocol: known::<v1::Protocol>("protocol", message.protocol)?.try_into()?,
            mode: known::<v1::PublishMode>("mode", message.mode)?.try_into()?,
            host_ip,
        })
    }
}

impl From<&model::HealthCheck> for v1::HealthCheck {
    fn from(check: &model::HealthCheck) -> Self {
        use v1::health_check::Kind;
        // At most a day, as the check's constructor has seen to.
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let kind = match &check.kind {
            model::HealthKind::Tcp { port } => Kind::Tcp(v1::TcpCheck { port: (*port).into() }),
            model::HealthKind::Http { port, path } => {
                Kind::Http(v1::HttpCheck { port: (*port).into(), path: path.clone() })
            }
        };
        Self {
            kind: Some(kind),
            interval_ms: millis(check.interval),
            retries: check.retries,
            timeout_ms: check.timeout.map_or(0, millis),
            start_period_ms: millis(check.start_period),
            start_interval_ms: check.start_interval.map_or(0, millis),
            loopback: check.loopback.map(|loopback| loopback.as_str().to_owned()).unwrap_or_default(),
            host: check.host.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::HealthCheck> for model::HealthCheck {
    type Error = InvalidMessage;

    fn try_from(check: v1::HealthCheck) -> Result<Self, InvalidMessage> {
        use v1::health_check::Kind;
        let kind = match super::required("health", check.kind)? {
            Kind::Tcp(tcp) => model::HealthKind::Tcp { port: port("health", tcp.port)? },
            Kind::Http(http) => model::HealthKind::Http { port: port("health", http.port)?, path: http.path },
        };
        let interval = match check.interval_ms {
            0 => Self::DEFAULT_INTERVAL,
            millis => Duration::from_millis(millis),
        };
        let retries = if check.retries == 0 { Self::DEFAULT_RETRIES } else { check.retries };
        let invalid =
            |error: InvalidHealthCheck| InvalidMessage { field: "health", reason: error.to_string() };
        let mut made = Self::new(kind, interval, retries)
            .and_then(|made| made.with_start_period(Duration::from_millis(check.start_period_ms)))
            .map_err(invalid)?;
        if check.timeout_ms != 0 {
            made = made.with_timeout(Duration::from_millis(check.timeout_ms)).map_err(invalid)?;
        }
        if check.start_interval_ms != 0 {
            let interval = Duration::from_millis(check.start_interval_ms);
            made = made.with_start_interval(interval).map_err(invalid)?;
        }
        if !check.host.is_empty() {
            made = made.with_host(check.host).map_err(invalid)?;
        }
        if !check.loopback.is_empty() {
            let loopback = model::Loopback::parse(&check.loopback)
                .ok_or_else(|| invalid(InvalidHealthCheck::Loopback { text: check.loopback }))?;
            made = made.with_loopback(loopback);
        }
        Ok(made)
    }
}

impl From<&model::Service> for v1::Service {
    fn from(service: &model::Service) -> Self {
        Self {
            id: service.id.to_string(),
            name: service.name.to_string(),
            network: service.network.to_string(),
            endpoint_mode: v1::EndpointMode::from(service.endpoint_mode).into(),
            vip: text(service.vip),
            vip6: text(service.vip6),
            ports: service.ports.iter().map(Into::into).collect(),
            affinity: v1::Affinity::from(service.affinity).into(),
            health: service.health.as_ref().map(Into::into),
            created_at: service.created_at.to_string(),
            aliases: service.aliases.iter().map(ToString::to_string).collect(),
            labels: service.labels.clone().into_iter().collect(),
            when_all_unhealthy: v1::WhenAllUnhealthy::from(service.when_all_unhealthy).into(),
        }
    }
}

impl TryFrom<v1::Service> for model::Service {
    type Error = InvalidMessage;

    fn try_from(service: v1::Service) -> Result<Self, InvalidMessage> {
        Ok(Self {
            id: parse("id", &service.id)?,
            name: parse("name", &service.name)?,
            network: parse("network", &service.network)?,
            endpoint_mode: known::<v1::EndpointMode>("endpoint_mode", service.endpoint_mode)?.try_into()?,
            vip: parse_optional("vip", &service.vip)?,
            vip6: parse_optional("vip6", &service.vip6)?,
            ports: service.ports.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            affinity: known::<v1::Affinity>("affinity", service.affinity)?.try_into()?,
            health: service.health.map(TryInto::try_into).transpose()?,
            when_all_unhealthy: known::<v1::WhenAllUnhealthy>(
                "when_all_unhealthy",
                service.when_all_unhealthy,
            )?
            .try_into()?,
            aliases: service.aliases.iter().map(|alias| parse("aliases", alias)).collect::<Result<_, _>>()?,
            labels: service.labels.into_iter().collect(),
            created_at: parse("created_at", &service.created_at)?,
        })
    }
}

impl From<&model::Backend> for v1::Backend {
    fn from(backend: &model::Backend) -> Self {
        Self {
            id: backend.id.get(),
            service: backend.service.to_string(),
            network: backend.network.to_string(),
            endpoint: backend.endpoint.to_string(),
            name: backend.name.to_string(),
            node: backend.node.to_string(),
            ipv4: text(backend.ipv4),
            ipv6: text(backend.ipv6),
            state: v1::BackendState::from(backend.state).into(),
            created_at: backend.created_at.to_string(),
        }
    }
}

impl TryFrom<v1::Backend> for model::Backend {
    type Error = InvalidMessage;

    fn try_from(backend: v1::Backend) -> Result<Self, InvalidMessage> {
        Ok(Self {
            id: checked("id", backend.id)?,
            service: parse("service", &backend.service)?,
            network: parse("network", &backend.network)?,
            endpoint: parse("endpoint", &backend.endpoint)?,
            name: parse("name", &backend.name)?,
            node: parse("node", &backend.node)?,
            ipv4: parse_optional("ipv4", &backend.ipv4)?,
            ipv6: parse_optional("ipv6", &backend.ipv6)?,
            state: known::<v1::BackendState>("state", backend.state)?.try_into()?,
            created_at: parse("created_at", &backend.created_at)?,
        })
    }
}

#[cfg(test)]
mod tests;
