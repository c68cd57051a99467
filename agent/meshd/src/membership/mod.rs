//! Becoming a member, being one again after a restart, and ceasing to be one.
//!
//! `member.json` decides: init and join write it last, leave removes it first. What an interrupted
//! one of them left is cleaned up by the next start. But a store, a certificate authority or a key
//! without a membership that nobody began to give up are all that is left of a member: they are
//! never removed, and nothing is made in their place.

mod begin;
mod leave;

use std::sync::{Arc, PoisonError, RwLock};

use mesh_control::{Manager, NodeIdentity};
use mesh_proto::{Problem, ProblemKind};
use mesh_store::{EmbeddedStore, OpenError, Store};

use crate::attach::not_written;
use crate::copies;
use crate::durable::{self, FileError};
use crate::member::{ControlPlane, Member, Membership, Platform};
use crate::readdress::listen_somewhere;

/// How far this host is a member.
#[derive(Debug, Clone)]
pub enum Standing {
    /// It is none.
    None,
    /// It is about to be one, or to cease to be.
    Changing,
    /// It is one.
    Member(Arc<Member>),
}

/// This host's membership, which may begin and end while the agent runs.
#[derive(Debug)]
pub struct Memberships {
    platform: Platform,
    standing: RwLock<Standing>,
    /// One init, join or leave at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Memberships {
    /// A host that is no member yet.
    pub fn new(platform: Platform) -> Self {
        Self { platform, standing: RwLock::new(Standing::None), changing: tokio::sync::Mutex::new(()) }
    }

    /// What a member stands on.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// How far this host is a member.
    pub fn standing(&self) -> Standing {
        self.standing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The member that this host is.
    pub fn member(&self) -> Result<Arc<Member>, Problem> {
        match self.standing() {
            Standing::Member(member) => Ok(member),
            Standing::None => Err(Problem::new(ProblemKind::Conflict, "this host is no member of a cluster")
                .hint("meshctl cluster init, or meshctl cluster join")),
            Standing::Changing => {
                Err(Problem::new(ProblemKind::Conflict, "this host is about to join or leave a cluster")
                    .hint("try again in a moment"))
            }
        }
    }

    fn stand(&self, standing: Standing) {
        *self.standing.write().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    /// At start: a member again when it was one; else nothing of an earlier membership may be left.
    pub async fn resume(&self) -> Result<(), Problem> {
        let paths = &self.platform.paths;
        copies::restore(paths).map_err(|error| not_written(&error))?;
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
        paths.settle().map_err(|error| not_written(&error))?;
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
        member.agent.note(|state| state.damage.extend(damage));
        self.stand(Standing::Member(Arc::new(member)));
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
    pub async fn stop(&self) {
        if let Standing::Member(member) = self.standing() {
            member.stop().await;
            self.stand(Standing::None);
        }
    }
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
