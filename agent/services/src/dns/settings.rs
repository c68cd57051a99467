//! The host's settings for a name server.

use std::path::PathBuf;

/// The port of DNS (RFC 1035, section 4.2).
pub(super) const PORT: u16 = 53;

/// The host's settings for a name server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Directory of the process's socket.
    pub run_dir: PathBuf,
    /// The file that lists the resolvers for all other names (resolv.conf(5)).
    pub resolv_conf: PathBuf,
}
