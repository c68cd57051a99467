//! Programs at devices: pinned tcx links, or filters of clsact ([`AttachMethod`]).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use aya::programs::{ProgramError, SchedClassifier};
use mesh_model::observed::Attachment;
use mesh_sys::bpf;

use super::attach_method::AttachMethod;
use super::bpffs::{self, Pins};
use super::{ProgramsError, clsact};

/// Attaches a program, or replaces the attached one.
pub(super) fn attach(
    method: AttachMethod,
    pins: &Pins,
    attachment: Attachment,
    program: &SchedClassifier,
) -> Result<(), ProgramsError> {
    let failed = failed("attach", attachment);
    match method.at(attachment.kind) {
        AttachMethod::Tcx => tcx_attach(pins, attachment, program).map_err(failed),
        AttachMethod::Clsact => clsact::attach(pins, attachment, program).map_err(failed),
    }
}

/// Detaches a program; succeeds if it is not attached.
pub(super) fn detach(method: AttachMethod, pins: &Pins, attachment: Attachment) -> Result<(), ProgramsError> {
    if method.at(attachment.kind) == AttachMethod::Clsact {
        clsact::detach(attachment).map_err(failed("detach", attachment))?;
    }
    bpffs::detach(&pins.link(attachment))
}

/// Returns the ids of attached programs, without devices that have none or no longer exist.
pub(super) fn programs(
    method: AttachMethod,
    pins: &Pins,
    attachments: &[Attachment],
) -> Result<BTreeMap<Attachment, u32>, ProgramsError> {
    let of_filters = attachments.iter().copied();
    let of_filters: Vec<_> =
        of_filters.filter(|attachment| method.at(attachment.kind) == AttachMethod::Clsact).collect();
    let mut programs = match of_filters.first() {
        Some(first) => clsact::programs(&of_filters).map_err(failed("query", *first))?,
        None => BTreeMap::new(),
    };
    for attachment in attachments {
        // Where there should be a filter, an earlier process may have left a link: it works until a
        // filter replaces it.
        if !programs.contains_key(attachment)
            && let Some((_, program)) = tcx_link(pins, *attachment).map_err(failed("query", *attachment))?
        {
            programs.insert(*attachment, program);
        }
    }
    Ok(programs)
}

fn tcx_attach(pins: &Pins, attachment: Attachment, program: &SchedClassifier) -> io::Result<()> {
    let program = descriptor(program).map_err(io::Error::other)?;
    if let Some((link, _)) = tcx_link(pins, attachment)? {
        return bpf::link_update(link.as_fd(), program);
    }
    let path = pins.link(attachment);
    bpffs::remove(&path).map_err(io::Error::other)?;
    let link = bpf::tcx_attach(program, attachment.ifindex, attachment.kind.is_egress())?;
    bpf::pin(link.as_fd(), &path)
}

/// The pinned link and its program's id, if it is attached to the device.
fn tcx_link(pins: &Pins, attachment: Attachment) -> io::Result<Option<(std::os::fd::OwnedFd, u32)>> {
    let link = match bpf::open_pin(&pins.link(attachment)) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // A pin of something else (a filter's program) counts as none.
    let Ok(Some(info)) = bpf::tcx_info(link.as_fd()) else { return Ok(None) };
    Ok((info.ifindex == attachment.ifindex).then_some((link, info.program)))
}

fn failed(action: &'static str, attachment: Attachment) -> impl Fn(io::Error) -> ProgramsError {
    let Attachment { ifindex, kind } = attachment;
    move |source| ProgramsError::Attach { action, kind, ifindex, source }
}

/// A program's descriptor.
fn descriptor(program: &SchedClassifier) -> Result<BorrowedFd<'_>, ProgramError> {
    Ok(program.fd()?.as_fd())
}
