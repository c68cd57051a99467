//! Searches for endpoints whose records are lost, before the agent changes anything in the kernel.
//! Describes all other endpoints in the kernel, in case their records are lost later.

use std::collections::BTreeMap;

use mesh_ebpf_types::{MapEntry, MapKey};
use mesh_host::kernel_problem;
use mesh_kernel::{Depth, KernelError};
use mesh_model::{Description, Endpoint, IfName};
use mesh_state::{Agent, Lost};

use crate::platform::Platform;

/// Rebuilds lost records, and describes the devices of all endpoints.
pub(crate) fn restore(agent: &Agent, platform: &Platform) {
    match find(agent, platform) {
        Ok(lost) => agent.take_lost(lost, platform.delays),
        Err(error) => {
            tracing::warn!(
                reason = kernel_problem(&error).message,
                "cannot search for endpoints without a record"
            );
        }
    }
    let descriptions: BTreeMap<IfName, String> = agent.read(|state| {
        let described = |one: &Endpoint| (one.host_ifname(), Description::from(one).to_string());
        state.endpoints.values().map(described).collect()
    });
    if let Err(error) = platform.host.describe(&descriptions) {
        tracing::warn!(reason = kernel_problem(&error).message, "devices of endpoints are not described");
    }
}

fn find(agent: &Agent, platform: &Platform) -> Result<Vec<Lost>, KernelError> {
    let observed = platform.kernel.call_here(|kernel| kernel.observe(None, Depth::Quick))?;
    let devices = agent.without_record(&observed);
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let interface = |index| match observed.programs.entries.get(&MapKey::Interface(index)) {
        Some(MapEntry::Interface(_, interface)) => Some(*interface),
        _ => None,
    };
    let survivors = platform.host.survivors(&devices)?;
    Ok(survivors
        .into_iter()
        .map(|survivor| Lost { interface: interface(survivor.index), survivor })
        .collect())
}
