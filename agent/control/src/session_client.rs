//! The session protocol of an agent and its manager, and clients for both kinds of calls.
//!
//! - The agent's first message is `Hello`, with all its endpoints and the routes of its host. After
//!   that it sends a message at least every [`HEARTBEAT`](crate::limits::HEARTBEAT), and so does
//!   the manager. Either side ends the session after
//!   [`SESSION_TIMEOUT`](crate::limits::SESSION_TIMEOUT) without a message.
//! - The manager sends a `Snapshot`, which replaces the agent's state, then `Delta`s. Their
//!   revisions only increase. A delta without changes means that nothing up to its revision
//!   concerns the agent. A later snapshot is possible at any time.
//! - The agent sends `Applied` once its kernel has a revision, also for one without changes.
//! - A network with `removing` accepts no new endpoints. Before the agent sends `Applied` for that
//!   revision, it has reported every endpoint of the network that it attached, or is still
//!   attaching, in an `EndpointReport`.
//! - Each `EndpointReport` is answered by `EndpointsTaken` with its number, or that of a later one.
//! - Each `Cede` is answered by one `CedeAnswer` with the same network, address and revision. The
//!   manager asks again in the next session if it has not received the answer.
//! - A `Probe` of a node is reported once its result is known: *answering* after an answer, *not
//!   answering* after 800 ms without one. Changes are reported at once, and all results every
//!   second. [`probe_targets`](crate::probe_targets) selects the nodes to probe.

use mesh_proto::MAX_MESSAGE;
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::v1::session_client::SessionClient;
use tonic::transport::Channel;

/// Returns a session client that accepts messages as large as snapshots may be.
pub fn session_client(channel: Channel) -> SessionClient<Channel> {
    SessionClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}

/// Returns a client for all other calls that accepts responses as large as lists may be.
pub fn control_client(channel: Channel) -> ControlClient<Channel> {
    ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}
