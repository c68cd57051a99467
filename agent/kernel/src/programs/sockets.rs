//! Programs of the host's own sockets, attached to the root of the cgroup hierarchy.
//!
//! They see the sockets of all containers too, and leave alone what is not of the network namespace
//! whose cookie is in `NETNS`.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use mesh_ebpf_types::SocketProgram;
use mesh_model::observed::AttachedProgram;
use mesh_sys::bpf;

use super::ProgramsError;
use super::bpffs::{self, Pins};

/// Where the second version of cgroups is mounted, as `/proc/self/mounts` says.
pub(super) fn cgroup_root() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let root =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find_map(|fields| match *fields {
            [_, path, "cgroup2", ..] => Some(PathBuf::from(path)),
            _ => None,
        });
    root.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 is mounted"))
}

/// Attaches a pinned program, or puts it in the place of the one that is there.
pub(super) fn attach(pins: &Pins, cgroup: &Path, kind: SocketProgram) -> Result<(), ProgramsError> {
    let failed = |source| ProgramsError::Sockets { action: "attach", program: kind.name(), source };
    let program = bpf::open_pin(&pins.socket_program(kind)).map_err(failed)?;
    let path = pins.socket_link(kind);
    match bpf::open_pin(&path) {
        Ok(link) => return bpf::link_update(link.as_fd(), program.as_fd()).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let cgroup = File::open(cgroup).map_err(failed)?;
    let link = bpf::cgroup_attach(program.as_fd(), cgroup.as_fd(), kind.attach_type()).map_err(failed)?;
    bpf::pin(link.as_fd(), &path).map_err(failed)
}

/// Detaches all, also after an error, and returns the first; what is not attached is no error.
pub(super) fn detach(pins: &Pins) -> Result<(), ProgramsError> {
    let results = SocketProgram::ALL.map(|kind| bpffs::detach(&pins.socket_link(kind)));
    results.into_iter().collect()
}

/// What is attached: `None` unless all are; current only if all are those that are pinned now.
pub(super) fn attached(pins: &Pins) -> Result<Option<AttachedProgram>, ProgramsError> {
    let mut state = AttachedProgram::Current;
    for kind in SocketProgram::ALL {
        let failed = |source| ProgramsError::Sockets { action: "query", program: kind.name(), source };
        let link = match bpf::open_pin(&pins.socket_link(kind)) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let (attached, running) = bpf::link_state(link.as_fd()).map_err(failed)?;
        if !attached {
            // Somebody detached it: it cannot be attached again.
            bpffs::remove(&pins.socket_link(kind))?;
            return Ok(None);
        }
        let pinned = match bpf::open_pin(&pins.socket_program(kind)) {
            Ok(program) => Some(bpf::program_id(program.as_fd()).map_err(failed)?),
            Err(_) => None,
        };
        if pinned != Some(running) {
            state = AttachedProgram::Earlier;
        }
    }
    Ok(Some(state))
}
