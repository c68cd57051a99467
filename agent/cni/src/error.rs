//! Errors in the form of the CNI specification.

use std::fmt;

use serde::Serialize;

/// Error codes of the specification, section "Error".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is not supported.
    IncompatibleVersion,
    /// A field of the configuration has a value that is not supported.
    UnsupportedField,
    /// The container is unknown; the runtime need not clean up.
    UnknownContainer,
    /// An environment variable is missing or has no valid value.
    InvalidEnvironment,
    /// Reading or writing failed.
    Io,
    /// The configuration is not valid JSON.
    Decoding,
    /// The configuration is not valid.
    InvalidConfig,
    /// The agent is away or starting; the same call may succeed later.
    TryAgain,
    /// STATUS: no container can be attached.
    NotAvailable,
    /// STATUS: containers can be attached only in part, because no manager can be reached.
    LimitedConnectivity,
    /// An error of this plugin that no code of the specification describes.
    Failed,
}

impl Code {
    /// Its number.
    pub const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decoding => 6,
            Self::InvalidConfig => 7,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Failed => 100,
        }
    }
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct CniError {
    /// The specification's code.
    pub code: Code,
    /// One line: what failed and why.
    pub message: String,
    /// What to do; empty if there is nothing to add.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// The same error with details: what to do about it.
    #[must_use]
    pub fn details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// The JSON that the plugin prints, for a configuration of this version.
    pub fn json(&self, version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Printed<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let Self { code, message, details } = self;
        let printed = Printed { cni_version: version, code: code.number(), msg: message, details };
        serde_json::to_string(&printed).unwrap_or_default()
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
