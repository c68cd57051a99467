//! TCP transfers whose content is checked at both ends.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::content::{CHUNK, Content, hex};
use crate::{Error, Netns, Result, poll_until};

/// Longest time without any progress.
const STALL: Duration = Duration::from_secs(10);

/// A listener that takes one connection and reads it to its end.
#[derive(Debug)]
pub struct TcpSink {
    address: SocketAddr,
    reader: JoinHandle<Result<TcpReceived>>,
}

/// What a [`TcpSink`] received.
#[derive(Debug, Clone)]
pub struct TcpReceived {
    /// Who connected.
    pub peer: SocketAddr,
    /// Number of bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes, in hexadecimal.
    pub sha256: String,
}

/// A transfer seen from both ends.
#[derive(Debug, Clone)]
pub struct TransferReport {
    /// Bytes that arrived.
    pub bytes: u64,
    /// SHA-256 of both what was sent and what arrived, in hexadecimal.
    pub sha256: String,
    /// Who connected, as the receiver saw it.
    pub peer: SocketAddr,
    /// From before the connection until all had arrived.
    pub elapsed: Duration,
}

impl TcpSink {
    /// Listens in `netns`; port 0 takes a free one.
    pub fn listen(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let listener = netns
            .enter(|| TcpListener::bind(address))?
            .map_err(Error::system(format!("listen on {address} in {}", netns.name())))?;
        listener.set_nonblocking(true).map_err(Error::system("set up listener"))?;
        let address = listener.local_addr().map_err(Error::system("read listener's address"))?;
        Ok(Self { address, reader: thread::spawn(move || receive(&listener)) })
    }

    /// Address and port listened on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the end of the connection. Fails when none comes within 10 s, or one makes no
    /// progress for so long.
    pub fn finish(self) -> Result<TcpReceived> {
        match self.reader.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Connects from `netns` to `target`, sends `bytes` bytes that depend on `seed`, and returns their
/// SHA-256.
pub fn tcp_send(netns: &Netns, target: SocketAddr, bytes: u64, seed: u64) -> Result<String> {
    let failed = |action: &str| Error::system(format!("{action} {target} from {}", netns.name()));
    let mut stream =
        netns.enter(|| TcpStream::connect_timeout(&target, STALL))?.map_err(failed("connect to"))?;
    stream.set_write_timeout(Some(STALL)).map_err(failed("set up connection to"))?;
    let (mut content, mut digest, mut left) = (Content::new(seed), Sha256::new(), bytes);
    let mut chunk = vec![0; CHUNK];
    while left > 0 {
        let len = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        content.fill(&mut chunk);
        stream.write_all(&chunk[..len]).map_err(failed("send to"))?;
        digest.update(&chunk[..len]);
        left -= len as u64;
    }
    stream.shutdown(Shutdown::Write).map_err(failed("end connection to"))?;
    Ok(hex(&digest.finalize()))
}

/// Sends `bytes` bytes from `client` to a listener on `server_address` in `server` and compares
/// both ends.
pub fn tcp_transfer(
    client: &Netns,
    server: &Netns,
    server_address: IpAddr,
    bytes: u64,
) -> Result<TransferReport> {
    let sink = TcpSink::listen(server, SocketAddr::new(server_address, 0))?;
    let begin = Instant::now();
    let sent = tcp_send(client, sink.address(), bytes, bytes)?;
    let received = sink.finish()?;
    let elapsed = begin.elapsed();
    if (received.bytes, &received.sha256) != (bytes, &sent) {
        return Err(Error::Traffic(format!(
            "sent {bytes} bytes with SHA-256 {sent}, {} arrived with {}",
            received.bytes, received.sha256
        )));
    }
    Ok(TransferReport { bytes, sha256: sent, peer: received.peer, elapsed })
}

fn receive(listener: &TcpListener) -> Result<TcpReceived> {
    let (mut stream, peer) = poll_until(STALL, || listener.accept().ok())
        .ok_or_else(|| Error::Timeout { what: "a connection".to_owned(), after: STALL })?;
    let failed = || Error::system(format!("receive from {peer}"));
    stream.set_nonblocking(false).map_err(failed())?;
    stream.set_read_timeout(Some(STALL)).map_err(failed())?;
    let (mut digest, mut bytes, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK]);
    loop {
        match stream.read(&mut chunk).map_err(failed())? {
            0 => return Ok(TcpReceived { peer, bytes, sha256: hex(&digest.finalize()) }),
            len => {
                digest.update(&chunk[..len]);
                bytes += len as u64;
            }
        }
    }
}
