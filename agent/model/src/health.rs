//! Health checks: how the node that owns a service's backend finds out whether it works.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthKind {
    /// A TCP connection is made and closed.
    Tcp {
        /// The backend's port.
        port: u16,
    },
    /// `GET` (HTTP/1.1); any answer of 200 to 399 is good.
    Http {
        /// The backend's port.
        port: u16,
        /// What is asked for: it begins with a slash.
        path: String,
    },
}

/// The result of a backend's checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    /// `None` until the first success, or until enough failures.
    pub healthy: Option<bool>,
    /// Why the last check failed; empty after a success.
    pub error: String,
}

impl Finding {
    /// Characters of the longest error.
    pub const MAX_ERROR: usize = 200;

    /// A finding whose error is one printable line of limited length, whatever the check's target
    /// sent.
    pub fn new(healthy: Option<bool>, error: &str) -> Self {
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        Self { healthy, error: error.chars().map(printable).take(Self::MAX_ERROR).collect() }
    }
}

/// How a service's backends are checked. One that fails [`retries`](Self::retries) times in a row
/// is unhealthy until the next success. A new one is unknown until its first success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct HealthCheck {
    /// What is tried.
    pub kind: HealthKind,
    /// From one try to the next: 100 ms to an hour.
    pub interval: Duration,
    /// So many failures in a row make a backend unhealthy: 1 to 100.
    pub retries: u32,
    /// How long a try may take, if not [as long as usual](Self::timeout): up to an hour.
    pub timeout: Option<Duration>,
    /// Failures in this time after the first try do not count, until the first success: up to a
    /// day.
    pub start_period: Duration,
    /// From one try to the next in the start period, if not as usual: 100 ms to an hour. Without
    /// it, and after the start period, a new backend is tried once a second at least.
    pub start_interval: Option<Duration>,
    /// The loopback address of the endpoint's namespace that is asked, instead of the endpoint's
    /// own address.
    pub loopback: Option<Loopback>,
    /// The `Host` header of an HTTP check, if not the address and port that are asked.
    pub host: Option<String>,
}

/// A host's name for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loopback {
    /// Whichever of both answers.
    #[serde(rename = "localhost")]
    Localhost,
    /// IPv4.
    #[serde(rename = "127.0.0.1")]
    Ipv4,
    /// IPv6.
    #[serde(rename = "::1")]
    Ipv6,
}

impl Loopback {
    /// As people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Localhost => "localhost",
            Self::Ipv4 => "127.0.0.1",
            Self::Ipv6 => "::1",
        }
    }

    /// Reads what [`as_str`](Self::as_str) writes.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Localhost, Self::Ipv4, Self::Ipv6].into_iter().find(|known| known.as_str() == text)
    }

    /// The addresses to try, in order.
    pub const fn addresses(self) -> &'static [IpAddr] {
        const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
        const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
        match self {
            Self::Localhost => &[V4, V6],
            Self::Ipv4 => &[V4],
            Self::Ipv6 => &[V6],
        }
    }
}

/// Why a health check cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHealthCheck {
    /// Port 0.
    #[error("{port:?} is no port to check: 1 to 65535")]
    Port {
        /// What was given.
        port: String,
    },
    /// The path does not begin with a slash.
    #[error("HTTP path {path:?} does not begin with a slash")]
    NoSlash {
        /// The path as given.
        path: String,
    },
    /// The path has a character that cannot be in a request line (RFC 9112, section 3), or is too
    /// long.
    #[error(
        "HTTP path {path:?} cannot be asked for: at most {} printable ASCII characters, no space",
        HealthCheck::MAX_PATH
    )]
    Path {
        /// The path as given.
        path: String,
    },
    /// Too often or too seldom.
    #[error("health interval {interval:?} is out of range: 100ms to 1h")]
    Interval {
        /// The interval as given.
        interval: Duration,
    },
    /// Too often or too seldom.
    #[error("health start interval {interval:?} is out of range: 100ms to 1h")]
    StartInterval {
        /// The interval as given.
        interval: Duration,
    },
    /// Too short or too long.
    #[error("health timeout {timeout:?} is out of range: 1ms to 1h")]
    Timeout {
        /// The timeout as given.
        timeout: Duration,
    },
    /// Too long.
    #[error("health start period {period:?} is out of range: up to 24h")]
    StartPeriod {
        /// The period as given.
        period: Duration,
    },
    /// It cannot be in a header (RFC 9112, section 5), or is too long.
    #[error("HTTP host {host:?} cannot be sent: 1 to 255 printable ASCII characters, no space")]
    Host {
        /// The host as given.
        host: String,
    },
    /// Neither localhost nor its addresses.
    #[error("{text:?} is no loopback address: localhost, 127.0.0.1 or ::1")]
    Loopback {
        /// What was given.
        text: String,
    },
    /// Never, or hardly ever.
    #[error("health retries {retries} are out of range: 1 to {}", HealthCheck::MAX_RETRIES)]
    Retries {
        /// The number as given.
        retries: u32,
    },
}

impl HealthKind {
    /// Reads `PORT`, as `--health-tcp` takes it.
    pub fn parse_tcp(text: &str) -> Result<Self, InvalidHealthCheck> {
        Ok(Self::Tcp { port: port(text)? })
    }

    /// Reads `PORT/PATH`, as `--health-http` takes it: the path begins with that slash.
    pub fn parse_http(text: &str) -> Result<Self, InvalidHealthCheck> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, path) = text.split_at(digits);
        if !number.is_empty() && !path.starts_with('/') {
            return Err(InvalidHealthCheck::NoSlash { path: path.to_owned() });
        }
        Ok(Self::Http { port: port(number)?, path: path.to_owned() })
    }

    /// The backend's port.
    pub const fn port(&self) -> u16 {
        match self {
            Self::Tcp { port } | Self::Http { port, .. } => *port,
        }
    }
}

fn port(text: &str) -> Result<u16, InvalidHealthCheck> {
    let port = text.parse::<NonZeroU16>();
    port.map(NonZeroU16::get).map_err(|_| InvalidHealthCheck::Port { port: text.to_owned() })
}

impl fmt::Display for HealthKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { port } => write!(f, "tcp {port}"),
            Self::Http { port, path } => write!(f, "http {port}{path}"),
        }
    }
}

impl HealthCheck {
    /// Default interval between tries.
    pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
    /// Default number of consecutive failures.
    pub const DEFAULT_RETRIES: u32 = 3;
    /// Characters of the longest path.
    pub const MAX_PATH: usize = 1024;
    /// The most failures in a row.
    pub const MAX_RETRIES: u32 = 100;
    /// The longest that a try may take unless it is given.
    const USUAL_TIMEOUT: Duration = Duration::from_secs(1);
    /// The intervals that there may be.
    const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Self::MAX_INTERVAL;
    /// The longest that a new backend waits for its next try, unless the start interval says so.
    const USUAL_START_INTERVAL: Duration = Duration::from_secs(1);
    /// The longest interval and timeout.
    const MAX_INTERVAL: Duration = Duration::from_hours(1);
    /// The longest start period.
    const MAX_START_PERIOD: Duration = Duration::from_hours(24);

    /// A check whose values are all in their ranges.
    pub fn new(kind: HealthKind, interval: Duration, retries: u32) -> Result<Self, InvalidHealthCheck> {
        if kind.port() == 0 {
            return Err(InvalidHealthCheck::Port { port: "0".to_owned() });
        }
        if let HealthKind::Http { path, .. } = &kind {
            if !path.starts_with('/') {
                return Err(InvalidHealthCheck::NoSlash { path: path.clone() });
            }
            if path.len() > Self::MAX_PATH || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(InvalidHealthCheck::Path { path: path.clone() });
            }
        }
        if !Self::INTERVALS.contains(&interval) {
            return Err(InvalidHealthCheck::Interval { interval });
        }
        if !(1..=Self::MAX_RETRIES).contains(&retries) {
            return Err(InvalidHealthCheck::Retries { retries });
        }
        let (timeout, start_period) = (None, Duration::ZERO);
        Ok(Self {
            kind,
            interval,
            retries,
            timeout,
            start_period,
            start_interval: None,
            loopback: None,
            host: None,
        })
    }

    /// The same check with another time for one try.
    pub fn with_timeout(self, timeout: Duration) -> Result<Self, InvalidHealthCheck> {
        if !(Duration::from_millis(1)..=Self::MAX_INTERVAL).contains(&timeout) {
            return Err(InvalidHealthCheck::Timeout { timeout });
        }
        Ok(Self { timeout: Some(timeout), ..self })
    }

    /// The same check with a start period.
    pub fn with_start_period(self, period: Duration) -> Result<Self, InvalidHealthCheck> {
        if period > Self::MAX_START_PERIOD {
            return Err(InvalidHealthCheck::StartPeriod { period });
        }
        Ok(Self { start_period: period, ..self })
    }

    /// The same check with another interval in the start period.
    pub fn with_start_interval(self, interval: Duration) -> Result<Self, InvalidHealthCheck> {
        if !Self::INTERVALS.contains(&interval) {
            return Err(InvalidHealthCheck::StartInterval { interval });
        }
        Ok(Self { start_interval: Some(interval), ..self })
    }

    /// The same check at a loopback address of the endpoint's namespace.
    #[must_use]
    pub fn with_loopback(self, loopback: Loopback) -> Self {
        Self { loopback: Some(loopback), ..self }
    }

    /// The same check with another `Host` header.
    pub fn with_host(self, host: String) -> Result<Self, InvalidHealthCheck> {
        if host.is_empty() || host.len() > 255 || !host.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidHealthCheck::Host { host });
        }
        Ok(Self { host: Some(host), ..self })
    }

    /// From one try of a backend to the next. `is_new`: it has neither passed yet nor failed often
    /// enough; `age`: the time since its first try.
    pub fn pause(&self, is_new: bool, age: Duration) -> Duration {
        match self.start_interval {
            _ if !is_new => self.interval,
            Some(interval) if age < self.start_period => interval,
            _ => self.interval.min(Self::USUAL_START_INTERVAL),
        }
    }

    /// How long one try may take: the interval, and a second at most, unless it is given.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or_else(|| self.interval.min(Self::USUAL_TIMEOUT))
    }
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        match (self.loopback, &self.host) {
            (Some(loopback), Some(host)) if host.as_str() != loopback.as_str() => {
                write!(f, " at {} as {host}", loopback.as_str())
            }
            (Some(loopback), _) => write!(f, " at {}", loopback.as_str()),
            (None, Some(host)) => write!(f, " as {host}"),
            (None, None) => Ok(()),
        }
    }
}

/// The JSON form.
#[derive(Serialize, Deserialize)]
struct Unchecked {
    kind: HealthKind,
    interval_ms: u64,
    retries: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    start_period_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_interval_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loopback: Option<Loopback>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl TryFrom<Unchecked> for HealthCheck {
    type Error = InvalidHealthCheck;

    fn try_from(unchecked: Unchecked) -> Result<Self, InvalidHealthCheck> {
        let interval = Duration::from_millis(unchecked.interval_ms);
        let mut check = Self::new(unchecked.kind, interval, unchecked.retries)?
            .with_start_period(Duration::from_millis(unchecked.start_period_ms))?;
        if let Some(timeout) = unchecked.timeout_ms {
            check = check.with_timeout(Duration::from_millis(timeout))?;
        }
        if let Some(interval) = unchecked.start_interval_ms {
            check = check.with_start_interval(Duration::from_millis(interval))?;
        }
        if let Some(host) = unchecked.host {
            check = check.with_host(host)?;
        }
        Ok(Self { loopback: unchecked.loopback, ..check })
    }
}

impl From<HealthCheck> for Unchecked {
    fn from(check: HealthCheck) -> Self {
        // At most a day, as checked.
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            kind: check.kind,
            interval_ms: millis(check.interval),
            retries: check.retries,
            timeout_ms: check.timeout.map(millis),
            start_period_ms: millis(check.start_period),
            start_interval_ms: check.start_interval.map(millis),
            loopback: check.loopback,
            host: check.host,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_check_is_written_as_port_and_path() {
        let kind = HealthKind::parse_http("8080/healthz?full=1").unwrap();
        assert_eq!(kind, HealthKind::Http { port: 8080, path: "/healthz?full=1".into() });
        assert_eq!(HealthKind::parse_tcp("5432").unwrap(), HealthKind::Tcp { port: 5432 });
        for bad in ["8080", "8080healthz"] {
            let error = HealthKind::parse_http(bad).unwrap_err().to_string();
            assert!(error.contains("slash"), "{bad}: {error}");
        }
        for bad in ["", "/healthz", "0/", "65536/", "x/"] {
            let error = HealthKind::parse_http(bad).unwrap_err().to_string();
            assert!(error.contains("port"), "{bad}: {error}");
        }
        for bad in ["", "0", "80/", "http"] {
            assert!(HealthKind::parse_tcp(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_check_out_of_range_cannot_be_made_nor_read() {
        let http = |path: &str| HealthKind::Http { port: 80, path: path.into() };
        let new = |kind| HealthCheck::new(kind, HealthCheck::DEFAULT_INTERVAL, HealthCheck::DEFAULT_RETRIES);
        assert!(new(http("/")).is_ok());
        for path in ["", "healthz", "/a b", "/a\r\nHost: x", &format!("/{}", "x".repeat(1024))] {
            assert!(new(http(path)).is_err(), "{path:?}");
        }
        assert!(new(HealthKind::Tcp { port: 0 }).is_err());
        let tcp = || HealthKind::Tcp { port: 80 };
        assert!(HealthCheck::new(tcp(), Duration::from_millis(99), 3).is_err());
        assert!(HealthCheck::new(tcp(), Duration::from_secs(3601), 3).is_err());
        assert!(HealthCheck::new(tcp(), Duration::from_secs(2), 0).is_err());
        let text = r#"{"kind":{"tcp":{"port":80}},"interval_ms":2000,"retries":0}"#;
        assert!(serde_json::from_str::<HealthCheck>(text).is_err());
    }

    #[test]
    fn the_start_interval_holds_for_a_new_backend_in_the_start_period_only() {
        let seconds = Duration::from_secs;
        let check = HealthCheck::new(HealthKind::Tcp { port: 80 }, seconds(30), 3).unwrap();
        assert_eq!(check.pause(true, Duration::ZERO), seconds(1), "as usual");
        let check = check.with_start_period(seconds(60)).unwrap();
        for interval in [Duration::from_millis(200), seconds(5)] {
            let check = check.clone().with_start_interval(interval).unwrap();
            assert_eq!(check.pause(true, seconds(59)), interval);
            assert_eq!(check.pause(true, seconds(60)), seconds(1), "the start period is over");
            assert_eq!(check.pause(false, Duration::ZERO), seconds(30), "it has passed once");
        }
    }

    #[test]
    fn a_check_survives_being_stored() {
        let kind = HealthKind::Http { port: 80, path: "/x".into() };
        let check = HealthCheck::new(kind, Duration::from_millis(1500), 5).unwrap();
        let text = serde_json::to_string(&check).unwrap();
        assert_eq!(serde_json::from_str::<HealthCheck>(&text).unwrap(), check);
        assert_eq!(check.timeout(), Duration::from_secs(1));
        let check = check
            .with_timeout(Duration::from_secs(30))
            .and_then(|check| check.with_start_period(Duration::from_mins(1)))
            .and_then(|check| check.with_start_interval(Duration::from_millis(250)))
            .and_then(|check| check.with_host("localhost:8000".into()))
            .unwrap()
            .with_loopback(Loopback::Localhost);
        let text = serde_json::to_string(&check).unwrap();
        assert_eq!(serde_json::from_str::<HealthCheck>(&text).unwrap(), check);
        assert_eq!(check.timeout(), Duration::from_secs(30));
        assert!(check.clone().with_host("a\r\nb".into()).is_err());
        assert!(check.clone().with_timeout(Duration::ZERO).is_err());
        assert!(check.clone().with_start_interval(Duration::from_millis(99)).is_err());
        assert!(check.with_start_interval(Duration::from_secs(3601)).is_err());
    }
}
