//! Creates and joins clusters.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_control::identity::tls;
use mesh_control::{ClusterParameters, JoinParameters, Manager, NodeIdentity, ThisNode};
use mesh_host::advertise::{advertise_address, data_path_address};
use mesh_host::kernel_problem;
use mesh_model::{Mtu, Name, Prefix};
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_state::file_problem;
use mesh_store::EmbeddedStore;
use mesh_sys::durable::{self, Survives};

use super::{MembershipState, Memberships, cannot_remove, changing, open_store};
use crate::control_plane::{ControlPlane, listen};
use crate::member::Member;
use crate::member_record::{Membership, Named};

/// How long a new member's first session with a manager is waited for.
const IN_SESSION: Duration = Duration::from_secs(5);
/// UDP port of VXLAN when none is given (RFC 7348, section 5).
const DATA_PATH_PORT: u16 = 4789;
/// Prefix length of automatic IPv4 subnets when none is given.
const POOL_MASK_LENGTH: u8 = 20;
/// The longest that leaves room: eight addresses, of which the network, its gateway and VIPs take
/// some.
const POOL_MASK_LENGTH_MAX: u8 = 29;

/// The host's own data, checked.
struct Own {
    name: Name,
    advertise_addr: SocketAddr,
    data_path_addr: IpAddr,
    data_path_mtu: Mtu,
    /// How the addresses were named.
    named: Named,
}

impl Memberships {
    /// Makes a cluster whose first manager is this host.
    pub(crate) async fn init(
        &self,
        request: v1::InitClusterRequest,
    ) -> Result<v1::InitClusterResponse, Problem> {
        let _changing = self.begin()?;
        let own = self.own(&request.node_name, &request.advertise_addr, &request.data_path_addr)?;
        let parameters = cluster_parameters(&request)?;
        self.set_state(MembershipState::Changing);
        let begun = self.initialise(own, parameters).await;
        self.settle(begun).await
    }

    /// Becomes the member that was made, or what it was before. The manager then knows what this
    /// host reported in its session, as which subnets are others'.
    async fn settle<R>(&self, begun: Result<(Member, R), Problem>) -> Result<R, Problem> {
        match begun {
            Ok((member, response)) => {
                let agent = Arc::clone(&member.agent);
                self.set_state(MembershipState::Member(Arc::new(member)));
                if !agent.is_in_session(IN_SESSION).await {
                    tracing::warn!("a member now, but not yet in session with a manager");
                }
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
        fs::create_dir(paths.authority()).map_err(|error| cannot_write(&error))?;
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
            named: own.named,
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
    pub(crate) async fn join(
        &self,
        request: v1::JoinClusterRequest,
    ) -> Result<v1::JoinClusterResponse, Problem> {
        let _changing = self.begin()?;
        let own = self.own(&request.node_name, &request.advertise_addr, &request.data_path_addr)?;
        self.set_state(MembershipState::Changing);
        let begun = self.enroll(own, &request.manager, &request.token).await;
        self.settle(begun).await
    }

    async fn enroll(
        &self,
        own: Own,
        manager: &str,
        token: &str,
    ) -> Result<(Member, v1::JoinClusterResponse), Problem> {
        let paths = &self.platform.paths;
        paths.remove_member_state().map_err(|error| cannot_remove(&error))?;
        let named = own.named;
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
            Membership { node: joined.node, cluster: joined.cluster, managers, keeps_store: false, named };
        match self.establish(membership, joined.identity.clone(), None) {
            Ok(member) => Ok((member, response)),
            Err(problem) => {
                // The cluster has a record of the node already, but no host will use it.
                if let Err(announced) = withdraw(manager, &joined.identity).await {
                    tracing::warn!(problem = %announced, "the cluster keeps a node that never came to be: remove it there");
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
            .map_err(|error| file_problem(&error))?;
        Member::start(&self.platform, membership, identity, control_plane)
    }

    /// Learnt now, and not when the first container comes.
    fn refuse_taken_port(&self, port: u16) -> Result<(), Problem> {
        if self.platform.host.udp_port_is_taken(port) {
            return Err(Problem::new(
                ProblemKind::Conflict,
                format!("UDP port {port} is in use: VXLAN could not be received on it"),
            )
            .hint(format!(
                "find its user with `ss -lunp 'sport = :{port}'` and `ip -d link show type vxlan`, or create the cluster with another --data-path-port"
            )));
        }
        Ok(())
    }

    fn begin(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Problem> {
        let guard = self.changing.try_lock().map_err(|_| changing())?;
        match self.state() {
            MembershipState::None => self.refuse_orphans().map(|()| guard),
            MembershipState::Changing => Err(changing()),
            MembershipState::Member(member) => Err(Problem::new(
                ProblemKind::Conflict,
                format!(
                    "this host is a member of a cluster already, as node {}",
                    member.membership.node.name
                ),
            )
            .hint("meshctl cluster leave first")),
        }
    }

    /// Leaves nothing of an init or join that failed.
    fn abandon(&self, problem: Problem) -> Problem {
        let paths = &self.platform.paths;
        if let Err(error) = paths.remove_member_state().and_then(|()| paths.settle()) {
            tracing::error!(%error, "what was begun could not be removed");
        }
        self.set_state(MembershipState::None);
        problem
    }

    fn own(&self, name: &str, advertise: &str, data_path: &str) -> Result<Own, Problem> {
        let host = &self.platform.host;
        let addresses = host.addresses().map_err(|error| kernel_problem(&error))?;
        let usage = |option: &str, error: mesh_host::advertise::AdvertiseError| {
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
            host.mtu_of(data_path_addr).map_err(|error| kernel_problem(&error))?.ok_or_else(|| {
                Problem::new(
                    ProblemKind::Failed,
                    format!("no interface has the data-path address {data_path_addr}"),
                )
            })?;
        let named = Named { advertise: advertise.to_owned(), data_path: data_path.to_owned() };
        Ok(Own { name, advertise_addr, data_path_addr, data_path_mtu, named })
    }
}

/// Reports to a manager that a node which it has just added leaves.
async fn withdraw(manager: &str, identity: &NodeIdentity) -> Result<(), Problem> {
    let config =
        tls::client_config(identity).map_err(|error| Problem::new(ProblemKind::Failed, error.to_string()))?;
    let channel = mesh_control::connect(manager, config).await?;
    ControlClient::new(channel).leave(v1::LeaveRequest {}).await?;
    Ok(())
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

fn invalid(error: &mesh_proto::InvalidMessage) -> Problem {
    Problem::new(ProblemKind::Failed, format!("the new node's record is not valid: {error}"))
}

fn cannot_write(error: &std::io::Error) -> Problem {
    Problem::new(ProblemKind::Failed, format!("cannot write into the state directory: {error}"))
}
