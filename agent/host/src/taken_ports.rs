//! Published ports that the host's own sockets have.

use std::sync::Arc;

use mesh_kernel::KernelError;
use mesh_model::PublishedPort;

use crate::blocking::blocking;
use crate::host::Host;

/// Those of the ports that the host's own sockets have.
pub async fn taken_ports(
    host: Arc<dyn Host>,
    ports: Vec<PublishedPort>,
) -> Result<Vec<PublishedPort>, KernelError> {
    blocking(move || {
        let sockets = host.sockets()?;
        Ok(ports.into_iter().filter(|port| sockets.conflict(port).is_some()).collect())
    })
    .await
}
