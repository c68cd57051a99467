//! The thinnest possible layer over the system calls that have no safe wrapper elsewhere.

mod device;
mod tap;
mod udp;
mod wake;

pub(crate) use device::{isolate as isolate_device, silence as silence_device};
pub(crate) use mesh_sys::device::{configure as configure_device, is_configured as device_is_configured};
pub(crate) use tap::{Offload, Tap};
pub(crate) use udp::{Datagram, Receiver, SendQueue, UdpSocket};
pub(crate) use wake::{Ready, Wake, look, wait};
