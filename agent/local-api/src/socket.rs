//! The unix socket: for root and the group `mesh`, and nobody else.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_handle::AgentHandle;
use mesh_proto::v1::control_server::ControlServer;
use mesh_proto::v1::local_server::LocalServer;
use nix::unistd::Group;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::control::ControlGateway;
use crate::local::LocalApi;

/// The group whose members may use the socket.
const GROUP: &str = "mesh";

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process serves it.
    #[error("{} is served by another process", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something is there that is no socket.
    #[error("{} exists and is no socket", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("cannot create the socket {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the socket, in the place of one that a process which has ended left.
pub async fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NoSocket { path: path.to_owned() });
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err(SocketError::InUse { path: path.to_owned() });
        }
        Ok(_) => fs::remove_file(path).map_err(failed)?,
    }
    // Made under another name, so that nobody can connect before the permissions are right.
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&unfinished).map_err(failed)?;
    fs::set_permissions(&unfinished, Permissions::from_mode(0o660)).map_err(failed)?;
    if let Ok(Some(group)) = Group::from_name(GROUP) {
        chown(&unfinished, None, Some(group.gid.as_raw())).map_err(failed)?;
    }
    fs::rename(&unfinished, path).map_err(failed)?;
    Ok(listener)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_a_killed_agent_left_is_replaced_but_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meshd.sock");
        drop(bind(&path).await.unwrap());
        let living = bind(&path).await.unwrap();
        assert!(matches!(bind(&path).await, Err(SocketError::InUse { .. })));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(living);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meshd.sock");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(bind(&path).await, Err(SocketError::NoSocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
