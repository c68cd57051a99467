//! The protocol between an agent and its name server process: requests and responses in JSON, each
//! preceded by its length, some with descriptors.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use mesh_dns::{Change, Sockets};
use mesh_sys::descriptors;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Descriptors in one message: a pair of sockets.
const PAIR: usize = 2;
/// Bytes of the length field.
const LENGTH: usize = 4;
/// Longest message in bytes: enough for a hundred thousand names.
const MAX_MESSAGE: usize = 256 << 20;

/// A request from the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Requests program and served addresses: [`Answer::Hello`].
    Hello,
    /// Changes the zones. `from_nothing`: the change is relative to no zones.
    Zones { change: Change, from_nothing: bool },
    /// Serve a network on the address of the sockets in this message.
    Serve { network: String },
    /// Stop serving a network.
    Stop { network: String },
    /// Requests a copy of each address's sockets: one [`Answer::Sockets`] for each, then
    /// [`Answer::Done`].
    Give,
    /// Requests the statistics of each network: [`Answer::Status`].
    Status,
    /// Answer pending queries, accept no more, and end: another process serves the sockets.
    Retire,
    /// End immediately.
    End,
}

/// A response of the process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Hello {
        program: Program,
        served: Vec<(String, IpAddr)>,
    },
    /// The sockets are in this message.
    Sockets {
        network: String,
    },
    Status(BTreeMap<String, Counts>),
    Done,
    Failed(String),
}

/// The program of a process: its file and settings. Another file, or an overwritten one, is another
/// version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Program {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    resolv_conf: PathBuf,
}

impl Program {
    /// Returns the program of this process.
    pub(super) fn own(resolv_conf: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let file = std::fs::metadata("/proc/self/exe")?;
        Ok(Self {
            device: file.dev(),
            inode: file.ino(),
            modified: (file.mtime(), file.mtime_nsec()),
            resolv_conf: resolv_conf.to_owned(),
        })
    }
}

/// [`mesh_dns::Status`] for transmission.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Counts {
    queries: u64,
    forwarded: u64,
    failed: u64,
    malformed: u64,
}

impl From<mesh_dns::Status> for Counts {
    fn from(status: mesh_dns::Status) -> Self {
        let mesh_dns::Status { queries, forwarded, failed, malformed } = status;
        Self { queries, forwarded, failed, malformed }
    }
}

impl From<Counts> for mesh_dns::Status {
    fn from(counts: Counts) -> Self {
        let Counts { queries, forwarded, failed, malformed } = counts;
        Self { queries, forwarded, failed, malformed }
    }
}

/// Sends one message with its sockets.
pub(super) fn send<T: Serialize>(
    stream: &UnixStream,
    message: &T,
    sockets: Option<&Sockets>,
) -> io::Result<()> {
    let payload = serde_json::to_vec(message)?;
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?.to_be_bytes();
    let fds: Vec<BorrowedFd<'_>> =
        sockets.iter().flat_map(|sockets| [sockets.udp.as_fd(), sockets.tcp.as_fd()]).collect();
    let sent = descriptors::send(stream, &length, &fds)?;
    let mut stream = stream;
    stream.write_all(&length[sent..])?;
    stream.write_all(&payload)
}

/// Receives one message; `None` at the end of the connection.
pub(super) fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<(T, Option<Sockets>)>> {
    let mut length = [0; LENGTH];
    let (mut filled, mut fds) = (0, Vec::new());
    while filled < LENGTH {
        match (descriptors::receive(stream, &mut length[filled..], &mut fds)?, filled) {
            (0, 0) => return Ok(None),
            (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
            (bytes, _) => filled += bytes,
        }
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(strange());
    }
    let (mut payload, mut stream) = (Vec::new(), stream);
    Read::by_ref(&mut stream).take(length as u64).read_to_end(&mut payload)?;
    if payload.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((serde_json::from_slice(&payload)?, pair(fds)?)))
}

fn pair(fds: Vec<OwnedFd>) -> io::Result<Option<Sockets>> {
    if fds.is_empty() {
        return Ok(None);
    }
    let [udp, tcp]: [OwnedFd; PAIR] = fds.try_into().map_err(|_| strange())?;
    Ok(Some(Sockets { udp: UdpSocket::from(udp), tcp: TcpListener::from(tcp) }))
}

/// Returns the error for a violation of this protocol.
pub(super) fn strange() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the name server's process gave a strange message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_arrive_with_their_message() {
        let (one, other) = UnixStream::pair().unwrap();
        let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = sockets.udp.local_addr().unwrap();
        send(&one, &Request::Hello, None).unwrap();
        send(&one, &Request::Serve { network: "app".into() }, Some(&sockets)).unwrap();
        drop((one, sockets));
        assert!(matches!(receive(&other).unwrap(), Some((Request::Hello, None))));
        let Some((Request::Serve { network }, Some(sockets))) = receive(&other).unwrap() else { panic!() };
        assert_eq!((network.as_str(), sockets.udp.local_addr().unwrap()), ("app", address));
        assert!(receive::<Request>(&other).unwrap().is_none());
    }

    #[test]
    fn a_truncated_or_too_long_message_is_an_error() {
        let (mut one, other) = UnixStream::pair().unwrap();
        one.write_all(&[0, 0, 0, 9, b'"']).unwrap();
        drop(one);
        assert!(receive::<Request>(&other).is_err());
        let (mut one, other) = UnixStream::pair().unwrap();
        one.write_all(&[0xff; 4]).unwrap();
        assert!(receive::<Request>(&other).is_err());
    }
}
