//! The name server on each network's gateway address.
//!
//! [`DnsServer`] answers on sockets that it is handed, each for one network. What it knows of a
//! network is its [`Zone`], a value in a [`watch`](tokio::sync::watch) channel: an answer is always
//! made from the channel's present value. The sockets are the caller's to bind ([`Sockets::bind`])
//! and to keep, so that they may outlive the process: queries wait in them until another one serves
//! them.
//!
//! # What is answered, on a network `app`
//!
//! - `NAME`, `NAME.app` of a service: its virtual IP; with [`EndpointMode::RoundRobin`] its
//!   backends, shuffled.
//! - `tasks.SERVICE`, `tasks.SERVICE.app`: its backends, shuffled.
//! - `NAME`, `NAME.app` of an endpoint, or an alias of endpoints: its address; those of all that
//!   have the alias, shuffled.
//! - An address in `in-addr.arpa` or `ip6.arpa`: the endpoint or the service that has it, as
//!   `NAME.app`.
//! - Any other single label, any other address of the network's subnets: NXDOMAIN.
//! - Everything else, also under `app`: what the host's own resolvers say; NXDOMAIN on an internal
//!   network.
//!
//! - A container in several networks ([`Client`]) is answered from all of them, whichever gateway
//!   address it asks. Names under a network's own name go first, then bare names, the first
//!   network's first. It resolves public names unless all of its networks are internal. Networks
//!   that it is not in do not affect its answers.
//! - A network may be called like a public domain (`app`, `example.com`): what does not exist here
//!   is public. The network's own name exists, whatever the resolvers answer.
//! - Only healthy backends are given, and all of them when none is healthy.
//! - A known name without a record of the asked type gets an empty answer (`NODATA`) with an SOA
//!   record.
//! - A bare name that does not exist is never forwarded: what was an endpoint a moment ago must not
//!   turn into a stranger's host. For the same reason containers need no search domain.
//! - On an internal network the answer is NXDOMAIN rather than REFUSED, which musl's resolver
//!   ignores until it times out.
//! - Time to live is [`TTL`], of negative answers too: a query costs its own host some
//!   microseconds, a stale answer costs a connection.
//!
//! # Limits
//!
//! Answers over UDP have at most 1232 octets (or what the client takes, if less) and then say that
//! they are truncated. An answer from outside is read and written anew; what cannot be read is
//! dropped. It may take 8 s. After 1 s the next resolver is asked as well, and any answer is taken;
//! a resolver that answered nothing meanwhile is tried last for 10 s. Equal questions are asked
//! once, which also ends loops between forwarders.
//!
//! At most 64 questions of one container wait for an answer from outside, and 1024 of all. Of
//! these, 256 are for containers with less than 4, and 256 for networks with less than 32. One
//! container has at most 16 open TCP connections, and all together have 512. Of these, 128 are for
//! networks with less than 16. An idle one is closed for a new one, and each after 10 s without a
//! whole query. A connection may have 32 unanswered queries, which are answered in any order.

#![forbid(unsafe_code)]

mod change;
mod exchange;
mod forward;
#[cfg(fuzzing)]
pub mod fuzzing;
mod limits;
mod lookup;
mod marked;
mod message;
mod names;
mod network;
mod server;
mod sockets;
mod status;
mod tcp;
mod udp;
mod upstreams;
mod zone;

pub use change::Change;
pub use hickory_proto::rr::{Name, RecordType};
pub use lookup::{Answer, Index};
pub use message::TTL;
pub use server::DnsServer;
pub use sockets::Sockets;
pub use status::Status;
pub use zone::{Backend, Client, Endpoint, EndpointMode, List, Service, Zone, Zones};
