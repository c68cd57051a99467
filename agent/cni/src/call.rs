//! One call of a container runtime.

use serde::{Deserialize, Serialize};

/// What a runtime asks the plugin to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach a container.
    Del,
    /// Check that an attachment is complete.
    Check,
    /// Detach what no valid attachment needs any more.
    Gc,
    /// Tell whether containers can be attached.
    Status,
}

impl Command {
    /// The command of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "ADD" => Some(Self::Add),
            "DEL" => Some(Self::Del),
            "CHECK" => Some(Self::Check),
            "GC" => Some(Self::Gc),
            "STATUS" => Some(Self::Status),
            _ => None,
        }
    }

    /// Whether it is about one interface of one container.
    pub const fn names_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }

    /// Whether it needs the container's network namespace.
    pub const fn needs_netns(self) -> bool {
        matches!(self, Self::Add | Self::Check)
    }
}

/// A runtime's call as the plugin received it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty where the command is not about a container.
    #[serde(default)]
    pub container: String,
    /// `CNI_IFNAME`; empty where the command is not about a container.
    #[serde(default)]
    pub ifname: String,
    /// `CNI_NETNS`; a DEL may have none.
    #[serde(default)]
    pub netns: String,
    /// `CNI_ARGS`: `KEY=VALUE` pairs, separated by semicolons.
    #[serde(default)]
    pub args: String,
    /// The network configuration, as JSON text.
    pub config: String,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What the plugin prints: a result or an error, as JSON text; empty for success without a
    /// result.
    pub output: String,
    /// Whether the plugin ends with exit code 1.
    pub failed: bool,
}
