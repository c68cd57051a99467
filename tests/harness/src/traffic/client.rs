//! Clients of [`super::WebServer`]: they know which server answered and what it saw of them.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use super::content::{CHUNK, Content};
use crate::{Error, Netns, Result};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
            sockopt::{ReceiveTimeout, ReuseAddr, SendTimeout, TcpRepair},
        },
        time::TimeVal,
    },
};

/// Time for one answer, and longest time without any progress, unless said otherwise.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long the end of a connection may take whose source is wanted again.
const ENDING: Duration = Duration::from_secs(1);

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub backend: String,
    /// The client's address and port, as the server saw them.
    pub client: SocketAddr,
}

/// Content that arrived whole.
#[derive(Debug, Clone)]
pub struct Download {
    /// Number of bytes.
    pub bytes: u64,
    /// From the request to the last byte.
    pub elapsed: Duration,
}

/// A connection that stays open between requests.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    target: SocketAddr,
}

/// Connects from `netns`, asks who answers, and closes.
pub fn ask(netns: &Netns, target: SocketAddr) -> Result<Answer> {
    netns
        .enter(|| request_once(target, None, PATIENCE))?
        .map_err(Error::system(format!("ask {target} from {}", netns.name())))
}

/// Likewise from a given address and port; one that an earlier connection used may be used again.
pub fn ask_from(netns: &Netns, source: SocketAddr, target: SocketAddr) -> Result<Answer> {
    netns
        .enter(|| request_once(target, Some(source), PATIENCE))?
        .map_err(Error::system(format!("ask {target} from {source} in {}", netns.name())))
}

impl Connection {
    /// Connects from `netns`.
    pub fn open(netns: &Netns, target: SocketAddr) -> Result<Self> {
        Self::open_from(netns, None, target)
    }

    /// Connects from a given address and port; one that an earlier connection used may be used
    /// again.
    pub fn open_from(netns: &Netns, source: Option<SocketAddr>, target: SocketAddr) -> Result<Self> {
        let stream = netns
            .enter(|| open(target, source, PATIENCE))?
            .map_err(Error::system(format!("connect to {target} from {}", netns.name())))?;
        Ok(Self { stream: BufReader::with_capacity(CHUNK, stream), target })
    }

    /// Its own address and port.
    pub fn local_address(&self) -> Result<SocketAddr> {
        self.stream.get_ref().local_addr().map_err(Error::system("read connection's address"))
    }

    /// Ends it as a crash would: nobody is told.
    pub fn crash(self) -> Result<()> {
        setsockopt(self.stream.get_ref(), TcpRepair, &1)
            .map_err(|errno| Error::system("crash")(io::Error::from(errno)))
    }

    /// Asks who answers.
    pub fn ask(&mut self) -> Result<Answer> {
        let answer = send(self.stream.get_mut(), "/", false).and_then(|()| read_answer(&mut self.stream));
        answer.map_err(Error::system(format!("ask {} on an open connection", self.target)))
    }

    /// Has `bytes` bytes sent and compares them with what the server is to send. Fails when nothing
    /// comes for 10 s.
    pub fn download(&mut self, bytes: u64) -> Result<Download> {
        let failed = || Error::system(format!("download {bytes} bytes from {}", self.target));
        let begin = Instant::now();
        send(self.stream.get_mut(), &format!("/bytes/{bytes}"), false).map_err(failed())?;
        let length = read_head(&mut self.stream).map_err(failed())?;
        let wrong = |at: u64| {
            Error::Traffic(format!("content from {} is not what was sent, at byte {at}", self.target))
        };
        if length != bytes {
            return Err(wrong(0));
        }
        let (mut content, mut wanted, mut got, mut left) =
            (Content::new(bytes), vec![0; CHUNK], vec![0; CHUNK], length);
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            content.fill(&mut wanted);
            self.stream.read_exact(&mut got[..len]).map_err(failed())?;
            if wanted[..len] != got[..len] {
                return Err(wrong(bytes - left));
            }
            left -= len as u64;
        }
        Ok(Download { bytes, elapsed: begin.elapsed() })
    }
}

/// Reads zeros from `target` as fast as they come for `duration`, in `netns`; how many came.
pub fn drink(netns: &Netns, target: SocketAddr, duration: Duration) -> Result<u64> {
    let failed = || Error::system(format!("download from {target} in {}", netns.name()));
    let mut stream = netns.enter(|| open(target, None, PATIENCE))?.map_err(failed())?;
    send(&mut stream, &format!("/zeros/{}", u64::MAX >> 1), true).map_err(failed())?;
    let (begin, mut chunk, mut bytes) = (Instant::now(), vec![0; CHUNK], 0);
    while begin.elapsed() < duration {
        match stream.read(&mut chunk).map_err(failed())? {
            0 => return Err(Error::Traffic(format!("{target} ended a download after {bytes} bytes"))),
            len => bytes += len as u64,
        }
    }
    Ok(bytes)
}

/// A datagram client that keeps its source port.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
}

impl UdpClient {
    /// Binds `source` in `netns`; port 0 takes a free one and keeps it.
    pub fn bind(netns: &Netns, source: SocketAddr) -> Result<Self> {
        Ok(Self { socket: super::udp::bind(netns, source)? })
    }

    /// Sends one datagram to `target`; its answer, or nothing when none comes within `timeout` or
    /// an ICMP error does. An answer from another address than was asked is none.
    pub fn ask(&self, target: SocketAddr, timeout: Duration) -> Result<Option<Answer>> {
        self.ask_with(b"who?", target, timeout)
    }

    /// Likewise with a datagram of that content.
    pub fn ask_with(&self, question: &[u8], target: SocketAddr, timeout: Duration) -> Result<Option<Answer>> {
        let failed = || Error::system(format!("ask {target}"));
        // Connected, it hears ICMP errors and nobody else's datagrams.
        self.socket.connect(target).map_err(failed())?;
        self.socket.set_read_timeout(Some(timeout)).map_err(failed())?;
        if let Err(error) = self.socket.send(question) {
            return if is_no_answer(&error) { Ok(None) } else { Err(failed()(error)) };
        }
        self.answer(target)
    }

    /// Likewise with a datagram that `send` sends in its place, from the address given.
    pub fn ask_by(
        &self,
        target: SocketAddr,
        timeout: Duration,
        send: impl FnOnce(SocketAddr) -> Result<()>,
    ) -> Result<Option<Answer>> {
        let failed = || Error::system(format!("ask {target}"));
        self.socket.connect(target).map_err(failed())?;
        self.socket.set_read_timeout(Some(timeout)).map_err(failed())?;
        send(self.socket.local_addr().map_err(failed())?)?;
        self.answer(target)
    }

    fn answer(&self, target: SocketAddr) -> Result<Option<Answer>> {
        let failed = || Error::system(format!("ask {target}"));
        let mut buffer = [0; 512];
        match self.socket.recv(&mut buffer) {
            Ok(len) => parse(&String::from_utf8_lossy(&buffer[..len])).map(Some).map_err(failed()),
            Err(error) if is_no_answer(&error) => Ok(None),
            Err(error) => Err(failed()(error)),
        }
    }
}

/// What a missing answer looks like: silence, or the ICMP error of an earlier datagram or this one.
fn is_no_answer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, WouldBlock};
    matches!(error.kind(), WouldBlock | ConnectionRefused | HostUnreachable | NetworkUnreachable)
}

/// One connection, one request, in the calling thread's namespace; the server closes first.
pub(super) fn request_once(
    target: SocketAddr,
    source: Option<SocketAddr>,
    timeout: Duration,
) -> io::Result<Answer> {
    let mut stream = open(target, source, timeout)?;
    send(&mut stream, "/", true)?;
    let mut text = String::with_capacity(256);
    stream.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").ok_or_else(|| unexpected(&text))?;
    parse(body)
}

/// Connects in the calling thread's namespace; every later step on the stream has the same
/// time-out.
fn open(target: SocketAddr, source: Option<SocketAddr>, timeout: Duration) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit =
        TimeVal::new(i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX), timeout.subsec_micros().into());
    setsockopt(&socket, SendTimeout, &limit)?;
    setsockopt(&socket, ReceiveTimeout, &limit)?;
    if let Some(source) = source {
        setsockopt(&socket, ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(source))?;
    }
    let deadline = Instant::now() + ENDING;
    loop {
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(target)) {
            // An earlier connection from there has been closed, and its end is not yet
            // acknowledged.
            Err(Errno::EADDRNOTAVAIL) if source.is_some() && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result.map(|()| TcpStream::from(socket)).map_err(io::Error::from),
        }
    }
}

fn send(stream: &mut TcpStream, path: &str, close: bool) -> io::Result<()> {
    let connection = if close { "close" } else { "keep-alive" };
    let request = format!("GET {path} HTTP/1.1\r\nHost: mesh\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes())
}

fn read_answer(stream: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    let length = read_head(stream)?;
    let mut body = vec![0; usize::try_from(length).unwrap_or(0).min(CHUNK)];
    stream.read_exact(&mut body)?;
    parse(&String::from_utf8_lossy(&body))
}

/// Reads up to the body; its length.
fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<u64> {
    let mut length = None;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line == "\r\n" {
            return length.ok_or_else(|| unexpected("no Content-Length"));
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().ok();
        }
    }
}

/// Reads `NAME CLIENT`.
fn parse(body: &str) -> io::Result<Answer> {
    let (backend, client) = body.trim_end().split_once(' ').ok_or_else(|| unexpected(body))?;
    let client = client.parse().map_err(|_| unexpected(body))?;
    Ok(Answer { backend: backend.to_owned(), client })
}

fn unexpected(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer {text:?}"))
}
