//! UDP datagrams and their echo.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{Error, Netns, Result};

/// Longest that a receiver sleeps without looking whether it is to stop.
pub(super) const TICK: Duration = Duration::from_millis(20);
/// Largest UDP payload there is.
const MAX_DATAGRAM: usize = 65_535;

/// Sends every datagram back to where it came from, until dropped.
#[derive(Debug)]
pub struct UdpEcho {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Starts in `netns`; port 0 takes a free one.
    pub fn start(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let socket = bind(netns, address)?;
        let address = socket.local_addr().map_err(Error::system("read socket's address"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut buffer = vec![0; MAX_DATAGRAM];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                        // Whoever asked sees that no answer came.
                        let _ = socket.send_to(&buffer[..len], from);
                    }
                }
            })
        };
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Address and port it answers on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends one datagram from `netns` and returns the answer, or nothing when none comes within
/// `timeout`. `from` fixes the source; an unspecified address with port 0 leaves it to the kernel.
pub fn udp_request(
    netns: &Netns,
    from: SocketAddr,
    target: SocketAddr,
    payload: &[u8],
    timeout: Duration,
) -> Result<Option<Vec<u8>>> {
    let socket = bind(netns, from)?;
    let failed = || Error::system(format!("ask {target} from {}", netns.name()));
    socket.set_read_timeout(Some(timeout)).map_err(failed())?;
    socket.connect(target).map_err(failed())?;
    socket.send(payload).map_err(failed())?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    match socket.recv(&mut buffer) {
        Ok(len) => {
            buffer.truncate(len);
            Ok(Some(buffer))
        }
        // An ICMP error is no answer either.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::NetworkUnreachable
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(failed()(error)),
    }
}

/// A socket in `netns` whose reads give up after [`TICK`].
pub(super) fn bind(netns: &Netns, address: SocketAddr) -> Result<UdpSocket> {
    let socket = netns
        .enter(|| UdpSocket::bind(address))?
        .map_err(Error::system(format!("bind {address} in {}", netns.name())))?;
    socket.set_read_timeout(Some(TICK)).map_err(Error::system("set up socket"))?;
    Ok(socket)
}
