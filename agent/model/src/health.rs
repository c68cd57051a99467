//! Health checks: how the node that owns a service's backend finds out whether it works.

use std::fmt;
use std::num::NonZeroU16;
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

/// How a service's backends are checked. One that fails [`retries`](Self::retries) times in a row is unhealthy until
/// the next success; a new one counts as healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct HealthCheck {
    /// What is tried.
    pub kind: HealthKind,
    /// From one try to the next: 100 ms to an hour.
    pub interval: Duration,
    /// So many failures in a row make a backend unhealthy: 1 to 100.
    pub retries: u32,
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
    /// The path has a character that cannot be in a request line (RFC 9112, section 3), or is too long.
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
    /// From one try to the next unless told otherwise.
    pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
    /// Failures in a row unless told otherwise.
    pub const DEFAULT_RETRIES: u32 = 3;
    /// Characters of the longest path.
    pub const MAX_PATH: usize = 1024;
    /// The most failures in a row.
    pub const MAX_RETRIES: u32 = 100;
    /// The longest that a try may take.
    const MAX_TIMEOUT: Duration = Duration::from_secs(1);

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
        if !(Duration::from_millis(100)..=Duration::from_hours(1)).contains(&interval) {
            return Err(InvalidHealthCheck::Interval { interval });
        }
        if !(1..=Self::MAX_RETRIES).contains(&retries) {
            return Err(InvalidHealthCheck::Retries { retries });
        }
        Ok(Self { kind, interval, retries })
    }

    /// How long one try may take.
    pub fn timeout(&self) -> Duration {
        self.interval.min(Self::MAX_TIMEOUT)
    }
}

/// The JSON form.
#[derive(Serialize, Deserialize)]
struct Unchecked {
    kind: HealthKind,
    interval_ms: u64,
    retries: u32,
}

impl TryFrom<Unchecked> for HealthCheck {
    type Error = InvalidHealthCheck;

    fn try_from(unchecked: Unchecked) -> Result<Self, InvalidHealthCheck> {
        Self::new(unchecked.kind, Duration::from_millis(unchecked.interval_ms), unchecked.retries)
    }
}

impl From<HealthCheck> for Unchecked {
    fn from(check: HealthCheck) -> Self {
        // At most an hour, as checked.
        let interval_ms = u64::try_from(check.interval.as_millis()).unwrap_or(u64::MAX);
        Self { kind: check.kind, interval_ms, retries: check.retries }
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
    fn a_check_survives_being_stored() {
        let kind = HealthKind::Http { port: 80, path: "/x".into() };
        let check = HealthCheck::new(kind, Duration::from_millis(1500), 5).unwrap();
        let text = serde_json::to_string(&check).unwrap();
        assert_eq!(serde_json::from_str::<HealthCheck>(&text).unwrap(), check);
        assert_eq!(check.timeout(), Duration::from_secs(1));
    }
}
