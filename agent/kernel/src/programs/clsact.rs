//! Attaching by filters of a clsact queueing discipline (kernels before 6.6).
//!
//! A filter's priority and handle are fixed, so that it can be found and replaced without any memory of it; the kernel
//! swaps the program of a filter atomically. The pin of the program in `links/` is what tells that a device has one.

use std::io;
use std::os::fd::AsFd;

use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{Link, SchedClassifier, TcAttachType};
use mesh_ebpf_types::ProgramKind;
use mesh_model::observed::Attachment;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc;
use nix::net::if_::if_indextoname;

use super::bpffs::{self, Pins};
use super::syscall;

/// Before filters that are added without a priority, which begin at 49152.
const PRIORITY: u16 = 0x4d00;
const NLM_F_REQUEST: u16 = 1;
/// `TCA_BPF_ID`: the id of a filter's program.
const TCA_BPF_ID: u16 = 11;
/// `TCA_OPTIONS`: the nest of a filter's own attributes.
const TCA_OPTIONS: u16 = 2;
/// The parent of a device's ingress filters.
const INGRESS: u32 = 0xffff_fff2;
/// Lengths of `struct nlmsghdr` and `struct tcmsg`.
const NETLINK_HEADER: usize = 16;
const TC_HEADER: usize = 20;

/// Attaches a program, or puts it in the place of the one that is there.
pub(super) fn attach(pins: &Pins, attachment: Attachment, program: &mut SchedClassifier) -> io::Result<()> {
    let device = name(attachment.ifindex)?;
    match qdisc_add_clsact(&device) {
        Ok(()) => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(io::Error::other(error)),
    }
    let attached = if self::program(attachment)?.is_some() {
        program.attach_to_link(link(attachment, &device)?)
    } else {
        let options = NlOptions { priority: PRIORITY, handle: handle(attachment.kind), classid: None };
        program.attach_with_options(&device, TcAttachType::Ingress, TcAttachOptions::Netlink(options))
    };
    let link = attached.and_then(|id| program.take_link(id)).map_err(io::Error::other)?;
    // The filter stays: dropping the link would remove it.
    std::mem::forget(link);
    let path = pins.link(attachment);
    bpffs::remove(&path).map_err(io::Error::other)?;
    syscall::pin(program.fd().map_err(io::Error::other)?.as_fd(), &path)
}

/// Removes the filter; one that is not there is no error. The queueing discipline stays, it may be somebody else's.
pub(super) fn detach(attachment: Attachment) -> io::Result<()> {
    if program(attachment)?.is_none() {
        return Ok(());
    }
    link(attachment, &name(attachment.ifindex)?)?.detach().map_err(io::Error::other)
}

/// Id of the filter's program; `None` if there is no filter, or no device.
pub(super) fn program(attachment: Attachment) -> io::Result<Option<u32>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(attachment), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let malformed = || io::Error::other("the kernel's answer about a filter is malformed");
    match field(&answer, 4).map(u16::from_ne_bytes) {
        Some(libc::RTM_NEWTFILTER) => {
            let attributes = answer.get(NETLINK_HEADER + TC_HEADER..).ok_or_else(malformed)?;
            Ok(attribute(attributes, TCA_OPTIONS)
                .and_then(|options| attribute(options, TCA_BPF_ID))
                .and_then(|value| field(value, 0).map(u32::from_ne_bytes)))
        }
        Some(kind) if i32::from(kind) == libc::NLMSG_ERROR => {
            let code = field(&answer, NETLINK_HEADER).map(i32::from_ne_bytes).ok_or_else(malformed)?;
            // No such filter, no such device, no clsact on it.
            if matches!(-code, libc::ENOENT | libc::ENODEV | libc::EINVAL) {
                return Ok(None);
            }
            Err(io::Error::from_raw_os_error(-code))
        }
        _ => Err(malformed()),
    }
}

/// `RTM_GETTFILTER` for the one filter.
fn request(attachment: Attachment) -> [u8; NETLINK_HEADER + TC_HEADER] {
    let mut message = [0; NETLINK_HEADER + TC_HEADER];
    let protocol_all = u32::from(3_u16.to_be());
    let words = [
        (0, 36),
        (8, 1),
        (20, attachment.ifindex),
        (24, u32::from(number(attachment.kind))),
        (28, INGRESS),
        (32, u32::from(PRIORITY) << 16 | protocol_all),
    ];
    for (offset, word) in words {
        message[offset..offset + 4].copy_from_slice(&u32::to_ne_bytes(word));
    }
    message[4..6].copy_from_slice(&libc::RTM_GETTFILTER.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// The value of a netlink attribute.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    const FLAGS: u16 = 0xc000;
    loop {
        let length = usize::from(u16::from_ne_bytes(field(bytes, 0)?));
        let kind = u16::from_ne_bytes(field(bytes, 2)?) & !FLAGS;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn link(attachment: Attachment, device: &str) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(device, TcAttachType::Ingress, PRIORITY, handle(attachment.kind), None)
}

const fn handle(kind: ProgramKind) -> TcHandle {
    TcHandle::new(0, number(kind))
}

const fn number(kind: ProgramKind) -> u16 {
    match kind {
        ProgramKind::Endpoint => 1,
        ProgramKind::Underlay => 2,
        ProgramKind::Overlay => 3,
        ProgramKind::Host => 4,
    }
}

fn name(ifindex: u32) -> io::Result<String> {
    let name = if_indextoname(ifindex)?;
    name.into_string().map_err(io::Error::other)
}
