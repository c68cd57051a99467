//! The kernel's settings below `/proc/sys/net`, which are those of the calling thread's namespace.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesh_model::IfName;
use mesh_model::observed::Sysctl;

use crate::KernelError;
use crate::neighbours::Limits;

const ALL: [Sysctl; 4] =
    [Sysctl::Ipv4Forwarding, Sysctl::Ipv6Forwarding, Sysctl::Ipv4Neighbours, Sysctl::Ipv6Neighbours];

/// How a setting is made.
enum Setting {
    /// By writing 1 to a file.
    Switch(&'static Path),
    /// By raising limits.
    Limits(Limits),
}

fn setting(sysctl: Sysctl) -> Setting {
    match sysctl {
        Sysctl::Ipv4Forwarding => Setting::Switch(Path::new("/proc/sys/net/ipv4/ip_forward")),
        Sysctl::Ipv6Forwarding => Setting::Switch(Path::new("/proc/sys/net/ipv6/conf/all/forwarding")),
        Sysctl::Ipv4Neighbours => Setting::Limits(Limits::in_dir("/proc/sys/net/ipv4/neigh/default")),
        Sysctl::Ipv6Neighbours => Setting::Limits(Limits::in_dir("/proc/sys/net/ipv6/neigh/default")),
    }
}

/// Returns the settings that are as Mesh needs them. A switch that this kernel lacks is off.
pub(crate) fn observe() -> Result<BTreeSet<Sysctl>, KernelError> {
    let mut made = BTreeSet::new();
    for sysctl in ALL {
        let is_made = match setting(sysctl) {
            Setting::Switch(path) => is_on(path)?,
            Setting::Limits(limits) => limits.suffice()?,
        };
        if is_made {
            made.insert(sysctl);
        }
    }
    Ok(made)
}

fn is_on(path: &Path) -> Result<bool, KernelError> {
    match fs::read(path) {
        Ok(value) => Ok(value.trim_ascii() != b"0"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(KernelError::Sysctl { action: "read", path: path.to_owned(), source }),
    }
}

/// Makes a setting.
pub(crate) fn set(sysctl: Sysctl) -> Result<(), KernelError> {
    match setting(sysctl) {
        Setting::Switch(path) => write(path, "1"),
        Setting::Limits(limits) => limits.raise(),
    }
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
