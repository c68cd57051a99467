//! The name server's process, and the agent's side of it.

pub(crate) mod helper;
pub mod name_server;
pub mod process;
pub(crate) mod settings;
mod wire;
mod zones;
