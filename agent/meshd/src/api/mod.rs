//! What the local socket serves.

mod control;
mod local;
mod socket;

pub use control::ControlGateway;
pub use local::LocalApi;
pub use socket::{SocketError, bind, serve};
