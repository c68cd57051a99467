//! Visits of network namespaces of containers.
//!
//! Nothing of ours stays in another namespace: the calling thread enters, opens what is to be
//! opened there, and returns at once. A thread of its own for each visit would cost two more
//! changes of threads on the way of every attach. A socket belongs to the namespace that it was
//! opened in, and can be used from everywhere.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use mesh_model::endpoint::NetnsRef;
use mesh_sys::netlink::Netlink;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::KernelError;
use crate::netlink as route;

/// The namespace of the calling thread.
const OWN_THREAD: &str = "/proc/thread-self/ns/net";

/// Runs a closure in a namespace.
///
/// The calling thread is back in its own when this returns or unwinds. A thread that cannot return
/// must not continue: its next operations would run in a container's namespace.
pub(crate) fn inside<T>(namespace: &File, work: impl FnOnce() -> T) -> io::Result<T> {
    struct Return(File);

    impl Drop for Return {
        fn drop(&mut self) {
            if setns(&self.0, CloneFlags::CLONE_NEWNET).is_err() {
                std::process::abort();
            }
        }
    }

    let back = Return(File::open(OWN_THREAD)?);
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let result = work();
    drop(back);
    Ok(result)
}

/// The cookie of the calling thread's namespace; 0 if the kernel has none.
pub(crate) fn own_cookie() -> io::Result<u64> {
    match mesh_sys::netns::own_cookie() {
        Err(error) if error.raw_os_error() == Some(Errno::ENOPROTOOPT as i32) => Ok(0),
        cookie => cookie,
    }
}

/// Returns whether the path still leads to this namespace. A namespace that contains a device of
/// ours exists, so its inode number is unique. Without one, the cookie decides, and the namespace
/// has to be entered to read it.
pub(crate) fn exists(netns: &NetnsRef, has_device: bool) -> bool {
    if has_device {
        std::fs::metadata(&netns.path).is_ok_and(|found| found.ino() == netns.inode)
    } else {
        open(netns).is_ok()
    }
}

/// Opens the namespace, if it is still the one at its path.
pub(crate) fn open(netns: &NetnsRef) -> Result<File, KernelError> {
    let gone = |source| KernelError::NamespaceGone { path: netns.path.clone(), source };
    let file = File::open(&netns.path).map_err(|source| gone(Some(source)))?;
    let inode = file.metadata().map_err(|source| gone(Some(source)))?.ino();
    if inode != netns.inode {
        return Err(gone(None));
    }
    let cookie = inside(&file, own_cookie).and_then(|cookie| cookie).map_err(|source| gone(Some(source)))?;
    if cookie == netns.cookie { Ok(file) } else { Err(gone(None)) }
}

/// Opens a netlink socket inside a namespace, after some further work there.
pub(crate) fn netlink(
    netns: &NetnsRef,
    namespace: &File,
    before: impl FnOnce(),
) -> Result<Netlink, KernelError> {
    let opened = inside(namespace, || {
        before();
        route::open()
    });
    opened.and_then(|opened| opened).map_err(|source| {
        let action = format!("enter the network namespace {}", netns.path.display());
        match source.kind() {
            io::ErrorKind::PermissionDenied => KernelError::Permission { action, source },
            _ => KernelError::Netlink { action, source },
        }
    })
}
