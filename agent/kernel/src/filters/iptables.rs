//! The chains `INPUT` and `FORWARD` of iptables.

use std::io;
use std::process::{Command, Output};

use mesh_ipam::Family;
use mesh_model::observed::{FilterHook, Iptables, IptablesState, OwnRules};

use crate::KernelError;

/// The beginning of our rules' comments. Each has its own, by which it is recognized.
const COMMENT: &str = "mesh-";

/// How many jumps within each other are followed.
const MAX_DEPTH: usize = 16;

/// One of our rules: its comment, and its conditions as iptables prints them.
type Rule = (&'static str, &'static str);

/// What containers send outside, and the replies; fragments that the datapath set aside.
const FORWARD: [Rule; 3] = [
    ("mesh-outside", "-i mesh0"),
    ("mesh-fragments", "-o mesh0 -m mark --mark 0x3050"),
    ("mesh-replies", "! -i mesh0 -o mesh0 -m conntrack --ctstate RELATED,ESTABLISHED"),
];
/// Containers' queries to the name server, and their answers to the host's own connections.
const INPUT: [Rule; 3] = [
    ("mesh-dns-udp", "-i mesh0 -p udp -m udp --dport 53"),
    ("mesh-dns-tcp", "-i mesh0 -p tcp -m tcp --dport 53"),
    ("mesh-answers", "-i mesh0 -m conntrack --ctstate RELATED,ESTABLISHED"),
];
/// Neighbour advertisements.
const INPUT6: [Rule; 4] = [INPUT[0], INPUT[1], INPUT[2], ("mesh-neighbours", "-i mesh0 -p ipv6-icmp")];

fn rules(iptables: Iptables) -> &'static [Rule] {
    match (iptables.hook, iptables.family) {
        (FilterHook::Forward, _) => &FORWARD,
        (FilterHook::Input, Family::Ipv4) => &INPUT,
        (FilterHook::Input, Family::Ipv6) => &INPUT6,
    }
}

fn chain(hook: FilterHook) -> &'static str {
    match hook {
        FilterHook::Input => "INPUT",
        FilterHook::Forward => "FORWARD",
    }
}

/// Inserts our rules at the beginning of the chain, and removes what was there of them.
pub(crate) fn open(iptables: Iptables) -> Result<(), KernelError> {
    close(iptables)?;
    for (comment, conditions) in rules(iptables) {
        let mut arguments = vec!["-I", chain(iptables.hook), "1"];
        arguments.extend(conditions.split(' '));
        arguments.extend(["-m", "comment", "--comment", comment, "-j", "ACCEPT"]);
        run(iptables, "insert a rule", &arguments)?;
    }
    Ok(())
}

/// Removes our rules, however many there are.
pub(crate) fn close(iptables: Iptables) -> Result<(), KernelError> {
    let output = command(iptables, &["-S", chain(iptables.hook)])?;
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in listing.lines().filter(|line| own_comment(line).is_some()) {
        let rule: Vec<&str> = line.split_whitespace().skip(1).map(|word| word.trim_matches('"')).collect();
        run(iptables, "delete a rule", &[&["-D"][..], &rule].concat())?;
    }
    Ok(())
}

/// The state of the chain; `None` if it cannot be read.
pub(super) fn state(iptables: Iptables) -> Option<IptablesState> {
    // All chains: a rule may jump to others.
    let output = command(iptables, &["-S"]).ok()?;
    output.status.success().then(|| parse(iptables, &String::from_utf8_lossy(&output.stdout)))
}

/// The comment of a rule, if it is one of ours.
fn own_comment(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix("-A ")?.split_whitespace();
    words.find(|word| *word == "--comment")?;
    words.next().map(|comment| comment.trim_matches('"')).filter(|comment| comment.starts_with(COMMENT))
}

/// What a rule without conditions does with every packet that reaches it.
enum Step<'a> {
    Accept,
    Drop,
    Return,
    /// To another chain, and back unless `goto`.
    Jump {
        chain: &'a str,
        goto: bool,
    },
}

impl<'a> Step<'a> {
    /// The step of a rule of a chain; `None` for other lines, and for rules with conditions.
    fn of(line: &'a str, chain: &str) -> Option<Self> {
        let mut rule = line.strip_prefix("-A ")?.strip_prefix(chain)?.strip_prefix(' ')?;
        if let Some(comment) = rule.strip_prefix("-m comment --comment ") {
            rule = match comment.strip_prefix('"') {
                Some(quoted) => quoted.split_once("\" ")?.1,
                None => comment.split_once(' ')?.1,
            };
        }
        let (goto, target) = match rule.split_once(' ')? {
            ("-j", target) => (false, target),
            ("-g", target) => (true, target),
            _ => return None,
        };
        Some(match target.split(' ').next()? {
            "ACCEPT" => Self::Accept,
            "DROP" | "REJECT" => Self::Drop,
            "RETURN" => Self::Return,
            chain => Self::Jump { chain, goto },
        })
    }
}

/// Returns the first rule that decides about every packet that reaches it, in the chain or in one
/// that it jumps to, and whether the rule drops them.
fn decides(listing: &str, chain: &str, depth: usize) -> Option<(usize, bool)> {
    for (place, line) in listing.lines().enumerate() {
        match Step::of(line, chain) {
            Some(Step::Accept) => return Some((place, false)),
            Some(Step::Drop) => return Some((place, true)),
            Some(Step::Return) => return None,
            // The kernel allows sixteen jumps within each other.
            Some(Step::Jump { chain, goto }) if depth < MAX_DEPTH => {
                match decides(listing, chain, depth + 1) {
                    Some((_, drops)) => return Some((place, drops)),
                    None if goto => return None,
                    None => {}
                }
            }
            Some(Step::Jump { .. }) | None => {}
        }
    }
    None
}

/// Reads what `iptables -S` printed.
fn parse(iptables: Iptables, listing: &str) -> IptablesState {
    let chain = chain(iptables.hook);
    let ending = decides(listing, chain, 0);
    let by_policy = listing.lines().any(|line| line == format!("-P {chain} DROP"));
    let end = ending.map_or(usize::MAX, |(place, _)| place);
    let own: Vec<(usize, &str)> = listing
        .lines()
        .enumerate()
        .filter(|(_, line)| line.split(' ').nth(1) == Some(chain) && own_comment(line).is_some())
        .collect();
    let is_there = |(comment, conditions): &Rule| {
        own.iter().any(|(place, line)| {
            own_comment(line) == Some(*comment) && line.contains(&format!(" {conditions} ")) && *place < end
        })
    };
    let wanted = rules(iptables);
    let rules = match own.len() {
        0 => OwnRules::None,
        count if count == wanted.len() && wanted.iter().all(is_there) => OwnRules::All,
        _ => OwnRules::Some,
    };
    IptablesState { closed: ending.map_or(by_policy, |(_, closes)| closes), rules }
}

/// Whether each family has tables of the old interface: no event reports that they appear.
pub(crate) fn legacy_tables() -> [bool; 2] {
    [has_legacy_filter(Family::Ipv4), has_legacy_filter(Family::Ipv6)]
}

pub(super) fn has_legacy_filter(family: Family) -> bool {
    let names = match family {
        Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == "filter"))
}

fn run(iptables: Iptables, action: &'static str, arguments: &[&str]) -> Result<(), KernelError> {
    let output = command(iptables, arguments)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let message = message.lines().next().unwrap_or("no output").to_owned();
    Err(KernelError::Iptables { action, chain: chain(iptables.hook), message })
}

/// Runs iptables in the calling thread's namespace: the wanted variant, else the one that is
/// installed.
fn command(iptables: Iptables, arguments: &[&str]) -> Result<Output, KernelError> {
    let program = match iptables.family {
        Family::Ipv4 => "iptables",
        Family::Ipv6 => "ip6tables",
    };
    let variant = format!("{program}-{}", if iptables.legacy { "legacy" } else { "nft" });
    let failed = |message| KernelError::Iptables { action: "run", chain: chain(iptables.hook), message };
    for program in [variant.as_str(), program] {
        match Command::new(program).args(["-w", "5"]).args(arguments).output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error.to_string())),
            Ok(output) => return Ok(output),
        }
    }
    Err(failed(format!("{program} is not installed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "-A FORWARD -o mesh0 -m mark --mark 0x3050 -m comment --comment mesh-fragments -j ACCEPT\n\
        -A FORWARD ! -i mesh0 -o mesh0 -m conntrack --ctstate RELATED,ESTABLISHED -m comment \
        --comment mesh-replies -j ACCEPT\n\
        -A FORWARD -i mesh0 -m comment --comment \"mesh-outside\" -j ACCEPT\n";

    #[test]
    fn a_chain_is_closed_by_its_policy_or_by_a_rule_for_everything() {
        let reject = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
        for (listing, closed, rules) in [
            ("-P FORWARD ACCEPT\n".to_owned(), false, OwnRules::None),
            ("-P FORWARD DROP\n".to_owned(), true, OwnRules::None),
            ("-P FORWARD DROP\n-A FORWARD -j ACCEPT\n".to_owned(), false, OwnRules::None),
            ("-P FORWARD ACCEPT\n-A FORWARD -i docker0 -j DROP\n".to_owned(), false, OwnRules::None),
            (format!("-P FORWARD ACCEPT\n{reject}"), true, OwnRules::None),
            (format!("-P FORWARD DROP\n{OWN}"), true, OwnRules::All),
            (format!("-P FORWARD ACCEPT\n{OWN}{reject}"), true, OwnRules::All),
            (format!("-P FORWARD DROP\n{OWN}{OWN}"), true, OwnRules::Some),
            (format!("-P FORWARD DROP\n{}\n", OWN.lines().next().unwrap()), true, OwnRules::Some),
            (format!("-P FORWARD ACCEPT\n{reject}{OWN}"), true, OwnRules::Some),
        ] {
            let iptables = Iptables { family: Family::Ipv4, hook: FilterHook::Forward, legacy: false };
            assert_eq!(parse(iptables, &listing), IptablesState { closed, rules }, "{listing}");
        }
    }

    #[test]
    fn chains_that_a_chain_jumps_to_decide_too() {
        let iptables = Iptables { family: Family::Ipv4, hook: FilterHook::Forward, legacy: false };
        let policy = "-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-N DOCKER-USER\n";
        let user = |rule: &str| format!("-A DOCKER-USER {rule}\n");
        let jump = "-A FORWARD -j DOCKER-USER\n";
        for (listing, closed, rules) in [
            (format!("{jump}{}", user("-j DROP")), true, OwnRules::None),
            (format!("{jump}{}", user("-m comment --comment \"not here\" -j DROP")), true, OwnRules::None),
            (format!("{jump}{}", user("-j RETURN") + &user("-j DROP")), false, OwnRules::None),
            (format!("{jump}{}", user("-i eth0 -j DROP") + &user("-j RETURN")), false, OwnRules::None),
            (format!("-A FORWARD -i eth0 -j DOCKER-USER\n{}", user("-j DROP")), false, OwnRules::None),
            (
                format!("-A FORWARD -g DOCKER-USER\n-A FORWARD -j DROP\n{}", user("-j RETURN")),
                false,
                OwnRules::None,
            ),
            (format!("{jump}-A FORWARD -j DROP\n{}", user("-j LOGGED")), true, OwnRules::None),
            (format!("{jump}{}", user("-j DOCKER-USER")), false, OwnRules::None),
            // Rules of ours help only before the jump.
            (format!("{OWN}{jump}{}", user("-j DROP")), true, OwnRules::All),
            (format!("{jump}{OWN}{}", user("-j DROP")), true, OwnRules::Some),
            (format!("{jump}{OWN}{}", user("-j RETURN")), false, OwnRules::All),
        ] {
            let listing = format!("{policy}{listing}");
            assert_eq!(parse(iptables, &listing), IptablesState { closed, rules }, "{listing}");
        }
    }
}
