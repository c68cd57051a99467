//! Parsers for the values of flags.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use mesh_model::net::{InvalidMtu, InvalidVni};
use mesh_model::{Mtu, Vni};

/// Why a value is invalid for its flag.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidValue {
    /// The value is empty.
    #[error("the value is empty")]
    Empty,
    /// The key is missing.
    #[error("expected KEY=VALUE with a non-empty KEY")]
    NoKey,
    /// Not `NAME=IP`.
    #[error("expected NAME=IP, for example printer=10.80.0.9")]
    NoAuxAddress,
    /// Not `HOST:PORT`.
    #[error("expected HOST:PORT, for example 192.0.2.11:7377 or [2001:db8::11]:7377")]
    NoHostPort,
    /// The path means another namespace in the agent than in the caller.
    #[error("the agent would resolve it to its own namespace; use --pid")]
    OwnProcess,
    /// The path cannot be sent.
    #[error("the path cannot be made absolute")]
    NoPath,
    /// Not a duration.
    #[error("expected a time with a unit, for example 500ms, 2s or 1m30s")]
    NoDuration,
    /// Not an integer.
    #[error(transparent)]
    NoNumber(#[from] std::num::ParseIntError),
    /// Not an MTU.
    #[error(transparent)]
    Mtu(#[from] InvalidMtu),
    /// Not a VNI.
    #[error(transparent)]
    Vni(#[from] InvalidVni),
}

/// A label or an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyValue {
    /// The key.
    pub(crate) key: String,
    /// Its value; empty when none was given.
    pub(crate) value: String,
}

/// A reserved address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuxAddress {
    /// The name of its user.
    pub(crate) name: String,
    /// The address.
    pub(crate) ip: IpAddr,
}

/// Rejects an empty value: an empty name in a request would mean "all" or "default".
pub(crate) fn not_empty(text: &str) -> Result<String, InvalidValue> {
    if text.is_empty() { Err(InvalidValue::Empty) } else { Ok(text.to_owned()) }
}

/// Parses `KEY=VALUE` or `KEY`.
pub(crate) fn key_value(text: &str) -> Result<KeyValue, InvalidValue> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err(InvalidValue::NoKey);
    }
    Ok(KeyValue { key: key.to_owned(), value: value.to_owned() })
}

/// Parses `NAME=IP`.
pub(crate) fn aux_address(text: &str) -> Result<AuxAddress, InvalidValue> {
    let (name, ip) = text.split_once('=').ok_or(InvalidValue::NoAuxAddress)?;
    match ip.parse() {
        Ok(ip) if !name.is_empty() => Ok(AuxAddress { name: name.to_owned(), ip }),
        _ => Err(InvalidValue::NoAuxAddress),
    }
}

/// Parses `HOST:PORT`, with brackets around an IPv6 address.
pub(crate) fn host_port(text: &str) -> Result<String, InvalidValue> {
    let (host, port) = text.rsplit_once(':').ok_or(InvalidValue::NoHostPort)?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let valid = !host.is_empty() && (bracketed || !host.contains(':'));
    if valid && port.parse::<u16>().is_ok_and(|port| port != 0) {
        Ok(text.to_owned())
    } else {
        Err(InvalidValue::NoHostPort)
    }
}

/// Parses a name under `/run/netns`, or a path. The path becomes absolute, because the agent has
/// another working directory.
pub(crate) fn netns(text: &str) -> Result<String, InvalidValue> {
    let text = not_empty(text)?;
    if !text.contains('/') {
        return Ok(text);
    }
    let path = std::path::absolute(Path::new(&text)).map_err(|_| InvalidValue::NoPath)?;
    if path.starts_with("/proc/self") || path.starts_with("/proc/thread-self") {
        return Err(InvalidValue::OwnProcess);
    }
    path.into_os_string().into_string().map_err(|_| InvalidValue::NoPath)
}

/// Parses a duration as Go and Compose write it: a sequence of numbers with units from hours to
/// microseconds.
pub(crate) fn duration(text: &str) -> Result<Duration, InvalidValue> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (number, behind) = rest.split_at(number);
        let unit = behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let (unit, behind) = behind.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            _ => return Err(InvalidValue::NoDuration),
        };
        let number: f64 = number.parse().map_err(|_| InvalidValue::NoDuration)?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| InvalidValue::NoDuration)?;
        total = total.checked_add(part).ok_or(InvalidValue::NoDuration)?;
        rest = behind;
    }
    if text.is_empty() { Err(InvalidValue::NoDuration) } else { Ok(total) }
}

/// Parses an MTU in bytes.
pub(crate) fn mtu(text: &str) -> Result<Mtu, InvalidValue> {
    Ok(text.parse::<u32>()?.try_into()?)
}

/// Parses a VNI.
pub(crate) fn vni(text: &str) -> Result<Vni, InvalidValue> {
    Ok(text.parse::<u32>()?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_may_have_equal_signs_in_its_value_or_no_value() {
        let pair = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
        assert_eq!(key_value("a=b=c").unwrap(), pair("a", "b=c"));
        assert_eq!(key_value("a").unwrap(), pair("a", ""));
        assert!(key_value("=b").is_err());
    }

    #[test]
    fn an_auxiliary_address_has_a_name() {
        assert_eq!(aux_address("printer=fd00::9").unwrap().name, "printer");
        for bad in ["10.0.0.1", "=10.0.0.1", "printer=", "printer=10.0.0"] {
            assert!(aux_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_manager_is_named_with_its_port() {
        for good in ["192.0.2.11:7377", "manager.example:1", "[2001:db8::11]:7377"] {
            assert_eq!(host_port(good).unwrap(), good);
        }
        for bad in ["192.0.2.11", ":7377", "h:", "h:0", "h:65536", "2001:db8::11:7377"] {
            assert!(host_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_has_units() {
        for (text, millis) in [
            ("2s", 2000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("1.5s", 1500),
            ("0.1s", 100),
        ] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for bad in ["", "2", "s", "-1s", "2 s", "2d", "1..5s", "2s3", "99999999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_namespace_is_a_name_or_an_absolute_path() {
        assert_eq!(netns("web").unwrap(), "web");
        assert_eq!(netns("/run/netns/web").unwrap(), "/run/netns/web");
        assert!(netns("./web").unwrap().starts_with('/'));
        assert!(netns("").is_err());
        assert!(netns("/proc/self/ns/net").is_err());
    }
}
