//! WireGuard's timers: repeated handshakes, keepalives, the end of sessions. They run only for
//! peers that are in use; without any the thread sleeps.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use mesh_sys::udp::UdpSocket;

use super::{link::HANDSHAKE, shared::Shared};

/// Time between two looks. WireGuard's own times are seconds.
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

/// One look at all peers in use; false if there are none.
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
                // A host that is away for a moment is no reason to give up; the next try comes.
                let _ = socket.send(&out[..len], endpoint);
            }
        }
        any |= needed;
        if !needed {
            peer.stop_timers();
            drop(state);
            // What waits for this peer is to be given up.
            shared.wake_workers();
        }
    }
    any
}
