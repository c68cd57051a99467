//! Requests about devices, addresses and routes (rtnetlink(7)).

use std::io;

use mesh_model::naming;
use mesh_sys::netlink::{Netlink, RequestError};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use crate::KernelError;

/// Opens a socket in the calling thread's namespace. It stays there, whichever thread uses it.
pub(crate) fn open() -> io::Result<Netlink> {
    Netlink::open(NETLINK_ROUTE)
}

/// Opens one, with an error that has the action.
pub(crate) fn open_own() -> Result<Netlink, KernelError> {
    open().map_err(|source| KernelError::Netlink { action: "open a netlink socket".to_owned(), source })
}

/// Adds the action that failed to an error.
pub(crate) trait During {
    /// Adds the action that failed.
    fn during(self, action: impl Into<String>) -> KernelError;
}

impl During for RequestError {
    fn during(self, action: impl Into<String>) -> KernelError {
        let action = action.into();
        match self {
            Self::Transport(source) => KernelError::Netlink { action, source },
            Self::Refused { errno, message } => {
                let source = io::Error::from(errno);
                match errno {
                    Errno::EPERM | Errno::EACCES => KernelError::Permission { action, source },
                    _ => KernelError::Refused { action, detail: message, source },
                }
            }
        }
    }
}

/// Returns the kind of a device by its name in netlink.
pub(crate) fn kind(name: &[u8]) -> naming::Kind {
    match name {
        b"veth" => naming::Kind::Veth,
        b"vxlan" => naming::Kind::Vxlan,
        b"wireguard" => naming::Kind::Wireguard,
        b"tun" => naming::Kind::Tun,
        _ => naming::Kind::Other,
    }
}
