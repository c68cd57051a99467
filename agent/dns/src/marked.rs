//! A mark on sockets while they connect to a resolver on this host, so that programs that redirect
//! the host's own connections leave them alone. Without it a query could come back to the name
//! server that sent it, by a service on port 53.
//!
//! Connections to other hosts get no mark: the host may choose routes by it.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;

use mesh_ebpf_types::MARK;
use nix::sys::socket::{setsockopt, sockopt};

/// Whether a socket was marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marked(bool);

/// Marks a socket that is about to connect, if the resolver's address is this host's.
pub(crate) fn towards(socket: &impl AsFd, resolver: IpAddr) -> Marked {
    // Only an address of the host can be bound.
    let is_here = UdpSocket::bind((resolver, 0)).is_ok();
    // It takes a privilege. Without it the query is sent all the same.
    Marked(is_here && setsockopt(socket, sockopt::Mark, &MARK).is_ok())
}

/// Takes the mark off a socket that is connected.
pub(crate) fn end(socket: &impl AsFd, Marked(marked): Marked) {
    if marked {
        // What it does not affect any more may stay.
        let _removed = setsockopt(socket, sockopt::Mark, &0);
    }
}
