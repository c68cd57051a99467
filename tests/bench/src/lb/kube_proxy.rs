//! The peer: services by nftables as kube-proxy's nft mode makes them. One map from address,
//! protocol and port to a service's chain, a random number to an endpoint's chain, DNAT there, and
//! connection tracking for the rest; published ports are masqueraded, for the reply must come back
//! this way.

use std::{fmt::Write as _, net::Ipv4Addr, time::Duration};

use mesh_harness::{Host, Result};

/// A service: what is called, and who answers.
pub(super) struct Service {
    pub(super) vip: Ipv4Addr,
    pub(super) backends: Vec<Ipv4Addr>,
    /// Protocols and ports.
    pub(super) ports: &'static [(&'static str, u16)],
    /// Whether the ports are published on the host's addresses too.
    pub(super) published: bool,
}

/// How long nft may take for a hundred thousand chains.
const LIMIT: Duration = Duration::from_mins(10);

/// Loads the services' rules on `host`, in one transaction.
pub(super) fn load(host: &Host, services: &[Service]) -> Result<()> {
    nft(host, rules(services))
}

/// Takes the last backend of the service `number` out, in one transaction that touches nothing
/// else.
pub(super) fn remove_last_backend(host: &Host, number: usize, service: &Service) -> Result<()> {
    let left = service.backends.len() - 1;
    let changes = service.ports.iter().map(|(protocol, port)| {
        let chain = format!("service-{number}-{protocol}-{port}");
        format!("flush chain ip kube-proxy {chain}\nadd rule ip kube-proxy {chain} {}\n", pick(&chain, left))
    });
    nft(host, changes.collect())
}

fn nft(host: &Host, rules: String) -> Result<()> {
    host.cmd(["nft", "-f", "-"]).stdin(rules).timeout(LIMIT).output()?.ok().map(drop)
}

/// Rule that picks one of `count` endpoints at random.
fn pick(chain: &str, count: usize) -> String {
    let choices: Vec<String> =
        (0..count).map(|index| format!("{index} : goto endpoint-{index}-{chain}")).collect();
    format!("numgen random mod {count} vmap {{ {} }}", choices.join(", "))
}

fn rules(services: &[Service]) -> String {
    let (mut chains, mut by_vip, mut by_port) = (String::new(), Vec::new(), Vec::new());
    for (number, service) in services.iter().enumerate() {
        for (protocol, port) in service.ports {
            let chain = format!("service-{number}-{protocol}-{port}");
            for (index, backend) in service.backends.iter().enumerate() {
                // Writing to a String does not fail.
                let _ = writeln!(
                    chains,
                    "chain endpoint-{index}-{chain} {{ ip saddr {backend} meta mark set meta mark or 0x4000
                       meta l4proto {protocol} dnat to {backend}:{port}; }}"
                );
            }
            let _ = writeln!(chains, "chain {chain} {{ {}; }}", pick(&chain, service.backends.len()));
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
