//! Leaves a cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_host::kernel_problem;
use mesh_kernel::Depth;
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::{Problem, ProblemKind, v1};
use mesh_reconciler::{attempt, tunnel_problem};
use mesh_services::end_name_server;
use tokio::time::{sleep, timeout};

use super::{MembershipState, Memberships, cannot_remove, changing};
use crate::member::Member;

/// Passes that leaving makes until the kernel has nothing of ours left, and the pause between them.
const REMOVAL_PASSES: usize = 10;
const REMOVAL_PAUSE: Duration = Duration::from_millis(200);
/// How long a manager may take to take note that this node leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

impl Memberships {
    /// Ceases to be a member: the cluster forgets the node, and nothing of it stays on the host.
    pub(crate) async fn leave(&self, force: bool) -> Result<(), Problem> {
        let conflict = |message: &str| Problem::new(ProblemKind::Conflict, message.to_owned());
        let _changing = self.changing.try_lock().map_err(|_| changing())?;
        let member = self.member()?;
        let attached = member.agent.read(|state| state.endpoints.len());
        if attached > 0 && !force {
            return Err(conflict(&format!("{attached} endpoints are attached on this host"))
                .hint("detach them first, or cut them off with --force"));
        }
        if member.membership.keeps_store && !force {
            return Err(conflict("this is the last manager: the cluster and all its networks end with it")
                .hint("meshctl cluster leave --force destroys the cluster"));
        }
        if !member.membership.keeps_store {
            match (announce_leave(&member).await, force) {
                (Ok(()), _) => {}
                (Err(problem), true) => {
                    tracing::warn!(%problem, "the cluster does not know yet that this node has left: remove it there");
                }
                (Err(problem), false) => {
                    return Err(problem.hint("meshctl cluster leave --force leaves without telling the cluster; remove the node there"));
                }
            }
        }
        self.set_state(MembershipState::Changing);
        member.stop().await;
        drop(member);
        if let Some(names) = &self.platform.name_server {
            end_name_server(&names.run_dir);
        }
        let reservation = self.platform.reservation();
        if let Some(Err(error)) = reservation.map(|mut reservation| reservation.set(&BTreeSet::new())) {
            tracing::warn!(%error, "published ports stay reserved until the next boot");
        }
        let paths = &self.platform.paths;
        let removed = paths.remove_member_state().and_then(|()| paths.settle());
        let removed = removed.map_err(|error| cannot_remove(&error));
        let emptied = self.remove_traces().await;
        self.set_state(MembershipState::None);
        removed.and(emptied)
    }

    /// Removes all that is ours from the host: the WireGuard engine, then what the kernel has.
    pub(super) async fn remove_traces(&self) -> Result<(), Problem> {
        let engines = self.platform.engines.clone();
        let stopped = tokio::task::spawn_blocking(move || engines.remove_left()).await;
        let stopped = match stopped {
            Ok(stopped) => stopped.map_err(|error| tunnel_problem(&error)),
            Err(error) => Err(Problem::new(ProblemKind::Failed, error.to_string())),
        };
        self.empty_kernel().await.and(stopped)
    }

    /// Removes all that is ours from the kernel.
    async fn empty_kernel(&self) -> Result<(), Problem> {
        let mut problem = None;
        for _ in 0..REMOVAL_PASSES {
            let outcome = self.platform.kernel.call(|kernel| attempt(kernel, None, Depth::Full)).await;
            match outcome {
                Ok(outcome) if outcome.plan.is_empty() => return Ok(()),
                Ok(outcome) => match outcome.report.failures.first() {
                    // The next pass looks whether it is all gone.
                    None => continue,
                    Some(failure) => problem = Some(kernel_problem(&failure.error)),
                },
                Err(error) => problem = Some(kernel_problem(&error)),
            }
            sleep(REMOVAL_PAUSE).await;
        }
        let problem = problem
            .unwrap_or_else(|| Problem::new(ProblemKind::Failed, "another process keeps creating it again"));
        Err(Problem::new(
            problem.kind,
            format!("not everything of Mesh could be removed from the kernel: {}", problem.message),
        )
        .hint("restart meshd, which tries again"))
    }
}

/// Reports to a manager that this node leaves.
async fn announce_leave(member: &Member) -> Result<(), Problem> {
    let late = || Problem::new(ProblemKind::Unreachable, "no manager answered in time");
    let announced = async {
        let connected = member.managers.connected().await?;
        ControlClient::new(connected.channel).leave(v1::LeaveRequest {}).await?;
        Ok(())
    };
    timeout(LEAVE_TIMEOUT, announced).await.unwrap_or_else(|_| Err(late()))
}
