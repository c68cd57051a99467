//! GC: attachments that a runtime has forgotten.

use std::collections::BTreeSet;

use mesh_cni::CniError;
use mesh_cni::error::Code;
use mesh_handle::{AgentHandle, Readiness};
use mesh_model::Runtime;

use crate::config::{Config, ValidAttachment};
use crate::problems;

/// Detaches what was attached by this configuration, is not listed, and has lost its namespace.
///
/// An attachment whose namespace exists may be another runtime's, which lists only its own: it
/// stays. So a GC can never take the network from a running container.
pub(crate) async fn gc(agent: &dyn AgentHandle, config: &Config) -> Result<(), CniError> {
    let valid: BTreeSet<&ValidAttachment> = match &config.valid {
        Some(valid) => valid.iter().collect(),
        None => {
            return Err(CniError::new(
                Code::InvalidConfig,
                "a GC needs the list cni.dev/valid-attachments, which is missing",
            ));
        }
    };
    if matches!(agent.readiness(), Readiness::NotMember(_)) {
        return Ok(());
    }
    let mut failed = None;
    for owner in agent.owners(Runtime::Cni).map_err(problems::error)? {
        let attachment =
            ValidAttachment { container: owner.container().to_owned(), ifname: owner.ifname().to_string() };
        if owner.config() != config.name || valid.contains(&attachment) {
            continue;
        }
        match agent.is_namespace_alive(&owner).await {
            Ok(true) => {}
            Ok(false) => failed = agent.detach_owned(&owner).await.err().or(failed),
            Err(problem) => failed = failed.or(Some(problem)),
        }
    }
    failed.map_or(Ok(()), |problem| Err(problems::error(problem)))
}
