//! A web server that says who it is and who asked.
//!
//! - `GET /`: `NAME CLIENT`, the server's name and the client's address and port as the server sees
//!   them.
//! - `GET /bytes/N`: N bytes of known content.
//! - `GET /zeros/N`: N zero bytes, which cost the server least.
//! - `GET /health`: 200, or 503 after [`WebServer::set_healthy`].
//! - Any datagram to the same port: `NAME CLIENT`.
//!
//! It keeps connections open unless asked not to (`Connection: close`), and then it is the first to
//! close, so that a client that asks often does not run out of ports.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::{EfdFlags, EventFd},
    socket::{Backlog, listen},
};

use super::content::{CHUNK, Content};
use crate::{Error, Netns, Result};

/// Longest request that is read; it is answered with 400 when it is longer.
const MAX_REQUEST: usize = 8 << 10;
/// What an event is about: the listener, the datagram socket, the end; from there on connections.
const LISTENER: u64 = 0;
const DATAGRAMS: u64 = 1;
const STOP: u64 = 2;
const FIRST_CONNECTION: u64 = 3;

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct WebServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: EventFd,
    healthy: AtomicBool,
    answered: AtomicU64,
}

impl WebServer {
    /// Listens in `netns` on all its addresses of both families, TCP and UDP, and calls itself
    /// `name`.
    pub fn start(netns: &Netns, name: &str, port: u16) -> Result<Self> {
        let (tcp, udp) = netns
            .enter(|| sockets(port))?
            .map_err(Error::system(format!("serve on port {port} in {}", netns.name())))?;
        Self::run(tcp, udp, name)
    }

    /// Likewise in the calling process's own namespace, and does not return while all goes well.
    pub fn serve(name: &str, port: u16) -> Result<()> {
        let (tcp, udp) = sockets(port).map_err(Error::system(format!("serve on port {port}")))?;
        let mut server = Self::run(tcp, udp, name)?;
        if let Some(thread) = server.thread.take() {
            thread.join().map_err(|_| Error::Traffic("the server panicked".to_owned()))?;
        }
        Ok(())
    }

    fn run(tcp: TcpListener, udp: UdpSocket, name: &str) -> Result<Self> {
        const ACTION: &str = "set up web server";
        let address = tcp.local_addr().map_err(Error::system(ACTION))?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(Error::system(ACTION))?;
        let shared = Arc::new(Shared { stop, healthy: AtomicBool::new(true), answered: AtomicU64::new(0) });
        let mut service = Service::new(name, tcp, udp, Arc::clone(&shared)).map_err(Error::system(ACTION))?;
        let thread = thread::spawn(move || service.run());
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What `GET /health` is to say from now on.
    pub fn set_healthy(&self, healthy: bool) {
        self.shared.healthy.store(healthy, Ordering::Relaxed);
    }

    /// Requests and datagrams answered so far, but for those about health.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        // It fails only when the count would overflow.
        let _ = self.shared.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Both sockets, for both families; port 0 takes one that is free for TCP.
fn sockets(port: u16) -> io::Result<(TcpListener, UdpSocket)> {
    let any = |port| SocketAddr::new(IpAddr::from([0u16; 8]), port);
    let tcp = TcpListener::bind(any(port))?;
    // The standard library's backlog is too short for a burst of connections.
    listen(&tcp, Backlog::MAXCONN)?;
    tcp.set_nonblocking(true)?;
    let udp = UdpSocket::bind(any(tcp.local_addr()?.port()))?;
    udp.set_nonblocking(true)?;
    Ok((tcp, udp))
}

/// The server's own side: one thread, all sockets.
struct Service {
    name: String,
    tcp: TcpListener,
    udp: UdpSocket,
    epoll: Epoll,
    shared: Arc<Shared>,
    connections: BTreeMap<u64, Conversation>,
    next: u64,
}

/// What follows an answer.
enum Body {
    Known(Content),
    Zeros,
}

/// One client's connection.
struct Conversation {
    stream: TcpStream,
    client: SocketAddr,
    request: Vec<u8>,
    answer: Vec<u8>,
    /// Bytes of `answer` that are sent.
    sent: usize,
    /// Content that follows the answer.
    content: Option<(Body, u64)>,
    close: bool,
    /// Waits for room to send instead of a request.
    blocked: bool,
}

impl Service {
    fn new(name: &str, tcp: TcpListener, udp: UdpSocket, shared: Arc<Shared>) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&tcp, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        epoll.add(&udp, EpollEvent::new(EpollFlags::EPOLLIN, DATAGRAMS))?;
        epoll.add(shared.stop.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let name = name.to_owned();
        Ok(Self { name, tcp, udp, epoll, shared, connections: BTreeMap::new(), next: FIRST_CONNECTION })
    }

    fn run(&mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            // Only a signal interrupts it.
            let count = self.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
            for event in &events[..count] {
                match event.data() {
                    LISTENER => self.accept(),
                    DATAGRAMS => self.answer_datagrams(),
                    STOP => return,
                    connection => self.converse(connection),
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, client)) = self.tcp.accept() {
            let number = self.next;
            self.next += 1;
            let ready = stream.set_nonblocking(true).is_ok()
                && stream.set_nodelay(true).is_ok()
                && self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number)).is_ok();
            if ready {
                self.connections.insert(number, Conversation::new(stream, client));
            }
        }
    }

    fn answer_datagrams(&self) {
        let mut buffer = [0; 2048];
        while let Ok((_, client)) = self.udp.recv_from(&mut buffer) {
            self.shared.answered.fetch_add(1, Ordering::Relaxed);
            // Whoever asked sees that no answer came.
            let _ = self.udp.send_to(introduction(&self.name, client).as_bytes(), client);
        }
    }

    fn converse(&mut self, number: u64) {
        let Some(conversation) = self.connections.get_mut(&number) else { return };
        let goes_on = conversation.go_on(&self.name, &self.shared).is_ok_and(|goes_on| goes_on);
        let blocked = !conversation.is_sent();
        if goes_on && blocked != conversation.blocked {
            conversation.blocked = blocked;
            let interest = if blocked { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            // The socket is registered as long as the conversation is here.
            let _ = self.epoll.modify(&conversation.stream, &mut EpollEvent::new(interest, number));
        }
        if !goes_on {
            self.connections.remove(&number);
        }
    }
}

impl Conversation {
    fn new(stream: TcpStream, client: SocketAddr) -> Self {
        Self {
            stream,
            client,
            request: Vec::new(),
            answer: Vec::new(),
            sent: 0,
            content: None,
            close: false,
            blocked: false,
        }
    }

    /// Reads and answers as far as it goes without waiting; whether the connection stays open.
    fn go_on(&mut self, name: &str, shared: &Shared) -> io::Result<bool> {
        loop {
            self.send()?;
            if !self.is_sent() {
                return Ok(true);
            }
            if self.close {
                return Ok(false);
            }
            if let Some(end) = self.request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let request = String::from_utf8_lossy(&self.request[..end]).into_owned();
                self.request.drain(..end + 4);
                self.answer(&request, name, shared);
                continue;
            }
            if self.request.len() > MAX_REQUEST {
                self.close = true;
                self.say("400 Bad Request", "too long\n");
                continue;
            }
            let mut buffer = [0; 2048];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(len) => self.request.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
    }

    fn answer(&mut self, request: &str, name: &str, shared: &Shared) {
        self.close = request.lines().any(|line| line.eq_ignore_ascii_case("connection: close"));
        let path = request.split(' ').nth(1).unwrap_or_default();
        let number = |prefix| path.strip_prefix(prefix).and_then(|bytes: &str| bytes.parse::<u64>().ok());
        if path == "/health" {
            let healthy = shared.healthy.load(Ordering::Relaxed);
            let (status, body) =
                if healthy { ("200 OK", "ok\n") } else { ("503 Service Unavailable", "no\n") };
            self.say(status, body);
            return;
        }
        shared.answered.fetch_add(1, Ordering::Relaxed);
        if let Some(bytes) = number("/bytes/") {
            self.begin("200 OK", bytes);
            self.content = Some((Body::Known(Content::new(bytes)), bytes));
        } else if let Some(bytes) = number("/zeros/") {
            self.begin("200 OK", bytes);
            self.content = Some((Body::Zeros, bytes));
        } else if path == "/" {
            self.say("200 OK", &introduction(name, self.client));
        } else {
            self.say("404 Not Found", "not here\n");
        }
    }

    fn say(&mut self, status: &str, body: &str) {
        self.begin(status, body.len() as u64);
        self.answer.extend_from_slice(body.as_bytes());
    }

    fn begin(&mut self, status: &str, length: u64) {
        let connection = if self.close { "close" } else { "keep-alive" };
        self.sent = 0;
        self.answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
        )
        .into_bytes();
    }

    fn is_sent(&self) -> bool {
        self.sent == self.answer.len() && self.content.is_none()
    }

    /// Sends what is to be sent until that would wait.
    fn send(&mut self) -> io::Result<()> {
        loop {
            while self.sent < self.answer.len() {
                match self.stream.write(&self.answer[self.sent..]) {
                    Ok(len) => self.sent += len,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            let Some((content, left)) = &mut self.content else { return Ok(()) };
            if *left == 0 {
                self.content = None;
                return Ok(());
            }
            self.answer.resize(CHUNK, 0);
            match content {
                Body::Known(content) => content.fill(&mut self.answer),
                Body::Zeros => self.answer.fill(0),
            }
            self.answer.truncate(usize::try_from(*left).unwrap_or(CHUNK).min(CHUNK));
            *left -= self.answer.len() as u64;
            self.sent = 0;
        }
    }
}

/// `NAME CLIENT`; an IPv4 client is shown as one on a socket of both families too.
fn introduction(name: &str, client: SocketAddr) -> String {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    format!("{name} {client}\n")
}
