//! Chains of nftables at the hooks `input` and `forward`.

use std::collections::BTreeMap;

use mesh_ipam::Family;
use mesh_model::naming;
use mesh_model::observed::{ClosedChain, FilterHook, Iptables};

use crate::KernelError;
use crate::firewall::nft;

/// How many jumps within each other are followed.
const MAX_DEPTH: usize = 16;

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

    /// Its name, if it drops what comes from our device.
    pub(super) fn closed(&self) -> Result<Option<ClosedChain>, KernelError> {
        let Self { family, table, name, hook, .. } = self;
        let output = nft(&["list", "table", family, table], "")?;
        let is_closed = self.is_closed(&String::from_utf8_lossy(&output.stdout));
        Ok(is_closed.then(|| ClosedChain { hook: *hook, chain: format!("{family} {table} {name}") }))
    }

    /// Returns whether the chain drops packets from our device, by its table's listing. A rule with
    /// conditions that are not understood counts as one that does not match. If a rule accepts some
    /// packets of our device, its author has considered them.
    fn is_closed(&self, listing: &str) -> bool {
        let chains = Rules::of(listing);
        match chains.decide(self.hook, &self.name, 0) {
            Some(decision) => decision == Decision::Drops,
            None => self.policy_drop && !chains.accept_ours(),
        }
    }
}

/// What becomes of a packet from our device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Passes,
    Drops,
}

/// The rules of a table's chains, by the chains' names.
struct Rules<'a>(BTreeMap<&'a str, Vec<&'a str>>);

impl<'a> Rules<'a> {
    fn of(listing: &'a str) -> Self {
        let mut chains: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut current = None;
        for line in listing.lines().map(str::trim) {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["chain", name, "{"] => current = Some(chains.entry(name).or_default()),
                ["table", ..] | ["}"] => current = None,
                _ => {
                    if let Some(rules) = &mut current {
                        rules.push(line);
                    }
                }
            }
        }
        Self(chains)
    }

    /// What a chain, and those that it jumps to, decide; `None`: nothing.
    fn decide(&self, hook: FilterHook, chain: &str, depth: usize) -> Option<Decision> {
        for rule in self.0.get(chain)? {
            let rule = without_counter(without_device(without_counter(rule)));
            let accepts_dns = hook == FilterHook::Input
                && rule.contains("dport")
                && rule.ends_with("accept")
                && rule
                    .split(|c: char| !c.is_ascii_alphanumeric())
                    .any(|word| matches!(word, "53" | "domain"));
            match rule.split_whitespace().collect::<Vec<_>>()[..] {
                ["accept"] => return Some(Decision::Passes),
                ["drop"] | ["reject", ..] => return Some(Decision::Drops),
                ["return"] => return None,
                // The kernel allows sixteen jumps within each other.
                ["jump", other] if depth < MAX_DEPTH => {
                    if let Some(decision) = self.decide(hook, other, depth + 1) {
                        return Some(decision);
                    }
                }
                ["goto", other] if depth < MAX_DEPTH => return self.decide(hook, other, depth + 1),
                _ if accepts_dns => return Some(Decision::Passes),
                _ => {}
            }
        }
        None
    }

    /// Whether a rule accepts something of our device.
    fn accept_ours(&self) -> bool {
        self.0.values().flatten().any(|rule| rule.contains(naming::HOST_LEG) && rule.ends_with("accept"))
    }
}

/// A rule for packets from our device, without that condition.
fn without_device(rule: &str) -> &str {
    ["iifname", "iif"]
        .into_iter()
        .find_map(|word| {
            let rest = rule.strip_prefix(word)?.strip_prefix(' ')?;
            let (is_not, rest) = rest.strip_prefix("!= ").map_or((false, rest), |rest| (true, rest));
            let name = rest.split(' ').next()?;
            // Sets and patterns may contain it or not.
            let is_one = !name.contains(['{', '*', '@']);
            let is_ours = name.trim_matches('"') == naming::HOST_LEG;
            (is_one && is_ours != is_not).then(|| rest[name.len()..].trim_start())
        })
        .unwrap_or(rule)
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
            (Forward, true, "iifname \"mesh0\" accept\n", false),
            (Forward, true, "iifname { \"mesh0\", \"lan0\" } counter accept\n", false),
            (Forward, false, "iifname \"mesh0\" counter packets 3 bytes 252 drop\n", true),
            (Forward, false, "iifname != \"lan0\" drop\n", true),
            (Forward, false, "iifname != \"mesh0\" drop\n", false),
            (Forward, false, "iifname != { \"lan0\", \"lan1\" } drop\n", false),
        ] {
            assert_eq!(closes(hook, policy_drop, rules, ""), closed, "{rules}");
        }
    }

    /// Whether a chain with these rules drops what comes from us; `others` are chains beside it.
    fn closes(hook: FilterHook, policy_drop: bool, rules: &str, others: &str) -> bool {
        let (family, table, name) = ("inet".to_owned(), "fw".to_owned(), "base".to_owned());
        let listing = format!("table inet fw {{\n{others}\tchain base {{\n{rules}\t}}\n}}\n");
        Chain { family, table, name, hook, policy_drop }.is_closed(&listing)
    }

    #[test]
    fn chains_that_a_chain_jumps_to_decide_too() {
        let others = "\tchain user {\n\t\tjump deeper\n\t}\n\tchain deeper {\n\t\tcounter drop\n\t}\n\
            \tchain open {\n\t\taccept\n\t}\n\tchain back {\n\t\treturn\n\t\tdrop\n\t}\n\
            \tchain round {\n\t\tjump round\n\t}\n";
        for (policy_drop, rules, closed) in [
            (false, "jump user\n", true),
            (false, "goto user\n", true),
            (false, "counter packets 3 bytes 252 jump user\naccept\n", true),
            (false, "iifname \"mesh0\" jump user\n", true),
            (false, "iifname \"lan0\" jump user\n", false),
            (false, "accept\njump user\n", false),
            (true, "jump open\n", false),
            (true, "jump back\n", true),
            (false, "jump back\n", false),
            (false, "goto back\ndrop\n", false),
            (false, "jump back\ndrop\n", true),
            (false, "jump round\n", false),
            (false, "jump missing\n", false),
        ] {
            assert_eq!(closes(FilterHook::Forward, policy_drop, rules, others), closed, "{rules}");
        }
    }
}
