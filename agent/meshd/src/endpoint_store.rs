//! The node's endpoints on its disk: one file each, so that writing one never puts another at risk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesh_model::{Endpoint, EndpointId, EndpointPhase};

use crate::durable::{self, FileError, Survives};

/// The directory of the endpoints' files, `ID.json` each.
#[derive(Debug, Clone)]
pub struct EndpointStore {
    dir: PathBuf,
}

/// What was found on the disk.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The endpoints.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
    /// Files that are no endpoint's record; each was put aside under its name with `.damaged` added.
    pub damaged: Vec<FileError>,
}

impl EndpointStore {
    /// The store in `dir`, which is made when it is missing.
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        fs::create_dir_all(dir).map_err(|source| FileError::Io {
            action: "make",
            path: dir.to_owned(),
            source,
        })?;
        durable::remove_unfinished(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Reads all records.
    pub fn load(&self) -> Result<Loaded, FileError> {
        let read = |source: io::Error| FileError::Io { action: "read", path: self.dir.clone(), source };
        let mut loaded = Loaded::default();
        for entry in fs::read_dir(&self.dir).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            if fs::metadata(&path).map_err(read)?.len() == 0 {
                // An attach that a loss of power cut short: written, but never synced (see `put`).
                durable::remove(&path)?;
                continue;
            }
            match durable::read_json::<Endpoint>(&path) {
                Ok(Some(endpoint)) => {
                    loaded.endpoints.insert(endpoint.id.clone(), endpoint);
                }
                Ok(None) => {}
                Err(error @ FileError::Content { .. }) => {
                    let mut aside = path.clone().into_os_string();
                    aside.push(".damaged");
                    fs::rename(&path, aside).map_err(read)?;
                    loaded.damaged.push(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(loaded)
    }

    /// Writes an endpoint's record; durable when this returns. An endpoint that is still attaching has only to survive the
    /// end of the process: after a loss of power there is nothing in the kernel that would have to be undone.
    pub fn put(&self, endpoint: &Endpoint) -> Result<(), FileError> {
        let survives = match endpoint.phase {
            EndpointPhase::Attaching => Survives::Kill,
            EndpointPhase::Attached => Survives::PowerLoss,
        };
        durable::write_json(&self.path(&endpoint.id), endpoint, survives)
    }

    /// Removes an endpoint's record, for good when this returns.
    pub fn remove(&self, id: &EndpointId) -> Result<(), FileError> {
        durable::remove(&self.path(id))
    }

    fn path(&self, id: &EndpointId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use mesh_model::endpoint::NetnsRef;

    use super::*;

    pub(crate) fn endpoint(n: u8) -> Endpoint {
        Endpoint {
            id: format!("{n:024x}").parse().unwrap(),
            name: format!("web-{n}").parse().unwrap(),
            network: format!("{:024x}", 1).parse().unwrap(),
            node: format!("{:024x}", 2).parse().unwrap(),
            ipv4: Some([10, 64, 0, n].into()),
            ipv6: None,
            mac: format!("02:42:0a:40:00:{n:02x}").parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
            allow_forwarding: false,
            service: None,
            aliases: vec![],
            netns: NetnsRef { path: format!("/run/netns/web-{n}").into(), inode: n.into() },
            phase: EndpointPhase::Attaching,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_was_put_is_there_after_a_restart_and_what_was_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = EndpointStore::open(&dir.path().join("endpoints")).unwrap();
        store.put(&endpoint(1)).unwrap();
        store.put(&endpoint(2)).unwrap();
        store.put(&Endpoint { phase: EndpointPhase::Attached, ..endpoint(2) }).unwrap();
        store.remove(&endpoint(1).id).unwrap();
        store.remove(&endpoint(1).id).unwrap();
        let loaded = EndpointStore::open(&dir.path().join("endpoints")).unwrap().load().unwrap();
        let phases: Vec<_> = loaded.endpoints.values().map(|e| (e.id.clone(), e.phase)).collect();
        assert_eq!(phases, [(endpoint(2).id, EndpointPhase::Attached)]);
    }

    #[test]
    fn a_write_that_was_killed_midway_leaves_the_record_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let store = EndpointStore::open(dir.path()).unwrap();
        store.put(&endpoint(1)).unwrap();
        let unfinished = dir.path().join(format!("{}.json.tmp", endpoint(1).id));
        fs::write(&unfinished, "{\"id\": \"0000").unwrap();
        let loaded = EndpointStore::open(dir.path()).unwrap().load().unwrap();
        assert_eq!(loaded.endpoints.get(&endpoint(1).id), Some(&endpoint(1)));
        assert!(!unfinished.exists());
    }

    #[test]
    fn an_attach_that_a_power_loss_cut_short_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = EndpointStore::open(dir.path()).unwrap();
        fs::write(dir.path().join(format!("{}.json", endpoint(2).id)), "").unwrap();
        let loaded = store.load().unwrap();
        assert!(loaded.endpoints.is_empty() && loaded.damaged.is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_record_is_put_aside_and_does_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let store = EndpointStore::open(dir.path()).unwrap();
        store.put(&endpoint(1)).unwrap();
        let damaged = dir.path().join(format!("{}.json", endpoint(2).id));
        fs::write(&damaged, "{}").unwrap();
        let loaded = store.load().unwrap();
        assert_eq!(loaded.endpoints.len(), 1);
        assert_eq!(loaded.damaged.len(), 1);
        assert!(!damaged.exists());
        assert!(store.load().unwrap().damaged.is_empty());
    }
}
