//! VXLAN packets from other nodes.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use mesh_ebpf::headers::{Buffer, ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Headers};
use mesh_ebpf::ip;
use mesh_ebpf::vxlan::{OUTER, Outer, UDP_CHECKSUM_OFFSET, VNI_OFFSET};
use mesh_ebpf_types::{
    ALLOW_FORWARDING, Address, Config, ENCRYPTED, Encapsulation, Network, PROBE_REPLY_VNI, PROBE_REQUEST,
    PROBE_REQUEST_VNI, PROBE_UNANSWERED, PROBED_BY_WIREGUARD, PUBLISHED_BIT, REPLY_BIT, Reason, Vni,
    WIREGUARD_USERSPACE_IFINDEX,
};

use super::count::{count, dropped};
use super::service::packet::Packet;
use super::service::{flows, inbound, published, run_after_fast_path, run_published};
use super::skb::Skb;
use super::verdict::Verdict;
use super::{maps, receive, received};

#[inline(always)]
pub(super) fn underlay(skb: Skb) -> Verdict {
    if skb.has_vlan() || skb.is_for_another_host() {
        return Verdict::Pass;
    }
    match skb.ethertype() {
        ETHERTYPE_IPV4 => {
            let mut verdict = flows::arrived(skb);
            if verdict == Verdict::SlowPath {
                verdict = received::deliver(skb);
            }
            if verdict != Verdict::SlowPath {
                return run_after_fast_path(skb, verdict);
            }
            // SAFETY: no reference to it exists yet.
            let Some(packet) = (unsafe { Packet::take() }) else { return Verdict::Pass };
            let verdict = decide(skb, packet);
            let verdict = run_published(skb, packet, verdict);
            if verdict != Verdict::Pass {
                return verdict;
            }
        }
        ETHERTYPE_IPV6 => {}
        _ => return Verdict::Pass,
    }
    // SAFETY: no reference to it exists.
    let Some(packet) = (unsafe { Packet::take() }) else { return Verdict::Pass };
    let verdict = published::arrived(skb, packet);
    run_published(skb, packet, verdict)
}

/// Offset of the byte in which a prober reports whether its earlier probes were answered: a
/// reserved byte after the VNI.
const FLAGS_OF_PROBE: usize = VNI_OFFSET + 3;

#[inline(never)]
fn decide(skb: Skb, packet: &mut Packet) -> Verdict {
    let generation = maps::generation();
    let Some(config) = maps::config() else { return Verdict::Pass };
    let Some(local) = config.local.to_v4() else { return Verdict::Pass };
    let mut buffer = Buffer::<OUTER>::new();
    let frame = &mut buffer.bytes;
    if skb.read(0, frame).is_err() {
        return Verdict::Pass;
    }
    // A probe of WireGuard's path differs from one of VXLAN's only in its port. WireGuard messages
    // begin with another byte.
    let by_wireguard = [frame[36], frame[37]] == config.wireguard_port && frame[42] == 0x08;
    let port = if by_wireguard { config.wireguard_port } else { config.vxlan_port };
    let Some(outer) = Outer::parse(frame, local, port, skb.length(), skb.is_gso()) else {
        return Verdict::Pass;
    };
    if by_wireguard && outer.vni != PROBE_REQUEST_VNI && outer.vni != PROBE_REPLY_VNI {
        return Verdict::Pass;
    }
    let sender = Address::from_v4(outer.source);
    if !maps::is_member(sender) {
        return dropped(skb, Vni::NONE, Reason::NotMember);
    }
    if outer.vni == PROBE_REQUEST_VNI || outer.vni == PROBE_REPLY_VNI {
        return probe(skb, frame, &outer, sender, by_wireguard, receiver_answers(config, by_wireguard));
    }
    let vni = outer.vni;
    if vni.number() & PUBLISHED_BIT != 0 {
        return if outer.plain {
            of_mesh(skb, packet, config, vni.number(), outer.source)
        } else {
            Verdict::Pass
        };
    }
    let Some(network) = maps::network(vni) else { return dropped(skb, Vni::NONE, Reason::UnknownNetwork) };
    if network.flags & ENCRYPTED != 0 {
        return dropped(skb, vni, Reason::EncryptedInClear);
    }
    if !outer.plain || config.encapsulation == Encapsulation::Device as u8 {
        return Verdict::Pass;
    }
    match decapsulate(skb, packet, generation, &outer, network) {
        Ok(verdict) => verdict,
        Err(reason) => dropped(skb, vni, reason),
    }
}

/// Removes the outer headers of a packet of the routing mesh. Packets that leave the mesh here must
/// not keep the kernel's tunnel metadata.
#[inline(always)]
fn of_mesh(skb: Skb, packet: &mut Packet, config: &Config, vni: u32, sender: [u8; 4]) -> Verdict {
    let mut headers = Headers::new();
    if let Err(reason) = receive::read(skb, const { OUTER as u32 }, &mut headers) {
        return dropped(skb, Vni::NONE, reason);
    }
    if config.encapsulation == Encapsulation::Device as u8
        || skb.is_gso() && (headers.next() != ip::TCP || vni & REPLY_BIT != 0)
        || skb.shrink_outer(headers.is_v6()).is_err()
    {
        return Verdict::Pass;
    }
    // The outer Ethernet header remains; the inner one has no addresses.
    if headers.is_v6() && skb.store(12, &[0x86, 0xdd]).is_err() {
        return dropped(skb, Vni::NONE, Reason::DecapsulationFailed);
    }
    published::of_mesh(packet, vni, u32::from_ne_bytes(sender), false, headers.source_mac())
}

/// Removes the outer headers and delivers the frame.
///
/// This leaves the kernel's tunnel metadata on the packet. A container that only receives TCP never
/// notices. UDP super-packets would be lost, and a container that forwards might pass it on to a
/// network card. Such packets go through the VXLAN device, which clears the metadata. So do packets
/// that the kernel refuses here: IPv6 before 6.3.
#[inline(always)]
fn decapsulate(
    skb: Skb,
    packet: &mut Packet,
    generation: u64,
    outer: &Outer,
    network: &Network,
) -> Result<Verdict, Reason> {
    let vni = outer.vni;
    let mut headers = Headers::new();
    receive::read(skb, const { OUTER as u32 }, &mut headers)?;
    let endpoint = receive::receiver(&headers, vni, network)?;
    let forwards = endpoint.flags & ALLOW_FORWARDING != 0;
    if skb.is_gso() && (headers.next() != ip::TCP || forwards) {
        return Ok(Verdict::Pass);
    }
    if skb.shrink_outer(headers.is_v6()).is_err() {
        return Ok(Verdict::Pass);
    }
    let from_backend = maps::is_backend(vni, headers.source());
    received::remember(generation, outer, &headers, endpoint, from_backend);
    let mac = [u32::from_ne_bytes(headers.word(0)), u16::from_ne_bytes(headers.half(4)).into()];
    headers.set_mac(0, endpoint.mac);
    let ethernet = headers.bytes.first_chunk::<ETHERNET>().ok_or(Reason::Malformed)?;
    skb.store(0, ethernet).map_err(|_| Reason::DecapsulationFailed)?;
    count(skb, vni, Reason::Received);
    if from_backend {
        return Ok(inbound::from_backend(
            packet,
            vni,
            endpoint.ifindex,
            u32::from_ne_bytes(outer.source),
            mac,
        ));
    }
    skb.deliver_as_is(endpoint.ifindex).map_err(|_| Reason::DecapsulationFailed)
}

/// Returns whether the receiver of a path's packets answers its probes: the engine in user space,
/// or the VXLAN device ([`super::overlay`]). Probes then pass the host's firewall, as those packets
/// do.
#[inline(always)]
const fn receiver_answers(config: &Config, by_wireguard: bool) -> bool {
    if by_wireguard {
        config.wireguard_ifindex == WIREGUARD_USERSPACE_IFINDEX
    } else {
        config.encapsulation == Encapsulation::Device as u8
    }
}

/// Handles a probe of another node, or an answer to this node's. `passes` means that another
/// component answers.
#[inline(always)]
fn probe(
    skb: Skb,
    frame: &[u8; OUTER],
    outer: &Outer,
    sender: Address,
    by_wireguard: bool,
    passes: bool,
) -> Verdict {
    // SAFETY: takes no arguments, returns the time.
    let now = unsafe { bpf_ktime_get_ns() };
    let path = if by_wireguard { PROBED_BY_WIREGUARD } else { 0 };
    if outer.vni == PROBE_REQUEST_VNI {
        maps::record_path(sender, path | PROBE_REQUEST, now);
        if frame[FLAGS_OF_PROBE] != 0 {
            maps::record_path(sender, path | PROBE_REQUEST | PROBE_UNANSWERED, now);
        }
        return match (passes, by_wireguard) {
            (false, _) => answer_probe(skb, frame),
            (true, true) => Verdict::Pass,
            (true, false) => pass_probe(skb, frame),
        };
    }
    if !by_wireguard {
        maps::record_probe(sender, now);
    }
    maps::record_path(sender, path, now);
    Verdict::Drop
}

/// Leaves a probe to the VXLAN device, which accepts only packets with zero reserved bytes.
#[inline(always)]
fn pass_probe(skb: Skb, frame: &[u8; OUTER]) -> Verdict {
    let to = vni_field(PROBE_REQUEST_VNI);
    let mut from = to;
    from[3] = frame[FLAGS_OF_PROBE];
    let at = const { VNI_OFFSET as u32 };
    match skb.store_checksummed(at, from, to, const { UDP_CHECKSUM_OFFSET as u32 }) {
        Ok(()) => Verdict::Pass,
        Err(_) => dropped(skb, Vni::NONE, Reason::Malformed),
    }
}

/// Sends a liveness probe back to the VXLAN port of the prober, whose underlay program records the
/// answer.
#[inline(always)]
fn answer_probe(skb: Skb, frame: &[u8; OUTER]) -> Verdict {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *frame;
    let macs = [s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5];
    let mut addresses = [0; 8];
    addresses[..4].copy_from_slice(&frame[30..34]);
    addresses[4..].copy_from_slice(&frame[26..30]);
    let (mut from, to) = (vni_field(PROBE_REQUEST_VNI), vni_field(PROBE_REPLY_VNI));
    from[3] = frame[FLAGS_OF_PROBE];
    let answered = skb.store(0, &macs).and_then(|()| skb.store(26, &addresses)).and_then(|()| {
        skb.store_checksummed(const { VNI_OFFSET as u32 }, from, to, const { UDP_CHECKSUM_OFFSET as u32 })
    });
    if answered.is_err() {
        return dropped(skb, Vni::NONE, Reason::Malformed);
    }
    count(skb, Vni::NONE, Reason::ProbeAnswered);
    skb.mark();
    skb.send(skb.ifindex())
}

/// Returns the VNI field of the VXLAN header, which ends with a reserved byte.
#[inline(always)]
const fn vni_field(vni: Vni) -> [u8; 4] {
    let [_, v0, v1, v2] = vni.0;
    [v0, v1, v2, 0]
}
