//! What touches the kernel: netlink, eBPF, nftables, network namespaces

pub mod error;
pub mod execute;
pub mod fake;
pub mod kernel;
pub mod programs;

pub use error::KernelError;
pub use execute::{Failure, Report, execute};
pub use fake::FakeKernel;
pub use kernel::{Depth, Kernel};
pub use programs::{FakePrograms, Programs, ProgramsError};
