//! Announces this node's keys, and replaces them when the managers call for it.
//!
//! A rekey loses no packet: this node accepts the new key before it announces it, uses it when all
//! nodes know it, one node after the other, and deletes the old key when no node uses it. The key
//! file and the node's own record hold the progress, so that a restart continues the rekey.

use std::sync::Arc;
use std::time::Duration;

use mesh_host::Backoff;
use mesh_model::Wireguard;
use mesh_proto::v1::SetWireguardRequest;
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::{Problem, ProblemKind};
use mesh_reconciler::{Encryption, KeyStage};
use mesh_state::Agent;
use tokio::time::sleep;

use crate::managers::Managers;

/// Interval between checks whether the old key is still in use.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between checks whether nodes with smaller numbers use their new keys.
const TURN_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Pauses after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// A step was done: check again at once.
    Now,
    /// Nothing to do until the old key is out of use.
    Soon,
    /// Nothing to do until other nodes use their new keys.
    Turn,
    /// Nothing to do until something changes.
    Wait,
}

/// Keeps the announced keys current until it is cancelled.
pub async fn run(agent: Arc<Agent>, managers: Arc<Managers>, encryption: Arc<Encryption>) {
    agent.view_known().await;
    let (mut revisions, mut calls) = (agent.revisions(), agent.key_calls());
    let mut changes = encryption.changes();
    let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
    let mut logged = String::new();
    loop {
        revisions.mark_unchanged();
        calls.mark_unchanged();
        changes.mark_unchanged();
        let pause = match step(&agent, &managers, &encryption).await {
            Ok(next) => {
                backoff.reset();
                logged.clear();
                agent.update(|state| state.key_problem = None);
                match next {
                    Next::Now => continue,
                    Next::Soon => CHECK_INTERVAL,
                    Next::Turn => TURN_CHECK_INTERVAL,
                    Next::Wait => Duration::MAX,
                }
            }
            Err(problem) => {
                if problem.message != logged {
                    tracing::warn!(%problem, "this node's keys for encrypted networks");
                    logged.clone_from(&problem.message);
                }
                // That no manager answers is logged elsewhere.
                let is_own = problem.kind != ProblemKind::Unreachable;
                agent.update(|state| state.key_problem = is_own.then(|| problem.message.clone()));
                backoff.pause()
            }
        };
        tokio::select! {
            _ = revisions.changed() => {}
            _ = calls.changed() => {}
            _ = changes.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

async fn step(
    agent: &Arc<Agent>,
    managers: &Managers,
    encryption: &Arc<Encryption>,
) -> Result<Next, Problem> {
    let wanted = *agent.key_calls().borrow();
    let stage = blocking(encryption, Encryption::stage).await?;
    if let KeyStage::One(generation) = stage
        && generation < wanted
    {
        tracing::info!(wanted, "making a new key for encrypted networks");
        blocking(encryption, move |encryption| encryption.announce_new(wanted)).await?;
        return Ok(Next::Now);
    }
    if !managers.reachable() {
        return Ok(Next::Wait);
    }
    let announced = agent.node().wireguard;
    let (all, newest) = blocking(encryption, |encryption| {
        Ok((encryption.announcement(false)?, encryption.announcement(true)?))
    })
    .await?;
    let is_announced = |keys: &Wireguard| announced.as_ref() == Some(keys);
    match stage {
        KeyStage::One(_) if is_announced(&all) => Ok(Next::Wait),
        KeyStage::Announced if is_announced(&all) => {
            // It was answered once everybody knew the key.
            if !blocking(encryption, move |encryption| encryption.has_turn(wanted)).await? {
                return Ok(Next::Turn);
            }
            if blocking(encryption, Encryption::activate_new).await? {
                // A reconciliation switches the key.
                agent.wake_kernel_loop();
            }
            Ok(Next::Now)
        }
        KeyStage::Active if is_announced(&newest) => {
            blocking(encryption, Encryption::retire_old).await?;
            tracing::info!("deleted the old key for encrypted networks");
            Ok(Next::Now)
        }
        KeyStage::Active if blocking(encryption, Encryption::all_use_the_newest).await? => {
            announce(agent, managers, newest).await
        }
        KeyStage::Active if is_announced(&all) => Ok(Next::Soon),
        KeyStage::One(_) | KeyStage::Announced | KeyStage::Active => announce(agent, managers, all).await,
    }
}

/// Reports the keys to a manager, and waits until they come back with the session.
async fn announce(agent: &Agent, managers: &Managers, keys: Wireguard) -> Result<Next, Problem> {
    let connected = managers.connected().await?;
    let request = SetWireguardRequest { wireguard: Some((&keys).into()) };
    ControlClient::new(connected.channel).set_wireguard(request).await?;
    let mut revisions = agent.revisions();
    let known = async {
        while agent.node().wireguard.as_ref() != Some(&keys) {
            if revisions.changed().await.is_err() {
                return;
            }
        }
    };
    match tokio::time::timeout(LAST_PAUSE, known).await {
        Ok(()) => Ok(Next::Now),
        Err(_) => Err(Problem::new(
            ProblemKind::Unreachable,
            "the session has not brought this node's own keys yet",
        )),
    }
}

async fn blocking<T: Send + 'static>(
    encryption: &Arc<Encryption>,
    call: impl FnOnce(&Encryption) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let encryption = encryption.clone();
    let called = tokio::task::spawn_blocking(move || call(&encryption)).await;
    called.map_err(|error| Problem::new(ProblemKind::Failed, error.to_string()))?
}
