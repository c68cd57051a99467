//! The name server on each network's gateway address.
//!
//! [`DnsServer`] answers on sockets that it is handed, each for one network. What it knows of a network is its [`Zone`], a
//! value in a [`watch`](tokio::sync::watch) channel: an answer is always made from the channel's present value. The
//! sockets are the caller's to bind ([`Sockets::bind`]) and to keep, so that they may outlive the process: queries wait in
//! them until another one serves them.
//!
//! # What is answered, on a network `app`
//!
//! | name | answer |
//! | --- | --- |
//! | `NAME`, `NAME.app`: a service | its virtual IP; with [`EndpointMode::RoundRobin`] its backends, shuffled |
//! | `tasks.SERVICE`, `tasks.SERVICE.app` | its backends, shuffled |
//! | `NAME`, `NAME.app`: an endpoint, or an alias of endpoints | its address; those of all that have the alias, shuffled |
//! | an address in `in-addr.arpa` or `ip6.arpa` | the endpoint or the service that has it, as `NAME.app` |
//! | any other single label, anything else under `app`, any other address of the network's subnets | NXDOMAIN |
//! | everything else | what the host's own resolvers say; NXDOMAIN on an internal network |
//!
//! - Only healthy backends are given, and all of them when none is healthy.
//! - A known name without a record of the asked type gets an empty answer (`NODATA`) with an SOA record.
//! - Names under the network's own name are never forwarded: what was an endpoint a moment ago must not turn into
//!   a stranger's host of the same name. A network called like a top-level domain therefore hides that domain.
//! - On an internal network the answer is NXDOMAIN rather than REFUSED, which musl's resolver ignores until it times out.
//! - Time to live is [`TTL`], of negative answers too: a query costs its own host some microseconds, a
//!   stale answer costs a connection.
//!
//! # Limits
//!
//! Answers over UDP have at most 1232 octets (or what the client takes, if less) and then say that they are truncated. At
//! most 512 queries of a network and socket wait for an answer from outside, for at most 128 different questions; equal questions
//! are asked once, which also ends loops between forwarders. A resolver has 2 s; one that did not answer is tried last for
//! 10 s. At most 128 TCP connections per network socket, each closed after 10 s without a whole query.

#![forbid(unsafe_code)]

mod exchange;
mod forward;
#[cfg(fuzzing)]
pub mod fuzzing;
mod lookup;
mod marked;
mod message;
mod network;
mod server;
mod sockets;
mod status;
mod tcp;
mod udp;
mod upstreams;
mod zone;

pub use hickory_proto::rr::{Name, RecordType};
pub use lookup::{Answer, Index};
pub use message::TTL;
pub use server::DnsServer;
pub use sockets::Sockets;
pub use status::Status;
pub use zone::{Backend, Endpoint, EndpointMode, List, Service, Zone, Zones};
