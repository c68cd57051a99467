//! The way to a manager: the one within this process, or the first of the cluster's that answers.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_control::identity::tls;
use mesh_control::{Manager, NodeIdentity};
use mesh_model::Role;
use mesh_proto::{Problem, ProblemKind};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::agent::Agent;

/// The name under which the manager within this process appears.
const WITHIN: &str = "this node";

/// A connection to a manager.
#[derive(Debug, Clone)]
pub struct Connected {
    /// `HOST:PORT`, or `this node`.
    pub address: String,
    /// The connection.
    pub channel: Channel,
}

/// Connects to managers as this node.
#[derive(Debug)]
pub struct Managers {
    agent: Arc<Agent>,
    /// The manager that runs in this process.
    manager: Option<Manager>,
    identity: Mutex<NodeIdentity>,
    /// The managers as this node knew them when it joined.
    joined_by: Vec<String>,
    current: Mutex<Option<Connected>>,
    /// How often the connection was given up because its address is gone.
    reconnects: watch::Sender<u64>,
    /// One attempt at a time, which all who wait for it share.
    connecting: tokio::sync::Mutex<()>,
}

impl Managers {
    /// The way to a manager for this node.
    pub fn new(
        agent: Arc<Agent>,
        manager: Option<Manager>,
        identity: NodeIdentity,
        joined_by: Vec<String>,
    ) -> Self {
        Self {
            agent,
            manager,
            joined_by,
            identity: Mutex::new(identity),
            current: Mutex::new(None),
            reconnects: watch::Sender::new(0),
            connecting: tokio::sync::Mutex::new(()),
        }
    }

    /// A connection to a manager: the one there is, or a new one.
    pub async fn connected(&self) -> Result<Connected, Problem> {
        if let Some(manager) = &self.manager {
            return Ok(Connected { address: WITHIN.to_owned(), channel: manager.local_channel() });
        }
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let mut reconnects = self.reconnects.subscribe();
        let mut problem = Problem::new(ProblemKind::Unreachable, "no manager of the cluster is known");
        for address in self.addresses() {
            let config = tls::client_config(&self.identity()).map_err(|error| {
                Problem::new(ProblemKind::Failed, format!("this node's certificate cannot be used: {error}"))
            })?;
            let attempt = tokio::select! {
                attempt = mesh_control::connect(&address, config) => attempt,
                // The attempt may have begun from that address.
                Ok(()) = reconnects.changed() => {
                    Err(Problem::new(ProblemKind::Unreachable, "an address of this host is gone"))
                }
            };
            match attempt {
                Ok(channel) => {
                    let connected = Connected { address, channel };
                    *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(connected.clone());
                    return Ok(connected);
                }
                Err(reason) => problem = reason,
            }
        }
        Err(problem)
    }

    /// Where managers are: by their records, as of the session's beginning, and as this node knew
    /// them when it joined. A manager may have moved to another address that a name leads to.
    fn addresses(&self) -> Vec<String> {
        let mut addresses = self.agent.read(|state| {
            let managers = state.view.nodes.values().filter(|node| node.role == Role::Manager);
            let records = managers.map(|node| node.advertise_addr.to_string());
            records.chain(state.view.managers.iter().cloned()).collect::<Vec<_>>()
        });
        addresses.extend(self.joined_by.iter().cloned());
        let mut seen = BTreeSet::new();
        addresses.retain(|address| seen.insert(address.clone()));
        addresses
    }

    /// Gives a connection up, so that the next call makes a new one.
    pub fn forget(&self, address: &str) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|connected| connected.address == address) {
            *current = None;
        }
    }

    /// Gives the connection up, and ends the session that uses it: the address that it was made
    /// from is gone.
    pub fn reconnect(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.reconnects.send_modify(|count| *count += 1);
    }

    /// Follows [`Managers::reconnect`].
    pub fn reconnects(&self) -> watch::Receiver<u64> {
        self.reconnects.subscribe()
    }

    /// Whether a manager can be asked now, as far as is known without trying.
    pub fn reachable(&self) -> bool {
        self.manager.is_some() || self.agent.read(|state| !state.manager.is_empty())
    }

    /// The manager that runs in this process.
    pub fn own(&self) -> Option<&Manager> {
        self.manager.as_ref()
    }

    /// This node's key and certificate.
    pub fn identity(&self) -> NodeIdentity {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a renewed certificate into use for connections from now on.
    pub fn set_identity(&self, identity: NodeIdentity) {
        if let Some(Err(error)) = self.manager.as_ref().map(|manager| manager.set_identity(&identity)) {
            tracing::error!(%error, "the renewed certificate cannot be served");
        }
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn current(&self) -> Option<Connected> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Pauses between attempts: twice as long each time, from `first` to `last`, each shortened at
/// random by up to half so that many who failed together do not try together.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `first` to `last`.
    pub fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, next: first }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.last);
        let mut byte = [0u8];
        // Without randomness there is no jitter, which is a loss only when many fail at once.
        let _ = getrandom::fill(&mut byte);
        pause.mul_f64(1.0 - f64::from(byte[0]) / 510.0)
    }

    /// Begins again with the first pause.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_last_and_begin_again() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        for expected in [50, 100, 200, 400, 800, 1600, 2000, 2000] {
            let pause = backoff.pause().as_millis();
            assert!((expected / 2..=expected).contains(&pause), "{pause} for {expected}");
        }
        backoff.reset();
        assert!(backoff.pause().as_millis() <= 50);
    }
}
