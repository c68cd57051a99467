//! The host and its kernel, as the agent's loops share them.
//!
//! [`Host`] answers questions about the host: addresses, routes, sockets, namespaces.
//! [`SharedKernel`] gives one caller at a time access to the kernel. [`fake`] has the twins of both
//! in memory. [`Backoff`] and [`blocking`] serve every loop that calls them.
#![forbid(unsafe_code)]

pub mod advertise;
mod backoff;
mod blocking;
pub mod fake;
mod host;
mod host_sockets;
mod kernel_problem;
mod shared_kernel;
mod taken_ports;
mod this_host;

pub use advertise::HostAddress;
pub use backoff::Backoff;
pub use blocking::blocking;
pub use host::{FoundNetns, Host, NetnsName};
pub use host_sockets::HostSockets;
pub use kernel_problem::kernel_problem;
pub use shared_kernel::SharedKernel;
pub use taken_ports::taken_ports;
pub use this_host::{RESERVED_PORTS, ThisHost};
