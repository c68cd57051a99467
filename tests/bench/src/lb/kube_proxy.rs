//! The peer: services by nftables as kube-proxy's nft mode makes them. One map from address, protocol and port to a
//! service's chain, a random number to an endpoint's chain, DNAT there, and connection tracking for the rest; published
//! ports are masqueraded, for the reply must come back this way.

use std::{fmt::Write as _, net::Ipv4Addr};

use mesh_harness::{Host, Result};

use super::ports;

/// A service: what is called, and who answers.
pub(super) struct Service {
    pub(super) vip: Ipv4Addr,
    pub(super) backends: Vec<Ipv4Addr>,
    /// Whether the ports are published on the host's addresses too.
    pub(super) published: bool,
}

/// Loads the services' rules on `host`, in one transaction.
pub(super) fn load(host: &Host, services: &[Service]) -> Result<()> {
    host.cmd(["nft", "-f", "-"]).stdin(rules(services)).output()?.ok().map(drop)
}

fn rules(services: &[Service]) -> String {
    let (mut chains, mut by_vip, mut by_port) = (String::new(), Vec::new(), Vec::new());
    for (number, service) in services.iter().enumerate() {
        for (protocol, port) in ports::ALL {
            let chain = format!("service-{number}-{protocol}-{port}");
            for (index, backend) in service.backends.iter().enumerate() {
                // Writing to a String does not fail.
                let _ = writeln!(
                    chains,
                    "chain endpoint-{index}-{chain} {{ ip saddr {backend} meta mark set meta mark or 0x4000
                       meta l4proto {protocol} dnat to {backend}:{port}; }}"
                );
            }
            let choices: Vec<String> = (0..service.backends.len())
                .map(|index| format!("{index} : goto endpoint-{index}-{chain}"))
                .collect();
            let count = service.backends.len();
            let _ = writeln!(
                chains,
                "chain {chain} {{ numgen random mod {count} vmap {{ {} }}; }}",
                choices.join(", ")
            );
            by_vip.push(format!("{} . {protocol} . {port} : goto {chain}", service.vip));
            if service.published {
                let _ = writeln!(
                    chains,
                    "chain external-{chain} {{ meta mark set meta mark or 0x4000; goto {chain}; }}"
                );
                by_port.push(format!("{protocol} . {port} : goto external-{chain}"));
            }
        }
    }
    let elements = |list: Vec<String>| match list.len() {
        0 => String::new(),
        _ => format!("elements = {{ {} }}", list.join(",\n")),
    };
    format!(
        "table ip kube-proxy
delete table ip kube-proxy
table ip kube-proxy {{
  {chains}
  map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; {} }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; {} }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service-ips
    fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports
  }}
  chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain output {{ type nat hook output priority -100; jump services; }}
  chain postrouting {{ type nat hook postrouting priority srcnat; meta mark & 0x4000 != 0 masquerade fully-random; }}
}}
",
        elements(by_vip),
        elements(by_port)
    )
}
