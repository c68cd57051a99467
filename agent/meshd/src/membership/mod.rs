//! Joins and leaves clusters, and resumes a membership after a restart.
//!
//! `member.json` decides: init and join write it last, leave removes it first. The next start
//! removes what an interrupted call left. But if there is a store, a certificate authority or a
//! key, no membership, and no leave had begun, then `member.json` was lost: the rest is never
//! removed or replaced.

mod begin;
mod leave;

use std::sync::Arc;

use mesh_control::{Manager, NodeIdentity};
use mesh_proto::{Problem, ProblemKind};
use mesh_state::file_problem;
use mesh_store::{EmbeddedStore, OpenError, Store};
use mesh_sys::durable::{self, FileError};
use parking_lot::RwLock;

use crate::control_plane::{ControlPlane, listen_somewhere};
use crate::copies;
use crate::member::Member;
use crate::member_record::Membership;
use crate::platform::Platform;

/// State of this host's membership.
#[derive(Debug, Clone)]
pub(crate) enum MembershipState {
    /// It is no member.
    None,
    /// A call creates, joins or leaves a cluster.
    Changing,
    /// It is a member.
    Member(Arc<Member>),
}

/// This host's membership. It may begin and end while the agent runs.
#[derive(Debug)]
pub(crate) struct Memberships {
    platform: Platform,
    state: RwLock<MembershipState>,
    /// One init, join or leave at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Memberships {
    /// A host that is no member yet.
    pub(crate) fn new(platform: Platform) -> Self {
        Self { platform, state: RwLock::new(MembershipState::None), changing: tokio::sync::Mutex::new(()) }
    }

    /// The host, the kernel and the settings of a member.
    pub(crate) fn platform(&self) -> &Platform {
        &self.platform
    }

    /// State of this host's membership.
    pub(crate) fn state(&self) -> MembershipState {
        self.state.read().clone()
    }

    /// The member that this host is.
    pub(crate) fn member(&self) -> Result<Arc<Member>, Problem> {
        match self.state() {
            MembershipState::Member(member) => Ok(member),
            MembershipState::None => {
                Err(Problem::new(ProblemKind::Conflict, "this host is no member of a cluster")
                    .hint("meshctl cluster init, or meshctl cluster join"))
            }
            MembershipState::Changing => Err(changing()),
        }
    }

    fn set_state(&self, state: MembershipState) {
        *self.state.write() = state;
    }

    /// At start: a member again when it was one; else nothing of an earlier membership may be left.
    pub(crate) async fn resume(&self) -> Result<(), Problem> {
        let paths = &self.platform.paths;
        copies::restore(paths).map_err(|error| file_problem(&error))?;
        let membership: Option<Membership> = durable::read_json(&paths.membership()).map_err(|error| {
            Problem::new(ProblemKind::Failed, error.to_string())
                .hint("restore the state directory from a backup, or empty it and join again")
        })?;
        let Some(membership) = membership else {
            self.refuse_orphans()?;
            paths
                .remove_member_state()
                .and_then(|()| paths.settle())
                .map_err(|error| cannot_remove(&error))?;
            if let Err(problem) = self.remove_traces().await {
                tracing::warn!(%problem, "something of an earlier membership is left");
            }
            return Ok(());
        };
        // An init or join that was interrupted at its very end, or a leave at its very beginning.
        paths.settle().map_err(|error| file_problem(&error))?;
        let identity = NodeIdentity::load(&paths.identity()).map_err(|error| {
            Problem::new(ProblemKind::Failed, error.to_string()).hint(format!(
                "restore {} from a backup; or empty the state directory and join again",
                paths.identity().display()
            ))
        })?;
        let mut damage = None;
        let control_plane = if membership.keeps_store {
            let listener = listen_somewhere(membership.node.advertise_addr).await?;
            match EmbeddedStore::open(paths.store()) {
                Err(error @ (OpenError::Damaged { .. } | OpenError::OtherFormat { .. })) => {
                    damage = Some(format!("this host serves no control plane: {error}"));
                    tracing::error!(%error, "this host serves no control plane");
                    None
                }
                store => {
                    let store = open_store(store)?;
                    let manager = Manager::resume(store, &paths.authority(), &identity).await?;
                    Some(ControlPlane { manager, listener })
                }
            }
        } else {
            None
        };
        let member = Member::start(&self.platform, membership, identity, control_plane)?;
        member.agent.update(|state| state.damage.extend(damage));
        self.set_state(MembershipState::Member(Arc::new(member)));
        Ok(())
    }

    /// What may be all that is left of a cluster is not for us to remove.
    fn refuse_orphans(&self) -> Result<(), Problem> {
        let paths = &self.platform.paths;
        let orphaned: Vec<String> = paths.orphaned().iter().map(|path| path.display().to_string()).collect();
        if orphaned.is_empty() {
            return Ok(());
        }
        let (orphaned, membership) = (orphaned.join(", "), paths.membership().display().to_string());
        Err(Problem::new(
            ProblemKind::Conflict,
            format!("{orphaned} are of a member of a cluster, but {membership} is missing"),
        )
        .hint(format!(
            "restore {membership} from a backup; or, to give up what this host was a member of, move away {orphaned}"
        )))
    }

    /// Ends the member's tasks; the kernel keeps what it has.
    pub(crate) async fn stop(&self) {
        if let MembershipState::Member(member) = self.state() {
            member.stop().await;
            self.set_state(MembershipState::None);
        }
    }
}

/// Describes a host whose membership changes at the moment.
fn changing() -> Problem {
    Problem::new(ProblemKind::Conflict, "this host is about to join or leave a cluster")
        .hint("try again in a moment")
}

fn open_store(store: Result<EmbeddedStore, OpenError>) -> Result<Arc<dyn Store>, Problem> {
    match store {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => {
            let problem = Problem::new(ProblemKind::Failed, error.to_string());
            Err(match error.hint() {
                Some(hint) => problem.hint(hint),
                None => problem,
            })
        }
    }
}

fn cannot_remove(error: &FileError) -> Problem {
    Problem::new(ProblemKind::Failed, format!("cannot remove the state of an earlier membership: {error}"))
        .hint("check that the state directory is writable")
}

#[cfg(test)]
mod tests;
