//! Listening unix sockets with the right permissions from the first moment on.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::unistd::Group;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process serves it.
    #[error("{} is served by another process", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has the path.
    #[error("{} exists and is no socket", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// An operation of the file system failed.
    #[error("cannot create the socket {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Creates a listening socket, non-blocking, in the place of one that a process which has ended
/// left. `mode` is that of the socket's file; members of `group` own it if there is such a group.
pub fn bind(path: &Path, mode: u32, group: Option<&str>) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NoSocket { path: path.to_owned() });
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(SocketError::InUse { path: path.to_owned() });
        }
        Ok(_) => fs::remove_file(path).map_err(failed)?,
    }
    // Created under another name, so that nobody can connect before the permissions are right.
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&unfinished).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    fs::set_permissions(&unfinished, Permissions::from_mode(mode)).map_err(failed)?;
    if let Some(group) = group
        && let Ok(Some(group)) = Group::from_name(group)
    {
        chown(&unfinished, None, Some(group.gid.as_raw())).map_err(failed)?;
    }
    fs::rename(&unfinished, path).map_err(failed)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_a_killed_process_left_is_replaced_but_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meshd.sock");
        drop(bind(&path, 0o660, None).unwrap());
        let living = bind(&path, 0o660, None).unwrap();
        assert!(matches!(bind(&path, 0o660, None), Err(SocketError::InUse { .. })));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(living);
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meshd.sock");
        fs::write(&path, "content").unwrap();
        assert!(matches!(bind(&path, 0o600, None), Err(SocketError::NoSocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "content");
    }
}
