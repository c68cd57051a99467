//! What the process may do, as capabilities(7) has it: root in a container may lack them.

use std::fs;

use mesh_proto::{Problem, ProblemKind};

/// What the agent cannot do without: bit, name, what for.
const NEEDED: [(u32, &str, &str); 2] = [
    (12, "CAP_NET_ADMIN", "make network devices"),
    (21, "CAP_SYS_ADMIN", "enter containers' namespaces and load eBPF programs"),
];

/// Refuses to start a process that could not do its work.
pub(crate) fn check() -> Result<(), Problem> {
    // Where /proc does not tell, the first thing that is denied will.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match missing(&status) {
        None => Ok(()),
        Some((name, purpose)) => Err(Problem::new(
            ProblemKind::Failed,
            format!("meshd lacks the capability {name}: it could not {purpose}"),
        )
        .hint("give its service or container that capability")),
    }
}

/// The first of [`NEEDED`] that is not in the effective set of a `/proc/PID/status`.
fn missing(status: &str) -> Option<(&'static str, &'static str)> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(line.trim(), 16).ok()?;
    NEEDED.into_iter().find(|(bit, ..)| effective & (1 << bit) == 0).map(|(_, name, purpose)| (name, purpose))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_that_is_missing_is_named() {
        let name = |status| missing(status).map(|(name, _)| name);
        assert_eq!(name("Name:\tmeshd\nCapEff:\t000001ffffffffff\n"), None);
        assert_eq!(name("CapEff:\t000001ffffffefff\n"), Some("CAP_NET_ADMIN"));
        assert_eq!(name("CapEff:\t000001ffffdfffff\n"), Some("CAP_SYS_ADMIN"));
    }
}
