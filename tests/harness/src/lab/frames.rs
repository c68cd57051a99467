//! A program that lets everything pass (XDP), for the bridge's ports: only a veth end with one is
//! woken for what the other end's driver sends.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::libc;

use crate::{Error, Netns, Result};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// `r0 = XDP_PASS; exit`, as instructions of eBPF (RFC 9669).
const PASS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log: [u64; 3],
}

/// The same for `BPF_OBJ_PIN`.
#[repr(C)]
#[derive(Default)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Attaches the program to each of the devices, which keep it. `pin` is a path on bpffs that nobody
/// else has.
pub(super) fn attach(netns: &Netns, devices: &[&str], pin: &Path) -> Result<()> {
    let pinned = Pinned::new(pin).map_err(Error::system("pin a program"))?;
    for device in devices {
        let path = pinned.0.to_string_lossy().into_owned();
        netns.run(["ip", "link", "set", "dev", device, "xdpdrv", "pinned", &path])?.ok()?;
    }
    Ok(())
}

/// The program's pin, as long as this lives.
struct Pinned(PathBuf);

impl Pinned {
    fn new(path: &Path) -> io::Result<Self> {
        let mut load = Load {
            kind: BPF_PROG_TYPE_XDP,
            count: 2,
            instructions: PASS.as_ptr() as u64,
            licence: c"GPL".as_ptr() as u64,
            ..Load::default()
        };
        let program = i32::try_from(bpf(BPF_PROG_LOAD, &mut load)?).map_err(io::Error::other)?;
        #[expect(unsafe_code, reason = "the kernel answers with a number")]
        // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let name = std::ffi::CString::new(path.to_string_lossy().as_bytes())?;
        let fd = program.as_raw_fd().cast_unsigned();
        bpf(BPF_OBJ_PIN, &mut Pin { path: name.as_ptr() as u64, fd, flags: 0 })?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

#[expect(unsafe_code, reason = "bpf(2) takes a pointer to a union")]
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes at `attributes`, which is a `repr(C)` prefix
    // of `union bpf_attr` for the command. Pointers inside it live until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
