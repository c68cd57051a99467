//! Follows the host's own addresses: one that was named by its interface, or was the only one, may
//! become another.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_host::advertise::{HostAddress, advertise_address, data_path_address};
use mesh_host::{Host, blocking, kernel_problem};
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_session::Managers;
use mesh_state::{Agent, StatePaths};
use mesh_sys::durable::{self, FileError, Survives};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::control_plane::listen;
use crate::member_record::{Membership, Named};

/// Pause between two looks at the host's addresses.
const PAUSE: Duration = Duration::from_millis(250);

/// Follows the host's addresses.
#[derive(Debug)]
pub(crate) struct Readdress {
    agent: Arc<Agent>,
    managers: Arc<Managers>,
    host: Arc<dyn Host>,
    paths: StatePaths,
    named: Mutex<Named>,
}

/// The addresses that the node is to have; `None`: as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Change {
    advertise: Option<IpAddr>,
    data_path: Option<IpAddr>,
}

/// What the last look has found.
#[derive(Debug, Default)]
struct Seen {
    /// What was to change.
    change: Change,
    /// Whether the host had lost an address of the node's.
    lost: bool,
}

impl Readdress {
    /// For this node, whose addresses were named like this.
    pub(crate) fn new(
        agent: Arc<Agent>,
        managers: Arc<Managers>,
        host: Arc<dyn Host>,
        paths: StatePaths,
        named: Named,
    ) -> Self {
        Self { agent, managers, host, paths, named: Mutex::new(named) }
    }

    /// Gives this node other addresses from now on, named as at `cluster join`; an empty text
    /// leaves one as it is.
    pub(crate) async fn name(&self, advertise: &str, data_path: &str) -> Result<v1::NodeStatus, Problem> {
        let addresses = self.addresses().await?;
        let own = self.agent.node();
        let usage = |option: &str, error: mesh_host::advertise::AdvertiseError| {
            Problem::new(ProblemKind::Usage, error.to_string()).hint(error.hint(option))
        };
        let mut request = v1::SetAddressesRequest::default();
        if !advertise.is_empty() {
            let address =
                advertise_address(advertise, &addresses).map_err(|error| usage("--advertise-addr", error))?;
            let has_port = advertise.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            request.advertise_addr = if has_port { address.to_string() } else { address.ip().to_string() };
        }
        if !data_path.is_empty() {
            let address = data_path_address(data_path, own.advertise_addr.ip(), &addresses)
                .map_err(|error| usage("--data-path-addr", error))?;
            request.data_path_addr = address.to_string();
        }
        let status = self.set(request).await?;
        let mut named = self.named();
        if !advertise.is_empty() {
            advertise.clone_into(&mut named.advertise);
        }
        if !data_path.is_empty() {
            data_path.clone_into(&mut named.data_path);
        }
        *self.named.lock() = named;
        self.save(&status)?;
        Ok(status)
    }

    /// Follows the host's addresses, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut ticks = interval(PAUSE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut serving = JoinSet::new();
        let mut served = self.agent.node().advertise_addr;
        let mut reported = None;
        let mut seen = Seen::default();
        loop {
            ticks.tick().await;
            let problem = self.check(&mut seen).await.err().map(|problem| match problem.hint {
                Some(hint) => format!("{}: {hint}", problem.message),
                None => problem.message,
            });
            if problem != reported {
                if let Some(problem) = &problem {
                    tracing::warn!("{problem}");
                }
                reported.clone_from(&problem);
            }
            self.agent.update(|state| state.address_problem = problem);
            let advertised = self.agent.node().advertise_addr;
            if advertised != served
                && let Some(manager) = self.managers.own()
                && let Ok(listener) = listen(advertised).await
            {
                served = advertised;
                tracing::info!(%advertised, "serving the control plane at another address");
                let manager = manager.clone();
                serving.spawn(async move { manager.serve(listener, std::future::pending()).await });
            }
        }
    }

    /// One look; what is wrong is returned. A change is reported when it was `seen` twice: a DHCP
    /// client may take an address away and give it back a moment later.
    async fn check(&self, seen: &mut Seen) -> Result<(), Problem> {
        let addresses = self.addresses().await?;
        let own = self.agent.node();
        let named = self.named();
        let has = |address: IpAddr| addresses.iter().any(|held| held.address == address);
        let lost = !has(own.advertise_addr.ip()) || !has(own.data_path_addr);
        if lost && !seen.lost {
            // Connections from an address that is gone hang.
            self.managers.reconnect();
        }
        seen.lost = lost;
        let change = change(&named, own.advertise_addr.ip(), own.data_path_addr, &addresses)
            .map_err(|what| lost_address(&what, &addresses, own.name.as_str()))?;
        let again = change == seen.change;
        seen.change.clone_from(&change);
        if change == Change::default() || !again {
            return Ok(());
        }
        let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
        let request = v1::SetAddressesRequest {
            advertise_addr: text(change.advertise),
            data_path_addr: text(change.data_path),
        };
        tracing::info!(
            advertised = request.advertise_addr,
            data_path = request.data_path_addr,
            "this host's addresses changed"
        );
        let status = self.set(request).await?;
        self.save(&status)
    }

    async fn addresses(&self) -> Result<Vec<HostAddress>, Problem> {
        let host = self.host.clone();
        blocking(move || host.addresses()).await.map_err(|error| kernel_problem(&error))
    }

    async fn set(&self, request: v1::SetAddressesRequest) -> Result<v1::NodeStatus, Problem> {
        let connected = self.managers.connected().await?;
        Ok(ControlClient::new(connected.channel).set_addresses(request).await?.into_inner())
    }

    fn named(&self) -> Named {
        self.named.lock().clone()
    }

    /// Writes down how the addresses are named and what they are, for the next start.
    fn save(&self, status: &v1::NodeStatus) -> Result<(), Problem> {
        let failed = |error: FileError| Problem::new(ProblemKind::Failed, error.to_string());
        let path = self.paths.membership();
        let Some(mut membership) = durable::read_json::<Membership>(&path).map_err(failed)? else {
            return Ok(());
        };
        membership.named = self.named();
        if let Some(node) = status.node.clone().and_then(|node| mesh_model::Node::try_from(node).ok()) {
            membership.node.advertise_addr = node.advertise_addr;
            membership.node.data_path_addr = node.data_path_addr;
        }
        durable::write_json(&path, &membership, Survives::PowerLoss).map_err(failed)
    }
}

/// What is to change now that the host has these addresses. An address that the host still has is
/// kept. The error says which one is gone without another in its place.
fn change(
    named: &Named,
    advertised: IpAddr,
    data_path: IpAddr,
    addresses: &[HostAddress],
) -> Result<Change, String> {
    let has = |address: IpAddr| addresses.iter().any(|held| held.address == address);
    let mut change = Change::default();
    let mut now = advertised;
    if !has(advertised) {
        now = advertise_address(&named.advertise, addresses)
            .map_err(|_| format!("advertised address {advertised}"))?
            .ip();
        change.advertise = Some(now);
    }
    if !has(data_path) {
        let found = data_path_address(&named.data_path, now, addresses);
        let found = found.ok().filter(|found| has(*found) && found.is_ipv4());
        change.data_path = Some(found.ok_or_else(|| format!("data-path address {data_path}"))?);
    }
    Ok(change)
}

fn lost_address(what: &str, addresses: &[HostAddress], node: &str) -> Problem {
    let global = addresses.iter().filter(|held| !held.address.is_loopback());
    let list: Vec<String> = global.map(|held| format!("{} ({})", held.address, held.interface)).collect();
    let option = if what.starts_with("data") { "--data-path-addr" } else { "--advertise-addr" };
    Problem::new(
        ProblemKind::Failed,
        format!("{what} is on no interface of this host, which has {}", list.join(", ")),
    )
    .hint(format!("give it back, or name another: meshctl node update {option} ADDRESS|INTERFACE {node}"))
}

#[cfg(test)]
mod tests {
    use mesh_host::fake::host_addresses;

    use super::*;

    fn follows(advertise: &str, data_path: &str, now: &[(&str, &str)]) -> Result<Change, String> {
        let named = Named { advertise: advertise.into(), data_path: data_path.into() };
        change(&named, "192.0.2.1".parse().unwrap(), "192.0.2.1".parse().unwrap(), &host_addresses(now))
    }

    #[test]
    fn an_address_named_by_its_interface_follows_it_and_one_named_by_itself_does_not() {
        let other = Some("192.0.2.9".parse().unwrap());
        let moved = [("eth0", "192.0.2.9"), ("eth1", "198.51.100.1")];
        assert_eq!(follows("eth0", "eth0", &[("eth0", "192.0.2.1")]), Ok(Change::default()));
        let both = Change { advertise: other, data_path: other };
        assert_eq!(follows("eth0", "eth0", &moved), Ok(both.clone()));
        assert_eq!(follows("eth0", "", &moved), Ok(both.clone()));
        assert_eq!(follows("", "", &moved[..1]), Ok(both));
        for (advertise, data_path, what) in [
            ("192.0.2.1", "", "advertised address 192.0.2.1"),
            ("eth0", "192.0.2.1", "data-path address 192.0.2.1"),
            ("eth2", "", "advertised"),
            ("", "", "advertised"),
        ] {
            assert!(follows(advertise, data_path, &moved).unwrap_err().starts_with(what));
        }
        // As long as the host has it, a further address changes nothing.
        let further = [("eth0", "192.0.2.9"), ("eth0", "192.0.2.1")];
        assert_eq!(follows("eth0", "eth0", &further), Ok(Change::default()));
    }
}
