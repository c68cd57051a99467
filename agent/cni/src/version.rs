//! Versions of the specification.

use serde::Deserialize;

use crate::error::{CniError, Code};

/// The versions that the plugin speaks, oldest first.
pub const SUPPORTED: [&str; 5] = ["0.3.1", "0.4.0", "1.0.0", "1.0.1", "1.1.0"];
/// The version in which a configuration without a valid one is answered.
pub const LATEST: &str = "1.1.0";

/// The part of a configuration that decides the form of every answer.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "cniVersion", default)]
    version: Option<String>,
}

/// Returns the version of a configuration: one of [`SUPPORTED`].
pub fn of(config: &str) -> Result<&'static str, CniError> {
    let invalid = |why: &str| {
        CniError::new(Code::Decoding, format!("the network configuration is not valid JSON: {why}"))
    };
    // A list would be read as an object's values in order.
    if !config.trim_start().starts_with('{') {
        return Err(invalid("it is no object"));
    }
    let head: Head = serde_json::from_str(config).map_err(|error| invalid(&error.to_string()))?;
    // The specification's first versions had no such field; a result in their form has no room for
    // two addresses.
    let version = head.version.unwrap_or_else(|| "0.1.0".to_owned());
    SUPPORTED.into_iter().find(|supported| *supported == version).ok_or_else(|| {
        let shown: String = version.chars().take(20).collect();
        CniError::new(Code::IncompatibleVersion, format!("cniVersion {shown:?} is not supported"))
            .details(format!("use one of {}", SUPPORTED.join(", ")))
    })
}

/// The answer to VERSION, in the version of the configuration if that is one of ours.
pub fn answer(config: &str) -> String {
    let version = of(config).unwrap_or(LATEST);
    serde_json::json!({ "cniVersion": version, "supportedVersions": SUPPORTED }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_of_an_unknown_or_missing_version_is_error_1() {
        assert_eq!(of(r#"{"cniVersion":"1.0.0"}"#), Ok("1.0.0"));
        for config in [r#"{"cniVersion":"2.0.0"}"#, r#"{"cniVersion":"0.2.0"}"#, "{}"] {
            assert_eq!(of(config).unwrap_err().code.number(), 1, "{config}");
        }
    }

    #[test]
    fn malformed_or_deeply_nested_json_is_error_6() {
        for config in ["", "[", "{\"cniVersion\":", "[]", &"[".repeat(100_000), r#"{"cniVersion":7}"#] {
            assert_eq!(of(config).unwrap_err().code.number(), 6);
        }
    }
}
