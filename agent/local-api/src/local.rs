//! What only the local agent can do.

use std::sync::Arc;

use mesh_handle::AgentHandle;
use mesh_proto::v1;
use mesh_proto::v1::local_server::Local;
use tonic::{Request, Response, Status, async_trait};

/// The service of the local socket.
#[derive(Debug, Clone)]
pub(crate) struct LocalApi {
    agent: Arc<dyn AgentHandle>,
}

impl LocalApi {
    /// Creates the service of this agent.
    pub(crate) fn new(agent: Arc<dyn AgentHandle>) -> Self {
        Self { agent }
    }
}

#[async_trait]
impl Local for LocalApi {
    async fn init_cluster(
        &self,
        request: Request<v1::InitClusterRequest>,
    ) -> Result<Response<v1::InitClusterResponse>, Status> {
        Ok(Response::new(self.agent.init(request.into_inner()).await?))
    }

    async fn join_cluster(
        &self,
        request: Request<v1::JoinClusterRequest>,
    ) -> Result<Response<v1::JoinClusterResponse>, Status> {
        Ok(Response::new(self.agent.join(request.into_inner()).await?))
    }

    async fn leave_cluster(
        &self,
        request: Request<v1::LeaveClusterRequest>,
    ) -> Result<Response<v1::LeaveClusterResponse>, Status> {
        self.agent.leave(request.into_inner().force).await?;
        Ok(Response::new(v1::LeaveClusterResponse {}))
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(self.agent.status().await))
    }

    async fn metrics(
        &self,
        _request: Request<v1::MetricsRequest>,
    ) -> Result<Response<v1::MetricsResponse>, Status> {
        let text = mesh_metrics::text(self.agent.status().await);
        Ok(Response::new(v1::MetricsResponse { text }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Result<Response<v1::Endpoint>, Status> {
        Ok(Response::new(self.agent.attach(request.into_inner()).await?))
    }

    async fn detach(&self, request: Request<v1::DetachRequest>) -> Result<Response<v1::Endpoint>, Status> {
        Ok(Response::new(self.agent.detach(&request.into_inner().endpoint).await?))
    }

    async fn network_counters(
        &self,
        request: Request<v1::NetworkCountersRequest>,
    ) -> Result<Response<v1::NetworkCountersResponse>, Status> {
        Ok(Response::new(self.agent.network_counters(request.into_inner().vni).await?))
    }
}
