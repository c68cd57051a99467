//! The operating system below the domain: code here knows files, sockets and processes, and
//! nothing of networks, endpoints or clusters.
//!
//! `unsafe` calls of the agents belong into this crate, each in the thinnest possible wrapper.

pub mod bpf;
pub mod confine;
pub mod descriptors;
pub mod device;
pub mod durable;
pub mod ethtool;
pub mod helper;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod tap;
pub mod udp;
pub mod unix_socket;
