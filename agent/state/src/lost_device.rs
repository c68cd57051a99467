//! Devices of endpoints whose records are lost, as they were found.

use mesh_ebpf_types::Interface;
use mesh_model::survivor::Survivor;

/// The device of a lost endpoint.
#[derive(Debug, Clone)]
pub struct Lost {
    /// What the kernel knows of it.
    pub survivor: Survivor,
    /// What the datapath knows of it.
    pub interface: Option<Interface>,
}
