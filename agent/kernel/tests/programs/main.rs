//! The eBPF programs and their loader, on the kernel of this machine. Needs root.

mod attachments;
mod connections;
mod growth;
mod hosts;
mod kernel_wireguard;
mod loading;
mod packets;
mod services;
mod sockets;
mod support;
mod tables;
mod traffic;
