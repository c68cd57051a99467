//! Every time and size that the managers go by.

use std::time::Duration;

/// A TLS handshake that takes longer is given up.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections without a member's certificate, those in their handshake included: in all, and from
/// one address.
pub(crate) const MAX_ANONYMOUS: usize = 256;
pub(crate) const MAX_ANONYMOUS_PER_ADDRESS: usize = 64;
/// A connection without a certificate is closed after so long: joining takes less.
pub(crate) const ANONYMOUS: Duration = Duration::from_secs(30);
/// Connections of one node; the newest stay.
pub(crate) const MAX_PER_NODE: usize = 8;
/// Calls under way on one connection.
pub(crate) const MAX_STREAMS: u32 = 512;
/// Connecting to a manager, TCP and TLS together.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// A call that has not been answered by then is given up by its client.
pub(crate) const CALL: Duration = Duration::from_secs(30);
/// HTTP/2 pings on a connection, and how long their answer may take.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// When the server ends, calls under way have this long to finish.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);

/// Longest interval between two messages of either side of a session.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// A session without a message for this long has ended.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(2);
/// A session without a message for longer than this does not contradict probers that get no reply:
/// one heartbeat and some slack.
pub(crate) const MESSAGE_GAP: Duration = Duration::from_millis(700);
/// A report of probes is valid for this long; an agent reports every second.
pub(crate) const PROBE_REPORT_VALIDITY: Duration = Duration::from_millis(2500);
/// Node states are derived anew this often, beside at each event.
pub(crate) const LIVENESS_TICK: Duration = Duration::from_millis(100);
/// The first message of a session must come within.
pub(crate) const HELLO: Duration = Duration::from_secs(5);
/// Messages queued for one session; it is dropped when it takes none for so long.
pub(crate) const SESSION_QUEUE: usize = 16;
pub(crate) const SESSION_STALL: Duration = Duration::from_secs(5);
/// Batches of changes that a session may be behind before it starts anew with a snapshot.
pub(crate) const FEED_BACKLOG: usize = 1024;

/// How long a change waits until every agent that is concerned has it in its kernel: one that is
/// alive, but busy. The session of one that is not ends before.
pub const APPLIED: Duration = Duration::from_secs(15);
/// How long the agents have to answer whether sockets of their hosts have a port. A change that an
/// agent in session did not answer about is refused.
pub(crate) const PORT_CHECK: Duration = Duration::from_secs(10);
/// An agent whose session ended while it was asked something has this long to begin another one.
pub(crate) const RESUME: Duration = Duration::from_secs(1);
/// Agents that had a session with a manager before it began anew report within: they try to reach
/// it every 2 s at least, and a busy machine takes its time.
pub(crate) const FIRST_REPORTS: Duration = Duration::from_secs(5);
/// How long a rotation waits until the agents have announced their new keys.
pub(crate) const ROTATION: Duration = Duration::from_secs(5);
/// How long the removal of a network waits until every agent of the network has stopped attaching.
pub(crate) const REMOVING: Duration = Duration::from_secs(3);
/// How long a borrow waits for the answer of the owner of the block: one that is busy. One whose
/// host is down is not waited for.
pub(crate) const CEDE: Duration = Duration::from_secs(5);
/// How long a lease call waits for an owner that has no session but whose host is not down: its
/// agent tries to reach a manager every 2 s at least.
pub(crate) const RETURN: Duration = Duration::from_secs(5);
/// An address that a node has ceased to use counts as used for this long when the node asks for
/// more: it must rest.
pub(crate) const RESTING: Duration = Duration::from_secs(90);
/// How long a lease call waits for the reports of endpoints that would explain why the node needs
/// more addresses.
pub(crate) const EXPLAINED: Duration = Duration::from_secs(2);
/// How often a transaction is tried that others keep overtaking.
pub(crate) const TRIES: usize = 64;
/// History of the store that is kept for watches.
pub(crate) const COMPACT_EVERY: Duration = Duration::from_mins(5);
