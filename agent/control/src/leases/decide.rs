//! Decides which lease a node's request is granted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use mesh_ipam::{
    Decision, Family, Lease as IpamLease, Leases, Reports, StaticDecision, SubnetLayout, lease_static,
    next_block,
};
use mesh_model::{Lease, LeaseState, Network, NetworkId, NodeId, Prefix};
use mesh_proto::{Problem, ProblemKind, v1};
use tokio::time::{Instant, timeout};

use super::borrow::{Outcome, outcome};
use super::quota;
use super::request::{RequestedLease, Requester};
use super::subnet::LeaseSet;
use crate::core::Core;
use crate::errors::check_stays;
use crate::layout::layout;
use crate::records::{Tries, put};
use crate::{keys, limits};

/// How long to wait for another node's borrow before checking again.
const PAUSE: Duration = Duration::from_millis(200);

/// A lease that its node may use.
pub(super) struct Granted {
    pub(super) network: Network,
    pub(super) lease: Lease,
    /// The store's revision that contains it.
    pub(super) revision: u64,
    /// The other nodes with leases in the network, which must apply it.
    pub(super) others: Vec<NodeId>,
}

/// What this call has learned beyond the records.
struct Learned {
    began: Instant,
    /// Addresses that their owners refused to release.
    refused: BTreeMap<NodeId, BTreeSet<IpAddr>>,
    /// Owners that did not answer.
    silent: BTreeSet<NodeId>,
}

/// One step towards a lease.
enum Step {
    Granted(Box<Granted>),
    /// A borrow was written at this revision, or found pending: wait until it is settled.
    Wait {
        prefix: Prefix,
        revision: u64,
        from: NodeId,
    },
    /// A concurrent change intervened: try again.
    Again,
    /// No lease is possible until another node's borrow is settled.
    Pause,
}

/// Finds or creates a lease.
pub(super) async fn grant(
    core: &Core,
    network: &NetworkId,
    requester: &Requester,
    wanted: RequestedLease,
) -> Result<Granted, Problem> {
    let node = &requester.node;
    let mut learned = Learned::new();
    let mut tries = Tries::default();
    // A caller has time for at most two owners that do not answer.
    let deadline = learned.began + 2 * limits::CEDE;
    loop {
        tries.next()?;
        match step(core, network, requester, wanted, &learned).await? {
            Step::Granted(granted) => return Ok(*granted),
            Step::Again => {}
            Step::Wait { prefix, revision, from } => {
                let outcome = outcome(core, network, (prefix, &from), revision).await?;
                if let Some(lease) = outcome.lease_of(node)
                    && let Some(set) = LeaseSet::read(core, network).await?
                {
                    return Ok(granted(&set, node, lease.clone()));
                }
                learned.take(core, network, wanted, (prefix, from), &outcome).await?;
            }
            Step::Pause => {
                let mut revisions = core.feed.revisions();
                // Wait until another borrow is settled, or until it is time to check again.
                let _ = timeout(PAUSE, revisions.changed()).await;
            }
        }
        if Instant::now() >= deadline {
            return Err(Problem::new(
                ProblemKind::Unreachable,
                "no node has confirmed in time that it releases an address",
            )
            .hint("try again"));
        }
    }
}

impl Learned {
    fn new() -> Self {
        Self { began: Instant::now(), refused: BTreeMap::new(), silent: BTreeSet::new() }
    }

    /// Returns whether to wait for a node without a session: it may have lost it because it is
    /// busy.
    fn may_return(&self, core: &Core, node: &NodeId) -> bool {
        !self.silent.contains(node) && !core.is_down(node) && self.began.elapsed() < limits::RETURN
    }

    /// Handles a borrow that was not granted to this node.
    async fn take(
        &mut self,
        core: &Core,
        network: &NetworkId,
        wanted: RequestedLease,
        (prefix, from): (Prefix, NodeId),
        outcome: &Outcome,
    ) -> Result<(), Problem> {
        let is_silent = matches!(outcome, Outcome::Unanswered);
        // A third node has it now, and is the owner.
        let is_moved = matches!(outcome, Outcome::Written(lease) if lease.node != from);
        match wanted {
            RequestedLease::Address(_) if is_moved => {}
            RequestedLease::Address(address) if is_silent => {
                return Err(owner_unresponsive(core, network, address, &from).await?);
            }
            RequestedLease::Address(address) => return Err(in_use(core, network, address, &from).await?),
            RequestedLease::Any(_) if is_silent => {
                self.silent.insert(from);
            }
            RequestedLease::Any(_) => {
                self.refused.entry(from).or_default().insert(prefix.first());
            }
        }
        Ok(())
    }
}

async fn step(
    core: &Core,
    network: &NetworkId,
    requester: &Requester,
    wanted: RequestedLease,
    learned: &Learned,
) -> Result<Step, Problem> {
    let node = &requester.node;
    let _turn = core.leases.turn(network).await;
    let set = LeaseSet::read(core, network)
        .await?
        .ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("network {network} does not exist")))?;
    check_stays(set.network())?;
    if requester.is_bounded
        && let Err(problem) = quota::check(core, &set, node, wanted.family())
        && !is_held(&set, node, wanted)
    {
        // The reports of its endpoints may still arrive.
        return if learned.began.elapsed() < limits::EXPLAINED { Ok(Step::Pause) } else { Err(problem) };
    }
    match wanted {
        RequestedLease::Address(address) => static_step(core, &set, node, address, learned).await,
        RequestedLease::Any(family) => any_step(core, &set, node, family, learned).await,
    }
}

/// Returns whether the node requests an address that it has.
fn is_held(set: &LeaseSet, node: &NodeId, wanted: RequestedLease) -> bool {
    let RequestedLease::Address(address) = wanted else { return false };
    let subnet = set.network().subnets.iter().find(|subnet| subnet.subnet.contains(address));
    let leases = subnet.map(|subnet| set.leases_in(&subnet.subnet));
    leases.is_some_and(|leases| leases.deciding(address).is_some_and(|held| held.node == *node))
}

async fn static_step(
    core: &Core,
    set: &LeaseSet,
    node: &NodeId,
    address: IpAddr,
    learned: &Learned,
) -> Result<Step, Problem> {
    let name = &set.network().name;
    let subnet = set.network().subnets.iter().find(|subnet| subnet.subnet.contains(address));
    let Some(layout) = subnet.and_then(layout) else {
        let subnets: Vec<String> = set.network().subnets.iter().map(|s| s.subnet.to_string()).collect();
        return Err(Problem::new(
            ProblemKind::Usage,
            format!("address {address} is in no subnet of network {name}: {}", subnets.join(", ")),
        ));
    };
    let leases = set.leases_in(&layout.subnet());
    match lease_static(&layout, &leases, node, address) {
        StaticDecision::Held => {
            let held = leases.deciding(address).and_then(|lease| set.find(&lease.prefix));
            let held =
                held.ok_or_else(|| Problem::new(ProblemKind::Failed, "a lease vanished while it was read"))?;
            Ok(Step::Granted(Box::new(granted(set, node, held.clone()))))
        }
        StaticDecision::Lease(prefix) => {
            write(core, set, node, IpamLease::active(prefix, node.clone())).await
        }
        StaticDecision::Borrow { from } if core.sessions.is_live(&from) => {
            borrow(core, set, node, address, &leases).await
        }
        StaticDecision::Borrow { from } if learned.may_return(core, &from) => Ok(Step::Pause),
        StaticDecision::Borrow { from } => {
            Err(owner_unresponsive(core, &set.network().id, address, &from).await?)
        }
        StaticDecision::Undecided { from, .. } => {
            let prefix = Prefix::single(address);
            let revision = set.find(&prefix).map_or(0, |lease| lease.revision);
            Ok(Step::Wait { prefix, revision, from })
        }
        StaticDecision::Reserved(why) => Err(Problem::new(
            ProblemKind::Conflict,
            format!("address {address} cannot be used in network {name}: it is {why}"),
        )),
    }
}

async fn any_step(
    core: &Core,
    set: &LeaseSet,
    node: &NodeId,
    family: Family,
    learned: &Learned,
) -> Result<Step, Problem> {
    let layouts: Vec<SubnetLayout> = set
        .network()
        .subnets
        .iter()
        .filter(|subnet| subnet.subnet.family() == family)
        .filter_map(layout)
        .collect();
    if layouts.is_empty() {
        return Err(Problem::new(
            ProblemKind::Usage,
            format!("network {} has no {family} subnet", set.network().name),
        ));
    }
    let reports = reports(core, set, learned);
    // A borrow that an earlier call began.
    let own_pending = set.all().find(|lease| {
        lease.node == *node && lease.prefix.family() == family && lease.state != LeaseState::Active
    });
    if let Some(lease) = own_pending
        && let LeaseState::Pending { from, .. } = &lease.state
        && core.sessions.is_live(from)
    {
        return Ok(Step::Wait { prefix: lease.prefix, revision: lease.revision, from: from.clone() });
    }
    let mut candidate = None;
    let mut full = Vec::new();
    for layout in &layouts {
        let leases = set.leases_in(&layout.subnet());
        match next_block(layout, &leases, node, &reports) {
            Decision::Lease(prefix) => {
                return write(core, set, node, IpamLease::active(prefix, node.clone())).await;
            }
            Decision::Borrow { candidates, .. } => {
                candidate = candidate.or_else(|| candidates.first().map(|&address| (address, leases)));
            }
            exhausted @ Decision::Exhausted { .. } => full.push(exhausted),
        }
    }
    match candidate {
        Some((address, leases)) => borrow(core, set, node, address, &leases).await,
        None if full.iter().any(|decision| matches!(decision, Decision::Exhausted { pending: 1.., .. })) => {
            Ok(Step::Pause)
        }
        None if full
            .iter()
            .filter_map(free_elsewhere)
            .flatten()
            .any(|(node, _)| learned.may_return(core, node)) =>
        {
            Ok(Step::Pause)
        }
        None => Err(exhausted(core, set.network(), family, &full).await?),
    }
}

/// Returns the nodes that have free addresses in an otherwise full subnet but cannot be asked, with
/// the numbers.
const fn free_elsewhere(decision: &Decision<NodeId>) -> Option<&BTreeMap<NodeId, u128>> {
    match decision {
        Decision::Exhausted { free_on_unreachable, .. } => Some(free_on_unreachable),
        _ => None,
    }
}

fn reports(core: &Core, set: &LeaseSet, learned: &Learned) -> Reports<NodeId> {
    let mut in_use = core.endpoints.addresses(&set.network().id);
    for (node, refused) in &learned.refused {
        in_use.entry(node.clone()).or_default().extend(refused);
    }
    let mut unreachable = learned.silent.clone();
    unreachable
        .extend(set.all().map(|lease| &lease.node).filter(|node| !core.sessions.is_live(node)).cloned());
    Reports { in_use, unreachable, recently_released: core.leases.recently_released(&set.network().id) }
}

fn granted(set: &LeaseSet, node: &NodeId, lease: Lease) -> Granted {
    let others = set.holders_except(node);
    Granted { network: set.network().clone(), revision: lease.revision, lease, others }
}

/// Asks the node that holds the address, according to these leases, to release it.
async fn borrow(
    core: &Core,
    set: &LeaseSet,
    node: &NodeId,
    address: IpAddr,
    leases: &Leases<NodeId>,
) -> Result<Step, Problem> {
    // Without a lease there is no owner to ask, and the next decision takes that into account.
    let Some(held) = leases.deciding(address) else { return Ok(Step::Again) };
    write(core, set, node, IpamLease::borrow(address, node.clone(), held)).await
}

async fn write(
    core: &Core,
    set: &LeaseSet,
    node: &NodeId,
    lease: IpamLease<NodeId>,
) -> Result<Step, Problem> {
    let network = set.network().id.clone();
    let record = Lease::of(&network, lease);
    let op = put(keys::lease(&network, &record.prefix), &record);
    let Some(revision) = set.commit(core, Some(node), [op]).await? else { return Ok(Step::Again) };
    Ok(match &record.state {
        LeaseState::Active => Step::Granted(Box::new(granted(set, node, Lease { revision, ..record }))),
        LeaseState::Pending { from, .. } => {
            Step::Wait { prefix: record.prefix, revision, from: from.clone() }
        }
    })
}

async fn name_of(core: &Core, node: &NodeId) -> Result<String, Problem> {
    let record = core.records.node(node).await?;
    Ok(record.map_or_else(|| node.to_string(), |record| record.value.name.to_string()))
}

/// Returns why an address cannot be borrowed from a node that does not respond: its last report
/// still counts.
async fn owner_unresponsive(
    core: &Core,
    network: &NetworkId,
    address: IpAddr,
    owner: &NodeId,
) -> Result<Problem, Problem> {
    if endpoint_with(core, network, address).is_some() {
        return in_use(core, network, address, owner).await;
    }
    let owner = name_of(core, owner).await?;
    Ok(Problem::new(
        ProblemKind::Unreachable,
        format!("address {address} is in a block of node {owner}, whose agent does not respond"),
    )
    .hint(format!("choose another address, restart {owner}, or remove it: meshctl node rm --force {owner}")))
}

async fn in_use(
    core: &Core,
    network: &NetworkId,
    address: IpAddr,
    owner: &NodeId,
) -> Result<Problem, Problem> {
    let owner_name = name_of(core, owner).await?;
    let by = endpoint_with(core, network, address)
        .map_or_else(String::new, |endpoint| format!(" by endpoint {}", endpoint.name));
    Ok(Problem::new(ProblemKind::Conflict, format!("address {address} is in use on node {owner_name}{by}")))
}

fn endpoint_with(core: &Core, network: &NetworkId, address: IpAddr) -> Option<v1::Endpoint> {
    let text = address.to_string();
    core.endpoints.list(Some(network)).into_iter().find(|e| e.ipv4 == text || e.ipv6 == text)
}

async fn exhausted(
    core: &Core,
    network: &Network,
    family: Family,
    full: &[Decision<NodeId>],
) -> Result<Problem, Problem> {
    let mut elsewhere: BTreeMap<&NodeId, u128> = BTreeMap::new();
    for (node, free) in full.iter().filter_map(free_elsewhere).flatten() {
        *elsewhere.entry(node).or_default() += free;
    }
    let subnets: Vec<String> = network
        .subnets
        .iter()
        .filter(|subnet| subnet.subnet.family() == family)
        .map(allocated_from)
        .collect();
    let has_range =
        network.subnets.iter().any(|subnet| subnet.subnet.family() == family && subnet.ip_range.is_some());
    let problem = Problem::new(
        ProblemKind::Exhausted,
        format!("network {} has no free address in {}", network.name, subnets.join(", ")),
    );
    let most = elsewhere.into_iter().max_by_key(|(_, free)| *free);
    Ok(match most {
        Some((node, free)) => {
            let name = name_of(core, node).await?;
            problem.hint(format!(
                "node {name} does not respond and holds {free} free ones: restart it, or run meshctl node rm --force {name}"
            ))
        }
        None if has_range => problem.hint(
            "detach endpoints that are not needed, choose an address outside the range with --ip, or create a \
             network with a larger --ip-range",
        ),
        None => problem.hint("detach endpoints that are not needed, or create a network with a larger subnet"),
    })
}

/// Returns the part of a subnet from which addresses are allocated, as text.
fn allocated_from(subnet: &mesh_model::Subnet) -> String {
    match subnet.ip_range {
        Some(range) if range != subnet.subnet => format!("IP range {range} of subnet {}", subnet.subnet),
        _ => subnet.subnet.to_string(),
    }
}
