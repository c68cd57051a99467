//! What differs between two states of the zones, for a server in another process.

use std::{collections::BTreeMap, io, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::zone::{Client, Endpoint, List, Service, Zone, Zones};

/// The way from one state to the next. What did not change is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// All networks; those that did not change without a zone.
    networks: BTreeMap<String, Option<NewZone>>,
    clients: Option<Vec<Client>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NewZone {
    gateways: Vec<IpAddr>,
    subnets: Vec<IpNetwork>,
    internal: bool,
    endpoints: Vec<Part<Endpoint>>,
    services: Vec<Part<Service>>,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Part<T> {
    /// The one that was at this place.
    Same(usize),
    New(Vec<T>),
}

impl Change {
    /// What leads from `before` to `now`. Zones and parts of lists that are the same `Arc` did not
    /// change.
    pub fn between(before: &Zones, now: &Zones) -> Self {
        let networks = now.networks.iter().map(|(name, zone)| {
            let former = before.networks.get(name);
            let same = former.is_some_and(|former| Arc::ptr_eq(former, zone));
            (name.clone(), (!same).then(|| NewZone::between(former, zone)))
        });
        let clients = (before.clients != now.clients).then(|| {
            let first = |address: &IpAddr, client: &Client| client.addresses.first() == Some(address);
            let clients = now.clients.iter().filter(|(address, client)| first(address, client));
            clients.map(|(_, client)| Client::clone(client)).collect()
        });
        Self { networks: networks.collect(), clients }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self, before: &Zones) -> bool {
        self.clients.is_none()
            && self.networks.values().all(Option::is_none)
            && self.networks.len() == before.networks.len()
    }

    /// What `before` becomes.
    ///
    /// # Errors
    /// It was made from another state.
    pub fn apply(self, before: &Zones) -> io::Result<Zones> {
        let zone = |(name, zone): (String, Option<NewZone>)| {
            let former = before.networks.get(&name);
            let zone = match zone {
                None => Arc::clone(former.ok_or_else(unknown)?),
                Some(new) => Arc::new(new.follow(former.map(AsRef::as_ref))?),
            };
            Ok((name, zone))
        };
        Ok(Zones {
            networks: self.networks.into_iter().map(zone).collect::<io::Result<_>>()?,
            clients: match self.clients {
                None => Arc::clone(&before.clients),
                Some(clients) => Arc::new(Zones::clients_of(clients)),
            },
        })
    }
}

impl NewZone {
    fn between(before: Option<&Arc<Zone>>, now: &Zone) -> Self {
        Self {
            gateways: now.gateways.clone(),
            subnets: now.subnets.clone(),
            internal: now.internal,
            endpoints: parts(before.map(|zone| &zone.endpoints), &now.endpoints),
            services: parts(before.map(|zone| &zone.services), &now.services),
        }
    }

    fn follow(self, before: Option<&Zone>) -> io::Result<Zone> {
        Ok(Zone {
            gateways: self.gateways,
            subnets: self.subnets,
            internal: self.internal,
            endpoints: list(before.map(|zone| &zone.endpoints), self.endpoints)?,
            services: list(before.map(|zone| &zone.services), self.services)?,
        })
    }
}

fn parts<T: Clone>(before: Option<&List<T>>, now: &List<T>) -> Vec<Part<T>> {
    let before = before.map(List::parts).unwrap_or_default();
    let places: BTreeMap<*const Vec<T>, usize> = before.iter().map(Arc::as_ptr).zip(0..).collect();
    let part = |part: &Arc<Vec<T>>| match places.get(&Arc::as_ptr(part)) {
        Some(place) => Part::Same(*place),
        None => Part::New(part.to_vec()),
    };
    now.parts().iter().map(part).collect()
}

fn list<T>(before: Option<&List<T>>, parts: Vec<Part<T>>) -> io::Result<List<T>> {
    let before = before.map(List::parts).unwrap_or_default();
    let part = |part: Part<T>| match part {
        Part::Same(place) => before.get(place).cloned().ok_or_else(unknown),
        Part::New(items) => Ok(Arc::new(items)),
    };
    Ok(List::of_parts(parts.into_iter().map(part).collect::<io::Result<Vec<_>>>()?))
}

fn unknown() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the change refers to a missing record")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str) -> Endpoint {
        Endpoint { name: name.into(), healthy: true, ..Endpoint::default() }
    }

    fn service(name: &str) -> Service {
        Service { name: name.into(), ..Service::default() }
    }

    /// As it comes out of another process.
    fn sent(change: &Change) -> Change {
        serde_json::from_slice(&serde_json::to_vec(change).unwrap()).unwrap()
    }

    #[test]
    fn another_process_comes_to_the_same_state_by_what_differs() {
        let parts = [vec![service("a")], vec![service("b")]].map(Arc::new);
        let app = Zone {
            gateways: vec!["10.64.0.1".parse().unwrap()],
            subnets: vec!["10.64.0.0/20".parse().unwrap()],
            internal: true,
            endpoints: vec![endpoint("c1")].into(),
            services: List::of_parts(parts.clone()),
        };
        let client = Client {
            addresses: vec!["10.64.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            networks: vec!["app".into(), "other".into()],
        };
        let first = Zones {
            networks: [("app".into(), Arc::new(app.clone())), ("other".into(), Arc::default())].into(),
            clients: Arc::new(Zones::clients_of([client])),
        };
        let change = Change::between(&Zones::default(), &first);
        let there = sent(&change).apply(&Zones::default()).unwrap();
        assert_eq!(there, first);
        assert!(Change::between(&first, &first).is_empty(&first));

        let services = List::of_parts([Arc::clone(&parts[1]), Arc::new(vec![service("new")])]);
        let mut second = first.clone();
        second.networks.insert("app".into(), Arc::new(Zone { services, ..app }));
        second.networks.remove("other");
        let change = sent(&Change::between(&first, &second));
        let text = serde_json::to_string(&change).unwrap();
        assert!(!text.contains("\"b\"") && !text.contains("c1"), "only what is new: {text}");
        let now = change.clone().apply(&there).unwrap();
        assert_eq!(now, second);
        assert!(Arc::ptr_eq(
            &now.networks["app"].services.parts()[0],
            &there.networks["app"].services.parts()[1]
        ));
        assert!(change.apply(&Zones::default()).is_err(), "it is of another state");
    }
}
