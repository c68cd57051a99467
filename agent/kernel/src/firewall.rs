//! The nftables table `inet mesh`, by the command `nft`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::ops::RangeInclusive;
use std::process::{Command, Output, Stdio};

use mesh_ipam::Family;
use mesh_model::observed::{Firewall, FirewallState, MasqueradePorts};
use mesh_model::{Prefix, naming};

use crate::KernelError;

/// The end of a subnet's rule.
const OUTWARD: &str = " oifname != \"mesh0\" goto outside";
/// The beginnings of the rules of the chain `outside`; each ends with a range of ports.
const LOW_PORTS: &str = "meta l4proto { tcp, udp, sctp } th sport < 1024 masquerade to :";
const HIGH_PORTS: &str = "meta l4proto { tcp, udp, sctp } masquerade to :";
/// Its last rule: of what has no ports.
const NO_PORTS: &str = "masquerade";

/// Rules beside those for subnets, as `nft` itself writes them.
const FORWARD: [&str; 3] = [
    // Fragments that `underlay` set aside; the mark is `MARK`.
    "iifname != \"mesh0\" oifname \"mesh0\" meta mark 0x00003050 accept",
    "iifname != \"mesh0\" oifname \"mesh0\" ct state established,related accept",
    "iifname != \"mesh0\" oifname \"mesh0\" drop",
];

/// The rule for a subnet, as `nft` itself writes it.
fn masquerade(subnet: Prefix) -> String {
    let family = match subnet.family() {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    };
    format!("{family} saddr {subnet}{OUTWARD}")
}

/// The rules of the chain `outside`.
fn outside(ports: &MasqueradePorts) -> [String; 3] {
    let rule = |text: &str, range: &RangeInclusive<u16>| format!("{text}{}-{}", range.start(), range.end());
    [rule(LOW_PORTS, &ports.low), rule(HIGH_PORTS, &ports.high), NO_PORTS.to_owned()]
}

/// The table, as one transaction that replaces the one there is.
fn ruleset(firewall: &Firewall) -> String {
    let table = format!("inet {}", naming::FIREWALL_TABLE);
    let rules = |rules: &mut dyn Iterator<Item = String>| {
        rules.fold(String::new(), |mut text, rule| {
            let _infallible = writeln!(text, "    {rule}");
            text
        })
    };
    format!(
        "table {table}\ndelete table {table}\ntable {table} {{\n  \
         chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n{}  }}\n  \
         chain outside {{\n{}  }}\n  \
         chain forward {{\n    type filter hook forward priority filter; policy accept;\n{}  }}\n}}\n",
        rules(&mut firewall.masquerade.iter().map(|subnet| masquerade(*subnet))),
        rules(&mut outside(&firewall.ports).into_iter()),
        rules(&mut FORWARD.iter().map(|rule| (*rule).to_owned())),
    )
}

/// Reads what `nft list table` printed.
fn parse(listing: &str) -> FirewallState {
    let mut subnets = BTreeSet::new();
    let mut others = Vec::new();
    let mut hooks = 0;
    for line in listing.lines().map(str::trim) {
        let masqueraded = line.strip_suffix(OUTWARD).and_then(|rule| {
            let subnet = rule.strip_prefix("ip saddr ").or_else(|| rule.strip_prefix("ip6 saddr "))?;
            subnet.parse::<Prefix>().ok()
        });
        if let Some(subnet) = masqueraded {
            subnets.insert(subnet);
        } else if line.starts_with("type ") {
            hooks += 1;
        } else if !(line.is_empty() || line == "}" || line.ends_with('{')) {
            others.push(line);
        }
    }
    let [low, high, no_ports, forward @ ..] = others.as_slice() else { return FirewallState::Altered };
    match (range(low, LOW_PORTS), range(high, HIGH_PORTS)) {
        (Some(low), Some(high)) if *no_ports == NO_PORTS && forward == FORWARD && hooks == 2 => {
            FirewallState::Intact(Firewall { masquerade: subnets, ports: MasqueradePorts { low, high } })
        }
        _ => FirewallState::Altered,
    }
}

/// The range of ports of a rule that begins so. A range of one port is printed without its end.
fn range(rule: &str, start: &str) -> Option<RangeInclusive<u16>> {
    let ports = rule.strip_prefix(start)?;
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

/// Reads the state of the table.
pub(crate) fn observe() -> Result<FirewallState, KernelError> {
    let output = match nft(&["list", "table", "inet", naming::FIREWALL_TABLE], "") {
        // Without the command there is no table of ours either. A missing command is reported when
        // it is needed.
        Err(KernelError::NftMissing) => return Ok(FirewallState::Absent),
        output => output?,
    };
    if output.status.success() {
        return Ok(parse(&String::from_utf8_lossy(&output.stdout)));
    }
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("No such file or directory") {
        return Ok(FirewallState::Absent);
    }
    Err(failed("list the table inet mesh", &error))
}

/// Creates the table, or replaces it.
pub(crate) fn set(firewall: &Firewall) -> Result<(), KernelError> {
    run("set the table inet mesh", &ruleset(firewall))
}

/// Removes the table; succeeds if it does not exist.
pub(crate) fn remove() -> Result<(), KernelError> {
    let table = format!("inet {}", naming::FIREWALL_TABLE);
    run("remove the table inet mesh", &format!("table {table}\ndelete table {table}\n"))
}

fn run(action: &'static str, ruleset: &str) -> Result<(), KernelError> {
    let output = nft(&["-f", "-"], ruleset)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(action, &String::from_utf8_lossy(&output.stderr)))
    }
}

fn failed(action: &'static str, message: &str) -> KernelError {
    let first = message.lines().next().unwrap_or("it printed no error");
    if first.contains("Operation not permitted") {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        return KernelError::Permission { action: action.to_owned(), source };
    }
    KernelError::Nft { action, message: first.to_owned() }
}

/// Runs `nft` in the calling thread's namespace.
pub(crate) fn nft(arguments: &[&str], input: &str) -> Result<Output, KernelError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => KernelError::NftMissing,
        _ => KernelError::Nft { action: "run", message: error.to_string() },
    };
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // When it ends before it has read all, its own message says why.
        let _broken_pipe = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firewall() -> Firewall {
        let subnets = ["10.64.0.0/20", "fd00:1::/64"];
        Firewall {
            masquerade: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
            ports: MasqueradePorts { low: 600..=700, high: 40000..=40000 },
        }
    }

    /// What `nft` prints is what it was given, without the commands before the table.
    fn listing() -> String {
        ruleset(&firewall()).lines().skip(2).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_table_that_was_set_reads_as_intact() {
        assert_eq!(parse(&listing()), FirewallState::Intact(firewall()));
    }

    #[test]
    fn a_table_with_a_rule_more_or_less_reads_as_altered() {
        for rule in FORWARD.into_iter().chain([LOW_PORTS, HIGH_PORTS, "\n    masquerade\n"]) {
            assert_eq!(parse(&listing().replace(rule, "")), FirewallState::Altered);
        }
        let more = listing().replace(FORWARD[1], "accept\ndrop");
        assert_eq!(parse(&more), FirewallState::Altered);
        assert_eq!(parse("table inet mesh {\n}"), FirewallState::Altered);
    }

    #[test]
    fn a_subnet_less_reads_as_another_firewall() {
        let less = listing().replace("ip saddr 10.64.0.0/20 oifname != \"mesh0\" goto outside", "");
        assert!(matches!(parse(&less), FirewallState::Intact(read) if read != firewall()));
    }
}
