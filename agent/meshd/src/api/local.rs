//! What only the local agent can do.

use std::sync::Arc;

use mesh_proto::v1;
use mesh_proto::v1::local_server::Local;
use tonic::{Request, Response, Status, async_trait};

use crate::membership::Memberships;
use crate::metrics;
use crate::status::{self, StatusReporter};

/// The service of the local socket.
#[derive(Debug, Clone)]
pub struct LocalApi {
    memberships: Arc<Memberships>,
    reporter: StatusReporter,
}

impl LocalApi {
    /// Serves this host.
    pub fn new(memberships: Arc<Memberships>, reporter: StatusReporter) -> Self {
        Self { memberships, reporter }
    }
}

/// Lets a change of the membership go on to its end when its caller goes away.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, mesh_proto::Problem>> + Send + 'static,
) -> Result<Response<T>, Status> {
    let done = tokio::spawn(change).await.map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::new(done?))
}

#[async_trait]
impl Local for LocalApi {
    async fn init_cluster(
        &self,
        request: Request<v1::InitClusterRequest>,
    ) -> Result<Response<v1::InitClusterResponse>, Status> {
        let memberships = self.memberships.clone();
        to_its_end(async move { memberships.init(request.into_inner()).await }).await
    }

    async fn join_cluster(
        &self,
        request: Request<v1::JoinClusterRequest>,
    ) -> Result<Response<v1::JoinClusterResponse>, Status> {
        let memberships = self.memberships.clone();
        to_its_end(async move { memberships.join(request.into_inner()).await }).await
    }

    async fn leave_cluster(
        &self,
        request: Request<v1::LeaveClusterRequest>,
    ) -> Result<Response<v1::LeaveClusterResponse>, Status> {
        let memberships = self.memberships.clone();
        let force = request.into_inner().force;
        let left = async move { memberships.leave(force).await.map(|()| v1::LeaveClusterResponse {}) };
        to_its_end(left).await
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(self.reporter.status().await))
    }

    async fn metrics(
        &self,
        _request: Request<v1::MetricsRequest>,
    ) -> Result<Response<v1::MetricsResponse>, Status> {
        let text = metrics::text(self.reporter.status().await);
        Ok(Response::new(v1::MetricsResponse { text }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Result<Response<v1::Endpoint>, Status> {
        let endpoint = self.memberships.member()?.endpoints.attach(request.into_inner()).await?;
        Ok(Response::new(endpoint))
    }

    async fn detach(&self, request: Request<v1::DetachRequest>) -> Result<Response<v1::Endpoint>, Status> {
        let endpoint = self.memberships.member()?.endpoints.detach(&request.into_inner().endpoint).await?;
        Ok(Response::new(endpoint))
    }

    async fn network_counters(
        &self,
        request: Request<v1::NetworkCountersRequest>,
    ) -> Result<Response<v1::NetworkCountersResponse>, Status> {
        let member = self.memberships.member()?;
        let vni = request.into_inner().vni;
        Ok(Response::new(status::network_counters(self.memberships.platform(), &member, vni).await?))
    }
}
