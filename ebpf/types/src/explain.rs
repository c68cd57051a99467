//! Explains drops and their remedies: the single text for documents and commands.

use crate::Reason;

/// Describes one kind of dropped packets for an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// What happened to the packet.
    pub meaning: &'static str,
    /// The usual causes.
    pub cause: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Reason {
    /// Describes the packets of a counter that is not a drop; `None` for drops.
    pub const fn carried(self) -> Option<&'static str> {
        Some(match self {
            Self::ForwardedLocal => "From an endpoint on this node to an endpoint on this node.",
            Self::ForwardedRemote => "From an endpoint on this node to another node.",
            Self::Received => "From another node to an endpoint on this node.",
            Self::ToHost => "From an endpoint to the host, or through the host to the outside.",
            Self::FromHost => "From the host to an endpoint.",
            Self::NeighbourAnswered => "Neighbour requests (ARP, ND) that the datapath answered.",
            Self::TooBigAnswered => {
                "Larger than the tunnel's MTU; the sender was notified (\"fragmentation needed\", \"packet \
                 too big\")."
            }
            Self::ProbeAnswered => "Liveness probes that the datapath answered.",
            Self::Published => "To a published port: sent to a backend.",
            Self::PublishedReply => "From a published port: a reply sent to its client.",
            Self::RefusalAnswered => {
                "To a service without backends, or of a connection whose backend is gone; the sender was \
                 notified (TCP reset, port unreachable)."
            }
            Self::SentEarly => {
                "Forwarded by the XDP program. These packets are also counted as `published` or \
                 `published_reply`."
            }
            _ => return None,
        })
    }

    /// Explains a drop; `None` for packets that were carried or answered.
    pub fn explanation(self) -> Option<Explanation> {
        let (_, [meaning, cause, remedy]) = *EXPLANATIONS.iter().find(|(reason, _)| *reason == self)?;
        Some(Explanation { meaning, cause, remedy })
    }
}

/// Every drop with its meaning, its usual causes and the remedy.
const EXPLANATIONS: &[(Reason, [&str; 3])] = &[
    (
        Reason::SpoofedMac,
        [
            "The frame's source MAC address is not the endpoint's.",
            "A bridge or a virtual machine inside the container, or a changed MAC address.",
            "Attach each inner machine as an endpoint, or restore the MAC address that `meshctl endpoint \
             inspect` shows.",
        ],
    ),
    (
        Reason::SpoofedIp,
        [
            "The packet's source address is not the endpoint's.",
            "The container routes for others, has an additional address, or forges addresses.",
            "Attach a router with `--allow-forwarding`. Otherwise remove the additional address.",
        ],
    ),
    (
        Reason::NotMember,
        [
            "VXLAN arrived from an address that is no node's data-path address.",
            "A host outside the cluster sends VXLAN, a NAT between nodes changes addresses, or a node \
             uses another source address.",
            "Compare the sender with `meshctl node ls`. Set `--data-path-addr` of the node, or block \
             the sender.",
        ],
    ),
    (
        Reason::UnknownNetwork,
        [
            "The network of the packet is not known on this node.",
            "The network was just created or removed, or another node's state is older.",
            "A few of these packets after a change are normal. If the number grows, compare the \
             revisions in `meshctl status` on both nodes.",
        ],
    ),
    (
        Reason::NoEndpoint,
        [
            "The destination is in the network's subnet, but no endpoint has it.",
            "The endpoint was detached, or the address was never allocated.",
            "Look up the destination with `meshctl endpoint ls --network NETWORK`.",
        ],
    ),
    (
        Reason::Isolated,
        [
            "The destination belongs to another network, or is a tunnel port.",
            "A container calls a container of another network, or sends VXLAN itself.",
            "Attach the container to both networks, or publish the port of the service.",
        ],
    ),
    (
        Reason::Internal,
        [
            "The destination is outside the network, and the network is internal.",
            "A container of an `--internal` network calls the outside.",
            "Attach the container to a second network that is not internal.",
        ],
    ),
    (
        Reason::EncryptedInClear,
        [
            "A packet of an encrypted network arrived outside WireGuard.",
            "Somebody forges packets on the underlay, or a node has an old state.",
            "Find the sender with a capture on the underlay. Compare the revisions in `meshctl status` \
             of the nodes.",
        ],
    ),
    (
        Reason::Multicast,
        [
            "Broadcast or multicast; only neighbour requests are answered.",
            "Programs such as mDNS, DHCP or IPv6 router discovery.",
            "Nothing to do. Mesh carries unicast only; leave this reason out of alerts.",
        ],
    ),
    (
        Reason::Malformed,
        [
            "The packet is truncated, or its lengths contradict each other.",
            "A faulty program with raw sockets, or a faulty network driver.",
            "Capture at the sender. Try `ethtool -K DEVICE tso off gso off` there to exclude the driver.",
        ],
    ),
    (
        Reason::TooBig,
        [
            "The packet exceeds the network's MTU, and the sender could not be notified.",
            "The container's interface has a larger MTU than the network, or the packet is no IP packet.",
            "Set the MTU of the container's interface to the value that `meshctl network inspect` shows.",
        ],
    ),
    (
        Reason::EncapsulationFailed,
        [
            "Neither the program nor the VXLAN device could encapsulate the packet.",
            "The kernel has no memory or no neighbour entry for the next hop, or a device is missing.",
            "Check `meshctl status`, the kernel log, and `ip neighbour` for the other node's address.",
        ],
    ),
    (
        Reason::DecapsulationFailed,
        [
            "The kernel refused to remove the outer headers, or to deliver the packet.",
            "The endpoint's device was just removed, or the kernel has no memory.",
            "A few of these packets at a detach are normal. If the number grows, read the kernel log.",
        ],
    ),
    (
        Reason::UnsupportedProtocol,
        [
            "The frame is not IPv4, IPv6 or ARP, has a VLAN tag, or is neighbour discovery other than a \
             solicitation.",
            "A container sends other protocols, such as LLDP, or uses VLAN interfaces.",
            "Nothing to do unless an application needs it: Mesh carries IP only.",
        ],
    ),
    (
        Reason::NotConfigured,
        [
            "The node lacks what this packet needs: the host leg or an IPv4 underlay address.",
            "The agent has just started, or a device was removed.",
            "Read the problems in `meshctl status`. The agent restores its devices within seconds.",
        ],
    ),
    (
        Reason::NoKey,
        [
            "The packet belongs to an encrypted network, and there is no tunnel to the node.",
            "The other node has not announced a key, the WireGuard device is missing, or its engine is \
             just being restarted.",
            "Read `meshctl status` on both nodes, and the keys in `meshctl node inspect NODE`.",
        ],
    ),
    (
        Reason::SpoofedPeer,
        [
            "A node sent a packet through WireGuard with a source address of another node.",
            "The node is compromised, or an address was just moved to another node.",
            "A few of these packets after such a move are normal. Otherwise examine the node; remove it \
             with `meshctl node rm --force NODE`.",
        ],
    ),
    (
        Reason::ForeignTunnel,
        [
            "UDP to or from the VXLAN or WireGuard port of a node, which Mesh did not send.",
            "A process on this host or a container behind its NAT tries to send tunnel packets, or \
             another product uses the same port.",
            "Find the sender with a capture. Give other products another port, or the cluster another \
             `--data-path-port`.",
        ],
    ),
    (
        Reason::HostAccess,
        [
            "The destination is a socket of a host or a cloud metadata service, and the network's \
             policy forbids it.",
            "A container calls its host, another node or a metadata service directly.",
            "Publish the port of the service, or allow the access: `meshctl network update --host-access \
             all NETWORK`, for metadata `--metadata allow`.",
        ],
    ),
    (
        Reason::HopLimit,
        [
            "The packet is to or from a published port, and its hop limit does not allow another hop.",
            "The sender uses a small TTL, traceroute for example, or a route leads packets round in a circle.",
            "Compare the routes of the hosts and of the client. For traceroute these drops are normal.",
        ],
    ),
    (
        Reason::Unresolved,
        [
            "The host does not know the next hop of the packet, and the endpoint sent more than 256 such \
             packets at once, or more than 64 a second.",
            "The container scans a network beside its host, or the host's gateway does not answer.",
            "Find the scanning process. If all endpoints of the host drop packets, restore the gateway.",
        ],
    ),
    (
        Reason::NoBackend,
        [
            "The service has no backend that can accept the packet, and the sender could not be notified.",
            "All backends were removed or drained, or the service was just deleted.",
            "Read the TRAFFIC column of `meshctl service ps SERVICE`. Add a backend.",
        ],
    ),
    (
        Reason::FragmentWithoutFirst,
        [
            "A later fragment of a packet arrived, and its first fragment is not known.",
            "The first fragment was lost, or arrived after a later one while the host does not forward.",
            "Avoid fragments: lower the MTU of the sender, or find the loss on the way.",
        ],
    ),
    (
        Reason::NotOurAddress,
        [
            "A reply of a published port has a source address that this host does not have.",
            "The host lost the address to which the client had connected.",
            "Clients connect again to an address that the host has.",
        ],
    ),
    (
        Reason::TranslationFailed,
        [
            "The kernel refused to rewrite or deliver the packet.",
            "The backend's device was just removed, or the kernel has no memory.",
            "A few of these packets at a detach are normal. If the number grows, read the kernel log.",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_and_nothing_else_has_one_explanation() {
        assert_eq!(EXPLANATIONS.len(), Reason::ALL.iter().filter(|reason| reason.is_drop()).count());
        for reason in Reason::ALL {
            assert_eq!(reason.explanation().is_some(), reason.is_drop(), "{}", reason.name());
            assert_eq!(reason.carried().is_some(), !reason.is_drop(), "{}", reason.name());
        }
    }
}
