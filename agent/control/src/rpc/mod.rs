//! The gRPC services: authorize each call, parse its message, and pass it on.

mod control;
mod enrollment;
mod session;

use std::sync::Arc;

use mesh_proto::v1::control_server::ControlServer;
use mesh_proto::v1::session_server::SessionServer;
use mesh_proto::{MAX_MESSAGE, Problem};
use tonic::Request;

use crate::access::{Caller, Method, authorize, identity};
use crate::core::Core;
use crate::identity::PeerIdentity;

pub(crate) use enrollment::EnrollmentService;

/// `Control` and `Session` for members.
#[derive(Debug, Clone)]
pub struct MemberService {
    core: Arc<Core>,
    /// Within the process: the manager's own identity. `None`: the identity in the connection's
    /// certificate.
    own: Option<PeerIdentity>,
}

impl MemberService {
    pub(crate) fn remote(core: Arc<Core>) -> Self {
        Self { core, own: None }
    }

    pub(crate) fn local(core: Arc<Core>) -> Self {
        let own = Some(core.own().clone());
        Self { core, own }
    }

    /// Returns the service to add to a server.
    pub fn control_server(self) -> ControlServer<Self> {
        ControlServer::new(self).max_encoding_message_size(MAX_MESSAGE)
    }

    /// Returns the service to add to a server.
    pub fn session_server(self) -> SessionServer<Self> {
        SessionServer::new(self).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
    }

    async fn authorize<T>(&self, request: &Request<T>, method: Method) -> Result<Caller, Problem> {
        let identity = identity(request, self.own.as_ref());
        authorize(&self.core.records, &self.core.cluster().id, identity, method).await
    }
}
