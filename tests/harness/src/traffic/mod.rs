//! Traffic that tells whether it arrived: transfers with checksums, echoes, pings, a meter of lost
//! packets.
//!
//! Sockets are made inside a namespace and used from threads of the test, so both ends share one
//! process and one clock.

mod client;
mod content;
mod fragments;
mod gso;
mod load;
mod loss;
mod names;
mod ping;
mod raw;
mod tcp;
mod udp;
mod web;
mod web_process;

pub use client::{Answer, Connection, Download, UdpClient, ask, ask_from, drink};
pub use fragments::send_fragments;
pub use gso::{GsoReport, GsoTransfer};
pub use load::{Load, LoadReport, load};
pub use loss::{LossMeter, LossReport};
pub use names::NameServer;
pub use ping::{Ping, PingReport};
pub use raw::{RawSocket, RawTcp, syn_flood};
pub use tcp::{TcpReceived, TcpSink, TransferReport, tcp_send, tcp_transfer};
pub use udp::{UdpEcho, udp_request};
pub use web::WebServer;
pub use web_process::ServerProcess;
