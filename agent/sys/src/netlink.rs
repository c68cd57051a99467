//! A netlink socket with one owner and one request at a time (netlink(7)).
//!
//! The kernel runs one dump per socket, so a socket has one owner. Requests block for
//! microseconds: the kernel handles a request within the `send`, and the reply is there when the
//! call returns.

use std::fmt::Display;
use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

/// Room for one `recvmsg`: the kernel fills at most 32 KiB in a dump.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Attempts at a dump that changes on the host interrupt.
const DUMP_ATTEMPTS: usize = 8;
/// The attribute of an acknowledgement that has the kernel's message.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Messages and attributes begin at multiples of so many bytes.
const ALIGNMENT: usize = 4;
/// Bytes of `struct nlmsghdr`.
pub const HEADER: usize = 16;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It did not reach the kernel, or the reply was malformed.
    #[error(transparent)]
    Transport(#[from] io::Error),
    /// The kernel refused.
    #[error("{errno}")]
    Refused {
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's message, if there is one.
        message: Option<String>,
    },
}

impl RequestError {
    /// The kernel's error number.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Transport(_) => None,
            Self::Refused { errno, .. } => Some(*errno),
        }
    }
}

impl From<RequestError> for io::Error {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Transport(error) => error,
            RequestError::Refused { errno, .. } => errno.into(),
        }
    }
}

/// A reply that is not what the protocol says.
fn malformed(what: impl Display) -> RequestError {
    let what = format!("the kernel's reply: {what}");
    RequestError::Transport(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// A socket in the network namespace of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket of a protocol (`NETLINK_ROUTE`, say) in the calling thread's namespace. It
    /// stays there, whichever thread uses it.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        // Without this the kernel ignores the filters of dumps.
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Requests a change and waits for the acknowledgement.
    pub fn request<M: NetlinkSerializable>(&mut self, message: M, flags: u16) -> Result<(), RequestError> {
        self.batch([(message, NLM_F_ACK | flags)], |_, reply| reply.map(drop))
    }

    /// Requests one object and returns what `read` makes of the whole reply.
    pub fn get<M: NetlinkSerializable, T>(
        &mut self,
        message: M,
        mut read: impl FnMut(&[u8]) -> Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        let mut found = None;
        self.batch([(message, 0)], |_, reply| {
            found = Some(read(reply?)?);
            Ok(())
        })?;
        found.ok_or_else(|| malformed("an acknowledgement without an object"))
    }

    /// Sends requests in one call. Passes each reply to `each`, with the position of its request.
    /// Every request must have one reply: an object, or with [`NLM_F_ACK`] an acknowledgement.
    pub fn batch<M: NetlinkSerializable>(
        &mut self,
        requests: impl IntoIterator<Item = (M, u16)>,
        mut each: impl FnMut(usize, Result<&[u8], RequestError>) -> Result<(), RequestError>,
    ) -> Result<(), RequestError> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for (message, flags) in requests {
            self.serialize(message, flags, &mut bytes);
        }
        let mut replies = self.sequence.wrapping_sub(first).wrapping_add(1);
        if replies == 0 {
            return Ok(());
        }
        self.send(&bytes)?;
        // An error of `each` is returned only at the end: the other replies must not be left for
        // the next request.
        let mut outcome = Ok(());
        let last = self.sequence;
        self.receive(|message, bytes| {
            let position = message.sequence_number().wrapping_sub(first);
            if position > last.wrapping_sub(first) {
                return ControlFlow::Continue(());
            }
            let reply = match message.message_type() {
                NLMSG_ERROR => acknowledged(message.flags(), bytes).map(|()| bytes),
                _ => Ok(bytes),
            };
            if outcome.is_ok() {
                outcome = each(position as usize, reply);
            }
            replies -= 1;
            if replies == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        outcome
    }

    /// Requests a list; repeats the request if a change on the host has interrupted the dump.
    /// `parse` gets each whole message.
    pub fn dump<M: NetlinkSerializable + Clone, T>(
        &mut self,
        message: &M,
        mut parse: impl FnMut(&[u8]) -> Result<Option<T>, RequestError>,
    ) -> Result<Vec<T>, RequestError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut items = Vec::new();
            let consistent = self.dump_once(message.clone(), |message| {
                items.extend(parse(message)?);
                Ok(())
            })?;
            if consistent {
                return Ok(items);
            }
        }
        let what = "the host's network keeps changing";
        Err(RequestError::Transport(io::Error::new(io::ErrorKind::ResourceBusy, what)))
    }

    /// Requests a list, and returns whether it is consistent.
    fn dump_once<M: NetlinkSerializable>(
        &mut self,
        message: M,
        mut each: impl FnMut(&[u8]) -> Result<(), RequestError>,
    ) -> Result<bool, RequestError> {
        let mut bytes = Vec::new();
        self.serialize(message, NLM_F_DUMP, &mut bytes);
        self.send(&bytes)?;
        let sequence = self.sequence;
        let mut consistent = true;
        // As in `batch`.
        let mut outcome = Ok(());
        self.receive(|message, bytes| {
            if message.sequence_number() != sequence {
                return ControlFlow::Continue(());
            }
            consistent &= message.flags() & NLM_F_DUMP_INTR == 0;
            let end = match message.message_type() {
                NLMSG_ERROR => acknowledged(message.flags(), bytes),
                NLMSG_DONE => done(bytes),
                _ => {
                    if outcome.is_ok() {
                        outcome = each(bytes);
                    }
                    return ControlFlow::Continue(());
                }
            };
            if outcome.is_ok() {
                outcome = end;
            }
            ControlFlow::Break(())
        })?;
        outcome.map(|()| consistent)
    }

    /// Appends a request with the next sequence number.
    fn serialize<M: NetlinkSerializable>(&mut self, message: M, flags: u16, bytes: &mut Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let (start, length) = (bytes.len(), message.buffer_len());
        bytes.resize(start + length.next_multiple_of(ALIGNMENT), 0);
        message.serialize(&mut bytes[start..start + length]);
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads messages until `each`, which gets every whole message, breaks.
    fn receive(
        &mut self,
        mut each: impl FnMut(NetlinkBuffer<&[u8]>, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), RequestError> {
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(malformed)?;
                let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
                let (bytes, following) = rest.split_at(length.next_multiple_of(ALIGNMENT).min(rest.len()));
                rest = following;
                if each(message, bytes).is_break() {
                    return Ok(());
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
        let attributes = request.get(echoed.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
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

/// Parses a whole message.
pub fn parse<M: NetlinkDeserializable>(bytes: &[u8]) -> Result<M, RequestError> {
    match NetlinkMessage::<M>::deserialize(bytes).map_err(malformed)?.payload {
        NetlinkPayload::InnerMessage(message) => Ok(message),
        _ => Err(malformed("not a message of this protocol")),
    }
}

/// Returns the value of an attribute among others.
pub fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == kind)?;
    let length = usize::from(found.length());
    found.into_inner().get(netlink_packet_core::NLA_HEADER_SIZE..length)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::LinkMessage;
    use netlink_sys::protocols::NETLINK_ROUTE;

    use super::*;

    fn loopback() -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 1;
        message
    }

    #[test]
    fn an_object_is_read_whole_and_its_attributes_are_found() {
        let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
        let index = netlink.get(RouteNetlinkMessage::GetLink(loopback()), |bytes| {
            // `struct ifinfomsg` is before the attributes; 3 is `IFLA_IFNAME`.
            assert_eq!(attribute(&bytes[HEADER + 16..], 3), Some(&b"lo\0"[..]));
            match parse(bytes)? {
                RouteNetlinkMessage::NewLink(link) => Ok(link.header.index),
                _ => Err(malformed("not a device")),
            }
        });
        assert_eq!(index.unwrap(), 1);
    }

    #[test]
    fn a_refusal_has_the_kernels_error_number_and_leaves_the_socket_usable() {
        let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
        let mut nothing = loopback();
        nothing.header.index = 0;
        let error = netlink.get(RouteNetlinkMessage::GetLink(nothing), |_| Ok(())).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EINVAL));
        netlink.get(RouteNetlinkMessage::GetLink(loopback()), |_| Ok(())).unwrap();
    }

    #[test]
    fn replies_of_a_batch_come_with_the_position_of_their_request() {
        let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
        let mut nothing = loopback();
        nothing.header.index = u32::MAX >> 1;
        let requests = [loopback(), nothing, loopback()];
        let mut replies = Vec::new();
        let requests = requests.map(|message| (RouteNetlinkMessage::GetLink(message), 0));
        let outcome = netlink.batch(requests, |position, reply| {
            replies.push((position, reply.map(drop).map_err(|error| error.errno())));
            Ok(())
        });
        outcome.unwrap();
        assert_eq!(replies, [(0, Ok(())), (1, Err(Some(Errno::ENODEV))), (2, Ok(()))]);
    }

    #[test]
    fn an_error_of_the_reader_leaves_nothing_for_the_next_request() {
        let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
        let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let failed = netlink.dump(&all, |_| Err::<Option<()>, _>(malformed("no")));
        assert!(matches!(failed, Err(RequestError::Transport(_))));
        let found = netlink.dump(&all, |bytes| Ok(Some(bytes.len()))).unwrap();
        assert!(!found.is_empty());
    }
}
