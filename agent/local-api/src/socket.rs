//! The unix socket, for root and the group `mesh` only.

use std::path::Path;
use std::sync::Arc;

use mesh_handle::AgentHandle;
use mesh_proto::v1::control_server::ControlServer;
use mesh_proto::v1::local_server::LocalServer;
use mesh_sys::unix_socket::{self, SocketError};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::control::ControlGateway;
use crate::local::LocalApi;

/// The group whose members may use the socket.
const GROUP: &str = "mesh";

/// Creates the socket. Must be called within a runtime.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let listener = unix_socket::bind(path, 0o660, Some(GROUP))?;
    UnixListener::from_std(listener).map_err(|source| SocketError::Io { path: path.to_owned(), source })
}

/// Serves Local and Control until `shutdown` is done.
pub async fn serve(
    listener: UnixListener,
    agent: Arc<dyn AgentHandle>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .add_service(LocalServer::new(LocalApi::new(agent.clone())))
        .add_service(ControlServer::new(ControlGateway::new(agent)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown)
        .await
}
