//! What the agent asks the host beside the kernel loop: addresses, names, containers' namespaces.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;

use mesh_kernel::KernelError;
use mesh_model::endpoint::NetnsRef;
use mesh_model::{IfName, Mtu, Prefix};
use tokio::sync::mpsc;

use crate::advertise::HostAddress;

/// How a container's namespace is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsName {
    /// A path when it has a slash, else a name under `/run/netns`.
    Text(String),
    /// The namespace that this process is in.
    Pid(u32),
}

impl fmt::Display for NetnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Pid(pid) => write!(f, "of process {pid}"),
        }
    }
}

/// A container's namespace as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundNetns {
    /// The namespace.
    pub netns: NetnsRef,
    /// The interfaces in it.
    pub interfaces: BTreeSet<IfName>,
}

/// The host that the agent runs on, or its twin in memory. Calls may block for a short time.
pub trait Host: Send + Sync + fmt::Debug + 'static {
    /// The host's name.
    fn name(&self) -> io::Result<String>;

    /// All addresses of its interfaces.
    fn addresses(&self) -> io::Result<Vec<HostAddress>>;

    /// The prefixes that it reaches by routes of its own: default routes and those of the mesh left out.
    fn routes(&self) -> io::Result<Vec<Prefix>>;

    /// The MTU of the interface that has the address; `None` when none has it.
    fn mtu_of(&self, address: IpAddr) -> io::Result<Option<Mtu>>;

    /// Tells, until the receiver is dropped, when something of ours in the kernel may have changed.
    fn watch_kernel(&self) -> io::Result<mpsc::Receiver<()>>;

    /// Finds a container's namespace.
    fn find_netns(&self, name: &NetnsName) -> Result<FoundNetns, KernelError>;
}
