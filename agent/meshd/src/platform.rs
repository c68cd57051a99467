//! What a member runs on.

use std::sync::Arc;
use std::time::Duration;

use mesh_host::{Host, SharedKernel};
use mesh_ipam::Delays;
use mesh_model::InterfacePatterns;
use mesh_model::desired::Encapsulation;
use mesh_reconciler::{Engines, XdpPolicy};
use mesh_services::NameServerSettings;
use mesh_services::reserved_ports::Reservation;
use mesh_state::StatePaths;

/// The host, the kernel and the settings of a member.
#[derive(Debug, Clone)]
pub(crate) struct Platform {
    /// Where its state is.
    pub(crate) paths: StatePaths,
    /// The host.
    pub(crate) host: Arc<dyn Host>,
    /// The kernel.
    pub(crate) kernel: SharedKernel,
    /// How packets are wrapped.
    pub(crate) encapsulation: Encapsulation,
    /// Why so.
    pub(crate) encapsulation_reason: String,
    /// Whether the data-path device's driver sends on what only passes through.
    pub(crate) xdp: XdpPolicy,
    /// The host's interfaces that answer published ports.
    pub(crate) publish_interfaces: InterfacePatterns,
    /// When addresses and blocks may be used again.
    pub(crate) delays: Delays,
    /// What a name server needs; without it there is none.
    pub(crate) name_server: Option<NameServerSettings>,
    /// What carries encrypted networks.
    pub(crate) engines: Arc<dyn Engines>,
    /// Entries that the table of flows should have room for, if somebody has said so.
    pub(crate) connection_entries: Option<u32>,
    /// On a manager: after how long all nodes are to make new keys.
    pub(crate) rotate_keys: Option<Duration>,
}

impl Platform {
    /// The host's ports that are reserved because they are published.
    pub(crate) fn reservation(&self) -> Option<Reservation> {
        let sysctl = self.host.reserved_ports()?;
        Some(Reservation::open(sysctl, self.paths.reserved_ports()))
    }
}
