//! The XDP program at the data-path device: a pinned link, in the driver's own mode.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use mesh_model::observed::AttachedProgram;
use mesh_sys::bpf::{self, DeviceLink};

use super::ProgramsError;
use super::bpffs::{self, Pins};

/// Attaches the pinned program, or puts it in the place of the one that is there.
pub(super) fn attach(pins: &Pins, ifindex: u32) -> Result<(), ProgramsError> {
    let failed = failed("attach", ifindex);
    let program = bpf::open_pin(&pins.xdp_program()).map_err(&failed)?;
    let path = pins.xdp_link(ifindex);
    match bpf::open_pin(&path) {
        Ok(link) if is_at(ifindex, bpf::xdp_info(link.as_fd()).map_err(&failed)?) => {
            return bpf::link_update(link.as_fd(), program.as_fd()).map_err(&failed);
        }
        // Of a device that is gone.
        Ok(_) => bpffs::remove(&path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let link = bpf::xdp_attach(program.as_fd(), ifindex).map_err(&failed)?;
    bpf::pin(link.as_fd(), &path).map_err(&failed)
}

/// Detaches a program; succeeds if it is not attached.
pub(super) fn detach(pins: &Pins, ifindex: u32) -> Result<(), ProgramsError> {
    bpffs::detach(&pins.xdp_link(ifindex))
}

/// Detaches this instance's XDP program from all devices. Continues after an error, and returns the
/// first one.
pub(super) fn detach_all(pins: &Pins) -> Result<(), ProgramsError> {
    let results: Vec<_> = pins.xdp_links()?.into_iter().map(|ifindex| detach(pins, ifindex)).collect();
    results.into_iter().collect()
}

/// The devices where one of this instance's is attached.
pub(super) fn attached(pins: &Pins) -> Result<BTreeMap<u32, AttachedProgram>, ProgramsError> {
    let mut attached = BTreeMap::new();
    for ifindex in pins.xdp_links()? {
        let failed = failed("query", ifindex);
        let link = match bpf::open_pin(&pins.xdp_link(ifindex)) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        let info = bpf::xdp_info(link.as_fd()).map_err(&failed)?;
        let Some(DeviceLink { program: running, .. }) = info.filter(|info| is_at(ifindex, Some(*info)))
        else {
            bpffs::remove(&pins.xdp_link(ifindex))?;
            continue;
        };
        let pinned = match bpf::open_pin(&pins.xdp_program()) {
            Ok(program) => Some(bpf::program_id(program.as_fd()).map_err(&failed)?),
            Err(_) => None,
        };
        let is_current = pinned == Some(running);
        attached
            .insert(ifindex, if is_current { AttachedProgram::Current } else { AttachedProgram::Earlier });
    }
    Ok(attached)
}

fn is_at(ifindex: u32, link: Option<DeviceLink>) -> bool {
    link.is_some_and(|link| link.ifindex == ifindex)
}

fn failed(action: &'static str, ifindex: u32) -> impl Fn(io::Error) -> ProgramsError {
    move |source| ProgramsError::Xdp { action, ifindex, source }
}
