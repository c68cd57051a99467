//! Who keeps the name server's sockets while no agent runs: the service manager, else a process of ours.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use mesh_dns::Sockets;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;

use super::holder::Holder;

/// What descriptors in the service manager's store are called before their address.
const STORED: &str = "mesh-dns-";

/// The sockets of each address that a former agent served.
pub(super) type Kept = BTreeMap<IpAddr, Sockets>;

/// Keeps sockets.
#[derive(Debug)]
pub(super) enum Keeper {
    /// The store of descriptors that systemd has (its manual page `sd_pid_notify_with_fds`).
    ServiceManager,
    /// A process of ours.
    Process { run_dir: PathBuf, holder: Holder },
}

impl Keeper {
    /// The keeper of this instance, with what it has kept. systemd says by `FDSTORE` that it keeps any.
    pub(super) fn open(run_dir: &Path) -> io::Result<(Self, Kept)> {
        let in_store = |name| std::env::var_os(name).is_some();
        if in_store("NOTIFY_SOCKET") && in_store("FDSTORE") {
            return Ok((Self::ServiceManager, stored()?));
        }
        let holder = Holder::connect_or_start(run_dir)?;
        let mut kept = Kept::new();
        for [udp, tcp] in holder.give()? {
            let sockets = Sockets { udp: UdpSocket::from(udp), tcp: TcpListener::from(tcp) };
            kept.insert(sockets.udp.local_addr()?.ip(), sockets);
        }
        Ok((Self::Process { run_dir: run_dir.to_owned(), holder }, kept))
    }

    /// Has the sockets of an address kept.
    pub(super) fn keep(&mut self, address: IpAddr, sockets: &Sockets) -> io::Result<()> {
        match self {
            Self::ServiceManager => {
                let name = stored_name(address);
                let state = [NotifyState::FdStore, NotifyState::FdName(&name)];
                sd_notify::notify_with_fds(&state, &[sockets.udp.as_fd(), sockets.tcp.as_fd()])
            }
            Self::Process { run_dir, holder } => {
                let pair = || [sockets.udp.as_fd(), sockets.tcp.as_fd()];
                if holder.keep(pair()).is_ok() {
                    return Ok(());
                }
                // It may have been killed; what it had is kept again when it is next said.
                *holder = Holder::connect_or_start(run_dir)?;
                holder.keep(pair())
            }
        }
    }

    /// Has the sockets of addresses let go of; `rest` are those to be kept on.
    pub(super) fn forget<'a>(
        &mut self,
        gone: impl IntoIterator<Item = IpAddr>,
        rest: impl IntoIterator<Item = (IpAddr, &'a Sockets)>,
    ) -> io::Result<()> {
        match self {
            Self::ServiceManager => {
                for address in gone {
                    let name = stored_name(address);
                    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)])?;
                }
                Ok(())
            }
            Self::Process { holder, .. } => {
                holder.forget_all()?;
                rest.into_iter().try_for_each(|(address, sockets)| self.keep(address, sockets))
            }
        }
    }

    /// Ends what was made for keeping: this host is no member any more.
    pub(super) fn end(run_dir: &Path) {
        if let Ok(holder) = Holder::connect(run_dir)
            && let Err(error) = holder.end()
        {
            tracing::warn!(%error, "the holder of the name server's sockets goes on for some minutes");
        }
    }
}

/// Names of descriptors have no colons, as IPv6 addresses have.
fn stored_name(address: IpAddr) -> String {
    format!("{STORED}{}", address.to_string().replace(':', "_"))
}

/// What the service manager handed over at start. The descriptors are ours by their numbers alone; copies are taken, since
/// numbers are no proof of anything.
fn stored() -> io::Result<Kept> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let copy = |number| pidfd_getfd(&own, number, PidfdGetfdFlags::empty());
    let (mut udp, mut tcp) = (BTreeMap::new(), Kept::new());
    let mut listeners = Vec::new();
    for (number, name) in sd_notify::listen_fds_with_names()? {
        if !name.starts_with(STORED) {
            continue;
        }
        let fd: OwnedFd = copy(number)?;
        match rustix::net::sockopt::socket_type(&fd)? {
            rustix::net::SocketType::DGRAM => {
                let socket = UdpSocket::from(fd);
                udp.insert(socket.local_addr()?.ip(), socket);
            }
            _ => listeners.push(TcpListener::from(fd)),
        }
    }
    for listener in listeners {
        let address = listener.local_addr()?.ip();
        if let Some(udp) = udp.remove(&address) {
            tcp.insert(address, Sockets { udp, tcp: listener });
        }
    }
    Ok(tcp)
}
