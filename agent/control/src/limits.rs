//! All timeouts and size limits of managers.

use std::time::Duration;

/// Timeout of a TLS handshake.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);
/// Maximum numbers of connections without a member's certificate, including those in their
/// handshake: in total, and from one address.
pub(crate) const MAX_ANONYMOUS: usize = 256;
pub(crate) const MAX_ANONYMOUS_PER_ADDRESS: usize = 64;
/// A connection without a certificate is closed after this time: joining takes less.
pub(crate) const ANONYMOUS: Duration = Duration::from_secs(30);
/// Maximum number of connections of one node; the newest stay.
pub(crate) const MAX_PER_NODE: usize = 8;
/// Maximum number of concurrent calls on one connection.
pub(crate) const MAX_STREAMS: u32 = 512;
/// Timeout for connecting to a manager, TCP and TLS together.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// A client gives up a call that was not answered by then.
pub(crate) const CALL: Duration = Duration::from_secs(30);
/// Interval of HTTP/2 pings on a connection, and the timeout of their answers.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// When the server ends, running calls have this long to finish.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);

/// Longest interval between two messages of either side of a session.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// A session without a message for this long has ended.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(2);
/// A session without a message for longer than this does not contradict probers that get no reply:
/// one heartbeat and some tolerance.
pub(crate) const MESSAGE_GAP: Duration = Duration::from_millis(700);
/// A report of probes is valid for this long; an agent reports every second.
pub(crate) const PROBE_REPORT_VALIDITY: Duration = Duration::from_millis(2500);
/// Interval at which node states are derived, in addition to each event.
pub(crate) const LIVENESS_TICK: Duration = Duration::from_millis(100);
/// Timeout for the first message of a session.
pub(crate) const HELLO: Duration = Duration::from_secs(5);
/// Messages queued for one session, and how long it may accept none before it is dropped.
pub(crate) const SESSION_QUEUE: usize = 16;
pub(crate) const SESSION_STALL: Duration = Duration::from_secs(5);
/// Batches of changes that a session may be behind before it starts again with a snapshot.
pub(crate) const FEED_BACKLOG: usize = 1024;

/// How long a change waits until every agent concerned has applied it. The agent may be alive but
/// busy; the session of a dead one ends sooner.
pub const APPLIED: Duration = Duration::from_secs(15);
/// How long the agents have to report whether sockets of their hosts use a port. If an agent in
/// session does not answer, the change is refused.
pub(crate) const PORT_CHECK: Duration = Duration::from_secs(10);
/// If a session ends during a request to its agent, the agent has this long to begin another one.
pub(crate) const RESUME: Duration = Duration::from_secs(1);
/// After a manager's restart, agents that had a session report within this time. They retry at
/// least every 2 s, and a busy machine may be slow.
pub(crate) const FIRST_REPORTS: Duration = Duration::from_secs(5);
/// How long a rotation waits until the agents have announced their new keys.
pub(crate) const ROTATION: Duration = Duration::from_secs(5);
/// How long the removal of a network waits until every agent of the network has stopped attaching.
pub(crate) const REMOVING: Duration = Duration::from_secs(3);
/// How long a borrow waits for the answer of the block's owner, which may be busy. It does not wait
/// for an owner whose host is down.
pub(crate) const CEDE: Duration = Duration::from_secs(5);
/// How long a lease call waits for an owner that has no session but whose host is not down: its
/// agent retries at least every 2 s.
pub(crate) const RETURN: Duration = Duration::from_secs(5);
/// An address that a node has stopped using counts as used for this long when the node requests
/// more: it must rest.
pub(crate) const RESTING: Duration = Duration::from_secs(90);
/// How long a lease call waits for reports of endpoints that would explain why the node needs more
/// addresses.
pub(crate) const EXPLAINED: Duration = Duration::from_secs(2);
/// Maximum number of attempts of a transaction with concurrent changes.
pub(crate) const TRIES: usize = 64;
/// How much history of the store is kept for watches.
pub(crate) const COMPACT_EVERY: Duration = Duration::from_mins(5);
