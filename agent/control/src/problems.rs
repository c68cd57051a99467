//! The faults in nodes' reports, for the status of the manager's own host.

use crate::clock;
use crate::core::Core;

/// Maximum number of lines about one node.
const PER_NODE: usize = 3;

/// Returns one line for each fault.
pub(crate) fn all(core: &Core) -> Vec<String> {
    let view = core.feed.view();
    let mut lines = Vec::new();
    for node in view.nodes.values().filter(|node| node.id != *core.node_id()) {
        let mut faults = core.faults.of(&node.id);
        if let Some((count, first)) = core.endpoints.impossible(&node.id) {
            let others = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
            faults.insert(0, format!("{first}{others}"));
        }
        let more = faults.len().saturating_sub(PER_NODE);
        let shown = faults.iter().take(PER_NODE);
        lines.extend(shown.map(|fault| format!("reports of node {} were rejected: {fault}", node.name)));
        if more > 0 {
            lines.push(format!("reports of node {} were rejected: {more} more faults", node.name));
        }
    }
    lines.extend(clocks(core));
    lines.extend(core.attempts.problem(std::time::Instant::now()));
    lines
}

/// Returns the nodes whose clocks differ from this host's.
fn clocks(core: &Core) -> Vec<String> {
    let view = core.feed.view();
    let differences = core.sessions.clocks_ahead().into_iter().filter_map(|(node, ahead)| {
        let name = &view.nodes.get(&node)?.name;
        Some(format!("the clock of node {name} is {} this manager's", clock::difference(ahead)?))
    });
    differences.collect()
}
