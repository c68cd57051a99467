//! The kernel's switches below `/proc/sys/net`, which are those of the calling thread's namespace.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesh_model::IfName;
use mesh_model::observed::Sysctl;

use crate::KernelError;

const ALL: [Sysctl; 2] = [Sysctl::Ipv4Forwarding, Sysctl::Ipv6Forwarding];

fn path(sysctl: Sysctl) -> &'static Path {
    Path::new(match sysctl {
        Sysctl::Ipv4Forwarding => "/proc/sys/net/ipv4/ip_forward",
        Sysctl::Ipv6Forwarding => "/proc/sys/net/ipv6/conf/all/forwarding",
    })
}

/// Those that are on. One that this kernel does not have is off.
pub(crate) fn observe() -> Result<BTreeSet<Sysctl>, KernelError> {
    let mut on = BTreeSet::new();
    for sysctl in ALL {
        match fs::read(path(sysctl)) {
            Ok(value) if value.trim_ascii() != b"0" => _ = on.insert(sysctl),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(KernelError::Sysctl {
                    action: "read",
                    path: path(sysctl).to_owned(),
                    source: error,
                });
            }
            _ => {}
        }
    }
    Ok(on)
}

/// Turns one on.
pub(crate) fn set(sysctl: Sysctl) -> Result<(), KernelError> {
    write(path(sysctl), "1")
}

/// Lets a device of the calling thread's namespace have IPv6 addresses.
pub(crate) fn allow_ipv6(ifname: &IfName) -> Result<(), KernelError> {
    let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6"));
    match fs::read(&path) {
        Ok(value) if value.trim_ascii() == b"0" => Ok(()),
        Ok(_) => write(&path, "0"),
        Err(source) => Err(KernelError::Sysctl { action: "read", path, source }),
    }
}

fn write(path: &Path, value: &str) -> Result<(), KernelError> {
    fs::write(path, value).map_err(|source| KernelError::Sysctl {
        action: "write",
        path: path.to_owned(),
        source,
    })
}
