//! What the daemon and the engine process say to each other: JSON with its length before it, over a
//! unix socket.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{EngineConfig, EngineStatus};

/// Name of the socket in the run folder.
pub(super) const SOCKET: &str = "wireguard.sock";
/// Name of the file in the run folder that the running engine has locked.
pub(super) const LOCK: &str = "wireguard.lock";
/// Longest message: some tens of thousands of peers.
const MAX_MESSAGE: u32 = 64 << 20;
/// Most descriptors that are handed over at once.
const MAX_DESCRIPTORS: usize = 64;

/// What the daemon, or a successor, asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Who are you?
    Hello,
    /// Make this true.
    Apply(Box<EngineConfig>),
    /// How are you?
    Status,
    /// Give device and sockets to me and end.
    HandOver,
    /// Remove the device and end.
    Stop,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Response {
    /// To `Hello`: the version that the process was started with, and its pid.
    Hello { version: String, pid: u32 },
    /// To `Apply` and `Stop`.
    Done,
    /// To `Status`.
    Status(Box<EngineStatus>),
    /// To `HandOver`: so many queues and sockets follow as descriptors, in this order.
    HandedOver { device: String, port: u16, queues: usize, sockets: usize },
    /// It did not work.
    Failed(String),
}

/// Writes one message.
pub(super) fn write(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let len = u32::try_from(text.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    stream.write_all(&len.to_le_bytes())?;
    stream.write_all(&text)
}

/// Reads one message; `None` at the end of the stream.
pub(super) fn read<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<Option<T>> {
    let mut len = [0; 4];
    match stream.read_exact(&mut len) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let len = u32::from_le_bytes(len);
    if len > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
    }
    let mut text = Vec::new();
    stream.take(u64::from(len)).read_to_end(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}

/// Sends descriptors along with one byte.
pub(super) fn send_descriptors(stream: &UnixStream, descriptors: &[OwnedFd]) -> io::Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    sendmsg::<UnixAddr>(stream.as_raw_fd(), &[IoSlice::new(b"F")], &control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives what [`send_descriptors`] sent.
#[expect(unsafe_code, reason = "received descriptors come as numbers")]
pub(super) fn receive_descriptors(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us; nobody else knows of them.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(descriptors)
}
