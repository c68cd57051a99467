//! A process that does nothing but hold sockets while no agent runs, so that queries wait in them and are not refused.
//!
//! It runs where no service manager keeps descriptors for us. The agent starts it, says `keep` with each pair of sockets that
//! it binds, and stays connected: so the holder knows when the agent is gone. It ends when told to, when
//! its socket is removed, and when no agent has come back for a while.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recvmsg, sendmsg, socket_with,
};
use rustix::process::geteuid;

/// The command of `meshd` that is the holder: `meshd dns-socket-holder RUN_DIR`.
pub const COMMAND: &str = "dns-socket-holder";

/// Name of the holder's socket in the run directory.
const SOCKET: &str = "dns-sockets.sock";
/// How long sockets are held without an agent. A query has long failed by then.
const WITHOUT_AGENT: Duration = Duration::from_mins(2);
/// How often the holder looks whether its socket is still there.
const LOOK: Duration = Duration::from_secs(1);
/// How long a holder may take to start or to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Descriptors of one message: a pair of sockets.
const PAIR: usize = 2;
/// Pairs that are held at most.
const MAX_PAIRS: usize = 4096;

/// What an agent says, one byte; `KEEP` comes with a pair of sockets.
const KEEP: u8 = b'k';
const GIVE: u8 = b'g';
const FORGET_ALL: u8 = b'f';
const END: u8 = b'e';
/// What the holder answers: one message with a pair for each that it has, then the end.
const PAIR_FOLLOWS: u8 = b'p';
const DONE: u8 = b'd';

/// A connection to the holder of a run directory.
#[derive(Debug)]
pub(super) struct Holder {
    socket: OwnedFd,
}

impl Holder {
    /// Connects to the holder that runs, or starts one from this very program.
    pub(super) fn connect_or_start(run_dir: &Path) -> io::Result<Self> {
        if let Ok(holder) = Self::connect(run_dir) {
            return Ok(holder);
        }
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.arg(COMMAND).arg(run_dir).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.spawn()?;
        let deadline = Instant::now() + PATIENCE;
        let holder = loop {
            if let Ok(holder) = Self::connect(run_dir) {
                break holder;
            }
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!("the holder of DNS sockets ended at once ({status})")));
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the holder of DNS sockets did not start",
                ));
            }
            thread::sleep(Duration::from_millis(2));
        };
        // Somebody has to take its exit status when it ends.
        let reap = move || drop(child.wait());
        thread::Builder::new().name("holder-reaper".to_owned()).spawn(reap)?;
        Ok(holder)
    }

    /// Connects to the holder that runs.
    pub(super) fn connect(run_dir: &Path) -> io::Result<Self> {
        let socket = open_socket()?;
        connect(&socket, &SocketAddrUnix::new(run_dir.join(SOCKET))?)?;
        Ok(Self { socket })
    }

    /// Has a pair of sockets held.
    pub(super) fn keep(&self, pair: [BorrowedFd<'_>; PAIR]) -> io::Result<()> {
        send(self.socket.as_fd(), KEEP, &pair)?;
        self.done()
    }

    /// Copies of all sockets that are held.
    pub(super) fn give(&self) -> io::Result<Vec<[OwnedFd; PAIR]>> {
        send(self.socket.as_fd(), GIVE, &[])?;
        let mut pairs = Vec::new();
        loop {
            match self.receive()? {
                (PAIR_FOLLOWS, fds) => {
                    let pair: [OwnedFd; PAIR] = fds.try_into().map_err(|_| strange())?;
                    pairs.push(pair);
                }
                (DONE, _) => return Ok(pairs),
                _ => return Err(strange()),
            }
        }
    }

    /// Has all sockets let go of, so that those to go on with can be kept anew.
    pub(super) fn forget_all(&self) -> io::Result<()> {
        send(self.socket.as_fd(), FORGET_ALL, &[])?;
        self.done()
    }

    /// Ends the holder.
    pub(super) fn end(self) -> io::Result<()> {
        send(self.socket.as_fd(), END, &[])?;
        self.done()
    }

    fn done(&self) -> io::Result<()> {
        match self.receive()? {
            (DONE, _) => Ok(()),
            _ => Err(strange()),
        }
    }

    fn receive(&self) -> io::Result<(u8, Vec<OwnedFd>)> {
        if !readable(&[self.socket.as_fd()], PATIENCE)?.contains(&0) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the holder of DNS sockets does not answer"));
        }
        receive(self.socket.as_fd())?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

fn strange() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the holder of DNS sockets gave a strange answer")
}

/// Runs the holder of a run directory, until it has nothing more to do.
pub fn main(run_dir: &Path) -> ExitCode {
    match run(run_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot hold the name server's sockets: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the holder has, and whom it serves.
struct Held {
    path: PathBuf,
    inode: u64,
    listener: OwnedFd,
    agents: Vec<OwnedFd>,
    pairs: Vec<[OwnedFd; PAIR]>,
}

fn run(run_dir: &Path) -> io::Result<()> {
    // Of a session of its own: it outlives who started it. EPERM: it leads one already.
    let _ = rustix::process::setsid();
    let path = run_dir.join(SOCKET);
    // Whoever starts us found nobody there.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = open_socket()?;
    bind(&listener, &SocketAddrUnix::new(&path)?)?;
    listen(&listener, 16)?;
    let inode = std::fs::metadata(&path)?.ino();
    let mut held = Held { path, inode, listener, agents: Vec::new(), pairs: Vec::new() };
    let mut alone_since = Instant::now();
    while held.is_wanted() && (!held.agents.is_empty() || alone_since.elapsed() < WITHOUT_AGENT) {
        let had_agent = !held.agents.is_empty();
        if !held.serve()? {
            // Whoever comes now finds nobody.
            return std::fs::remove_file(&held.path);
        }
        if had_agent && held.agents.is_empty() {
            alone_since = Instant::now();
        }
    }
    if held.is_wanted() {
        std::fs::remove_file(&held.path)?;
    }
    Ok(())
}

impl Held {
    /// Whether the socket is there, and ours.
    fn is_wanted(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
    }

    /// Takes whatever comes within a moment; false when the holder is to end.
    fn serve(&mut self) -> io::Result<bool> {
        let mut sources = vec![self.listener.as_fd()];
        sources.extend(self.agents.iter().map(AsFd::as_fd));
        let ready = readable(&sources, LOOK)?;
        let mut gone = Vec::new();
        for index in ready {
            let Some(agent) = index.checked_sub(1) else {
                let agent = accept_with(&self.listener, SocketFlags::CLOEXEC)?;
                if socket_peercred(&agent).is_ok_and(|peer| peer.uid == geteuid()) {
                    self.agents.push(agent);
                }
                continue;
            };
            match self.answer(agent) {
                Ok(Some(END)) => return Ok(false),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => gone.push(agent),
            }
        }
        for agent in gone.into_iter().rev() {
            self.agents.remove(agent);
        }
        Ok(true)
    }

    /// Does what an agent says; `None` when it has hung up.
    fn answer(&mut self, agent: usize) -> io::Result<Option<u8>> {
        let Some((said, fds)) = receive(self.agents[agent].as_fd())? else { return Ok(None) };
        match said {
            KEEP if self.pairs.len() < MAX_PAIRS => {
                let pair = fds.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                self.pairs.push(pair);
            }
            GIVE => {
                for [udp, tcp] in &self.pairs {
                    send(self.agents[agent].as_fd(), PAIR_FOLLOWS, &[udp.as_fd(), tcp.as_fd()])?;
                }
            }
            FORGET_ALL => self.pairs.clear(),
            END => {}
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        send(self.agents[agent].as_fd(), DONE, &[])?;
        Ok(Some(said))
    }
}

fn open_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Which of them can be read, or have ended, within the time.
fn readable(sources: &[BorrowedFd<'_>], within: Duration) -> io::Result<Vec<usize>> {
    let mut fds: Vec<PollFd<'_>> = sources.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let within = Timespec::try_from(within).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&within)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()).map(|(index, _)| index).collect())
}

fn send(to: BorrowedFd<'_>, kind: u8, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PAIR))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(to, &[IoSlice::new(&[kind])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// One message; `None` at the end of the connection.
fn receive(from: BorrowedFd<'_>) -> io::Result<Option<(u8, Vec<OwnedFd>)>> {
    let mut kind = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PAIR))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut kind)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(Some((kind[0], fds)))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn pair() -> [OwnedFd; PAIR] {
        [UdpSocket::bind("127.0.0.1:0").unwrap().into(), UdpSocket::bind("127.0.0.1:0").unwrap().into()]
    }

    fn started(dir: &Path) -> thread::JoinHandle<io::Result<()>> {
        let run_dir = dir.to_owned();
        thread::spawn(move || run(&run_dir))
    }

    fn connected(dir: &Path) -> Holder {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Holder::connect(dir) {
                Ok(holder) => return holder,
                Err(error) if Instant::now() >= deadline => panic!("{error}"),
                Err(_) => thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    #[test]
    fn what_reached_a_socket_while_no_agent_ran_is_read_by_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let holder = started(dir.path());
        let first = connected(dir.path());
        let [udp, tcp] = pair();
        let address = UdpSocket::from(udp.try_clone().unwrap()).local_addr().unwrap();
        first.keep([udp.as_fd(), tcp.as_fd()]).unwrap();
        drop((first, udp, tcp));
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"query", address).unwrap();
        let second = connected(dir.path());
        let mut given = second.give().unwrap();
        assert_eq!(given.len(), 1);
        let [udp, _] = given.remove(0);
        let udp = UdpSocket::from(udp);
        let mut buffer = [0; 16];
        assert_eq!(udp.recv(&mut buffer).unwrap(), 5);
        second.forget_all().unwrap();
        assert_eq!(second.give().unwrap().len(), 0);
        second.end().unwrap();
        holder.join().unwrap().unwrap();
        assert!(Holder::connect(dir.path()).is_err() && !dir.path().join(SOCKET).exists());
    }

    #[test]
    fn the_holder_ends_when_its_socket_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let holder = started(dir.path());
        let agent = connected(dir.path());
        std::fs::remove_file(dir.path().join(SOCKET)).unwrap();
        holder.join().unwrap().unwrap();
        drop(agent);
    }
}
