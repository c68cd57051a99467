//! Attaching containers to networks, and detaching them.
//!
//! [`Endpoints`] has the calls; [`upkeep`] has the background tasks.
#![forbid(unsafe_code)]

mod addresses;
mod attach;
mod attachment;
mod backends;
mod detach;
mod endpoints;
mod names;
mod record;
mod request;
pub mod upkeep;

pub use endpoints::Endpoints;
