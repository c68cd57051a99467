//! The commands of bpf(2) that aya does not expose: tcx links by interface index, and what a link is attached to.

#![expect(unsafe_code, reason = "bpf(2) takes a pointer to a union")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;

const BPF_TCX_INGRESS: u32 = 46;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// What a tcx link is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TcxLink {
    /// The device; 0 once it is gone.
    pub(super) ifindex: u32,
    /// Id of the program that runs.
    pub(super) program: u32,
}

#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoRequest {
    fd: u32,
    length: u32,
    buffer: u64,
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

/// The start of `struct bpf_link_info`, as far as tcx fills it.
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

/// Attaches a program at a device's ingress, behind those that are there. Detached when the last descriptor and pin of
/// the link are gone.
pub(super) fn tcx_attach(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        program: descriptor(program),
        ifindex,
        attach_type: BPF_TCX_INGRESS,
        ..LinkCreate::default()
    };
    bpf_fd(BPF_LINK_CREATE, &mut attributes)
}

/// Replaces the program of a link, atomically.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes =
        LinkUpdate { link: descriptor(link), program: descriptor(program), ..LinkUpdate::default() };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// What a link is attached to; `None` if it is no tcx link.
pub(super) fn tcx_info(link: BorrowedFd<'_>) -> io::Result<Option<TcxLink>> {
    let mut info = LinkInfo::default();
    let length = u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?;
    let mut attributes = InfoRequest { fd: descriptor(link), length, buffer: (&raw mut info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok((info.kind == BPF_LINK_TYPE_TCX).then_some(TcxLink { ifindex: info.ifindex, program: info.program }))
}

/// Pins an object at a path on bpffs.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Object { path: path.as_ptr() as u64, fd: descriptor(object), flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Object { path: path.as_ptr() as u64, ..Object::default() };
    bpf_fd(BPF_OBJ_GET, &mut attributes)
}

fn descriptor(fd: BorrowedFd<'_>) -> u32 {
    // A descriptor that is open is not negative.
    fd.as_raw_fd().cast_unsigned()
}

fn bpf_fd<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(bpf(command, attributes)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads (and for some commands writes) `size_of::<T>()` bytes at `attributes`, which is a
    // `repr(C)` prefix of `union bpf_attr` for the command. Pointers inside it live until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
