//! Attaching by filters of a clsact queueing discipline.
//!
//! A filter's priority and handle are fixed, so that it can be found and replaced without any
//! memory of it; the kernel swaps the program of a filter atomically. A pin of the program in
//! `links/` records that a device has one.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::programs::SchedClassifier;
use mesh_ebpf_types::ProgramKind;
use mesh_model::observed::Attachment;
use mesh_sys::bpf;
use mesh_sys::netlink::{RequestError, parse};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use nix::errno::Errno;

use super::bpffs::{self, Pins};
use crate::netlink;

/// Before filters that are added without a priority, which begin at 49152.
const PRIORITY: u16 = 0x4d00;
/// Handle of the queueing discipline.
const CLSACT_HANDLE: TcHandle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
/// Requests that are sent at once: a socket's receive buffer of the usual size has room for their
/// replies.
const BATCH: usize = 16;
/// All protocols (`linux/if_ether.h`).
const ETH_P_ALL: u16 = 3;

/// Attaches a program, or replaces the one that is attached.
pub(super) fn attach(pins: &Pins, attachment: Attachment, program: &SchedClassifier) -> io::Result<()> {
    let fd = program.fd().map_err(io::Error::other)?.as_fd();
    let requests = [
        (create_clsact(attachment), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL),
        (create_filter(attachment, fd.as_raw_fd()), NLM_F_ACK | NLM_F_CREATE),
    ];
    // The reply about the filter decides: the queueing discipline usually exists, and without it
    // the filter is refused.
    let filter = requests.len() - 1;
    netlink::open()?
        .batch(requests, |position, reply| if position == filter { reply.map(drop) } else { Ok(()) })?;
    let path = pins.link(attachment);
    bpffs::remove(&path).map_err(io::Error::other)?;
    bpf::pin(fd, &path)
}

/// Removes the filter; succeeds if it does not exist. The queueing discipline stays: another
/// program may use it.
pub(super) fn detach(attachment: Attachment) -> io::Result<()> {
    match netlink::open()?.request(RouteNetlinkMessage::DelTrafficFilter(filter(attachment)), 0) {
        Err(error) if is_absent(&error) => Ok(()),
        removed => Ok(removed?),
    }
}

/// Returns the ids of the filters' programs, without those whose filter or device does not exist.
pub(super) fn programs(attachments: &[Attachment]) -> io::Result<BTreeMap<Attachment, u32>> {
    let mut netlink = netlink::open()?;
    let mut programs = BTreeMap::new();
    for batch in attachments.chunks(BATCH) {
        let requests =
            batch.iter().map(|attachment| (RouteNetlinkMessage::GetTrafficFilter(filter(*attachment)), 0));
        netlink.batch(requests, |position, reply| {
            match reply {
                Ok(reply) => programs.extend(batch.get(position).copied().zip(program(reply)?)),
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
    }
    Ok(programs)
}

/// Whether the filter, the device, or its clsact does not exist.
fn is_absent(error: &RequestError) -> bool {
    matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV | Errno::EINVAL))
}

/// The request that creates the queueing discipline.
fn create_clsact(attachment: Attachment) -> RouteNetlinkMessage {
    let mut message = TcMessage::with_index(attachment.ifindex.cast_signed());
    message.header.handle = CLSACT_HANDLE;
    message.header.parent = TcHandle::CLSACT;
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    RouteNetlinkMessage::NewQueueDiscipline(message)
}

/// The request that creates the filter, or replaces its program.
fn create_filter(attachment: Attachment, program: i32) -> RouteNetlinkMessage {
    let options = [
        TcFilterBpfOption::ProgFd(program.cast_unsigned()),
        TcFilterBpfOption::ProgName(attachment.kind.name().to_owned()),
        // The program's return value is the verdict.
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let mut message = filter(attachment);
    message.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(options.map(TcOption::Bpf).into()),
    ];
    RouteNetlinkMessage::NewTrafficFilter(message)
}

/// A message about a device's filter.
fn filter(attachment: Attachment) -> TcMessage {
    let minor = if attachment.kind.is_egress() { TcHandle::MIN_EGRESS } else { TcHandle::MIN_INGRESS };
    let mut message = TcMessage::with_index(attachment.ifindex.cast_signed());
    message.header.handle = number(attachment.kind).into();
    message.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor };
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
    message
}

/// The id of a filter's program.
fn program(reply: &[u8]) -> Result<Option<u32>, RequestError> {
    let RouteNetlinkMessage::NewTrafficFilter(filter) = parse(reply)? else { return Ok(None) };
    let options = filter.attributes.into_iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    Ok(options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(id),
        _ => None,
    }))
}

/// The filter's handle.
const fn number(kind: ProgramKind) -> u32 {
    match kind {
        ProgramKind::Endpoint => 1,
        ProgramKind::Underlay => 2,
        ProgramKind::Overlay => 3,
        ProgramKind::Host => 4,
        ProgramKind::Wireguard => 5,
        ProgramKind::Egress => 6,
        ProgramKind::Published => 7,
        ProgramKind::PublishedLayer3 => 8,
        ProgramKind::EgressLayer3 => 9,
        ProgramKind::Guard => 10,
        ProgramKind::GuardLayer3 => 11,
    }
}
