//! Looking at the wire: frames as they pass a device, without a start-up race.
//!
//! The packet socket exists when [`Capture::start`] returns, so nothing sent after that is missed;
//! frames that the socket's buffer could not take are counted, never silently gone.

mod frame;
mod stats;

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
            sockopt::RcvBufForce, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};

pub use frame::{Frame, Udp, VXLAN_PORT, Vxlan};

use crate::{Error, Netns, Result, poll_until};

/// Bytes that the kernel may hold before the reader takes them.
const BUFFER: usize = 64 << 20;
/// Largest frame: a GSO packet and its headers.
const MAX_FRAME: usize = 1 << 17;
/// Longest that the reader sleeps without looking whether it is to stop.
const TICK: Duration = Duration::from_millis(50);
/// `sll_pkttype` of a frame that this machine sends (`linux/if_packet.h`).
const PACKET_OUTGOING: u8 = 4;

/// A running capture; it ends when dropped.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    socket: Arc<OwnedFd>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    frames: Mutex<Vec<Frame>>,
}

/// What to capture.
#[derive(Debug, Clone)]
#[must_use = "nothing is captured before `start`"]
pub struct CaptureOptions {
    device: Option<String>,
    snap_len: usize,
    outgoing: bool,
}

impl CaptureOptions {
    /// Frames of this device only; of every device unless set.
    pub fn device(mut self, name: impl Into<String>) -> Self {
        self.device = Some(name.into());
        self
    }

    /// Bytes kept of each frame; all unless set. [`Frame::len`] tells the whole length all the
    /// same.
    pub fn snap_len(mut self, bytes: usize) -> Self {
        self.snap_len = bytes;
        self
    }

    /// Frames that the namespace itself sends or forwards out, too. Without them, a frame that
    /// crosses a bridge is captured once, where it comes in.
    pub fn with_outgoing(mut self) -> Self {
        self.outgoing = true;
        self
    }

    /// Starts to capture inside `netns`.
    pub fn start(self, netns: &Netns) -> Result<Capture> {
        let ifindex = match &self.device {
            Some(device) => Some(
                netns
                    .enter(|| nix::net::if_::if_nametoindex(device.as_str()))?
                    .map_err(Error::system(format!("find device {device} in {}", netns.name())))?,
            ),
            None => None,
        };
        let fd = netns
            .enter(|| {
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
            })?
            .map_err(Error::system("open packet socket"))?;
        setsockopt(&fd, RcvBufForce, &BUFFER).map_err(Error::system("size packet socket"))?;
        let tick = TimeVal::new(0, TICK.subsec_micros().into());
        setsockopt(&fd, ReceiveTimeout, &tick).map_err(Error::system("set up packet socket"))?;
        let (shared, socket) = (Arc::new(Shared::default()), Arc::new(fd));
        let reader = {
            let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
            thread::spawn(move || self.read(ifindex, &socket, &shared))
        };
        Ok(Capture { shared, reader: Some(reader), socket })
    }

    fn read(&self, ifindex: Option<u32>, socket: &OwnedFd, shared: &Shared) {
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
                Ok((len, Some(from))) => {
                    let device = u32::try_from(from.ifindex()).unwrap_or(0);
                    let outgoing = from.pkttype() == PACKET_OUTGOING;
                    if ifindex.is_some_and(|wanted| wanted != device) || (outgoing && !self.outgoing) {
                        continue;
                    }
                    let bytes = buffer[..len.min(self.snap_len)].to_vec();
                    let frame = Frame { at: Instant::now(), ifindex: device, outgoing, len, bytes };
                    shared.frames.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
                }
                // The buffer is empty: the moment to stop, so that no frame taken before the stop
                // is left out.
                Err(Errno::EAGAIN) if shared.stop.load(Ordering::Acquire) => return,
                // ENETDOWN: a device that was captured on went down; others may not have.
                Ok((_, None)) | Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => {}
                Err(errno) => {
                    eprintln!("capture ends: {}", io::Error::from(errno));
                    return;
                }
            }
        }
    }
}

impl Capture {
    /// What to capture: everything that comes in on any device, unless told otherwise.
    pub fn options() -> CaptureOptions {
        CaptureOptions { device: None, snap_len: MAX_FRAME, outgoing: false }
    }

    /// Captures everything that comes in on any device of `netns`.
    pub fn start(netns: &Netns) -> Result<Self> {
        Self::options().start(netns)
    }

    /// Calls `look` with the frames so far.
    pub fn with_frames<T>(&self, look: impl FnOnce(&[Frame]) -> T) -> T {
        look(&self.shared.frames.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until `find` has found what it looks for in the frames so far.
    pub fn wait_for<T>(&self, timeout: Duration, mut find: impl FnMut(&[Frame]) -> Option<T>) -> Option<T> {
        poll_until(timeout, || self.with_frames(&mut find))
    }

    /// Ends the capture when everything that had arrived is read.
    pub fn stop(mut self) -> Result<Captured> {
        self.end();
        let lost = stats::lost(&self.socket)?;
        let frames = std::mem::take(&mut *self.shared.frames.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Captured { frames, lost })
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(reader) = self.reader.take() {
            // The reader does not panic; a join error would only say that it did.
            let _ = reader.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

/// The frames of a capture that has ended, in order.
#[derive(Debug)]
pub struct Captured {
    /// The frames.
    pub frames: Vec<Frame>,
    /// Frames that did not fit the socket's buffer and are missing here.
    pub lost: u32,
}

impl Captured {
    /// Frames whose bytes hold `needle`, wherever.
    pub fn containing(&self, needle: &[u8]) -> impl Iterator<Item = &Frame> {
        self.frames.iter().filter(move |frame| frame.contains(needle))
    }

    /// Frames that are VXLAN to port 4789, taken apart.
    pub fn vxlan(&self) -> impl Iterator<Item = Vxlan<'_>> {
        self.frames.iter().filter_map(Frame::vxlan)
    }
}
