//! The capabilities of the process (capabilities(7)): root in a container may lack some, and the
//! agent gives up what it does not need.

use std::fs;
use std::io;

use mesh_proto::{Problem, ProblemKind};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
};

/// What the agent and the processes that it starts keep:
/// - `CHOWN`, `DAC_OVERRIDE`, `FOWNER`: its own files, its socket's group, and other users'
///   namespace files;
/// - `KILL`, `SETUID`, `SETGID`: helper processes that run as another user;
/// - `NET_BIND_SERVICE`: DNS on port 53 of the gateway addresses;
/// - `NET_ADMIN`, `NET_RAW`: devices, routes, marks, probes;
/// - `SYS_ADMIN`, `SYS_PTRACE`: containers' network namespaces, those of other users included;
/// - `BPF`, `PERFMON`: programs and maps.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON);

/// Gives up all capabilities but those that are needed, for this thread and all that it starts from
/// now on, for good: a program that the agent runs does not get them back.
///
/// Must run before other threads exist, since capabilities belong to threads.
pub fn drop_unneeded() -> io::Result<()> {
    let held = capabilities(None)?;
    // Without SETPCAP the bounding set stays: who started the agent without it has limited it
    // already.
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(KEPT).iter() {
            match remove_capability_from_bounding_set(capability) {
                // A capability that this kernel does not know.
                Err(rustix::io::Errno::INVAL) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let kept = CapabilitySets {
        effective: held.effective & KEPT,
        permitted: held.permitted & KEPT,
        inheritable: held.inheritable & KEPT,
    };
    Ok(set_capabilities(None, kept)?)
}

/// What the agent cannot do without: bit, name, what for.
const NEEDED: [(u32, &str, &str); 2] = [
    (12, "CAP_NET_ADMIN", "create network devices"),
    (21, "CAP_SYS_ADMIN", "enter containers' namespaces and load eBPF programs"),
];

/// Refuses to start a process that could not do its work.
pub(crate) fn check() -> Result<(), Problem> {
    // If /proc does not show them, the first operation that is denied reports it.
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

    #[test]
    fn what_is_kept_includes_what_the_agent_cannot_do_without() {
        for (bit, name, _) in NEEDED {
            assert!(KEPT.bits() & (1 << bit) != 0, "{name}");
        }
    }

    #[test]
    fn a_thread_and_what_it_starts_give_up_other_capabilities() {
        let thread = std::thread::spawn(|| {
            drop_unneeded().unwrap();
            let child = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            String::from_utf8(child.stdout).unwrap()
        });
        let status = thread.join().unwrap();
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            CapabilitySet::from_bits_retain(u64::from_str_radix(line.trim(), 16).unwrap())
        };
        for name in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert!(KEPT.contains(set(name)), "{name} {:?}", set(name));
        }
        assert!(set("CapEff:").contains(CapabilitySet::NET_ADMIN));
    }
}
