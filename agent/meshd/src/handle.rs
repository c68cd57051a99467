//! The handle that servers of this agent's users get.

use std::sync::Arc;

use mesh_handle::{AgentHandle, Attachment, ManagerConnection, Readiness};
use mesh_host::{NetnsName, blocking, kernel_problem};
use mesh_model::{EndpointPhase, Network, Owner, Runtime};
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_session::Connected;
use mesh_state::endpoint_message;
use tonic::async_trait;

use crate::membership::Memberships;
use crate::status::{self, StatusReporter};

/// This process's agent.
#[derive(Debug)]
pub(crate) struct Handle {
    memberships: Arc<Memberships>,
    reporter: StatusReporter,
}

impl Handle {
    /// Creates the handle of the agent with these memberships.
    pub(crate) fn new(memberships: Arc<Memberships>, reporter: StatusReporter) -> Self {
        Self { memberships, reporter }
    }
}

/// Completes a change of the membership when its caller goes away.
async fn complete<T: Send + 'static>(
    change: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(change).await.unwrap_or_else(|error| {
        Err(Problem::new(ProblemKind::Failed, format!("the change was cut short: {error}")))
    })
}

#[async_trait]
impl AgentHandle for Handle {
    async fn init(&self, request: v1::InitClusterRequest) -> Result<v1::InitClusterResponse, Problem> {
        let memberships = self.memberships.clone();
        complete(async move { memberships.init(request).await }).await
    }

    async fn join(&self, request: v1::JoinClusterRequest) -> Result<v1::JoinClusterResponse, Problem> {
        let memberships = self.memberships.clone();
        complete(async move { memberships.join(request).await }).await
    }

    async fn leave(&self, force: bool) -> Result<(), Problem> {
        let memberships = self.memberships.clone();
        complete(async move { memberships.leave(force).await }).await
    }

    async fn attach(&self, request: v1::AttachRequest) -> Result<v1::Endpoint, Problem> {
        self.memberships.member()?.endpoints.attach(request).await
    }

    async fn detach(&self, endpoint: &str) -> Result<v1::Endpoint, Problem> {
        self.memberships.member()?.endpoints.detach(endpoint).await
    }

    fn readiness(&self) -> Readiness {
        match self.memberships.member() {
            Err(problem) => Readiness::NotMember(problem),
            Ok(member) if !member.managers.reachable() => Readiness::Limited(
                Problem::new(ProblemKind::Unreachable, "no manager can be reached")
                    .hint("meshctl status shows whether this node is in session"),
            ),
            Ok(_) => Readiness::Ready,
        }
    }

    async fn check_namespace(&self, path: &str) -> Result<(), Problem> {
        let (host, name) = (self.memberships.platform().host.clone(), NetnsName::Text(path.to_owned()));
        let found = blocking(move || host.find_netns(&name)).await;
        found.map(drop).map_err(|error| kernel_problem(&error))
    }

    async fn detach_owned(&self, owner: &Owner) -> Result<Option<v1::Endpoint>, Problem> {
        self.memberships.member()?.endpoints.detach_owned(owner).await
    }

    fn attachment(&self, owner: &Owner) -> Result<Option<Attachment>, Problem> {
        Ok(self.memberships.member()?.endpoints.attachment(owner))
    }

    fn owners(&self, runtime: Runtime) -> Result<Vec<Owner>, Problem> {
        Ok(self.memberships.member()?.endpoints.owners(runtime))
    }

    async fn check_attachment(&self, owner: &Owner) -> Result<(), Problem> {
        self.memberships.member()?.endpoints.check(owner).await
    }

    async fn is_namespace_alive(&self, owner: &Owner) -> Result<bool, Problem> {
        self.memberships.member()?.endpoints.is_namespace_alive(owner).await
    }

    async fn status(&self) -> v1::StatusResponse {
        self.reporter.status().await
    }

    async fn network_counters(&self, vni: u32) -> Result<v1::NetworkCountersResponse, Problem> {
        let member = self.memberships.member()?;
        status::network_counters(self.memberships.platform(), &member, vni).await
    }

    fn own_endpoints(&self, request: &v1::ListEndpointsRequest) -> Option<v1::ListEndpointsResponse> {
        let member = self.memberships.member().ok()?;
        let own = member.agent.node();
        if ![String::new(), own.name.to_string(), own.id.to_string()].contains(&request.node) {
            return None;
        }
        member.agent.read(|state| {
            let named = |network: &&Network| {
                [network.name.as_str(), network.id.as_str()].contains(&request.network.as_str())
            };
            let network = state.view.networks.values().find(named);
            if network.is_none() && !request.network.is_empty() {
                return None;
            }
            let attached = state.endpoints.values().filter(|endpoint| {
                endpoint.phase == EndpointPhase::Attached
                    && network.is_none_or(|network| network.id == endpoint.network)
            });
            let endpoints = attached.map(|endpoint| endpoint_message(state, endpoint)).collect();
            Some(v1::ListEndpointsResponse { endpoints, unheard: Vec::new() })
        })
    }

    fn is_own_node(&self, node: &str) -> Result<bool, Problem> {
        let own = self.memberships.member()?.agent.node();
        Ok([own.name.as_str(), own.id.as_str()].contains(&node))
    }

    async fn set_addresses(&self, advertise: &str, data_path: &str) -> Result<v1::NodeStatus, Problem> {
        self.memberships.member()?.readdress.name(advertise, data_path).await
    }

    async fn manager(&self) -> Result<ManagerConnection, Problem> {
        let Connected { address, channel } = self.memberships.member()?.managers.connected().await?;
        Ok(ManagerConnection { address, channel })
    }

    fn forget_manager(&self, address: &str) {
        if let Ok(member) = self.memberships.member() {
            member.managers.forget(address);
        }
    }
}
