//! A netlink socket with one owner and one request at a time.
//!
//! The kernel runs one dump per socket, and so a socket has one owner. Requests block, for
//! microseconds: the kernel works on them within the `send`, and its answer is there when that
//! returns.

use std::io;

use mesh_model::naming;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

use crate::KernelError;

/// Room for one `recvmsg`: the kernel fills at most 32 KiB in a dump.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Attempts at a dump that changes on the host interrupt.
const DUMP_ATTEMPTS: usize = 8;
/// The attribute of an acknowledgement that has the kernel's words.
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER: usize = 16;

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// It did not reach the kernel, or the reply was malformed.
    Transport(io::Error),
    /// The kernel refused.
    Refused {
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's message, if there is one.
        message: Option<String>,
    },
}

impl RequestError {
    /// The kernel's error number.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Transport(_) => None,
            Self::Refused { errno, .. } => Some(*errno),
        }
    }

    /// Adds the action that failed.
    pub(crate) fn during(self, action: impl Into<String>) -> KernelError {
        let action = action.into();
        match self {
            Self::Transport(source) => KernelError::Netlink { action, source },
            Self::Refused { errno, message } => {
                let source = io::Error::from(errno);
                match errno {
                    Errno::EPERM | Errno::EACCES => KernelError::Permission { action, source },
                    _ => KernelError::Refused { action, detail: message, source },
                }
            }
        }
    }
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        Self::Transport(error)
    }
}

fn malformed(what: &str) -> RequestError {
    RequestError::Transport(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the kernel's answer: {what}"),
    ))
}

/// A socket in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens one in the calling thread's namespace. It stays there, wherever it is used.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        // Without this the kernel ignores the filters of dumps.
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Requests a change and waits for the acknowledgement.
    pub(crate) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), RequestError> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.receive(|_, _| Ok(())).map(|_| ())
    }

    /// Requests one object and passes its payload to `each`.
    pub(crate) fn get(
        &mut self,
        message: RouteNetlinkMessage,
        each: impl FnMut(u16, &[u8]) -> Result<(), RequestError>,
    ) -> Result<(), RequestError> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        self.receive(each).map(|_| ())
    }

    /// Requests a list; repeats the request if a change on the host has interrupted the dump.
    pub(crate) fn dump<T>(
        &mut self,
        message: &RouteNetlinkMessage,
        mut parse: impl FnMut(&[u8]) -> Result<Option<T>, RequestError>,
    ) -> Result<Vec<T>, RequestError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut items = Vec::new();
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            let consistent = self.receive(|_, message| {
                items.extend(parse(message)?);
                Ok(())
            })?;
            if consistent {
                return Ok(items);
            }
        }
        Err(RequestError::Transport(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the host's network keeps changing",
        )))
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), RequestError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let sent = self.socket.send(&bytes, 0)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(RequestError::Transport(io::ErrorKind::WriteZero.into()))
        }
    }

    /// Reads to the end of the answer; `each` gets the type and the whole of every message in it.
    /// Tells whether the answer is consistent.
    fn receive(
        &mut self,
        mut each: impl FnMut(u16, &[u8]) -> Result<(), RequestError>,
    ) -> Result<bool, RequestError> {
        let mut consistent = true;
        // What `each` finds wrong is returned only at the end: the rest of the answer must not be
        // left for the next one.
        let mut outcome = Ok(());
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let message =
                    NetlinkBuffer::new_checked(rest).map_err(|error| malformed(&error.to_string()))?;
                let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
                let (bytes, following) = rest.split_at(length.next_multiple_of(4).min(rest.len()));
                rest = following;
                if message.sequence_number() != self.sequence {
                    continue;
                }
                consistent &= message.flags() & NLM_F_DUMP_INTR == 0;
                match message.message_type() {
                    NLMSG_ERROR => {
                        acknowledged(message.flags(), bytes)?;
                        return outcome.map(|()| consistent);
                    }
                    NLMSG_DONE => {
                        done(bytes)?;
                        return outcome.map(|()| consistent);
                    }
                    kind if outcome.is_ok() => outcome = each(kind, bytes),
                    _ => {}
                }
            }
        }
    }
}

/// Reads an acknowledgement: an error number, then the request or its header, then attributes.
fn acknowledged(flags: u16, bytes: &[u8]) -> Result<(), RequestError> {
    let Some(errno) = error_number(bytes)? else { return Ok(()) };
    let mut message = None;
    if flags & NLM_F_ACK_TLVS != 0 {
        let request = bytes.get(HEADER + 4..).unwrap_or_default();
        let echoed = if flags & NLM_F_CAPPED != 0 {
            HEADER
        } else {
            NetlinkBuffer::new_checked(request).map_or(HEADER, |request| request.length() as usize)
        };
        let attributes = request.get(echoed.next_multiple_of(4)..).unwrap_or_default();
        for attribute in NlasIterator::new(attributes).flatten() {
            if attribute.kind() == NLMSGERR_ATTR_MSG {
                let text = attribute.value().split(|byte| *byte == 0).next().unwrap_or_default();
                message = Some(String::from_utf8_lossy(text).trim_end_matches('.').to_owned());
            }
        }
    }
    Err(RequestError::Refused { errno, message })
}

/// Reads the end of a dump, which may carry an error number.
fn done(bytes: &[u8]) -> Result<(), RequestError> {
    match error_number(bytes) {
        Ok(Some(errno)) => Err(RequestError::Refused { errno, message: None }),
        _ => Ok(()),
    }
}

/// Reads the error number after a message's header, which is negative there; 0 is no error.
fn error_number(bytes: &[u8]) -> Result<Option<Errno>, RequestError> {
    let number = bytes.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
    let number = number.ok_or_else(|| malformed("an acknowledgement is cut short"))?;
    let number = i32::from_ne_bytes(number).wrapping_neg();
    Ok((number != 0).then(|| Errno::from_raw(number)))
}

/// Reads a message that the packet library knows.
pub(crate) fn parse(bytes: &[u8]) -> Result<RouteNetlinkMessage, RequestError> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
        .map_err(|error| malformed(&error.to_string()))?;
    match message.payload {
        NetlinkPayload::InnerMessage(message) => Ok(message),
        _ => Err(malformed("not a routing message")),
    }
}

/// Returns the kind of a device by its name in netlink.
pub(crate) fn kind(name: &[u8]) -> naming::Kind {
    match name {
        b"veth" => naming::Kind::Veth,
        b"vxlan" => naming::Kind::Vxlan,
        b"wireguard" => naming::Kind::Wireguard,
        b"tun" => naming::Kind::Tun,
        _ => naming::Kind::Other,
    }
}
