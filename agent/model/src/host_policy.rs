//! What the containers of a network may reach of the hosts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::word::{InvalidWord, words};

/// Which sockets of hosts the containers of a network may reach, on any address of any node.
/// Published ports are not among them: they are reached always. Nor are packets that answer what a
/// host sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostAccess {
    /// None, not even the name server.
    None,
    /// The name server, at the gateway address; and pings are answered.
    #[default]
    Dns,
    /// All.
    All,
}

/// Whether the containers of a network may reach the metadata services of clouds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetadataAccess {
    /// They may not.
    #[default]
    Block,
    /// They may.
    Allow,
}

words!(HostAccess, "host access", "none, dns or all", None = "none", Dns = "dns", All = "all");
words!(MetadataAccess, "metadata access", "block or allow", Block = "block", Allow = "allow");

/// What the containers of a network may reach of the hosts. Records of earlier versions have the
/// default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostPolicy {
    /// Which of the hosts' sockets.
    pub access: HostAccess,
    /// Whether the metadata services of clouds.
    pub metadata: MetadataAccess,
}
