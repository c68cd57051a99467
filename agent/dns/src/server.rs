//! All networks' servers.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    path::PathBuf,
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::JoinSet,
};

use crate::{
    forward::Forwarder,
    names::Names,
    network::{Network, Shared},
    sockets::Sockets,
    status::Status,
    tcp, udp,
    upstreams::Upstreams,
    zone::Zones,
};

/// Answers for each network on the sockets that it was given for it. Dropped, it closes them all.
#[derive(Debug)]
pub struct DnsServer {
    shared: Arc<Shared>,
    served: Mutex<BTreeMap<String, Served>>,
}

#[derive(Debug)]
struct Served {
    network: Arc<Network>,
    tasks: JoinSet<()>,
}

impl DnsServer {
    /// A server that has nothing to serve yet. It knows the names in `zones`, and asks for others
    /// the resolvers that `resolv_conf` (resolv.conf(5)) names, from the network namespace of the
    /// runtime's threads.
    pub fn new(zones: watch::Receiver<Zones>, resolv_conf: impl Into<PathBuf>) -> Self {
        let upstreams = Arc::new(Upstreams::new(resolv_conf.into(), zones.clone()));
        let shared = Arc::new(Shared {
            names: Names::new(zones),
            forwarder: Forwarder::new(upstreams),
            waiting: Arc::default(),
            connections: Arc::default(),
            retired: watch::Sender::new(false),
        });
        Self { shared, served: Mutex::default() }
    }

    /// Answers on `sockets` with the names of `network` from now on, besides the sockets it already
    /// has, e.g. one pair for each of its gateway addresses. While the channel has no zone of that
    /// name, answers are SERVFAIL. To be called within a tokio runtime.
    pub fn serve(&self, network: &str, sockets: Sockets) -> io::Result<()> {
        sockets.udp.set_nonblocking(true)?;
        sockets.tcp.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(sockets.udp)?;
        let listener = TcpListener::from_std(sockets.tcp)?;
        let mut served = self.served();
        let served = match served.entry(network.to_owned()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Served {
                network: Arc::new(Network::new(network, Arc::clone(&self.shared))),
                tasks: JoinSet::new(),
            }),
        };
        served.tasks.spawn(udp::serve(Arc::clone(&served.network), socket));
        served.tasks.spawn(tcp::serve(Arc::clone(&served.network), listener));
        Ok(())
    }

    /// Closes the sockets of `network`; copies of them that others hold stay open. Returns when
    /// that is done.
    pub async fn stop(&self, network: &str) {
        let served = self.served().remove(network);
        if let Some(mut served) = served {
            served.tasks.shutdown().await;
        }
    }

    /// Takes no more questions, and answers those that it has. Whoever has copies of the sockets
    /// may serve them.
    pub fn retire(&self) {
        self.shared.retired.send_replace(true);
    }

    /// What was done for each network that is served.
    pub fn status(&self) -> BTreeMap<String, Status> {
        let served = self.served();
        served.iter().map(|(name, served)| (name.clone(), served.network.counters.status())).collect()
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<String, Served>> {
        // The map is whole whenever it can be seen.
        self.served.lock()
    }
}
