//! DEL and CHECK: attachments that exist.

use mesh_cni::error::Code;
use mesh_cni::{Call, CniError};
use mesh_handle::{AgentHandle, Attachment, Readiness};
use mesh_model::{Owner, Runtime};
use serde_json::Value;

use crate::config::Config;
use crate::problems;

/// The key of the attachment that a call is about.
pub(crate) fn owner(call: &Call, config: &Config) -> Result<Owner, CniError> {
    let ifname = call.ifname.parse().map_err(|error| {
        CniError::new(Code::InvalidEnvironment, format!("CNI_IFNAME {:?}: {error}", call.ifname))
    })?;
    Owner::new(Runtime::Cni, &config.name, &call.container, ifname)
        .map_err(|error| CniError::new(Code::InvalidConfig, error.to_string()))
}

/// Detaches; what was never attached, or is detached already, is detached.
pub(crate) async fn del(agent: &dyn AgentHandle, owner: &Owner) -> Result<(), CniError> {
    if matches!(agent.readiness(), Readiness::NotMember(_)) {
        return Ok(());
    }
    agent.detach_owned(owner).await.map(drop).map_err(problems::error)
}

/// Checks that the attachment is the one of the result, and complete.
pub(crate) async fn check(agent: &dyn AgentHandle, config: &Config, owner: &Owner) -> Result<(), CniError> {
    let previous = config.previous.as_ref();
    let previous = previous
        .ok_or_else(|| CniError::new(Code::InvalidConfig, "a CHECK needs prevResult, which is missing"))?;
    let attachment = agent.attachment(owner).map_err(problems::error)?;
    let attachment = attachment
        .ok_or_else(|| CniError::new(Code::UnknownContainer, format!("{owner} is not attached")))?;
    if let Some(difference) = difference(&attachment, previous) {
        return Err(CniError::new(Code::Failed, difference));
    }
    agent.check_attachment(owner).await.map_err(|problem| problems::with_code(Code::Failed, problem))
}

/// The first thing in which a result differs from the attachment. Later plugins of the chain may
/// have added their own.
fn difference(attachment: &Attachment, result: &Value) -> Option<String> {
    let texts = |list: &str, key: &str| -> Vec<String> {
        let items = result[list].as_array().into_iter().flatten();
        items.filter_map(|item| item[key].as_str()).map(str::to_owned).collect()
    };
    let addresses = texts("ips", "address");
    let missing = attachment
        .addresses
        .iter()
        .map(|own| format!("{}/{}", own.address, own.prefix_len))
        .find(|own| !addresses.contains(own));
    if let Some(missing) = missing {
        return Some(format!("prevResult has not the address {missing} of the container"));
    }
    let ifname = &attachment.endpoint.ifname;
    if !texts("interfaces", "name").contains(ifname) {
        return Some(format!("prevResult has not the interface {ifname} of the container"));
    }
    None
}
