//! The `Enrollment` service: the only one without a certificate.

use std::sync::Arc;

use mesh_proto::v1::enrollment_server::{Enrollment, EnrollmentServer};
use mesh_proto::v1::{JoinRequest, JoinResponse};
use tonic::{Request, Response, Status};

use crate::access::identity;
use crate::core::Core;
use crate::enroll;
use crate::transport::PeerInfo;

/// Serves joining hosts.
#[derive(Debug, Clone)]
pub(crate) struct EnrollmentService {
    core: Arc<Core>,
}

impl EnrollmentService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    pub(crate) fn server(self) -> EnrollmentServer<Self> {
        EnrollmentServer::new(self)
    }
}

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let previous = identity(&request, None);
        // Every connection has an address.
        let address = request.extensions().get::<PeerInfo>().map(|peer| peer.address.ip());
        Ok(Response::new(enroll::join(&self.core, request.into_inner(), previous, address).await?))
    }
}
