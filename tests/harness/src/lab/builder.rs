//! Making a lab.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use nix::{
    mount::MsFlags,
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use serde::{Deserialize, Serialize};

use super::{
    Binaries, Lab, name,
    state::{HostState, LabDir, LabState},
    teardown, underlay,
};
use crate::{Error, ProcessId, Result};

/// How long hosts may take to be ready once they have joined.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Control port of managers.
const CONTROL_PORT: u16 = 7377;
/// Hosts get the addresses .11 to .199, below the outside client's.
const MAX_HOSTS: u8 = 189;

/// How overlay packets are encapsulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Encapsulation {
    /// The eBPF programs write the outer headers.
    Direct,
    /// The kernel's VXLAN device does.
    Device,
}

impl Encapsulation {
    /// Value of meshd's `--encapsulation`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Device => "device",
        }
    }
}

/// How far a lab is brought up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Underlay,
    Daemons,
    Cluster,
}

/// The WireGuard engine that hosts of tests use on whatever kernel: `MESH_WIREGUARD_ENGINE`, or
/// `userspace`.
pub fn wireguard_engine() -> String {
    std::env::var("MESH_WIREGUARD_ENGINE").unwrap_or_else(|_| "userspace".to_owned())
}

/// Describes a lab; [`LabBuilder::start`] makes it.
#[derive(Debug, Clone)]
#[must_use = "a description of a lab is not a lab yet"]
pub struct LabBuilder {
    prefix: Option<String>,
    hosts: u8,
    underlay_mtu: u32,
    underlay_ipv6: bool,
    second_nic: bool,
    cabled: bool,
    encapsulation: Option<Encapsulation>,
    wireguard_engine: String,
    meshd_args: Vec<String>,
    meshd_config: String,
    init_args: Vec<String>,
    stage: Stage,
}

impl LabBuilder {
    pub(super) fn new() -> Self {
        Self {
            prefix: None,
            hosts: 3,
            underlay_mtu: 1500,
            underlay_ipv6: false,
            second_nic: false,
            cabled: false,
            encapsulation: None,
            wireguard_engine: wireguard_engine(),
            meshd_args: Vec::new(),
            meshd_config: String::new(),
            init_args: Vec::new(),
            stage: Stage::Cluster,
        }
    }

    /// Prefix of every name; one that no other lab has unless set.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Number of hosts, 1 to 189; 3 unless set.
    pub fn hosts(mut self, hosts: u8) -> Self {
        self.hosts = hosts.clamp(1, MAX_HOSTS);
        self
    }

    /// MTU of the underlay's devices in bytes; 1500 unless set.
    pub fn underlay_mtu(mut self, mtu: u32) -> Self {
        self.underlay_mtu = mtu;
        self
    }

    /// Gives the machines IPv6 addresses too: `fd77::11` and so on.
    pub fn underlay_ipv6(mut self, ipv6: bool) -> Self {
        self.underlay_ipv6 = ipv6;
        self
    }

    /// Gives hosts a second device, `eth1`, with the addresses 10.99.0.1 and so on (`fd99::1`,
    /// where the underlay has IPv6), on a network with an outside client of its own.
    pub fn second_nic(mut self, second_nic: bool) -> Self {
        self.second_nic = second_nic;
        self
    }

    /// Two hosts joined by one veth pair, without the bridge between them: the shortest wire, for
    /// measurements. They reach neither the outside nor the outside client, and cannot be
    /// unplugged.
    pub fn cabled(mut self) -> Self {
        self.cabled = true;
        self.hosts = 2;
        self
    }

    /// Forces meshd's way of encapsulating; its own choice unless set.
    pub fn encapsulation(mut self, encapsulation: Encapsulation) -> Self {
        self.encapsulation = Some(encapsulation);
        self
    }

    /// What carries encrypted networks, as meshd's `--wireguard-engine` has it;
    /// [`wireguard_engine`] unless set.
    pub fn wireguard_engine(mut self, engine: impl Into<String>) -> Self {
        self.wireguard_engine = engine.into();
        self
    }

    /// More arguments for every meshd.
    pub fn meshd_args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.meshd_args = args.into_iter().map(Into::into).collect();
        self
    }

    /// More lines for every meshd's configuration file.
    pub fn meshd_config(mut self, lines: impl Into<String>) -> Self {
        self.meshd_config = lines.into();
        self
    }

    /// More arguments for `meshctl cluster init`.
    pub fn init_args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.init_args = args.into_iter().map(Into::into).collect();
        self
    }

    /// The underlay only: no meshd on any host.
    pub fn without_meshd(mut self) -> Self {
        self.stage = Stage::Underlay;
        self
    }

    /// meshd runs on every host, but no cluster is made.
    pub fn without_cluster(mut self) -> Self {
        self.stage = Stage::Daemons;
        self
    }

    /// Makes the lab and returns when every host is ready. A failure leaves nothing behind.
    pub fn start(self) -> Result<Lab> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        teardown::take_down_abandoned();
        let dir = LabDir::new(&self.prefix.clone().unwrap_or_else(unique_prefix))?;
        let state = self.state(&dir);
        dir.create(&state)?;
        // From here on dropping it cleans up.
        let lab = Lab { dir, state, owned: true };
        underlay::create(&lab.state)?;
        if self.stage != Stage::Underlay {
            Binaries::locate()?;
            mount_bpffs()?;
            in_parallel(lab.hosts(), |host| host.start_meshd())?;
        }
        if self.stage == Stage::Cluster {
            self.make_cluster(&lab)?;
        }
        Ok(lab)
    }

    fn state(&self, dir: &LabDir) -> LabState {
        let hosts = (1..=self.hosts).map(|number| HostState {
            name: name::host(number.into()),
            number,
            address: underlay::address(number),
            address6: self.underlay_ipv6.then(|| underlay::address6(number)),
            meshd: None,
        });
        LabState {
            prefix: dir.prefix().to_owned(),
            owner: ProcessId::current(),
            underlay_mtu: self.underlay_mtu,
            underlay_ipv6: self.underlay_ipv6,
            second_nic: self.second_nic,
            cabled: self.cabled,
            encapsulation: self.encapsulation,
            wireguard_engine: self.wireguard_engine.clone(),
            meshd_args: self.meshd_args.clone(),
            meshd_config: self.meshd_config.clone(),
            hosts: hosts.collect(),
            containers: Vec::new(),
        }
    }

    fn make_cluster(&self, lab: &Lab) -> Result<()> {
        let manager = lab.host(1);
        let address = manager.address().to_string();
        let init = ["cluster", "init", "--advertise-addr", &address].map(str::to_owned);
        manager.meshctl(init.into_iter().chain(self.init_args.clone()))?.ok()?;
        if self.hosts > 1 {
            let token = manager.join_token("worker")?;
            let target = format!("{address}:{CONTROL_PORT}");
            in_parallel(lab.hosts().skip(1), |host| host.join(&token, &target)?.ok().map(drop))?;
        }
        lab.wait_ready(READY_TIMEOUT)
    }
}

/// A prefix that no other lab on this machine has: process and count.
fn unique_prefix() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("mt{}n{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Runs `body` for all items at once and returns all their errors.
fn in_parallel<T: Send>(items: impl Iterator<Item = T>, body: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    let errors = thread::scope(|scope| {
        let running: Vec<_> = items.map(|item| scope.spawn(|| body(item))).collect();
        let ended = running.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.filter_map(Result::err).collect()
    });
    Error::collect(errors)
}

/// Several meshds that start at once on a machine without bpffs would each mount one over the
/// other's.
fn mount_bpffs() -> Result<()> {
    let path = Path::new("/sys/fs/bpf");
    let mounted = statfs(path).map_err(|errno| Error::File {
        action: "look at",
        path: path.into(),
        source: errno.into(),
    })?;
    if mounted.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let lock_path = Path::new("/run/mesh-lab");
    let directory = fs::File::open(lock_path).map_err(Error::file("open", lock_path))?;
    let _lock = nix::fcntl::Flock::lock(directory, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, errno)| Error::File { action: "lock", path: lock_path.into(), source: errno.into() })?;
    if statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    nix::mount::mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| Error::File { action: "mount bpf at", path: path.into(), source: errno.into() })
}
