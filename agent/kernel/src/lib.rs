//! What touches the kernel: netlink, eBPF, nftables, network namespaces

#![forbid(unsafe_code)]

mod addresses;
mod conntrack;
pub mod error;
pub mod events;
pub mod execute;
pub mod fake;
mod filters;
mod firewall;
pub mod host;
pub mod inside;
pub mod kernel;
mod links;
pub mod linux;
pub mod listeners;
mod namespace;
mod neighbours;
mod netlink;
pub mod netns;
pub mod programs;
mod routes;
pub mod survivors;
mod sysctl;

pub use error::KernelError;
pub use events::{Event, Events};
pub use execute::{Failure, Report, execute};
pub use fake::FakeKernel;
pub use kernel::{Depth, Kernel};
pub use linux::LinuxKernel;
pub use listeners::Listeners;
pub use programs::{FakePrograms, Programs, ProgramsError};
