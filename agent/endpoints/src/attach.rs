//! Attaching a container to a network: addresses, a durable record, a pass of the kernel loop, and
//! only then an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_host::{NetnsName, blocking, kernel_problem};
use mesh_kernel::KernelError;
use mesh_model::endpoint::host_ifname;
use mesh_model::{Availability, Description, Endpoint, EndpointId, EndpointPhase, IfName, Network};
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_state::{Agent, endpoint_message, file_problem};

use crate::endpoints::Endpoints;
use crate::names;
use crate::record::{being_removed, namesake, refuse_removing};
use crate::request::{Request, TakenName};

/// How long the cluster may take to know this node's key.
const KEY_KNOWN: Duration = Duration::from_secs(5);

impl Endpoints {
    /// Attaches a container. The attach completes even if the caller goes away.
    pub async fn attach(self: &Arc<Self>, request: v1::AttachRequest) -> Result<v1::Endpoint, Problem> {
        let request = Request::try_from(request)?;
        let this = self.clone();
        let task =
            tokio::spawn(
                async move { this.attach_checked(request).await.map_err(|failure| failure.problem) },
            );
        task.await.unwrap_or_else(|error| {
            Err(Problem::new(ProblemKind::Failed, format!("the attach was cut short: {error}")))
        })
    }

    /// Attaches with the asked name, or with another one if that is allowed and an endpoint of
    /// another node has the name.
    async fn attach_checked(&self, request: Request) -> Result<v1::Endpoint, Failure> {
        match self.attach_once(&request).await {
            Err(failure) if failure.name_taken && request.taken_name == TakenName::Extend => {
                self.attach_once(&Request { taken_name: TakenName::Extended, ..request }).await
            }
            result => result,
        }
    }

    async fn attach_once(&self, request: &Request) -> Result<v1::Endpoint, Failure> {
        let network = self.network(&request.network).await?;
        self.may_attach(&network)?;
        if network.encrypted {
            self.needs_key().await?;
        }
        let host = self.host.clone();
        let netns = request.netns.clone();
        let found = blocking(move || host.find_netns(&netns)).await;
        let found = found.map_err(|error| not_found(&request.netns, &error))?;
        self.detach_lost_namesake(&network, request).await;
        let id = self.draw_id()?;
        let mut addresses = BTreeSet::new();
        let recorded = async {
            self.assign_all(&network, request, &id, &mut addresses).await?;
            if !self.agent.own_view_is_saved() {
                self.blocking(Agent::save_own_view).await?;
            }
            self.record(&network, request, &found, &id, &addresses)
        };
        let (generation, endpoint) = match recorded.await {
            Ok(recorded) => recorded,
            Err(problem) => {
                self.release(&network.id, &addresses);
                return Err(Problem::into(problem));
            }
        };
        let established = async {
            let endpoint = self.establish(generation, endpoint).await?;
            self.serve(&network, &endpoint).await?;
            Ok::<_, Failure>(endpoint)
        };
        match established.await {
            Ok(endpoint) => Ok(self.agent.read(|state| v1::Endpoint {
                warnings: names::shared(state, &endpoint),
                ..endpoint_message(state, &endpoint)
            })),
            Err(failure) => {
                self.undo(&id).await;
                Err(failure)
            }
        }
    }

    /// Removes the endpoint that has the requested name, if its namespace is gone: a container may
    /// restart before the periodic check finds the old endpoint lost.
    async fn detach_lost_namesake(&self, network: &Network, request: &Request) {
        let Some(name) = request.endpoint_name() else { return };
        let Some(other) = self.agent.read(|state| namesake(state, network, &name).cloned()) else { return };
        if matches!(self.is_alive(&other.netns).await, Ok(false)) {
            self.remove_lost(&BTreeSet::from([other.id])).await;
        }
    }

    /// Finds a network by name, id or unambiguous id prefix: among those known here, else by asking
    /// a manager.
    async fn network(&self, text: &str) -> Result<Network, Problem> {
        let known = self.agent.read(|state| {
            let networks = state.view.networks.values();
            let exact =
                networks.clone().find(|network| [network.name.as_str(), network.id.as_str()].contains(&text));
            exact
                .or_else(|| networks.clone().find(|network| network.name.as_str().eq_ignore_ascii_case(text)))
                .cloned()
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
            return Err(being_removed(network));
        }
        if !network.attachable {
            return Err(refuse(format!("network {} is not attachable", network.name))
                .hint("create it with --attachable to attach containers by hand"));
        }
        let node = self.agent.node();
        if node.availability == Availability::Drain {
            return Err(refuse(format!("node {} is drained and accepts no new endpoints", node.name))
                .hint(format!("meshctl node update --availability active {}", node.name)));
        }
        Ok(())
    }

    /// Other nodes send to an encrypted network's endpoints here only once they know this node's
    /// key.
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

    /// Waits for the kernel to have the endpoint and for the manager to know of it, both at once,
    /// and makes its record say so.
    async fn establish(&self, generation: u64, endpoint: Endpoint) -> Result<Endpoint, Failure> {
        let (reconciliation, ()) =
            tokio::join!(self.agent.reconciled(generation), self.agent.endpoints_reported());
        if let Some(problem) =
            reconciliation.failed.get(&endpoint.id).or(reconciliation.node_failure.as_ref())
        {
            return Err(problem.clone().into());
        }
        if reconciliation.lost.contains(&endpoint.id) {
            let path = endpoint.netns.path.display();
            let message = format!("the network namespace {path} is gone");
            return Err(Problem::new(ProblemKind::NotFound, message).into());
        }
        if let Some(refusal) = self.agent.read(|state| state.refused.get(&endpoint.id).cloned()) {
            let problem = Problem::new(ProblemKind::Conflict, refusal.why);
            let problem = if refusal.name_taken {
                problem.hint("choose another name with --name, or detach the other first")
            } else {
                problem
            };
            return Err(Failure { problem, name_taken: refusal.name_taken });
        }
        let endpoint = Endpoint { phase: EndpointPhase::Attached, ..endpoint };
        let description = (endpoint.host_ifname(), Description::from(&endpoint).to_string());
        let host = self.host.clone();
        if let Err(error) = blocking(move || host.describe(&BTreeMap::from([description]))).await {
            tracing::warn!(reason = kernel_problem(&error).message, "an endpoint's device is not described");
        }
        // One step of the file system, which is not waited for to reach the disk.
        self.agent.endpoint_store().finish(&endpoint.id).map_err(|error| file_problem(&error))?;
        self.agent.update(|state| {
            refuse_removing(state, &endpoint.network)?;
            if !state.endpoints.set_attached(&endpoint.id) {
                let message = format!("endpoint {} was removed meanwhile", endpoint.name);
                return Err(Problem::new(ProblemKind::Conflict, message).into());
            }
            Ok(endpoint)
        })
    }

    /// Undoes an attach that failed: removes the endpoint from the desired state, deletes its
    /// record and its device, and releases its addresses.
    async fn undo(&self, id: &EndpointId) {
        if let Err(error) = self.agent.endpoint_store().remove(id) {
            tracing::error!(%error, "the record of an attach that failed stays until the next start");
        }
        let (generation, endpoint) = self.agent.update_generation(|state| state.endpoints.remove(id));
        let (pass, ()) = tokio::join!(self.agent.reconciled(generation), self.agent.endpoints_reported());
        self.forget(id, &pass);
        self.agent.update(|state| state.refused.remove(id));
        if let Some(endpoint) = endpoint {
            self.release(&endpoint.network, &endpoint.addresses().collect());
        }
    }
}

/// Why an attach failed.
#[derive(Debug)]
struct Failure {
    problem: Problem,
    /// Whether an endpoint of another node has the name.
    name_taken: bool,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { problem, name_taken: false }
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
        error => kernel_problem(error),
    }
}
