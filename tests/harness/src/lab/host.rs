//! One host of a lab.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use serde::Deserialize;

use super::{
    Binaries, Container, container,
    name::Names,
    second_nic,
    state::{HostState, LabDir},
    underlay::{self, CLIENT},
};
use crate::{Cmd, Error, Netns, Output, ProcessId, Result, ip_batch_in, poll_until};

/// How long meshd may take to serve its socket.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// Lines of a log that an error shows.
const LOG_TAIL: usize = 40;

/// Handle of a host. Clones mean the same host; it owns nothing.
#[derive(Debug, Clone)]
pub struct Host {
    dir: LabDir,
    state: HostState,
    netns: Netns,
}

impl Host {
    pub(super) fn new(dir: LabDir, state: HostState) -> Self {
        let netns = Names::new(dir.prefix()).namespace(&state.name);
        Self { dir, state, netns }
    }

    /// `h1`
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its IPv4 address on the underlay.
    pub fn address(&self) -> Ipv4Addr {
        self.state.address
    }

    /// Its IPv6 address on the underlay, where that has IPv6.
    pub fn address6(&self) -> Option<Ipv6Addr> {
        self.state.address6
    }

    /// Its address on the second network, in a lab that has one.
    pub fn second_address(&self) -> Ipv4Addr {
        second_nic::address(self.state.number)
    }

    /// Its IPv6 address on the second network, in a lab that has one with IPv6.
    pub fn second_address6(&self) -> Ipv6Addr {
        second_nic::address6(self.state.number)
    }

    /// Its lab's directory.
    pub(super) fn dir(&self) -> &LabDir {
        &self.dir
    }

    /// Gives it another IPv4 address on the underlay, as a floating address moves there.
    pub fn add_address(&self, address: Ipv4Addr) -> Result<()> {
        ip_batch_in(&self.netns, &[format!("addr add {address}/24 dev {}", underlay::DEVICE)])
    }

    /// Takes such an address away.
    pub fn remove_address(&self, address: Ipv4Addr) -> Result<()> {
        ip_batch_in(&self.netns, &[format!("addr del {address}/24 dev {}", underlay::DEVICE)])
    }

    /// Replaces one of its IPv4 addresses on the underlay by another one, as a DHCP client does
    /// whose new lease differs. [`Host::address`] stays what it was.
    pub fn change_address(&self, old: Ipv4Addr, new: Ipv4Addr) -> Result<()> {
        let device = underlay::DEVICE;
        ip_batch_in(
            &self.netns,
            &[
                format!("addr del {old}/24 dev {device}"),
                format!("addr add {new}/24 dev {device}"),
                format!("route replace default via {}", underlay::GATEWAY),
            ],
        )
    }

    /// Its directory in the lab's.
    pub fn path(&self) -> PathBuf {
        self.dir.host(self.name())
    }

    /// Its meshd's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.path().join("state")
    }

    /// The socket that its meshd serves.
    pub fn socket(&self) -> PathBuf {
        self.path().join("run/meshd.sock")
    }

    /// Its meshd's directory in bpffs.
    pub fn bpffs_dir(&self) -> PathBuf {
        Names::new(self.dir.prefix()).bpffs(self.name())
    }

    /// A command line as if typed by someone logged in on this host: `meshctl` finds its meshd.
    pub fn cmd<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Cmd {
        let mut command =
            self.netns.cmd(argv).hostname(self.name()).env("MESH_SOCKET", self.socket().to_string_lossy());
        if let Ok(binaries) = Binaries::locate() {
            let path = std::env::var("PATH").unwrap_or_default();
            command = command.env("PATH", format!("{}:{path}", binaries.dir().display()));
        }
        command
    }

    /// Runs a command line on this host and waits for it.
    pub fn run<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output> {
        self.cmd(argv).output()
    }

    /// Runs `meshctl ARGS` on this host.
    pub fn meshctl<S: Into<String>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        let program = Binaries::locate()?.path("meshctl");
        self.run([program].into_iter().chain(args.into_iter().map(Into::into)))
    }

    /// A join token for `role` (`worker` or `manager`), asked of this manager.
    pub fn join_token(&self, role: &str) -> Result<String> {
        self.meshctl(["cluster", "join-token", role, "-q"])?.text()
    }

    /// Runs `meshctl cluster join` on this host; `target` is a manager's HOST:PORT.
    pub fn join(&self, token: &str, target: &str) -> Result<Output> {
        let address = self.address().to_string();
        self.meshctl(["cluster", "join", "--token", token, "--advertise-addr", &address, target])
    }

    /// State of every node as this host's meshd tells it: name -> `ready`, `unknown`, `down`.
    pub fn node_states(&self) -> Result<BTreeMap<String, String>> {
        #[derive(Deserialize)]
        struct Node {
            name: String,
            state: String,
        }
        let nodes: Vec<Node> = self.meshctl(["node", "ls", "--format", "json"])?.json()?;
        Ok(nodes.into_iter().map(|node| (node.name, node.state)).collect())
    }

    /// Makes a container namespace, or takes the one of that name on this host, and runs `meshctl
    /// endpoint attach OPTIONS` for it. When that fails, a namespace made for it is removed again;
    /// the output is handed back as it is.
    pub fn container<S: Into<String>>(
        &self,
        name: &str,
        options: impl IntoIterator<Item = S>,
    ) -> Result<(Container, Output)> {
        container::attach(&self.dir, self, name, options.into_iter().map(Into::into).collect())
    }

    /// Its meshd, if one runs.
    pub fn meshd(&self) -> Option<ProcessId> {
        let state = self.dir.load().ok()?;
        let meshd = state.hosts.iter().find(|host| host.name == self.name())?.meshd?;
        meshd.is_alive().then_some(meshd)
    }

    /// Starts meshd and returns when it serves its socket. Fails when one runs already.
    pub fn start_meshd(&self) -> Result<()> {
        self.start_meshd_with(&[])
    }

    /// The same, with further environment variables.
    pub fn start_meshd_with(&self, environment: &[(&str, &str)]) -> Result<()> {
        if let Some(running) = self.meshd() {
            return Err(Error::NameTaken {
                name: self.name().to_owned(),
                by: format!("meshd runs (pid {})", running.pid),
            });
        }
        let lab = self.dir.load()?;
        let config = self.write_config(&lab.meshd_config)?;
        let mut argv = vec![Binaries::locate()?.path("meshd"), "--config".to_owned(), config];
        if let Some(encapsulation) = lab.encapsulation {
            argv.extend(["--encapsulation".to_owned(), encapsulation.as_str().to_owned()]);
        }
        argv.extend(["--wireguard-engine".to_owned(), lab.wireguard_engine]);
        argv.extend(lab.meshd_args);
        // A socket left by a killed meshd would look like one that is served, until it is connected
        // to.
        let command = self.netns.cmd(argv).hostname(self.name());
        let command = environment.iter().fold(command, |command, (name, value)| command.env(*name, *value));
        let meshd = command.spawn(&self.log_file())?.detach();
        self.dir.update(|state| {
            if let Some(host) = state.host_mut(&self.state.name) {
                host.meshd = meshd;
            }
        })?;
        self.wait_served(meshd)
    }

    /// Kills meshd (SIGKILL) and returns when it is gone.
    pub fn kill_meshd(&self) -> Result<()> {
        self.meshd().map_or(Ok(()), ProcessId::kill)
    }

    /// Kills meshd if it runs and starts it again with the same state directory.
    pub fn restart_meshd(&self) -> Result<()> {
        self.kill_meshd()?;
        self.start_meshd()
    }

    /// Takes the host off the underlay: to all others it looks dead, to itself its link is up.
    pub fn unplug(&self) -> Result<()> {
        underlay::set_plugged(&Names::new(self.dir.prefix()).underlay(), self.name(), false)
    }

    /// Puts the host back on the underlay.
    pub fn plug(&self) -> Result<()> {
        underlay::set_plugged(&Names::new(self.dir.prefix()).underlay(), self.name(), true)
    }

    /// Restarts the whole machine: everything that runs on it, its devices, its containers and what
    /// is not on disk goes; meshd starts again with the same state directory.
    pub fn reboot(&self) -> Result<()> {
        self.power_off()?;
        self.power_on()?;
        self.start_meshd()
    }

    /// Starts the machine after [`Host::power_off`]: its network is there, but no meshd.
    pub fn power_on(&self) -> Result<()> {
        underlay::recreate_host(&self.dir.load()?, &self.state)
    }

    /// Ends everything on the machine, at once and for good (until [`Host::power_on`]).
    pub fn power_off(&self) -> Result<()> {
        self.kill_meshd()?;
        super::teardown::remove_host(&self.dir, self.name())
    }

    /// Everything that meshd has logged, of all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }

    /// meshd's log file.
    pub fn log_file(&self) -> PathBuf {
        self.path().join("meshd.log")
    }

    /// Every instance has directories of its own; the machine's /etc/mesh is none of the lab's
    /// business.
    fn write_config(&self, more: &str) -> Result<String> {
        let path = self.path();
        fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        let config = path.join("meshd.toml");
        // The machine's own resolvers are not to be reached from here; the outside machine may
        // serve names.
        let resolv_conf = path.join("resolv.conf");
        fs::write(&resolv_conf, format!("nameserver {CLIENT}\n"))
            .map_err(Error::file("write", &resolv_conf))?;
        let resolvers = if more.contains("resolv_conf") {
            String::new()
        } else {
            format!("resolv_conf = \"{}\"\n", resolv_conf.display())
        };
        // No path here needs escaping: prefixes and host names hold neither quotes nor backslashes.
        let text = format!(
            "state_dir = \"{}\"\nrun_dir = \"{}\"\nsocket = \"{}\"\nbpffs_dir = \"{}\"\n\
             {resolvers}{more}\n",
            self.state_dir().display(),
            path.join("run").display(),
            self.socket().display(),
            self.bpffs_dir().display(),
        );
        fs::write(&config, text).map_err(Error::file("write", &config))?;
        Ok(config.to_string_lossy().into_owned())
    }

    fn wait_served(&self, meshd: Option<ProcessId>) -> Result<()> {
        let served = poll_until(START_TIMEOUT, || {
            if UnixStream::connect(self.socket()).is_ok() {
                return Some(true);
            }
            (!meshd.is_some_and(ProcessId::is_alive)).then_some(false)
        });
        match served {
            Some(true) => Ok(()),
            Some(false) => Err(Error::MeshdEnded { host: self.name().to_owned(), log: self.log_tail() }),
            None => Err(Error::Timeout {
                what: format!(
                    "meshd on {} serves its socket; the end of its log:\n{}",
                    self.name(),
                    self.log_tail()
                ),
                after: START_TIMEOUT,
            }),
        }
    }
}
