//! Facts about this host that managers receive: its own routes, and the addresses at which other
//! hosts may reach it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_host::advertise::is_global;
use mesh_host::{Host, HostAddress};
use mesh_kernel::KernelError;
use mesh_proto::v1;
use mesh_proto::v1::agent_message::Kind;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// Shortest pause between two readings.
const PAUSE: Duration = Duration::from_secs(1);
/// A pause lasts at least as long as so many readings: hosts with full routing tables exist.
const SHARE: u32 = 50;

/// Routes and addresses, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostFacts {
    pub(crate) routes: Vec<String>,
    pub(crate) addresses: Vec<String>,
}

impl HostFacts {
    /// Reads them. Without the routes, networks may overlap them. Without the addresses, containers
    /// of other hosts may reach them.
    pub(crate) async fn read(host: &Arc<dyn Host>) -> Self {
        let host = host.clone();
        match spawn_blocking(move || Self::read_now(&*host)).await {
            Ok(Ok(facts)) => facts,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the host's routes and addresses cannot be read");
                Self::default()
            }
            Err(_) => Self::default(),
        }
    }

    fn read_now(host: &dyn Host) -> Result<Self, KernelError> {
        let routes = host.routes()?.iter().map(ToString::to_string).collect();
        let addresses = reachable(&host.addresses()?).iter().map(ToString::to_string).collect();
        Ok(Self { routes, addresses })
    }
}

/// The addresses at which other hosts may reach this one.
fn reachable(addresses: &[HostAddress]) -> BTreeSet<IpAddr> {
    let reachable = addresses.iter().filter(|found| found.leads_out && is_global(found.address));
    reachable.map(|found| found.address).collect()
}

/// Reports every change since `reported`, until the session ends.
pub(crate) async fn follow(host: Arc<dyn Host>, mut reported: HostFacts, reports: mpsc::Sender<Kind>) {
    let mut pause = PAUSE;
    loop {
        sleep(pause).await;
        let started = Instant::now();
        let host = host.clone();
        let read = spawn_blocking(move || HostFacts::read_now(&*host)).await;
        pause = PAUSE.max(started.elapsed() * SHARE);
        // Facts that cannot be read stay as they were reported.
        let Ok(Ok(now)) = read else { continue };
        if now == reported {
            continue;
        }
        reported = now.clone();
        let report = v1::HostReport { routes: now.routes, addresses: now.addresses };
        if reports.send(Kind::Host(report)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_host::fake::host_addresses;

    use super::*;

    #[test]
    fn others_reach_a_host_at_global_addresses_of_interfaces_that_lead_out() {
        let addresses = host_addresses(&[
            ("lo", "127.0.0.1"),
            ("eth0", "192.0.2.1"),
            ("eth0", "fe80::1"),
            ("eth1", "2001:db8::1"),
            ("docker0", "172.17.0.1"),
        ]);
        let reached = ["192.0.2.1", "2001:db8::1"].map(|address| address.parse().unwrap());
        assert_eq!(reachable(&addresses), BTreeSet::from(reached));
    }
}
