//! Chains of nftables at the hooks `input` and `forward`.

use mesh_ipam::Family;
use mesh_model::naming;
use mesh_model::observed::{ClosedChain, FilterHook, Iptables};

use crate::KernelError;
use crate::firewall::nft;

/// A chain at one of the hooks that is not ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chain {
    family: String,
    table: String,
    name: String,
    hook: FilterHook,
    policy_drop: bool,
}

impl Chain {
    /// Which iptables the chain belongs to, if any.
    pub(super) fn iptables(&self) -> Option<Iptables> {
        let family = match self.family.as_str() {
            "ip" => Family::Ipv4,
            "ip6" => Family::Ipv6,
            _ => return None,
        };
        let is_theirs = self.table == "filter" && matches!(self.name.as_str(), "INPUT" | "FORWARD");
        is_theirs.then_some(Iptables { family, hook: self.hook, legacy: false })
    }

    /// Its name, if it drops what it does not accept, and no rule of its table is about our device.
    pub(super) fn closed(&self) -> Result<Option<ClosedChain>, KernelError> {
        let Self { family, table, name, hook, policy_drop } = self;
        let output = nft(&["list", "chain", family, table, name], "")?;
        if !is_closed(*hook, *policy_drop, &String::from_utf8_lossy(&output.stdout)) {
            return Ok(None);
        }
        let output = nft(&["list", "table", family, table], "")?;
        let is_known = String::from_utf8_lossy(&output.stdout).contains(naming::HOST_LEG);
        Ok((!is_known).then(|| ClosedChain { hook: *hook, chain: format!("{family} {table} {name}") }))
    }
}

/// Whether a chain drops what no rule of it accepts.
fn is_closed(hook: FilterHook, policy_drop: bool, listing: &str) -> bool {
    for line in listing.lines().map(without_counter) {
        let line = line.trim();
        let accepts_dns = hook == FilterHook::Input
            && line.contains("dport")
            && line.ends_with("accept")
            && line.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| matches!(word, "53" | "domain"));
        // A rule without conditions decides about whatever comes so far.
        match line {
            "accept" => return false,
            _ if accepts_dns => return false,
            "drop" | "reject" => return true,
            _ if line.starts_with("reject with") => return true,
            _ => {}
        }
    }
    policy_drop
}

/// A rule without `counter packets N bytes N` at its beginning.
fn without_counter(line: &str) -> &str {
    let line = line.trim();
    let Some(rest) = line.strip_prefix("counter ") else { return line };
    match rest.strip_prefix("packets ") {
        Some(counted) => counted.splitn(4, ' ').nth(3).unwrap_or(""),
        None => rest,
    }
}

/// All chains at the hooks but ours.
pub(super) fn list() -> Result<Vec<Chain>, KernelError> {
    match nft(&["list", "chains"], "") {
        // Without the command nothing is known. That it is missing is reported when it is needed.
        Err(KernelError::NftMissing) => Ok(Vec::new()),
        output => Ok(parse(&String::from_utf8_lossy(&output?.stdout))),
    }
}

/// Reads what `nft list chains` printed.
fn parse(listing: &str) -> Vec<Chain> {
    let (mut family, mut table, mut name) = ("", "", "");
    let mut found = Vec::new();
    for line in listing.lines().map(str::trim) {
        let hook = match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["table", of_family, of_name, "{"] => {
                (family, table) = (of_family, of_name);
                continue;
            }
            ["chain", chain, "{"] => {
                name = chain;
                continue;
            }
            ["type", "filter", "hook", "forward", ..] => FilterHook::Forward,
            ["type", "filter", "hook", "input", ..] => FilterHook::Input,
            _ => continue,
        };
        let is_ours = (family, table) == ("inet", naming::FIREWALL_TABLE);
        if matches!(family, "ip" | "ip6" | "inet") && !is_ours {
            found.push(Chain {
                family: family.to_owned(),
                table: table.to_owned(),
                name: name.to_owned(),
                hook,
                policy_drop: line.ends_with("policy drop;"),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_others_at_the_hooks_are_found() {
        let chain = |name: &str, hook: &str, policy: &str| {
            format!(
                "\tchain {name} {{\n\t\ttype filter hook {hook} priority filter; policy {policy};\n\t}}\n"
            )
        };
        let listing = [
            "table inet mesh {\n".to_owned(),
            chain("forward", "forward", "accept"),
            "}\ntable ip filter {\n".to_owned(),
            chain("FORWARD", "forward", "drop"),
            "\tchain X {\n\t}\n}\ntable inet fw {\n".to_owned(),
            chain("fwd", "forward", "accept"),
            chain("in", "input", "drop"),
            chain("out", "output", "drop"),
            "}\n".to_owned(),
        ]
        .concat();
        let found = parse(&listing);
        let names: Vec<_> =
            found.iter().map(|c| (c.table.as_str(), c.name.as_str(), c.policy_drop)).collect();
        assert_eq!(names, [("filter", "FORWARD", true), ("fw", "fwd", false), ("fw", "in", true)]);
        let forward = Iptables { family: Family::Ipv4, hook: FilterHook::Forward, legacy: false };
        assert_eq!(found[0].iptables(), Some(forward));
        assert_eq!((found[1].iptables(), found[2].hook), (None, FilterHook::Input));
    }

    #[test]
    fn the_first_rule_without_conditions_decides_and_then_the_policy() {
        use FilterHook::{Forward, Input};
        for (hook, policy_drop, rules, closed) in [
            (Forward, true, "ct state established accept\n", true),
            (Forward, false, "counter packets 3 bytes 252 drop\n", true),
            (Forward, false, "iifname \"lan0\" drop\n", false),
            (Forward, true, "accept\ndrop\n", false),
            (Forward, false, "reject with icmpx admin-prohibited\n", true),
            (Input, true, "tcp dport 22 accept\n", true),
            (Input, true, "meta l4proto { tcp, udp } th dport { 22, 53 } accept\n", false),
            (Forward, true, "udp dport 53 accept\n", true),
        ] {
            assert_eq!(is_closed(hook, policy_drop, rules), closed, "{rules}");
        }
    }
}
