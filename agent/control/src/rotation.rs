//! Nodes' keys for encrypted networks: each node writes its own, and a rotation makes all of them
//! generate new ones.

use std::time::Duration;

use mesh_model::{Node, Wireguard};
use mesh_proto::v1::{RotateKeysResponse, SetWireguardRequest};
use mesh_proto::{Problem, ProblemKind};
use mesh_store::{Compare, Txn};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::access::Caller;
use crate::core::Core;
use crate::errors::usage;
use crate::records::{Tries, Versioned, put};
use crate::{keys, limits};

/// Maximum number of key generations of a node: the current one, the next one, and some that are
/// being retired.
const MAX_KEYS: usize = 16;
/// A node's newest key may be this many generations ahead of the requested one: a rotation may be
/// in progress, and the store may have been restored from an earlier backup.
const MAX_AHEAD: u32 = 1024;

/// Writes the calling node's keys, and returns once every live agent knows them. For a first key,
/// it does not wait for agents that have only just started.
pub(crate) async fn set(core: &Core, caller: &Caller, request: SetWireguardRequest) -> Result<(), Problem> {
    let wireguard = mesh_proto::convert::required("wireguard", request.wireguard).map_err(|e| usage(&e))?;
    let wireguard: Wireguard = wireguard.try_into().map_err(|e| usage(&e))?;
    check(&wireguard)?;
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        let Some(Versioned { value, revision }) = core.records.node(caller.id()).await? else {
            return Err(crate::access::removed(caller.id()));
        };
        if value.wireguard.as_ref() == Some(&wireguard) {
            return Ok(());
        }
        check_against_others(core, &value, &wireguard)?;
        let is_first = value.wireguard.is_none();
        let node = Node { wireguard: Some(wireguard.clone()), ..value };
        let key = keys::node(caller.id());
        let txn = Txn::when([Compare::mod_revision(key.clone(), revision)]).then([put(key, &node)]);
        let Some(revision) = core.records.commit(txn).await? else { continue };
        let mut all: Vec<_> = core.records.nodes().await?.into_iter().map(|node| node.value.id).collect();
        if is_first {
            // The key is used from the node's first lease in an encrypted network on, and that call
            // waits for the network's agents. An agent that has applied nothing yet is still
            // preparing its kernel. That takes a second, and would delay all nodes that join at the
            // same time.
            all.retain(|node| core.sessions.has_applied(node, 1));
        }
        let late = core.sessions.wait_applied(all, revision.0, limits::APPLIED).await;
        if !late.is_empty() {
            warn!(node = %node.name, ?late, "nodes have not applied a node's keys in time");
        }
        return Ok(());
    }
}

/// A key belongs to one node only: a second peer with the same key would replace the first one in
/// every engine. Key generations must have been requested, since a rotation exceeds all announced
/// ones.
fn check_against_others(core: &Core, node: &Node, wireguard: &Wireguard) -> Result<(), Problem> {
    let view = core.feed.view();
    let others = view.nodes.values().filter(|other| other.id != node.id);
    for (other, keys) in others.filter_map(|other| Some((other, other.wireguard.as_ref()?))) {
        if let Some(key) = wireguard.keys.values().find(|key| keys.keys.values().any(|known| known == *key)) {
            return Err(Problem::new(
                ProblemKind::Conflict,
                format!("the public key {key} belongs to node {}", other.name),
            ));
        }
    }
    let own = newest(node).unwrap_or(0);
    let highest = view.generation.max(own).saturating_add(MAX_AHEAD);
    match wireguard.keys.keys().next_back().filter(|newest| **newest > highest) {
        Some(newest) => Err(Problem::new(
            ProblemKind::Usage,
            format!("keys of generation {newest} were not requested: the highest is {highest}"),
        )),
        None => Ok(()),
    }
}

fn check(wireguard: &Wireguard) -> Result<(), Problem> {
    let problem = |message: String| Err(Problem::new(ProblemKind::Usage, message));
    if wireguard.keys.is_empty() || wireguard.keys.len() > MAX_KEYS {
        return problem(format!("a node must have 1 to {MAX_KEYS} keys, not {}", wireguard.keys.len()));
    }
    match wireguard.keys.iter().find(|(_, key)| !is_public_key(key)) {
        Some((generation, _)) => {
            problem(format!("the key of generation {generation} is not 32 bytes in base64"))
        }
        None => Ok(()),
    }
}

/// Returns whether a text is 32 bytes in base64 (RFC 4648, section 4): 43 characters, of which the
/// last has two zero bits, and a pad.
fn is_public_key(text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    match text.as_bytes() {
        [digits @ .., last, b'='] if text.len() == 44 => {
            digits.iter().all(|&byte| is_digit(byte)) && b"AEIMQUYcgkosw048".contains(last)
        }
        _ => false,
    }
}

/// Makes every node generate a key of a new generation, and returns once those in session have
/// announced theirs.
pub(crate) async fn rotate(core: &Core) -> Result<RotateKeysResponse, Problem> {
    let mut tries = Tries::default();
    let generation = loop {
        tries.next()?;
        let current: Option<Versioned<u32>> = core.records.get(keys::generation()).await?;
        let nodes = core.records.nodes().await?;
        let announced = nodes.iter().filter_map(|node| newest(&node.value)).max().unwrap_or(0);
        let next = current.as_ref().map_or(0, |current| current.value).max(announced).checked_add(1);
        let next =
            next.ok_or_else(|| Problem::new(ProblemKind::Exhausted, "all key generations are used up"))?;
        let unchanged = match current {
            Some(current) => Compare::mod_revision(keys::generation(), current.revision),
            None => Compare::absent(keys::generation()),
        };
        let txn = Txn::when([unchanged]).then([put(keys::generation(), &next)]);
        if core.records.commit(txn).await?.is_some() {
            break next;
        }
    };
    info!(generation, "keys are rotated");
    Ok(RotateKeysResponse { generation, pending: announced(core, generation, limits::ROTATION).await })
}

/// Waits until the nodes in session have announced a key of this generation. Returns the names of
/// all nodes with keys that have not.
async fn announced(core: &Core, generation: u32, within: Duration) -> Vec<String> {
    let is_behind = |node: &&Node| newest(node).is_some_and(|newest| newest < generation);
    let mut revisions = core.feed.revisions();
    let all = async {
        loop {
            let is_done = {
                let view = core.feed.view();
                !view.nodes.values().filter(is_behind).any(|node| core.sessions.is_live(&node.id))
            };
            // The sender lives as long as the core.
            if is_done || revisions.changed().await.is_err() {
                return;
            }
        }
    };
    // Late nodes are in the result.
    let _ = timeout(within, all).await;
    let view = core.feed.view();
    view.nodes.values().filter(is_behind).map(|node| node.name.to_string()).collect()
}

fn newest(node: &Node) -> Option<u32> {
    node.wireguard.as_ref()?.keys.keys().next_back().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_thirty_two_bytes_in_base64() {
        assert!(is_public_key("GSbxL3oHmgXcZmSPPmrpIYMcdcA7/YEP4zSJ0jZ2nBM="));
        for bad in [
            "",
            "GSbxL3oHmgXcZmSPPmrpIYMcdcA7/YEP4zSJ0jZ2nBM",
            "GSbxL3oHmgXcZmSPPmrpIYMcdcA7/YEP4zSJ0jZ2nBN=",
            "GSbxL3oHmgXcZmSPPmrpIYMcdcA7-YEP4zSJ0jZ2nBM=",
            "GSbxL3oHmgXcZmSPPmrpIYMcdcA7/YEP4zSJ0jZ2nB==",
        ] {
            assert!(!is_public_key(bad), "{bad}");
        }
    }
}
