//! The eBPF half of the kernel: programs, their attachments, and the contents of their maps.
//!
//! The control loop uses [`Programs`]. [`Datapath`] implements it with the kernel, [`FakePrograms`]
//! in memory. Programs, maps and attachments are pinned in the instance's own bpffs directory. They
//! outlive the process, and the next process adopts them.

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

/// Packet counters by network and reason, summed over all CPUs.
pub type Counters = BTreeMap<(Vni, Reason), Counter>;

/// Reads an entry of the flow map.
pub type Visit<'a> = dyn FnMut(&ConnectionKey, &Connection) + 'a;

/// Chooses entries of the flow map.
pub type Take<'a> = dyn FnMut(&ConnectionKey, &Connection) -> bool + 'a;

/// The eBPF side of the kernel. Each call makes one attempt; only the loop retries.
///
/// Interface indexes are those of the calling thread's network namespace. To lose no packet, put
/// entries before attaching, and detach before deleting entries.
pub trait Programs {
    /// Reads the pins, the attachments and the map entries. Also works before [`Programs::load`];
    /// it then returns the state of an earlier process.
    fn observe(&mut self) -> Result<ObservedPrograms, ProgramsError>;

    /// Loads the programs. Pinned maps of the same schema are adopted with their contents; those of
    /// another schema are replaced by empty ones. Earlier programs continue to run with the old
    /// maps until [`Programs::attach`] replaces them.
    fn load(&mut self) -> Result<(), ProgramsError>;

    /// Detaches everything and removes every pin of this instance. Continues after an error, and
    /// returns the first.
    fn unload(&mut self) -> Result<(), ProgramsError>;

    /// Writes an entry; overwrites an existing one.
    fn put(&mut self, entry: &MapEntry) -> Result<(), ProgramsError>;

    /// Removes an entry; succeeds if it does not exist.
    fn delete(&mut self, key: &MapKey) -> Result<(), ProgramsError>;

    /// Attaches the current program. Replaces an earlier one without a gap.
    fn attach(&mut self, attachment: Attachment) -> Result<(), ProgramsError>;

    /// Detaches a program; succeeds if it is not attached.
    fn detach(&mut self, attachment: Attachment) -> Result<(), ProgramsError>;

    /// Writes entries of the service tables; overwrites existing ones. Not atomic: after an error,
    /// some entries may have been written. Write a backend table into `BACKEND_TABLES` before an
    /// entry refers to it.
    fn put_tables(&mut self, entries: &[TableEntry]) -> Result<(), ProgramsError>;

    /// Removes entries of the service tables; ignores entries that do not exist.
    fn delete_tables(&mut self, keys: &[TableKey]) -> Result<(), ProgramsError>;

    /// Returns all entries of the service tables. Also works before [`Programs::load`]; it then
    /// returns those of an earlier process.
    fn tables(&mut self) -> Result<BTreeMap<TableKey, TableEntry>, ProgramsError>;

    /// Makes room in `BACKEND_TABLES` for at least this many entries, and at least for the number
    /// in [`MapSizes`]. Replaces loaded programs, without a gap, by programs that use a larger
    /// array with the same contents. Before [`Programs::load`], only sets the size that loading
    /// will use.
    fn reserve_backend_tables(&mut self, entries: u32) -> Result<(), ProgramsError>;

    /// Returns the size of `BACKEND_TABLES` in entries: adopted maps keep their sizes.
    fn backend_tables_size(&mut self) -> Result<u32, ProgramsError>;

    /// Returns the number of answered flows for which there is room.
    fn connections_size(&mut self) -> Result<u32, ProgramsError>;

    /// Writes backend numbers into `BACKEND_TABLES`, starting at entry `first`. A program that
    /// reads meanwhile sees a mix of old and new numbers. So a table in use is never overwritten,
    /// and freed space is not reused until every program that could read it has ended.
    fn write_backend_tables(&mut self, first: u32, backends: &[u32]) -> Result<(), ProgramsError>;

    /// Reads this many entries of `BACKEND_TABLES`, starting at `first`.
    fn read_backend_tables(&mut self, first: u32, size: u32) -> Result<Vec<u32>, ProgramsError>;

    /// Returns how many entries of answered flows each network has. Flows to published ports, on
    /// the node where they arrived, are counted with [`Vni::NONE`]. Reads the whole map.
    fn connections(&mut self) -> Result<BTreeMap<Vni, u64>, ProgramsError>;

    /// Returns how many entries that map can have before it evicts one: each CPU reserves a few.
    fn connections_room(&mut self) -> Result<u64, ProgramsError>;

    /// Calls `visit` with each entry of that map.
    fn visit_connections(&mut self, visit: &mut Visit<'_>) -> Result<(), ProgramsError>;

    /// Removes the entries of that map for which `takes` returns true.
    fn forget_connections(&mut self, takes: &mut Take<'_>) -> Result<(), ProgramsError>;

    /// Returns how many more entries each network may create there.
    fn allowances(&mut self) -> Result<BTreeMap<Vni, Allowance>, ProgramsError>;

    /// Sets how many more entries each network may create there. Networks that are not listed share
    /// the value of [`Vni::NONE`].
    fn set_allowances(&mut self, allowances: &BTreeMap<Vni, u64>) -> Result<(), ProgramsError>;

    /// Attaches the programs for the host's own sockets in the calling thread's network namespace.
    /// Replaces earlier ones. Fails without a cgroup2 hierarchy.
    fn attach_sockets(&mut self) -> Result<(), ProgramsError>;

    /// Detaches them; succeeds if they are not attached.
    fn detach_sockets(&mut self) -> Result<(), ProgramsError>;

    /// Returns whether all of them are attached. Also works before [`Programs::load`].
    fn sockets(&mut self) -> Result<Option<AttachedProgram>, ProgramsError>;

    /// Attaches the XDP program to the data-path device; replaces an earlier one. Fails if the
    /// driver does not support XDP, or if another XDP program is attached.
    fn attach_xdp(&mut self, ifindex: u32) -> Result<(), ProgramsError>;

    /// Detaches it; succeeds if it is not attached.
    fn detach_xdp(&mut self, ifindex: u32) -> Result<(), ProgramsError>;

    /// Returns the interface indexes of the devices to which it is attached. Also works before
    /// [`Programs::load`].
    fn xdp(&mut self) -> Result<BTreeMap<u32, AttachedProgram>, ProgramsError>;

    /// Returns a digest of this instance's pins and of the programs of its links. It changes when
    /// any of them is removed or detached. Takes microseconds.
    fn links_digest(&mut self) -> u64 {
        0
    }

    /// Returns the counters since the maps were created.
    fn counters(&mut self) -> Result<Counters, ProgramsError>;

    /// Deletes the counters of a network that no longer exists.
    fn forget_counters(&mut self, vni: Vni) -> Result<(), ProgramsError>;

    /// Returns when each member last answered a probe, as `CLOCK_MONOTONIC` time.
    fn probe_replies(&mut self) -> Result<BTreeMap<Address, Duration>, ProgramsError>;

    /// Returns when a probe, and an answer to a probe, last arrived from each member on each path,
    /// as `CLOCK_MONOTONIC` time.
    fn paths(&mut self) -> Result<BTreeMap<PathKey, Duration>, ProgramsError>;

    /// Deletes the probe replies and path records of all members except these.
    fn retain_probe_replies(&mut self, members: &BTreeSet<Address>) -> Result<(), ProgramsError>;
}
