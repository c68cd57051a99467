//! The endpoint's addresses: of this node's leases, and of those that it asks a manager for.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use mesh_ipam::StaticError;
use mesh_ipam::prefix::Family;
use mesh_model::{EndpointId, Network, NetworkId};
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_state::{addresses, now};

use crate::endpoints::{Endpoints, Turn};
use crate::request::Request;

/// How long a lease that a manager has granted may take to come with the session.
const LEASE_ARRIVES: Duration = Duration::from_secs(5);
/// Times that a lease is asked for before an attach gives up: others may use up what came.
const LEASE_TRIES: usize = 8;

impl Endpoints {
    pub(super) async fn assign_all(
        &self,
        network: &Network,
        request: &Request,
        id: &EndpointId,
        assigned: &mut BTreeSet<IpAddr>,
    ) -> Result<(), Problem> {
        let families = addresses::families(network);
        let wanted =
            [(Family::Ipv4, request.ipv4.map(IpAddr::V4)), (Family::Ipv6, request.ipv6.map(IpAddr::V6))];
        for (family, address) in wanted {
            match address {
                Some(address) if !families.contains(&family) => {
                    return Err(Problem::new(
                        ProblemKind::Usage,
                        format!("address {address}: network {} has no {family} subnet", network.name),
                    ));
                }
                Some(address) => {
                    self.assign_static(network, address, id).await?;
                    assigned.insert(address);
                }
                None if families.contains(&family) => {
                    assigned.insert(self.assign(network, family, id).await?);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Chooses an address: a rested one of this node's blocks; else of a new block; else one
    /// released a moment ago.
    async fn assign(&self, network: &Network, family: Family, id: &EndpointId) -> Result<IpAddr, Problem> {
        let try_assign =
            |early| self.agent.update(|state| state.pools.assign(&network.id, family, id, early, now()));
        if let Some(address) = try_assign(false) {
            return Ok(address);
        }
        let has_released = || self.agent.update(|state| state.pools.free(&network.id, family) > 0);
        if has_released()
            && !self.managers.reachable()
            && let Some(address) = try_assign(true)
        {
            return Ok(address);
        }
        let turn = self.turn(&network.id, family);
        let _turn = turn.lock().await;
        let mut problem = Problem::new(
            ProblemKind::Exhausted,
            format!("{} has no free address", in_family(network, family)),
        );
        for _ in 0..LEASE_TRIES {
            // The request before this one may have leased enough for all.
            if let Some(address) = try_assign(false) {
                return Ok(address);
            }
            match self.lease(&network.id, family, None).await {
                Ok(()) => {}
                Err(reason) => {
                    problem = reason;
                    break;
                }
            }
        }
        try_assign(true).ok_or(problem)
    }

    async fn assign_static(
        &self,
        network: &Network,
        address: IpAddr,
        id: &EndpointId,
    ) -> Result<(), Problem> {
        let family = Family::of(address);
        let turn = self.turn(&network.id, family);
        let _turn = turn.lock().await;
        let mut asked = false;
        loop {
            let result = self.agent.update(|state| state.pools.assign_static(&network.id, address, id));
            match result {
                Some(Ok(())) => return Ok(()),
                None | Some(Err(StaticError::NotLeased { .. })) if !asked => {
                    asked = true;
                    self.lease(&network.id, family, Some(address)).await?;
                }
                None => {
                    return Err(Problem::new(
                        ProblemKind::Usage,
                        format!("address {address} is in no subnet of network {}", network.name),
                    ));
                }
                Some(Err(StaticError::InUse { address, by })) => {
                    let name = self.agent.read(|state| state.endpoints.get(&by).map(|e| e.name.to_string()));
                    let by = name.unwrap_or_else(|| by.to_string());
                    return Err(Problem::new(
                        ProblemKind::Conflict,
                        format!("address {address} of network {} is in use by endpoint {by}", network.name),
                    ));
                }
                Some(Err(error @ StaticError::Reserved { .. })) => {
                    return Err(Problem::new(ProblemKind::Conflict, error.to_string()));
                }
                Some(Err(error @ StaticError::NotLeased { .. })) => {
                    return Err(Problem::new(ProblemKind::Failed, error.to_string()));
                }
            }
        }
    }

    /// Gets another lease from a manager, and waits until it has come with the session.
    async fn lease(
        &self,
        network: &NetworkId,
        family: Family,
        address: Option<IpAddr>,
    ) -> Result<(), Problem> {
        let connected = self.managers.connected().await?;
        let request = v1::LeaseRequest {
            network: network.to_string(),
            address: address.map(|address| address.to_string()).unwrap_or_default(),
            family: match family {
                Family::Ipv4 => 4,
                Family::Ipv6 => 6,
            },
        };
        let answer = ControlClient::new(connected.channel).lease(request).await?.into_inner();
        if self.agent.received(answer.revision, LEASE_ARRIVES).await {
            Ok(())
        } else {
            Err(Problem::new(
                ProblemKind::Unreachable,
                "addresses were leased, but the session with the manager has not brought them yet",
            )
            .hint("try again; meshctl status shows whether this node is in session"))
        }
    }

    /// Leases blocks for the subnets that will soon have no address left. Returns those for which
    /// that failed.
    pub async fn lease_ahead(&self) -> BTreeSet<(NetworkId, Family)> {
        let mut failed = BTreeSet::new();
        for (network, family) in self.agent.read(|state| state.pools.low_water(now())) {
            let turn = self.turn(&network, family);
            let _turn = turn.lock().await;
            let still_low = self.agent.read(|state| state.pools.low_water(now()));
            if still_low.contains(&(network.clone(), family))
                && let Err(problem) = self.lease(&network, family, None).await
            {
                tracing::debug!(%network, %family, %problem, "no block ahead of need");
                failed.insert((network, family));
            }
        }
        failed
    }

    fn turn(&self, network: &NetworkId, family: Family) -> Turn {
        let mut leasing = self.leasing.lock();
        leasing.entry((network.clone(), family)).or_default().clone()
    }

    pub(crate) fn release(&self, network: &NetworkId, addresses: &BTreeSet<IpAddr>) {
        self.agent.update(|state| {
            for address in addresses {
                state.pools.release(network, *address, now());
            }
        });
    }
}

/// A network and its subnets of a family.
fn in_family(network: &Network, family: Family) -> String {
    let subnets = network.subnets.iter().map(|subnet| subnet.subnet);
    let subnets = subnets.filter(|subnet| subnet.family() == family).map(|subnet| subnet.to_string());
    format!("network {} ({})", network.name, subnets.collect::<Vec<_>>().join(", "))
}
