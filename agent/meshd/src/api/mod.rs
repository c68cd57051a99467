//! What the local socket serves.

mod control;
mod local;
mod socket;
mod status;
pub mod tables;
mod tunnels;

pub use control::ControlGateway;
pub use local::LocalApi;
pub use socket::{SocketError, bind, serve};
pub use status::StatusReporter;
