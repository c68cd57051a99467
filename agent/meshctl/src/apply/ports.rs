//! Differences between a service's existing and declared ports.

use std::collections::BTreeMap;

use mesh_model::{Protocol, PublishedPort};

use super::Port;

/// The published ports of the cluster's services, with their owners.
#[derive(Debug, Default)]
pub(super) struct Taken<'a>(BTreeMap<(Protocol, u16), Vec<(PublishedPort, &'a str)>>);

impl<'a> Taken<'a> {
    /// Adds a port with its owner.
    pub(super) fn insert(&mut self, port: PublishedPort, owner: &'a str) {
        self.0.entry((port.protocol, port.published)).or_default().push((port, owner));
    }

    /// Removes a port that its owner releases.
    pub(super) fn remove(&mut self, port: &PublishedPort) {
        if let Some(owners) = self.0.get_mut(&(port.protocol, port.published)) {
            owners.retain(|(taken, _)| taken != port);
        }
    }

    /// Returns the port that matches the same packets, and its owner.
    pub(super) fn owner(&self, port: &PublishedPort) -> Option<(PublishedPort, &'a str)> {
        let owners = self.0.get(&(port.protocol, port.published))?;
        owners.iter().find(|(taken, _)| taken.conflicts_with(port)).copied()
    }
}

/// The differences between a service's existing and declared ports.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference<'a> {
    /// Declared, but missing.
    pub(super) missing: Vec<&'a Port>,
    /// Existing, but not declared.
    pub(super) surplus: Vec<PublishedPort>,
}

/// Matches existing ports with as many declared ones as possible.
pub(super) fn difference<'a>(declared: &'a [Port], there: &[PublishedPort]) -> Difference<'a> {
    let mut missing: Vec<&Port> = declared.iter().collect();
    let mut there = there.to_vec();
    there.sort_unstable();
    // In order of the published ports, assign each to the range that ends first: this matches the
    // maximum number.
    let surplus = there.into_iter().filter(|port| {
        let fitting = missing.iter().enumerate().filter(|(_, declared)| declared.allows(port));
        let first_to_end = fitting.min_by_key(|(_, declared)| *declared.published.end());
        match first_to_end.map(|(index, _)| index) {
            Some(index) => {
                missing.remove(index);
                false
            }
            None => true,
        }
    });
    let surplus = surplus.collect();
    Difference { missing, surplus }
}

/// Why a port cannot be published.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoneFree<'a> {
    /// The conflict of the last port that was tried.
    pub(super) port: PublishedPort,
    /// Its owner.
    pub(super) owner: &'a str,
}

/// Chooses a free published port; with 0, the cluster chooses.
pub(super) fn choose<'a>(port: &Port, taken: &Taken<'a>) -> Result<PublishedPort, NoneFree<'a>> {
    if port.is_automatic() {
        return Ok(port.with(0));
    }
    let mut last = NoneFree { port: port.with(*port.published.start()), owner: "" };
    for published in port.published.clone() {
        let port = port.with(published);
        match taken.owner(&port) {
            None => return Ok(port),
            Some((port, owner)) => last = NoneFree { port, owner },
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use mesh_model::PublishMode;

    use super::*;

    fn port(first: u16, last: u16) -> Port {
        Port {
            published: first..=last,
            target: 80,
            protocol: Protocol::Tcp,
            mode: PublishMode::Ingress,
            host_ip: None,
        }
    }

    fn there(published: u16) -> PublishedPort {
        PublishedPort::ingress(published, 80, Protocol::Tcp)
    }

    #[test]
    fn a_port_stays_with_the_range_that_has_no_other_choice() {
        let declared = [port(8000, 8010), port(8000, 8001), port(8000, 8000)];
        let all = difference(&declared, &[there(8001), there(8010), there(8000)]);
        assert_eq!(all, Difference::default());
        let some = difference(&declared, &[there(8005), there(8006)]);
        assert_eq!((some.missing.len(), some.surplus), (2, vec![there(8006)]));
    }

    #[test]
    fn a_port_of_another_target_does_not_stay() {
        let other = PublishedPort { target: 81, ..there(8000) };
        let found = difference(&[], &[other]);
        assert_eq!(found.surplus, [other]);
        assert_eq!(difference(&[port(8000, 8000)], &[other]).missing.len(), 1);
    }

    #[test]
    fn the_first_free_port_of_a_range_is_chosen() {
        let mut taken = Taken::default();
        taken.insert(there(8000), "app/web");
        taken.insert(there(8001), "app/db");
        assert_eq!(choose(&port(8000, 8002), &taken), Ok(there(8002)));
        assert_eq!(choose(&port(8000, 8001), &taken).unwrap_err().owner, "app/db");
        taken.remove(&there(8000));
        assert_eq!(choose(&port(8000, 8001), &taken), Ok(there(8000)));
        assert_eq!(choose(&port(30000, 32767), &taken), Ok(there(0)));
    }
}
