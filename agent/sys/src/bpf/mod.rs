//! Commands of bpf(2) that aya does not offer, or offers only for objects that it has loaded: maps
//! in batches, links by interface index, what a link is attached to, pins of any object.
#![expect(unsafe_code, reason = "bpf(2) takes a pointer to a union")]

mod links;
mod maps;
mod programs;
mod words;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use self::links::{
    DeviceLink, cgroup_attach, link_detach, link_state, link_update, tcx_attach, tcx_info, xdp_attach,
    xdp_info,
};
pub use self::maps::{create_array, delete, has, lookup_batches, update_batch};
pub use self::programs::{Instruction, load_classifier, program_id, test_run};
pub use self::words::Words;

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

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

/// Pins an object at a path on bpffs.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Object { path: path.as_ptr() as u64, fd: descriptor(object), flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// Opens a pinned object.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Object { path: path.as_ptr() as u64, ..Object::default() };
    bpf_fd(BPF_OBJ_GET, &mut attributes)
}

/// Fills `info`, a prefix of the kernel's structure about an object of this kind.
fn info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let length = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut attributes =
        InfoRequest { fd: descriptor(object), length, buffer: std::ptr::from_mut(info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes).map(drop)
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
    // SAFETY: the kernel reads (and for some commands writes) `size_of::<T>()` bytes at
    // `attributes`, which is a `repr(C)` prefix of `union bpf_attr` for the command. Pointers
    // inside it live until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
