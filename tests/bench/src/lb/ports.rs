//! The ports of what is measured, the same in every variant.

/// sockperf's TCP ping-pong.
pub(super) const PING_PONG: u16 = 7001;
/// sockperf's datagrams.
pub(super) const DATAGRAMS: u16 = 7002;
/// The web server: connections and downloads.
pub(super) const WEB: u16 = 7003;
/// All of them with their protocols.
pub(super) const ALL: [(&str, u16); 3] = [("tcp", PING_PONG), ("udp", DATAGRAMS), ("tcp", WEB)];
/// What HAProxy adds to a published port, beside whatever has the port itself.
pub(super) const HAPROXY: u16 = 1000;
