//! What can go wrong.

use std::{io, path::PathBuf};

use mesh_sys::durable::FileError;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The UDP port that WireGuard is to listen on is taken.
    #[error("UDP port {port} for WireGuard is taken by another program")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The kernel has no TUN/TAP driver, or none is allowed here.
    #[error("cannot create the device {device}: no usable /dev/net/tun ({source})")]
    NoTun {
        /// Name of the device.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device exists already and belongs to something else.
    #[error("the device {device} already exists and is in use")]
    DeviceTaken {
        /// Name of the device.
        device: String,
    },
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was to be done.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file could not be replaced.
    #[error(transparent)]
    Replace(#[from] FileError),
    /// The file with the private keys is not what was once written to it.
    #[error("the key file {path} is damaged ({reason}); remove it to get a new key", path = path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it; never a part of its content.
        reason: &'static str,
    },
    /// Others can read the file with the private keys.
    #[error("the key file {path} has mode {mode:04o}; it must be 0600", path = path.display())]
    KeyFileMode {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Not 32 bytes in base64.
    #[error("not a WireGuard key (44 characters of base64)")]
    BadKey,
    /// The configuration contradicts itself.
    #[error("invalid WireGuard configuration: {0}")]
    Config(&'static str),
    /// The kernel has no WireGuard.
    #[error("the kernel has no WireGuard")]
    NoKernelWireguard,
    /// The kernel has WireGuard, and a trial of what the product needs of it failed.
    #[error("the kernel's WireGuard failed a trial: {0}")]
    Trial(Box<Error>),
    /// The engine process did not start, or does not answer.
    #[error("the WireGuard engine process {0}")]
    Process(String),
    /// The engine process answered with an error.
    #[error("{0}")]
    Remote(String),
}

impl Error {
    /// For `map_err` on system calls.
    pub(crate) fn system<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::System { action: action.into(), source: source.into() }
    }

    /// For `map_err` on files.
    pub(crate) fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::File { action, path: path.into(), source: source.into() }
    }
}
