//! Attaching by filters of a clsact queueing discipline.
//!
//! A filter's priority and handle are fixed, so that it can be found and replaced without any
//! memory of it; the kernel swaps the program of a filter atomically. The pin of the program in
//! `links/` is what tells that a device has one.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::programs::SchedClassifier;
use mesh_ebpf_types::ProgramKind;
use mesh_model::observed::Attachment;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc;

use super::bpffs::{self, Pins};
use super::syscall;

/// Before filters that are added without a priority, which begin at 49152.
const PRIORITY: u16 = 0x4d00;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const TCA_KIND: u16 = 1;
/// The nest of a filter's own attributes.
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// What the program returns is the verdict.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
/// Parent (`TC_H_CLSACT`) and handle of the queueing discipline.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// The parents of a device's ingress and egress filters.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// Lengths of `struct nlmsghdr` and `struct tcmsg`.
const NETLINK_HEADER: usize = 16;
const TC_HEADER: usize = 20;
/// How many questions the kernel is asked at once: its answers have room in a socket's buffer of
/// the usual size.
const QUESTIONS: usize = 16;
const RECEIVE_BUFFER: usize = 16 * 1024;

/// Attaches a program, or puts it in the place of the one that is there.
pub(super) fn attach(pins: &Pins, attachment: Attachment, program: &SchedClassifier) -> io::Result<()> {
    let fd = program.fd().map_err(io::Error::other)?.as_fd();
    let mut requests = clsact(attachment);
    requests.extend(filter(attachment, fd.as_raw_fd()));
    let mut filtered = None;
    exchange(&requests, 2, |answer| {
        let error = answer.error()?;
        if answer.sequence()? == SEQUENCE_FILTER {
            filtered = Some(error);
        } else if !matches!(error, 0 | libc::EEXIST) {
            filtered.get_or_insert(error);
        }
        Ok(())
    })?;
    match filtered {
        Some(0) => {}
        Some(error) => return Err(io::Error::from_raw_os_error(error)),
        None => return Err(malformed()),
    }
    let path = pins.link(attachment);
    bpffs::remove(&path).map_err(io::Error::other)?;
    syscall::pin(fd, &path)
}

/// Removes the filter; one that is not there is no error. The queueing discipline stays, it may be
/// somebody else's.
pub(super) fn detach(attachment: Attachment) -> io::Result<()> {
    let request = Message::new(libc::RTM_DELTFILTER, NLM_F_ACK, SEQUENCE_FILTER, attachment);
    exchange(&request.finish(), 1, |answer| match answer.error()? {
        0 => Ok(()),
        error if is_absent(error) => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    })
}

/// Ids of the filters' programs; those of which there is no filter, or no device, are left out.
pub(super) fn programs(attachments: &[Attachment]) -> io::Result<BTreeMap<Attachment, u32>> {
    let mut programs = BTreeMap::new();
    for asked in attachments.chunks(QUESTIONS) {
        let mut requests = Vec::new();
        for (sequence, attachment) in (0..).zip(asked) {
            requests.extend(Message::new(libc::RTM_GETTFILTER, 0, sequence, *attachment).finish());
        }
        exchange(&requests, asked.len(), |answer| {
            let attachment = asked.get(answer.sequence()? as usize).ok_or_else(malformed)?;
            match answer.program()? {
                Ok(Some(id)) => drop(programs.insert(*attachment, id)),
                Ok(None) => {}
                Err(error) if is_absent(error) => {}
                Err(error) => return Err(io::Error::from_raw_os_error(error)),
            }
            Ok(())
        })?;
    }
    Ok(programs)
}

/// No such filter, no such device, no clsact on it.
const fn is_absent(error: i32) -> bool {
    matches!(error, libc::ENOENT | libc::ENODEV | libc::EINVAL)
}

const SEQUENCE_CLSACT: u32 = 1;
const SEQUENCE_FILTER: u32 = 2;

/// Makes the queueing discipline.
fn clsact(attachment: Attachment) -> Vec<u8> {
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let mut message = Message::new(libc::RTM_NEWQDISC, flags, SEQUENCE_CLSACT, attachment);
    message.header(CLSACT_HANDLE, CLSACT, 0);
    message.attribute(TCA_KIND, b"clsact\0");
    message.finish()
}

/// Makes the filter, or gives it another program.
fn filter(attachment: Attachment, program: i32) -> Vec<u8> {
    let mut message =
        Message::new(libc::RTM_NEWTFILTER, NLM_F_ACK | NLM_F_CREATE, SEQUENCE_FILTER, attachment);
    message.attribute(TCA_KIND, b"bpf\0");
    let mut name = attachment.kind.name().as_bytes().to_vec();
    name.push(0);
    let mut options = Message(Vec::new());
    options.attribute(TCA_BPF_FD, &program.to_ne_bytes());
    options.attribute(TCA_BPF_NAME, &name);
    options.attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    message.attribute(TCA_OPTIONS, &options.0);
    message.finish()
}

/// A request as it is written.
struct Message(Vec<u8>);

impl Message {
    /// About a device's filter.
    fn new(kind: u16, flags: u16, sequence: u32, attachment: Attachment) -> Self {
        let mut message = Self(vec![0; NETLINK_HEADER + TC_HEADER]);
        message.0[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.0[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        message.word(8, sequence);
        message.word(20, attachment.ifindex);
        let all_protocols = u32::from(3_u16.to_be());
        let parent = if attachment.kind.is_egress() { EGRESS } else { INGRESS };
        message.header(number(attachment.kind), parent, u32::from(PRIORITY) << 16 | all_protocols);
        message
    }

    fn header(&mut self, handle: u32, parent: u32, info: u32) {
        self.word(24, handle);
        self.word(28, parent);
        self.word(32, info);
    }

    fn word(&mut self, offset: usize, word: u32) {
        self.0[offset..offset + 4].copy_from_slice(&word.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        // All values are short.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.word(0, length);
        self.0
    }
}

/// One message of the kernel's.
struct Answer<'a>(&'a [u8]);

impl Answer<'_> {
    fn sequence(&self) -> io::Result<u32> {
        field(self.0, 8).map(u32::from_ne_bytes).ok_or_else(malformed)
    }

    fn kind(&self) -> io::Result<u16> {
        field(self.0, 4).map(u16::from_ne_bytes).ok_or_else(malformed)
    }

    /// The error number of an acknowledgement; 0 for success.
    fn error(&self) -> io::Result<i32> {
        if i32::from(self.kind()?) != libc::NLMSG_ERROR {
            return Err(malformed());
        }
        let error = field(self.0, NETLINK_HEADER).map(i32::from_ne_bytes).ok_or_else(malformed)?;
        Ok(error.wrapping_neg())
    }

    /// The id of a filter's program, or the error number.
    fn program(&self) -> io::Result<Result<Option<u32>, i32>> {
        if self.kind()? != libc::RTM_NEWTFILTER {
            return self.error().map(Err);
        }
        let attributes = self.0.get(NETLINK_HEADER + TC_HEADER..).ok_or_else(malformed)?;
        Ok(Ok(attribute(attributes, TCA_OPTIONS)
            .and_then(|options| attribute(options, TCA_BPF_ID))
            .and_then(|value| field(value, 0).map(u32::from_ne_bytes))))
    }
}

/// Sends requests in one go and takes as many answers. All of them are read, also after one of them
/// was an error.
fn exchange(
    requests: &[u8],
    answers: usize,
    mut each: impl FnMut(Answer<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(requests, 0)?;
    let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
    let mut outcome = Ok(());
    let mut left = answers;
    while left > 0 {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let length = field(rest, 0).map(u32::from_ne_bytes).ok_or_else(malformed)? as usize;
            let message = rest.get(..length).filter(|_| length >= NETLINK_HEADER).ok_or_else(malformed)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            outcome = outcome.and_then(|()| each(Answer(message)));
            left = left.saturating_sub(1);
        }
    }
    outcome
}

fn malformed() -> io::Error {
    io::Error::other("the kernel's answer about a filter is malformed")
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
