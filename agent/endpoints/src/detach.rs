//! Detaches containers, and removes endpoints whose container is gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_model::{Endpoint, EndpointId, EndpointPhase, Owner};
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_state::{Agent, Reconciliation, endpoint_message, file_problem};

use crate::endpoints::Endpoints;

/// Length of the shortest id prefix that identifies an endpoint to be removed.
const SHORTEST_PREFIX: usize = 4;

impl Endpoints {
    /// Detaches an endpoint of this node, named by id, unambiguous id prefix, name or NETWORK/NAME.
    /// Done when this returns: no device, no entry, no record. It goes on to its end, whether or
    /// not its caller still waits.
    pub async fn detach(self: &Arc<Self>, text: &str) -> Result<v1::Endpoint, Problem> {
        let endpoint = self.find(text)?;
        self.detach_found(endpoint).await
    }

    /// Detaches the endpoint that a runtime attached by this key; `None` if there is none. It needs
    /// no namespace.
    pub async fn detach_owned(self: &Arc<Self>, owner: &Owner) -> Result<Option<v1::Endpoint>, Problem> {
        match self.owned(owner) {
            Some(endpoint) => self.detach_found(endpoint).await.map(Some),
            None => Ok(None),
        }
    }

    async fn detach_found(self: &Arc<Self>, endpoint: Endpoint) -> Result<v1::Endpoint, Problem> {
        let answer = self.agent.read(|state| endpoint_message(state, &endpoint));
        let this = self.clone();
        let task = tokio::spawn(async move {
            this.stop_serving(&endpoint).await;
            this.remove(endpoint).await
        });
        task.await.unwrap_or_else(|error| {
            Err(Problem::new(ProblemKind::Failed, format!("the detach was cut short: {error}")))
        })?;
        Ok(answer)
    }

    fn find(&self, asked: &str) -> Result<Endpoint, Problem> {
        let (within, text) =
            asked.split_once('/').map_or((None, asked), |(within, text)| (Some(within), text));
        let attached: Vec<Endpoint> = self.agent.read(|state| {
            let is_within = |endpoint: &&Endpoint| {
                let network = state.view.networks.get(&endpoint.network);
                within.is_none_or(|within| {
                    endpoint.network.as_str() == within
                        || network.is_some_and(|network| network.name.as_str().eq_ignore_ascii_case(within))
                })
            };
            let attached = state.endpoints.values().filter(|e| e.phase == EndpointPhase::Attached);
            let attached = attached.filter(is_within);
            attached
                .filter(|e| e.name.as_str().eq_ignore_ascii_case(text) || e.id.as_str().starts_with(text))
                .cloned()
                .collect()
        });
        let exact = attached.iter().find(|endpoint| endpoint.id.as_str() == text);
        let mut named: Vec<&Endpoint> = attached.iter().filter(|e| e.name.as_str() == text).collect();
        if named.is_empty() {
            named = attached.iter().filter(|e| e.name.as_str().eq_ignore_ascii_case(text)).collect();
        }
        let candidates = match (exact, named.is_empty()) {
            (Some(exact), _) => vec![exact],
            (None, false) => named,
            (None, true) => attached.iter().collect(),
        };
        match candidates.as_slice() {
            [] => Err(Problem::new(
                ProblemKind::NotFound,
                format!("no endpoint {asked} is attached on this node"),
            )
            .hint("meshctl endpoint ls shows where it is; detach it there")),
            _ if text.is_empty() => Err(Problem::new(ProblemKind::Usage, "no endpoint is given")),
            [only] if only.name.as_str() != text && text.len() < SHORTEST_PREFIX => Err(Problem::new(
                ProblemKind::Usage,
                format!(
                    "{text} is too short for an id prefix: at least {SHORTEST_PREFIX} characters are needed"
                ),
            )
            .hint(format!("for endpoint {}, give its name", only.name))),
            [only] => Ok((*only).clone()),
            several => {
                let ids: Vec<&str> = several.iter().map(|endpoint| endpoint.id.as_str()).collect();
                let message = format!("{text} is ambiguous: it may be {}", ids.join(", "));
                Err(Problem::new(ProblemKind::Usage, message).hint("name it as NETWORK/NAME, or by its id"))
            }
        }
    }

    /// The record is removed first: a reconciliation removes the rest in any case.
    async fn remove(&self, endpoint: Endpoint) -> Result<(), Problem> {
        self.agent.endpoint_store().remove(&endpoint.id).map_err(|error| file_problem(&error))?;
        let (generation, there) =
            self.agent.update_generation(|state| state.endpoints.remove(&endpoint.id).is_some());
        if !there {
            return Err(Problem::new(
                ProblemKind::NotFound,
                format!("endpoint {} was detached meanwhile", endpoint.name),
            ));
        }
        let (pass, ()) = tokio::join!(self.agent.reconciled(generation), self.agent.endpoints_reported());
        self.forget(&endpoint.id, &pass);
        self.release(&endpoint.network, &endpoint.addresses().collect());
        self.blocking(Agent::save_released).await
    }

    /// Forgets that an endpoint was removed, once the kernel has nothing of it. After a failure
    /// that is left to the next start.
    pub(crate) fn forget(&self, id: &EndpointId, pass: &Reconciliation) {
        if pass.problems.is_empty()
            && let Err(error) = self.agent.endpoint_store().forget(id)
        {
            tracing::debug!(%error, "the note of a removed endpoint stays until the next start");
        }
    }

    /// Removes endpoints whose namespace and device are gone. Endpoints that are still attaching
    /// are left to their attach.
    pub async fn remove_lost(&self, lost: &BTreeSet<EndpointId>) {
        let lost: Vec<Endpoint> = self.agent.read(|state| {
            let known = lost.iter().filter_map(|id| state.endpoints.get(id));
            known.filter(|endpoint| endpoint.phase == EndpointPhase::Attached).cloned().collect()
        });
        for endpoint in lost {
            let (name, path) = (endpoint.name.clone(), endpoint.netns.path.clone());
            match self.remove(endpoint).await {
                Ok(()) => {
                    tracing::info!(endpoint = %name, netns = %path.display(), "removed: its namespace is gone");
                }
                Err(problem) => tracing::warn!(endpoint = %name, %problem, "cannot remove a lost endpoint"),
            }
        }
    }
}
