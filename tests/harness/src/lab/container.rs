//! Containers: namespaces that are attached on a host.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::Deserialize;
use serde_json::Value;

use super::{
    Host, name,
    name::Names,
    state::{ContainerState, LabDir},
};
use crate::{
    Cmd, Error, Netns, Output, Result, netns,
    traffic::{Ping, PingReport, WebServer},
};

/// Handle of a container. Clones mean the same one; it owns nothing.
#[derive(Debug, Clone)]
pub struct Container {
    name: String,
    netns: Netns,
    host: Host,
}

impl Container {
    /// Its name in the lab, and its endpoint's unless `--name` said otherwise.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The host that it is on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// A command line to be run inside; it resolves names as its networks do.
    pub fn cmd<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Cmd {
        let (command, file) = (self.netns.cmd(argv), self.host.dir().resolv_conf(&self.name));
        if file.exists() { command.resolv_conf(file) } else { command }
    }

    /// Runs a command line inside and waits for it.
    pub fn exec<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output> {
        self.cmd(argv).output()
    }

    /// A web server inside, called as the container; see [`WebServer`].
    pub fn serve(&self, port: u16) -> Result<WebServer> {
        WebServer::start(&self.netns, &self.name, port)
    }

    /// Its endpoint as `meshctl endpoint inspect` tells it.
    pub fn endpoint(&self) -> Result<Value> {
        self.host.meshctl(["endpoint", "inspect", &self.name, "--format", "json"])?.json()
    }

    /// Its endpoint's IPv4 address.
    pub fn ipv4(&self) -> Result<Ipv4Addr> {
        self.address("ipv4")
    }

    /// Its endpoint's IPv6 address.
    pub fn ipv6(&self) -> Result<Ipv6Addr> {
        self.address("ipv6")
    }

    /// Detaches its endpoint; the namespace stays.
    pub fn detach(&self) -> Result<Output> {
        self.host.meshctl(["endpoint", "detach", &self.name])
    }

    /// Removes the namespace, as a runtime does when a container ends, without telling meshd.
    pub fn remove(&self) -> Result<()> {
        super::teardown::remove_namespace(&self.netns)?;
        self.host.dir().update(|state| state.containers.retain(|container| container.name != self.name))?;
        super::teardown::remove_file(&self.host.dir().resolv_conf(&self.name))
    }

    /// Pings an address with three packets, 50 ms apart.
    pub fn ping(&self, address: impl Into<IpAddr>) -> Result<PingReport> {
        Ping::new(address.into()).run(&self.netns)
    }

    fn address<T: std::str::FromStr>(&self, field: &str) -> Result<T> {
        let endpoint = self.endpoint()?;
        let text = endpoint[field].as_str().unwrap_or_default();
        text.parse()
            .map_err(|_| Error::Traffic(format!("endpoint of {} has no {field}: {endpoint}", self.name)))
    }
}

/// The container called `name`.
pub(super) fn find(dir: &LabDir, name: &str) -> Result<Container> {
    let state = dir.load()?;
    let missing = || Error::NoContainer(name.to_owned());
    let container = state.containers.iter().find(|container| container.name == name).ok_or_else(missing)?;
    let host = state.hosts.iter().find(|host| host.name == container.host).ok_or_else(missing)?;
    Ok(handle(dir, &Host::new(dir.clone(), host.clone()), name))
}

/// Makes the namespace of a new container on `host`.
pub(super) fn create(dir: &LabDir, host: &Host, name: &str) -> Result<Container> {
    name::validate(name)?;
    let taken = |by: String| Error::NameTaken { name: name.to_owned(), by };
    if name::is_reserved(name) {
        return Err(taken("the lab's own machines have such names".to_owned()));
    }
    dir.update(|state| {
        if let Some(other) = state.containers.iter().find(|container| container.name == name) {
            return Err(taken(format!("container on {}", other.host)));
        }
        state.containers.push(ContainerState { name: name.to_owned(), host: host.name().to_owned() });
        Ok(())
    })??;
    let container = handle(dir, host, name);
    if let Err(error) = netns::create_all([container.netns()]) {
        container.remove()?;
        return Err(error);
    }
    Ok(container)
}

/// See [`Host::container`].
pub(super) fn attach(
    dir: &LabDir,
    host: &Host,
    name: &str,
    options: Vec<String>,
) -> Result<(Container, Output)> {
    let existing = find(dir, name).ok().filter(|container| container.host.name() == host.name());
    let is_new = existing.is_none();
    let container = match existing {
        Some(container) => container,
        None => create(dir, host, name)?,
    };
    let mut args = ["endpoint", "attach", "--netns"].map(str::to_owned).to_vec();
    args.push(container.netns.path().to_string_lossy().into_owned());
    if !options.iter().any(|option| option == "--name" || option.starts_with("--name=")) {
        args.extend(["--name".to_owned(), name.to_owned()]);
    }
    args.extend(options);
    let output = host.meshctl(args);
    let attached = output.as_ref().is_ok_and(Output::success);
    if is_new && !attached {
        container.remove()?;
    }
    let output = output?;
    if attached {
        learn_name_servers(dir, &container, &output.stdout)?;
    }
    Ok((container, output))
}

/// What an endpoint says about names; as in resolv.conf.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Dns {
    nameserver: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

/// Adds what the new endpoint says about names to the container's resolv.conf, if it is not there
/// already.
fn learn_name_servers(dir: &LabDir, container: &Container, attached: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Endpoint {
        #[serde(default)]
        dns: Option<Dns>,
    }
    let id = attached.split_whitespace().next().unwrap_or(&container.name);
    let told = container.host.meshctl(["endpoint", "inspect", id, "--format", "json"])?;
    let Some(dns) = told.json::<Endpoint>()?.dns else { return Ok(()) };
    if dns.nameserver.is_empty() {
        return Ok(());
    }
    let path = dir.resolv_conf(&container.name);
    let mut text = fs::read_to_string(&path).unwrap_or_default();
    for line in dns.nameserver.iter().map(|server| format!("nameserver {server}")) {
        if !text.lines().any(|known| known == line) {
            let _ = writeln!(text, "{line}");
        }
    }
    for (keyword, words) in [("search", dns.search), ("options", dns.options)] {
        if !words.is_empty() && !text.contains(keyword) {
            let _ = writeln!(text, "{keyword} {}", words.join(" "));
        }
    }
    fs::write(&path, text).map_err(Error::file("write", &path))
}

fn handle(dir: &LabDir, host: &Host, name: &str) -> Container {
    Container { name: name.to_owned(), netns: Names::new(dir.prefix()).namespace(name), host: host.clone() }
}
