//! The programs of the fuzzed host, and what must hold for each packet.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use aya::programs::{ProgramInfo, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya_obj::generated::bpf_prog_type;
use aya_obj::programs::XdpAttachType;
use mesh_harness::{Container, Host, Lab, Netns};
use serde_json::Value;

use super::Outcome;
use super::packet::{Mutator, Site};

/// Verdicts of tc and of XDP, as `linux/pkt_cls.h` and `linux/bpf.h` number them.
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;
const XDP_DROP: u32 = 1;
const XDP_TX: u32 = 3;
/// Offsets in `struct __sk_buff` and its length, bytes.
const IFINDEX: usize = 40;
const GSO_SIZE: usize = 176;
const SK_BUFF: usize = 192;
/// Set in the VNIs of the routing mesh, which no network has.
const PUBLISHED_BIT: u32 = 0x80_0000;

/// Who sends the packets that a program gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The container of network `red`.
    Red,
    /// Another node, over the wire.
    Wire,
    /// Whoever else.
    Other,
}

enum Loaded {
    Classifier(SchedClassifier),
    Xdp(Xdp),
}

/// A program at one of its interfaces.
pub(super) struct Target {
    pub(super) program: String,
    pub(super) interface: String,
    origin: Origin,
    netns: Netns,
    ifindex: u32,
    loaded: Loaded,
}

/// Every packet program that the host has pinned, each where it is attached.
pub(super) fn all(lab: &Lab, containers: &[Container], _site: &Site) -> anyhow::Result<Vec<Target>> {
    let host = lab.host(1);
    let mut targets = Vec::new();
    for path in pinned(&host)? {
        let program = path.file_name().context("a pin has a name")?.to_string_lossy().into_owned();
        let at: Vec<(String, u32, Origin)> = match program.as_str() {
            "endpoint" => vec![
                ("red".to_owned(), outer(&containers[0])?, Origin::Red),
                ("secret".to_owned(), outer(&containers[3])?, Origin::Other),
            ],
            "overlay" => vec![device(&host, "meshvx0", Origin::Other)?],
            "host" => vec![device(&host, "mesh0p", Origin::Other)?],
            "wireguard" => vec![device(&host, "meshwg0", Origin::Other)?],
            "egress" => vec![device(&host, "eth0", Origin::Other)?],
            _ => vec![device(&host, "eth0", Origin::Wire)?],
        };
        for (interface, ifindex, origin) in at {
            let Some(loaded) = open(&path)? else { continue };
            let (program, netns) = (program.clone(), host.netns().clone());
            targets.push(Target { program, interface, origin, netns, ifindex, loaded });
        }
    }
    ensure!(targets.len() >= 6, "only {} programs are pinned", targets.len());
    Ok(targets)
}

fn pinned(host: &Host) -> anyhow::Result<Vec<PathBuf>> {
    let versions = fs::read_dir(host.bpffs_dir()).context("list pins")?.flatten();
    let folder = versions.map(|entry| entry.path().join("programs")).find(|path| path.exists());
    let programs = fs::read_dir(folder.context("no programs are pinned")?)?;
    let mut paths: Vec<PathBuf> = programs.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// The program, unless it is one of sockets, which cannot be run on a packet.
fn open(path: &Path) -> anyhow::Result<Option<Loaded>> {
    Ok(match ProgramInfo::from_pin(path)?.program_type() {
        bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS => Some(Loaded::Classifier(SchedClassifier::from_pin(path)?)),
        bpf_prog_type::BPF_PROG_TYPE_XDP => Some(Loaded::Xdp(Xdp::from_pin(path, XdpAttachType::Interface)?)),
        _ => None,
    })
}

fn device(host: &Host, name: &str, origin: Origin) -> anyhow::Result<(String, u32, Origin)> {
    let links: Value = host.run(["ip", "-j", "link", "show", "dev", name])?.json()?;
    let ifindex = links[0]["ifindex"].as_u64().context("the index of a device")?;
    Ok((name.to_owned(), u32::try_from(ifindex)?, origin))
}

/// Index of the host's end of a container's pair of devices.
fn outer(container: &Container) -> anyhow::Result<u32> {
    let links: Value = container.exec(["ip", "-j", "link", "show", "dev", "eth0"])?.json()?;
    Ok(u32::try_from(links[0]["link_index"].as_u64().context("the other end of eth0")?)?)
}

impl Target {
    /// Runs the program on `count` packets.
    pub(super) fn fuzz(
        &self,
        count: u64,
        random: &mut Mutator,
        site: &Site,
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        self.netns.enter(|| {
            let mut out = vec![0; 4096];
            for _ in 0..count {
                let packet = random.packet(site, self.origin == Origin::Wire);
                let (verdict, length) = self.run(&packet, random, &mut out)?;
                outcome.packets += 1;
                match (&self.loaded, verdict) {
                    (Loaded::Classifier(_), TC_ACT_SHOT) | (Loaded::Xdp(_), XDP_DROP) => outcome.dropped += 1,
                    (Loaded::Classifier(_), TC_ACT_REDIRECT) | (Loaded::Xdp(_), XDP_TX) => {
                        outcome.redirected += 1;
                        self.check(&packet, &out[..length], site)?;
                    }
                    _ => outcome.passed += 1,
                }
            }
            anyhow::Ok(())
        })?
    }

    /// The program's verdict on a packet, and the length of what it made of it.
    fn run(&self, packet: &[u8], random: &mut Mutator, out: &mut [u8]) -> anyhow::Result<(u32, usize)> {
        let mut context = [0; SK_BUFF];
        let result = match &self.loaded {
            Loaded::Classifier(program) => {
                context[IFINDEX..IFINDEX + 4].copy_from_slice(&self.ifindex.to_ne_bytes());
                if random.below(16) == 0 {
                    context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&random.below(1500).to_ne_bytes());
                }
                program.test_run(options(packet, &context, out))
            }
            Loaded::Xdp(program) => {
                // `struct xdp_md`: the end of the data, and the interface that it came in by.
                context[4..8].copy_from_slice(&u32::try_from(packet.len())?.to_ne_bytes());
                context[12..16].copy_from_slice(&self.ifindex.to_ne_bytes());
                program.test_run(options(packet, &context[..24], out))
            }
        };
        let result = result.with_context(|| format!("{} on {packet:02x?}", self.program))?;
        Ok((result.return_value, usize::try_from(result.data_size_out)?.min(out.len())))
    }

    /// Fails if what the program sends on would reach a container of a network that the packet is
    /// not of.
    fn check(&self, packet: &[u8], sent: &[u8], site: &Site) -> anyhow::Result<()> {
        let leaves = match self.origin {
            Origin::Red => {
                // What the container itself fashioned as VXLAN has not the host's address.
                let is_tunnelled = sent.get(26..30) == Some(&site.local[..]);
                let vni = vni(sent).filter(|vni| is_tunnelled && vni & PUBLISHED_BIT == 0);
                sent.starts_with(&site.blue_mac) && !packet.starts_with(&site.blue_mac)
                    || vni.is_some_and(|vni| vni != site.red_vni)
            }
            Origin::Wire => {
                let came_for = vni(packet);
                let foreign = |mac, own| sent.starts_with(mac) && came_for != Some(own);
                came_for.is_some_and(|vni| vni & PUBLISHED_BIT == 0)
                    && (foreign(&site.blue_mac, site.blue_vni) || foreign(&site.red_mac, site.red_vni))
            }
            Origin::Other => false,
        };
        ensure!(!leaves, "{} delivers outside the network: {packet:02x?} became {sent:02x?}", self.program);
        Ok(())
    }
}

fn options<'a>(packet: &'a [u8], context: &'a [u8], out: &'a mut [u8]) -> TestRunOptions<'a> {
    TestRunOptions {
        data_in: Some(packet),
        data_out: Some(out),
        ctx_in: Some(context),
        ..TestRunOptions::default()
    }
}

/// The VNI of a frame that is VXLAN over UDP over IPv4 without options.
fn vni(frame: &[u8]) -> Option<u32> {
    let is_vxlan =
        frame.get(12..15)? == [8, 0, 0x45] && frame[23] == 17 && frame.get(36..38)? == [0x12, 0xb5];
    let vni = frame.get(46..49)?;
    is_vxlan.then(|| u32::from_be_bytes([0, vni[0], vni[1], vni[2]]))
}
