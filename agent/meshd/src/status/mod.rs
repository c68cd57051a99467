//! The status of the agent, for the local socket and the metrics.

pub(crate) mod tables;
mod tunnels;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_control::Manager;
use mesh_ebpf_types::{Counter, Reason, VXLAN_OVERHEAD_IPV4, VXLAN_OVERHEAD_IPV6};
use mesh_host::kernel_problem;
use mesh_kernel::ProgramsError;
use mesh_model::desired::Encapsulation;
use mesh_model::{NodeId, NodeState, Vni};
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_state::paths::Path;
use tokio::sync::watch;

use crate::member::Member;
use crate::membership::{MembershipState, Memberships};
use crate::platform::Platform;

/// Reports the state of this agent: the source of the status and of the metrics.
#[derive(Debug, Clone)]
pub(crate) struct StatusReporter {
    memberships: Arc<Memberships>,
    metrics_problem: watch::Receiver<Option<String>>,
}

impl StatusReporter {
    /// Creates the reporter. `metrics` has the reason why the metrics server failed.
    pub(crate) fn new(
        memberships: Arc<Memberships>,
        metrics_problem: watch::Receiver<Option<String>>,
    ) -> Self {
        Self { memberships, metrics_problem }
    }

    /// Everything about this agent, member or not.
    pub(crate) async fn status(&self) -> v1::StatusResponse {
        let mut response = status(&self.memberships).await;
        response.problems.extend(self.metrics_problem.borrow().clone());
        response
    }
}

async fn status(memberships: &Memberships) -> v1::StatusResponse {
    let platform = memberships.platform();
    let mut response = v1::StatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        encapsulation: match platform.encapsulation {
            Encapsulation::Direct => "direct",
            Encapsulation::Device => "device",
        }
        .to_owned(),
        encapsulation_reason: platform.encapsulation_reason.clone(),
        resident_bytes: resident_bytes(),
        ..v1::StatusResponse::default()
    };
    match memberships.state() {
        MembershipState::None => "none".clone_into(&mut response.membership),
        MembershipState::Changing => "joining".clone_into(&mut response.membership),
        MembershipState::Member(member) => {
            "member".clone_into(&mut response.membership);
            fill_in(&mut response, platform, &member).await;
        }
    }
    response
}

async fn fill_in(response: &mut v1::StatusResponse, platform: &Platform, member: &Member) {
    let agent = &member.agent;
    response.node = Some((&agent.node()).into());
    agent.read(|state| {
        response.cluster = Some((&state.view.cluster).into());
        response.manager.clone_from(&state.manager);
        response.revision = state.view.revision;
        response.endpoints = u32::try_from(state.endpoints.len()).unwrap_or(u32::MAX);
        response.networks = u32::try_from(state.view.networks.len()).unwrap_or(u32::MAX);
        response.problems.clone_from(&state.damage);
        if state.is_view_lost() {
            response.problems.push("the saved records of the cluster are lost: what this host has stays as it is until a manager is reached".to_owned());
        }
        let refused = state.refused.iter().filter(|(id, _)| state.endpoints.contains_key(*id));
        response.problems.extend(refused.map(|(_, refusal)| refusal.why.clone()));
        let reported = state.report_problems.iter();
        response
            .problems
            .extend(reported.map(|why| format!("the manager refuses a report of this node: {why}")));
        response.problems.extend(state.view.unreadable.lines());
        response.problems.extend(state.unreadable.lines());
        if let Some(difference) = state.manager_clock_ms.and_then(mesh_control::clock::difference) {
            response.problems.push(format!("the manager's clock is {difference} this host's"));
        }
        if !state.session_problem.is_empty() {
            response.problems.push(format!("no session with a manager: {}", state.session_problem));
        }
        response.problems.extend(state.service_problems.iter().cloned());
        response.problems.extend(state.port_conflicts.iter().cloned());
        response.problems.extend(state.inside_problems.iter().cloned());
        response.problems.extend(state.address_problem.clone());
        let name = |id: &NodeId| {
            state.view.nodes.get(id).map_or_else(|| id.to_string(), |node| node.name.to_string())
        };
        let is_down = |id: &NodeId| state.node_states.get(id) == Some(&NodeState::Down);
        response.problems.extend(state.paths.problems(is_down, name));
        let path = |(path, reachable): (&Path, bool)| v1::PeerPath {
            node: name(&path.node),
            encrypted: path.encrypted,
            reachable,
        };
        response.paths = state.paths.all().map(path).collect();
        response.services = u32::try_from(state.view.services.len()).unwrap_or(u32::MAX);
    });
    response.problems.extend(member.managers.own().map(Manager::problems).unwrap_or_default());
    response.refused_joins = member.managers.own().map(Manager::refused_joins);
    let names = member.names.report();
    response.problems.extend(names.problems);
    let server = |(network, status): (String, mesh_dns::Status)| v1::NameServer {
        network,
        queries: status.queries,
        forwarded: status.forwarded,
        failed: status.failed,
        malformed: status.malformed,
    };
    response.name_servers = names.networks.into_iter().map(server).collect();
    response.applied_revision = *agent.applied().borrow();
    let reconciliation = agent.reconciliations().borrow().clone();
    response.data_path_interface = reconciliation.underlay;
    response.data_path_mtu = reconciliation.underlay_mtu;
    reconciliation.xdp.mode().clone_into(&mut response.xdp);
    response.xdp_reason = reconciliation.xdp.reason;
    response.problems.extend(reconciliation.problems);
    tunnels::fill_in(response, member).await;
    tables::fill_in(response, platform, member).await;
    match counters(platform, member).await {
        Ok(counters) => response.counters = counters,
        Err(problem) => response.problems.push(problem.message),
    }
}

/// This node's counters of one network, and the MTU that its endpoints get here.
pub(crate) async fn network_counters(
    platform: &Platform,
    member: &Member,
    vni: u32,
) -> Result<v1::NetworkCountersResponse, Problem> {
    let usage = |error: mesh_model::net::InvalidVni| Problem::new(ProblemKind::Usage, error.to_string());
    let network = Vni::try_from(vni).map_err(usage)?;
    let mut counters = counters(platform, member).await?;
    counters.retain(|counter| counter.vni == vni);
    let known = member.agent.read(|state| state.view.network_by_vni(network).map(|n| n.id.clone()));
    let mtu = known.and_then(|id| member.agent.reconciliations().borrow().mtus.get(&id).copied());
    Ok(v1::NetworkCountersResponse { counters, mtu: mtu.unwrap_or_else(|| largest_mtu(member)) })
}

/// The MTU of a network that sets no bound of its own: for networks that this node has no part in.
fn largest_mtu(member: &Member) -> u32 {
    let own = member.agent.node();
    let overhead = match own.data_path_addr {
        IpAddr::V4(_) => VXLAN_OVERHEAD_IPV4,
        IpAddr::V6(_) => VXLAN_OVERHEAD_IPV6,
    };
    let of_nodes = member.agent.read(|state| state.view.nodes.values().map(|n| n.data_path_mtu).min());
    of_nodes.unwrap_or(own.data_path_mtu).less(overhead.into()).get()
}

async fn counters(platform: &Platform, member: &Member) -> Result<Vec<v1::Counter>, Problem> {
    let counters = match platform.kernel.call(|kernel| kernel.programs().counters()).await {
        // The first pass is not over yet, or could not load them and has said why.
        Err(ProgramsError::NotLoaded) => return Ok(Vec::new()),
        counters => counters.map_err(|error| kernel_problem(&error.into()))?,
    };
    let names: BTreeMap<u32, String> = member.agent.read(|state| {
        state.view.networks.values().map(|network| (network.vni.into(), network.name.to_string())).collect()
    });
    let counter = |((vni, reason), counter): ((mesh_ebpf_types::Vni, Reason), Counter)| v1::Counter {
        vni: vni.number(),
        reason: reason.name().to_owned(),
        packets: counter.packets,
        bytes: counter.bytes,
        network: names.get(&vni.number()).cloned().unwrap_or_default(),
    };
    Ok(counters.into_iter().map(counter).collect())
}

/// Memory of this process that is in RAM: the second number of `/proc/self/statm`, in pages
/// (proc(5)).
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    pages * page_size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}
