//! Errors of the eBPF half.

use std::io;
use std::path::PathBuf;

use mesh_ebpf_types::{MapKey, ProgramKind};

/// What can go wrong with programs, maps and attachments.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// bpffs is not mounted and could not be.
    #[error("cannot mount bpffs at {path}")]
    Mount {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pin, or a folder for pins, could not be made, read or removed.
    #[error("cannot {action} {path}")]
    Pin {
        /// What was tried: `create`, `read`, `detach`, `remove`.
        action: &'static str,
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Entries and attachments need [`super::Programs::load`] first.
    #[error("the eBPF programs are not loaded")]
    NotLoaded,
    /// The object could not be loaded: no permission, or a kernel that lacks what it needs.
    #[error("cannot load the eBPF programs")]
    Load(#[source] Box<aya::EbpfError>),
    /// The kernel refused a program.
    #[error("cannot load the eBPF program `{program}`")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// The object lacks a program or a map: it was built from another version of the sources.
    #[error("the eBPF object has no `{name}`")]
    Missing {
        /// What it lacks.
        name: &'static str,
    },
    /// A map could not be read or written.
    #[error("cannot {action} the eBPF map {map}")]
    Map {
        /// What was tried: `open`, `read`, `write`, `delete from`.
        action: &'static str,
        /// The map.
        map: &'static str,
        /// Why.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// A map has no room for another entry.
    #[error("the eBPF map {map} is full")]
    MapFull {
        /// The map.
        map: &'static str,
        /// What has no room.
        key: MapKey,
    },
    /// A service table could not be opened, read or written.
    #[error("cannot {action} the eBPF map {map}")]
    Table {
        /// What was tried: `open`, `read`, `write`, `delete from`, `enlarge`.
        action: &'static str,
        /// The map.
        map: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A service table has no room for more entries.
    #[error("the eBPF map {map} is full")]
    TableFull {
        /// The map.
        map: &'static str,
    },
    /// A program of the host's sockets could not be attached or asked for.
    #[error("cannot {action} the program `{program}` of the host's sockets")]
    Sockets {
        /// What was tried: `attach`, `query`.
        action: &'static str,
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The XDP program could not be attached or asked for.
    #[error("cannot {action} the XDP program at interface {ifindex}")]
    Xdp {
        /// What was tried: `attach`, `query`.
        action: &'static str,
        /// The device.
        ifindex: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program could not be attached or detached.
    #[error("cannot {action} the program `{}` at interface {ifindex}", .kind.name())]
    Attach {
        /// What was tried: `attach`, `detach`, `query`.
        action: &'static str,
        /// The program.
        kind: ProgramKind,
        /// The device.
        ifindex: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}
