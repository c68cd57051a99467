//! A container that is none of Mesh's: behind a bridge and a NAT of its host's own, as Docker makes
//! them.

use super::{Container, Lab};
use crate::{Result, ip_batch_in};

impl Lab {
    /// Makes such a container, `docker`, on host `host`: 172.17.0.2 on the bridge `docker0`,
    /// masqueraded with its own ports.
    pub fn docker_like(&self, host: usize) -> Result<Container> {
        let container = self.namespace(host, "docker")?;
        let host = self.host(host);
        let lines = [
            "link add docker0 type bridge".to_owned(),
            "addr add 172.17.0.1/16 dev docker0".to_owned(),
            "link set docker0 up".to_owned(),
            format!("link add dv0 type veth peer name eth0 netns {}", container.netns().name()),
            "link set dv0 master docker0 up".to_owned(),
        ];
        ip_batch_in(host.netns(), &lines)?;
        let inside =
            ["addr add 172.17.0.2/16 dev eth0", "link set eth0 up", "route add default via 172.17.0.1"];
        ip_batch_in(container.netns(), &inside.map(str::to_owned))?;
        let rules = "table ip docker {\n  chain post {\n    type nat hook postrouting priority srcnat\n    \
                     ip saddr 172.17.0.0/16 oifname != \"docker0\" masquerade\n  }\n}\n";
        host.cmd(["nft", "-f", "-"]).stdin(rules).output()?.ok()?;
        Ok(container)
    }
}
