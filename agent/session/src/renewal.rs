//! Renews this node's certificate.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mesh_control::{NodeIdentity, NodeKey};
use mesh_host::Backoff;
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_state::Agent;
use tokio::time::sleep;

use crate::managers::Managers;

/// How often the clock is compared with the certificate's times.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Clocks that differ by less, in milliseconds, do not keep a certificate from being renewed.
const CLOCKS_AGREE: u64 = 3_600_000;
/// A renewal of the certificate that failed is tried again after so long.
const RENEW_AGAIN: Duration = Duration::from_mins(1);

/// Whether to renew a certificate on a host whose clock shows `now`, and from which the clocks of
/// others differ by `ahead_ms`. While they differ by much it is not known whose is wrong, and a
/// certificate made by a wrong clock may be of no use: then only one that no clock takes for valid
/// is renewed.
fn is_due(
    identity: &NodeIdentity,
    now: Timestamp,
    ahead_ms: i64,
) -> Result<bool, mesh_control::IdentityError> {
    if ahead_ms.unsigned_abs() < CLOCKS_AGREE {
        return identity.is_due(now);
    }
    let others = now.checked_add(SignedDuration::from_millis(ahead_ms)).unwrap_or(now);
    Ok(identity.is_due(now)? && !identity.is_valid(now)? && !identity.is_valid(others)?)
}

/// How far the clocks of others are ahead of this host's: of most nodes on a manager, else of the
/// manager.
fn others_ahead(agent: &Agent, managers: &Managers) -> i64 {
    let ahead = match managers.own() {
        Some(manager) => manager.clocks_ahead(),
        None => agent.read(|state| state.manager_clock_ms),
    };
    ahead.unwrap_or_default()
}

/// Renews the node's certificate when its time has come.
pub async fn run(agent: Arc<Agent>, managers: Arc<Managers>, path: PathBuf) {
    let mut backoff = Backoff::new(Duration::from_secs(1), RENEW_AGAIN);
    loop {
        let identity = managers.identity();
        match is_due(&identity, Timestamp::now(), others_ahead(&agent, &managers)) {
            Ok(true) => {}
            Ok(false) => {
                // Not until its time has come: the clock may be set, or the machine suspended.
                sleep(CLOCK_CHECK_INTERVAL).await;
                continue;
            }
            Err(error) => {
                tracing::error!(%error, "the certificate cannot be read, so it is not renewed");
                return pending().await;
            }
        }
        match renewed(&managers, &identity, &path).await {
            Ok(()) => {
                tracing::info!("renewed the certificate");
                backoff.reset();
            }
            Err(problem) => {
                tracing::warn!(%problem, "the certificate could not be renewed");
                sleep(backoff.pause()).await;
            }
        }
    }
}

async fn renewed(managers: &Managers, old: &NodeIdentity, path: &Path) -> Result<(), Problem> {
    let failed = |error: mesh_control::IdentityError| Problem::new(ProblemKind::Failed, error.to_string());
    let connected = managers.connected().await?;
    let key = NodeKey::generate().map_err(failed)?;
    let request = v1::RenewCertificateRequest { csr_pem: key.csr_pem.clone() };
    let answer = ControlClient::new(connected.channel).renew_certificate(request).await?.into_inner();
    let identity = key.into_identity(answer.certificate_pem, old.ca_pem.clone());
    if !identity.is_valid(Timestamp::now()).map_err(failed)? {
        let message =
            "the manager issued a certificate that is not valid now: its clock or this host's is wrong";
        return Err(Problem::new(ProblemKind::Failed, message));
    }
    identity.save(path).map_err(failed)?;
    managers.set_identity(identity);
    Ok(())
}
