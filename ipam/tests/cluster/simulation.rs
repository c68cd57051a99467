//! The simulated cluster, which does exactly what the protocol of the crate's documentation says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_ipam::{
    CedeAnswer, Decision, Delays, Lease, LeaseChange, LeaseState, Leases, LocalPool, LocalState, Prefix,
    Reports, StaticDecision, StaticError, SubnetLayout, lease_static, next_block,
};

type Node = u8;
type Endpoint = u32;
type Pool = LocalPool<Node, Endpoint>;

const DELAYS: Delays = Delays { reuse: 2, idle: 2 };

/// One thing that happens. `pick` chooses among what there is at that moment.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Attach(Node),
    AttachStatic {
        node: Node,
        pick: u8,
    },
    Detach {
        node: Node,
        pick: u8,
    },
    Deliver {
        pick: u16,
        again: bool,
    },
    /// The newest message arrives, and the node learns all that there is.
    ServePromptly(Node),
    Lose(u16),
    LearnNextChange(Node),
    LearnSnapshot {
        node: Node,
        pick: u16,
    },
    RestartNode {
        node: Node,
        pick: u16,
    },
    RestartManager,
    GiveBackIdle(Node),
    Report(Node),
    TogglePartition(Node),
    Wait(u64),
}

impl Step {
    /// The same on one of this many nodes.
    fn among(mut self, nodes: u8) -> Self {
        match &mut self {
            Self::Attach(node)
            | Self::AttachStatic { node, .. }
            | Self::Detach { node, .. }
            | Self::ServePromptly(node)
            | Self::LearnNextChange(node)
            | Self::LearnSnapshot { node, .. }
            | Self::RestartNode { node, .. }
            | Self::GiveBackIdle(node)
            | Self::Report(node)
            | Self::TogglePartition(node) => *node %= nodes,
            Self::Deliver { .. } | Self::Lose(_) | Self::RestartManager | Self::Wait(_) => {}
        }
        self
    }
}

#[derive(Debug, Clone)]
enum Message {
    Request { node: Node, address: Option<IpAddr> },
    Ask { owner: Node, prefix: Prefix, revision: u64 },
    Answer { owner: Node, prefix: Prefix, revision: u64, answer: CedeAnswer },
    GiveBack { node: Node, prefix: Prefix, revision: u64 },
    Report { node: Node, in_use: BTreeSet<IpAddr> },
}

impl Message {
    fn node(&self) -> Node {
        match self {
            Self::Request { node, .. } | Self::GiveBack { node, .. } | Self::Report { node, .. } => *node,
            Self::Ask { owner, .. } | Self::Answer { owner, .. } => *owner,
        }
    }
}

/// The store: the leases at every revision, and what each revision changed.
#[derive(Default)]
struct Store {
    history: Vec<Leases<Node>>,
    changes: Vec<LeaseChange<Node>>,
}

impl Store {
    fn new() -> Self {
        Self { history: vec![Leases::default()], changes: Vec::new() }
    }

    fn revision(&self) -> u64 {
        self.changes.len() as u64
    }

    fn leases(&self) -> &Leases<Node> {
        self.history.last().unwrap()
    }

    fn write(&mut self, change: LeaseChange<Node>) {
        let mut leases = self.leases().clone();
        self.changes.push(change.clone());
        leases.apply(change, self.revision());
        self.history.push(leases);
    }
}

pub(crate) struct Cluster {
    layout: SubnetLayout,
    store: Store,
    pools: Vec<Pool>,
    reports: Reports<Node>,
    /// Nodes that restarted with older leases than they need, and wait for a snapshot.
    outdated: BTreeSet<Node>,
    network: Vec<Message>,
    now: u64,
    next_endpoint: Endpoint,
}

impl Cluster {
    pub(crate) fn new(layout: SubnetLayout, nodes: u8) -> Self {
        let pools = (0..nodes).map(|node| LocalPool::new(layout.clone(), node, DELAYS)).collect();
        Self {
            layout,
            store: Store::new(),
            pools,
            reports: Reports::default(),
            outdated: BTreeSet::new(),
            network: Vec::new(),
            now: 1000,
            next_endpoint: 0,
        }
    }

    pub(crate) fn run(&mut self, step: Step) {
        match step.among(self.node_count()) {
            Step::Attach(node) => {
                let endpoint = self.endpoint();
                if self.pool(node).assign(endpoint).is_err() {
                    self.network.push(Message::Request { node, address: None });
                }
            }
            Step::AttachStatic { node, pick } => {
                let subnet = self.layout.subnet();
                let address = subnet.nth(u128::from(pick) % subnet.size().min(128)).unwrap();
                let endpoint = self.endpoint();
                match self.pool(node).assign_static(address, endpoint) {
                    Err(StaticError::NotLeased { .. }) => {
                        self.network.push(Message::Request { node, address: Some(address) });
                    }
                    Err(StaticError::Reserved { .. }) => assert!(self.layout.reserved(address).is_some()),
                    Err(StaticError::InUse { .. }) | Ok(()) => {}
                }
            }
            Step::Detach { node, pick } => self.detach(node, usize::from(pick)),
            Step::Deliver { pick, again } => self.deliver(usize::from(pick), again),
            Step::ServePromptly(node) => {
                self.deliver(self.network.len().saturating_sub(1), false);
                self.learn_all(node);
            }
            Step::Lose(pick) => {
                if !self.network.is_empty() {
                    let index = usize::from(pick) % self.network.len();
                    self.network.swap_remove(index);
                }
            }
            Step::LearnNextChange(node) => self.learn_next_change(node),
            Step::LearnSnapshot { node, pick } => {
                let revision = usize::from(pick) % self.store.history.len();
                let (leases, now) = (self.store.history[revision].clone(), self.now);
                if self.pool(node).replace(revision as u64, leases, now) {
                    self.outdated.remove(&node);
                }
            }
            Step::RestartNode { node, pick } => self.restart_node(node, usize::from(pick)),
            Step::RestartManager => {
                let unreachable = std::mem::take(&mut self.reports.unreachable);
                self.reports = Reports { unreachable, ..Reports::default() };
                self.ask_again();
            }
            Step::GiveBackIdle(node) => self.give_back_idle(node),
            Step::Report(node) => {
                let in_use = self.pools[usize::from(node)].in_use().keys().copied().collect();
                self.network.push(Message::Report { node, in_use });
            }
            Step::TogglePartition(node) => {
                if !self.reports.unreachable.remove(&node) {
                    self.reports.unreachable.insert(node);
                }
            }
            Step::Wait(time) => {
                self.now += time;
                self.reports.recently_released.clear();
            }
        }
    }

    /// Heals the network and lets everything that was begun come to its end.
    pub(crate) fn settle(&mut self) {
        self.reports.unreachable.clear();
        for _ in 0..3 {
            self.ask_again();
            for node in 0..self.node_count() {
                self.learn_all(node);
                self.resend_give_backs(node);
            }
            // What nodes want is dropped: it would go on for ever.
            self.network.retain(|message| !matches!(message, Message::Request { .. }));
            while !self.network.is_empty() {
                self.deliver(0, false);
            }
        }
        for node in 0..self.node_count() {
            self.learn_all(node);
        }
        assert_eq!(self.store.leases().pending().count(), 0, "every borrow is settled");
    }

    /// Attaches with all of the protocol at once. False when the subnet has no address left.
    pub(crate) fn attach_now(&mut self, node: Node) -> bool {
        loop {
            let endpoint = self.endpoint();
            if self.pool(node).assign(endpoint).is_ok() {
                return true;
            }
            if !self.decide(node) {
                return false;
            }
            self.settle();
        }
    }

    pub(crate) fn detach_all(&mut self) {
        for node in 0..self.node_count() {
            while !self.pools[usize::from(node)].in_use().is_empty() {
                self.detach(node, 0);
            }
        }
    }

    /// How many addresses are in use that could have been chosen automatically.
    pub(crate) fn dynamic_in_use(&self) -> u128 {
        let used = self.pools.iter().flat_map(|pool| pool.in_use().keys());
        used.filter(|&&address| self.layout.is_assignable(address)).count() as u128
    }

    /// Each address is used, or could be handed out at this moment, by one node at most; and by
    /// none if it is reserved.
    pub(crate) fn assert_one_owner_each(&self) {
        let mut owners: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (node, pool) in self.pools.iter().enumerate() {
            let mut trial = pool.clone();
            let mut could: BTreeSet<IpAddr> = pool.in_use().keys().copied().collect();
            while let Ok(address) = trial.assign(0) {
                assert!(self.layout.is_assignable(address), "{address} is not to be chosen automatically");
                could.insert(address);
            }
            let subnet = self.layout.subnet();
            for address in (0..subnet.size().min(128)).filter_map(|index| subnet.nth(index)) {
                if trial.assign_static(address, 0).is_ok() {
                    could.insert(address);
                }
            }
            for address in could {
                assert_eq!(self.layout.reserved(address), None, "{address}");
                if let Some(other) = owners.insert(address, node) {
                    panic!("nodes {other} and {node} both have {address}; {:#?}", self.store.leases());
                }
            }
        }
    }

    fn node_count(&self) -> u8 {
        u8::try_from(self.pools.len()).unwrap()
    }

    fn pool(&mut self, node: Node) -> &mut Pool {
        &mut self.pools[usize::from(node)]
    }

    fn endpoint(&mut self) -> Endpoint {
        self.next_endpoint += 1;
        self.next_endpoint
    }

    fn detach(&mut self, node: Node, pick: usize) {
        let now = self.now;
        let pool = self.pool(node);
        let count = pool.in_use().len();
        if count == 0 {
            return;
        }
        let address = *pool.in_use().keys().nth(pick % count).unwrap();
        assert!(pool.release(address, now).is_some());
        if pool.free() > 1 {
            assert_ne!(pool.clone().assign(0).ok(), Some(address), "just released, and another is free");
        }
    }

    fn learn_next_change(&mut self, node: Node) {
        if self.outdated.remove(&node) {
            let (leases, revision, now) = (self.store.leases().clone(), self.store.revision(), self.now);
            assert!(self.pool(node).replace(revision, leases, now));
            return;
        }
        let known = self.pools[usize::from(node)].revision();
        let Some(change) = self.store.changes.get(usize::try_from(known).unwrap()).cloned() else { return };
        let now = self.now;
        assert!(self.pool(node).apply(known + 1, &[change], now));
        assert_eq!(
            self.pools[usize::from(node)].leases(),
            &self.store.history[usize::try_from(known).unwrap() + 1]
        );
    }

    fn learn_all(&mut self, node: Node) {
        while self.outdated.contains(&node)
            || self.pools[usize::from(node)].revision() < self.store.revision()
        {
            self.learn_next_change(node);
        }
    }

    /// The node remembers all it must; but the leases that it reads back may be older ones.
    fn restart_node(&mut self, node: Node, pick: usize) {
        let pool = &self.pools[usize::from(node)];
        let state = serde_json::to_string(&pool.state()).unwrap();
        let state: LocalState = serde_json::from_str(&state).unwrap();
        let known = usize::try_from(pool.revision()).unwrap();
        let is_old = self.outdated.contains(&node) || pick.is_multiple_of(3);
        let revision = if is_old { pick % (known + 1) } else { known };
        let leases = (revision as u64, self.store.history[revision].clone());
        let in_use = pool.in_use().clone();
        let restored = LocalPool::restore(self.layout.clone(), node, DELAYS, state, in_use, leases, self.now);
        if revision < known {
            self.outdated.insert(node);
        }
        self.pools[usize::from(node)] = restored;
    }

    fn give_back_idle(&mut self, node: Node) {
        let now = self.now;
        let pool = self.pool(node);
        for prefix in pool.idle_blocks(now) {
            assert!(pool.give_back(&prefix).is_some(), "an idle lease can be given back");
        }
        self.resend_give_backs(node);
    }

    fn resend_give_backs(&mut self, node: Node) {
        for (&prefix, &revision) in self.pools[usize::from(node)].giving_back() {
            self.network.push(Message::GiveBack { node, prefix, revision });
        }
    }

    fn ask_again(&mut self) {
        for lease in self.store.leases().pending() {
            let owner = *lease.route_to();
            self.network.push(Message::Ask { owner, prefix: lease.prefix, revision: lease.revision });
        }
    }

    fn deliver(&mut self, pick: usize, again: bool) {
        if self.network.is_empty() {
            return;
        }
        let index = pick % self.network.len();
        if self.reports.unreachable.contains(&self.network[index].node()) {
            return;
        }
        let message = if again { self.network[index].clone() } else { self.network.swap_remove(index) };
        match message {
            Message::Request { node, address: None } => {
                self.decide(node);
            }
            Message::Request { node, address: Some(address) } => self.decide_static(node, address),
            Message::Ask { owner, prefix, revision } => {
                let answer = match self.pool(owner).cede(prefix.first(), revision) {
                    Ok(()) => CedeAnswer::Ceded,
                    Err(_) => CedeAnswer::Refused,
                };
                self.network.push(Message::Answer { owner, prefix, revision, answer });
            }
            Message::Answer { owner, prefix, revision, answer } => {
                if answer == CedeAnswer::Refused {
                    self.reports.in_use.entry(owner).or_default().insert(prefix.first());
                }
                if let Some(change) = self.store.leases().settle(&prefix, revision, answer) {
                    self.store.write(change);
                }
            }
            Message::GiveBack { node, prefix, revision } => {
                if let Some(change) = self.store.leases().give_back(&node, &prefix, revision) {
                    self.store.write(change);
                    self.reports.recently_released.push(prefix);
                }
            }
            Message::Report { node, in_use } => {
                self.reports.in_use.insert(node, in_use);
            }
        }
    }

    /// Decides on a lease for a node. Before it says no, the manager asks all that it can reach
    /// what they use.
    fn decide(&mut self, node: Node) -> bool {
        let mut decision = next_block(&self.layout, self.store.leases(), &node, &self.reports);
        if matches!(decision, Decision::Exhausted { .. }) {
            for (owner, pool) in (0..).zip(&self.pools) {
                if !self.reports.unreachable.contains(&owner) {
                    self.reports.in_use.insert(owner, pool.in_use().keys().copied().collect());
                }
            }
            decision = next_block(&self.layout, self.store.leases(), &node, &self.reports);
        }
        match decision {
            Decision::Lease(prefix) => {
                assert!(self.store.leases().iter().all(|lease| !lease.prefix.overlaps(&prefix)));
                assert!(self.layout.assignable_in(&prefix) > 0);
                self.store.write(LeaseChange::Put(Lease::active(prefix, node)));
                true
            }
            Decision::Borrow { from, candidates } => {
                self.borrow(candidates[0], node, from);
                true
            }
            Decision::Exhausted { pending, free_on_unreachable } => {
                self.assert_exhausted(node, pending, &free_on_unreachable);
                false
            }
        }
    }

    fn decide_static(&mut self, node: Node, address: IpAddr) {
        match lease_static(&self.layout, self.store.leases(), &node, address) {
            StaticDecision::Lease(prefix) => self.store.write(LeaseChange::Put(Lease::active(prefix, node))),
            StaticDecision::Borrow { from } => {
                assert_ne!(from, node);
                self.borrow(address, node, from);
            }
            StaticDecision::Reserved(why) => panic!("{address} was asked for though it is {why}"),
            StaticDecision::Held | StaticDecision::Undecided { .. } => {}
        }
    }

    fn borrow(&mut self, address: IpAddr, node: Node, from: Node) {
        let held = self.store.leases().deciding(address).unwrap();
        assert_eq!(held.node, from);
        let borrow = Lease::borrow(address, node, held);
        self.store.write(LeaseChange::Put(borrow));
        self.ask_again();
    }

    /// No address is free but with the node itself, in a borrow that is not settled, or on a node
    /// that cannot be asked.
    fn assert_exhausted(&self, node: Node, pending: u128, on_unreachable: &BTreeMap<Node, u128>) {
        let dynamic = self.layout.dynamic_range();
        assert!(dynamic.size() <= 256);
        let mut waiting = 0;
        for address in (0..dynamic.size()).filter_map(|index| dynamic.nth(index)) {
            if !self.layout.is_assignable(address) {
                continue;
            }
            let lease = self.store.leases().deciding(address).unwrap_or_else(|| panic!("{address} is free"));
            let owner = lease.node;
            if matches!(lease.state, LeaseState::Pending { .. }) {
                waiting += 1;
            } else if self.reports.unreachable.contains(&owner) {
                let uses = self.pools[usize::from(owner)].in_use().contains_key(&address);
                let known = self.reports.in_use.get(&owner).is_some_and(|used| used.contains(&address));
                assert!(known || uses || owner == node || on_unreachable.contains_key(&owner));
            } else if owner != node {
                assert!(
                    self.pools[usize::from(owner)].in_use().contains_key(&address),
                    "{address} is free on {owner}"
                );
            }
        }
        assert_eq!(waiting, pending);
    }
}
