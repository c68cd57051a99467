//! The kernel's WireGuard.
//!
//! Its device is a layer-3 device without frames that could carry network and peer. It sends and
//! receives VXLAN packets between tunnel addresses; the eBPF programs encapsulate and decapsulate
//! them. This engine creates the device, sets its keys and peers, and brings it up. The device has
//! no address, and no route leads to it. Packets that no program takes at its ingress do not enter
//! the host.
//!
//! A kernel device has one private key, and an address belongs to one key of a peer. So packets
//! have a different source address for each of a node's two keys ([`crate::TunnelSources`]), and
//! both are accepted. The node's tunnel address belongs to the key that is used for sending: the
//! one with the latest handshake, which [`WireguardEngine::follow`] determines. Until then the
//! previous session continues. A device whose key was replaced still decrypts packets of its old
//! sessions, but does not encrypt with them. It starts new sessions at once; the kernel queues
//! packets meanwhile, 128 for each peer.
//!
//! If both sides start a handshake at the same time, neither has a session for five seconds. So
//! peers are first contacted with the key that is used for sending, and with others only if they do
//! not respond.

mod link;
mod messages;

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, SystemTime},
};

use mesh_sys::netlink::{Netlink, RequestError, parse};
use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd, WireguardMessage};
use netlink_sys::protocols::NETLINK_GENERIC;

use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};

use self::messages::{Device, Greeting, Replaced};
use crate::{
    EngineConfig, EngineKind, EngineStatus, Error, OwnKey, PeerConfig, PrivateKey, PublicKey, Result,
    TunnelSources, WireguardEngine, device,
};

/// The generic netlink family.
const FAMILY: &str = "wireguard";
/// Queue length of the device, in packets.
const QUEUE: i32 = 1000;
/// How long a peer may take to respond to a handshake with the key used for sending, before its
/// other keys are tried.
const PATIENCE: Duration = Duration::from_millis(500);

/// Tests that the kernel can create, configure and start a device as [`KernelEngine`] needs it.
/// Uses a temporary network namespace, so nothing becomes visible on the host. The query makes the
/// kernel load its WireGuard module, if there is one and the caller may.
pub fn try_kernel_wireguard() -> Result<()> {
    let tried = thread::Builder::new()
        .name("wireguard-trial".to_owned())
        .spawn(|| {
            // Query first: a kernel without WireGuard is reported before anything else can fail.
            let mut engine = KernelEngine::new()?;
            unshare(CloneFlags::CLONE_NEWNET).map_err(Error::system("create a network namespace"))?;
            engine.apply(&sample()?)
        })
        .map_err(Error::system("start a thread"))?
        .join();
    match tried {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Error::NoKernelWireguard)) => Err(Error::NoKernelWireguard),
        Ok(Err(error)) => Err(Error::Trial(Box::new(error))),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A sample configuration with one peer.
fn sample() -> Result<EngineConfig> {
    let keys = BTreeMap::from([(1, PrivateKey::generate()?.public())]);
    let tunnel_address = Ipv4Addr::new(198, 18, 0, 2);
    let sources = |number| TunnelSources {
        even: Ipv4Addr::new(100, 64, 0, number),
        odd: Ipv4Addr::new(100, 65, 0, number),
    };
    Ok(EngineConfig {
        device: "meshwgtrial0".to_owned(),
        device_index: None,
        listen_port: 51820,
        vxlan_port: 4789,
        inner_mtu: 1390,
        tunnel_address: Ipv4Addr::new(198, 18, 0, 1),
        sources: sources(1),
        keys: vec![OwnKey { generation: 1, private: PrivateKey::generate()?, active: true }],
        peers: BTreeMap::from([(
            2,
            PeerConfig { endpoint: None, tunnel_address, sources: sources(2), keys },
        )]),
    })
}

/// The engine. Unlike that of the engine in user space, its device remains when this value is
/// dropped.
#[derive(Debug)]
pub struct KernelEngine {
    family: u16,
    config: Option<EngineConfig>,
    /// The device is new, so its peers do not know it yet.
    unknown: bool,
    /// The last replacement of its key.
    replaced: Option<Replaced>,
}

impl KernelEngine {
    /// Connects to the kernel's WireGuard, or fails with [`Error::NoKernelWireguard`].
    pub fn new() -> Result<Self> {
        Ok(Self { family: family()?, config: None, unknown: false, replaced: None })
    }

    /// Removes the WireGuard device with this name that an earlier engine left. Keeps a device of
    /// another kind; succeeds if there is none.
    pub fn remove_left(device: &str) -> Result<()> {
        if if_nametoindex(device).is_err() {
            return Ok(());
        }
        match Self::new() {
            Ok(engine) if engine.device(device).is_ok() => link::remove(device),
            Ok(_) | Err(Error::NoKernelWireguard) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sets which peers must be contacted next after a replacement of the own key.
    fn greet_next(&mut self, next: Option<Greeting>) {
        if let Some(replaced) = &mut self.replaced {
            replaced.greeting = next;
        }
    }

    fn device(&self, name: &str) -> Result<Device> {
        let mut device = Device::default();
        let attributes = vec![WireguardAttribute::IfName(name.to_owned())];
        let request = self.message(WireguardCmd::GetDevice, attributes);
        let parts = Netlink::open(NETLINK_GENERIC).map_err(RequestError::from).and_then(|mut netlink| {
            netlink.dump(&request, |part| Ok(Some(parse::<GenlMessage<WireguardMessage>>(part)?)))
        });
        let parts = parts.map_err(|error| match error.errno() {
            // One of another kind.
            Some(Errno::EOPNOTSUPP) => Error::DeviceTaken { device: name.to_owned() },
            _ => Error::System { action: format!("read the device {name}"), source: error.into() },
        })?;
        for part in parts {
            messages::read(&part.payload.attributes, SystemTime::now(), &mut device);
        }
        Ok(device)
    }

    fn set(&self, config: &EngineConfig, messages: Vec<Vec<WireguardAttribute>>) -> Result<()> {
        let failed = |error: RequestError| match error.errno() {
            Some(Errno::EADDRINUSE) => Error::PortTaken { port: config.listen_port },
            _ => {
                Error::System { action: format!("set up the device {}", config.device), source: error.into() }
            }
        };
        let mut netlink = Netlink::open(NETLINK_GENERIC).map_err(|error| failed(error.into()))?;
        for attributes in messages {
            netlink.request(self.message(WireguardCmd::SetDevice, attributes), 0).map_err(failed)?;
        }
        Ok(())
    }

    fn message(
        &self,
        cmd: WireguardCmd,
        attributes: Vec<WireguardAttribute>,
    ) -> GenlMessage<WireguardMessage> {
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.set_resolved_family_id(self.family);
        message
    }
}

impl WireguardEngine for KernelEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Kernel
    }

    fn apply(&mut self, config: &EngineConfig) -> Result<()> {
        config.validate()?;
        let name = &config.device;
        let is_new = link::create(name, config.device_index)?;
        let device = self.device(name)?;
        let index =
            if_nametoindex(name.as_str()).map_err(Error::system(format!("find the device {name}")))?;
        if config.device_index.is_some_and(|wanted| wanted != index) {
            return Err(Error::DeviceTaken { device: name.clone() });
        }
        self.unknown |= is_new;
        self.replaced = messages::replaced(config, &device).or(self.replaced);
        device::isolate(name)
            .map_err(Error::system(format!("keep the host apart from the device {name}")))?;
        // Endpoints as configured before: a peer that moved since keeps its new endpoint.
        let configured: BTreeMap<PublicKey, Option<SocketAddr>> = self
            .config
            .iter()
            .flat_map(|config| config.peers.values())
            .flat_map(|peer| peer.keys.values().map(|key| (*key, peer.endpoint)))
            .collect();
        self.set(config, messages::changes(config, &configured, &device))?;
        let up = mesh_sys::device::configure(name, config.device_mtu(EngineKind::Kernel), QUEUE);
        up.map_err(|source| match source.kind() {
            // The kernel binds the port when the device comes up.
            io::ErrorKind::AddrInUse => Error::PortTaken { port: config.listen_port },
            _ => Error::System { action: format!("bring up the device {name}"), source },
        })?;
        self.config = Some(config.clone());
        let greeting = self.replaced.and_then(|replaced| replaced.greeting);
        if self.unknown {
            let keys = config.peers.values().flat_map(|peer| peer.keys.values());
            self.set(config, messages::greetings(keys, config))?;
            self.unknown = false;
            self.greet_next(None);
        } else if greeting == Some(Greeting::InUse) {
            self.set(config, messages::greetings(&messages::in_use(config, &device), config))?;
            self.greet_next(Some(Greeting::Others));
        }
        Ok(())
    }

    fn follow(&mut self) -> Result<()> {
        let Some(config) = &self.config else { return Ok(()) };
        let device = self.device(&config.device)?;
        self.set(config, messages::moves(config, &device))?;
        let due = |replaced: &&Replaced| {
            replaced.greeting == Some(Greeting::Others) && replaced.at.elapsed() >= PATIENCE
        };
        let Some(replaced) = self.replaced.as_ref().filter(due) else { return Ok(()) };
        let silent = messages::others_of_silent(config, &device, replaced);
        self.set(config, messages::greetings(&silent, config))?;
        self.greet_next(None);
        Ok(())
    }

    fn status(&mut self) -> Result<EngineStatus> {
        let peers = match &self.config {
            Some(config) => messages::status(config, &self.device(&config.device)?, self.replaced.as_ref()),
            None => BTreeMap::new(),
        };
        Ok(EngineStatus { engine: self.kind(), peers, drops: BTreeMap::new() })
    }

    fn remove(&mut self) -> Result<()> {
        match self.config.take() {
            Some(config) => link::remove(&config.device),
            None => Ok(()),
        }
    }
}

/// Returns the number of the generic netlink family.
fn family() -> Result<u16> {
    let request = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
    });
    let found = Netlink::open(NETLINK_GENERIC)
        .map_err(RequestError::from)
        .and_then(|mut netlink| netlink.get(request, parse::<GenlMessage<GenlCtrl>>));
    match found {
        Ok(found) => {
            let id = found.payload.nlas.into_iter().find_map(|attribute| match attribute {
                GenlCtrlAttrs::FamilyId(id) => Some(id),
                _ => None,
            });
            id.ok_or(Error::NoKernelWireguard)
        }
        Err(error) if error.errno() == Some(Errno::ENOENT) => Err(Error::NoKernelWireguard),
        Err(error) => Err(Error::system("query the kernel for WireGuard")(error)),
    }
}

#[cfg(test)]
mod tests;
