//! Errors of the netlink half.

use std::io;
use std::path::PathBuf;

use mesh_model::IfName;

use crate::ProgramsError;

/// Why the kernel could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// We lack a capability.
    #[error("no permission to {action}")]
    Permission {
        /// What was tried.
        action: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot {action}{}", .detail.as_ref().map(|d| format!(": {d}")).unwrap_or_default())]
    Refused {
        /// What was tried, and on what.
        action: String,
        /// The kernel's own words, when it had any.
        detail: Option<String>,
        /// Its error number.
        #[source]
        source: io::Error,
    },
    /// The kernel could not be asked, or its answer could not be read.
    #[error("cannot {action} by netlink")]
    Netlink {
        /// What was tried.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device that is not ours has the name of one of ours.
    #[error("a device named {name} exists and is not Mesh's")]
    NameTaken {
        /// The name.
        name: IfName,
    },
    /// Somebody else receives on the UDP port of VXLAN.
    #[error("UDP port {port} is taken: {name} cannot receive VXLAN on it")]
    PortTaken {
        /// The port.
        port: u16,
        /// Our device.
        name: IfName,
    },
    /// The namespace is the host's, not a container's.
    #[error("{path} is the host's own network namespace, in which meshd runs")]
    OwnNamespace {
        /// How it was named.
        path: PathBuf,
    },
    /// The container's namespace is not there, or another one is in its place.
    #[error("the network namespace {path} is gone")]
    NamespaceGone {
        /// Where it was.
        path: PathBuf,
        /// Why it cannot be opened; `None` when another namespace is there now.
        #[source]
        source: Option<io::Error>,
    },
    /// The path cannot be opened as a network namespace.
    #[error("{path} is not a network namespace")]
    NoNamespace {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The container has a device of that name.
    #[error("the namespace {netns} already has an interface {ifname}")]
    IfnameTaken {
        /// The name.
        ifname: IfName,
        /// The namespace.
        netns: PathBuf,
    },
    /// `nft` is not installed.
    #[error("the command nft is not installed: the firewall rules cannot be set")]
    NftMissing,
    /// `nft` failed.
    #[error("nft cannot {action}: {message}")]
    Nft {
        /// What was tried.
        action: &'static str,
        /// What it said.
        message: String,
    },
    /// `iptables` failed.
    #[error("iptables cannot {action}: {message}; its chain {chain} drops packets of containers")]
    Iptables {
        /// What was tried.
        action: &'static str,
        /// In which chain.
        chain: &'static str,
        /// The command's output.
        message: String,
    },
    /// A file below `/proc/sys` could not be read or written.
    #[error("cannot {action} {path}")]
    Sysctl {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The eBPF half failed.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
}

impl KernelError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Permission { .. } => {
                "run meshd as root, or with the capabilities CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_BPF"
                    .to_owned()
            }
            Self::NameTaken { name } => format!("rename or remove it: ip link delete {name}"),
            Self::PortTaken { port, .. } => format!(
                "find its user with `ss -lunp 'sport = :{port}'` and `ip -d link show type vxlan`, or create the cluster with another --data-path-port"
            ),
            Self::OwnNamespace { .. } => "start the container with a network namespace of its own".to_owned(),
            Self::NamespaceGone { .. } => "restart the container and attach it again".to_owned(),
            Self::NoNamespace { .. } => {
                "specify the path of a namespace such as /run/netns/NAME or /proc/PID/ns/net".to_owned()
            }
            Self::IfnameTaken { .. } => "choose another name with --ifname, or omit it".to_owned(),
            Self::Iptables { chain: "FORWARD", .. } => {
                "accept them: iptables -I FORWARD -i mesh0 -j ACCEPT; iptables -I FORWARD -o mesh0 -m conntrack \
                 --ctstate RELATED,ESTABLISHED -j ACCEPT"
                    .to_owned()
            }
            Self::Iptables { .. } => {
                "accept their DNS queries: iptables -I INPUT -i mesh0 -p udp --dport 53 -j ACCEPT".to_owned()
            }
            Self::NftMissing => "install nftables".to_owned(),
            _ => return None,
        })
    }
}
