//! A TAP device with virtio headers and offloads (`Documentation/networking/tuntap.rst`,
//! `linux/if_tun.h`).
#![expect(unsafe_code, reason = "the ioctls of /dev/net/tun")]

use std::{
    fs::File,
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::fcntl::OFlag;

use crate::device::request;

/// Bytes of the header before each frame (`struct virtio_net_hdr`).
pub const HEADER: usize = 10;
const TUN: &str = "/dev/net/tun";
const CSUM: libc::c_ulong = 0x01;
const TSO4: libc::c_ulong = 0x02;
const TSO6: libc::c_ulong = 0x04;
const TSO_ECN: libc::c_ulong = 0x08;
const USO4: libc::c_ulong = 0x20;
const USO6: libc::c_ulong = 0x40;

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_interface, 0x4004_54ca, libc::ifreq);
    nix::ioctl_read_bad!(get_interface, 0x8004_54d2, libc::ifreq);
    nix::ioctl_write_int_bad!(set_offload, 0x4004_54d0);
    nix::ioctl_write_ptr_bad!(set_index, 0x4004_54da, libc::c_uint);
    nix::ioctl_write_ptr_bad!(set_header_size, 0x4004_54d8, libc::c_int);
}

/// The super-packets that a device accepts and emits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// None: every packet is at most the MTU, with its checksum complete.
    None,
    /// TCP, and UDP if the kernel supports it (6.2).
    All,
}

/// One queue of a TAP device. The device exists as long as one of its queues is open.
#[derive(Debug)]
pub struct Tap {
    file: File,
}

impl Tap {
    /// Makes the device `name`, which must not exist, with that interface index if one is given, in
    /// the calling thread's network namespace.
    pub fn create(name: &str, index: Option<u32>) -> io::Result<Self> {
        Self::open(name, libc::IFF_TUN_EXCL, index)
    }

    /// Opens one more queue of the device `name`.
    pub fn attach(name: &str) -> io::Result<Self> {
        Self::open(name, 0, None)
    }

    fn open(name: &str, exclusive: libc::c_int, index: Option<u32>) -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(TUN, flags, nix::sys::stat::Mode::empty())?;
        let mut request = request(name)?;
        let kind = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | exclusive;
        // The flags fit the 16 bits that the request has for them.
        request.ifr_ifru.ifru_flags = u16::try_from(kind).unwrap_or_default().cast_signed();
        let header = libc::c_int::try_from(HEADER).unwrap_or_default();
        // SAFETY: TUNSETIFINDEX reads an `unsigned int`, TUNSETIFF an `ifreq` and TUNSETVNETHDRSZ
        // an `int`; all live past the calls.
        unsafe {
            if let Some(index) = index {
                ioctl::set_index(fd.as_raw_fd(), &raw const index)?;
            }
            ioctl::set_interface(fd.as_raw_fd(), &raw const request)?;
            ioctl::set_header_size(fd.as_raw_fd(), &raw const header)?;
        }
        Ok(Self::from_fd(fd))
    }

    /// A queue that another process opened.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { file: File::from(fd) }
    }

    /// Whether the queue still belongs to a device. A device that is deleted loses its queues,
    /// whose descriptors stay open.
    pub fn is_attached(&self) -> bool {
        let Ok(mut answer) = request("any") else { return false };
        // SAFETY: TUNGETIFF fills an `ifreq` that lives past the call.
        unsafe { ioctl::get_interface(self.file.as_raw_fd(), &raw mut answer) }.is_ok()
    }

    /// Sets the offloads of the device; returns whether UDP super-packets are among them.
    pub fn offload(&self, offload: Offload) -> io::Result<bool> {
        let tcp = CSUM | TSO4 | TSO6 | TSO_ECN;
        let fd = self.file.as_raw_fd();
        let set = |bits: libc::c_ulong| {
            // The bits are few and small.
            let bits = libc::c_int::try_from(bits).unwrap_or_default();
            // SAFETY: TUNSETOFFLOAD takes its argument by value.
            unsafe { ioctl::set_offload(fd, bits) }
        };
        if offload == Offload::None {
            set(0)?;
            return Ok(false);
        }
        if set(tcp | USO4 | USO6).is_ok() {
            return Ok(true);
        }
        set(tcp)?;
        Ok(false)
    }

    /// Reads one frame with its virtio header; `None` when there is none now.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match nix::unistd::read(&self.file, buffer) {
            Ok(len) => Ok(Some(len)),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes one frame with its virtio header.
    pub fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(nix::sys::uio::writev(&self.file, slices)?)
    }

    /// Another handle of the same queue.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
