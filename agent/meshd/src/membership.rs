//! Becoming a member, being one again after a restart, and ceasing to be one.
//!
//! `member.json` decides: init and join write it last, leave removes it first. What an interrupted one of them left is
//! cleaned up by the next start. But a store, a certificate authority or a key without a membership that nobody began to
//! give up are all that is left of a member: they are never removed, and nothing is made in their place.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use mesh_control::identity::tls;
use mesh_control::{ClusterParameters, JoinParameters, Manager, NodeIdentity, ThisNode};
use mesh_kernel::Depth;
use mesh_model::{Mtu, Name, Prefix};
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_store::{EmbeddedStore, OpenError, Store};
use tokio::time::{sleep, timeout};

use crate::advertise::{advertise_address, data_path_address};
use crate::attach::not_written;
use crate::dns;
use crate::durable::{self, FileError, Survives};
use crate::member::{ControlPlane, Member, Membership, Platform, listen};
use crate::reconcile::{attempt, explain};

/// UDP port of VXLAN when none is given (RFC 7348, section 5).
const DATA_PATH_PORT: u16 = 4789;
/// Prefix length of automatic IPv4 subnets when none is given.
const POOL_MASK_LENGTH: u8 = 20;
/// The longest that leaves room: eight addresses, of which the network, its gateway and VIPs take some.
const POOL_MASK_LENGTH_MAX: u8 = 29;
/// Passes that leaving makes until the kernel has nothing of ours left, and the pause between them.
const REMOVAL_PASSES: usize = 10;
const REMOVAL_PAUSE: Duration = Duration::from_millis(200);
/// How long a manager may take to take note that this node leaves.
const FAREWELL: Duration = Duration::from_secs(10);

/// How far this host is a member.
#[derive(Debug, Clone)]
pub enum Standing {
    /// It is none.
    None,
    /// It is about to be one, or to cease to be.
    Changing,
    /// It is one.
    Member(Arc<Member>),
}

/// This host's membership, which may begin and end while the agent runs.
#[derive(Debug)]
pub struct Memberships {
    platform: Platform,
    standing: RwLock<Standing>,
    /// One init, join or leave at a time.
    changing: tokio::sync::Mutex<()>,
}

/// The host's own data, checked.
struct Own {
    name: Name,
    advertise_addr: SocketAddr,
    data_path_addr: IpAddr,
    data_path_mtu: Mtu,
}

impl Memberships {
    /// A host that is no member yet.
    pub fn new(platform: Platform) -> Self {
        Self { platform, standing: RwLock::new(Standing::None), changing: tokio::sync::Mutex::new(()) }
    }

    /// What a member stands on.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// How far this host is a member.
    pub fn standing(&self) -> Standing {
        self.standing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The member that this host is.
    pub fn member(&self) -> Result<Arc<Member>, Problem> {
        match self.standing() {
            Standing::Member(member) => Ok(member),
            Standing::None => Err(Problem::new(ProblemKind::Conflict, "this host is no member of a cluster")
                .hint("meshctl cluster init, or meshctl cluster join")),
            Standing::Changing => {
                Err(Problem::new(ProblemKind::Conflict, "this host is about to join or leave a cluster")
                    .hint("try again in a moment"))
            }
        }
    }

    fn stand(&self, standing: Standing) {
        *self.standing.write().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    /// At start: a member again when it was one; else nothing of an earlier membership may be left.
    pub async fn resume(&self) -> Result<(), Problem> {
        let paths = &self.platform.paths;
        let membership: Option<Membership> = durable::read_json(&paths.membership()).map_err(|error| {
            Problem::new(ProblemKind::Failed, error.to_string())
                .hint("restore the state directory from a backup, or empty it and join again")
        })?;
        let Some(membership) = membership else {
            self.refuse_orphans()?;
            paths
                .remove_member_state()
                .and_then(|()| paths.settle())
                .map_err(|error| cannot_remove(&error))?;
            if let Err(problem) = self.remove_traces().await {
                tracing::warn!(%problem, "something of an earlier membership is left");
            }
            return Ok(());
        };
        // An init or join that was interrupted at its very end, or a leave at its very beginning.
        paths.settle().map_err(|error| not_written(&error))?;
        let identity = NodeIdentity::load(&paths.identity())
            .map_err(|error| Problem::new(ProblemKind::Failed, error.to_string()))?;
        let control_plane = if membership.keeps_store {
            let listener = listen(membership.node.advertise_addr).await?;
            let store = open_store(EmbeddedStore::open(paths.store()))?;
            let manager = Manager::resume(store, &paths.authority(), &identity).await?;
            Some(ControlPlane { manager, listener })
        } else {
            None
        };
        let member = Member::start(&self.platform, membership, identity, control_plane)?;
        self.stand(Standing::Member(Arc::new(member)));
        Ok(())
    }

    /// Makes a cluster whose first manager is this host.
    pub async fn init(&self, request: v1::InitClusterRequest) -> Result<v1::InitClusterResponse, Problem> {
        let _changing = self.begin()?;
        let own = self.own(&request.node_name, &request.advertise_addr, &request.data_path_addr)?;
        let parameters = cluster_parameters(&request)?;
        self.stand(Standing::Changing);
        match self.initialise(own, parameters).await {
            Ok((member, response)) => {
                self.stand(Standing::Member(Arc::new(member)));
                Ok(response)
            }
            Err(problem) => Err(self.abandon(problem)),
        }
    }

    async fn initialise(
        &self,
        own: Own,
        parameters: ClusterParameters,
    ) -> Result<(Member, v1::InitClusterResponse), Problem> {
        let paths = &self.platform.paths;
        let listener = listen(own.advertise_addr).await?;
        paths.remove_member_state().map_err(|error| cannot_remove(&error))?;
        fs::create_dir(paths.authority()).map_err(|error| cannot_make(&error))?;
        let store = open_store(EmbeddedStore::create(paths.store()))?;
        let this_node = ThisNode {
            name: own.name,
            advertise_addr: own.advertise_addr,
            data_path_addr: own.data_path_addr,
            data_path_mtu: own.data_path_mtu,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let (manager, identity) =
            Manager::bootstrap(store, &paths.authority(), parameters, this_node).await?;
        let mut control = ControlClient::new(manager.local_channel());
        let request = v1::JoinTokenRequest { role: v1::Role::Worker.into(), rotate: false };
        let token = control.join_token(request).await?.into_inner();
        let inspect = v1::InspectNodeRequest { node: manager.node_id().to_string() };
        let node = control.inspect_node(inspect).await?.into_inner().node;
        let node =
            node.ok_or_else(|| Problem::new(ProblemKind::Failed, "the new node's record is missing"))?;
        let membership = Membership {
            node: node.clone().try_into().map_err(|error| invalid(&error))?,
            cluster: manager.cluster().clone(),
            managers: vec![own.advertise_addr.to_string()],
            keeps_store: true,
        };
        let member = self.establish(membership, identity, Some(ControlPlane { manager, listener }))?;
        let response = v1::InitClusterResponse {
            node: Some(node),
            worker_token: token.token,
            manager: own.advertise_addr.to_string(),
        };
        Ok((member, response))
    }

    /// Joins the cluster of a manager.
    pub async fn join(&self, request: v1::JoinClusterRequest) -> Result<v1::JoinClusterResponse, Problem> {
        let _changing = self.begin()?;
        let own = self.own(&request.node_name, &request.advertise_addr, &request.data_path_addr)?;
        self.stand(Standing::Changing);
        match self.enroll(own, &request.manager, &request.token).await {
            Ok((member, response)) => {
                self.stand(Standing::Member(Arc::new(member)));
                Ok(response)
            }
            Err(problem) => Err(self.abandon(problem)),
        }
    }

    async fn enroll(
        &self,
        own: Own,
        manager: &str,
        token: &str,
    ) -> Result<(Member, v1::JoinClusterResponse), Problem> {
        let paths = &self.platform.paths;
        paths.remove_member_state().map_err(|error| cannot_remove(&error))?;
        let parameters = JoinParameters {
            name: own.name,
            advertise_addr: own.advertise_addr,
            data_path_addr: own.data_path_addr,
            data_path_mtu: own.data_path_mtu,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            previous: None,
        };
        let joined = mesh_control::join(manager, token, parameters).await?;
        let response = v1::JoinClusterResponse { node: Some((&joined.node).into()) };
        // The manager that answered is one of those to try, however it calls itself.
        let mut managers = joined.managers;
        if !managers.iter().any(|known| known == manager) {
            managers.push(manager.to_owned());
        }
        let membership =
            Membership { node: joined.node, cluster: joined.cluster, managers, keeps_store: false };
        match self.establish(membership, joined.identity.clone(), None) {
            Ok(member) => Ok((member, response)),
            Err(problem) => {
                // The cluster has the node already, and nobody will ever be it.
                if let Err(farewell) = withdraw(manager, &joined.identity).await {
                    tracing::warn!(problem = %farewell, "the cluster keeps a node that never came to be: remove it there");
                }
                Err(problem)
            }
        }
    }

    /// Writes the membership down, and begins to work.
    fn establish(
        &self,
        membership: Membership,
        identity: NodeIdentity,
        control_plane: Option<ControlPlane>,
    ) -> Result<Member, Problem> {
        let paths = &self.platform.paths;
        self.refuse_taken_port(membership.cluster.data_path_port)?;
        identity
            .save(&paths.identity())
            .map_err(|error| Problem::new(ProblemKind::Failed, error.to_string()))?;
        durable::write_json(&paths.membership(), &membership, Survives::PowerLoss)
            .and_then(|()| paths.settle())
            .map_err(|error| not_written(&error))?;
        Member::start(&self.platform, membership, identity, control_plane)
    }

    /// Learnt now, and not when the first container comes.
    fn refuse_taken_port(&self, port: u16) -> Result<(), Problem> {
        if self.platform.host.udp_port_is_taken(port) {
            return Err(Problem::new(
                ProblemKind::Conflict,
                format!("UDP port {port} is taken: VXLAN could not be received on it"),
            )
            .hint(format!(
                "see who has it with `ss -lunp 'sport = :{port}'` and `ip -d link show type vxlan`, or make the cluster with another --data-path-port"
            )));
        }
        Ok(())
    }

    fn begin(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Problem> {
        let busy = || Problem::new(ProblemKind::Conflict, "this host is about to join or leave a cluster");
        let guard = self.changing.try_lock().map_err(|_| busy())?;
        match self.standing() {
            Standing::None => self.refuse_orphans().map(|()| guard),
            Standing::Changing => Err(busy()),
            Standing::Member(member) => Err(Problem::new(
                ProblemKind::Conflict,
                format!(
                    "this host is a member of a cluster already, as node {}",
                    member.membership.node.name
                ),
            )
            .hint("meshctl cluster leave first")),
        }
    }

    /// What may be all that is left of a cluster is not for us to remove.
    fn refuse_orphans(&self) -> Result<(), Problem> {
        let paths = &self.platform.paths;
        let orphaned: Vec<String> = paths.orphaned().iter().map(|path| path.display().to_string()).collect();
        if orphaned.is_empty() {
            return Ok(());
        }
        let (orphaned, membership) = (orphaned.join(", "), paths.membership().display().to_string());
        Err(Problem::new(
            ProblemKind::Conflict,
            format!("{orphaned} are of a member of a cluster, but {membership} is missing"),
        )
        .hint(format!(
            "restore {membership} from a backup; or, to give up what this host was a member of, move away {orphaned}"
        )))
    }

    /// Leaves nothing of an init or join that failed.
    fn abandon(&self, problem: Problem) -> Problem {
        let paths = &self.platform.paths;
        if let Err(error) = paths.remove_member_state().and_then(|()| paths.settle()) {
            tracing::error!(%error, "what was begun could not be removed");
        }
        self.stand(Standing::None);
        problem
    }

    /// Ceases to be a member: the cluster forgets the node, and nothing of it stays on the host.
    pub async fn leave(&self, force: bool) -> Result<(), Problem> {
        let conflict = |message: &str| Problem::new(ProblemKind::Conflict, message.to_owned());
        let _changing = self
            .changing
            .try_lock()
            .map_err(|_| conflict("this host is about to join or leave a cluster"))?;
        let member = self.member()?;
        let attached = member.agent.read(|state| state.endpoints.len());
        if attached > 0 && !force {
            return Err(conflict(&format!("{attached} endpoints are attached on this host"))
                .hint("detach them first, or cut them off with --force"));
        }
        if member.membership.keeps_store && !force {
            return Err(conflict("this is the last manager: the cluster and all its networks end with it")
                .hint("meshctl cluster leave --force destroys the cluster"));
        }
        if !member.membership.keeps_store {
            match (say_farewell(&member).await, force) {
                (Ok(()), _) => {}
                (Err(problem), true) => {
                    tracing::warn!(%problem, "the cluster does not know yet that this node has left: remove it there");
                }
                (Err(problem), false) => {
                    return Err(problem.hint("meshctl cluster leave --force leaves without telling the cluster; remove the node there"));
                }
            }
        }
        self.stand(Standing::Changing);
        member.stop().await;
        drop(member);
        if let Some(names) = &self.platform.name_server {
            dns::end_keeping(&names.run_dir);
        }
        let reservation = self.platform.reservation();
        if let Some(Err(error)) = reservation.map(|mut reservation| reservation.set(&BTreeSet::new())) {
            tracing::warn!(%error, "published ports stay reserved until the next boot");
        }
        let paths = &self.platform.paths;
        let removed = paths.remove_member_state().and_then(|()| paths.settle());
        let removed = removed.map_err(|error| cannot_remove(&error));
        let emptied = self.remove_traces().await;
        self.stand(Standing::None);
        removed.and(emptied)
    }

    /// Ends the member's tasks; the kernel keeps what it has.
    pub async fn stop(&self) {
        if let Standing::Member(member) = self.standing() {
            member.stop().await;
            self.stand(Standing::None);
        }
    }

    /// Removes all that is ours from the host: the WireGuard engine, then what the kernel has.
    async fn remove_traces(&self) -> Result<(), Problem> {
        let engines = self.platform.engines.clone();
        let stopped = tokio::task::spawn_blocking(move || engines.remove_left()).await;
        let stopped = match stopped {
            Ok(stopped) => stopped.map_err(|error| crate::encryption::explain(&error)),
            Err(error) => Err(Problem::new(ProblemKind::Failed, error.to_string())),
        };
        self.empty_kernel().await.and(stopped)
    }

    /// Removes all that is ours from the kernel.
    async fn empty_kernel(&self) -> Result<(), Problem> {
        let mut problem = None;
        for _ in 0..REMOVAL_PASSES {
            let outcome = self.platform.kernel.call(|kernel| attempt(kernel, None, Depth::Full)).await;
            match outcome {
                Ok(outcome) if outcome.plan.is_empty() => return Ok(()),
                Ok(outcome) => match outcome.report.failures.first() {
                    // The next pass looks whether it is all gone.
                    None => continue,
                    Some(failure) => problem = Some(explain(&failure.error)),
                },
                Err(error) => problem = Some(explain(&error)),
            }
            sleep(REMOVAL_PAUSE).await;
        }
        let problem = problem
            .unwrap_or_else(|| Problem::new(ProblemKind::Failed, "somebody else keeps making it anew"));
        Err(Problem::new(
            problem.kind,
            format!("not everything of Mesh could be removed from the kernel: {}", problem.message),
        )
        .hint("restart meshd, which tries again"))
    }

    fn own(&self, name: &str, advertise: &str, data_path: &str) -> Result<Own, Problem> {
        let host = &self.platform.host;
        let addresses = host.addresses().map_err(|error| explain(&error))?;
        let usage = |option: &str, error: crate::advertise::AdvertiseError| {
            Problem::new(ProblemKind::Usage, error.to_string()).hint(error.hint(option))
        };
        let advertise_addr =
            advertise_address(advertise, &addresses).map_err(|error| usage("--advertise-addr", error))?;
        let data_path_addr = data_path_address(data_path, advertise_addr.ip(), &addresses)
            .map_err(|error| usage("--data-path-addr", error))?;
        if data_path_addr.is_ipv6() {
            return Err(Problem::new(
                ProblemKind::Failed,
                format!("data-path address {data_path_addr}: an IPv6 underlay is not built yet"),
            )
            .hint("name an IPv4 address with --data-path-addr"));
        }
        let name = match name {
            "" => host.name().map_err(|error| {
                Problem::new(ProblemKind::Failed, format!("cannot read this host's name: {error}"))
            })?,
            name => name.to_owned(),
        };
        let name = name.parse::<Name>().map_err(|error| {
            Problem::new(ProblemKind::Usage, format!("node name {error}")).hint("give one with --node-name")
        })?;
        let data_path_mtu =
            host.mtu_of(data_path_addr).map_err(|error| explain(&error))?.ok_or_else(|| {
                Problem::new(
                    ProblemKind::Failed,
                    format!("no interface has the data-path address {data_path_addr}"),
                )
            })?;
        Ok(Own { name, advertise_addr, data_path_addr, data_path_mtu })
    }
}

/// Tells a manager that a node which it has just made leaves.
async fn withdraw(manager: &str, identity: &NodeIdentity) -> Result<(), Problem> {
    let config =
        tls::client_config(identity).map_err(|error| Problem::new(ProblemKind::Failed, error.to_string()))?;
    let channel = mesh_control::connect(manager, config).await?;
    ControlClient::new(channel).leave(v1::LeaveRequest {}).await?;
    Ok(())
}

/// Tells a manager that this node leaves.
async fn say_farewell(member: &Member) -> Result<(), Problem> {
    let late = || Problem::new(ProblemKind::Unreachable, "no manager answered in time");
    let farewell = async {
        let connected = member.managers.connected().await?;
        ControlClient::new(connected.channel).leave(v1::LeaveRequest {}).await?;
        Ok(())
    };
    timeout(FAREWELL, farewell).await.unwrap_or_else(|_| Err(late()))
}

fn cluster_parameters(request: &v1::InitClusterRequest) -> Result<ClusterParameters, Problem> {
    let usage = |message: String| Problem::new(ProblemKind::Usage, message);
    let data_path_port = match request.data_path_port {
        0 => DATA_PATH_PORT,
        port => u16::try_from(port)
            .map_err(|_| usage(format!("data-path port {port} is out of range: 1 to 65535")))?,
    };
    let default_addr_pool_mask_length =
        match request.default_addr_pool_mask_length {
            0 => POOL_MASK_LENGTH,
            length => u8::try_from(length).ok().filter(|length| *length <= POOL_MASK_LENGTH_MAX).ok_or_else(
                || usage(format!("pool mask length {length} is out of range: 1 to {POOL_MASK_LENGTH_MAX}")),
            )?,
        };
    let default_addr_pools = request
        .default_addr_pools
        .iter()
        .map(|pool| pool.parse::<Prefix>().map_err(|error| usage(format!("default address pool: {error}"))))
        .collect::<Result<_, _>>()?;
    let dsr = request.dsr;
    Ok(ClusterParameters { data_path_port, default_addr_pools, default_addr_pool_mask_length, dsr })
}

fn open_store(store: Result<EmbeddedStore, OpenError>) -> Result<Arc<dyn Store>, Problem> {
    match store {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => {
            let problem = Problem::new(ProblemKind::Failed, error.to_string());
            Err(match error.hint() {
                Some(hint) => problem.hint(hint),
                None => problem,
            })
        }
    }
}

fn invalid(error: &mesh_proto::InvalidMessage) -> Problem {
    Problem::new(ProblemKind::Failed, format!("the new node's record is not valid: {error}"))
}

fn cannot_remove(error: &FileError) -> Problem {
    Problem::new(ProblemKind::Failed, format!("cannot remove the state of an earlier membership: {error}"))
        .hint("check that the state directory is writable")
}

fn cannot_make(error: &std::io::Error) -> Problem {
    Problem::new(ProblemKind::Failed, format!("cannot write into the state directory: {error}"))
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
