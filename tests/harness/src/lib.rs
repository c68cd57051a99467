//! The lab: hosts and containers in network namespaces on this machine, real daemons in them, and
//! what is needed to put traffic through them and to look at it on the wire.
//!
//! One implementation serves `./dev lab` and `./dev demo` (the `mesh-lab` binary), the end-to-end
//! tests and the benchmarks. Everything here needs root.
//!
//! ```no_run
//! use mesh_harness::Lab;
//! # fn main() -> mesh_harness::Result<()> {
//! let lab = Lab::builder().hosts(2).start()?;
//! lab.host(1).meshctl(["network", "create", "-d", "overlay", "blue"])?.ok()?;
//! let a = lab.container(1, "a", ["--network", "blue"])?;
//! let b = lab.container(2, "b", ["--network", "blue"])?;
//! a.ping(b.ipv4()?)?.all_answered()?;
//! # Ok(()) }
//! ```

pub mod capture;
pub mod cli;
mod command;
mod demo;
mod error;
mod ip;
mod lab;
mod netns;
mod poll;
mod process;
pub mod traffic;

pub use capture::Capture;
pub use command::{Cmd, Output};
pub use error::{Error, Result};
pub use ip::{ip_batch, ip_batch_in};
pub use lab::{
    BEHIND_SECOND_ROUTER, Binaries, Container, ContainerStatus, Encapsulation, GATEWAY, Host, HostStatus,
    Lab, LabBuilder, OUTSIDE_V4, OUTSIDE_V6, SECOND_ROUTER, SECOND_ROUTER_V6, Status, wireguard_engine,
};
pub use netns::{Netns, OwnedNetns};
pub use poll::{eventually, poll_until};
pub use process::{Process, ProcessId};
