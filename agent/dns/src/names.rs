//! All networks' names, ready to be asked, and which of them a client sees.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use hickory_proto::rr::{Name, RecordType};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    lookup::{Answer, Index, lookup},
    zone::{Zone, Zones},
};

/// The present zones and their indexes.
#[derive(Debug)]
pub(crate) struct Names {
    zones: watch::Receiver<Zones>,
    indexes: Mutex<BTreeMap<String, Indexed>>,
}

#[derive(Debug)]
struct Indexed {
    zone: Arc<Zone>,
    index: Arc<Index>,
}

/// What one client sees.
#[derive(Debug)]
pub(crate) struct View {
    indexes: Vec<Arc<Index>>,
    /// None of its networks has a way out.
    pub(crate) internal: bool,
}

impl View {
    /// Answers a question of class IN.
    pub(crate) fn lookup(&self, name: &Name, record_type: RecordType) -> Answer {
        let indexes: Vec<&Index> = self.indexes.iter().map(AsRef::as_ref).collect();
        lookup(&indexes, name, record_type)
    }
}

impl Names {
    pub(crate) fn new(zones: watch::Receiver<Zones>) -> Self {
        Self { zones, indexes: Mutex::default() }
    }

    /// What identifies the container that asks, whichever of its addresses it uses.
    pub(crate) fn client(&self, address: IpAddr) -> IpAddr {
        let address = address.to_canonical();
        let clients = Arc::clone(&self.zones.borrow().clients);
        let first = clients.get(&address).and_then(|client| client.addresses.iter().min());
        first.copied().unwrap_or(address)
    }

    /// What a client sees that asks a network's server; `None` while nothing is known of that
    /// network.
    pub(crate) fn view(&self, network: &str, client: IpAddr) -> Option<View> {
        let zones = self.zones.borrow();
        let asked = zones.networks.get(network)?;
        let client = zones.clients.get(&client.to_canonical());
        let client = client.filter(|client| client.networks.iter().any(|name| name == network));
        let visible: Vec<(String, Arc<Zone>)> = match client {
            None => vec![(network.to_owned(), Arc::clone(asked))],
            Some(client) => {
                let zone = |name: &String| Some((name.clone(), Arc::clone(zones.networks.get(name)?)));
                client.networks.iter().filter_map(zone).collect()
            }
        };
        let known: Vec<String> = zones.networks.keys().cloned().collect();
        drop(zones);
        let internal = visible.iter().all(|(_, zone)| zone.internal);
        Some(View { indexes: self.indexes(visible, &known), internal })
    }

    fn indexes(&self, zones: Vec<(String, Arc<Zone>)>, known: &[String]) -> Vec<Arc<Index>> {
        // An index that a panic left there is whole: it is replaced by assignment only.
        let mut indexes = self.indexes.lock();
        if indexes.len() > known.len() {
            indexes.retain(|name, _| known.contains(name));
        }
        let mut made = Vec::with_capacity(zones.len());
        for (name, zone) in zones {
            let index = match indexes.get(&name) {
                Some(known) if Arc::ptr_eq(&known.zone, &zone) => Arc::clone(&known.index),
                former => Arc::new(Index::following(former.map(|former| &*former.index), &name, &zone)),
            };
            indexes.insert(name, Indexed { zone, index: Arc::clone(&index) });
            made.push(index);
        }
        made
    }
}
