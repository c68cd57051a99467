//! How full the datapath's table of flows is, and whether it has the size that it should have.

use mesh_ebpf_types::Vni;
use mesh_host::kernel_problem;
use mesh_kernel::ProgramsError;
use mesh_proto::v1;

use crate::member::Member;
use crate::platform::Platform;

/// Adds both to the status. Before the programs are loaded it adds nothing.
pub(super) async fn fill_in(response: &mut v1::StatusResponse, platform: &Platform, member: &Member) {
    let size = platform.kernel.call(|kernel| kernel.programs().connections_size()).await;
    let connections = match size {
        Err(ProgramsError::NotLoaded) => return,
        Err(error) => Err(error),
        Ok(size) => {
            let wanted = platform.connection_entries.unwrap_or(size);
            response.problems.extend(kept(size, wanted));
            response.problems.extend(member.fairness.problems(|vni| name(member, vni)));
            member.occupancy.count(platform).await.map(|counts| (size, counts))
        }
    };
    match connections {
        Ok((capacity, counts)) => {
            let forgotten = member.fairness.forgotten();
            let networks = counts.into_iter().map(|(vni, entries)| {
                of_network(member, vni, entries, forgotten.get(&vni).copied().unwrap_or_default())
            });
            response.connections =
                Some(v1::Connections { capacity: capacity.into(), networks: networks.collect() });
        }
        Err(error) => response.problems.push(kernel_problem(&error.into()).message),
    }
}

fn of_network(member: &Member, vni: Vni, entries: u64, forgotten: u64) -> v1::NetworkConnections {
    v1::NetworkConnections { vni: vni.number(), network: name(member, vni), entries, forgotten }
}

/// A network's name; empty if it is not known.
fn name(member: &Member, vni: Vni) -> String {
    let name = mesh_model::Vni::try_from(vni.number()).ok().and_then(|vni| {
        member.agent.read(|state| state.view.network_by_vni(vni).map(|network| network.name.to_string()))
    });
    name.unwrap_or_default()
}

/// The table that an earlier agent made keeps its size, for the flows that are in it: a line if it
/// should have another one.
fn kept(found: u32, wanted: u32) -> Option<String> {
    (found != wanted).then(|| {
        format!(
            "connection_entries should be {wanted}, but a table of {found} is in use: it is kept until this host's next boot"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_kept_with_another_size_is_a_problem() {
        assert_eq!(kept(4096, 4096), None);
        let problem = kept(4096, 8192).expect("a problem");
        assert!(problem.contains("connection_entries should be 8192, but a table of 4096"), "{problem}");
    }
}
