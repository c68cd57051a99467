//! The peer: the CNI reference plugins `bridge` and `host-local`, run as a container runtime runs
//! them.

use std::path::PathBuf;

use anyhow::ensure;
use mesh_harness::{Container, Host, Result};
use serde_json::json;

/// Where Debian's containernetworking-plugins puts them.
const PLUGINS: &str = "/usr/lib/cni";

/// One CNI network on one host.
#[derive(Debug)]
pub(crate) struct CniBridge {
    host: Host,
    config: String,
}

impl CniBridge {
    /// A network called `name` whose bridge is made on `host` with the first container.
    pub(crate) fn new(host: &Host, name: &str, subnet: &str, masquerade: bool) -> anyhow::Result<Self> {
        let plugin = PathBuf::from(PLUGINS).join("bridge");
        ensure!(plugin.is_file(), "{} is missing: install containernetworking-plugins", plugin.display());
        let config = json!({
            "cniVersion": "0.4.0", "name": name, "type": "bridge", "bridge": name, "isGateway": true,
            "ipMasq": masquerade,
            "ipam": {
                "type": "host-local", "subnet": subnet, "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": host.path().join("cni"),
            },
        });
        Ok(Self { host: host.clone(), config: config.to_string() })
    }

    /// `ADD` or `DEL` of the container's interface `ifname`.
    pub(crate) fn call(&self, command: &str, container: &Container, ifname: &str) -> Result<()> {
        self.host
            .cmd([format!("{PLUGINS}/bridge")])
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container.name())
            .env("CNI_NETNS", container.netns().path().to_string_lossy())
            .env("CNI_IFNAME", ifname)
            .env("CNI_PATH", PLUGINS)
            .stdin(&self.config)
            .output()?
            .ok()
            .map(drop)
    }
}
