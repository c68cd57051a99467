//! The name server process, and the agent's client of it.

pub(crate) mod helper;
pub mod name_server;
pub mod process;
pub(crate) mod settings;
mod wire;
mod zones;
