//! The eBPF half of the kernel: programs, where they are attached, and what is in their maps.
//!
//! [`Programs`] is what the control loop sees. [`Datapath`] is the kernel itself, [`FakePrograms`] its twin in memory.
//! Programs, maps and attachments are pinned in an instance's own folder of bpffs: they outlive the process, and the
//! next one adopts them.

mod attach;
mod bpffs;
mod clsact;
mod datapath;
mod error;
mod fake;
mod maps;
mod probe;
mod syscall;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use bpffs::ensure_bpffs;
pub use datapath::{AttachMethod, Datapath, MapSizes, Options};
pub use error::ProgramsError;
pub use fake::FakePrograms;
pub use mesh_ebpf_types::{Address, Counter, MapEntry, MapKey, ProgramKind, Reason, Vni};
pub use mesh_model::observed::{AttachedProgram, Attachment, ObservedPrograms, Pins};
pub use probe::direct_encapsulation;

/// What the programs counted, by network and reason, summed over CPUs.
pub type Counters = BTreeMap<(Vni, Reason), Counter>;

/// The eBPF side of the kernel. Each call makes one attempt; only the loop repeats.
///
/// Interface indexes are those of the calling thread's network namespace. The order that loses no packet: put entries,
/// then attach; detach, then delete entries.
pub trait Programs {
    /// Reads what is pinned, what is attached and what the maps hold. Works before [`Programs::load`] too: then it is
    /// an earlier process's that is seen.
    fn observe(&mut self) -> Result<ObservedPrograms, ProgramsError>;

    /// Loads the programs. Pinned maps of the same schema are adopted with what is in them; those of another are
    /// replaced by empty ones, and earlier programs work on with the old ones until [`Programs::attach`] replaces them.
    fn load(&mut self) -> Result<(), ProgramsError>;

    /// Detaches everything and removes every pin of this instance. Goes on after an error, and returns the first.
    fn unload(&mut self) -> Result<(), ProgramsError>;

    /// Writes an entry, over the one that is there.
    fn put(&mut self, entry: &MapEntry) -> Result<(), ProgramsError>;

    /// Removes an entry; one that is not there is no error.
    fn delete(&mut self, key: &MapKey) -> Result<(), ProgramsError>;

    /// Attaches the current program. Where an earlier one is attached, it is replaced without a gap.
    fn attach(&mut self, attachment: Attachment) -> Result<(), ProgramsError>;

    /// Detaches; what is not attached is no error.
    fn detach(&mut self, attachment: Attachment) -> Result<(), ProgramsError>;

    /// The counters since the maps were made.
    fn counters(&mut self) -> Result<Counters, ProgramsError>;

    /// Forgets the counters of a network (one that is gone).
    fn forget_counters(&mut self, vni: Vni) -> Result<(), ProgramsError>;

    /// When each member last answered a probe, as time of `CLOCK_MONOTONIC`.
    fn probe_replies(&mut self) -> Result<BTreeMap<Address, Duration>, ProgramsError>;

    /// Forgets the probe replies of all but these.
    fn retain_probe_replies(&mut self, members: &BTreeSet<Address>) -> Result<(), ProgramsError>;
}
