//! Decoy ports in a port check: a node that claims to use most of them is not trusted.

use std::collections::BTreeSet;

use mesh_model::{NodeId, Protocol, PublishedPort};

use crate::sessions::registry::PortAnswer;

/// Number of decoys.
const COUNT: usize = 16;
/// The first decoy, the distance between decoys, and the maximum shift of all. They stay below the
/// ports that kernels choose themselves (from 32768 on).
const FIRST: u16 = 10_007;
const DISTANCE: u16 = 701;
const SHIFT: u16 = 700;

/// Returns ports that no host has a reason to use completely, different for each question and none
/// of the question's.
pub(super) fn of(asked: &[PublishedPort]) -> Vec<PublishedPort> {
    let shift =
        asked.iter().fold(0u16, |sum, port| sum.wrapping_mul(31).wrapping_add(port.published)) % SHIFT;
    let taken: BTreeSet<u16> = asked.iter().map(|port| port.published).collect();
    let spread = (0..).map_while(|n| FIRST.checked_add(DISTANCE.checked_mul(n)?)?.checked_add(shift));
    spread
        .filter(|number| !taken.contains(number))
        .take(COUNT)
        .map(|number| PublishedPort::ingress(number, number, Protocol::Tcp))
        .collect()
}

/// Removes the decoys from the answers, and the whole answer of each node that claims more than
/// half of them; returns those nodes.
pub(super) fn take_out(answers: &mut [(NodeId, PortAnswer)], decoys: &[PublishedPort]) -> Vec<NodeId> {
    let decoys: BTreeSet<&PublishedPort> = decoys.iter().collect();
    let mut doubtful = Vec::new();
    for (node, answer) in answers {
        let PortAnswer::Taken(ports) = answer else { continue };
        let claimed: BTreeSet<&PublishedPort> = ports.iter().filter(|port| decoys.contains(port)).collect();
        if claimed.len() > COUNT / 2 {
            doubtful.push(node.clone());
            ports.clear();
        }
        ports.retain(|port| !decoys.contains(port));
    }
    doubtful
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        format!("{n:024x}").parse().unwrap()
    }

    #[test]
    fn decoys_are_sixteen_ports_that_the_question_does_not_contain() {
        let every_third: Vec<_> =
            (10_000..33_000).step_by(3).map(|port| PublishedPort::ingress(port, 80, Protocol::Udp)).collect();
        for asked in [&every_third[..1], &every_third[..]] {
            let decoys = of(asked);
            assert_eq!(decoys.len(), COUNT, "{} ports asked", asked.len());
            assert!(decoys.iter().all(|decoy| asked.iter().all(|port| port.published != decoy.published)));
        }
    }

    #[test]
    fn a_node_that_claims_most_decoys_is_doubtful_and_one_that_claims_a_few_is_not() {
        let asked = [PublishedPort::ingress(8080, 80, Protocol::Tcp)];
        let decoys = of(&asked);
        let claims =
            |count: usize| PortAnswer::Taken(asked.iter().chain(&decoys[..count]).copied().collect());
        let mut answers =
            [(node(1), claims(COUNT)), (node(2), claims(COUNT / 2)), (node(3), PortAnswer::Away)];
        assert_eq!(take_out(&mut answers, &decoys), [node(1)]);
        let taken = |answer: &PortAnswer| match answer {
            PortAnswer::Taken(ports) => ports.clone(),
            _ => panic!("an answer"),
        };
        assert_eq!(taken(&answers[0].1), []);
        assert_eq!(taken(&answers[1].1), asked);
    }
}
