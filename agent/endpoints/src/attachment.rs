//! Attachments as container runtimes see them: found by their owners, with both ends of the pair.

use mesh_handle::{AttachedAddress, Attachment};
use mesh_host::{NetnsName, blocking, kernel_problem};
use mesh_kernel::KernelError;
use mesh_model::endpoint::NetnsRef;
use mesh_model::{Endpoint, EndpointPhase, Network, Owner, Runtime};
use mesh_proto::{Problem, ProblemKind};
use mesh_state::endpoint_message;

use crate::endpoints::Endpoints;

impl Endpoints {
    /// Returns the attached endpoint of an owner.
    pub(crate) fn owned(&self, owner: &Owner) -> Option<Endpoint> {
        self.agent.read(|state| {
            let mut attached = state.endpoints.values().filter(|e| e.phase == EndpointPhase::Attached);
            attached.find(|endpoint| endpoint.owner.as_ref() == Some(owner)).cloned()
        })
    }

    /// Returns the keys of all attachments of a runtime.
    pub fn owners(&self, runtime: Runtime) -> Vec<Owner> {
        self.agent.read(|state| {
            let owners = state.endpoints.values().filter_map(|endpoint| endpoint.owner.clone());
            owners.filter(|owner| owner.runtime() == runtime).collect()
        })
    }

    /// Returns the attachment of an owner; `None` if there is none.
    pub fn attachment(&self, owner: &Owner) -> Option<Attachment> {
        let endpoint = self.owned(owner)?;
        self.agent.read(|state| {
            let network = state.view.networks.get(&endpoint.network)?;
            Some(Attachment {
                host_ifname: endpoint.host_ifname(),
                netns: endpoint.netns.path.clone(),
                mtu: self.agent.reconciliations().borrow().mtus.get(&network.id).copied(),
                addresses: addresses(&endpoint, network),
                internal: network.internal,
                endpoint: endpoint_message(state, &endpoint),
            })
        })
    }

    /// Returns whether the namespace of an owner's endpoint still exists; `false` without an
    /// endpoint.
    pub async fn is_namespace_alive(&self, owner: &Owner) -> Result<bool, Problem> {
        match self.owned(owner) {
            Some(endpoint) => self.is_alive(&endpoint.netns).await,
            None => Ok(false),
        }
    }

    /// Returns whether the path of a namespace still leads to it.
    pub(crate) async fn is_alive(&self, netns: &NetnsRef) -> Result<bool, Problem> {
        let (host, name) = (self.host.clone(), NetnsName::Text(netns.path.display().to_string()));
        match blocking(move || host.find_netns(&name)).await {
            Ok(found) => Ok(found.netns.is_same(netns)),
            Err(KernelError::NamespaceGone { .. }) => Ok(false),
            Err(error) => Err(kernel_problem(&error)),
        }
    }

    /// Checks that an owner's endpoint is complete, in its namespace and on the host, and names
    /// what is missing. What is missing inside the namespace is restored by the same look.
    pub async fn check(&self, owner: &Owner) -> Result<(), Problem> {
        let missing = |what: String| Problem::new(ProblemKind::NotFound, what);
        let endpoint = self.owned(owner).ok_or_else(|| missing(format!("{owner} is not attached")))?;
        if !self.is_alive(&endpoint.netns).await? {
            let path = endpoint.netns.path.display();
            return Err(missing(format!("the network namespace {path} is gone, or is another one now")));
        }
        let (_, _, desired) = self.agent.desired();
        let inner = mesh_planner::inner_ends(&desired).remove(&endpoint.id);
        let inner = inner.ok_or_else(|| missing(format!("network {} is gone", endpoint.network)))?;
        let (host, device) = (self.host.clone(), endpoint.host_ifname());
        let restored = blocking(move || {
            let outer = host.outer_ends()?.remove(&device);
            outer.map(|outer| host.restore_inside(&inner, outer)).transpose()
        })
        .await
        .map_err(|error| kernel_problem(&error))?;
        let Some(restored) = restored else {
            return Err(missing(format!("the device {} is missing on the host", endpoint.host_ifname())));
        };
        match restored.restored.first() {
            None => Ok(()),
            Some(first) => Err(missing(format!("{first} was missing in the container, and is restored"))),
        }
    }
}

fn addresses(endpoint: &Endpoint, network: &Network) -> Vec<AttachedAddress> {
    let attached = |address| {
        let own = network.subnets.iter().find(|subnet| subnet.subnet.contains(address));
        own.map(|subnet| AttachedAddress {
            address,
            prefix_len: subnet.subnet.len(),
            gateway: subnet.gateway,
        })
    };
    endpoint.addresses().filter_map(attached).collect()
}
