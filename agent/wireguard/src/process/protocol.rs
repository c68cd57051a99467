//! The protocol between the daemon and the engine process: JSON messages, each preceded by its
//! length, over a unix socket.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use mesh_sys::descriptors;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{EngineConfig, EngineStatus};

/// Name of the socket in the run directory.
pub(super) const SOCKET: &str = "wireguard.sock";
/// Name of the lock file of the running engine in the run directory.
pub(super) const LOCK: &str = "wireguard.lock";
/// Longest message in bytes: enough for tens of thousands of peers.
const MAX_MESSAGE: u32 = 64 << 20;

/// A request from the daemon, or from a successor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Requests [`Response::Hello`].
    Hello,
    /// Applies a configuration.
    Apply(Box<EngineConfig>),
    /// Requests [`Response::Status`].
    Status,
    /// Requests device and sockets, and the end of the process.
    HandOver,
    /// Removes the device and ends the process.
    Stop,
}

/// The response.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Response {
    /// To `Hello`: the version with which the process was started, and its pid.
    Hello { version: String, pid: u32 },
    /// To `Apply` and `Stop`.
    Done,
    /// To `Status`.
    Status(Box<EngineStatus>),
    /// To `HandOver`: this many queues and sockets follow as descriptors, in this order.
    HandedOver { device: String, port: u16, queues: usize, sockets: usize },
    /// The request failed.
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
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    descriptors::send(stream, b"F", &borrowed).map(drop)
}

/// Receives what [`send_descriptors`] sent.
pub(super) fn receive_descriptors(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut received = Vec::new();
    descriptors::receive(stream, &mut [0], &mut received)?;
    Ok(received)
}
