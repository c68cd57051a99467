//! The services' loops: their maps in the kernel, their names, and their health.
//!
//! [`tables`] keeps the services' maps. [`fairness`] divides the connection table among networks.
//! [`health_checks`] checks this node's backends. [`name_server`] updates the process that answers
//! DNS queries. [`reserved_ports`] and [`port_conflicts`] concern the host's own use of published
//! ports.
#![forbid(unsafe_code)]

mod dns;
pub mod fairness;
mod health;
mod inputs;
pub mod port_conflicts;
pub mod reserved_ports;
pub mod tables;

pub use dns::helper::end as end_name_server;
pub use dns::settings::Settings as NameServerSettings;
pub use dns::{name_server, process as name_server_process};
pub use health::checks as health_checks;
