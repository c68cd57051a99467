//! The control plane that a manager serves, and its socket.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use mesh_control::Manager;
use mesh_proto::{Problem, ProblemKind};
use tokio::net::TcpListener;

/// A manager and the socket that it is to serve.
pub(crate) struct ControlPlane {
    /// The manager.
    pub(crate) manager: Manager,
    /// Bound to its advertised address.
    pub(crate) listener: TcpListener,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// Opens the socket of the control plane.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Problem> {
    TcpListener::bind(address).await.map_err(|error| {
        let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
        let kind = if in_use { ProblemKind::Conflict } else { ProblemKind::Failed };
        let problem = Problem::new(kind, format!("cannot serve the control plane on {address}: {error}"));
        if in_use {
            let port = address.port();
            problem.hint(format!("see who has the port with: ss -ltnp 'sport = :{port}'"))
        } else {
            problem
        }
    })
}

/// Opens the socket of the control plane where it is advertised; on every address if the host has
/// another one by now: then it is about to be reported to the cluster.
pub(crate) async fn listen_somewhere(advertised: SocketAddr) -> Result<TcpListener, Problem> {
    match TcpListener::bind(advertised).await {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            tracing::warn!(%advertised, "this host does not have the address any more: serving the control plane on all");
            listen((Ipv4Addr::UNSPECIFIED, advertised.port()).into()).await
        }
        Ok(listener) => Ok(listener),
        Err(_) => listen(advertised).await,
    }
}
