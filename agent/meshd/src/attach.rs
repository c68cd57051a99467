//! Attaching a container to a network: addresses, a durable record, a pass of the kernel loop, and only then an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use mesh_ebpf_types::derived_mac;
use mesh_ipam::StaticError;
use mesh_ipam::prefix::Family;
use mesh_kernel::KernelError;
use mesh_model::endpoint::host_ifname;
use mesh_model::{
    Availability, Endpoint, EndpointId, EndpointPhase, IfName, MacAddr, Name, Network, NetworkId,
};
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::{Problem, ProblemKind, v1};

use crate::agent::{Agent, State, now};
use crate::blocking::blocking;
use crate::durable::FileError;
use crate::host::{FoundNetns, Host, NetnsName};
use crate::managers::Managers;
use crate::reconcile::explain;
use crate::{addresses, session};

/// How long a lease that a manager has granted may take to come with the session.
const LEASE_ARRIVES: Duration = Duration::from_secs(5);
/// How long the cluster may take to know this node's key.
const KEY_KNOWN: Duration = Duration::from_secs(5);
/// Times that a lease is asked for before an attach gives up: others may use up what came.
const LEASE_TRIES: usize = 8;

/// Attaches and detaches containers.
#[derive(Debug)]
pub struct Endpoints {
    pub(crate) agent: Arc<Agent>,
    pub(crate) managers: Arc<Managers>,
    host: Arc<dyn Host>,
    /// One request for a lease at a time for each network and family: its answer serves all who wait.
    leasing: Mutex<BTreeMap<(NetworkId, Family), Turn>>,
}

/// Held by whoever asks for a lease.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// An attach request whose fields are valid.
#[derive(Debug)]
struct Request {
    network: String,
    netns: NetnsName,
    name: Option<Name>,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    mac: Option<MacAddr>,
    ifname: Option<IfName>,
    aliases: Vec<Name>,
    service: Option<Name>,
    allow_forwarding: bool,
}

impl TryFrom<v1::AttachRequest> for Request {
    type Error = Problem;

    fn try_from(request: v1::AttachRequest) -> Result<Self, Problem> {
        let usage = |message: &str| Problem::new(ProblemKind::Usage, message);
        if request.network.is_empty() {
            return Err(usage("no network is given").hint("name one with --network"));
        }
        let netns = match (request.netns.is_empty(), request.pid) {
            (false, 0) => NetnsName::Text(request.netns),
            (true, 1..) => NetnsName::Pid(request.pid),
            (true, 0) => {
                return Err(usage("no container is given")
                    .hint("name its namespace with --netns, or a process in it with --pid"));
            }
            (false, _) => {
                return Err(usage("both a namespace and a process are given").hint("use --netns or --pid"));
            }
        };
        Ok(Self {
            network: request.network,
            netns,
            name: optional("name", &request.name)?,
            ipv4: optional("IPv4 address", &request.ip)?,
            ipv6: optional("IPv6 address", &request.ip6)?,
            mac: optional("MAC address", &request.mac)?,
            ifname: optional("interface name", &request.ifname)?,
            aliases: request
                .aliases
                .iter()
                .map(|alias| required("alias", alias))
                .collect::<Result<_, Problem>>()?,
            service: optional("service", &request.service)?,
            allow_forwarding: request.allow_forwarding,
        })
    }
}

fn required<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|e| Problem::new(ProblemKind::Usage, format!("{what} {text:?}: {e}")))
}

fn optional<T: std::str::FromStr<Err: std::fmt::Display>>(
    what: &str,
    text: &str,
) -> Result<Option<T>, Problem> {
    if text.is_empty() { Ok(None) } else { required(what, text).map(Some) }
}

pub(crate) fn not_written(error: &FileError) -> Problem {
    Problem::new(ProblemKind::Failed, error.to_string())
        .hint("check that the disk of the state directory is not full, read-only or failing")
}

impl Endpoints {
    /// Endpoints of this node.
    pub fn new(agent: Arc<Agent>, managers: Arc<Managers>, host: Arc<dyn Host>) -> Self {
        Self { agent, managers, host, leasing: Mutex::default() }
    }

    /// Attaches a container. It goes on to its end, whether or not its caller still waits.
    pub async fn attach(self: &Arc<Self>, request: v1::AttachRequest) -> Result<v1::Endpoint, Problem> {
        let request = Request::try_from(request)?;
        let this = self.clone();
        let task = tokio::spawn(async move { this.attach_checked(request).await });
        task.await.unwrap_or_else(|error| {
            Err(Problem::new(ProblemKind::Failed, format!("the attach was cut short: {error}")))
        })
    }

    async fn attach_checked(&self, request: Request) -> Result<v1::Endpoint, Problem> {
        let network = self.network(&request.network).await?;
        self.may_attach(&network)?;
        if network.encrypted {
            self.needs_key().await?;
        }
        let host = self.host.clone();
        let netns = request.netns.clone();
        let found = blocking(move || host.find_netns(&netns)).await;
        let found = found.map_err(|error| not_found(&request.netns, &error))?;
        let id = self.draw_id()?;
        let mut addresses = BTreeSet::new();
        let recorded = async {
            self.assign_all(&network, &request, &id, &mut addresses).await?;
            if !self.agent.own_view_is_saved() {
                self.blocking(Agent::save_own_view).await?;
            }
            self.record(&network, &request, &found, &id, &addresses)
        };
        let (generation, endpoint) = match recorded.await {
            Ok(recorded) => recorded,
            Err(problem) => {
                self.release(&network.id, &addresses);
                return Err(problem);
            }
        };
        let established = async {
            let endpoint = self.establish(generation, endpoint).await?;
            self.serve(&network, &endpoint).await?;
            Ok(endpoint)
        };
        match established.await {
            Ok(endpoint) => Ok(self.agent.read(|state| session::message(state, &endpoint))),
            Err(problem) => {
                self.undo(&id).await;
                Err(problem)
            }
        }
    }

    /// Finds a network by name, id or unambiguous id prefix: among those known here, else by asking a manager.
    async fn network(&self, text: &str) -> Result<Network, Problem> {
        let known = self.agent.read(|state| {
            let mut networks = state.view.networks.values();
            networks.find(|network| network.name.as_str() == text || network.id.as_str() == text).cloned()
        });
        if let Some(network) = known {
            return Ok(network);
        }
        let connected = self.managers.connected().await.map_err(|problem| {
            Problem::new(
                problem.kind,
                format!("network {text} is not known on this node, and {}", problem.message),
            )
            .hint("try again when a manager is reachable")
        })?;
        let request = v1::InspectNetworkRequest { network: text.to_owned() };
        let answer = ControlClient::new(connected.channel).inspect_network(request).await?.into_inner();
        let invalid = |reason: String| Problem::new(ProblemKind::Failed, format!("a manager sent {reason}"));
        answer
            .network
            .ok_or_else(|| invalid("no network".into()))?
            .try_into()
            .map_err(|error| invalid(format!("a network that is not valid: {error}")))
    }

    fn may_attach(&self, network: &Network) -> Result<(), Problem> {
        let refuse = |message: String| Problem::new(ProblemKind::Conflict, message);
        if network.removing {
            return Err(refuse(format!("network {} is being removed", network.name)));
        }
        if !network.attachable {
            return Err(refuse(format!("network {} is not attachable", network.name))
                .hint("create it with --attachable to attach containers by hand"));
        }
        let node = self.agent.node();
        if node.availability == Availability::Drain {
            return Err(refuse(format!("node {} is drained and takes no new endpoints", node.name))
                .hint(format!("meshctl node update --availability active {}", node.name)));
        }
        Ok(())
    }

    /// Other nodes send to an encrypted network's endpoints here only once they know this node's key.
    async fn needs_key(&self) -> Result<(), Problem> {
        if self.agent.has_announced_key(KEY_KNOWN).await {
            return Ok(());
        }
        let reason = self.agent.read(|state| state.key_problem.clone());
        Err(match reason {
            Some(reason) => Problem::new(ProblemKind::Failed, reason),
            None => Problem::new(
                ProblemKind::Unreachable,
                "the cluster does not know this node's key for encrypted networks yet",
            )
            .hint("try again; meshctl status shows whether this node is in session"),
        })
    }

    /// Draws an id whose device name no other endpoint of this node has.
    fn draw_id(&self) -> Result<EndpointId, Problem> {
        let failed = |error| Problem::new(ProblemKind::Failed, format!("cannot draw an id: {error}"));
        let taken: BTreeSet<IfName> =
            self.agent.read(|state| state.endpoints.keys().map(host_ifname).collect());
        loop {
            let id = EndpointId::random().map_err(failed)?;
            if !taken.contains(&host_ifname(&id)) {
                return Ok(id);
            }
        }
    }

    async fn assign_all(
        &self,
        network: &Network,
        request: &Request,
        id: &EndpointId,
        assigned: &mut BTreeSet<IpAddr>,
    ) -> Result<(), Problem> {
        let families = addresses::families(network);
        let wanted =
            [(Family::Ipv4, request.ipv4.map(IpAddr::V4)), (Family::Ipv6, request.ipv6.map(IpAddr::V6))];
        for (family, address) in wanted {
            match address {
                Some(address) if !families.contains(&family) => {
                    return Err(Problem::new(
                        ProblemKind::Usage,
                        format!("address {address}: network {} has no {family} subnet", network.name),
                    ));
                }
                Some(address) => {
                    self.assign_static(network, address, id).await?;
                    assigned.insert(address);
                }
                None if families.contains(&family) => {
                    assigned.insert(self.assign(network, family, id).await?);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Chooses an address: a rested one of this node's blocks; else of a new block; else one released a moment ago.
    async fn assign(&self, network: &Network, family: Family, id: &EndpointId) -> Result<IpAddr, Problem> {
        let try_assign =
            |early| self.agent.note(|state| state.pools.assign(&network.id, family, id, early, now()));
        if let Some(address) = try_assign(false) {
            return Ok(address);
        }
        let has_released = || self.agent.note(|state| state.pools.free(&network.id, family) > 0);
        if has_released()
            && !self.managers.reachable()
            && let Some(address) = try_assign(true)
        {
            return Ok(address);
        }
        let turn = self.turn(&network.id, family);
        let _turn = turn.lock().await;
        let mut problem = Problem::new(
            ProblemKind::Exhausted,
            format!("{} has no free address", in_family(network, family)),
        );
        for _ in 0..LEASE_TRIES {
            // Whoever had the turn before may have brought enough for all.
            if let Some(address) = try_assign(false) {
                return Ok(address);
            }
            match self.lease(&network.id, family, None).await {
                Ok(()) => {}
                Err(reason) => {
                    problem = reason;
                    break;
                }
            }
        }
        try_assign(true).ok_or(problem)
    }

    async fn assign_static(
        &self,
        network: &Network,
        address: IpAddr,
        id: &EndpointId,
    ) -> Result<(), Problem> {
        let family = Family::of(address);
        let turn = self.turn(&network.id, family);
        let _turn = turn.lock().await;
        let mut asked = false;
        loop {
            let result = self.agent.note(|state| state.pools.assign_static(&network.id, address, id));
            match result {
                Some(Ok(())) => return Ok(()),
                None | Some(Err(StaticError::NotLeased { .. })) if !asked => {
                    asked = true;
                    self.lease(&network.id, family, Some(address)).await?;
                }
                None => {
                    return Err(Problem::new(
                        ProblemKind::Usage,
                        format!("address {address} is in no subnet of network {}", network.name),
                    ));
                }
                Some(Err(StaticError::InUse { address, by })) => {
                    let name = self.agent.read(|state| state.endpoints.get(&by).map(|e| e.name.to_string()));
                    let by = name.unwrap_or_else(|| by.to_string());
                    return Err(Problem::new(
                        ProblemKind::Conflict,
                        format!("address {address} of network {} is in use by endpoint {by}", network.name),
                    ));
                }
                Some(Err(error @ StaticError::Reserved { .. })) => {
                    return Err(Problem::new(ProblemKind::Conflict, error.to_string()));
                }
                Some(Err(error @ StaticError::NotLeased { .. })) => {
                    return Err(Problem::new(ProblemKind::Failed, error.to_string()));
                }
            }
        }
    }

    /// Gets another lease from a manager, and waits until it has come with the session.
    async fn lease(
        &self,
        network: &NetworkId,
        family: Family,
        address: Option<IpAddr>,
    ) -> Result<(), Problem> {
        let connected = self.managers.connected().await?;
        let request = v1::LeaseRequest {
            network: network.to_string(),
            address: address.map(|address| address.to_string()).unwrap_or_default(),
            family: match family {
                Family::Ipv4 => 4,
                Family::Ipv6 => 6,
            },
        };
        let answer = ControlClient::new(connected.channel).lease(request).await?.into_inner();
        if self.agent.received(answer.revision, LEASE_ARRIVES).await {
            Ok(())
        } else {
            Err(Problem::new(
                ProblemKind::Unreachable,
                "addresses were leased, but the session with the manager has not brought them yet",
            )
            .hint("try again; meshctl status shows whether this node is in session"))
        }
    }

    /// Leases blocks for the subnets that will soon have no address left. Returns those for which that failed.
    pub async fn lease_ahead(&self) -> BTreeSet<(NetworkId, Family)> {
        let mut failed = BTreeSet::new();
        for (network, family) in self.agent.read(|state| state.pools.low_water(now())) {
            let turn = self.turn(&network, family);
            let _turn = turn.lock().await;
            let still_low = self.agent.read(|state| state.pools.low_water(now()));
            if still_low.contains(&(network.clone(), family))
                && let Err(problem) = self.lease(&network, family, None).await
            {
                tracing::debug!(%network, %family, %problem, "no block ahead of need");
                failed.insert((network, family));
            }
        }
        failed
    }

    fn turn(&self, network: &NetworkId, family: Family) -> Turn {
        let mut leasing = self.leasing.lock().unwrap_or_else(PoisonError::into_inner);
        leasing.entry((network.clone(), family)).or_default().clone()
    }

    /// Writes the endpoint down as attaching and wishes for it. Whatever must be unique is checked in the same step.
    fn record(
        &self,
        network: &Network,
        request: &Request,
        found: &FoundNetns,
        id: &EndpointId,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(u64, Endpoint), Problem> {
        let ipv4 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let ipv6 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(*v6),
        });
        let mac = request.mac.map_or_else(|| default_mac(network, ipv4, ipv6), Ok)?;
        let (generation, endpoint) = self.agent.change(|state| {
            let endpoint = Endpoint {
                id: id.clone(),
                name: unique_name(state, network, request, id)?,
                network: network.id.clone(),
                node: self.agent.id().clone(),
                ipv4,
                ipv6,
                mac,
                ifname: free_ifname(state, request, found)?,
                allow_forwarding: request.allow_forwarding,
                service: request.service.clone(),
                aliases: request.aliases.clone(),
                netns: found.netns.clone(),
                phase: EndpointPhase::Attaching,
                created_at: Timestamp::now(),
            };
            refuse_removing(state, &network.id)?;
            refuse_second(state, network, request, found)?;
            self.agent.endpoint_store().begin(&endpoint).map_err(|error| not_written(&error))?;
            state.endpoints.insert(id.clone(), endpoint.clone());
            Ok::<_, Problem>(endpoint)
        });
        Ok((generation, endpoint?))
    }

    /// Waits for the kernel to have the endpoint and for the manager to know of it, both at once, and makes its record say so.
    async fn establish(&self, generation: u64, endpoint: Endpoint) -> Result<Endpoint, Problem> {
        let (pass, ()) = tokio::join!(self.agent.pass_of(generation), self.agent.told());
        if let Some(problem) = pass.failed.get(&endpoint.id).or(pass.node_failure.as_ref()) {
            return Err(problem.clone());
        }
        if pass.lost.contains(&endpoint.id) {
            let path = endpoint.netns.path.display();
            return Err(Problem::new(ProblemKind::NotFound, format!("the network namespace {path} is gone")));
        }
        if let Some(why) = self.agent.read(|state| state.refused.get(&endpoint.id).cloned()) {
            return Err(Problem::new(ProblemKind::Conflict, why)
                .hint("choose another name with --name, or detach the other first"));
        }
        let endpoint = Endpoint { phase: EndpointPhase::Attached, ..endpoint };
        // One step of the file system, which is not waited for to reach the disk.
        self.agent.endpoint_store().finish(&endpoint.id).map_err(|error| not_written(&error))?;
        self.agent.adjust(|state| {
            refuse_removing(state, &endpoint.network)?;
            let Some(known) = state.endpoints.get_mut(&endpoint.id) else {
                let message = format!("endpoint {} was removed meanwhile", endpoint.name);
                return Err(Problem::new(ProblemKind::Conflict, message));
            };
            known.phase = EndpointPhase::Attached;
            Ok(endpoint)
        })
    }

    /// Takes back an attach that failed: no wish, no record, nothing in the kernel, addresses free again.
    async fn undo(&self, id: &EndpointId) {
        if let Err(error) = self.agent.endpoint_store().remove(id) {
            tracing::error!(%error, "the record of an attach that failed stays until the next start");
        }
        let (generation, endpoint) = self.agent.change(|state| state.endpoints.remove(id));
        tokio::join!(self.agent.pass_of(generation), self.agent.told());
        self.agent.note(|state| state.refused.remove(id));
        if let Some(endpoint) = endpoint {
            self.release(&endpoint.network, &endpoint.addresses().collect());
        }
    }

    /// Writes to the disk where that may take its time.
    pub(crate) async fn blocking(
        &self,
        write: impl FnOnce(&Agent) -> Result<(), FileError> + Send + 'static,
    ) -> Result<(), Problem> {
        let agent = self.agent.clone();
        blocking(move || write(&agent)).await.map_err(|error| not_written(&error))
    }

    pub(crate) fn release(&self, network: &NetworkId, addresses: &BTreeSet<IpAddr>) {
        self.agent.note(|state| {
            for address in addresses {
                state.pools.release(network, *address, now());
            }
        });
    }
}

/// A namespace that cannot be found, in the words in which it was asked for.
fn not_found(name: &NetnsName, error: &KernelError) -> Problem {
    match error {
        KernelError::NamespaceGone { path, .. } => Problem::new(
            ProblemKind::NotFound,
            format!("network namespace {name} does not exist: there is no {}", path.display()),
        )
        .hint("ip netns list shows named ones; a path or --pid names others"),
        error => explain(error),
    }
}

/// A network may have begun to be removed since the attach began.
fn refuse_removing(state: &State, network: &NetworkId) -> Result<(), Problem> {
    match state.view.networks.get(network) {
        Some(network) if !network.removing => Ok(()),
        Some(network) => {
            Err(Problem::new(ProblemKind::Conflict, format!("network {} is being removed", network.name)))
        }
        None => Err(Problem::new(ProblemKind::Conflict, format!("network {network} was removed"))),
    }
}

/// A container has one attachment to a network: of two, with the same subnet behind both, its answers would leave by
/// the first, with a source address that is not that one's own.
fn refuse_second(
    state: &State,
    network: &Network,
    request: &Request,
    found: &FoundNetns,
) -> Result<(), Problem> {
    let first = state
        .endpoints
        .values()
        .find(|other| other.network == network.id && other.netns.is_same(&found.netns));
    first.map_or(Ok(()), |first| {
        let message = format!(
            "the namespace {} is attached to network {} already, as endpoint {}",
            request.netns, network.name, first.name
        );
        Err(Problem::new(ProblemKind::Conflict, message).hint("detach that one first"))
    })
}

/// A network and its subnets of a family.
fn in_family(network: &Network, family: Family) -> String {
    let subnets = network.subnets.iter().map(|subnet| subnet.subnet);
    let subnets = subnets.filter(|subnet| subnet.family() == family).map(|subnet| subnet.to_string());
    format!("network {} ({})", network.name, subnets.collect::<Vec<_>>().join(", "))
}

/// The MAC that stands for the endpoint's address in every neighbour's table.
fn default_mac(
    network: &Network,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
) -> Result<MacAddr, Problem> {
    let address = ipv4.map(IpAddr::V4).or(ipv6.map(IpAddr::V6));
    let none = || Problem::new(ProblemKind::Failed, format!("network {} has no subnet", network.name));
    let mac = derived_mac(address.ok_or_else(none)?.into(), prefix6(network));
    MacAddr::new(mac.0).map_err(|error| Problem::new(ProblemKind::Failed, error.to_string()))
}

/// The first 96 bits of the network's first IPv6 subnet, as the datapath knows them; zero without one.
fn prefix6(network: &Network) -> [u8; 12] {
    let mut prefix6 = [0; 12];
    let first = network.subnets.iter().find_map(|subnet| match subnet.subnet.first() {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(v6.octets()),
    });
    if let Some(octets) = first {
        prefix6.copy_from_slice(&octets[..12]);
    }
    prefix6
}

fn unique_name(
    state: &State,
    network: &Network,
    request: &Request,
    id: &EndpointId,
) -> Result<Name, Problem> {
    let of_netns = || match &request.netns {
        NetnsName::Text(text) => text.rsplit('/').next().and_then(|name| name.parse().ok()),
        NetnsName::Pid(_) => None,
    };
    let of_id = || id.as_str().parse().ok();
    let name: Name =
        request.name.clone().or_else(of_netns).or_else(of_id).ok_or_else(|| {
            Problem::new(ProblemKind::Failed, format!("no name can be made for endpoint {id}"))
        })?;
    let taken = |other: &&Endpoint| other.network == network.id && other.name == name;
    match state.endpoints.values().find(taken) {
        None => Ok(name),
        Some(other) => Err(Problem::new(
            ProblemKind::Conflict,
            format!("endpoint {name} exists on network {} ({})", network.name, other.id),
        )
        .hint("choose another name with --name, or detach the other first")),
    }
}

/// The interface's name inside the container: as asked for, else the first of `eth0`, `eth1`, ... that is free there and
/// that no attach under way will take.
fn free_ifname(state: &State, request: &Request, found: &FoundNetns) -> Result<IfName, Problem> {
    let there = state.endpoints.values().filter(|other| other.netns.is_same(&found.netns));
    let taken: BTreeSet<IfName> =
        there.map(|other| other.ifname.clone()).chain(found.interfaces.iter().cloned()).collect();
    let conflict = |message: String| {
        Problem::new(ProblemKind::Conflict, message).hint("choose another name with --ifname")
    };
    match &request.ifname {
        Some(ifname) if taken.contains(ifname) => {
            let message = format!("the namespace {} has an interface {ifname} already", request.netns);
            Err(conflict(message))
        }
        Some(ifname) => Ok(ifname.clone()),
        None => (0..=taken.len())
            .filter_map(|n| format!("eth{n}").parse().ok())
            .find(|ifname| !taken.contains(ifname))
            .ok_or_else(|| conflict(format!("the namespace {} has no free interface name", request.netns))),
    }
}
