//! WireGuard's timers: handshake retries, keepalives, expiry of sessions. They run only for peers
//! in use; without any, the thread sleeps.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use mesh_sys::udp::UdpSocket;

use super::{link::HANDSHAKE, shared::Shared};

/// Interval of timer runs. WireGuard's own times are seconds.
const TICK: Duration = Duration::from_millis(500);

/// Runs the timers until the engine stops.
pub(super) fn run(shared: &Shared, socket: &Arc<UdpSocket>) {
    while !shared.is_stopping() {
        if tick(shared, socket) {
            thread::park_timeout(TICK);
        } else {
            thread::park();
        }
    }
}

/// Runs the timers of all peers in use once; returns false if there are none.
fn tick(shared: &Shared, socket: &UdpSocket) -> bool {
    let table = shared.table();
    let mut any = false;
    let mut out = [0; HANDSHAKE];
    for peer in table.peers.values().filter(|peer| peer.is_timed()) {
        let mut state = peer.lock();
        let endpoint = state.endpoint;
        let mut needed = false;
        let now = Instant::now();
        for link in &mut state.links {
            let (message, goes_on) = link.tick(now, &mut out);
            needed |= goes_on;
            if let (Some(len), Some(endpoint)) = (message, endpoint) {
                // If the network fails for a moment, the next retry follows.
                let _ = socket.send(&out[..len], endpoint);
            }
        }
        any |= needed;
        if !needed {
            peer.stop_timers();
            drop(state);
            // Packets that wait for this peer must be dropped.
            shared.wake_workers();
        }
    }
    any
}
