//! The `Session` service.

use mesh_proto::v1::session_server::Session;
use mesh_proto::v1::{AgentMessage, ManagerMessage};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::MemberService;
use crate::access::Method;

#[tonic::async_trait]
impl Session for MemberService {
    type OpenStream = ReceiverStream<Result<ManagerMessage, Status>>;

    async fn open(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let _caller = self.authorize(&request, Method::OpenSession).await?;
        Err(Status::unimplemented("not built yet"))
    }
}
