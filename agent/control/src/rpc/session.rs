//! The `Session` service.

use mesh_proto::v1::AgentMessage;
use mesh_proto::v1::session_server::Session;
use tonic::{Request, Response, Status, Streaming};

use super::MemberService;
use crate::access::Method;
use crate::sessions;

#[tonic::async_trait]
impl Session for MemberService {
    type OpenStream = sessions::Outbound;

    async fn open(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let caller = self.authorize(&request, Method::OpenSession).await?;
        Ok(Response::new(sessions::open(self.core.clone(), caller, request.into_inner())))
    }
}
