//! Endpoints' devices as the kernel knows them, for an agent whose own records of them are lost.
//!
//! The host's end of each pair has an alias that describes its endpoint. The container's end has
//! the rest: its namespace, name, MAC and addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mesh_model::survivor::{Inner, Survivor};
use mesh_model::{IfName, MacAddr};
use mesh_sys::netlink::Netlink;

use crate::inside::OuterEnd;
use crate::links::{self, RawLink};
use crate::netlink::{During, open_own};
use crate::{KernelError, addresses, namespace, netns};

/// Where container runtimes name namespaces: a name lasts longer than a process.
const NAMED: [&str; 3] = ["/run/netns", "/run/docker/netns", "/var/run/netns"];

fn dump(netlink: &mut Netlink) -> Result<Vec<RawLink>, KernelError> {
    links::dump(netlink).map_err(|error| error.during("list the network devices"))
}

/// Writes descriptions into the aliases of devices, where the alias differs.
pub fn describe(descriptions: &BTreeMap<IfName, String>) -> Result<(), KernelError> {
    let mut netlink = open_own()?;
    let found = match descriptions.keys().next() {
        None => return Ok(()),
        Some(only) if descriptions.len() == 1 => links::by_name(&mut netlink, only)
            .map_err(|error| error.during(format!("find the device {only}")))?
            .into_iter()
            .collect(),
        Some(_) => dump(&mut netlink)?,
    };
    for link in found {
        let Some((name, _)) = link.ours() else { continue };
        let Some(wanted) = descriptions.get(&name).filter(|wanted| **wanted != link.alias) else { continue };
        links::set_alias(&mut netlink, link.index, wanted)
            .map_err(|error| error.during(format!("describe the device {name}")))?;
    }
    Ok(())
}

/// Identifies these devices.
pub fn find(devices: &BTreeSet<IfName>) -> Result<Vec<Survivor>, KernelError> {
    let links = dump(&mut open_own()?)?;
    let paths = namespaces();
    let survivor = |link: &RawLink| {
        let (device, _) = link.ours().filter(|(name, _)| devices.contains(name))?;
        let peer = link.link.filter(|_| link.link_elsewhere)?;
        let outer = OuterEnd { index: link.index, peer, carrier_changes: link.carrier_changes };
        Some(Survivor {
            device,
            index: link.index,
            description: link.alias.parse().ok(),
            inner: paths.iter().find_map(|path| inner(path, outer)),
        })
    };
    Ok(links.iter().filter_map(survivor).collect())
}

/// The other end of a pair, if it is in the namespace at that path.
fn inner(path: &Path, outer: OuterEnd) -> Option<Inner> {
    let (netns, _) = netns::find(path).ok()?;
    let opened = namespace::open(&netns).ok()?;
    let mut netlink = namespace::netlink(&netns, &opened, || ()).ok()?;
    let link = links::by_index(&mut netlink, outer.peer).ok().flatten()?;
    if link.link != Some(outer.index) || !link.link_elsewhere {
        return None;
    }
    let mac = MacAddr::new(link.address?).ok()?;
    let held = addresses::dump(&mut netlink).ok()?.into_iter();
    let held = held.filter(|(index, _)| *index == outer.peer).map(|(_, held)| held.address);
    let addresses = held.filter(|address| !addresses::is_link_local(*address)).collect();
    Some(Inner { netns, ifname: link.name.parse().ok()?, mac, addresses })
}

/// One path to each network namespace that has a path.
fn namespaces() -> Vec<PathBuf> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = NAMED.iter().flat_map(|dir| entries(Path::new(dir)));
    let of_processes = entries(Path::new("/proc"))
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit()))
        .map(|path| path.join("ns/net"));
    let mut seen = BTreeSet::new();
    named
        .chain(of_processes)
        .filter(|path| fs::metadata(path).is_ok_and(|found| seen.insert((found.dev(), found.ino()))))
        .collect()
}
