//! The CNI plugin as a container runtime runs it.

use std::path::PathBuf;

use mesh_harness::{Binaries, Cmd, Host, Netns, Output, Result};
use serde_json::{Value, json};

/// The plugin of one host, with one network configuration.
#[derive(Debug, Clone)]
pub struct Plugin {
    binary: PathBuf,
    config: Value,
}

impl Plugin {
    /// The plugin of a host with a configuration of this name, which is also the network's.
    pub fn new(host: &Host, name: &str) -> Result<Self> {
        let binary = Binaries::locate()?.dir().join("mesh-cni");
        let config = json!({
            "cniVersion": "1.1.0",
            "name": name,
            "type": "mesh-cni",
            "socket": Self::socket(host),
        });
        Ok(Self { binary, config })
    }

    /// The socket of a host's agent for the plugin.
    pub fn socket(host: &Host) -> PathBuf {
        host.socket().with_file_name("cni.sock")
    }

    /// The directory of calls that wait for a host's agent.
    pub fn spool(host: &Host) -> PathBuf {
        host.socket().with_file_name("cni.sock.spool")
    }

    /// The same plugin with one more field in its configuration.
    #[must_use]
    pub fn with(&self, key: &str, value: impl Into<Value>) -> Self {
        let mut plugin = self.clone();
        plugin.config[key] = value.into();
        plugin
    }

    /// A call about no container.
    pub fn command(&self, command: &str) -> Cmd {
        Cmd::new([self.binary.to_string_lossy()])
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(self.config.to_string())
    }

    /// A call about the interface `eth0` of a container, whose id is given.
    pub fn call(&self, command: &str, container: &str) -> Cmd {
        self.command(command).env("CNI_CONTAINERID", container).env("CNI_IFNAME", "eth0")
    }

    /// An ADD.
    pub fn add(&self, container: &str, netns: &Netns) -> Cmd {
        self.call("ADD", container).env("CNI_NETNS", netns.path().to_string_lossy())
    }

    /// A DEL as runtimes make it when the namespace is gone.
    pub fn del(&self, container: &str) -> Result<Output> {
        self.call("DEL", container).output()
    }

    /// A CHECK of what an ADD returned.
    pub fn check(&self, container: &str, netns: &Netns, result: &Value) -> Result<Output> {
        let plugin = self.with("prevResult", result.clone());
        plugin.call("CHECK", container).env("CNI_NETNS", netns.path().to_string_lossy()).output()
    }
}

/// The first address of a result, without its prefix length.
///
/// # Panics
/// When it has none.
#[track_caller]
pub fn address(result: &Value) -> std::net::IpAddr {
    let text = result["ips"][0]["address"].as_str().unwrap_or_else(|| panic!("no address: {result}"));
    let address = text.split('/').next().and_then(|address| address.parse().ok());
    address.unwrap_or_else(|| panic!("no address: {result}"))
}

/// The error that a call must have failed with, in the specification's form.
///
/// # Panics
/// When it did not fail so.
#[track_caller]
pub fn refused(output: &Output, code: u64) -> String {
    assert_eq!(output.code, 1, "{output:?}");
    let error: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {output:?}"));
    assert_eq!(error["code"].as_u64(), Some(code), "{output:?}");
    assert!(error["cniVersion"].is_string(), "{output:?}");
    let message = error["msg"].as_str().unwrap_or_default().to_owned();
    assert!(!message.is_empty() && !message.contains('\n'), "{output:?}");
    message
}
