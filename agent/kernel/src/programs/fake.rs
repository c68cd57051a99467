//! The kernel's eBPF half in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use mesh_ebpf_types::{
    Address, Allowance, Connection, ConnectionKey, MapEntry, MapKey, PathKey, TableEntry, TableKey, Vni,
};

use super::{
    AttachedProgram, Attachment, Counters, MapSizes, ObservedPrograms, Pins, Programs, ProgramsError, Take,
    Visit,
};

/// [`Programs`] without a kernel: remembers what is applied. Tests set the fields to play the
/// kernel's part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FakePrograms {
    /// What is attached and in the maps.
    pub state: ObservedPrograms,
    /// What [`Programs::counters`] answers.
    pub counters: Counters,
    /// What [`Programs::probe_replies`] answers.
    pub probe_replies: BTreeMap<Address, Duration>,
    /// What [`Programs::paths`] answers.
    pub paths: BTreeMap<PathKey, Duration>,
    /// What is in the service tables.
    pub tables: BTreeMap<TableKey, TableEntry>,
    /// The entries of `BACKEND_TABLES` that have been written.
    pub backend_tables: BTreeMap<u32, u32>,
    /// How many entries `BACKEND_TABLES` has, if more than by default.
    pub backend_tables_size: u32,
    /// How many it can have; `None`: any number.
    pub backend_tables_limit: Option<u32>,
    /// What [`Programs::connections`] answers.
    pub connections: BTreeMap<Vni, u64>,
    /// The established flows.
    pub flows: BTreeMap<ConnectionKey, Connection>,
    /// What each network may still add to them.
    pub allowances: BTreeMap<Vni, Allowance>,
    /// Whether the programs of the host's sockets are attached.
    pub sockets: Option<AttachedProgram>,
    /// The devices that the XDP program is attached to.
    pub xdp: BTreeMap<u32, AttachedProgram>,
    /// Number of the error with which devices refuse the XDP program (errno(3)); `None`: they take
    /// it.
    pub xdp_refusal: Option<i32>,
}

impl FakePrograms {
    /// Makes every attachment one of an earlier process, as a restart does.
    pub fn restart(&mut self) {
        if self.state.pins == Pins::Current {
            self.state.pins = Pins::Earlier;
        }
        for program in self.state.attachments.values_mut() {
            *program = AttachedProgram::Earlier;
        }
        self.sockets = self.sockets.map(|_| AttachedProgram::Earlier);
        self.xdp.values_mut().for_each(|program| *program = AttachedProgram::Earlier);
    }

    fn loaded(&self) -> Result<(), ProgramsError> {
        if self.state.pins == Pins::Current { Ok(()) } else { Err(ProgramsError::NotLoaded) }
    }
}

impl Programs for FakePrograms {
    fn observe(&mut self) -> Result<ObservedPrograms, ProgramsError> {
        Ok(self.state.clone())
    }

    fn load(&mut self) -> Result<(), ProgramsError> {
        self.state.pins = Pins::Current;
        Ok(())
    }

    fn unload(&mut self) -> Result<(), ProgramsError> {
        *self = Self::default();
        Ok(())
    }

    fn put(&mut self, entry: &MapEntry) -> Result<(), ProgramsError> {
        self.loaded()?;
        self.state.entries.insert(entry.key(), *entry);
        Ok(())
    }

    fn delete(&mut self, key: &MapKey) -> Result<(), ProgramsError> {
        self.loaded()?;
        self.state.entries.remove(key);
        Ok(())
    }

    fn attach(&mut self, attachment: Attachment) -> Result<(), ProgramsError> {
        self.loaded()?;
        self.state.attachments.insert(attachment, AttachedProgram::Current);
        Ok(())
    }

    fn detach(&mut self, attachment: Attachment) -> Result<(), ProgramsError> {
        self.state.attachments.remove(&attachment);
        Ok(())
    }

    fn put_tables(&mut self, entries: &[TableEntry]) -> Result<(), ProgramsError> {
        self.loaded()?;
        self.tables.extend(entries.iter().map(|entry| (entry.key(), *entry)));
        Ok(())
    }

    fn delete_tables(&mut self, keys: &[TableKey]) -> Result<(), ProgramsError> {
        self.loaded()?;
        for key in keys {
            self.tables.remove(key);
        }
        Ok(())
    }

    fn tables(&mut self) -> Result<BTreeMap<TableKey, TableEntry>, ProgramsError> {
        Ok(self.tables.clone())
    }

    fn backend_tables_size(&mut self) -> Result<u32, ProgramsError> {
        self.loaded()?;
        Ok(MapSizes::default().backend_tables.max(self.backend_tables_size))
    }

    fn reserve_backend_tables(&mut self, entries: u32) -> Result<(), ProgramsError> {
        if self.backend_tables_limit.is_some_and(|limit| entries > limit) {
            let source = io::ErrorKind::OutOfMemory.into();
            return Err(ProgramsError::Table { action: "enlarge", map: "BACKEND_TABLES", source });
        }
        self.backend_tables_size = self.backend_tables_size.max(entries);
        Ok(())
    }

    fn connections_size(&mut self) -> Result<u32, ProgramsError> {
        self.loaded()?;
        Ok(MapSizes::default().connections)
    }

    fn write_backend_tables(&mut self, first: u32, backends: &[u32]) -> Result<(), ProgramsError> {
        self.loaded()?;
        self.backend_tables.extend((first..).zip(backends.iter().copied()));
        Ok(())
    }

    fn read_backend_tables(&mut self, first: u32, size: u32) -> Result<Vec<u32>, ProgramsError> {
        self.loaded()?;
        Ok((first..first + size)
            .map(|entry| self.backend_tables.get(&entry).copied().unwrap_or_default())
            .collect())
    }

    fn connections(&mut self) -> Result<BTreeMap<Vni, u64>, ProgramsError> {
        Ok(self.connections.clone())
    }

    fn connections_room(&mut self) -> Result<u64, ProgramsError> {
        self.connections_size().map(u64::from)
    }

    fn visit_connections(&mut self, visit: &mut Visit<'_>) -> Result<(), ProgramsError> {
        self.loaded()?;
        for (key, value) in &self.flows {
            visit(key, value);
        }
        Ok(())
    }

    fn forget_connections(&mut self, takes: &mut Take<'_>) -> Result<(), ProgramsError> {
        self.flows.retain(|key, value| !takes(key, value));
        Ok(())
    }

    fn allowances(&mut self) -> Result<BTreeMap<Vni, Allowance>, ProgramsError> {
        self.loaded()?;
        Ok(self.allowances.clone())
    }

    fn set_allowances(&mut self, allowances: &BTreeMap<Vni, u64>) -> Result<(), ProgramsError> {
        let allowance = |left: &u64| Allowance { left: i64::try_from(*left).unwrap_or(i64::MAX), refused: 0 };
        self.allowances = allowances.iter().map(|(vni, left)| (*vni, allowance(left))).collect();
        Ok(())
    }

    fn attach_sockets(&mut self) -> Result<(), ProgramsError> {
        self.loaded()?;
        self.sockets = Some(AttachedProgram::Current);
        Ok(())
    }

    fn detach_sockets(&mut self) -> Result<(), ProgramsError> {
        self.sockets = None;
        Ok(())
    }

    fn sockets(&mut self) -> Result<Option<AttachedProgram>, ProgramsError> {
        Ok(self.sockets)
    }

    fn attach_xdp(&mut self, ifindex: u32) -> Result<(), ProgramsError> {
        self.loaded()?;
        if let Some(number) = self.xdp_refusal {
            let source = io::Error::from_raw_os_error(number);
            return Err(ProgramsError::Xdp { action: "attach", ifindex, source });
        }
        self.xdp.insert(ifindex, AttachedProgram::Current);
        Ok(())
    }

    fn detach_xdp(&mut self, ifindex: u32) -> Result<(), ProgramsError> {
        self.xdp.remove(&ifindex);
        Ok(())
    }

    fn xdp(&mut self) -> Result<BTreeMap<u32, AttachedProgram>, ProgramsError> {
        Ok(self.xdp.clone())
    }

    fn counters(&mut self) -> Result<Counters, ProgramsError> {
        Ok(self.counters.clone())
    }

    fn forget_counters(&mut self, vni: Vni) -> Result<(), ProgramsError> {
        self.counters.retain(|(counted, _), _| *counted != vni);
        Ok(())
    }

    fn probe_replies(&mut self) -> Result<BTreeMap<Address, Duration>, ProgramsError> {
        Ok(self.probe_replies.clone())
    }

    fn paths(&mut self) -> Result<BTreeMap<PathKey, Duration>, ProgramsError> {
        Ok(self.paths.clone())
    }

    fn retain_probe_replies(&mut self, members: &BTreeSet<Address>) -> Result<(), ProgramsError> {
        self.probe_replies.retain(|member, _| members.contains(member));
        Ok(())
    }
}
