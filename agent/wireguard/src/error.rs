//! Errors of this crate.

use std::{io, path::PathBuf};

use mesh_sys::durable::FileError;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program uses the UDP port of WireGuard.
    #[error("UDP port {port} for WireGuard is taken by another program")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The kernel has no TUN/TAP driver, or does not allow its use here.
    #[error("cannot create the device {device}: no usable /dev/net/tun ({source})")]
    NoTun {
        /// Name of the device.
        device: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The device exists already and belongs to another program.
    #[error("the device {device} already exists and is in use")]
    DeviceTaken {
        /// Name of the device.
        device: String,
    },
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    System {
        /// The attempted action.
        action: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// The attempted action.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A file could not be replaced.
    #[error(transparent)]
    Replace(#[from] FileError),
    /// The file with the private keys is damaged.
    #[error("the key file {path} is damaged ({reason}); remove it to get a new key", path = path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// The damage; never includes contents of the file.
        reason: &'static str,
    },
    /// Other users can read the file with the private keys.
    #[error("the key file {path} has mode {mode:04o}; it must be 0600", path = path.display())]
    KeyFileMode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Not 32 bytes in base64.
    #[error("not a WireGuard key (44 characters of base64)")]
    BadKey,
    /// The configuration is inconsistent.
    #[error("invalid WireGuard configuration: {0}")]
    Config(&'static str),
    /// The kernel has no WireGuard.
    #[error("the kernel has no WireGuard")]
    NoKernelWireguard,
    /// The kernel has WireGuard, but a trial of the required functions failed.
    #[error("the kernel's WireGuard failed a trial: {0}")]
    Trial(Box<Error>),
    /// The engine process did not start, or does not respond.
    #[error("the WireGuard engine process {0}")]
    Process(String),
    /// The engine process returned an error.
    #[error("{0}")]
    Remote(String),
}

impl Error {
    /// Converts errors of system calls, for `map_err`.
    pub(crate) fn system<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::System { action: action.into(), source: source.into() }
    }

    /// Converts errors of file operations, for `map_err`.
    pub(crate) fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::File { action, path: path.into(), source: source.into() }
    }
}
