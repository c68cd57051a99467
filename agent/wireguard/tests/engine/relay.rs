//! A host between the two that drops, repeats and reorders datagrams, and records them.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use mesh_harness::{Netns, OwnedNetns, ip_batch, ip_batch_in};

use crate::pair::{PORT, unique};

const TICK: Duration = Duration::from_millis(20);
const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TO_A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const B: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const TO_B: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);

/// The host, and the threads that forward.
pub(crate) struct Relay {
    netns: OwnedNetns,
    at_a: Arc<UdpSocket>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Datagrams to drop, in a thousand.
    lose: AtomicU64,
    repeat: AtomicU64,
    reorder: AtomicU64,
    record: AtomicBool,
    /// Datagrams from A.
    recorded: Mutex<Vec<Vec<u8>>>,
    /// The current socket for datagrams to B; it has another port after a move.
    to_b: Mutex<Option<Arc<UdpSocket>>>,
}

impl Relay {
    pub(crate) fn new(a: &Netns, b: &Netns) -> Self {
        let netns = OwnedNetns::create(unique("r")).unwrap();
        for (host, device, address, ours) in [(a, "r0", A, TO_A), (b, "r1", B, TO_B)] {
            ip_batch(&[format!(
                "link add name {device} netns {} type veth peer name u0 netns {}",
                netns.name(),
                host.name()
            )])
            .unwrap();
            ip_batch_in(host, &[format!("addr add {address}/24 dev u0"), "link set u0 up".to_owned()])
                .unwrap();
            ip_batch_in(
                &netns,
                &[format!("addr add {ours}/24 dev {device}"), format!("link set {device} up")],
            )
            .unwrap();
        }
        let shared = Arc::new(Shared::default());
        let bind = |address: Ipv4Addr| {
            let socket = netns.enter(|| UdpSocket::bind((address, PORT))).unwrap().unwrap();
            socket.set_read_timeout(Some(TICK)).unwrap();
            Arc::new(socket)
        };
        let (at_a, at_b) = (bind(TO_A), bind(TO_B));
        *shared.to_b.lock().unwrap() = Some(Arc::clone(&at_b));
        let mut relay = Self { netns, at_a: Arc::clone(&at_a), shared, threads: Vec::new() };
        relay.forward_to_b(Arc::clone(&at_a));
        relay.forward_to_a(at_b, at_a);
        relay
    }

    /// Returns the endpoints of B (for A) and of A (for B).
    pub(crate) fn endpoints() -> (SocketAddr, SocketAddr) {
        ((TO_A, PORT).into(), (TO_B, PORT).into())
    }

    /// Drops, repeats and delays this many of a thousand datagrams.
    pub(crate) fn disturb(&self, lose: u64, repeat: u64, reorder: u64) {
        self.shared.lose.store(lose, Ordering::Relaxed);
        self.shared.repeat.store(repeat, Ordering::Relaxed);
        self.shared.reorder.store(reorder, Ordering::Relaxed);
    }

    /// Starts recording datagrams from A.
    pub(crate) fn record(&self) {
        self.shared.record.store(true, Ordering::Relaxed);
    }

    /// Returns the datagrams that A has sent since.
    pub(crate) fn recorded(&self) -> Vec<Vec<u8>> {
        self.shared.recorded.lock().unwrap().clone()
    }

    /// Sends a datagram to B as if from A.
    pub(crate) fn inject(&self, datagram: &[u8]) {
        let socket = self.shared.to_b.lock().unwrap().clone().unwrap();
        socket.send_to(datagram, (B, PORT)).unwrap();
    }

    /// Sends a datagram to B from another address.
    pub(crate) fn inject_from_elsewhere(&self, datagram: &[u8]) {
        let socket = self.netns.enter(|| UdpSocket::bind((TO_B, 0))).unwrap().unwrap();
        socket.send_to(datagram, (B, PORT)).unwrap();
    }

    /// Makes A's datagrams arrive at B from another port, as behind a NAT that lost its state.
    pub(crate) fn move_a(&mut self) -> SocketAddr {
        let socket = Arc::new(self.netns.enter(|| UdpSocket::bind((TO_B, 0))).unwrap().unwrap());
        socket.set_read_timeout(Some(TICK)).unwrap();
        let address = socket.local_addr().unwrap();
        *self.shared.to_b.lock().unwrap() = Some(Arc::clone(&socket));
        self.forward_to_a(socket, Arc::clone(&self.at_a));
        address
    }

    fn forward_to_b(&mut self, from: Arc<UdpSocket>) {
        let shared = Arc::clone(&self.shared);
        self.threads.push(thread::spawn(move || {
            let mut chance = Chance::new(1);
            forward(&shared, &from, &mut chance, |datagram| {
                if shared.record.load(Ordering::Relaxed) {
                    shared.recorded.lock().unwrap().push(datagram.to_vec());
                }
                let to = shared.to_b.lock().unwrap().clone().unwrap();
                let _ = to.send_to(datagram, (B, PORT));
            });
        }));
    }

    fn forward_to_a(&mut self, from: Arc<UdpSocket>, to: Arc<UdpSocket>) {
        let shared = Arc::clone(&self.shared);
        self.threads.push(thread::spawn(move || {
            let mut chance = Chance::new(2);
            forward(&shared, &from, &mut chance, |datagram| {
                let _ = to.send_to(datagram, (A, PORT));
            });
        }));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn forward(shared: &Shared, from: &UdpSocket, chance: &mut Chance, mut send: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 65536];
    let mut held: Option<Vec<u8>> = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok((len, _)) = from.recv_from(&mut buffer) else {
            if let Some(late) = held.take() {
                send(&late);
            }
            continue;
        };
        let datagram = &buffer[..len];
        if chance.of(&shared.lose) {
            continue;
        }
        if held.is_none() && chance.of(&shared.reorder) {
            held = Some(datagram.to_vec());
            continue;
        }
        send(datagram);
        if chance.of(&shared.repeat) {
            send(datagram);
        }
        if chance.one_in(3)
            && let Some(late) = held.take()
        {
            send(&late);
        }
    }
}

/// A random generator that gives the same sequence in every run (xorshift64).
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn of(&mut self, per_thousand: &AtomicU64) -> bool {
        self.next() % 1000 < per_thousand.load(Ordering::Relaxed)
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.next().is_multiple_of(many)
    }
}
