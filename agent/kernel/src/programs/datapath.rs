//! The kernel implementation: loads, pins and adopts programs and maps, and attaches programs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;
use std::{panic, thread};

use aya::programs::{Program, ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use mesh_ebpf_types::{
    Address, Allowance, EARLY, MapEntry, MapKey, PathKey, ProgramKind, SocketProgram, TableEntry, TableKey,
    Vni,
};
use mesh_model::observed::{AttachedProgram, Attachment, ObservedPrograms, Pins as PinState};
use mesh_sys::{bpf, memory};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use super::attach_method::AttachMethod;
use super::bpffs::{self, Pins};
use super::maps::Maps;
use super::tables::Tables;
use super::{Counters, Programs, ProgramsError, Take, Visit, attach, digest, layouts, sockets, xdp};

/// The compiled programs, from the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-datapath"));

/// Capacities of the maps. Memory is allocated as entries are created, except for hash buckets: 16
/// bytes for each entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapSizes {
    /// Networks with endpoints on this node.
    pub networks: u32,
    /// Endpoints on this node. Each may have one address of each family.
    pub endpoints: u32,
    /// Subnets, gateways and leases of those networks.
    pub blocks: u32,
    /// Nodes of the cluster.
    pub nodes: u32,
    /// VIPs of those networks, and published ports: this many of each.
    pub services: u32,
    /// Backends of those services.
    pub backends: u32,
    /// Initial number of entries of all backend tables together; a multiple of 16. See
    /// [`Programs::reserve_backend_tables`].
    pub backend_tables: u32,
    /// Answered balanced flows; each takes one or two entries. Flows without an answer get a
    /// quarter of this number in addition.
    pub connections: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            networks: 2048,
            endpoints: 4096,
            blocks: 131_072,
            nodes: 4096,
            services: 32768,
            backends: 131_072,
            backend_tables: 1 << 21,
            connections: 131_072,
        }
    }
}

impl MapSizes {
    /// Returns [`MapSizes::connections`] for a host with this much memory. Entries of answered and
    /// unanswered flows together take less than 1% of it, or 20 MB if that is more. The result is a
    /// power of two, so that almost equal hosts have equal tables.
    pub fn connections_for(memory: u64) -> u32 {
        let entries = (memory >> 16).clamp(1 << 17, 1 << 20);
        1 << entries.ilog2()
    }
}

/// Options of a [`Datapath`].
#[derive(Debug, Clone)]
pub struct Options {
    /// The instance's own bpffs directory. No other instance may use it.
    pub bpffs_dir: PathBuf,
    /// Sizes of new maps; adopted maps keep theirs.
    pub sizes: MapSizes,
    /// The attach method.
    pub method: AttachMethod,
}

impl Options {
    /// Returns default sizes and the best method of the running kernel.
    pub fn new(bpffs_dir: impl Into<PathBuf>) -> Self {
        Self { bpffs_dir: bpffs_dir.into(), sizes: MapSizes::default(), method: AttachMethod::of_kernel() }
    }
}

#[derive(Debug)]
struct Loaded {
    programs: BTreeMap<ProgramKind, LoadedProgram>,
    maps: Maps,
}

#[derive(Debug)]
struct LoadedProgram {
    id: u32,
    program: SchedClassifier,
}

/// [`Programs`] in the kernel. Dropping it changes nothing in the kernel.
#[derive(Debug)]
pub struct Datapath {
    pins: Pins,
    sizes: MapSizes,
    method: AttachMethod,
    loaded: Option<Loaded>,
}

impl Datapath {
    /// Does not access the kernel yet.
    pub fn new(options: Options) -> Self {
        let Options { bpffs_dir, sizes, method } = options;
        Self { pins: Pins::new(bpffs_dir), sizes, method, loaded: None }
    }

    /// Returns the attach method.
    pub const fn method(&self) -> AttachMethod {
        self.method
    }

    /// Returns a loaded program, to run it on crafted packets (`BPF_PROG_TEST_RUN`).
    pub fn program(&self, kind: ProgramKind) -> Option<&SchedClassifier> {
        self.loaded.as_ref().and_then(|loaded| loaded.programs.get(&kind)).map(|loaded| &loaded.program)
    }

    fn loaded(&mut self) -> Result<&mut Loaded, ProgramsError> {
        self.loaded.as_mut().ok_or(ProgramsError::NotLoaded)
    }

    fn pin_programs(&self) -> Result<BTreeMap<ProgramKind, LoadedProgram>, ProgramsError> {
        let MapSizes { networks, endpoints, blocks, nodes, services, backends, backend_tables, connections } =
            self.sizes;
        let mut object = EbpfLoader::new()
            .btf(None)
            .default_map_pin_directory(self.pins.maps())
            .map_max_entries(layouts::NETWORKS, networks)
            .map_max_entries(layouts::INTERFACES, endpoints)
            .map_max_entries(layouts::ENDPOINTS, endpoints * 2)
            .map_max_entries(layouts::BLOCKS, blocks)
            .map_max_entries(layouts::HOST_ROUTES, networks * 4)
            .map_max_entries(layouts::MEMBERS, nodes * 4)
            .map_max_entries(layouts::PROBES, nodes)
            .map_max_entries(layouts::PATHS, nodes * 4)
            .map_max_entries(layouts::SERVICES, services)
            .map_max_entries(layouts::PUBLISHED, services)
            .map_max_entries(layouts::BACKENDS, backends)
            .map_max_entries(layouts::BACKEND_ADDRESSES, backends * 2)
            .map_max_entries(layouts::BACKEND_TABLES, backend_tables.div_ceil(16))
            .map_max_entries(layouts::CONNECTIONS, connections)
            .map_max_entries(layouts::PENDING, connections.div_ceil(4))
            .load(OBJECT)
            .map_err(|source| ProgramsError::Load(Box::new(source)))?;
        load_all(&mut object)?;
        let mut programs = BTreeMap::new();
        for kind in ProgramKind::ALL {
            let (name, path) = (kind.name(), self.pins.program(kind));
            pin_program(&object, name, path.clone())?;
            // Use the pin's own handle. It outlives the object, which holds the parsed file.
            let program = SchedClassifier::from_pin(path).map_err(refused(name))?;
            let id = program.info().map_err(refused(name))?.id();
            programs.insert(kind, LoadedProgram { id, program });
        }
        for kind in SocketProgram::ALL {
            pin_program(&object, kind.name(), self.pins.socket_program(kind))?;
        }
        pin_program(&object, EARLY, self.pins.xdp_program())?;
        Ok(programs)
    }

    /// Replaces earlier programs by the current ones wherever they are attached. Continues after an
    /// error, and returns the first.
    fn replace_all(&mut self) -> Result<(), ProgramsError> {
        let mut results: Vec<_> =
            self.attachments()?.into_keys().map(|attachment| self.attach(attachment)).collect();
        if self.sockets()?.is_some() {
            results.push(self.attach_sockets());
        }
        results.extend(self.xdp()?.into_keys().map(|ifindex| self.attach_xdp(ifindex)));
        results.into_iter().collect()
    }

    /// Returns the programs at the pinned attachments. Removes pins that are no longer attached.
    fn attachments(&self) -> Result<BTreeMap<Attachment, AttachedProgram>, ProgramsError> {
        let pinned = self.pins.links()?;
        let running = attach::programs(self.method, &self.pins, &pinned)?;
        for attachment in pinned.iter().filter(|attachment| !running.contains_key(attachment)) {
            bpffs::remove(&self.pins.link(*attachment))?;
        }
        let current = |attachment: &Attachment| {
            self.loaded.as_ref().and_then(|loaded| loaded.programs.get(&attachment.kind)).map(|p| p.id)
        };
        let state = |(attachment, id)| {
            let is_current = current(&attachment) == Some(id);
            (attachment, if is_current { AttachedProgram::Current } else { AttachedProgram::Earlier })
        };
        Ok(running.into_iter().map(state).collect())
    }
}

impl Programs for Datapath {
    fn observe(&mut self) -> Result<ObservedPrograms, ProgramsError> {
        if !self.pins.any()? {
            self.loaded = None;
            return Ok(ObservedPrograms::default());
        }
        // If pins were removed, the next reconciliation must load again.
        if ProgramKind::ALL.iter().any(|kind| !self.pins.program(*kind).exists())
            || !self.pins.xdp_program().exists()
        {
            self.loaded = None;
        }
        if self.loaded.is_none() {
            self.pins.rename_maps(&layouts::FORMER_NAMES)?;
        }
        let attachments = self.attachments()?;
        let (pins, entries) = match &self.loaded {
            Some(loaded) => (PinState::Current, loaded.maps.entries()?),
            None if layouts::layouts_match(&self.pins) => (
                PinState::Earlier,
                Maps::open(&self.pins).and_then(|maps| maps.entries()).unwrap_or_default(),
            ),
            None => (PinState::Earlier, BTreeMap::new()),
        };
        Ok(ObservedPrograms { pins, attachments, entries })
    }

    fn load(&mut self) -> Result<(), ProgramsError> {
        // Kernels before 5.11 count eBPF memory against this limit; later ones do not, and may
        // forbid raising it.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        self.pins.rename_maps(&layouts::FORMER_NAMES)?;
        if !layouts::layouts_match(&self.pins) {
            self.pins.remove_version()?;
        }
        self.pins.create()?;
        let programs = self.pin_programs();
        memory::trim();
        let programs = programs?;
        let maps = Maps::open(&self.pins)?;
        self.pins.remove_other_versions()?;
        self.loaded = Some(Loaded { programs, maps });
        Ok(())
    }

    fn unload(&mut self) -> Result<(), ProgramsError> {
        self.loaded = None;
        let mut results = Vec::new();
        match self.pins.links() {
            Ok(links) => {
                results.extend(links.into_iter().map(|link| attach::detach(self.method, &self.pins, link)));
            }
            Err(error) => results.push(Err(error)),
        }
        results.push(xdp::detach_all(&self.pins));
        results.push(sockets::detach(&self.pins));
        results.push(self.pins.remove_all());
        results.into_iter().collect()
    }

    fn put(&mut self, entry: &MapEntry) -> Result<(), ProgramsError> {
        self.loaded()?.maps.put(entry)
    }

    fn delete(&mut self, key: &MapKey) -> Result<(), ProgramsError> {
        self.loaded()?.maps.delete(key)
    }

    fn attach(&mut self, attachment: Attachment) -> Result<(), ProgramsError> {
        let loaded = self.loaded.as_ref().ok_or(ProgramsError::NotLoaded)?;
        let name = attachment.kind.name();
        let program = loaded.programs.get(&attachment.kind).ok_or(ProgramsError::Missing { name })?;
        attach::attach(self.method, &self.pins, attachment, &program.program)
    }

    fn detach(&mut self, attachment: Attachment) -> Result<(), ProgramsError> {
        attach::detach(self.method, &self.pins, attachment)
    }

    fn put_tables(&mut self, entries: &[TableEntry]) -> Result<(), ProgramsError> {
        self.loaded()?.maps.put_tables(entries)
    }

    fn delete_tables(&mut self, keys: &[TableKey]) -> Result<(), ProgramsError> {
        self.loaded()?.maps.delete_tables(keys)
    }

    fn tables(&mut self) -> Result<BTreeMap<TableKey, TableEntry>, ProgramsError> {
        match &mut self.loaded {
            Some(loaded) => loaded.maps.tables().entries(),
            None if self.pins.map(layouts::SERVICES).exists() && layouts::layouts_match(&self.pins) => {
                Tables::open(&self.pins)?.entries()
            }
            None => Ok(BTreeMap::new()),
        }
    }

    fn backend_tables_size(&mut self) -> Result<u32, ProgramsError> {
        Ok(self.loaded()?.maps.tables().backend_tables_size())
    }

    fn reserve_backend_tables(&mut self, entries: u32) -> Result<(), ProgramsError> {
        let wanted = self.sizes.backend_tables.max(entries);
        let Some(loaded) = &mut self.loaded else {
            self.sizes.backend_tables = wanted;
            return Ok(());
        };
        let tables = loaded.maps.tables();
        if tables.backend_tables_size() >= wanted {
            return Ok(());
        }
        let wider = tables.wider_backend_tables(wanted)?;
        let pin = self.pins.map(layouts::BACKEND_TABLES);
        let former = bpf::open_pin(&pin).map_err(|source| ProgramsError::Table {
            action: "open",
            map: layouts::BACKEND_TABLES,
            source,
        })?;
        pin_over(wider.array(), pin.clone())?;
        if let Err(error) = self.load() {
            // The running programs keep the old array, so an agent that adopts the maps must find
            // it too.
            pin_over(former.as_fd(), pin)?;
            return Err(error);
        }
        self.replace_all()
    }

    fn connections_size(&mut self) -> Result<u32, ProgramsError> {
        Ok(self.loaded()?.maps.tables().connections_size())
    }

    fn write_backend_tables(&mut self, first: u32, backends: &[u32]) -> Result<(), ProgramsError> {
        self.loaded()?.maps.tables().write_backend_tables(first, backends)
    }

    fn read_backend_tables(&mut self, first: u32, size: u32) -> Result<Vec<u32>, ProgramsError> {
        self.loaded()?.maps.tables().read_backend_tables(first, size)
    }

    fn connections(&mut self) -> Result<BTreeMap<Vni, u64>, ProgramsError> {
        self.loaded()?.maps.tables().connections()
    }

    fn connections_room(&mut self) -> Result<u64, ProgramsError> {
        Ok(self.loaded()?.maps.tables().connections_room())
    }

    fn visit_connections(&mut self, visit: &mut Visit<'_>) -> Result<(), ProgramsError> {
        self.loaded()?.maps.tables().visit_connections(visit)
    }

    fn forget_connections(&mut self, takes: &mut Take<'_>) -> Result<(), ProgramsError> {
        self.loaded()?.maps.tables().forget_connections(takes)
    }

    fn allowances(&mut self) -> Result<BTreeMap<Vni, Allowance>, ProgramsError> {
        self.loaded()?.maps.tables().allowances()
    }

    fn set_allowances(&mut self, allowances: &BTreeMap<Vni, u64>) -> Result<(), ProgramsError> {
        self.loaded()?.maps.tables().set_allowances(allowances)
    }

    fn attach_sockets(&mut self) -> Result<(), ProgramsError> {
        let failed = |source| ProgramsError::Sockets { action: "attach", program: "connect4", source };
        let cookie = mesh_sys::netns::own_cookie().map_err(failed)?;
        self.loaded()?.maps.set_netns(cookie)?;
        let cgroup = sockets::cgroup_root().map_err(failed)?;
        SocketProgram::ALL.into_iter().try_for_each(|kind| sockets::attach(&self.pins, &cgroup, kind))
    }

    fn detach_sockets(&mut self) -> Result<(), ProgramsError> {
        sockets::detach(&self.pins)
    }

    fn sockets(&mut self) -> Result<Option<AttachedProgram>, ProgramsError> {
        sockets::attached(&self.pins)
    }

    fn attach_xdp(&mut self, ifindex: u32) -> Result<(), ProgramsError> {
        self.loaded()?;
        xdp::attach(&self.pins, ifindex)
    }

    fn detach_xdp(&mut self, ifindex: u32) -> Result<(), ProgramsError> {
        xdp::detach(&self.pins, ifindex)
    }

    fn xdp(&mut self) -> Result<BTreeMap<u32, AttachedProgram>, ProgramsError> {
        xdp::attached(&self.pins)
    }

    fn links_digest(&mut self) -> u64 {
        digest::of(&self.pins)
    }

    fn counters(&mut self) -> Result<Counters, ProgramsError> {
        self.loaded()?.maps.counters()
    }

    fn forget_counters(&mut self, vni: Vni) -> Result<(), ProgramsError> {
        self.loaded()?.maps.forget_counters(vni)
    }

    fn probe_replies(&mut self) -> Result<BTreeMap<Address, Duration>, ProgramsError> {
        self.loaded()?.maps.probe_replies()
    }

    fn paths(&mut self) -> Result<BTreeMap<PathKey, Duration>, ProgramsError> {
        self.loaded()?.maps.paths()
    }

    fn retain_probe_replies(&mut self, members: &BTreeSet<Address>) -> Result<(), ProgramsError> {
        self.loaded()?.maps.retain_probe_replies(members)
    }
}

/// Loads all programs in parallel: verification takes about one second of CPU time.
fn load_all(object: &mut Ebpf) -> Result<(), ProgramsError> {
    let mut programs: BTreeMap<&str, &mut Program> = object.programs_mut().collect();
    let names = ProgramKind::ALL.map(ProgramKind::name).into_iter();
    let names = names.chain(SocketProgram::ALL.map(SocketProgram::name)).chain([EARLY]);
    thread::scope(|scope| {
        let start = |name| (name, programs.remove(name).map(|program| scope.spawn(|| load(program))));
        let loading: Vec<_> = names.map(start).collect();
        for (name, thread) in loading {
            let thread = thread.ok_or(ProgramsError::Missing { name })?;
            let loaded = thread.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked));
            loaded.map_err(refused(name))?;
        }
        Ok(())
    })
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn refused(program: &'static str) -> impl FnOnce(ProgramError) -> ProgramsError {
    move |source| ProgramsError::Program { program, source: Box::new(source) }
}

/// Pins a loaded program; replaces an earlier pin.
fn pin_program(object: &Ebpf, name: &'static str, path: PathBuf) -> Result<(), ProgramsError> {
    let program = object.program(name).ok_or(ProgramsError::Missing { name })?;
    pin_over(program.fd().map_err(refused(name))?.as_fd(), path)
}

/// Pins an object; replaces an earlier pin.
fn pin_over(object: BorrowedFd<'_>, path: PathBuf) -> Result<(), ProgramsError> {
    let beside = path.with_extension("").with_file_name(match path.file_name() {
        Some(name) => format!("{}-new", name.to_string_lossy()),
        None => "new".to_owned(),
    });
    bpffs::remove(&beside)?;
    bpf::pin(object, &beside)
        .and_then(|()| std::fs::rename(&beside, &path))
        .map_err(|source| ProgramsError::Pin { action: "create", path, source })
}
