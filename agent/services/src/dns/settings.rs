//! What a name server needs of its host.

use std::path::PathBuf;

/// The port of DNS (RFC 1035, section 4.2).
pub(super) const PORT: u16 = 53;

/// What a name server needs of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the process has its socket.
    pub run_dir: PathBuf,
    /// The file that names the resolvers of all other names (resolv.conf(5)).
    pub resolv_conf: PathBuf,
}
