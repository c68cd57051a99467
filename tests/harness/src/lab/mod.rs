//! A lab: hosts as network namespaces on a bridge, a real meshd in each, one machine outside.

mod binaries;
mod builder;
mod container;
mod docker;
mod frames;
mod host;
mod name;
mod second_nic;
mod state;
mod teardown;
mod underlay;

use std::{net::IpAddr, path::PathBuf, time::Duration};

pub use binaries::Binaries;
pub use builder::{Encapsulation, LabBuilder, wireguard_engine};
pub use container::Container;
pub use host::Host;
pub use second_nic::{BEHIND_SECOND_ROUTER, SECOND_ROUTER, SECOND_ROUTER_V6};
pub use state::{ContainerStatus, HostStatus, Status};
use underlay::CLIENT;
pub use underlay::{GATEWAY, OUTSIDE_V4, OUTSIDE_V6};

use self::state::{LabDir, LabState};
use crate::{Cmd, Error, Netns, Result, eventually};

/// A lab that is up. One that [`LabBuilder::start`] made is taken down when the value is dropped,
/// also by a panic; one that [`Lab::open`] found, or that was kept ([`Lab::keep`]), stays.
#[derive(Debug)]
pub struct Lab {
    dir: LabDir,
    state: LabState,
    owned: bool,
}

impl Lab {
    /// Describes a new lab.
    pub fn builder() -> LabBuilder {
        LabBuilder::new()
    }

    /// The lab with this prefix that is up on this machine.
    pub fn open(prefix: &str) -> Result<Self> {
        let dir = LabDir::new(prefix)?;
        let state = dir.load()?;
        Ok(Self { dir, state, owned: false })
    }

    /// Takes down whatever there is of the lab with this prefix; nothing at all is fine.
    pub fn down(prefix: &str) -> Result<()> {
        teardown::take_down(&LabDir::new(prefix)?)
    }

    /// Takes down every lab whose owner ended before it could; the start of another one does so
    /// too. Says what it cannot.
    pub fn down_abandoned() {
        teardown::take_down_abandoned();
    }

    /// The lab stays up when this value is dropped.
    #[must_use]
    pub fn keep(mut self) -> Self {
        self.owned = false;
        self.disown();
        self
    }

    /// Without an owner no later run takes the lab for abandoned.
    fn disown(&self) {
        if let Err(error) = self.dir.update(|state| state.owner = None) {
            eprintln!("lab {}: {error}", self.prefix());
        }
    }

    /// Prefix of everything in it.
    pub fn prefix(&self) -> &str {
        &self.state.prefix
    }

    /// Its directory, e.g. `/run/mesh-lab/ml`: logs, and state and sockets of the hosts.
    pub fn path(&self) -> PathBuf {
        self.dir.path()
    }

    /// Host number `number`, from 1.
    ///
    /// # Panics
    /// When the lab has no such host: the numbers are the test's own.
    pub fn host(&self, number: usize) -> Host {
        let host = number.checked_sub(1).and_then(|index| self.state.hosts.get(index));
        Host::new(self.dir.clone(), host.unwrap_or_else(|| panic!("the lab has no host {number}")).clone())
    }

    /// All hosts, in order.
    pub fn hosts(&self) -> impl Iterator<Item = Host> {
        self.state.hosts.iter().map(|host| Host::new(self.dir.clone(), host.clone()))
    }

    /// The host called `name` (`h1`).
    pub fn host_named(&self, name: &str) -> Result<Host> {
        self.hosts().find(|host| host.name() == name).ok_or_else(|| Error::NoHost(name.to_owned()))
    }

    /// The machine outside at 192.168.77.200, which is no member.
    pub fn client(&self) -> Netns {
        self.state.names().client()
    }

    /// The machine outside on the second network, at 10.99.0.200; in a lab with
    /// [`LabBuilder::second_nic`].
    pub fn second_client(&self) -> Netns {
        self.state.names().second_client()
    }

    /// The namespace with the bridge. It is also the hosts' default gateway, and behind that the
    /// world: it has [`OUTSIDE_V4`] and, with an IPv6 underlay, [`OUTSIDE_V6`].
    pub fn underlay(&self) -> Netns {
        self.state.names().underlay()
    }

    /// Makes a container namespace and attaches it on host `host` with `meshctl endpoint attach
    /// OPTIONS`.
    pub fn container<S: Into<String>>(
        &self,
        host: usize,
        name: &str,
        options: impl IntoIterator<Item = S>,
    ) -> Result<Container> {
        let (container, output) = self.host(host).container(name, options)?;
        output.ok()?;
        Ok(container)
    }

    /// A namespace `PREFIX-NAME` that belongs to the lab and is attached to nothing.
    pub fn namespace(&self, host: usize, name: &str) -> Result<Container> {
        container::create(&self.dir, &self.host(host), name)
    }

    /// The container called `name`.
    pub fn container_named(&self, name: &str) -> Result<Container> {
        container::find(&self.dir, name)
    }

    /// The command line that `lab exec NAME -- ARGV` means, in a container, or on `client`,
    /// `underlay` or a host.
    pub fn cmd_in<S: Into<String>>(&self, name: &str, argv: impl IntoIterator<Item = S>) -> Result<Cmd> {
        match name {
            "client" => Ok(self.client().cmd(argv)),
            "client2" => Ok(self.second_client().cmd(argv)),
            "underlay" => Ok(self.underlay().cmd(argv)),
            _ => match self.host_named(name) {
                Ok(host) => Ok(host.netns().cmd(argv)),
                Err(_) => Ok(self.container_named(name)?.cmd(argv)),
            },
        }
    }

    /// What there is now.
    pub fn status(&self) -> Result<Status> {
        Ok(self.dir.load()?.status())
    }

    /// Sets the MTU of every underlay device, hosts' included.
    pub fn set_underlay_mtu(&self, mtu: u32) -> Result<()> {
        underlay::set_mtu(&self.state, mtu)
    }

    /// Changes what carries encrypted networks, for every meshd that is started from now on.
    pub fn set_wireguard_engine(&self, engine: &str) -> Result<()> {
        self.dir.update(|state| engine.clone_into(&mut state.wireguard_engine))
    }

    /// Changes the lines that [`LabBuilder::meshd_config`] gave, for every meshd that is started
    /// from now on.
    pub fn set_meshd_config(&self, lines: &str) -> Result<()> {
        self.dir.update(|state| lines.clone_into(&mut state.meshd_config))
    }

    /// Moves a floating IPv4 address from one host to another.
    pub fn move_address(&self, address: std::net::Ipv4Addr, from: &Host, to: &Host) -> Result<()> {
        from.remove_address(address)?;
        to.add_address(address)?;
        underlay::forget_neighbour(&self.state, address)
    }

    /// Drops UDP packets to `port` that one host sends to another, as a firewall between them does.
    pub fn block_udp(&self, port: u16, from: &Host, to: &Host) -> Result<()> {
        underlay::block_udp(&self.underlay(), port, from.address(), to.address())
    }

    /// Ends all that [`Lab::block_udp`] began.
    pub fn unblock(&self) -> Result<()> {
        underlay::unblock(&self.underlay())
    }

    /// Turns checksum, segmentation and receive offloads of every underlay device on or off. With
    /// them off, what crosses the underlay is as on a real wire: whole checksums, packets of MTU
    /// size.
    pub fn set_underlay_offloads(&self, on: bool) -> Result<()> {
        underlay::set_offloads(&self.state, on)
    }

    /// Has the underlay's devices behave as network cards do, for programs in drivers (XDP):
    /// offloads off, and what a machine's driver sends is taken by the bridge's port.
    pub fn behave_like_cards(&self) -> Result<()> {
        underlay::set_offloads(&self.state, false)?;
        underlay::take_frames(&self.state)
    }

    /// Waits until host 1 lists every host as ready.
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let wanted = self.state.hosts.len();
        let mut seen = String::new();
        eventually("all nodes ready", timeout, || {
            let states = self.host(1).node_states();
            seen = format!("{states:?}");
            states.is_ok_and(|states| states.len() == wanted && states.values().all(|state| state == "ready"))
        })
        .map_err(|error| match error {
            Error::Timeout { what, after } => {
                Error::Timeout { what: format!("{what} (last seen: {seen})"), after }
            }
            other => other,
        })
    }

    /// Address of the outside client on the second network.
    pub fn second_client_address(&self) -> IpAddr {
        second_nic::CLIENT.into()
    }

    /// Underlay address of the outside client.
    pub fn client_address(&self) -> IpAddr {
        CLIENT.into()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        // A test may also fail by an error, which is not seen here; nextest shows this for those
        // that failed only.
        if std::thread::panicking() || std::env::var_os("NEXTEST").is_some() {
            for host in self.hosts() {
                eprintln!("--- end of meshd's log on {}:\n{}", host.name(), host.log_tail());
            }
        }
        if std::env::var_os("MESH_LAB_KEEP").is_some() {
            self.disown();
            eprintln!("lab {} is kept (MESH_LAB_KEEP)", self.prefix());
            return;
        }
        if let Err(error) = teardown::take_down(&self.dir) {
            eprintln!("clean-up of lab {}: {error}", self.prefix());
        }
    }
}
