//! A name server outside: what hosts ask for public names.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{Error, Netns, Result};

/// Port of DNS.
const PORT: u16 = 53;
/// How long names take that begin with `slow`.
const SLOW: Duration = Duration::from_secs(3);
/// How often the thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Octets of a message's header.
const HEADER: usize = 12;
/// Types of records.
const A: [u8; 2] = [0, 1];

/// Answers over UDP for the names that it was given, and that no other exists. Names that begin
/// with `slow` have an address, which takes 3 s; the answer to one that begins with `loop` points
/// to itself.
#[derive(Debug)]
pub struct NameServer {
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Serves on port 53 of a namespace.
    pub fn start(netns: &Netns, records: &[(&str, Ipv4Addr)]) -> Result<Self> {
        let failed = || Error::system(format!("serve names in {}", netns.name()));
        let socket = netns.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?.map_err(failed())?;
        socket.set_read_timeout(Some(LOOK)).map_err(failed())?;
        let records: Vec<(String, Ipv4Addr)> =
            records.iter().map(|(name, address)| ((*name).to_owned(), *address)).collect();
        let (asked, stop) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let (noted, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                let Some((name, end)) = question(&buffer[..length]) else { continue };
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
                let reply = reply(&buffer[..end], &name, &records);
                if name.starts_with("slow") {
                    later(&socket, reply, client);
                } else {
                    // A client that is gone is none of ours.
                    let _ = socket.send_to(&reply, client);
                }
            }
        });
        Ok(Self { asked, stop, thread: Some(thread) })
    }

    /// All names that it was asked for so far, in lower case.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn later(socket: &UdpSocket, reply: Vec<u8>, client: SocketAddr) {
    let Ok(socket) = socket.try_clone() else { return };
    thread::spawn(move || -> io::Result<usize> {
        thread::sleep(SLOW);
        socket.send_to(&reply, client)
    });
}

/// The first question's name, and where its type and class end.
fn question(message: &[u8]) -> Option<(String, usize)> {
    let (mut at, mut name) = (HEADER, String::new());
    loop {
        let length = usize::from(*message.get(at)?);
        if length == 0 {
            let end = at + 5;
            return (message.len() >= end).then_some((name.to_ascii_lowercase(), end));
        }
        let label = message.get(at + 1..at + 1 + length)?;
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(label));
        at += 1 + length;
    }
}

/// The answer to a message that ends with its question.
fn reply(message: &[u8], name: &str, records: &[(String, Ipv4Addr)]) -> Vec<u8> {
    let known = records.iter().find(|(known, _)| known == name).map(|(_, address)| *address);
    let special = name.starts_with("slow") || name.starts_with("loop");
    let address = known.or_else(|| special.then_some(Ipv4Addr::new(203, 0, 113, 53)));
    let wants_it = message[message.len() - 4..][..2] == A;
    let mut reply = message.to_vec();
    // A response with recursion; NXDOMAIN where there is no such name.
    reply[2] |= 0x80;
    reply[3] = if address.is_some() { 0x80 } else { 0x83 };
    reply[4..HEADER].copy_from_slice(&[0, 1, 0, u8::from(address.is_some() && wants_it), 0, 0, 0, 0]);
    if let Some(address) = address.filter(|_| wants_it) {
        let itself = u8::try_from(message.len()).unwrap_or(u8::MAX);
        let points_to = if name.starts_with("loop") { itself } else { 12 };
        reply.extend([0xc0, points_to, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(address.octets());
    }
    reply
}
