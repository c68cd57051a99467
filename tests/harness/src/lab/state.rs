//! What a lab consists of, on disk, so that one command can make it and another use it.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{
    builder::Encapsulation,
    name::{self, Names},
};
use crate::{Error, ProcessId, Result};

/// Where labs have their directories.
const LABS: &str = "/run/mesh-lab";

/// Everything about a lab. It is written before the things it names are made, so that clean-up
/// knows them all.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LabState {
    pub(super) prefix: String,
    /// The test that made the lab; without one it lives until it is taken down.
    pub(super) owner: Option<ProcessId>,
    pub(super) underlay_mtu: u32,
    pub(super) underlay_ipv6: bool,
    /// Whether hosts have a second device, on a network of its own.
    #[serde(default)]
    pub(super) second_nic: bool,
    /// Two hosts with a cable between them instead of ports on the bridge.
    pub(super) cabled: bool,
    pub(super) encapsulation: Option<Encapsulation>,
    pub(super) wireguard_engine: String,
    pub(super) meshd_args: Vec<String>,
    pub(super) meshd_config: String,
    pub(super) hosts: Vec<HostState>,
    pub(super) containers: Vec<ContainerState>,
}

/// One host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HostState {
    pub(super) name: String,
    /// Its number, from 1.
    pub(super) number: u8,
    pub(super) address: Ipv4Addr,
    pub(super) address6: Option<Ipv6Addr>,
    pub(super) meshd: Option<ProcessId>,
}

/// One container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ContainerState {
    pub(super) name: String,
    /// Name of the host that it is on.
    pub(super) host: String,
}

/// What `lab status` shows.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Hosts in order.
    pub hosts: Vec<HostStatus>,
    /// Containers in the order they were made.
    pub containers: Vec<ContainerStatus>,
}

/// One host in [`Status`].
#[derive(Debug, Clone, Serialize)]
pub struct HostStatus {
    /// `h1`
    pub name: String,
    /// `ml-h1`
    pub netns: String,
    /// Its IPv4 address on the underlay.
    pub address: Ipv4Addr,
    /// Its meshd, if it runs.
    pub meshd_pid: Option<i32>,
}

/// One container in [`Status`].
#[derive(Debug, Clone, Serialize)]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// Its namespace, `ml-NAME`.
    pub netns: String,
    /// The host that it is on.
    pub host: String,
}

impl LabState {
    pub(super) fn names(&self) -> Names<'_> {
        Names::new(&self.prefix)
    }

    pub(super) fn host_mut(&mut self, name: &str) -> Option<&mut HostState> {
        self.hosts.iter_mut().find(|host| host.name == name)
    }

    /// Every namespace of the lab: containers first, the bridge's last.
    pub(super) fn namespaces(&self) -> Vec<crate::Netns> {
        let names = self.names();
        let containers = self.containers.iter().map(|container| names.namespace(&container.name));
        let hosts = self.hosts.iter().map(|host| names.namespace(&host.name));
        let second = self.second_nic.then(|| names.second_client());
        containers.chain(hosts).chain(second).chain([names.client(), names.underlay()]).collect()
    }

    pub(super) fn status(&self) -> Status {
        let names = self.names();
        let netns = |name: &str| names.namespace(name).name().to_owned();
        Status {
            hosts: self
                .hosts
                .iter()
                .map(|host| HostStatus {
                    name: host.name.clone(),
                    netns: netns(&host.name),
                    address: host.address,
                    meshd_pid: host.meshd.filter(|meshd| meshd.is_alive()).map(|meshd| meshd.pid),
                })
                .collect(),
            containers: self
                .containers
                .iter()
                .map(|container| ContainerStatus {
                    name: container.name.clone(),
                    netns: netns(&container.name),
                    host: container.host.clone(),
                })
                .collect(),
        }
    }
}

/// A lab's directory. Changes are made under a lock on it, for several commands may run at once.
#[derive(Debug, Clone)]
pub(super) struct LabDir {
    prefix: String,
}

impl LabDir {
    pub(super) fn new(prefix: &str) -> Result<Self> {
        name::validate(prefix)?;
        Ok(Self { prefix: prefix.to_owned() })
    }

    /// Prefixes of all labs that have a directory.
    pub(super) fn all() -> Vec<Self> {
        let entries = fs::read_dir(LABS).into_iter().flatten().flatten();
        let mut prefixes: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        prefixes.sort();
        prefixes.iter().filter_map(|prefix| Self::new(prefix).ok()).collect()
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn path(&self) -> PathBuf {
        Path::new(LABS).join(&self.prefix)
    }

    /// Directory of one host, with its meshd's `state`, `run` and log.
    pub(super) fn host(&self, host: &str) -> PathBuf {
        self.path().join(host)
    }

    /// What `container` is to see as /etc/resolv.conf; not there while nobody has told it a name
    /// server.
    pub(super) fn resolv_conf(&self, container: &str) -> PathBuf {
        self.path().join(format!("{container}.resolv.conf"))
    }

    /// Makes the directory with its first state; [`Error::LabExists`] if there is one.
    pub(super) fn create(&self, state: &LabState) -> Result<()> {
        fs::create_dir_all(LABS).map_err(Error::file("create", LABS))?;
        fs::create_dir(self.path()).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Error::LabExists(self.prefix.clone()),
            _ => Error::File { action: "create", path: self.path(), source: error },
        })?;
        self.store(state)
    }

    pub(super) fn load(&self) -> Result<LabState> {
        let path = self.state_file();
        let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoLab(self.prefix.clone()),
            _ => Error::File { action: "read", path: path.clone(), source: error },
        })?;
        serde_json::from_str(&text)
            .map_err(|source| Error::Json { command: path.display().to_string(), source })
    }

    /// Changes the state on disk; two changes never overlap.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut LabState) -> T) -> Result<T> {
        let directory = File::open(self.path()).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoLab(self.prefix.clone()),
            _ => Error::File { action: "open", path: self.path(), source: error },
        })?;
        let _lock = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, errno)| Error::File {
            action: "lock",
            path: self.path(),
            source: errno.into(),
        })?;
        let mut state = self.load()?;
        let result = change(&mut state);
        self.store(&state)?;
        Ok(result)
    }

    /// A reader sees the old state or the new one, never half of it.
    fn store(&self, state: &LabState) -> Result<()> {
        let path = self.state_file();
        let text = serde_json::to_string_pretty(state)
            .map_err(|source| Error::Json { command: path.display().to_string(), source })?;
        let temporary = self.path().join(".lab.json");
        fs::write(&temporary, text).map_err(Error::file("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(Error::file("replace", &path))
    }

    fn state_file(&self) -> PathBuf {
        self.path().join("lab.json")
    }
}
