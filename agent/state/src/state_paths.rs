//! The paths in the state directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesh_sys::durable::{self, FileError, Survives};

/// What is where in the state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatePaths {
    dir: PathBuf,
    /// For what ends with the boot.
    run: PathBuf,
}

impl StatePaths {
    /// The paths under `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), run: dir.join("run") }
    }

    /// The paths under `dir`, with what ends with the boot under `run`.
    pub fn with_run_dir(dir: &Path, run: &Path) -> Self {
        Self { dir: dir.to_owned(), run: run.to_owned() }
    }

    /// The state directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The membership: written last by init and join, removed first by leave.
    pub fn membership(&self) -> PathBuf {
        self.dir.join("member.json")
    }

    /// There while an init, join or leave is under way: what else is here without a membership is
    /// then half a member's. Without it, it is a member's whose membership was lost.
    fn changing(&self) -> PathBuf {
        self.dir.join("changing")
    }

    /// The node's key and certificates, in one file.
    pub fn identity(&self) -> PathBuf {
        self.dir.join("identity.pem")
    }

    /// The directory of the certificate authority, on managers.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// The embedded store, on managers.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store.redb")
    }

    /// The cluster's records as last received.
    pub fn view(&self) -> PathBuf {
        self.dir.join("view.json")
    }

    /// One file for each endpoint.
    pub fn endpoints(&self) -> PathBuf {
        self.dir.join("endpoints")
    }

    /// Second copies of the endpoints' files.
    pub fn endpoint_copies(&self) -> PathBuf {
        self.run.join("endpoints")
    }

    /// The directory of second copies of small files: each has the name of its file.
    pub fn copies(&self) -> PathBuf {
        self.dir.join("copies")
    }

    /// The order in which released addresses may be allocated again.
    pub fn released(&self) -> PathBuf {
        self.dir.join("released.json")
    }

    /// The last received endpoints of other nodes, for their names.
    pub fn names(&self) -> PathBuf {
        self.dir.join("names.json")
    }

    /// Whether backends passed their checks, as last known.
    pub fn health(&self) -> PathBuf {
        self.dir.join("health.json")
    }

    /// The host's ports that were reserved because they are published.
    pub fn reserved_ports(&self) -> PathBuf {
        self.dir.join("reserved-ports.json")
    }

    /// The node's private keys for encrypted networks.
    pub fn wireguard_keys(&self) -> PathBuf {
        self.dir.join("wireguard.keys")
    }

    /// What of a member is here although there is no membership, and neither an init, join or leave
    /// was interrupted: that of a member whose `member.json` was lost.
    pub fn orphaned(&self) -> Vec<PathBuf> {
        if self.membership().exists() || self.changing().exists() {
            return Vec::new();
        }
        [self.store(), self.authority(), self.identity()].into_iter().filter(|path| path.exists()).collect()
    }

    /// Removes all state of a member, the membership itself first, and notes before that it is gone
    /// on purpose. That holds until [`Self::settle`], so that an interruption leaves no half a
    /// member.
    pub fn remove_member_state(&self) -> Result<(), FileError> {
        durable::write(&self.changing(), &[], Survives::PowerLoss)?;
        let paths = [
            self.membership(),
            self.identity(),
            self.authority(),
            self.store(),
            self.view(),
            self.endpoints(),
            self.endpoint_copies(),
            self.copies(),
            self.released(),
            self.names(),
            self.reserved_ports(),
            self.wireguard_keys(),
        ];
        paths.iter().try_for_each(|path| {
            remove_any(path).map_err(|source| FileError::Io { action: "remove", path: path.clone(), source })
        })
    }

    /// The end of an init, join or leave: there is a membership, or nothing of one.
    pub fn settle(&self) -> Result<(), FileError> {
        durable::remove(&self.changing())
    }
}

fn remove_any(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
