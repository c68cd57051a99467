//! The name server of the networks that have a lease here: their names, their sockets, and who keeps those.

pub mod holder;
mod keeper;
mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_dns::{DnsServer, Sockets, Status, Zones};
use mesh_model::{Endpoint, naming};
use mesh_proto::v1;
use tokio::sync::watch;
use tokio::time::sleep;

use self::keeper::{Keeper, Kept};
pub use self::zones::NamedEndpoint;
use self::zones::{Named, Networks};
use crate::agent::{Agent, State};
use crate::managers::Backoff;
use crate::services::Seen;

/// The port of DNS (RFC 1035, section 4.2).
const PORT: u16 = 53;
/// Pauses before sockets that could not be made are tried again.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// What a name server needs of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the holder of the sockets has its own.
    pub run_dir: PathBuf,
    /// The file that names the resolvers of all other names (resolv.conf(5)).
    pub resolv_conf: PathBuf,
}

/// What the name server does, for people.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Of each network, by name.
    pub networks: BTreeMap<String, Status>,
    /// What does not work, a line each.
    pub problems: Vec<String>,
}

/// A name server at work, or none.
#[derive(Debug, Clone, Default)]
pub struct Reporter(Option<(Arc<DnsServer>, watch::Receiver<Vec<String>>)>);

impl Reporter {
    /// What it does now.
    pub fn report(&self) -> Report {
        match &self.0 {
            Some((server, problems)) => {
                Report { networks: server.status(), problems: problems.borrow().clone() }
            }
            None => Report::default(),
        }
    }
}

/// What an endpoint's container should write into its resolv.conf: one server, which answers for all of the container's
/// networks. There is no search domain, since the server answers bare names; with one, a resolver would look for a
/// bare name that does not exist in the public domain of the network's name.
pub fn client_settings(state: &State, endpoint: &Endpoint) -> Option<v1::Dns> {
    let server = zones::server_of(state, endpoint);
    let network = state.view.networks.get(&server.network)?;
    let gateways = || network.subnets.iter().map(|subnet| subnet.gateway);
    let gateway = gateways().find(|gateway| server.addresses().any(|own| own.is_ipv4() == gateway.is_ipv4()));
    Some(v1::Dns {
        nameservers: gateway.or_else(|| gateways().next()).iter().map(ToString::to_string).collect(),
        search: Vec::new(),
        options: vec!["ndots:0".to_owned()],
    })
}

/// Ends the process that keeps the sockets of an instance, if there is one.
pub fn end_keeping(run_dir: &Path) {
    Keeper::end(run_dir);
}

/// Makes a name server, and the task that keeps it up to date for ever.
pub fn start(agent: Arc<Agent>, settings: Settings) -> (Reporter, impl Future<Output = ()> + Send) {
    let zones = watch::Sender::new(Zones::default());
    let server = Arc::new(DnsServer::new(zones.subscribe(), settings.resolv_conf.clone()));
    let problems = watch::Sender::new(Vec::new());
    let reporter = Reporter(Some((Arc::clone(&server), problems.subscribe())));
    (reporter, run(agent, settings, zones, server, problems))
}

async fn run(
    agent: Arc<Agent>,
    settings: Settings,
    published: watch::Sender<Zones>,
    server: Arc<DnsServer>,
    problems: watch::Sender<Vec<String>>,
) {
    agent.view_known().await;
    let run_dir = settings.run_dir.clone();
    let opened = tokio::task::spawn_blocking(move || Keeper::open(&run_dir)).await;
    let (keeper, kept) = match opened {
        Ok(Ok((keeper, kept))) => (Some(keeper), kept),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the name server's sockets end with this process");
            (None, Kept::new())
        }
        Err(_) => (None, Kept::new()),
    };
    let mut serving = Serving { server, keeper, kept, served: BTreeMap::new() };
    let mut news = agent.service_changes();
    let mut passes = agent.passes();
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let mut named = Named::default();
    loop {
        news.mark_unchanged();
        // What takes its time is made of copies, while others go on.
        let (seen, networks) =
            agent.read(|state| (Seen::of(state, agent.id()), Networks::of(state, agent.id())));
        let now = named.zones(seen, agent.id(), networks, &published.borrow());
        let gateways = now.networks.iter();
        let gateways: BTreeMap<String, BTreeSet<IpAddr>> =
            gateways.map(|(name, zone)| (name.clone(), zone.gateways.iter().copied().collect())).collect();
        published.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        let failed = serving.serve(&gateways).await;
        let again = !failed.is_empty();
        problems.send_if_modified(|before| {
            let changed = *before != failed;
            for problem in failed.iter().filter(|problem| !before.contains(problem)) {
                tracing::debug!("{problem}");
            }
            *before = failed;
            changed
        });
        if !again {
            backoff.reset();
        }
        let pause = if again { backoff.pause() } else { Duration::MAX };
        tokio::select! {
            _ = news.changed() => {}
            // The device that the sockets stand on is made by a pass.
            _ = passes.changed(), if again => {}
            () = sleep(pause), if again => {}
        }
    }
}

/// The sockets that are served, and who keeps them.
struct Serving {
    server: Arc<DnsServer>,
    keeper: Option<Keeper>,
    /// What a former agent served and this one does not yet.
    kept: Kept,
    /// Copies of what is served.
    served: BTreeMap<String, Kept>,
}

impl Serving {
    /// Serves these networks on these addresses, and nothing else. Returns what did not work, a line each.
    async fn serve(&mut self, wanted: &BTreeMap<String, BTreeSet<IpAddr>>) -> Vec<String> {
        let mut problems = Vec::new();
        let changed = |(name, served): &(&String, &Kept)| {
            wanted.get(*name).is_none_or(|wanted| served.keys().any(|address| !wanted.contains(address)))
        };
        let gone: Vec<String> = self.served.iter().filter(changed).map(|(name, _)| name.clone()).collect();
        let mut left: BTreeSet<IpAddr> = BTreeSet::new();
        for name in gone {
            self.server.stop(&name).await;
            left.extend(self.served.remove(&name).into_iter().flat_map(Kept::into_keys));
        }
        for (network, addresses) in wanted {
            for address in addresses {
                if self.served.get(network).is_some_and(|served| served.contains_key(address)) {
                    continue;
                }
                left.remove(address);
                if let Err(error) = self.serve_one(network, *address) {
                    problems.push(format!("network {network}: no name server on {address}: {error}"));
                }
            }
        }
        // What nobody wants any more, of this agent's or of the former one's.
        if problems.is_empty() {
            left.extend(std::mem::take(&mut self.kept).into_keys());
            if let Err(error) = self.forget(left) {
                problems.push(format!("sockets of the name server are kept that nobody needs: {error}"));
            }
        }
        problems
    }

    fn serve_one(&mut self, network: &str, address: IpAddr) -> io::Result<()> {
        let (sockets, is_new) = match self.kept.remove(&address) {
            Some(kept) => (kept, false),
            None => (Sockets::bind_on(SocketAddr::new(address, PORT), naming::HOST_LEG)?, true),
        };
        let copy =
            || Ok::<_, io::Error>(Sockets { udp: sockets.udp.try_clone()?, tcp: sockets.tcp.try_clone()? });
        self.server.serve(network, copy()?)?;
        if is_new
            && let Some(keeper) = &mut self.keeper
            && let Err(error) = keeper.keep(address, &sockets)
        {
            tracing::warn!(%error, %address, "a socket of the name server ends with this process");
        }
        self.served.entry(network.to_owned()).or_default().insert(address, sockets);
        Ok(())
    }

    fn forget(&mut self, gone: BTreeSet<IpAddr>) -> io::Result<()> {
        if gone.is_empty() {
            return Ok(());
        }
        let rest = self.served.values().flatten().map(|(address, sockets)| (*address, sockets));
        self.keeper.as_mut().map_or(Ok(()), |keeper| keeper.forget(gone, rest))
    }
}
