//! The node's endpoints on its disk: one file each, so that writing one never puts another at risk.
//!
//! Records have to survive the process, but not a reboot: the namespaces do not survive that
//! either. So no write waits for the disk, and each record contains the id of its boot. A second
//! copy of each record in another directory replaces one that is lost or damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mesh_model::{Endpoint, EndpointId, EndpointPhase};
use mesh_sys::durable::{self, FileError, Survives};
use serde::{Deserialize, Serialize};

/// A number that the kernel draws at each boot (random(4)).
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Ends the names of attached endpoints' files.
const ATTACHED: &str = "json";
/// Ends the names of files of endpoints whose attach has not been answered yet.
const ATTACHING: &str = "attaching";
/// Ends the names of files of endpoints whose device is to be removed. A device with such a file
/// and without a record was detached. A device with neither has lost its record.
const REMOVING: &str = "removing";

/// The directory of the endpoints' files.
#[derive(Debug, Clone)]
pub struct EndpointStore {
    dir: PathBuf,
    /// A second copy of each attached endpoint's file is here.
    copies: PathBuf,
    boot: String,
}

/// What a file holds.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    boot: String,
    endpoint: Endpoint,
}

/// What was found on the disk.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The endpoints that are attached.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
    /// Endpoints that ended with an earlier boot; their records are removed.
    pub ended: BTreeMap<EndpointId, Endpoint>,
    /// Endpoints whose attach never finished.
    pub unfinished: BTreeSet<EndpointId>,
    /// Endpoints that were removed, of which the kernel may still have something.
    pub removing: BTreeSet<EndpointId>,
    /// Files that are no endpoint's record; each was put aside under its name with `.damaged`
    /// added.
    pub damaged: Vec<FileError>,
}

impl EndpointStore {
    /// The store in `dir`, with second copies in `copies`. Directories that are missing are
    /// created.
    pub fn open(dir: &Path, copies: &Path) -> Result<Self, FileError> {
        let boot = fs::read_to_string(BOOT_ID).map_err(io_error("read", Path::new(BOOT_ID)))?;
        for dir in [dir, copies] {
            durable::create_dir(dir)?;
            durable::remove_unfinished(dir)?;
        }
        let boot = boot.trim_end().to_owned();
        Ok(Self { dir: dir.to_owned(), copies: copies.to_owned(), boot })
    }

    /// Reads all records. One that is missing or cannot be read is restored from its copy.
    pub fn load(&self) -> Result<Loaded, FileError> {
        let mut loaded = Loaded::default();
        for (id, extension) in files(&self.dir)? {
            match extension.as_str() {
                ATTACHING => _ = loaded.unfinished.insert(id),
                ATTACHED => self.load_one(&id, &mut loaded)?,
                REMOVING => _ = loaded.removing.insert(id),
                _ => {}
            }
        }
        for id in loaded.removing.clone() {
            // The removal was cut short.
            if loaded.endpoints.remove(&id).is_some() {
                self.remove(&id)?;
            }
        }
        for (id, _) in files(&self.copies)? {
            let known = [&loaded.unfinished, &loaded.removing].iter().any(|ids| ids.contains(&id))
                || loaded.endpoints.contains_key(&id);
            if !known && let Some(endpoint) = self.copied(&id)? {
                tracing::warn!(endpoint = %endpoint.name, "restored a lost record of an endpoint from its copy");
                loaded.endpoints.insert(id, endpoint);
            }
        }
        for endpoint in loaded.endpoints.values() {
            self.complete(endpoint)?;
        }
        Ok(loaded)
    }

    fn load_one(&self, id: &EndpointId, loaded: &mut Loaded) -> Result<(), FileError> {
        let path = self.path(id, ATTACHED);
        match durable::read_json::<Record>(&path) {
            Ok(Some(Record { boot, endpoint })) if boot == self.boot => {
                loaded.endpoints.insert(endpoint.id.clone(), endpoint);
            }
            Ok(Some(Record { endpoint, .. })) => {
                durable::remove(&path)?;
                loaded.ended.insert(endpoint.id.clone(), endpoint);
            }
            Ok(None) => {}
            Err(error @ FileError::Content { .. }) => match self.copied(id)? {
                Some(endpoint) => {
                    tracing::warn!(%error, endpoint = %endpoint.name, "restored a record from its copy");
                    loaded.endpoints.insert(id.clone(), endpoint);
                }
                // A loss of power came before its content was on the disk, and the boot that it is
                // of has ended.
                None if is_empty(&path)? => durable::remove(&path)?,
                None => {
                    let mut aside = path.clone().into_os_string();
                    aside.push(".damaged");
                    fs::rename(&path, aside).map_err(io_error("rename", &path))?;
                    loaded.damaged.push(error);
                }
            },
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What the copy of an endpoint's record holds, if that is whole and of this boot.
    fn copied(&self, id: &EndpointId) -> Result<Option<Endpoint>, FileError> {
        match durable::read_json::<Record>(&self.copy(id)) {
            Ok(record) => Ok(record.filter(|record| record.boot == self.boot).map(|record| record.endpoint)),
            Err(FileError::Content { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes whichever of an endpoint's two files is not as it should be.
    fn complete(&self, endpoint: &Endpoint) -> Result<(), FileError> {
        let record = Record { boot: self.boot.clone(), endpoint: endpoint.clone() };
        for path in [self.path(&endpoint.id, ATTACHED), self.copy(&endpoint.id)] {
            let found = durable::read_json::<Record>(&path);
            if !matches!(found, Ok(Some(found)) if found == record) {
                durable::write_json(&path, &record, Survives::Kill)?;
            }
        }
        Ok(())
    }

    /// Writes down that an endpoint is being attached, with all that its record will have once it
    /// is.
    pub fn begin(&self, endpoint: &Endpoint) -> Result<(), FileError> {
        let path = self.path(&endpoint.id, ATTACHING);
        let endpoint = Endpoint { phase: EndpointPhase::Attached, ..endpoint.clone() };
        let bytes = serde_json::to_vec(&Record { boot: self.boot.clone(), endpoint })
            .map_err(|source| FileError::Content { path: path.clone(), source })?;
        // Half a file is one of an unfinished attach too, and that is all there is to know of it.
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(&bytes));
        if written.is_err() {
            // A full disk must not keep the half that fitted; what matters is the error that led
            // here.
            let _ = fs::remove_file(&path);
        }
        written.map_err(io_error("write", &path))
    }

    /// Turns an endpoint that [`Self::begin`] has recorded into an attached one.
    pub fn finish(&self, id: &EndpointId) -> Result<(), FileError> {
        let path = self.path(id, ATTACHED);
        fs::rename(self.path(id, ATTACHING), &path).map_err(io_error("write", &path))?;
        // An agent that is killed before makes the copy when it starts again.
        let copy = self.copy(id);
        let content = fs::read(&path).map_err(io_error("read", &path))?;
        durable::write(&copy, &content, Survives::Kill)
    }

    /// Removes an endpoint's record. Its device is to be removed next; then call
    /// [`Self::forget`].
    pub fn remove(&self, id: &EndpointId) -> Result<(), FileError> {
        let path = self.path(id, REMOVING);
        File::create(&path).map_err(io_error("write", &path))?;
        // The copy first: a copy without a file means that the file was lost.
        durable::remove(&self.copy(id))?;
        durable::remove(&self.path(id, ATTACHED))?;
        durable::remove(&self.path(id, ATTACHING))
    }

    /// Forgets a removed endpoint, of which the kernel has nothing any more.
    pub fn forget(&self, id: &EndpointId) -> Result<(), FileError> {
        durable::remove(&self.path(id, REMOVING))
    }

    /// Writes a rebuilt record of an endpoint.
    pub fn restore(&self, endpoint: &Endpoint) -> Result<(), FileError> {
        self.complete(endpoint)
    }

    fn copy(&self, id: &EndpointId) -> PathBuf {
        self.copies.join(format!("{id}.{ATTACHED}"))
    }

    fn path(&self, id: &EndpointId, extension: &str) -> PathBuf {
        self.dir.join(format!("{id}.{extension}"))
    }
}

/// The files in a directory that are named after endpoints, with their extensions.
fn files(dir: &Path) -> Result<Vec<(EndpointId, String)>, FileError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("read", dir))? {
        let path = entry.map_err(io_error("read", dir))?.path();
        let text = |part: Option<&std::ffi::OsStr>| part.and_then(|part| part.to_str()).map(str::to_owned);
        if let (Some(stem), Some(extension)) = (text(path.file_stem()), text(path.extension()))
            && let Ok(id) = stem.parse()
        {
            files.push((id, extension));
        }
    }
    Ok(files)
}

fn is_empty(path: &Path) -> Result<bool, FileError> {
    Ok(fs::metadata(path).map_err(io_error("read", path))?.len() == 0)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::endpoint;

    fn open(dir: &Path) -> EndpointStore {
        EndpointStore::open(&dir.join("endpoints"), &dir.join("copies")).unwrap()
    }

    fn attach(store: &EndpointStore, n: u8) {
        store.begin(&endpoint(n)).unwrap();
        store.finish(&endpoint(n).id).unwrap();
    }

    #[test]
    fn what_was_attached_is_there_after_a_restart_and_what_was_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        attach(&store, 1);
        attach(&store, 2);
        store.remove(&endpoint(1).id).unwrap();
        store.remove(&endpoint(1).id).unwrap();
        let loaded = open(dir.path()).load().unwrap();
        let expected = Endpoint { phase: EndpointPhase::Attached, ..endpoint(2) };
        assert_eq!(loaded.endpoints, BTreeMap::from([(endpoint(2).id, expected)]));
        assert!(loaded.ended.is_empty() && loaded.unfinished.is_empty());
    }

    #[test]
    fn an_attach_that_was_killed_midway_is_unfinished_however_far_its_record_came() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        store.begin(&endpoint(1)).unwrap();
        fs::write(
            dir.path().join("endpoints").join(format!("{}.attaching", endpoint(2).id)),
            "{\"id\": \"0000",
        )
        .unwrap();
        let loaded = store.load().unwrap();
        assert_eq!(loaded.unfinished, BTreeSet::from([endpoint(1).id, endpoint(2).id]));
        assert!(loaded.endpoints.is_empty());
        for n in [1, 2] {
            store.remove(&endpoint(n).id).unwrap();
        }
        // Until the kernel has nothing of them, it is known that they are gone on purpose.
        assert_eq!(store.load().unwrap().removing, loaded.unfinished);
        for n in [1, 2] {
            store.forget(&endpoint(n).id).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path().join("endpoints")).unwrap().count(), 0);
    }

    #[test]
    fn an_endpoint_ends_with_the_boot_of_its_host() {
        let dir = tempfile::tempdir().unwrap();
        let before = EndpointStore { boot: "another".into(), ..open(dir.path()) };
        attach(&before, 1);
        let store = open(dir.path());
        let loaded = store.load().unwrap();
        assert_eq!(loaded.ended.into_keys().collect::<Vec<_>>(), [endpoint(1).id]);
        assert!(loaded.endpoints.is_empty());
        assert!(store.load().unwrap().ended.is_empty());
    }

    #[test]
    fn a_record_that_a_loss_of_power_emptied_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        fs::write(dir.path().join("endpoints").join(format!("{}.json", endpoint(2).id)), "").unwrap();
        let loaded = store.load().unwrap();
        assert!(loaded.endpoints.is_empty() && loaded.damaged.is_empty());
        assert_eq!(fs::read_dir(dir.path().join("endpoints")).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_record_is_put_aside_and_does_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        attach(&store, 1);
        let damaged = dir.path().join("endpoints").join(format!("{}.json", endpoint(2).id));
        fs::write(&damaged, "{}").unwrap();
        let loaded = store.load().unwrap();
        assert_eq!(loaded.endpoints.len(), 1);
        assert_eq!(loaded.damaged.len(), 1);
        assert!(!damaged.exists());
        assert!(store.load().unwrap().damaged.is_empty());
    }

    #[test]
    fn a_record_that_is_damaged_or_lost_while_its_endpoint_is_there_is_restored() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        attach(&store, 1);
        let path = store.path(&endpoint(1).id, ATTACHED);
        let whole = fs::read(&path).unwrap();
        for damage in [Some(&b""[..]), Some(&whole[..whole.len() / 2]), Some(b"\0garbage"), None] {
            match damage {
                Some(damage) => fs::write(&path, damage).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let loaded = open(dir.path()).load().unwrap();
            assert_eq!(loaded.endpoints.keys().collect::<Vec<_>>(), [&endpoint(1).id], "{damage:?}");
            assert!(loaded.damaged.is_empty());
            assert_eq!(durable::read_json::<Record>(&path).unwrap().unwrap().endpoint.id, endpoint(1).id);
        }
        // The copy is restored, too, and goes with the endpoint.
        fs::write(store.copy(&endpoint(1).id), "").unwrap();
        assert_eq!(store.load().unwrap().endpoints.len(), 1);
        fs::write(&path, "").unwrap();
        assert_eq!(store.load().unwrap().endpoints.len(), 1);
        store.remove(&endpoint(1).id).unwrap();
        assert!(store.load().unwrap().endpoints.is_empty());
    }
}
