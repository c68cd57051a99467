//! Prevents the host from choosing published ports for its outgoing connections.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_state::Agent;
use mesh_state::endpoint_store::BOOT_ID;
use mesh_sys::durable::{self, Survives};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

/// Longest text: the kernel prints at most every second port, with five digits and a comma each.
const LONGEST: usize = 256 << 10;

/// The reservation of the published ports. Without it, answers to an outgoing connection of the
/// host from such a port would be treated as requests to the service.
#[derive(Debug)]
pub struct Reservation {
    sysctl: PathBuf,
    record: PathBuf,
    boot: String,
    /// The ports that this node reserved; `None` if the record of them is damaged.
    ours: Option<BTreeSet<u16>>,
}

/// The record on disk: after a kill, the next agent releases exactly the ports that were reserved.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Reservations end with the boot, so a record of an earlier boot is not valid.
    #[serde(default)]
    boot: String,
    ports: BTreeSet<u16>,
}

impl Reservation {
    /// Adopts the reservations of an earlier agent in `sysctl` ([`mesh_host::RESERVED_PORTS`]), as
    /// recorded in `record`.
    pub fn open(sysctl: PathBuf, record: PathBuf) -> Self {
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default().trim_end().to_owned();
        let ours = match durable::read_json::<Record>(&record) {
            // A record without a boot was written by an earlier version.
            Ok(Some(found)) if found.boot == boot || found.boot.is_empty() => Some(found.ports),
            Ok(_) => Some(BTreeSet::new()),
            Err(error) => {
                tracing::warn!(%error, "the record of reserved ports is damaged: all reserved published ports count as ours");
                None
            }
        };
        Self { sysctl, record, boot, ours }
    }

    /// Reserves these ports, and releases all others that this node reserved.
    pub fn set(&mut self, ports: &BTreeSet<u16>) -> io::Result<()> {
        let there = parse(&read_whole(&self.sysctl)?);
        // Without a record, assume that this node reserved each reserved published port. Otherwise
        // it would stay reserved forever.
        let before = self.ours.clone().unwrap_or_else(|| there.intersection(ports).copied().collect());
        let foreign: BTreeSet<u16> = there.difference(&before).copied().collect();
        let wanted: BTreeSet<u16> = foreign.union(ports).copied().collect();
        let ours: BTreeSet<u16> = ports.difference(&foreign).copied().collect();
        if Some(&ours) != self.ours.as_ref() {
            // Write the record first, with old and new ports: after a kill, every reserved port
            // must be recorded.
            self.write(ours.union(&before).copied().collect())?;
        }
        if wanted != there {
            fs::write(&self.sysctl, print(&wanted))?;
        }
        if Some(&ours) != self.ours.as_ref() {
            self.write(ours.clone())?;
            self.ours = Some(ours);
        }
        Ok(())
    }

    fn write(&self, ports: BTreeSet<u16>) -> io::Result<()> {
        let record = Record { boot: self.boot.clone(), ports };
        durable::write_json(&self.record, &record, Survives::Kill).map_err(io::Error::other)
    }
}

/// Reads a kernel file with one call. `ip_local_reserved_ports` returns the whole text to the first
/// read, as far as it fits, and nothing to a second one.
fn read_whole(path: &Path) -> io::Result<String> {
    let mut buffer = vec![0; LONGEST];
    let length = File::open(path)?.read(&mut buffer)?;
    if length == buffer.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the list of reserved ports is too long"));
    }
    buffer.truncate(length);
    String::from_utf8(buffer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Interval between checks whether the ports are still reserved.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Keeps the published ports reserved, and outgoing masqueraded traffic off them, until cancelled.
pub async fn reserve(agent: Arc<Agent>, mut reservation: Reservation) {
    agent.view_known().await;
    let mut changes = agent.service_changes();
    let mut logged = String::new();
    let mut avoided = BTreeSet::new();
    loop {
        changes.mark_unchanged();
        let ports = agent.read(|state| state.view.services.published_ports());
        let masqueraded =
            ports.iter().copied().filter(|port| mesh_planner::may_be_masqueraded(*port)).collect();
        if avoided != masqueraded {
            avoided = masqueraded;
            agent.wake_kernel_loop();
        }
        if let Err(error) = reservation.set(&ports)
            && std::mem::replace(&mut logged, error.to_string()) != logged
        {
            tracing::warn!(%error, "published ports could not be reserved: the host may use them for outgoing connections");
        }
        tokio::select! {
            alive = changes.changed() => if alive.is_err() { return },
            // Other programs may replace the whole list, and no event reports it.
            () = sleep(CHECK_INTERVAL) => {}
        }
    }
}

/// Parses the sysctl's format: `1,2,10-20`.
fn parse(text: &str) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            ports.extend(first..=last);
        }
    }
    ports
}

/// Formats the list. An empty line clears it: the kernel ignores an empty write.
fn print(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*port) => *last = *port,
            _ => ranges.push((*port, *port)),
        }
    }
    let range = |(first, last): &(u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    let ranges: Vec<String> = ranges.iter().map(range).collect();
    format!("{}\n", ranges.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ports_that_mesh_reserved_are_released_even_by_the_next_agent() {
        let dir = tempfile::tempdir().unwrap();
        let (sysctl, record) = (dir.path().join("sysctl"), dir.path().join("record.json"));
        fs::write(&sysctl, "8080,9000-9002\n").unwrap();
        let open = || Reservation::open(sysctl.clone(), record.clone());
        let text = || fs::read_to_string(&sysctl).unwrap();
        let mut first = open();
        first.set(&[8080, 8081, 30000].into()).unwrap();
        assert_eq!(text(), "8080-8081,9000-9002,30000\n");
        let mut next = open();
        next.set(&[30000].into()).unwrap();
        assert_eq!(text(), "8080,9000-9002,30000\n");
        next.set(&BTreeSet::new()).unwrap();
        assert_eq!(text(), "8080,9000-9002\n");
        fs::write(&sysctl, "\n").unwrap();
        open().set(&[65535].into()).unwrap();
        assert_eq!(text(), "65535\n");
        open().set(&BTreeSet::new()).unwrap();
        assert_eq!(text(), "\n");
    }

    #[test]
    fn a_damaged_record_keeps_no_published_port_reserved_forever() {
        let dir = tempfile::tempdir().unwrap();
        let (sysctl, record) = (dir.path().join("sysctl"), dir.path().join("record.json"));
        let open = || Reservation::open(sysctl.clone(), record.clone());
        for damage in ["", "{\"ports\":[80", "\0\u{1}garbage"] {
            fs::write(&sysctl, "9000\n").unwrap();
            let _ = fs::remove_file(&record);
            open().set(&[8080].into()).unwrap();
            fs::write(&record, damage).unwrap();
            open().set(&[8080].into()).unwrap();
            open().set(&BTreeSet::new()).unwrap();
            assert_eq!(fs::read_to_string(&sysctl).unwrap(), "9000\n", "{damage:?}");
        }
    }

    #[test]
    fn reservations_of_an_earlier_boot_belong_to_other_programs() {
        let dir = tempfile::tempdir().unwrap();
        let (sysctl, record) = (dir.path().join("sysctl"), dir.path().join("record.json"));
        fs::write(&sysctl, "9000\n").unwrap();
        fs::write(&record, "{\"boot\":\"another\",\"ports\":[9000]}").unwrap();
        Reservation::open(sysctl.clone(), record).set(&BTreeSet::new()).unwrap();
        assert_eq!(fs::read_to_string(&sysctl).unwrap(), "9000\n");
    }
}
