//! The revisions of the view: which is known, and which the kernel has.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_model::NetworkId;
use tokio::sync::watch;

use crate::addresses::AddressPools;
use crate::agent::Agent;
use crate::clock::now;
use crate::desired_tunnels::DesiredTunnels;
use crate::reconciliation::Reconciliation;
use crate::state::{LostView, State};
use crate::view::ClusterView;

impl Agent {
    /// Takes a new view; `changed` are the networks that differ, `None` when all may.
    pub fn set_view(&self, view: ClusterView, changed: Option<&BTreeSet<NetworkId>>) {
        let revision = view.revision;
        if self.read(|state| state.lost_view.is_some()) || !self.advance_revision(&view) {
            self.update(|state| self.replace_view(state, view, changed));
        }
        self.revision.send_replace(revision);
        self.unsaved.notify_one();
    }

    /// A view that differs in services only, or in nothing but its revision, makes no work for
    /// passes; true when this was one.
    fn advance_revision(&self, view: &ClusterView) -> bool {
        let mut state = self.lock();
        let before = state.view.revision;
        let same =
            ClusterView { revision: view.revision, services: view.services.clone(), ..state.view.clone() };
        if view.revision < before || *view != same {
            return false;
        }
        let same_services = view.services == state.view.services;
        // Published ports of an encrypted network need tunnels.
        if !same_services
            && DesiredTunnels::of(view, &self.node.id) != DesiredTunnels::of(&state.view, &self.node.id)
        {
            return false;
        }
        if !same_services || view.revision != before {
            *state.view = same;
            state.view_number += 1;
        }
        if state.reconciled_revision == before {
            state.reconciled_revision = view.revision;
        }
        if same_services && state.serviced_revision == before {
            state.serviced_revision = view.revision;
        } else if !same_services {
            self.services_changed.send_modify(|count| *count += 1);
        }
        self.send_applied(&state);
        true
    }

    /// Publishes the revision of which the kernel has both parts.
    fn send_applied(&self, state: &State) {
        let both = state.reconciled_revision.min(state.serviced_revision);
        self.applied.send_if_modified(|applied| std::mem::replace(applied, both) != both);
    }

    fn replace_view(&self, state: &mut State, view: ClusterView, changed: Option<&BTreeSet<NetworkId>>) {
        let ours = |view: &ClusterView| -> BTreeSet<_> {
            let mine = view.leases.values().filter(|lease| lease.node == self.node.id);
            mine.map(|lease| (lease.network.clone(), lease.prefix, lease.state.clone())).collect()
        };
        let own =
            changed.is_none() || ours(&view) != ours(&state.view) || view.networks != state.view.networks;
        // A store that was restored from a backup starts its revisions again, so the pools forget
        // the old ones.
        let rewound = view.revision < state.view.revision;
        *state.view = view;
        state.view_number += 1;
        if own {
            state.own_view_number = state.view_number;
        }
        let State { view, pools, endpoints, lost_view, damage, .. } = state;
        if let Some(LostView { pools: saved, delays }) = lost_view.take() {
            *pools = AddressPools::restore(self.node.id.clone(), delays, view, endpoints, saved, now());
            pools.touch();
            damage.retain(|problem| !problem.contains(&*self.paths.view().to_string_lossy()));
            self.view_known.send_replace(true);
        } else if rewound {
            pools.rebuild(view, endpoints, now());
            (state.reconciled_revision, state.serviced_revision) = (0, 0);
            self.send_applied(state);
        } else {
            pools.update(view, changed, now());
        }
    }

    /// Subscribes to the revisions of the view.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Waits until the view has this revision. Returns false after `timeout`.
    pub async fn received(&self, revision: u64, timeout: Duration) -> bool {
        self.sees(timeout, |received| received >= revision).await
    }

    /// Waits until this is true of a view's revision, or of what else came with it; false when that
    /// takes longer than `timeout`.
    pub(crate) async fn sees(&self, timeout: Duration, mut wanted: impl FnMut(u64) -> bool) -> bool {
        let mut revisions = self.revision.subscribe();
        let seen = revisions.wait_for(|revision| wanted(*revision));
        matches!(tokio::time::timeout(timeout, seen).await, Ok(Ok(_)))
    }

    /// Subscribes to the last revision that the kernel has.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Notes that the kernel has the services of a revision, except for these problems.
    pub fn finish_services(&self, revision: u64, problems: Vec<String>) {
        self.update(|state| {
            state.service_problems = problems;
            // The view may have been replaced by an earlier one meanwhile.
            if revision <= state.view.revision {
                state.serviced_revision = state.serviced_revision.max(revision);
                self.send_applied(state);
            }
        });
    }

    /// Notes why the kernel does not have the services of a revision.
    pub fn fail_services(&self, problems: Vec<String>) {
        self.update(|state| state.service_problems = problems);
    }

    /// Publishes the result of a reconciliation.
    pub fn finish_reconciliation(&self, reconciliation: Reconciliation) {
        self.update(|state| {
            state.loads += u64::from(reconciliation.loaded);
            if reconciliation.node_failure.is_none() {
                state.reconciled_revision = state.reconciled_revision.max(reconciliation.revision);
                self.send_applied(state);
            }
        });
        if reconciliation.problems.is_empty() {
            self.forget_removed();
        }
        self.reconciliation.send_replace(reconciliation);
    }
}
