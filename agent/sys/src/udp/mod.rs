//! A UDP socket for both address families that sends and receives many datagrams per system call:
//! `sendmmsg` and `recvmmsg` with UDP GSO and GRO (udp(7)).
#![expect(unsafe_code, reason = "sendmmsg and recvmmsg with a control message of its own for each message")]

mod address;
mod receive;
mod send;
mod socket;

pub use self::receive::{Datagram, Receiver};
pub use self::send::SendQueue;
pub use self::socket::UdpSocket;
