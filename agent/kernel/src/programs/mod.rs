//! The eBPF half of the kernel: programs, where they are attached, and what is in their maps.
//!
//! [`Programs`] is what the control loop sees. [`Datapath`] is the kernel itself, [`FakePrograms`]
//! its twin in memory. Programs, maps and attachments are pinned in an instance's own folder of
//! bpffs: they outlive the process, and the next one adopts them.

mod attach;
mod attach_method;
mod bpffs;
mod clsact;
mod datapath;
mod digest;
mod error;
mod fake;
mod layouts;
mod maps;
mod probe;
mod sockets;
mod tables;
mod xdp;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use attach_method::AttachMethod;
pub use bpffs::ensure_bpffs;
pub use datapath::{Datapath, MapSizes, Options};
pub use error::ProgramsError;
pub use fake::FakePrograms;
pub use mesh_ebpf_types::{
    Address, Counter, MapEntry, MapKey, PathKey, ProgramKind, Reason, TableEntry, TableKey, Vni,
};
use mesh_ebpf_types::{Allowance, Connection, ConnectionKey};
pub use mesh_model::observed::{AttachedProgram, Attachment, ObservedPrograms, Pins};
pub use probe::direct_encapsulation;

/// What the programs counted, by network and reason, summed over CPUs.
pub type Counters = BTreeMap<(Vni, Reason), Counter>;

/// Looks at an entry of the map of flows.
pub type Visit<'a> = dyn FnMut(&ConnectionKey, &Connection) + 'a;

/// Chooses entries of the map of flows.
pub type Take<'a> = dyn FnMut(&ConnectionKey, &Connection) -> bool + 'a;

/// The eBPF side of the kernel. Each call makes one attempt; only the loop repeats.
///
/// Interface indexes are those of the calling thread's network namespace. The order that loses no
/// packet: put entries, then attach; detach, then delete entries.
pub trait Programs {
    /// Reads what is pinned, what is attached and what the maps hold. Works before
    /// [`Programs::load`] too: then it is an earlier process's that is seen.
    fn observe(&mut self) -> Result<ObservedPrograms, ProgramsError>;

    /// Loads the programs. Pinned maps of the same schema are adopted with what is in them; those
    /// of another are replaced by empty ones, and earlier programs work on with the old ones until
    /// [`Programs::attach`] replaces them.
    fn load(&mut self) -> Result<(), ProgramsError>;

    /// Detaches everything and removes every pin of this instance. Goes on after an error, and
    /// returns the first.
    fn unload(&mut self) -> Result<(), ProgramsError>;

    /// Writes an entry, over the one that is there.
    fn put(&mut self, entry: &MapEntry) -> Result<(), ProgramsError>;

    /// Removes an entry; one that is not there is no error.
    fn delete(&mut self, key: &MapKey) -> Result<(), ProgramsError>;

    /// Attaches the current program. Where an earlier one is attached, it is replaced without a
    /// gap.
    fn attach(&mut self, attachment: Attachment) -> Result<(), ProgramsError>;

    /// Detaches a program; succeeds if it is not attached.
    fn detach(&mut self, attachment: Attachment) -> Result<(), ProgramsError>;

    /// Writes entries of the service tables, over those that are there. Not all or nothing: after
    /// an error some may have been written. A table of backends is to be in `MAGLEV` before an
    /// entry names it.
    fn put_tables(&mut self, entries: &[TableEntry]) -> Result<(), ProgramsError>;

    /// Removes entries of the service tables; those that are not there are no error.
    fn delete_tables(&mut self, keys: &[TableKey]) -> Result<(), ProgramsError>;

    /// Everything that is in the service tables. Works before [`Programs::load`] too: then it is an
    /// earlier process's.
    fn tables(&mut self) -> Result<BTreeMap<TableKey, TableEntry>, ProgramsError>;

    /// Makes room in `MAGLEV` for at least so many entries, and for no fewer than [`MapSizes`]
    /// says. Loaded programs are replaced without a gap by such as use a larger array with the same
    /// content; before [`Programs::load`] it is remembered for it.
    fn reserve_maglev(&mut self, entries: u32) -> Result<(), ProgramsError>;

    /// How many entries `MAGLEV` has: adopted maps keep their sizes.
    fn maglev_size(&mut self) -> Result<u32, ProgramsError>;

    /// How many answered flows' entries there is room for.
    fn connections_size(&mut self) -> Result<u32, ProgramsError>;

    /// Writes numbers of backends into `MAGLEV`, from entry `first` on. Programs that read there
    /// see some old, some new numbers: a table in use is never overwritten, and after an entry has
    /// been taken from a table its old place rests for longer than a program runs.
    fn write_maglev(&mut self, first: u32, backends: &[u32]) -> Result<(), ProgramsError>;

    /// Reads so many entries of `MAGLEV`, from `first` on.
    fn read_maglev(&mut self, first: u32, size: u32) -> Result<Vec<u32>, ProgramsError>;

    /// How many entries the flows of each network have among the answered ones; those of flows to
    /// published ports, on the node that they came in by, are counted with [`Vni::NONE`]. Reads the
    /// whole map.
    fn connections(&mut self) -> Result<BTreeMap<Vni, u64>, ProgramsError>;

    /// How many entries can be in that map before it forgets any: a few are each processor's own.
    fn connections_room(&mut self) -> Result<u64, ProgramsError>;

    /// Shows each entry of that map.
    fn visit_connections(&mut self, visit: &mut Visit<'_>) -> Result<(), ProgramsError>;

    /// Removes the entries of that map that are chosen when shown.
    fn forget_connections(&mut self, takes: &mut Take<'_>) -> Result<(), ProgramsError>;

    /// How many more entries each network may make there.
    fn allowances(&mut self) -> Result<BTreeMap<Vni, Allowance>, ProgramsError>;

    /// Sets how many more entries each network may make there. Networks that are not named share
    /// that of [`Vni::NONE`].
    fn set_allowances(&mut self, allowances: &BTreeMap<Vni, u64>) -> Result<(), ProgramsError>;

    /// Attaches the programs of the host's own sockets, those of the calling thread's network
    /// namespace, or puts the current ones in the place of earlier ones. Without a cgroup2
    /// hierarchy it is an error.
    fn attach_sockets(&mut self) -> Result<(), ProgramsError>;

    /// Detaches them; what is not attached is no error.
    fn detach_sockets(&mut self) -> Result<(), ProgramsError>;

    /// Whether they are attached, all of them. Works before [`Programs::load`] too.
    fn sockets(&mut self) -> Result<Option<AttachedProgram>, ProgramsError>;

    /// Attaches the XDP program to the data-path device, or puts the current one in the place of an
    /// earlier one. An error where the driver does not run such programs, or another one is
    /// attached.
    fn attach_xdp(&mut self, ifindex: u32) -> Result<(), ProgramsError>;

    /// Detaches it; what is not attached is no error.
    fn detach_xdp(&mut self, ifindex: u32) -> Result<(), ProgramsError>;

    /// Interface indexes of the devices to which it is attached. Works before [`Programs::load`]
    /// too.
    fn xdp(&mut self) -> Result<BTreeMap<u32, AttachedProgram>, ProgramsError>;

    /// A digest of the pins of this instance and of what each link runs: it changes when somebody
    /// removes or detaches any of them. Takes microseconds.
    fn links_digest(&mut self) -> u64 {
        0
    }

    /// The counters since the maps were made.
    fn counters(&mut self) -> Result<Counters, ProgramsError>;

    /// Forgets the counters of a network (one that is gone).
    fn forget_counters(&mut self, vni: Vni) -> Result<(), ProgramsError>;

    /// When each member last answered a probe, as time of `CLOCK_MONOTONIC`.
    fn probe_replies(&mut self) -> Result<BTreeMap<Address, Duration>, ProgramsError>;

    /// When probes and answers to probes last came from each member, by either path, as time of
    /// `CLOCK_MONOTONIC`.
    fn paths(&mut self) -> Result<BTreeMap<PathKey, Duration>, ProgramsError>;

    /// Forgets the probe replies, and what is known of the paths, of all but these.
    fn retain_probe_replies(&mut self, members: &BTreeSet<Address>) -> Result<(), ProgramsError>;
}
