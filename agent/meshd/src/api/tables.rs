//! How full the datapath's tables of flows are, and whether the tables have the sizes that they should have.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_ebpf_types::Vni;
use mesh_kernel::ProgramsError;
use mesh_kernel::programs::Programs;
use mesh_proto::v1;
use tokio::time::Instant;

use crate::member::{Member, Platform};
use crate::reconcile::explain;

/// Counting reads the whole table, so what was counted serves all who ask within this time.
const AGE: Duration = Duration::from_secs(30);

/// What was counted, and when.
#[derive(Debug, Default)]
pub struct Occupancy(tokio::sync::Mutex<Option<(Instant, BTreeMap<Vni, u64>)>>);

impl Occupancy {
    async fn count(&self, platform: &Platform) -> Result<BTreeMap<Vni, u64>, ProgramsError> {
        let mut counted = self.0.lock().await;
        if let Some((at, counts)) = counted.as_ref()
            && at.elapsed() < AGE
        {
            return Ok(counts.clone());
        }
        let counts = platform.kernel.call(|kernel| kernel.programs().connections()).await?;
        *counted = Some((Instant::now(), counts.clone()));
        Ok(counts)
    }
}

/// Adds both to the status. Before the programs are loaded there is nothing to tell.
pub(super) async fn fill_in(response: &mut v1::StatusResponse, platform: &Platform, member: &Member) {
    let sizes = platform.kernel.call(|kernel| sizes(kernel.programs())).await;
    let told = match sizes {
        Err(ProgramsError::NotLoaded) => return,
        Err(error) => Err(error),
        Ok(sizes) => {
            response.problems.extend(kept(sizes, platform.table_sizes));
            member.occupancy.count(platform).await.map(|counts| (sizes, counts))
        }
    };
    match told {
        Ok(((_, capacity), counts)) => {
            let networks = counts.into_iter().map(|(vni, entries)| of_network(member, vni, entries));
            response.connections =
                Some(v1::Connections { capacity: capacity.into(), networks: networks.collect() });
        }
        Err(error) => response.problems.push(explain(&error.into()).message),
    }
}

fn sizes(programs: &mut dyn Programs) -> Result<(u32, u32), ProgramsError> {
    Ok((programs.maglev_size()?, programs.connections_size()?))
}

fn of_network(member: &Member, vni: Vni, entries: u64) -> v1::NetworkConnections {
    let network = mesh_model::Vni::try_from(vni.number()).ok().and_then(|vni| {
        member.agent.read(|state| state.view.network_by_vni(vni).map(|network| network.name.to_string()))
    });
    v1::NetworkConnections { vni: vni.number(), network: network.unwrap_or_default(), entries }
}

/// The tables that an earlier agent made keep their sizes, for the flows and services that are in them: a line for each
/// that should have another one.
fn kept(found: (u32, u32), wanted: (u32, u32)) -> Vec<String> {
    let row = u32::try_from(mesh_ebpf_types::MAGLEV_ROW).unwrap_or(u32::MAX);
    let tables = [
        ("service_table_entries", found.0, wanted.0.div_ceil(row).saturating_mul(row)),
        ("connection_entries", found.1, wanted.1),
    ];
    let different = tables.into_iter().filter(|(_, found, wanted)| found != wanted);
    let line = |(key, found, wanted): (&str, u32, u32)| {
        format!(
            "{key} should be {wanted}, but a table of {found} is in use: it is kept until this host's next boot"
        )
    };
    different.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_kept_with_another_size_is_a_problem_and_rounding_up_to_rows_is_none() {
        assert_eq!(kept((1024, 4096), (1010, 4096)), Vec::<String>::new());
        let problems = kept((1024, 4096), (2048, 8192));
        assert!(
            problems[0].contains("service_table_entries should be 2048, but a table of 1024"),
            "{problems:?}"
        );
        assert!(
            problems[1].contains("connection_entries should be 8192, but a table of 4096"),
            "{problems:?}"
        );
    }
}
