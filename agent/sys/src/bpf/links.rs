//! Links: programs at devices and cgroups.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::{bpf, bpf_fd, descriptor, info};

const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_LINK_TYPE_TCX: u32 = 11;
const BPF_XDP: u32 = 37;
const BPF_LINK_TYPE_XDP: u32 = 6;
/// Run by the driver, or refused.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// What a link of a device is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLink {
    /// The device; 0 once it is gone.
    pub ifindex: u32,
    /// Id of the program that runs.
    pub program: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The start of `struct bpf_link_info`, as far as tcx fills it; XDP ends it after the device.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    ifindex: u32,
    attach_type: u32,
}

/// Attaches a program at a device's ingress or egress, behind those that are there. Detached by
/// [`link_detach`], or some time after the last descriptor and pin of the link are gone.
pub fn tcx_attach(program: BorrowedFd<'_>, ifindex: u32, egress: bool) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        program: descriptor(program),
        ifindex,
        attach_type: if egress { BPF_TCX_EGRESS } else { BPF_TCX_INGRESS },
        ..LinkCreate::default()
    };
    bpf_fd(BPF_LINK_CREATE, &mut attributes)
}

/// Attaches an XDP program to a device whose driver runs it. Refused where another one is attached;
/// detached as by [`tcx_attach`].
pub fn xdp_attach(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        program: descriptor(program),
        ifindex,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
        ..LinkCreate::default()
    };
    bpf_fd(BPF_LINK_CREATE, &mut attributes)
}

/// Attaches a program to a cgroup and all below it, beside those that are there.
pub fn cgroup_attach(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        program: descriptor(program),
        ifindex: descriptor(cgroup),
        attach_type,
        ..LinkCreate::default()
    };
    bpf_fd(BPF_LINK_CREATE, &mut attributes)
}

/// Whether a link to a device or a cgroup is attached, and the id of its program.
pub fn link_state(link: BorrowedFd<'_>) -> io::Result<(bool, u32)> {
    let mut found = LinkInfo::default();
    info(link, &mut found)?;
    // Here a device's index begins, or a cgroup's id of 64 bits: 0 once it is detached. What
    // follows a device's index is 0 or, with an index of 0, means nothing.
    let is_device = matches!(found.kind, BPF_LINK_TYPE_TCX | BPF_LINK_TYPE_XDP);
    let attached = found.ifindex != 0 || (!is_device && found.attach_type != 0);
    Ok((attached, found.program))
}

/// Replaces the program of a link, atomically.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes =
        LinkUpdate { link: descriptor(link), program: descriptor(program), ..LinkUpdate::default() };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Detaches a link at once, whoever holds it. `InvalidInput` if it is no link, or the kernel is
/// older than 5.9.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &mut descriptor(link)).map(drop)
}

/// What a link is attached to; `None` if it is no tcx link.
pub fn tcx_info(link: BorrowedFd<'_>) -> io::Result<Option<DeviceLink>> {
    device_info(link, BPF_LINK_TYPE_TCX)
}

/// What a link is attached to; `None` if it is no XDP link.
pub fn xdp_info(link: BorrowedFd<'_>) -> io::Result<Option<DeviceLink>> {
    device_info(link, BPF_LINK_TYPE_XDP)
}

fn device_info(link: BorrowedFd<'_>, kind: u32) -> io::Result<Option<DeviceLink>> {
    let mut found = LinkInfo::default();
    info(link, &mut found)?;
    Ok((found.kind == kind).then_some(DeviceLink { ifindex: found.ifindex, program: found.program }))
}
