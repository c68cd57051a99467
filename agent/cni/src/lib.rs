//! What the CNI plugin and the agent share: the call, its frames on the socket, errors in the
//! specification's form, and the spool of calls that the agent carries out later.
//!
//! The plugin is thin. It checks its environment, hands the runtime's call to the agent as it is,
//! and prints the answer. So a new agent serves an old plugin, and the plugin has no reason to
//! change.
//!
//! Source: the CNI specification, versions 0.3.1 to 1.1.0.
#![forbid(unsafe_code)]

pub mod call;
mod environment;
pub mod error;
mod plugin;
pub mod spool;
pub mod version;
pub mod wire;

pub use call::{Call, Command};
pub use error::CniError;
pub use plugin::{Outcome, run};
