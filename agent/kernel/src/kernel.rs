//! What the control loop sees of the kernel.

use mesh_model::{Action, Desired, Observed};

use crate::{KernelError, Programs};

/// The extent of an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Nothing but whether the namespaces of endpoints that are new in the desired state are there;
    /// the rest is as it was last seen, and as the steps since then have made it. A kernel that has
    /// not seen everything yet, or of which a step has failed since, looks as for [`Depth::Quick`].
    Remembered,
    /// All but the firewall, which is as it was last seen or made: reading it runs `nft`, which
    /// costs 10 ms.
    Quick,
    /// Everything.
    Full,
}

/// The kernel of one host, or its twin in memory.
///
/// Calls block, mostly for microseconds. A call that removes a device waits some milliseconds,
/// until no process finds the device. Each call makes one attempt: only the loop repeats.
pub trait Kernel: Send {
    /// Reads the state of our objects. `desired` adds places to read: for the data-path
    /// address and for the endpoints' namespaces. The first call reads everything and ignores
    /// `depth`.
    fn observe(&mut self, desired: Option<&Desired>, depth: Depth) -> Result<Observed, KernelError>;

    /// Takes one step of a plan, in full or not at all.
    fn apply(&mut self, action: &Action) -> Result<(), KernelError>;

    /// A digest of what can change without an event of the kernel: pinned links, the programs that
    /// they run, and the switches. Another digest than before is a reason to observe. Takes
    /// microseconds.
    fn glance(&mut self) -> u64 {
        0
    }

    /// The eBPF half, for counters and probe replies.
    fn programs(&mut self) -> &mut dyn Programs;
}
